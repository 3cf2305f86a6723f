"""circuitkit's edge attribution (its backend descends from the EAP-IG authors' code), on its TransformerLens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from circuitkit.backends.eap.attribute import attribute
from circuitkit.backends.eap.graph import Graph
from timed_common import Way, serve
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer


def build(setup: dict[str, Any]) -> dict[str, Way]:
    tokenizer = AutoTokenizer.from_pretrained(setup["folder"])
    hf = AutoModelForCausalLM.from_pretrained(setup["folder"], dtype=torch.float32)
    model = HookedTransformer.from_pretrained_no_processing(
        setup["called"], hf_model=hf, tokenizer=tokenizer, dtype=torch.float32, device="cpu")
    model.cfg.use_attn_result = True
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    if model.cfg.n_key_value_heads is not None:
        model.set_ungroup_grouped_query_attention(True)
    pairs = setup["pairs"]
    texts = [[pair["text"][name] for pair in pairs] for name in ("clean", "corrupted")]
    for text, pair in zip(texts[0], pairs, strict=True):
        if model.to_tokens(text)[0].tolist() != list(pair["clean"]):
            raise ValueError(f"other tokens than ours: {model.to_str_tokens(text)}")
    choices = torch.tensor([pair["choice"] for pair in pairs])

    def differences(logits: torch.Tensor, clean: Any, lengths: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        last = logits[torch.arange(len(logits)), lengths - 1]
        both = last.gather(1, label)
        return (both[:, 0] - both[:, 1]).sum()

    def attribution(given: Sequence[int]) -> torch.Tensor:
        """With so many steps, [N, S] in our order."""
        graph = Graph.from_model(model)
        steps = {"ig_steps": given[0]} if given[0] else {}
        attribute(model, graph, [(*texts, choices)], differences, "EAP-IG-inputs" if given[0] else "EAP",
                  quiet=True, **steps)
        return in_our_order(graph, model.cfg.n_layers, model.cfg.n_heads)

    return {"attribution": attribution}


def in_our_order(graph: Any, n_layers: int, n_heads: int) -> torch.Tensor:
    """Scores [N, S] of destinations q, k, v by head and MLP by block, logits last; sources embeddings, heads, MLPs."""
    scores = torch.zeros(n_layers * (3 * n_heads + 1) + 1, 1 + n_layers * (n_heads + 1))
    for name, edge in graph.edges.items():
        source, destination = name.split("->")
        scores[place_of(destination, n_layers, n_heads), number_of(source, n_heads)] = edge.score
    return scores


def number_of(source: str, n_heads: int) -> int:
    if source == "input":
        return 0
    if source.startswith("m"):
        return (int(source[1:]) + 1) * (n_heads + 1)
    layer, head = source[1:].split(".h")
    return 1 + int(layer) * (n_heads + 1) + int(head)


def place_of(destination: str, n_layers: int, n_heads: int) -> int:
    each = 3 * n_heads + 1
    if destination == "logits":
        return n_layers * each
    if destination.startswith("m"):
        return int(destination[1:]) * each + each - 1
    name, point = destination.rstrip(">").split("<")
    layer, head = name[1:].split(".h")
    return int(layer) * each + "qkv".index(point) * n_heads + int(head)


if __name__ == "__main__":
    serve(("torch", "transformers", "transformer-lens", "circuitkit"), build)
