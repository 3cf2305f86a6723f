"""From a plan's row to a job: sites checked against the model, positions as token indices, values as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import EditError, SiteError, TokenError
from patchclamp.forward.edit import Edit
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Positions, Site
from patchclamp.model.anatomy import Anatomy
from patchclamp.model.tokens import Encoded, single_token


def check_site(anatomy: Anatomy, site: Site, name: str) -> None:
    """Raise SiteError unless the model called `name` has the site."""
    if site.point in ("embed", "logits"):
        return
    if site.layer is None or site.layer >= anatomy.n_layers:
        last = anatomy.n_layers - 1
        raise SiteError(f"{name} has {anatomy.n_layers} blocks (0 to {last}); {site} names block {site.layer}")
    if site.point not in ("head_out", "pattern"):
        anatomy.tap(site.place, site.layer)
    if site.unit is not None:
        count = anatomy.n_units(site.place, site.layer)
        if site.unit >= count:
            kind = {"neuron": "neurons", "gate": "neurons", "feature": "features", "k": "key/value heads",
                    "v": "key/value heads"}
            what = kind.get(site.point, "heads")
            raise SiteError(f"block {site.layer} of {name} has {count} {what} (0 to {count - 1}); {site} names "
                            f"{site.unit}")


def token_indices(positions: Positions, encoded: Encoded, site: Site | str) -> Sequence[int]:
    """The tokens of a prompt that `positions` selects, in order. SiteError if there are none."""
    n = len(encoded)
    kind = positions.kind
    if kind == "all":
        found: Sequence[int] = range(n)
    elif kind == "last":
        found = [n - 1]
    elif kind == "prompt":
        found = range(encoded.n_prompt)
    elif kind == "response":
        found = range(encoded.n_prompt, n)
    elif kind == "index":
        if not -n <= positions.index < n:
            raise SiteError(f"{site}: the prompt has {n} tokens (0 to {n - 1}, or -{n} to -1 from the end)")
        found = [positions.index % n]
    elif kind == "slice":
        found = range(n)[slice(*positions.bounds)]
    else:
        found = [encoded.find(positions.text)]
    if not found:
        why = "it has no response" if kind == "response" else f"the prompt has {n} tokens"
        raise SiteError(f"{site} selects no token: {why}")
    return found


@dataclass
class ReadyEdit:
    """An edit whose tokens and values are known. `fired` is set by the run."""

    edit: Edit
    encoded: Encoded
    tokens: Sequence[int]
    change: Callable[[Tensor], Tensor]
    keys: Sequence[int] | None = None
    open_end: bool = False
    """The edit goes on through generated tokens."""
    fired: bool = False
    at: str = ""
    """The point whose module it is made at: for a feature, what its autoencoder reads."""

    @property
    def site(self) -> Site:
        return self.edit.site

    @property
    def layer(self) -> int:
        return self.site.layer or 0

    @property
    def join(self) -> int:
        """The first block whose input or inside the edit changes; n for what only changes the output of n-1."""
        return self.layer + 1 if self.at == "resid" else self.layer


@dataclass
class ReadyRead:
    """A readout whose tokens are known."""

    read: Readout
    tokens: Sequence[int]
    """Token indices read; for logits-type readouts the position whose prediction is measured."""
    ids: list[int] = field(default_factory=list)
    """Vocabulary ids of the watched tokens."""

    @property
    def needs_logits(self) -> bool:
        return self.read.kind != "value" or (self.read.site is not None and self.read.site.point == "logits")

    @property
    def layer(self) -> int:
        """The block the run must reach."""
        return self.read.site.layer or 0 if self.read.site is not None else 0


@dataclass
class Job:
    """One run to do."""

    encoded: Encoded
    edits: list[ReadyEdit]
    reads: list[ReadyRead]
    results: list[Any] = field(default_factory=list)

    @property
    def join(self) -> int:
        """The first block that this run has to compute for itself."""
        return min(e.join for e in self.edits)

    @property
    def start(self) -> int:
        """The first token that this run has to compute for itself."""
        read = [i for r in self.reads for i in r.tokens]
        return min(read + [i for e in self.edits for i in e.tokens], default=0)

    @property
    def needs_pattern(self) -> bool:
        """Whether an attention pattern is read or edited."""
        sites = [edit.site for edit in self.edits] + [r.read.site for r in self.reads if r.read.site is not None]
        return any(site.point == "pattern" for site in sites)

    @property
    def needs_clean(self) -> bool:
        return any(r.read.kind == "kl" for r in self.reads)


def ready_read(anatomy: Anatomy, tokenizer: Any, read: Readout, encoded: Encoded, name: str) -> ReadyRead:
    """Check one readout against the model and the prompt."""
    if read.kind == "value":
        assert read.site is not None
        check_site(anatomy, read.site, name)
        return ReadyRead(read, token_indices(read.site.positions, encoded, read.site))
    tokens = token_indices(Positions.parse(read.at), encoded, f"@{read.at}")
    if read.kind == "loss":
        targets = [i for i in tokens if i > 0]
        if not targets:
            raise SiteError(f"loss@{read.at}: the first token is not predicted from anything; give more text")
        tokens = [i - 1 for i in targets]
    ids = [t if isinstance(t, int) else single_token(tokenizer, t) for t in read.tokens]
    for token in ids:
        if not 0 <= token < anatomy.n_vocab:
            last = anatomy.n_vocab - 1
            raise TokenError(f"{name} has {last + 1} tokens (0 to {last}); {read.kind} names {token}")
    return ReadyRead(read, tokens, ids)


Lookup = Callable[[Edit, Sequence[int]], Tensor | None]
"""The tensor an edit depends on: a corpus mean, a swapped value, a standard deviation."""


def ready_edit(anatomy: Anatomy, edit: Edit, encoded: Encoded, lookup: Lookup, name: str) -> ReadyEdit:
    """Check one edit against the model and the prompt, and bind its values."""
    site = edit.site
    check_site(anatomy, site, name)
    tokens = token_indices(site.positions, encoded, site)
    if site.point == "pattern":
        return _ready_pattern(anatomy, edit, encoded, tokens, name)
    like = anatomy.unembedding.weight
    shape = value_shape(anatomy, site)
    value = lookup(edit, tokens)
    if value is None and edit.value is not None:
        value = edit.value.tensor
    value = None if value is None else _within(edit, value.to(like))
    wide = torch.promote_types(like.dtype, torch.float32)  # in float16 the norm of a long direction overflows
    direction = None if edit.direction is None else edit.direction.tensor.to(like.device, wide)
    _check_widths(edit, value, direction, shape, len(tokens), name)
    change = change_of(edit, value, direction, like.dtype)
    at = anatomy.base_point(site.place, site.layer or 0)
    return ReadyEdit(edit, encoded, tokens, change, open_end=site.positions.kind == "all", at=at)


def value_shape(anatomy: Anatomy, site: Site) -> tuple[int, ...]:
    """Shape of the value at one token of a site."""
    if site.point in ("neuron", "gate", "feature"):
        return () if site.unit is not None else (anatomy.n_units(site.place, site.layer or 0),)
    if site.point in ("head", "q", "k", "v"):
        heads = anatomy.n_units(site.point, site.layer or 0)
        return (anatomy.d_head,) if site.unit is not None else (heads, anatomy.d_head)
    return (anatomy.d_model,)


def _within(edit: Edit, value: Tensor) -> Tensor:
    """The value itself. EditError if the model's number format is too small for it, or its square too large for the
    norms, which would then write zeros without a word."""
    kind, most = str(value.dtype).removeprefix("torch."), torch.finfo(value.dtype).max
    if not torch.isfinite(value).all():
        raise EditError(f"{edit.op} at {edit.site} overflows {kind}, whose largest number is {most:.3g}; use a smaller "
                        "strength or value, or load the model with --dtype float32")
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    if not torch.isfinite(wide.square().sum(-1) if wide.dim() else wide.square()).all():
        raise EditError(f"{edit.op} at {edit.site} overflows {kind}: numbers of {wide.abs().max().item():.3g} have a "
                        "square that the model's norms cannot hold; use a smaller strength or value")
    return value


def _check_widths(
    edit: Edit, value: Tensor | None, direction: Tensor | None, shape: tuple[int, ...], n: int, name: str
) -> None:
    if direction is not None:
        if not shape:
            raise EditError(f"{edit.site} is one number; {edit.op} along a direction needs a vector there (use set, "
                            "scale, or the whole layer)")
        if direction.shape[-1] != shape[-1]:
            raise EditError(f"the direction has width {direction.shape[-1]} and {edit.site} of {name} has width "
                            f"{shape[-1]}")
    if value is None or edit.op not in ("set", "swap", "mean"):
        return
    allowed = [(), shape, (n, *shape)]
    if tuple(value.shape) not in allowed:
        forms = " or ".join(str(list(a)) for a in dict.fromkeys(allowed) if a) or "one number"
        got = list(value.shape)
        raise EditError(f"{edit.op} at {edit.site} of {name}: the value has shape {got}, expected {forms}")


def change_of(
    edit: Edit, value: Tensor | None, direction: Tensor | None, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """The edit as a function of the value [tokens, …] of this type: what is written in its place."""
    change = _unconditional(edit, value, direction, dtype)
    if edit.when is None:
        return change
    assert direction is not None
    along, above = _unit(edit.when.direction.tensor).to(direction), edit.when.above
    return lambda x: torch.where((x @ along.to(x) > above).unsqueeze(-1), change(x), x)


def _unit(direction: Tensor) -> Tensor:
    """The direction with length 1, whatever its length was. Zeros become NaN."""
    exact = direction.double()
    return (exact / exact.norm()).to(direction)


def _unconditional(
    edit: Edit, value: Tensor | None, direction: Tensor | None, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    op = edit.op
    if op == "zero":
        return torch.zeros_like
    if op in ("set", "mean", "swap"):
        assert value is not None
        return lambda x: value.to(x).expand_as(x)
    if op == "scale":
        assert value is not None
        return lambda x: x * value.to(x)
    assert direction is not None
    if not direction.any() and (op != "add" or value is not None):
        raise EditError(f"{op} at {edit.site}: the direction is all zeros; it points nowhere")
    unit = _unit(direction)
    if op == "add":
        step = _within(edit, (edit.strength * (direction if value is None else value * unit)).to(dtype))
        return lambda x: x + step.to(x)
    if op == "project_out":
        return lambda x: x - (x @ unit.to(x)).unsqueeze(-1) * unit.to(x)
    assert op == "clamp" and value is not None
    return lambda x: x + (value.to(x) - x @ unit.to(x)).unsqueeze(-1) * unit.to(x)


def _ready_pattern(anatomy: Anatomy, edit: Edit, encoded: Encoded, tokens: Sequence[int], name: str) -> ReadyEdit:
    if not anatomy.family.common_attention:
        raise EditError(
            f"{edit.site}: a {anatomy.family.name} model computes attention outside transformers' attention "
            f"interface, so its pattern can be read but not edited; edit head.{edit.site.layer} instead"
        )
    keys = token_indices(Positions.parse(edit.keys), encoded, f"keys @{edit.keys}")
    value = None if edit.value is None else edit.value.tensor.to(anatomy.unembedding.weight)
    if value is not None and value.dim():
        raise EditError(f"{edit.op} at {edit.site} of {name} takes one number, not shape {list(value.shape)}")
    open_end = edit.site.positions.kind == "all"
    return ReadyEdit(edit, encoded, tokens, change_of(edit, value, None, torch.float32), keys, open_end, at="pattern")
