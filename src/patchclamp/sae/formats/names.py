"""What other projects call our sites. None where a name is no site of ours, or may be either of two."""

import re
from collections.abc import Mapping

from patchclamp.forward import Site

TRANSFORMER_LENS = {
    "resid": "blocks.{}.hook_resid_post", "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid", "mlp": "blocks.{}.hook_mlp_out", "attn": "blocks.{}.hook_attn_out",
    "head": "blocks.{}.attn.hook_z", "neuron": "blocks.{}.mlp.hook_post",
}
"""Hooks of TransformerLens, which SAELens goes by. `hook_z` has a dimension for heads that autoencoders read flat."""
SPARSIFY = {"resid": "layers.{}", "mlp": "layers.{}.mlp", "attn": "layers.{}.self_attn"}
"""Modules of the model without its head, whose output is meant."""
SPARSIFY_TOO = {"resid": "h.{}", "mlp": "h.{}.mlp", "attn": "h.{}.attn"}
"""The same in GPT-2."""
GEMMA = {
    "resid": "model.layers.{}.output", "head": "model.layers.{}.self_attn.o_proj.input",
    "mlp": "model.layers.{}.post_feedforward_layernorm.output",
    "attn": "model.layers.{}.post_attention_layernorm.output",
}
"""Gemma Scope 2's names for places in Gemma, whose attention and MLP outputs pass a norm before they are added."""
SUBMODULES = {"resid": "resid_post_layer_{}"}
"""What dictionary_learning's demonstration calls a block's output; the library itself asks for no particular name."""


def named(site: str | None, names: Mapping[str, str]) -> str | None:
    """What a project calls a site."""
    parsed = Site.parse(site) if site else None
    return names[parsed.point].format(parsed.layer) if parsed and parsed.point in names else None


def site_of(name: str | None, *tables: Mapping[str, str]) -> str | None:
    """The site that a project calls `name`."""
    for names in tables:
        for point, pattern in names.items():
            found = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d{1,9})"), name or "")
            if found:
                return f"{point}.{int(found[1])}"
    return None
