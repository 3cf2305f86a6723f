"""Every MLP neuron of SmolLM2 set to zero alone, on 8 prompts: patchclamp beside TransformerLens and captum.

    python -m benchmarks.neuron_sweep             # makes their environments once
    python -m benchmarks.neuron_sweep --parts 6   # only two sixths of our sweep: ten layers from early to late

The question: what does setting one neuron (an input of `down_proj`) to zero at the last position add to the logit
difference of answer and distractor, mean over 8 agreement sentences of one length? patchclamp sweeps all 46,080
neurons, a share of the layers in each round; between its shares the others measure a sample, and their time is scaled
up. captum works layer by layer: it gets a full batch of each of two layers, the others neurons of every layer. Each
layer's neurons with the largest estimates (gradient times activation) are among them, so that agreement is not the
agreement of zeros. All numbers are compared with plain transformers'.

Printed, and kept as JSON: wall and processor time; peak memory over what the process held at rest; the largest
difference; the load before every measurement. Run it on an idle machine: on a busy one the ratios are others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Running, running
from benchmarks.prompts import make_setup
from benchmarks.run import RESULTS
from benchmarks.tasks import OURS, REFERENCE, SMOLLM2, folder_of
from benchmarks.workers.common import NEURONS_AT_ONCE, Setup

PROMPTS = 8
A_LAYER = 2
"""Neurons of each layer in the sample."""
CAPTUM_LAYERS = (7, 22)
CAPTUM_EXTRA = 3
"""Evaluations a layer besides its neurons: the rest of the mask as one more feature, twice the unedited model."""
TOLERANCE = 2e-4
Neuron = tuple[int, int]


@dataclass
class Entry:
    """A contender, what it is asked in each round and what it measured."""

    worker: str
    variant: str
    shares: list[list[Neuron]]
    scale: float = 1.0
    """All neurons over those measured, by evaluations."""
    timed: bool = True
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    peak: float = 0.0
    found: dict[Neuron, float] = field(default_factory=dict)
    how: str = ""
    difference: float | None = None
    failure: str = ""

    def total(self, times: list[float]) -> float:
        """Time of all neurons: the median round, of a sweep in shares their sum, scaled up to all."""
        return (sum(times) if len(self.shares) > 1 else statistics.median(times)) * self.scale


def chosen(folder: Path, threads: int) -> tuple[Setup, torch.Tensor]:
    """The setup with the first choices of the commonest length, and the estimated effects [L, F]."""
    import patchclamp as pc
    from patchclamp.evidence.choices import read_choices
    from patchclamp.evidence.method import Silent
    from patchclamp.neurons.attribute import estimate

    model = pc.load(folder)
    kept = read_choices(model, "example:agreement", ("number=plural",)).kept
    length = statistics.mode(len(choice.prompt) for choice in kept)
    choices = [choice for choice in kept if len(choice.prompt) == length][:PROMPTS]
    estimates = estimate(model, choices, range(model.n_layers), "last", "zero", (), Silent())
    setup = make_setup(folder, threads)
    return replace(setup, choices=[(list(c.prompt), c.answer, c.distractor) for c in choices]), estimates


def sample_of(estimates_F: torch.Tensor, count: int) -> list[int]:
    """Half of `count` units by the largest estimates, the others evenly spaced."""
    largest = estimates_F.abs().topk(count // 2).indices.tolist()
    spaced = [unit for unit in range(0, len(estimates_F), len(estimates_F) // count) if unit not in largest]
    return [*largest, *spaced[: count - len(largest)]]


def entries(estimates: torch.Tensor, rounds: int, parts: int) -> list[Entry]:
    """Everybody who takes part; the reference's numbers of captum's sample are not timed."""
    layers, width = estimates.shape
    sample = [(layer, unit) for layer in range(layers) for unit in sample_of(estimates[layer], A_LAYER)]
    a_layer = NEURONS_AT_ONCE - 1  # with the rest of the mask a full forward
    captum = [(layer, unit) for layer in CAPTUM_LAYERS for unit in sample_of(estimates[layer], a_layer)]
    first = (parts - rounds) // 2  # of fewer shares than parts those in the middle, neither early nor late layers
    shares = [[(layer, unit) for layer in range(turn, layers, parts) for unit in range(width)]
              for turn in range(first, first + rounds)]
    scale = layers * width / len(sample)
    evaluations = layers * (width + CAPTUM_EXTRA) / (len(captum) + len(CAPTUM_LAYERS) * CAPTUM_EXTRA)
    return [
        Entry(OURS, "all", shares, layers * width / sum(map(len, shares))),
        Entry(REFERENCE, "batched", [sample], scale),
        Entry("transformer-lens", "loop", [sample], scale),
        Entry("transformer-lens", "batched", [sample], scale),
        Entry("captum", "batched", [captum], evaluations),
        Entry(OURS, "sample", [sample], scale),
        Entry(REFERENCE, "batched", [captum], timed=False),
    ]


def ask(entry: Entry, worker: Running, turn: int, check: Path) -> None:
    """One round of one contender."""
    neurons = entry.shares[turn % len(entry.shares)]
    load = os.getloadavg()[0]
    reply = worker.ask({"task": "sweep", "variant": entry.variant, "neurons": neurons, "check": str(check),
                        "memory": "meanwhile"})
    if "seconds" not in reply:
        entry.failure = reply.get("error", "not supported")
        print(entry.worker, entry.failure, flush=True)
        return
    entry.seconds += reply["seconds"]
    entry.processor += reply["processor"]
    entry.load.append(load)
    entry.peak = max(entry.peak, reply["peak"] or 0)
    entry.found |= dict(zip(neurons, np.load(check, allow_pickle=False).tolist(), strict=True))
    print(f"  {entry.worker:17}{entry.variant:9}{len(neurons):6} neurons {reply['seconds'][-1]:8.1f} s, processor "
          f"{reply['processor'][-1]:8.1f} s, load {load:.1f}", flush=True)


def compare(entrants: list[Entry]) -> dict[Neuron, float]:
    """Each contender's largest difference from plain transformers on the neurons both have."""
    expected: dict[Neuron, float] = {}
    for entry in entrants:
        if entry.worker == REFERENCE:
            expected |= entry.found
    for entry in entrants:
        shared = entry.found.keys() & expected.keys()
        entry.difference = max((abs(entry.found[one] - expected[one]) for one in shared), default=None)
    return expected


