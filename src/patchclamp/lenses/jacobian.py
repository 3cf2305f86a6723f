"""The Jacobian lens: what a layer's residual stream becomes at the end, to first order and on average.

    jacobian_l(x) = unembed(norm_final(J_l h_l + c_l))
    J_l = E[∂h_final(t) / ∂h_l(t)],   c_l = E[h_final] - J_l E[h_l]

The expectation of J is over sampled tokens of a corpus, that of the streams over all tokens of the same sequences but
their first. c makes the mean of the layer arrive at the mean of the end, so that the lens is the tangent of the rest
of the model, averaged: nothing is trained. Averaging Jacobians of a transformer's map follows Hernandez et al. 2023,
"Linearity of Relation Decoding", arXiv 2308.09124 (section 3), there from a subject to an object; the transport into
the last layer's basis is the tuned lens's (Belrose et al. 2023, arXiv 2303.08112).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.corpus.pack import Ids, digest, need_sequences, pack
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.verdict import FEWEST, Interval, Verdict, judge
from patchclamp.forward import Model
from patchclamp.forward.jacobian import jacobians
from patchclamp.forward.streams import decoded, streams, token_at
from patchclamp.lenses.corpus import kl_to_output, read_many, read_places, refuse_other_run, sample_positions
from patchclamp.lenses.reading import Layer, read_layers
from patchclamp.lenses.transport import CONFIG, Transport, TransportConfig, load_transport, read_config
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

MOST_SEQUENCES = 4096
"""Of the corpus, at most so many are looked at."""
NOTHING = Interval(mean=0.0, low=0.0, high=0.0)


class JacobianSpec(Spec):
    """What to read, and what to average over."""

    prompt: Annotated[Prompt, Positional()]
    """The text the model reads."""
    watch: tuple[str, ...] = ()
    """Tokens to follow through the layers, each one token of the model; most begin with a space."""
    position: str = "last"
    """The token whose residual stream is read: `last`, an index, or a quoted substring."""
    top: int = Field(5, ge=1, le=50)
    """How many of the likeliest tokens to list for each layer."""
    corpus: DataFile = "example:neutral"
    """What to average over and test on: a text file, JSONL or Parquet with a text column, or hf:NAME[:SPLIT]."""
    samples: int = Field(32, ge=2)
    """Tokens at which the Jacobians are taken, one backward sweep each."""
    length: int = Field(64, ge=8)
    """Tokens in a sequence of the corpus."""
    held_out: int = Field(16, ge=FEWEST)
    """Sequences at the end of the corpus that are not averaged over, for the KL that is reported."""
    share: float = Field(0.125, gt=0, le=1)
    """Of each held-out sequence's positions the share, drawn at random, at which KL is taken."""
    tuned: DataFile | None = None
    """The folder of a tuned lens to show beside."""
    lens: DataFile | None = None
    """The folder of a Jacobian lens measured before, to use instead of measuring."""
    save: DataFile | None = None
    """Where to keep the lens. If it is there already, measured in the same way, it is used."""


class JacobianLens(Result):
    """The prompt read through the Jacobian lens, and how near each lens is to the output on held-out text."""

    layers: list[Layer]
    """Through the Jacobian lens, from the embeddings to the last block."""
    beside: dict[str, list[Layer]]
    """The same through the logit lens, and the tuned lens if one was given."""
    held_out: dict[str, list[Interval]]
    """By lens, for each layer: mean KL to the model's output on held-out text, nats, 95 % interval over sequences."""
    prediction: str
    """The token the model itself ranks first."""
    token: str
    """The token whose residual stream was read."""
    samples: int | None
    """Jacobians averaged; null for a lens that was loaded."""
    held_out_positions: int

    @property
    def readings(self) -> dict[str, list[Layer]]:
        """The prompt's readings by lens."""
        return {**self.beside, "jacobian": self.layers}

    def table(self) -> "pandas.DataFrame":
        """One row a layer: for each lens held-out KL, first choice, and the watched tokens' ranks."""
        import pandas

        rows = []
        for index, layer in enumerate(self.layers):
            row: dict[str, Any] = {"layer": layer.layer}
            for name, layers in self.readings.items():
                row |= {f"{name} KL": self.held_out[name][index].mean, f"{name} top": layers[index].top[0].token}
                row |= {f"{name} rank of {text!r}": seen.rank for text, seen in layers[index].watch.items()}
            rows.append(row)
        return pandas.DataFrame(rows)

    def chart(self) -> "altair.TopLevelMixin":
        """Held-out KL by layer of all lenses, and the watched tokens' ranks."""
        from patchclamp.charts.transport import jacobian_lens_chart

        return jacobian_lens_chart(self)


