"""Proof that a family's table is true of a model: identities measured on a short forward pass.

    resid_pre + attn + mlp == resid           what the blocks add is all that is added
    resid_pre + attn == resid_mid             (sequential blocks)
    down_proj(neuron) == mlp                  before any post-norm
    gate × up == neuron                       (gated MLPs)
    Σ heads + output bias == attn             through the output projection and any post-norm
    embed == resid_pre.0                      and resid.L == resid_pre.(L+1)
    unembed(resid.last) == logits             final norm, scale and softcap
    captured residual stream == Hugging Face's own hidden states, bit for bit
    an edit at one token changes that token and nothing before it

The values are taken with bare hooks, independent of the engine that later uses the same taps. Whether attention
weights sum to 1 is measured too: where they do not, they may be read but not edited.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.errors import ModelError, SiteError, UnsupportedModel
from patchclamp.model.anatomy import Anatomy, family_of, in_features, part
from patchclamp.model.families import FAMILIES, Family
from patchclamp.model.identity import NORM_EPS, SUM_ULPS, Identity, Pair, compare, compare_bits, compare_rows
from patchclamp.model.tap import Tap

MISFITS = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)
"""What a table of another architecture runs into."""

Values = dict[tuple[str, int], Tensor]


def resolve(hf: Any) -> tuple[Anatomy, list[Identity]]:
    """The anatomy of `hf` and the identities that prove it.

    A known architecture uses its own table; an unknown one the first table under which every identity holds, with
    or without a gate. Raises UnsupportedModel saying what failed, ModelError if weights are not in memory.
    """
    _refuse_offloaded(hf)
    known = family_of(hf)
    failures: list[tuple[int, str]] = []
    for family in [known] if known else _candidates():
        try:
            anatomy = Anatomy(hf, family)
            identities = prove(anatomy)
        except torch.OutOfMemoryError:
            raise
        except (UnsupportedModel, SiteError) as error:
            failures.append((len(FAMILIES), f"as {family.name}: {error}"))
            continue
        except MISFITS as error:
            failures.append((2 * len(FAMILIES), f"as {family.name}: {type(error).__name__}: {error}"))
            continue
        failed = [i for i in identities if not i.ok]
        if not failed:
            return anatomy, identities
        failures.append((len(failed), f"as {family.name}: " + "; ".join(
            f"{i.name} is off by {i.error:.1e} (tolerance {i.tolerance:.0e}) at {i.detail}" for i in failed
        )))
    nearest = min(failures, key=lambda failure: failure[0])[1]
    advice = "" if known else " If its architecture is new, add a table to patchclamp/model/families.py."
    raise UnsupportedModel(
        f"{type(hf).__name__} cannot be addressed safely, so it is refused; {nearest.rstrip('.')}.{advice}"
    )


def _candidates() -> Iterator[Family]:
    """Every table, and those with a gate also without: look-alikes may have a plain MLP."""
    for family in FAMILIES:
        yield family
        if family.gate:
            yield replace(family, gate=None)


def _refuse_offloaded(hf: Any) -> None:
    absent = [name for name, parameter in hf.named_parameters() if parameter.is_meta]
    if absent:
        raise ModelError(
            f"{len(absent)} parameters of {type(hf).__name__} (the first is {absent[0]}) are not in memory: "
            "device_map offloads them, and values could not be computed from them. Use a smaller dtype or model, or "
            "a device_map that leaves every weight on a device."
        )


@torch.no_grad()
def prove(anatomy: Anatomy) -> list[Identity]:
    """Measure every identity on a short run. Values that cannot be compared raise UnsupportedModel."""
    hf = anatomy.hf
    limit = min(anatomy.n_vocab, anatomy.n_embeddings, 997)
    ids = ((torch.arange(7) * 131 + 17) % limit)[None].to(anatomy.unembedding.weight.device)
    _refuse_unplaced_norms(anatomy)
    try:
        with _recording(anatomy) as seen:
            out = hf(ids, output_hidden_states=True, use_cache=False)
    except MISFITS as error:
        raise UnsupportedModel(f"the forward pass does not fit the table: {error}") from error
    _refuse_unseen(anatomy, seen)
    try:
        values = {key: _read(anatomy, *key, seen) for key in seen if key[0] not in ("core", "up")}
    except RuntimeError as error:
        raise UnsupportedModel(f"a value does not lie as the table says: {error}") from error
    _refuse_other_shapes(anatomy, values)
    last = values["resid", anatomy.n_layers - 1]
    anatomy.pattern_fault = _pattern_fault(anatomy, ids)
    return [
        *_stream(anatomy, values),
        *_mlps(anatomy, values, seen),
        compare_rows("sum of heads + output bias == attn", _heads(anatomy, values)),
        compare_rows("unembed(resid.last) == logits", [(anatomy.unembed(last), out.logits, "logits")]),
        _same_as_hidden_states(anatomy, values, out.hidden_states),
        _causal_edit(anatomy, ids, last),
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


def _refuse_unseen(anatomy: Anatomy, seen: Values) -> None:
    for point, layer, _ in _points(anatomy):
        if (point, layer) not in seen:
            raise UnsupportedModel(f"{point}.{layer} passes no module in a run: the block computes it by itself")


def _refuse_other_shapes(anatomy: Anatomy, values: Values) -> None:
    for (point, layer), value in values.items():
        if point in ("q", "k", "v"):
            expected = [1, 7, anatomy.n_units(point, layer), anatomy.d_head]
            if list(value.shape) != expected:
                raise UnsupportedModel(f"{point}.{layer} has shape {list(value.shape)}, expected {expected}")


def _points(anatomy: Anatomy) -> Iterator[tuple[str, int, Tap]]:
    for layer, block in enumerate(anatomy.blocks):
        for point in ("resid_pre", "resid_mid", "resid", "attn", "mlp", "head", "neuron", "gate", "q", "k", "v"):
            try:
                yield point, layer, anatomy.tap(point, layer)
            except SiteError:
                continue
        yield "core", layer, Tap(part(block, anatomy.family.mlp_core), "out", copy=True)
        if anatomy.has("gate", layer):
            up = part(block, anatomy.family.up_proj)
            if up is None:
                raise UnsupportedModel(f"block {layer} has no {anatomy.family.up_proj!r} for its gate to multiply")
            yield "up", layer, Tap(up, "out")


@contextmanager
def _recording(anatomy: Anatomy) -> Iterator[Values]:
    """Bare hooks that keep a copy of the raw tensor at every tap."""
    seen: Values = {}

    def hook(key: tuple[str, int], tap: Tap) -> Any:
        if tap.side == "in":
            def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
                seen[key] = (args[0] if args else kwargs["hidden_states"]).clone()
            return tap.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            seen[key] = (output[0] if isinstance(output, tuple) else output).clone()
        return tap.module.register_forward_hook(after)

    handles = [hook((point, layer), tap) for point, layer, tap in list(_points(anatomy))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _read(anatomy: Anatomy, point: str, layer: int, seen: Values) -> Tensor:
    return anatomy.tap(point, layer).read(seen[point, layer], 7)


def _stream(anatomy: Anatomy, values: Values) -> list[Identity]:
    layers = range(anatomy.n_layers)

    def added(name: str, terms: tuple[str, ...], whole: str, layers: list[int]) -> Identity:
        parts = [[values[term, i] for term in terms] for i in layers]
        pairs = [(_total(some), values[whole, i], f"block {i}") for some, i in zip(parts, layers, strict=True)]
        return compare(name, pairs, [_total([x.abs() for x in some]) for some in parts], SUM_ULPS)

    found = [added("resid_pre + attn + mlp == resid", ("resid_pre", "attn", "mlp"), "resid", list(layers))]
    mid = [i for i in layers if ("resid_mid", i) in values]
    if mid:
        found.append(added("resid_pre + attn == resid_mid", ("resid_pre", "attn"), "resid_mid", mid))
    chain = [(values["resid", i], values["resid_pre", i + 1], f"block {i}") for i in layers[:-1]]
    if chain:
        found.append(compare_bits("resid == next resid_pre", chain))
    return found


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _mlps(anatomy: Anatomy, values: Values, seen: Values) -> list[Identity]:
    neurons, gates, magnitudes = [], [], []
    for layer, block in enumerate(anatomy.blocks):
        if ("neuron", layer) not in values:
            continue
        down, where = part(block, anatomy.family.down_proj), f"block {layer}"
        written, neuron = down(values["neuron", layer]), values["neuron", layer]
        neurons.append((written, _shaped(seen["core", layer]), where))
        if ("gate", layer) in values:
            up = _shaped(seen["up", layer])[..., -in_features(down) :]
            gates.append((values["gate", layer] * up, neuron, where))
            magnitudes.append(neuron.abs())
    found = []
    if neurons:
        found.append(compare_rows("down_proj(neuron) == mlp before any post-norm", neurons))
    if gates:
        found.append(compare("gate × up == neuron", gates, magnitudes, SUM_ULPS))
    return found


def _heads(anatomy: Anatomy, values: Values) -> list[Pair]:
    """Each block's heads through the output projection, summed in no less than float32: the sum of products in
    another order must not be judged by the rounding of a half-precision type."""
    pairs = []
    for layer, block in enumerate(anatomy.blocks):
        out_proj = part(block, anatomy.family.out_proj)
        bias = getattr(out_proj, "bias", None)
        wide = torch.promote_types(values["head", layer].dtype, torch.float32)
        w_HED = anatomy.head_weights(layer).to(wide)
        raw = torch.einsum("bthe,hed->bthd", values["head", layer].to(wide), w_HED).sum(2)
        raw = raw if bias is None else raw + bias
        pairs.append((raw * anatomy.post_norm_scale(layer, raw), values["attn", layer], f"block {layer}"))
    return pairs


def _shaped(raw: Tensor) -> Tensor:
    return raw.unflatten(0, (-1, 7)) if raw.dim() == 2 else raw


def _same_as_hidden_states(anatomy: Anatomy, values: Values, hidden: tuple[Tensor, ...]) -> Identity:
    """Hugging Face's hidden states are the residual stream before each block; the last one has passed the norm."""
    pairs = [(values["resid_pre", i], hidden[i], f"block {i}") for i in range(anatomy.n_layers)]
    return compare_bits("capture == Hugging Face hidden states, bit for bit", pairs)


