"""patchclamp itself, through its public interface; the lenses through the functions their methods call."""

from __future__ import annotations

from typing import Any

import torch
from common import (
    ABLATED_LAYER,
    NEW_TOKENS,
    STEERED_LAYER,
    TABLE_TOKENS,
    Setup,
    Worker,
    as_table,
    cells,
    first_choice,
    serve,
)

import patchclamp as pc
from patchclamp.evidence.choices import Choice
from patchclamp.evidence.method import Silent
from patchclamp.forward.streams import decoded, streams
from patchclamp.lenses.patchscope import DESCRIBE, StateReading, make_target
from patchclamp.neurons.attribute import exact_effects

EVERY_POINT = ("resid_pre", "resid_mid", "resid", "attn", "mlp", "head", "q", "k", "v", "pattern", "neuron", "gate")


class Patchclamp(Worker):
    packages = ("torch", "transformers", "patchclamp")
    how = {  # noqa: RUF012
        "forward": "capture(), the logits",
        "capture_outputs": "capture(), 60 sites",
        "capture_everything": f"capture(), {len(EVERY_POINT)} points of every block, embed, logits",
        "patch": "a Plan of swap edits",
        "ablate": "a Plan of zero edits",
        "sweep": "exact_effects(): what neurons.attribute calls",
        "generate": "generate() with an add edit",
        "last_logits": "run(), the default readout",
        "lens_one": "streams(), decoded(): what lens.logit calls",
        "lens_many": "streams(), decoded(): what lens.logit calls",
        "patchscope": "make_target(), generate(): what lens.patchscope calls",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model = pc.load(setup.folder)
        self.difference = pc.Readout.logit_difference(setup.answer, setup.distractor)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.capture(tokens[0].tolist(), ["logits"])["logits"][0, -1]

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        sites = [f"{part}.{layer}" for layer in range(self.model.n_layers) for part in ("attn", "mlp")]
        values = self.model.capture(tokens[0].tolist(), sites)
        return [values[site] for site in sites]

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        sites = [f"{point}.{layer}" for layer in range(self.model.n_layers) for point in EVERY_POINT]
        values = self.model.capture(tokens[0].tolist(), ["embed", *sites, "logits"])
        return [*(values[site] for site in ("embed", *sites)), values["logits"][0, -1]]

    def differences(self, rows: list[tuple[list[int], pc.Edit]]) -> torch.Tensor:
        """The logit difference of each (prompt, edit)."""
        plan = pc.Plan.of([(prompt, [edit], [self.difference]) for prompt, edit in rows])
        return torch.tensor([float(row[0]) for row in self.model.execute(plan)])

    def patch(self, positions: str, variant: str) -> torch.Tensor:
        clean, corrupted = self.setup.short, self.setup.corrupted
        sweep = cells(self.model.n_layers, len(corrupted), positions)
        found = self.differences([(corrupted, pc.Edit.swap(f"resid.{layer}@{at}", clean)) for layer, at in sweep])
        return found if positions == "last" else found.reshape(self.model.n_layers, -1)

    def ablate(self, positions: str, neurons: list[int], variant: str) -> torch.Tensor:
        sites = [f"neuron.{ABLATED_LAYER}.{neuron}@{positions}" for neuron in neurons]
        return self.differences([(self.setup.short, pc.Edit.zero(site)) for site in sites])

    def sweep(self, neurons: list[tuple[int, int]], variant: str) -> Any:
        choices = [Choice(tuple(prompt), answer, distractor) for prompt, answer, distractor in self.setup.choices]
        sites = [pc.Site.parse(f"neuron.{layer}.{unit}@last") for layer, unit in neurons]
        return exact_effects(self.model, choices, sites, "zero", (), Silent())

    def generate(self, variant: str) -> torch.Tensor:
        edit = pc.Edit.add(f"resid.{STEERED_LAYER}", self.setup.vector, unit="raw")
        return torch.tensor(self.model.generate(self.setup.opening, [edit], max_new_tokens=NEW_TOKENS).tokens)

    def last_logits(self, variant: str) -> Any:
        return self.model.run(self.setup.short)

    def lens_one(self, variant: str) -> torch.Tensor:
        return next(decoded(self.model, streams(self.model, [self.setup.short])))

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        found = [first_choice(logits_LV) for logits_LV in decoded(self.model, streams(self.model, prompts))]
        return torch.stack(found, dim=1)

    def patchscope(self, variant: str) -> torch.Tensor:
        (place_LD,) = streams(self.model, [self.setup.source])
        target = make_target(self.model, StateReading(target_layer=0, norm="raw"), DESCRIBE, place_LD)
        if (list(target.ids), target.position) != (self.setup.target, self.setup.placeholder):
            raise ValueError(f"another target prompt: {target.ids} at {target.position}")
        edits = target.edits(place_LD)
        # The line of `continuations` that generates; it returns the texts alone.
        written = self.model.generate([target.ids] * len(edits), edits, max_new_tokens=TABLE_TOKENS)
        return as_table([one.tokens for one in written])


if __name__ == "__main__":
    serve(Patchclamp())
