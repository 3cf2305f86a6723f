"""Proof that a family's table is true of a model: identities measured on a short forward pass.

    resid_pre + attn + mlp == resid           what the blocks add is all that is added
    resid_pre + attn == resid_mid             (sequential blocks)
    down_proj(neuron) == mlp                  before any post-norm
    Σ heads + output bias == attn             through the output projection and any post-norm
    embed == resid_pre.0                      and resid.L == resid_pre.(L+1)
    unembed(resid.last) == logits             final norm, scale and softcap
    captured residual stream == Hugging Face's own hidden states, bit for bit
    an edit at one token changes that token and nothing before it

The values are taken with bare hooks, independent of the engine that later uses the same taps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchclamp.errors import SiteError, UnsupportedModel
from patchclamp.model.anatomy import Anatomy, Tap, family_of, part, weight_in_out
from patchclamp.model.families import FAMILIES

TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative to the largest value compared: sums of some thousand products in another order. Under float64 too,
transformers computes most norms in float32."""


class Identity(NamedTuple):
    """One identity and how well it holds: the largest error over all blocks, relative to the largest value."""

    name: str
    error: float
    tolerance: float
    ok: bool
    detail: str


def resolve(hf: Any) -> tuple[Anatomy, list[Identity]]:
    """The anatomy of `hf` and the identities that prove it.

    A known architecture uses its own table; an unknown one the first table under which every identity holds.
    Raises UnsupportedModel saying what failed.
    """
    known = family_of(hf)
    failures: list[str] = []
    for family in [known] if known else FAMILIES:
        try:
            anatomy = Anatomy(hf, family)
            identities = prove(anatomy)
        except (UnsupportedModel, SiteError) as error:
            failures.append(f"as {family.name}: {error}")
            continue
        failed = [i for i in identities if not i.ok]
        if not failed:
            return anatomy, identities
        failures.append(f"as {family.name}: " + "; ".join(
            f"{i.name} is off by {i.error:.1e} (tolerance {i.tolerance:.0e}) at {i.detail}" for i in failed
        ))
    nearest = failures[0] if known else max(failures, key=lambda f: " is off by " in f)
    raise UnsupportedModel(
        f"{type(hf).__name__} cannot be addressed safely, so it is refused; {nearest}. "
        "If its architecture is new, add a table to patchclamp/model/families.py"
    )


@torch.no_grad()
def prove(anatomy: Anatomy) -> list[Identity]:
    """Measure every identity on a short run. Values that cannot be compared raise UnsupportedModel."""
    hf = anatomy.hf
    limit = min(anatomy.n_vocab, 997)
    ids = ((torch.arange(7) * 131 + 17) % limit)[None].to(anatomy.unembedding.weight.device)
    try:
        with _recording(anatomy) as seen:
            out = hf(ids, output_hidden_states=True, use_cache=False)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(f"the forward pass does not fit the table: {error}") from error
    _refuse_unplaced_norms(anatomy)
    try:
        values = {key: _read(anatomy, *key, seen) for key in seen if key[0] != "core"}
    except RuntimeError as error:
        raise UnsupportedModel(f"a value does not lie as the table says: {error}") from error
    _refuse_other_shapes(anatomy, values)
    tolerance = TOLERANCE.get(values["resid", 0].dtype, 2e-5)
    return [
        *_stream(anatomy, values, tolerance),
        *_parts(anatomy, values, seen, tolerance),
        _compare("unembed(resid.last) == logits", [(anatomy.unembed(values["resid", anatomy.n_layers - 1]),
                 out.logits, "logits")], tolerance),
        _same_as_hidden_states(anatomy, values, out.hidden_states),
        _causal_edit(anatomy, ids, values["resid", anatomy.n_layers - 1]),
    ]


def _refuse_unplaced_norms(anatomy: Anatomy) -> None:
    """Queries and keys are read after any norm; no sum shows a norm that the table leaves out, so look for it."""
    family = anatomy.family
    placed = {heads.path for heads in (*family.q, *family.k)}
    for layer, block in enumerate(anatomy.blocks):
        for name, _ in part(block, family.attention).named_children():
            if "norm" in name.lower() and f"{family.attention}.{name}" not in placed:
                raise UnsupportedModel(f"block {layer}: {family.attention}.{name} is not in the table, so queries or "
                                       "keys could be read on the wrong side of it")


def _refuse_other_shapes(anatomy: Anatomy, values: dict[tuple[str, int], Tensor]) -> None:
    for (point, layer), value in values.items():
        if point in ("q", "k", "v"):
            expected = [1, 7, anatomy.n_units(point, layer), anatomy.d_head]
            if list(value.shape) != expected:
                raise UnsupportedModel(f"{point}.{layer} has shape {list(value.shape)}, expected {expected}")


def _points(anatomy: Anatomy) -> Iterator[tuple[str, int, Tap]]:
    for layer in range(anatomy.n_layers):
        for point in ("resid_pre", "resid_mid", "resid", "attn", "mlp", "head", "neuron", "q", "k", "v"):
            try:
                yield point, layer, anatomy.tap(point, layer)
            except SiteError:
                continue
        yield "core", layer, Tap(part(anatomy.blocks[layer], anatomy.family.mlp_core), "out", copy=True)


