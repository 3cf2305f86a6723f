"""A circuit as points and lines: roles across, blocks upwards, each part at the tokens it is needed at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from patchclamp.circuits.certificate import Certificate
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import LAST
from patchclamp.evidence.method import Part

LEAST = 2
"""Width of a column, in nodes side by side."""
EVERYWHERE = "all tokens"
"""The one column of a circuit without roles."""

Into = Literal["query", "key", "value", "MLP", "logits"]
INTO: dict[str, Into] = {"q": "query", "k": "key", "v": "value", "mlp": "MLP", "logits": "logits"}


class Node(Part):
    """One part of the model at the tokens of one role."""

    part: str
    """embed, head.L.h, mlp.L or logits."""
    role: str
    layer: int
    """-1 for the embeddings, the number of blocks for the logits."""
    x: float
    """Its role's column, and where in it: 1 for each node beside another."""
    y: float
    """Its block; an MLP half a block higher."""


class Line(Part):
    """One edge of the circuit at one role. An edge into a key or value leads from the tokens that are read to those
    that read them."""

    edge: str
    role: str
    into: Into
    source: int
    """Number of its node."""
    destination: int
    effect: float
    """What the circuit's faithfulness loses without it."""
    low: float
    high: float
    rank: int
    """1 for the largest effect."""


class Drawing(Part):
    """A circuit's nodes and lines."""

    columns: list[str]
    centres: list[float]
    """Where the columns are."""
    width: float
    nodes: list[Node]
    lines: list[Line]


def drawn(certificate: Certificate, graph: Graph) -> Drawing:
    """The drawing of a certified circuit."""
    edges = _edges(certificate)
    roles = certificate.roles.names if certificate.roles else [EVERYWHERE]
    at: dict[str, list[str]] = {}  # by part, where it writes what is read
    for edge, role, *_ in edges:
        places = at.setdefault(edge.split("->")[0], [])
        if role not in places:
            places.append(role)
    at["logits"] = [_last_role(certificate) if certificate.roles else EVERYWHERE]
    columns = [role for role in roles if any(role in places for places in at.values())]
    numbers = {(part, role): i for i, (part, role) in enumerate((p, r) for p, places in at.items() for r in places)}
    lines = []
    for rank, (edge, role, effect, low, high) in enumerate(sorted(edges, key=lambda one: -abs(one[2])), 1):
        source, destination = edge.split("->")
        for part, place in _read_by(destination, role, at, graph):
            lines.append(Line(edge=edge, role=role, into=INTO[destination.split(".")[0]], rank=rank, effect=effect,
                              low=low, high=high, source=numbers[source, role], destination=numbers[part, place]))
    nodes, centres, width = _placed(list(numbers), columns, graph.n_layers)
    return Drawing(columns=columns, centres=centres, width=width, nodes=nodes, lines=lines)


def _last_role(certificate: Certificate) -> str:
    """The role of the last token: its own, where it is one of the words that play a part."""
    one = certificate.search.pairs[0]
    return next((name for name, (_, behind) in one.roles.items() if behind == len(one.clean)), LAST)


def _edges(certificate: Certificate) -> list[tuple[str, str, float, float, float]]:
    """Edge, role, effect and its interval."""
    if certificate.roles is None:
        return [(one.edge, EVERYWHERE, one.effect.mean, one.effect.low, one.effect.high) for one in certificate.edges]
    return [(one.edge, one.role, one.effect.mean, one.effect.low, one.effect.high) for one in certificate.roles.edges]


def _read_by(destination: str, role: str, at: dict[str, list[str]], graph: Graph) -> Iterator[tuple[str, str]]:
    """The nodes that a destination belongs to: at its own tokens, or, of keys and values, wherever their heads write
    what is read."""
    point, *numbers = destination.split(".")
    if point == "logits":
        yield "logits", at["logits"][0]
    elif point == "mlp":
        yield from ((destination, place) for place in at.get(destination, ()) if place == role)
    else:
        layer, unit = int(numbers[0]), int(numbers[1])
        for head in range(graph.n_heads):
            own = head if point == "q" else head * graph.n_keys // graph.n_heads
            name = f"head.{layer}.{head}"
            if own == unit:
                yield from ((name, place) for place in at.get(name, ()) if point != "q" or place == role)


def _placed(
    names: list[tuple[str, str]], columns: list[str], n_layers: int
) -> tuple[list[Node], list[float], float]:
    """Nodes of one column and height side by side; the columns' centres and the width of all."""
    def height(part: str) -> tuple[int, float]:
        kind, *numbers = part.split(".")
        if not numbers:
            return (-1, -1.0) if kind == "embed" else (n_layers, float(n_layers))
        layer = int(numbers[0])
        return layer, layer + (0.5 if kind == "mlp" else 0.0)

    beside: dict[tuple[str, float], list[str]] = {}
    for part, role in names:
        beside.setdefault((role, height(part)[1]), []).append(part)
    widths = [max(LEAST, *(len(mates) for (own, _), mates in beside.items() if own == role)) for role in columns]
    centres = [sum(widths[:i]) + width / 2 for i, width in enumerate(widths)]
    nodes = []
    for part, role in names:
        layer, y = height(part)
        mates = sorted(beside[role, y], key=lambda name: [int(n) for n in name.split(".")[1:]])
        x = centres[columns.index(role)] + mates.index(part) - (len(mates) - 1) / 2
        nodes.append(Node(part=part, role=role, layer=layer, x=x, y=y))
    return nodes, centres, float(sum(widths))


def as_dot(drawing: Drawing, title: str) -> str:
    """The drawing for Graphviz: ranks by block, lines coloured by sign and as wide as their effect."""
    most = max((abs(line.effect) for line in drawing.lines), default=1.0) or 1.0
    out = ["digraph circuit {", f"  label={_quoted(title)}; rankdir=BT; node [shape=box, fontname=Helvetica];"]
    for i, node in enumerate(drawing.nodes):
        out.append(f"  n{i} [label={_quoted(f'{node.part} @ {node.role}')}];")
    for y in sorted({node.y for node in drawing.nodes}):
        out.append("  {rank=same; " + " ".join(f"n{i};" for i, node in enumerate(drawing.nodes) if node.y == y) + "}")
    for line in drawing.lines:
        colour = "#1b6ca8" if line.effect >= 0 else "#d1495b"
        out.append(f"  n{line.source} -> n{line.destination} [color={_quoted(colour)}, "
                   f"penwidth={1 + 4 * abs(line.effect) / most:.2f}, label={_quoted(line.into)}, "
                   f"tooltip={_quoted(f'{line.edge} at {line.role}: {line.effect:+.3f}')}];")
    return "\n".join([*out, "}"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
