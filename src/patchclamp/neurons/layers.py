"""Where the units of a vision model are, found by one run on an empty picture.

A transformer's tower has `neuron.L` (the input of the second linear layer of block L's MLP, as in language models) and
`resid.L` (the stream after block L); its class and register tokens are told from its patches by how many patches the
first convolution makes. Any other network has `channel.PATH`, the output of the module at PATH.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from patchclamp.errors import SiteError, UnsupportedModel

DOWN = ("mlp.fc2", "mlp.down_proj", "mlp.weights_out", "feed_forward.down_proj", "output.dense", "mlp.c_proj", "mlp.3")
"""Where a block's second linear layer is: in transformers, then in open_clip and torchvision."""
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
Side = Literal["in", "out"]
SHOWN = 8
"""Layers named in an error."""


@dataclass(frozen=True)
class Layer:
    """One layer whose units can be read."""

    name: str
    """`neuron.3`, `resid.3` or `channel.layer4`: a unit's site is this, a dot, and its number."""
    module: nn.Module
    side: Side
    """Whether its input or its output is read."""
    n_units: int
    prefix: int = 0
    """Tokens before the patches (class token, registers); 0 where there are none."""


@dataclass(frozen=True)
class Layers:
    """All layers that can be read, by name."""

    by_name: dict[str, Layer]
    usual: tuple[str, ...]
    """Those that are searched unless others are named."""
    has_class_token: bool

    def get(self, name: str, model: str) -> Layer:
        """The layer called `name`; SiteError names those there are."""
        if name not in self.by_name:
            others = len(self.by_name) - len(self.usual)
            more = f", and {others} more that can be read by name ({list(self.by_name)[-1]} is one)" if others else ""
            raise SiteError(f"{model} has no layer {name!r}; it has {_listed(self.usual)}{more}")
        return self.by_name[name]

    def unit(self, site: str, model: str) -> tuple[str, int]:
        """Layer and number of a unit such as `neuron.3.17`. SiteError if the model has no such unit."""
        layer, _, number = site.rpartition(".")
        if not (layer and number.isascii() and number.isdigit()):
            raise SiteError(f"{site!r} names no unit: write a layer, a dot and a number, e.g. {self.usual[-1]}.0")
        found, unit = self.get(layer, model), int(number)
        if unit >= found.n_units:
            raise SiteError(f"{layer} of {model} has {found.n_units} units (0 to {found.n_units - 1}); {site} names "
                            f"unit {unit}")
        return layer, unit


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known if len(known) <= SHOWN else [*known[: SHOWN - 1], "…", known[-1]])


class _Seen:
    """What each module took and gave in one run: shapes, and how often it ran."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.taken: dict[str, tuple[int, ...]] = {}
        self.given: dict[str, tuple[int, ...]] = {}

    def hook(self, name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.calls[name] += 1
            for shapes, value in ((self.taken, args), (self.given, output)):
                tensor = first_tensor(value)
                if tensor is not None:
                    shapes[name] = tuple(tensor.shape)
        return keep


def first_tensor(value: Any) -> Tensor | None:
    """What a module takes or gives, if it is a tensor or a tuple that begins with one."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def find_layers(module: nn.Module, pixels: Tensor, named: Sequence[str], model: str) -> Layers:
    """The layers of `module`, which takes `pixels` [1, 3, H, W]; `named` are the paths of those to search, or none.

    Raises UnsupportedModel if the model does not run on such pixels or no layer is recognised, SiteError for a path
    that is no readable module.
    """
    seen = _Seen()
    hooks = [part.register_forward_hook(seen.hook(name)) for name, part in module.named_modules()]
    try:
        with torch.no_grad():
            module(pixels)
    except Exception as error:
        raise UnsupportedModel(f"{model} does not run on pixels of shape {list(pixels.shape)} "
                               f"({' '.join(str(error).split())[:200]})") from error
    finally:
        for hook in hooks:
            hook.remove()
    blocks = _blocks(module)
    if blocks and not named:
        return _tower(module, blocks, seen, model)
    return _network(module, seen, tuple(named), model)


