"""Taking the tour: run every stop, keep its record, write the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from patchclamp.errors import SpecError
from patchclamp.evidence.method import Progress, get_method
from patchclamp.evidence.page import Section, report
from patchclamp.evidence.record import Record, write_whole
from patchclamp.tour.stops import STOPS, Stop

TITLE = "What happens inside a language model while it answers?"
INTRODUCTION = (
    "Each section asks one question of a model on this machine, compares what it finds with a control and says "
    "what follows. A claim may fail on models as small as these; the verdict then says so. Every number can "
    "be had again: the records lie beside this page."
)


def take(
    out: Path,
    progress: Progress,
    say: Callable[[str], None],
    stops: Sequence[Stop] = STOPS,
    only: Sequence[int] = (),
) -> Path:
    """Run the stops and write `report.html` and `records/` into the folder `out`; returns the report's path. Of stops
    that are not among `only` the records that are there already go into the report.

    Each record is written as soon as its stop is done, the report at the end. `say` is told each stop as it begins.
    SpecError for a number that no stop has.
    """
    if wrong := [number for number in only if not 1 <= number <= len(stops)]:
        raise SpecError(f"the tour has stops 1 to {len(stops)}, and no {wrong[0]}")
    model_of = cache(lambda load, ref: load(ref))
    sections = []
    for number, stop in enumerate(stops, 1):
        path = out / "records" / f"{number:02}-{stop.method}.json"
        if only and number not in only:
            if path.is_file():
                sections.append(Section(stop.heading, stop.question, Record.from_json(path.read_bytes())))
            continue
        say(f"{number} of {len(stops)}: {stop.heading} ({stop.model})")
        method, ref = get_method(stop.method), stop.model
        if stop.prepare is not None:
            stop.prepare(out, progress)
            ref = str(out / stop.model)
        model = model_of(method.load, ref)
        fields = stop.fields(model, progress, out) if callable(stop.fields) else stop.fields
        record = method(model, progress=progress, **fields)
        record.save(path)
        sections.append(Section(stop.heading, stop.question, record))
        if record.verdict:
            say(f"   {record.verdict.outcome}: {record.verdict.reason}")
    path = out / "report.html"
    write_whole(path, report(TITLE, INTRODUCTION, sections).encode())
    return path