@method("lens.jacobian", spec=JacobianSpec, result=JacobianLens)
def jacobian(model: Model, spec: JacobianSpec, progress: Progress) -> Outcome:
    """Read the residual stream through the average Jacobian from each layer to the last, beside the other lenses.

    The verdict asks whether on held-out text the Jacobian lens is nearer to the model's output than the logit lens,
    averaged over all layers but the last.
    """
    watch = {text: model.token(text) for text in spec.watch}
    place = streams(model, [spec.prompt], spec.position)[0]
    tuned = load_transport(spec.tuned, model) if spec.tuned else None
    sequences = pack(model, spec.corpus, spec.length, MOST_SEQUENCES)
    need_sequences(len(sequences), spec.held_out + 1, spec.length, spec.corpus,
                   f"{spec.held_out} held out, the rest to average over")
    lens, samples = _lens(model, spec, sequences[: -spec.held_out], progress)
    lenses: dict[str, Transport | None] = {"logit": None, "jacobian": lens} | ({"tuned": tuned} if tuned else {})
    kl = _held_out_kl(model, spec, lenses, sequences[-spec.held_out :], progress)
    readings = {}
    for name, one in lenses.items():
        logits_SV = next(decoded(model, [place], one.logits(model) if one else None))
        readings[name] = read_layers(model, logits_SV, watch, spec.top)
    layers = readings.pop("jacobian")
    result = JacobianLens(
        layers=layers, beside=readings,
        held_out={name: [bootstrap_mean(kl_Q, spec.seed) for kl_Q in kl_SQ] for name, kl_SQ in kl.items()},
        prediction=layers[-1].top[0].token, token=token_at(model.encode(spec.prompt), spec.position), samples=samples,
        held_out_positions=spec.held_out * len(_positions(spec)[0]),
    )
    return result, _verdict(kl["jacobian"] - kl["logit"], spec.seed)


def _lens(
    model: Model, spec: JacobianSpec, sequences: Sequence[Ids], progress: Progress
) -> tuple[Transport, int | None]:
    """The lens named, or the one saved before in the same way, or a new one; and how many samples it rests on."""
    if spec.lens:
        lens = load_transport(spec.lens, model)
        if lens.config.lens_type != "jacobian_lens":
            raise SpecError(f"{spec.lens} holds a tuned lens, not a Jacobian one; name it as `tuned` instead")
        return lens, None
    identity = {**spec.model_dump(include={"seed", "samples", "length", "held_out"}), "corpus": digest(sequences),
                "weights": model.weights_hash[:12]}
    folder = Path(spec.save).expanduser() if spec.save else None
    if folder and (folder / CONFIG).is_file():
        refuse_other_run(read_config(folder).settings, identity, folder)
        return load_transport(folder, model), spec.samples
    config = TransportConfig.of(model, "jacobian_lens", identity)
    lens = measure(model, config, sequences, spec.samples, spec.seed, progress)
    if folder:
        lens.save(folder)
    return lens, spec.samples


def measure(
    model: Model, config: TransportConfig, sequences: Sequence[Ids], samples: int, seed: int, progress: Progress
) -> Transport:
    """The Jacobian lens of `samples` tokens drawn from `sequences`, in turn and never a first token."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sequences), generator=generator).tolist()
    chosen = [sequences[order[i % len(order)]] for i in range(samples)]
    ends = [int(torch.randint(1, len(ids), (), generator=generator)) + 1 for ids in chosen]
    mean_SD = _means(model, list(dict.fromkeys(chosen)), progress)
    j_LDD = average_jacobians(model, [ids[:end] for ids, end in zip(chosen, ends, strict=True)], progress)
    constant_LD = mean_SD[-1] - (j_LDD @ mean_SD[:-1, :, None]).squeeze(-1)
    return Transport(config, j_LDD - torch.eye(model.d_model), constant_LD)


def average_jacobians(model: Model, samples: Sequence[Ids], progress: Progress) -> Tensor:
    """Mean over samples, each a sequence read at its last token, [L, D, D] in float32; summed in float64."""
    total = torch.zeros(model.n_layers, model.d_model, model.d_model, dtype=torch.float64)
    for ids in progress.track(samples, "Jacobians", len(samples)):
        total += jacobians(model, ids).cpu()
    return (total / len(samples)).float()


def _means(model: Model, sequences: Sequence[Ids], progress: Progress) -> Tensor:
    """Mean stream of every layer over all tokens but each sequence's first, [S, D]."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids in progress.track(sequences, "mean streams", len(sequences)):
        places_NSD = read_places(model, [ids], [range(1, len(ids))])
        total = total + places_NSD.cpu().double().sum(0)
        count += len(places_NSD)
    return (total / count).float()


def _positions(spec: JacobianSpec) -> list[list[int]]:
    generator = torch.Generator().manual_seed(spec.seed)
    return [sample_positions(spec.length, spec.share, generator) for _ in range(spec.held_out)]


def _held_out_kl(
    model: Model, spec: JacobianSpec, lenses: dict[str, Transport | None], sequences: Sequence[Ids], progress: Progress
) -> dict[str, Tensor]:
    """KL to the output by lens: means over each sequence's sampled positions, [S, sequences]."""
    places_NSD = read_many(model, sequences, _positions(spec), progress)
    kl = kl_to_output(model, lenses, places_NSD, progress)
    return {name: kl_SN.view(len(kl_SN), len(sequences), -1).mean(-1) for name, kl_SN in kl.items()}


def _verdict(difference_SQ: Tensor, seed: int) -> Verdict:
    return judge(
        difference_SQ[:-1].mean(0), NOTHING, direction="less", seed=seed,
        claim="on held-out text the Jacobian lens is nearer to the model's output than the logit lens (Jacobian minus "
              "logit lens, KL in nats, mean over all layers but the last)",
    )