def _blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of the blocks of a transformer, in order: members of lists whose members all have an MLP's second
    layer."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    return [(f"{name}.{i}" if name else str(i), block) for name, part in lists
            if len(part) and all(_down(block) for block in part) for i, block in enumerate(part)]


def _down(block: nn.Module) -> str | None:
    parts = dict(block.named_modules())
    return next((path for path in DOWN if isinstance(parts.get(path), nn.Linear)), None)


def _tower(module: nn.Module, blocks: list[tuple[str, nn.Module]], seen: _Seen, model: str) -> Layers:
    """Layers of a transformer; UnsupportedModel where its tokens are not one a patch and a few before them."""
    first = next((name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)), None)
    shape = seen.given.get(first, ()) if first else ()
    patches = shape[2] * shape[3] if len(shape) == 4 else 0
    found: dict[str, Layer] = {}
    for kind in ("neuron", "resid"):
        for number, (path, block) in enumerate(blocks):
            down = f"{path}.{_down(block)}"
            side: Side = "in" if kind == "neuron" else "out"
            name, values = (down, seen.taken.get(down)) if side == "in" else (path, seen.given.get(path))
            if values is None or len(values) != 3 or not patches or values[1] < patches or seen.calls[name] != 1:
                raise UnsupportedModel(f"{model}: block {number} has values of shape {list(values or ())} for "
                                       f"{patches} patches; only towers that keep a token for each are read")
            layer = Layer(f"{kind}.{number}", module.get_submodule(name), side, values[2], values[1] - patches)
            found[layer.name] = layer
    usual = tuple(name for name in found if name.startswith("neuron"))
    prefix = found[usual[0]].prefix
    names = {name.rsplit(".", 1)[-1] for name, _ in module.named_parameters()}
    return Layers(found, usual, has_class_token=prefix > 0 and any(name in names for name in CLASS_TOKENS))


def _network(module: nn.Module, seen: _Seen, named: tuple[str, ...], model: str) -> Layers:
    """Layers of a convolutional network: every module that ran once and gave maps [1, C, H, W], or numbers [1, C]."""
    parts = dict(module.named_modules())
    found = {
        f"channel.{name}": Layer(f"channel.{name}", parts[name], "out", shape[1])
        for name, shape in seen.given.items() if name and seen.calls[name] == 1 and len(shape) in (2, 4)
    }
    layers = {name: found[name] for name in (f"channel.{path}" for path in parts) if name in found}
    for path in named:
        if f"channel.{path}" not in layers:
            ran = seen.calls[path]
            why = (f"runs {ran} times in a pass, so that its units have no one value" if ran > 1 else
                   "gives no maps [B, C, H, W] and no numbers [B, C]" if path in parts else "is no module of it")
            raise SiteError(f"{model}: {path!r} {why}; readable are {_listed(layers)}")
    usual = tuple(f"channel.{path}" for path in named) or _stages(module, seen, layers)
    if not usual:
        raise UnsupportedModel(f"{model} has neither transformer blocks nor layers that give maps [B, C, H, W]")
    return Layers(layers, usual, has_class_token=False)


def _stages(module: nn.Module, seen: _Seen, layers: dict[str, Layer]) -> tuple[str, ...]:
    """The network's outermost sequence of maps larger than one point: its own children, if there are two such, or else
    the members of the outermost list that has two, or whichever module has one."""

    def maps(parent: str, part: nn.Module) -> list[str]:
        names = [f"channel.{parent}.{child}" if parent else f"channel.{child}" for child, _ in part.named_children()]
        shapes = {name: seen.given[name.removeprefix("channel.")] for name in names if name in layers}
        return [name for name, shape in shapes.items() if len(shape) == 4 and shape[2] * shape[3] > 1]

    inward = sorted(module.named_modules(), key=lambda pair: (pair[0].count(".") + 1) * bool(pair[0]))
    lists = [pair for pair in inward if isinstance(pair[1], nn.ModuleList | nn.Sequential)]
    for parts, least in (([("", module)], 2), (lists, 2), (inward, 1)):
        for parent, part in parts:
            if len(found := maps(parent, part)) >= least:
                return tuple(found)
    return ()
