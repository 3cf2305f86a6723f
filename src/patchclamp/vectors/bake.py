"""Baking a vector into a copy of the model's weights: an ordinary Hugging Face folder that needs this library no more.

    add, subtract   resid.L + s v    is a bias of block L's down projection: b' = b + s v
    project_out     what is written loses its part along v̂: W' = W - (W v̂) v̂ᵀ for embeddings, attention's output
                    projections and MLPs' down projections, and the same of their biases
                    (weight orthogonalisation, Arditi et al. 2024, arXiv 2406.11717, section 4.1)

The copy is loaded again and has to give the logits that the edits give, else nothing is kept.
"""

from __future__ import annotations

import copy
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import InputError, SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.forward import Edit, Model, Site, load
from patchclamp.model.anatomy import part, weight_in_out
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.neutral import neutral_texts
from patchclamp.vectors.apply import setting_for
from patchclamp.vectors.search import projected_out
from patchclamp.vectors.vector import Ablation, load_vector

if TYPE_CHECKING:
    import altair
    import pandas

CHECKED = 6
"""Neutral texts on which the copy is compared with the edits."""
TOLERANCE = 2e-3
"""Largest difference of logits, as a share of their own spread: float32 sums in another order."""


class BakeSpec(Spec):
    """Which vector to bake in, how, and where to."""

    vector: Annotated[DataFile, Positional()]
    """A saved vector."""
    save: DataFile
    """The new model's folder; it must not exist."""
    how: Literal["add", "subtract", "project_out"] = "project_out"
    """Remove the direction from everything written to the residual stream, or add or subtract it as a bias."""
    sites: Annotated[tuple[str, ...], CommaList()] = ()
    """Where; by default as chosen with vectors select. Adding needs sites after blocks (resid.L)."""
    strength: float | None = Field(None)
    """How much is added; by default as chosen."""


class BakeResult(Result):
    """The new model, and how near it comes to the edits."""

    folder: str
    changed: int
    """Weight matrices and biases changed."""
    difference: float
    """Largest difference of next-token logits between the new model and the edited old one, on neutral texts."""
    spread: float
    """Standard deviation of those logits."""
    same_first_choice: float
    """Share of those texts after which both have the same first choice."""

    def table(self) -> pandas.DataFrame:
        """One row."""
        import pandas

        return pandas.DataFrame([self.model_dump()])

    def chart(self) -> altair.TopLevelMixin:
        """The difference beside the logits' own spread."""
        from patchclamp.charts.vectors import bake_chart

        return bake_chart(self)


@method("vectors.bake", spec=BakeSpec, result=BakeResult)
def bake_vector(model: Model, spec: BakeSpec, progress: Progress) -> Outcome:
    """Write a copy of the model with the vector in its weights. It claims only that both give the same logits."""
    target = Path(spec.save).expanduser()
    if target.exists():
        raise SpecError(f"{target} exists already; name a new folder for the baked model")
    vector = load_vector(spec.vector, model)
    setting = setting_for(model, vector, spec.how, spec.sites, spec.strength)
    if spec.how == "project_out":  # weights can only hold what is done everywhere
        chosen = None if spec.sites else vector.info.ablate
        edits = projected_out(model, vector, Ablation(site=chosen.site if chosen else setting.sites[0]))
    else:
        edits = vector.edits(setting)
    hf = _copy(model)
    changed = _orthogonalise(model, hf, edits) if spec.how == "project_out" else _bias(model, hf, edits)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        hf.save_pretrained(beside)
        model.tokenizer.save_pretrained(beside)
        difference, spread, same = _compare(model, edits, load(str(beside), dtype=model.dtype))
        if difference > TOLERANCE * spread:
            raise InputError(
                f"the vector cannot be baked into {model.name}: the copy's logits differ from the edited model's by up "
                f"to {difference:.3g} (their spread is {spread:.3g}). A {model.family} model norms what its blocks "
                "write, or scales it, after the weights that would have to change; use vectors apply instead"
            )
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return BakeResult(
        folder=str(target), changed=changed, difference=difference, spread=spread, same_first_choice=same
    ), None


def _copy(model: Model) -> Any:
    """A model of the same class and weights. Embeddings and unembedding are apart: only one changes."""
    config = copy.deepcopy(model.hf.config)
    config.tie_word_embeddings = False
    if hasattr(config.get_text_config(), "mlp_bias"):
        config.get_text_config().mlp_bias = True
    with torch.device("meta"):
        fresh = type(model.hf)(config)
    state = {name: tensor.detach().clone() for name, tensor in model.hf.state_dict().items()}
    for name, parameter in fresh.state_dict().items():
        if name not in state:
            state[name] = torch.zeros(parameter.shape, dtype=model.dtype)
    unembedding = model.hf.get_output_embeddings().weight.detach().clone()
    fresh.load_state_dict(state, strict=True, assign=True)
    fresh.get_output_embeddings().weight = torch.nn.Parameter(unembedding)
    fresh.generation_config = model.hf.generation_config
    fresh.tie_weights()
    return fresh.eval()


def _orthogonalise(model: Model, hf: Any, edits: list[Edit]) -> int:
    assert edits[0].direction is not None
    like = hf.get_input_embeddings().weight
    unit_D = (edits[0].direction.tensor / edits[0].direction.tensor.norm()).to(like)
    family = model.anatomy.family
    # learned positions are written to the stream as well
    written: list[Tensor] = [m.weight for m in hf.modules()
                             if isinstance(m, torch.nn.Embedding) and m.embedding_dim == model.d_model]
    for block in part(hf, family.blocks):
        for path in (family.out_proj, family.down_proj):
            module = part(block, path)
            if module is None:
                raise InputError(
                    f"a {model.family} model has no {path} in every block, so its weights cannot be "
                    "orthogonalised; use vectors apply instead"
                )
            written += [weight_in_out(module), *([module.bias] if module.bias is not None else [])]
    with torch.no_grad():
        for weight in written:
            weight -= (weight @ unit_D).unsqueeze(-1) * unit_D
    return len(written)


def _bias(model: Model, hf: Any, edits: list[Edit]) -> int:
    blocks, path = part(hf, model.anatomy.family.blocks), model.anatomy.family.down_proj
    for edit in edits:
        site = Site.parse(edit.site)
        if site.point != "resid" or site.layer is None:
            raise SpecError(f"a bias is added after a block (resid.L), not at {site}; use vectors apply instead")
        bias = getattr(part(blocks[site.layer], path), "bias", None)
        if bias is None:
            raise InputError(
                f"a {model.family} model's down projections have no bias to put the vector in; bake with "
                "project_out, or use vectors apply"
            )
        assert edit.direction is not None
        direction = edit.direction.tensor
        step = direction if edit.unit == "raw" else model.projection_sd(site, direction) * direction / direction.norm()
        with torch.no_grad():
            bias += (edit.strength * step).to(bias)
    return len(edits)


def _compare(model: Model, edits: list[Edit], baked: Model) -> tuple[float, float, float]:
    prompts = [model.encode(text).ids[:32] for text in neutral_texts(CHECKED)]
    edited, new = (
        torch.stack(some.run(prompts, under, read="logits@last")).float()
        for some, under in ((model, edits), (baked, []))
    )
    same = (edited.argmax(-1) == new.argmax(-1)).float().mean()
    return float((edited - new).abs().max()), float(edited.std()), float(same)