@contextmanager
def _recording(anatomy: Anatomy) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Bare hooks that keep a copy of the raw tensor at every tap."""
    seen: dict[tuple[str, int], Tensor] = {}

    def hook(key: tuple[str, int], tap: Tap) -> Any:
        if tap.side == "in":
            def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
                seen[key] = (args[0] if args else kwargs["hidden_states"]).clone()
            return tap.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            seen[key] = (output[0] if isinstance(output, tuple) else output).clone()
        return tap.module.register_forward_hook(after)

    handles = [hook((point, layer), tap) for point, layer, tap in _points(anatomy)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _read(anatomy: Anatomy, point: str, layer: int, seen: dict[tuple[str, int], Tensor]) -> Tensor:
    return anatomy.tap(point, layer).read(seen[point, layer], 7)


def _compare(name: str, pairs: list[tuple[Tensor, Tensor, str]], tolerance: float) -> Identity:
    worst, where = 0.0, "every block"
    for left, right, label in pairs:
        if left.shape != right.shape:
            raise UnsupportedModel(f"{name}: {label} has shape {list(left.shape)}, expected {list(right.shape)}")
        scale = max(float(right.abs().max()), 1e-6)
        error = float((left.double() - right.double()).abs().max()) / scale
        if not error <= worst:
            worst, where = error, label
    return Identity(name, worst, tolerance, worst <= tolerance, where)


def _stream(anatomy: Anatomy, values: dict[tuple[str, int], Tensor], tolerance: float) -> list[Identity]:
    layers = range(anatomy.n_layers)
    total = [(values["resid_pre", i] + values["attn", i] + values["mlp", i], values["resid", i], f"block {i}")
             for i in layers]
    chain = [(values["resid", i], values["resid_pre", i + 1], f"block {i}") for i in layers[:-1]]
    found = [_compare("resid_pre + attn + mlp == resid", total, tolerance)]
    mid = [(values["resid_pre", i] + values["attn", i], values["resid_mid", i], f"block {i}")
           for i in layers if ("resid_mid", i) in values]
    if mid:
        found.append(_compare("resid_pre + attn == resid_mid", mid, tolerance))
    if chain:
        found.append(_compare("resid == next resid_pre", chain, 0.0))
    return found


def _parts(
    anatomy: Anatomy, values: dict[tuple[str, int], Tensor], seen: dict[tuple[str, int], Tensor], tolerance: float
) -> list[Identity]:
    family, found = anatomy.family, []
    neurons, heads = [], []
    for layer, block in enumerate(anatomy.blocks):
        if ("neuron", layer) in values:
            down = part(block, family.down_proj)
            written = down(values["neuron", layer])
            neurons.append((written.view_as(written), _shaped(seen["core", layer]), f"block {layer}"))
        z = values["head", layer]
        out_proj = part(block, family.out_proj)
        w_HED = weight_in_out(out_proj).view(anatomy.n_heads, anatomy.d_head, -1)
        raw = torch.einsum("bthe,hed->bthd", z, w_HED).sum(2)
        if getattr(out_proj, "bias", None) is not None:
            raw = raw + out_proj.bias
        heads.append((raw * anatomy.post_norm_scale(layer, raw), values["attn", layer], f"block {layer}"))
    if neurons:
        found.append(_compare("down_proj(neuron) == mlp before any post-norm", neurons, tolerance))
    found.append(_compare("sum of heads + output bias == attn", heads, tolerance))
    return found


def _shaped(raw: Tensor) -> Tensor:
    return raw.unflatten(0, (-1, 7)) if raw.dim() == 2 else raw


def _same_as_hidden_states(
    anatomy: Anatomy, values: dict[tuple[str, int], Tensor], hidden: tuple[Tensor, ...]
) -> Identity:
    """Hugging Face's hidden states are the residual stream before each block; the last one has passed the norm."""
    pairs = [(values["resid_pre", i], hidden[i], f"block {i}") for i in range(anatomy.n_layers)]
    return _compare("capture == Hugging Face hidden states, bit for bit", pairs, 0.0)


def _causal_edit(anatomy: Anatomy, ids: Tensor, clean: Tensor) -> Identity:
    """Zero one token's MLP output in block 0: nothing before it may change, and it must change."""
    tap, token = anatomy.tap("mlp", 0), 4

    def zero(value: Tensor) -> None:
        value[:, token] = 0

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        raw = output[0] if isinstance(output, tuple) else output
        new = tap.write(raw, 7, zero)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with _recording(anatomy) as seen:
        handle = tap.module.register_forward_hook(after, prepend=True)
        try:
            anatomy.hf(ids, use_cache=False)
        finally:
            handle.remove()
    edited = _read(anatomy, "resid", anatomy.n_layers - 1, seen)
    before = _compare("an edit changes its token and nothing before it",
                      [(edited[:, :token], clean[:, :token], "tokens before the edit")],
                      TOLERANCE.get(clean.dtype, 2e-5))
    if torch.equal(edited[:, token], clean[:, token]):
        return before._replace(error=float("nan"), ok=False, detail="the edit had no effect")
    return before
