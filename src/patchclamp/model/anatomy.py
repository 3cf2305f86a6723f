"""A Hugging Face model's parts, found through its family's table: modules, sizes, and a tap for every point."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.errors import SiteError, UnsupportedModel
from patchclamp.model.families import BY_ARCHITECTURE, Family, Heads
from patchclamp.model.tap import Codec, FeatureTap, Tap

STREAM = ("embed", "resid_pre", "resid_mid", "resid", "attn", "mlp")


def part(root: Any, path: str) -> Any:
    """The attribute at a dotted path below `root`, or None where it is missing."""
    found: Any = root
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


def in_features(module: Any) -> int:
    """Input width of a linear module (`nn.Linear` or transformers' transposed `Conv1D`)."""
    weight = module.weight
    return int(weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1])


def weight_in_out(module: Any) -> Tensor:
    """A linear module's weight as [input width, output width]."""
    return module.weight if type(module).__name__ == "Conv1D" else module.weight.T


class Anatomy:
    """The parts of one loaded model. Raises UnsupportedModel if the family's table does not fit it."""

    def __init__(self, hf: Any, family: Family) -> None:
        self.hf: Any = hf
        self.family = family
        self.config: Any = hf.config.get_text_config()
        self.pattern_fault: str | None = None
        """Why the attention pattern may not be edited; None where it may. Set by the proof."""
        config = self.config
        self._refuse_norm_on_stream()
        blocks = part(hf, family.blocks)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise UnsupportedModel(f"{type(hf).__name__}: no blocks at {family.blocks!r} (family {family.name})")
        self.blocks: list[Any] = list(blocks)
        self.n_layers = len(self.blocks)
        self.base: Any = hf.base_model
        self.final_norm = self._need(hf, family.final_norm)
        self.unembedding = hf.get_output_embeddings()
        if self.unembedding is None:
            raise UnsupportedModel(f"{type(hf).__name__} has no unembedding: it is not a causal language model")
        out_proj = self._need(self.blocks[0], family.out_proj)
        self.n_heads = int(_first(config, "num_attention_heads", "n_head", "n_heads", "num_heads"))
        self.d_head = in_features(out_proj) // self.n_heads
        self.n_kv_heads = self._kv_heads(config)
        self.d_model = int(_first(config, "hidden_size", "n_embd", "d_model"))
        self.n_vocab = int(self.unembedding.weight.shape[0])
        self.n_embeddings = int(hf.get_input_embeddings().weight.shape[0])
        """How many token ids the model can read."""
        self.context = _first(config, "max_position_embeddings", "n_positions", "max_seq_len", default=None)
        for layer, block in enumerate(self.blocks):
            for path in (family.attention, family.attn, family.mlp, family.out_proj):
                if part(block, path) is None:
                    raise UnsupportedModel(
                        f"{type(hf).__name__}: block {layer} has no {path!r} (family {family.name})"
                    )
        for field, owner in ((family.logit_softcap, config), (family.logit_scale, config),
                             (family.logit_divisor, config), (family.multiplier, self.blocks[0])):
            if field and not hasattr(owner, field):
                raise UnsupportedModel(f"{type(owner).__name__} has no {field!r} (family {family.name})")
        self._rope_window = _rope_window(config)
        self._taps: dict[tuple[str, int], Tap] = {}
        self._codecs: Mapping[tuple[str, int], tuple[Codec, str]] = {}

    def _refuse_norm_on_stream(self) -> None:
        field, value = self.family.norm_on_stream_if or ("", None)
        if field and getattr(self.config, field, None) is value:
            raise UnsupportedModel(
                f"with {field}={value} each block puts a norm on the residual stream itself (post-norm, "
                "stream = norm(stream + attn)), so what attention and MLP write does not add up to the stream"
            )

    def _need(self, root: Any, path: str) -> Any:
        found = part(root, path)
        if found is None:
            raise UnsupportedModel(f"{type(self.hf).__name__} has no {path!r} (family {self.family.name})")
        return found

    def _kv_heads(self, config: Any) -> int:
        own = getattr(part(self.blocks[0], self.family.attention), "num_kv_heads", None)
        return int(own or _first(config, "num_key_value_heads", default=None) or self.n_heads)

    @property
    def parallel(self) -> bool:
        """Attention and MLP read the same residual stream, so that there is no `resid_mid`."""
        flag = self.family.parallel_if
        return self.mid_module(0) is None or bool(flag and getattr(self.config, flag, False))

    def mid_module(self, layer: int) -> nn.Module | None:
        """The module that reads the stream for the MLP; None where it reads what attention's norm gives."""
        return next((m for p in self.family.resid_mid if (m := part(self.blocks[layer], p)) is not None), None)

    def attn_norm(self, layer: int) -> nn.Module:
        """What lies between the residual stream and attention."""
        found = (m for path in self.family.attn_norm if (m := part(self.blocks[layer], path)) is not None)
        return next(found, nn.Identity())

    def mlp_norm(self, layer: int) -> nn.Module | None:
        """What lies between the residual stream and the MLP; None where attention and MLP are parallel."""
        module = None if self.parallel else self.mid_module(layer)
        return nn.Identity() if module is part(self.blocks[layer], self.family.mlp_core) else module

    def n_neurons(self, layer: int) -> int:
        """Width of the MLP of one block; 0 where it has no single down projection (mixture of experts)."""
        down = part(self.blocks[layer], self.family.down_proj)
        return in_features(down) if down is not None else 0

    def n_units(self, point: str, layer: int) -> int:
        """How many units a point has in a block: heads, key/value heads or neurons."""
        if point in ("k", "v"):
            return self.n_kv_heads
        if point.startswith("feature"):
            return self.codec(point, layer)[0].n_latents
        return self.n_neurons(layer) if point in ("neuron", "gate") else self.n_heads

    @property
    def points(self) -> tuple[str, ...]:
        """The points this model has (in at least one block)."""
        every = (*STREAM, "head", "head_out", "q", "k", "v", "pattern", "neuron", "gate", "logits")
        return tuple(p for p in every if p in ("logits", "head_out", "pattern")
                     or any(self.has(p, layer) for layer in range(self.n_layers)))

    def has(self, point: str, layer: int) -> bool:
        """Whether a block has a point."""
        try:
            self.tap(point, layer)
        except SiteError:
            return False
        return True

    def attach(self, name: str, codec: Codec, point: str, layer: int) -> None:
        """Make an autoencoder's codes of a point's value the point `feature:NAME` of that block; `feature`, too, as
        long as the block has no other."""
        self.attachments = {**self._codecs, (f"feature:{name}", layer): (codec, point)}

    @property
    def attachments(self) -> Mapping[tuple[str, int], tuple[Codec, str]]:
        """The attached autoencoders and the points they read, by (`feature:NAME`, block); set as a whole."""
        return self._codecs

    @attachments.setter
    def attachments(self, codecs: Mapping[tuple[str, int], tuple[Codec, str]]) -> None:
        self._codecs = dict(codecs)
        self._taps = {key: tap for key, tap in self._taps.items() if not key[0].startswith("feature")}

    @property
    def codecs(self) -> dict[tuple[str, int], Codec]:
        """The attached autoencoders by (`feature:NAME`, block)."""
        return {key: codec for key, (codec, _) in self._codecs.items()}

    def codec(self, place: str, layer: int) -> tuple[Codec, str]:
        """The autoencoder called `feature:NAME` in a block, or the block's only one, and the point it reads.
        SiteError if there is none."""
        if (place, layer) in self._codecs:
            return self._codecs[place, layer]
        names = [name.partition(":")[2] for name, block in self._codecs if block == layer]
        if place == "feature" and len(names) == 1:
            return self._codecs[f"feature:{names[0]}", layer]
        if not self._codecs:
            raise SiteError(f"{place}.{layer}: no autoencoder is attached, so the model has no features; attach one "
                            "(model.attach, or +sae=FOLDER behind the model)")
        here = f"block {layer} has {', '.join(names)}" if names else (
            "attached are " + ", ".join(f"{name}.{block}" for name, block in self._codecs))
        if place == "feature" and names:
            raise SiteError(f"feature.{layer}: {here}; say which, as in feature:{names[0]}.{layer}")
        raise SiteError(f"{place}.{layer}: no such autoencoder; {here}")

    def base_point(self, place: str, layer: int) -> str:
        """The point whose module an edit or a readout is at: what an autoencoder reads, else the point itself."""
        return self.codec(place, layer)[1] if place.startswith("feature") else place

    def tap(self, point: str, layer: int) -> Tap:
        """The tap of a point in a block; `feature:NAME` is one. SiteError says why the model has none."""
        if (point, layer) not in self._taps:
            self._taps[point, layer] = self._make_tap(point, layer)
        return self._taps[point, layer]

    def _make_tap(self, point: str, layer: int) -> Tap:
        family, block = self.family, self.blocks[layer]
        if point.startswith("feature"):
            codec, base = self.codec(point, layer)
            return FeatureTap(self.tap(base, layer), codec)
        if point in ("embed", "resid_pre"):
            return Tap(block, "in")
        if point == "resid":
            return Tap(block, "out")
        if point == "resid_mid":
            module = self.mid_module(layer)
            if module is None or self.parallel:
                raise SiteError(
                    f"resid_mid.{layer}: in a {family.name} block attention and MLP are parallel and both read "
                    f"resid_pre.{layer}; there is no residual stream between them"
                )
            return Tap(module, "in", in_place=True)
        if point in ("attn", "mlp"):
            scale = float(getattr(block, family.multiplier)) if family.multiplier else 1.0
            path = family.attn if point == "attn" else family.mlp
            return Tap(part(block, path), "out", scale=scale, copy=point == "mlp" and family.mutates_mlp)
        if point == "head":
            return Tap(part(block, family.out_proj), "in", units=self.n_heads)
        if point in ("neuron", "gate"):
            return self._mlp_tap(point, layer)
        if point in ("q", "k", "v"):
            return self._heads_tap(point, layer)
        raise SiteError(f"{point}.{layer} has no single place in the model")

    def _mlp_tap(self, point: str, layer: int) -> Tap:
        family, block = self.family, self.blocks[layer]
        down = part(block, family.down_proj)
        if down is None:
            experts = part(block, family.mlp_core + ".experts") is not None
            why = ("is a mixture of experts whose weights are fused, so no one projection reads its neurons" if experts
                   else f"has no {family.down_proj!r} to read its neurons")
            what = "the experts' joint output" if experts else "the MLP's output"
            raise SiteError(f"{point}.{layer}: block {layer} {why}; use mlp.{layer}, {what}")
        if point == "neuron":
            return Tap(down, "in")
        act = part(block, family.gate) if family.gate else None
        if act is None:
            like = "" if family_of(self.hf) else f" as a {family.name} block is"
            raise SiteError(f"gate.{layer}: the MLP of {type(self.hf).__name__} is not gated{like}; use neuron.{layer}")
        return Tap(act, "out")

    def _heads_tap(self, point: str, layer: int) -> Tap:
        block = self.blocks[layer]
        candidates: tuple[Heads, ...] = getattr(self.family, point)
        heads = next((h for h in candidates if part(block, h.path) is not None), None)
        if heads is None:
            raise SiteError(f"{point}.{layer}: a {self.family.name} block has no {candidates[0].path!r}")
        config = self.config
        clip = getattr(getattr(config, "attn_config", None), "clip_qkv", None) or getattr(config, "clip_qkv", None)
        if clip:
            raise SiteError(f"{point}.{layer}: this model clips queries, keys and values at ±{clip} after the "
                            "projection, where no module shows them")
        return self.projection_tap(point, layer, heads)

    def projection_tap(self, point: str, layer: int, heads: Heads) -> Tap:
        """The tap of queries, keys or values at the module that `heads` names."""
        units = self.n_heads if point == "q" else self.n_kv_heads
        module = part(self.blocks[layer], heads.path)
        if heads.layout in ("head3", "falcon"):
            return Tap(module, "out", units=units, index=self._interleaved(heads))
        sizes = {"q": self.n_heads * self.d_head, "k": self.n_kv_heads * self.d_head}
        start = sum(sizes.get(name, 0) for name in heads.start.split("+"))
        return Tap(module, "out", units=units, layout=heads.layout, start=start, _width=self.d_head)

    def _interleaved(self, heads: Heads) -> Tensor:
        """Indices [units, width] into a fused projection whose heads alternate."""
        width, config = self.d_head, self.config
        grouped = heads.layout == "falcon" and getattr(config, "new_decoder_architecture", False)
        if heads.layout == "falcon" and not grouped and getattr(config, "multi_query", False):
            per_group, groups = self.n_heads, 1
        elif grouped:
            per_group, groups = self.n_heads // self.n_kv_heads, self.n_kv_heads
        else:
            per_group, groups = 1, self.n_heads
        slots = torch.arange(groups * (per_group + 2) * width).view(groups, per_group + 2, width)
        chosen = slots[:, :per_group] if heads.which == 0 else slots[:, [per_group + heads.which - 1]]
        return chosen.reshape(-1, width).to(self.unembedding.weight.device)

    def rope_side(self, n_tokens: int) -> bool:
        """Whether a prompt of this length is beyond the window after which a model with `longrope` turns queries
        and keys by other angles, at all positions. Prompts on different sides must not share a pass, nor may a
        prompt use keys computed on the other side.

        (`dynamic` changes its angles only beyond `max_position_embeddings`, which no prompt may exceed.)
        """
        return self._rope_window is not None and n_tokens > self._rope_window

    def head(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of hidden states that passed the final norm: [..., D] -> [..., V], or only of `tokens` [N]
        -> [..., N], or of tokens [..., N] chosen for each hidden state."""
        weight, bias = self.unembedding.weight, getattr(self.unembedding, "bias", None)
        if tokens is None:
            logits = self.unembedding(hidden)
        elif tokens.dim() == 1:
            logits = nn.functional.linear(hidden, weight[tokens], None if bias is None else bias[tokens])
        else:
            logits = (weight[tokens] * hidden.unsqueeze(-2)).sum(-1)
            logits = logits if bias is None else logits + bias[tokens]
        config, family = self.config, self.family
        if family.logit_divisor:
            logits = logits / getattr(config, family.logit_divisor)
        if family.logit_scale:
            logits = logits * getattr(config, family.logit_scale)
        cap = getattr(config, family.logit_softcap) if family.logit_softcap else None
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def unembed(self, resid: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of residual streams [..., D]: final norm, unembedding, scale and softcap, as the model does."""
        hidden = self.final_norm(resid)
        projection = part(self.hf, self.family.final_projection) if self.family.final_projection else None
        return self.head(hidden if projection is None else projection(hidden), tokens)

    def head_weights(self, layer: int) -> Tensor:
        """A block's output projection, head by head, [H, E, D]."""
        out_proj = part(self.blocks[layer], self.family.out_proj)
        return weight_in_out(out_proj).reshape(self.n_heads, self.d_head, -1)

    def post_norm_scale(self, layer: int, raw_attn: Tensor) -> Tensor | float:
        """What one unit of the output projection is multiplied by on its way into the residual stream, in the
        actual run: [B,T,D] for a post-norm (raw_attn [B,T,D] is that norm's input), else the multiplier."""
        block, family = self.blocks[layer], self.family
        if not family.post_norm:
            return float(getattr(block, family.multiplier)) if family.multiplier else 1.0
        norm = part(block, family.attn)
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        wide = raw_attn.to(torch.promote_types(raw_attn.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * (norm.weight.to(wide) + family.norm_offset)
        return scale.to(raw_attn.dtype)


def _first(config: Any, *names: str, default: Any = ...) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    if default is ...:
        raise UnsupportedModel(f"{type(config).__name__} has none of {', '.join(names)}")
    return default


def _rope_window(config: Any) -> int | None:
    """The length at which `longrope` changes its frequencies; None for other kinds of rotary embedding."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (parameters, *parameters.values()) if isinstance(kind, dict)]
    windows = [kind.get("original_max_position_embeddings") or config.original_max_position_embeddings
               for kind in kinds if kind.get("rope_type") == "longrope"]
    return int(min(windows)) if windows else None


def family_of(hf: Any) -> Family | None:
    """The family whose table names this architecture, if there is one."""
    return BY_ARCHITECTURE.get(type(hf).__name__)
