"""What an ablation does directly, and what later blocks make of it.

With the final norm frozen at the unedited run the readout is a linear function d of the last residual stream, so

    total = direct + Σ_l response_l + norm
    direct      (replacement - activation) · w · d, summed over the ablated units: nothing downstream has changed yet
    response_l  change of what block l's attention and MLP add along d, less what was ablated in it
    norm        what is left: the final norm scales the changed stream otherwise

A response of the other sign than the direct effect repairs it (McGrath et al. 2023, "The Hydra effect", arXiv
2307.15771; the norm's part: Rushing & Nanda 2024, arXiv 2402.15390). Shape suffixes: N prompts, L blocks, F neurons,
D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.choices import Choice
from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.decompose import Run, activation_readings, signed
from patchclamp.forward.frozen import FrozenUnembedding, exact


@dataclass(frozen=True)
class Repair:
    """One group's ablation taken apart, prompt by prompt; in units of logit(answer) - logit(distractor)."""

    direct: np.ndarray
    """[N]."""
    total: np.ndarray
    """[N]."""
    attn: np.ndarray
    """Response of each block's attention, [L, N]."""
    mlp: np.ndarray
    """Response of each block's MLP, [L, N]."""

    @property
    def norm(self) -> np.ndarray:
        """[N]."""
        return self.total - self.direct - self.attn.sum(0) - self.mlp.sum(0)

    @property
    def share(self) -> float:
        """Share of the mean direct effect that is repaired; negative where later blocks add to it. NaN without a direct
        effect."""
        direct = float(self.direct.mean())
        return 1 - float(self.total.mean()) / direct if direct else float("nan")

    @property
    def shares(self) -> np.ndarray:
        """How far each prompt's total falls short of its direct effect, in units of the mean direct effect, [N]; their
        mean is `share`."""
        return (self.direct - self.total) / self.direct.mean()


class Anatomist:
    """The unedited runs of some choices, ready to take ablations apart."""

    def __init__(self, model: Model, choices: Sequence[Choice], layers: Sequence[int], replaced: dict[int, Tensor],
                 progress: Progress) -> None:
        self.model, self.choices, self.replaced = model, choices, replaced
        blocks = range(model.n_layers)
        self.added = [f"{point}.{block}@last" for point in ("attn", "mlp") for block in blocks]
        sites = [*self.added, f"resid.{model.n_layers - 1}@last", *(f"neuron.{layer}@last" for layer in layers)]
        plan = Plan.of((c.prompt, (), [*map(Readout.value, sites), self._read(c)]) for c in choices)
        self.runs: list[Run] = []
        self.directions: list[Tensor] = []
        self.readings: list[dict[int, Tensor]] = []
        for choice, values in zip(choices, model.execute(plan, track=progress.track), strict=True):
            run = {site.removesuffix("@last"): value for site, value in zip(sites, values[:-1], strict=True)}
            run["difference"] = values[-1]
            last = run[f"resid.{model.n_layers - 1}"]
            direction_D = signed(FrozenUnembedding(model.anatomy, last).read([choice.answer, choice.distractor])
                                 .directions)
            self.runs.append(run)
            self.directions.append(direction_D)
            self.readings.append({i: activation_readings(model.anatomy, run, i, direction_D) for i in layers})

    @staticmethod
    def _read(choice: Choice) -> Readout:
        return Readout.logit_difference(choice.answer, choice.distractor)

    def direct_effects(self) -> dict[int, Tensor]:
        """Of ablating each neuron by itself, mean over the choices: by layer [F]."""
        return {
            layer: torch.stack([(exact(replaced_F) - exact(run[f"neuron.{layer}"])) * readings[layer]
                                for run, readings in zip(self.runs, self.readings, strict=True)]).mean(0)
            for layer, replaced_F in self.replaced.items()
        }

    def take_apart(self, groups: Sequence[tuple[Sequence[Site], Sequence[Edit]]], progress: Progress) -> list[Repair]:
        """Each group of units, with the edits that ablate it."""
        reads = [[*map(Readout.value, self.added), self._read(choice)] for choice in self.choices]
        plan = Plan.of((choice.prompt, edits, read) for _, edits in groups
                       for choice, read in zip(self.choices, reads, strict=True))
        values = self.model.execute(plan, track=progress.track)
        n = len(self.choices)
        return [self._repair(sites, values[i * n : (i + 1) * n]) for i, (sites, _) in enumerate(groups)]

    def _repair(self, sites: Sequence[Site], values: Sequence[Sequence[Tensor]]) -> Repair:
        n_layers = self.model.n_layers
        direct_LN, response_LN, total_N = [], [], []
        for run, direction_D, readings, row in zip(self.runs, self.directions, self.readings, values, strict=True):
            direct_L = np.zeros(n_layers)
            for site in sites:
                layer, unit = site.layer or 0, site.unit or 0
                change = float(self.replaced[layer][unit]) - float(run[f"neuron.{layer}"][unit])
                direct_L[layer] += change * float(readings[layer][unit])
            clean = torch.stack([exact(run[site.removesuffix("@last")]) for site in self.added])
            changed = torch.stack([exact(value) for value in row[:-1]])
            response_LN.append(((changed - clean) @ direction_D).numpy())
            direct_LN.append(direct_L)
            total_N.append(float(row[-1]) - float(run["difference"]))
        direct, response = np.stack(direct_LN, 1), np.stack(response_LN, 1)
        return Repair(direct.sum(0), np.array(total_N), response[:n_layers], response[n_layers:] - direct)