def table(entrants: list[Entry]) -> str:
    """A Markdown line each, against patchclamp's sweep of all neurons."""
    ours = entrants[0]
    lines = ["| who | how | time | times ours | processor time | times ours | peak memory | largest difference |",
             "|---|---|" + "--:|" * 6]
    for entry in entrants:
        if entry.timed and entry.seconds:
            wall, used = entry.total(entry.seconds), entry.total(entry.processor)
            number = len(entry.shares[0]) if len(entry.shares) == 1 else len(entry.found)
            wrong = " **wrong**" if entry.difference is None or not entry.difference <= TOLERANCE else ""
            lines.append(
                f"| {entry.worker} | {entry.how}; {number:,} neurons | {wall:,.0f} s | "
                f"{wall / ours.total(ours.seconds):.1f} | {used:,.0f} s | {used / ours.total(ours.processor):.1f} | "
                f"{entry.peak:,.0f} MB | {entry.difference or 0:.1e}{wrong} |")
    return "\n".join(lines)


def keep(entrants: list[Entry], path: Path) -> None:
    """Every single time and load as JSON, after each round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dropped = ("found", "shares")
    rows: list[dict[str, Any]] = [{k: v for k, v in asdict(one).items() if k not in dropped} for one in entrants]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="shares of our sweep, measurements of the others")
    parser.add_argument("--parts", type=int, help="cut our sweep into so many shares (default: one a round)")
    parser.add_argument("--threads", type=int, default=2, help="threads a worker may use (default 2)")
    parser.add_argument("--results", type=Path, default=RESULTS / "neuron_sweep.json", help="file for the raw numbers")
    options = parser.parse_args()
    setup, estimates = chosen(folder_of(SMOLLM2, {}), options.threads)
    entrants = entries(estimates, options.rounds, options.parts or options.rounds)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {name: stack.enter_context(running(name, scratch)) for name in {one.worker for one in entrants}}
        for name, worker in workers.items():
            reply = worker.ask({"setup": asdict(setup)})
            for one in entrants:
                if one.worker == name:
                    one.failure = reply.get("error", "")
                    how = reply.get("how", {})
                    one.how = how.get(f"sweep/{one.variant}", how.get("sweep", ""))
        for turn in range(options.rounds):
            first = turn % len(entrants)  # nobody is always the first of a round
            for one in entrants[first:] + entrants[:first]:
                if not one.failure and (one.timed or not one.found):
                    ask(one, workers[one.worker], turn, scratch / "check.npy")
            keep(entrants, options.results)
    expected = compare(entrants)
    keep(entrants, options.results)
    print(f"\n{PROMPTS} prompts of {len(setup.choices[0][0])} tokens, {estimates.numel():,} neurons; the numbers "
          f"compared lie between {min(expected.values()):.3g} and {max(expected.values()):.3g}\n")
    print(table(entrants))


if __name__ == "__main__":
    main()
