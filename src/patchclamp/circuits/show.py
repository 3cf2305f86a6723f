"""The picture of a certified circuit: where its parts act, and where its heads look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from patchclamp.circuits.certificate import Certificate
from patchclamp.circuits.drawing import Drawing, as_dot, drawn
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import ReadyPair, role_names
from patchclamp.errors import SpecError, StoreError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.forward import Model, Plan, Readout
from patchclamp.model.cache import write_atomically
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class ShowSpec(Spec):
    """Which circuit."""

    certificate: Annotated[DataFile, Positional()]
    """A certificate's file, or the folder that circuits find wrote it in."""
    shown: int | None = Field(None, ge=1)
    """How many edges are shown at first, those of the largest effect; all if not given."""
    dot: Path | None = None
    """Also write the picture for Graphviz to this file."""


class Look(Part):
    """Where one head looks from the tokens of one role."""

    head: str
    reader: str
    """Role of the tokens that read; of several tokens the last."""
    role: str
    share: float
    """Attention to the tokens of this role, a mean over prompts."""


class Picture(Result):
    """A circuit drawn."""

    task: str
    edges_total: int
    shown: int
    faithfulness: float
    drawing: Drawing
    looks: list[Look]
    dot: str | None
    """Where the picture for Graphviz was written."""

    def table(self) -> pandas.DataFrame:
        """One row a line, that of the largest effect first."""
        import pandas

        nodes = self.drawing.nodes
        return pandas.DataFrame([
            {"edge": line.edge, "at": line.role, "read at": nodes[line.destination].role,
             "loss without it": line.effect, "low": line.low, "high": line.high} for line in self.drawing.lines])

    def chart(self) -> altair.TopLevelMixin:
        """Roles across and blocks upwards; a click on a part shows its edges and where it looks."""
        from patchclamp.charts.circuit_picture import picture_chart

        return picture_chart(self)


@method("circuits.show", spec=ShowSpec, result=Picture)
def show_circuit(model: Model, spec: ShowSpec, progress: Progress) -> Outcome:
    """Draw a certified circuit: tokens' roles across, blocks upwards, edges by sign and effect.

    A picture claims nothing that its certificate does not, so there is no verdict.
    """
    certificate = Certificate.load(spec.certificate)
    certificate.require(model)
    if spec.dot is not None and not spec.dot.absolute().parent.is_dir():
        raise SpecError(f"--dot {spec.dot}: there is no folder {spec.dot.absolute().parent}")
    if spec.dot is not None and spec.dot.is_dir():
        raise SpecError(f"--dot {spec.dot} is a folder; give a file in it")
    graph = Graph.of(model.anatomy, certificate.grouped)
    for part in (certificate, certificate.roles):
        if part is not None:
            part.kept(graph)  # says what is no edge of this model
    drawing = drawn(certificate, graph)
    if not drawing.lines:
        raise SpecError(f"of the {len(certificate.edges)} edges of the certificate none leads to the logits: there is "
                        "nothing to draw")
    if spec.dot is not None:
        try:
            write_atomically(spec.dot, as_dot(drawing, f"{certificate.task}, {certificate.model}"))
        except OSError as error:
            raise StoreError(f"cannot write {spec.dot}: {error}") from error
    pairs = certificate.ready(model, certificate.search)
    return Picture(
        task=certificate.task, edges_total=certificate.edges_total, drawing=drawing,
        shown=min(spec.shown or len(drawing.lines), max(line.rank for line in drawing.lines)),
        faithfulness=certificate.search.faithfulness.mean, looks=_looks(model, drawing, pairs),
        dot=str(spec.dot) if spec.dot else None), None


def _looks(model: Model, drawing: Drawing, pairs: list[ReadyPair]) -> list[Look]:
    """Where the heads of a drawing look from where they stand."""
    names = role_names(pairs)
    heads = [node for node in drawing.nodes if node.part.startswith("head.") and node.role in names]
    layers = sorted({node.layer for node in heads})
    if not layers:
        return []
    values = model.execute(Plan.of([(pair.clean, [], [Readout.value(f"pattern.{layer}") for layer in layers])
                                    for pair in pairs]))
    found = []
    for node in heads:
        head, each = int(node.part.split(".")[2]), []
        for pair, patterns in zip(pairs, values, strict=True):
            number = np.array(pair.numbered(names))
            readers = np.flatnonzero(number == names.index(node.role))
            if len(readers):
                row_S = patterns[layers.index(node.layer)][head, readers[-1]].numpy()
                each.append([float(row_S[number == i].sum()) for i in range(len(names))])
        if each:
            found += [Look(head=node.part, reader=node.role, role=role, share=float(share))
                      for role, share in zip(names, np.mean(each, 0), strict=True)]
    return found