def _pattern_fault(anatomy: Anatomy, ids: Tensor) -> str | None:
    """Why an edit of attention weights would be wrong: they have to be all of the weights, and reach the values."""
    weights: dict[int, Any] = {}

    def keep(layer: int) -> Callable:
        def hook(_: nn.Module, __: tuple, output: Any) -> None:
            weights[layer] = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        return hook

    config, before = anatomy.config, anatomy.config._attn_implementation
    handles = [part(block, anatomy.family.attention).register_forward_hook(keep(layer))
               for layer, block in enumerate(anatomy.blocks)]
    try:
        config._attn_implementation = "eager"
        anatomy.base(ids, use_cache=False)
    except MISFITS as error:
        return f"its eager attention fails ({error})"
    finally:
        config._attn_implementation = before
        for handle in handles:
            handle.remove()
    for layer in range(anatomy.n_layers):
        weights_BHTS = weights.get(layer)
        if not isinstance(weights_BHTS, Tensor) or weights_BHTS.dim() != 4:
            return f"the attention of block {layer} returns no weights"
        sums, eps = weights_BHTS.double().sum(-1), max(NORM_EPS, torch.finfo(weights_BHTS.dtype).eps)
        if not float((sums - 1).abs().max()) <= SUM_ULPS * eps:
            return (f"the weights of block {layer} do not sum to 1 (but to {float(sums.min()):.2f} at one token), as "
                    "if a part of the attention went to a sink that is no token")
    return None


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
            anatomy.base(ids, use_cache=False)
        finally:
            handle.remove()
    edited = _read(anatomy, "resid", anatomy.n_layers - 1, seen)
    before = compare_rows("an edit changes its token and nothing before it",
                           [(edited[:, :token], clean[:, :token], "tokens before the edit")])
    if torch.equal(edited[:, token], clean[:, token]):
        return before._replace(error=float("nan"), ok=False, detail="the edit had no effect")
    return before
