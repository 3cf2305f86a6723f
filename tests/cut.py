"""Pairs of prompts for tiny models, and one edge cut by the engine's edits alone."""

import torch
from tiny import ids, tiny_model

import patchclamp as pc
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.runs import Runs

CHOICES = [(5, 6), (7, 8), (9, 10)]


def pairs(lengths=(7, 7, 6)):
    """Prompts as token ids and others that differ in one token, the fourth."""
    clean = [ids(n, seed) for seed, n in enumerate(lengths)]
    return clean, [(*p[:3], 50, *p[4:]) for p in clean]


def tiny_runs(name, grouped=True, lengths=(7, 7, 6)):
    """Runs of a tiny model in float64, or in float32 where a mixture of experts needs it."""
    model = tiny_model(name, double="moe" not in name)
    return Runs(model, Graph.of(model.anatomy, grouped), *pairs(lengths), CHOICES[: len(lengths)])


def difference(model, prompt, choice, edits=()):
    """m of one prompt, run alone."""
    plan = pc.Plan.of([(prompt, edits, [pc.Readout.logit_difference(*choice)])])
    return float(model.execute(plan, "single")[0][0])


def cut_by_edits(model, clean, corrupted, choice, source, destination):
    """m with one edge cut: what the destination makes of the stream without the source's change, set in a clean run."""
    delta = value(model, clean, source) - value(model, corrupted, source)
    if destination.point == "logits":
        last = f"resid.{model.n_layers - 1}"
        return difference(model, clean, choice, [pc.Edit.set(last, value(model, clean, last) - delta)])
    middle = destination.point == "mlp" and not model.anatomy.parallel
    stream = f"resid_{'mid' if middle else 'pre'}.{destination.layer}"
    moved = [pc.Edit.set(stream, value(model, clean, stream) - delta)]
    site = str(destination)
    return difference(model, clean, choice, [pc.Edit.set(site, value(model, clean, site, moved))])


def some_of(graph, share, seed):
    """A random connected subgraph."""
    drawn = torch.rand(graph.edges.shape, generator=torch.Generator().manual_seed(seed))
    return graph.connected(graph.edges & (drawn < share))


def subgraph_by_edits(model, graph, kept, clean, corrupted, choice):
    """m of a connected subgraph, destination after destination and source after source, each by a run of its own. Parts
    that it has not read what they read in the corrupted run."""
    wrote = {s: value(model, corrupted, s) for s in graph.sources}
    delta = {s: torch.zeros_like(wrote[s]) for s in graph.sources}
    delta["embed"] = value(model, clean, "embed") - wrote["embed"]

    def read(place):
        destination = graph.destinations[place]
        middle = destination.point == "mlp" and not model.anatomy.parallel
        last = destination.point == "logits"
        site = f"resid.{model.n_layers - 1}" if last else f"resid_{'mid' if middle else 'pre'}.{destination.layer}"
        carried = sum((delta[graph.sources[s]] for s in kept[place].nonzero()[:, 0].tolist()), torch.tensor(0.0))
        stream = value(model, corrupted, site) + carried
        if last:
            return difference(model, clean, choice, [pc.Edit.set(site, stream)])
        return value(model, clean, str(destination), [pc.Edit.set(site, stream)])

    for layer in range(graph.n_layers):
        sites = {i: str(d) for i, d in enumerate(graph.destinations) if d.layer == layer and d.point in "qkv"}
        edits = [pc.Edit.set(site, read(i)) for i, site in sites.items()]
        for source in range(graph.before(layer), graph.mlp(layer)):
            name = graph.sources[source]
            delta[name] = value(model, clean, name, edits) - wrote[name]
        place = graph.feeds[graph.mlp(layer)][0]
        delta[f"mlp.{layer}"] = read(place) - wrote[f"mlp.{layer}"]
    return read(len(graph.destinations) - 1)


def value(model, prompt, site, edits=()):
    """The value at a site; of a source what it writes."""
    site = site.replace("head.", "head_out.") if site.startswith("head.") else site
    return model.execute(pc.Plan.of([(prompt, edits, [pc.Readout.value(site)])]), "single")[0][0]


def same(a, b, tolerance=1e-9):
    """Whether two tensors agree, as floats."""
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tolerance, rtol=tolerance)
