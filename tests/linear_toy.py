"""A toy whose relations are exactly linear, and files of relations that tiny models know, because they made them."""

import copy
import json

import torch
from tiny import tiny, wrap
from torch import nn

from patchclamp.forward import Readout
from patchclamp.relations.prompts import question
from patchclamp.tasks.rows import RelationSample

TEMPLATE, OTHER = "w90 {} w91 w92", "w88 w90 {} w91 w92"
"""The toy sees four tokens, so that it answers both alike."""


def linear_model():
    """A Mistral without norms in its blocks, whose attention looks at the last four tokens alike and whose MLPs add
    next to nothing, as does the attention of all blocks but the second: the stream at the end is an affine map of that
    at the subject, the same after any examples."""
    hf = copy.deepcopy(tiny("mistral"))
    with torch.no_grad():
        for number, layer in enumerate(hf.model.layers):
            layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.o_proj.weight.mul_(100 if number == 1 else 1e-6)
            layer.mlp.down_proj.weight.mul_(1e-6)
    return wrap(hf, "linear")


def relation_file(model, folder, name="linear", n=60, template=TEMPLATE, templates=None):
    """A file of the model's own first choices, which it therefore knows whatever examples are told, or most of them."""
    told = [RelationSample(subject=f"w{i}", object="w80") for i in range(80, 86)]
    samples = []
    for i in range(n):
        asked = question(model, template, f"w{i}", told)
        ((top,),) = model.run(asked.ids, read=[Readout.top(1)])
        samples.append({"subject": f"w{i}", "object": top.text.strip()})
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "prompt_templates": templates or [template], "samples": samples}))
    return str(path)
