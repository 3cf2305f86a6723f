"""Units as a reader sees them: statistics, and the windows in which they are most and least active, as text.

The windows with the greatest activations show only the extreme end of a unit (Bolukbasi et al. 2021, arXiv 2104.07143),
so places drawn from each tenth of the activations above 0 stand beside them.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from patchclamp.corpus.found import Found, Window, check_unit, read_windows
from patchclamp.corpus.sketch import EDGES
from patchclamp.corpus.table import QUANTILES, Index, Peak, Unit
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.controls import count_groups, random_units
from patchclamp.evidence.method import Part, Progress, Silent
from patchclamp.evidence.passage import Passage
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Model, Site

NOWHERE = math.nan


class UnitExamples(Part):
    """One neuron."""

    site: str
    constant: bool
    """Whether it had one value throughout: a dead neuron. There are then no examples."""
    tokens: int
    """How many tokens the statistics are over."""
    mean: float
    sd: float
    active: float
    """Share of tokens with an activation above 0."""
    low: float
    """The least activation."""
    high: float
    """The greatest."""
    quantiles: dict[str, float]
    """Of the activation, estimated from places drawn from the whole corpus."""
    edges: list[float]
    """Between the histogram's bins; the first and the last are open."""
    histogram: list[int]
    """Tokens in each bin, exact."""
    top: list[Window]
    """Windows with the greatest activation, greatest first, around it."""
    bottom: list[Window]
    """Windows with the least activation, least first."""
    tenths: list[Window]
    """Places from each tenth of the activations above 0, greatest first."""
    common_token: str
    """The token at which most top windows peak."""
    common_share: float
    """The share of top windows (all that were kept) that do."""
    random_share: Interval
    """The same of random neurons of the block: mean, and the range in which one more would fall."""


class Showing(NamedTuple):
    """How much of each unit is shown."""

    top: int
    """Windows of either sign."""
    tenth: int
    """Places from each tenth of the activations above 0."""
    context: int
    """Tokens of a window."""
    controls: int
    """Random units whose most common token stands beside."""
    seed: int


def examined(
    model: Model, sites: Sequence[Site], read: Callable[[Mapping[Site, Sequence[int]]], Found], show: Showing,
    progress: Progress,
) -> tuple[list[UnitExamples], str, Verdict | None]:
    """Units with their windows, where these come from, and the verdict on the first: do its top windows peak at one
    and the same token more than those of random units of its site? `read` gives statistics of the units by site."""
    asked = [check_unit(model, site) for site in sites]
    controls = {whole: others_of(model, whole, asked, show.controls, show.seed) for whole, _ in asked}
    found = read({whole: [unit for other, unit in asked if other == whole] + controls[whole] for whole, _ in asked})
    units = {(whole, unit): found.units(whole, [unit])[0] for whole, unit in asked}
    windows = shown_windows(model, found, units, show.top, show.tenth, show.context, progress)
    shown, verdict = [], None
    for number, (site, (whole, unit)) in enumerate(zip(sites, asked, strict=True)):
        own = units[whole, unit]
        token, hits = common_token(found, own)
        others = [float(np.mean(common_token(found, other)[1])) for other in found.units(whole, controls[whole])
                  if not other.constant]
        random_share = control_range(others, share=True) if len(others) > 1 else NO_INTERVAL
        shown.append(as_shown(model, site, own, windows[whole, unit], token, hits, random_share))
        if number == 0 and others and not own.constant:
            verdict = _verdict(site, shown[0], hits, others, show.seed)
    return shown, found.where, verdict


def _verdict(site: Site, shown: UnitExamples, hits: list[float], others: list[float], seed: int) -> Verdict:
    return judge(
        hits, np.array(others), direction="greater", against="distribution", share=True, seed=seed,
        claim=f"the windows in which {site} is most active peak at one token, {shown.common_token!r}, more than those "
              f"of random {site.point}s of block {site.layer} do at theirs (share of {len(hits)} windows)",
    )


def others_of(model: Model, whole: Site, asked: Sequence[tuple[Site, int]], count: int, seed: int) -> list[int]:
    """`count` random units of a site, or as many as there are, that were not asked for."""
    first, *others = [(whole.layer or 0, unit) for other, unit in asked if other == whole]
    available = model.anatomy.n_units(whole.place, whole.layer or 0)
    n = min(count, count_groups([first], available, others))
    return [group[0][1] for group in random_units([first], available, n, seed, others)] if n else []


def shown_windows(
    model: Model, found: Found, units: dict[tuple[Site, int], Unit], top: int, tenth: int, context: int,
    progress: Progress,
) -> dict[tuple[Site, int], tuple[list[Window], list[Window], list[Window]]]:
    """For every unit `top` windows of the greatest activation, as many of the least, and `tenth` places of each tenth
    of those above 0, all run in one plan; none for constant units, and none of the least where that is 0."""
    chosen = {key: ([], [], []) if unit.constant else (unit.top[:top], unit.bottom[:top] if unit.low < 0 else [],
                                                       _of_tenths(unit, tenth)) for key, unit in units.items()}
    asked = [(replace(key[0], unit=key[1]), peak) for key, three in chosen.items() for peaks in three for peak in peaks]
    read = iter(read_windows(model, found, asked, context, progress))
    out = {key: tuple([next(read) for _ in peaks] for peaks in three) for key, three in chosen.items()}
    for key, (_, _, tenths) in out.items():
        _mark(tenths, units[key])
    return out  # type: ignore[return-value]


def _of_tenths(unit: Unit, count: int) -> list[Peak]:
    """`count` places of each tenth, evenly spread, the greatest first."""
    out = []
    for tenth in range(10, 0, -1):
        own = [peak for number, peak in unit.tenths if number == tenth]
        picked = [own[(2 * i + 1) * len(own) // (2 * count)] for i in range(min(count, len(own)))]
        out += list(dict.fromkeys(reversed(picked)))
    return out


def _mark(windows: list[Window], unit: Unit) -> None:
    tenth_of = {(peak.window, peak.position): tenth for tenth, peak in unit.tenths}
    for window in windows:
        window.tenth = tenth_of[window.window, window.position]


def common_token(found: Found, unit: Unit) -> tuple[int | None, list[float]]:
    """The commonest token among those at which the top windows peak, and for each window whether it does there."""
    if unit.constant:
        return None, [0.0]
    numbers = sorted({peak.window for peak in unit.top})
    ids = dict(zip(numbers, found.windows(numbers), strict=True))
    tokens = [ids[peak.window][peak.position] for peak in unit.top]
    token = Counter(tokens).most_common(1)[0][0]
    return token, [float(one == token) for one in tokens]


def as_shown(
    model: Model, site: Site, unit: Unit, windows: tuple[list[Window], list[Window], list[Window]], token: int | None,
    hits: list[float], random_share: Interval,
) -> UnitExamples:
    top, bottom, tenths = windows
    return UnitExamples(
        site=str(site), constant=unit.constant, tokens=unit.tokens, mean=unit.mean, sd=unit.sd, active=unit.active,
        low=unit.low, high=unit.high,
        quantiles={f"{q:.0%}": value for q, value in zip(QUANTILES, unit.quantiles, strict=True) if value == value},
        edges=list(EDGES), histogram=unit.histogram, top=top, bottom=bottom, tenths=tenths,
        common_token="" if token is None else model.say(token), common_share=float(np.mean(hits)),
        random_share=random_share,
    )


def passages_of(neuron: UnitExamples) -> list[Passage]:
    if neuron.constant:
        return [Passage(f"{neuron.site}: constant ({neuron.high:g} at all {neuron.tokens} tokens); there is nothing to "
                        "show", "", (), (), 0.0)]
    most = max(abs(neuron.low), abs(neuron.high))
    groups = ((neuron.top, "most active"), (neuron.bottom, "least active"),
              (neuron.tenths, "from each tenth of the activations above 0"))
    return [
        Passage(f"{neuron.site}, {title}", (f"{w.tenth} " if w.tenth else "") + f"{w.value:.3g}", tuple(w.tokens),
                tuple(w.activations), most, w.at)
        for windows, title in groups for w in windows
    ]


@dataclass(frozen=True)
class UnitTexts:
    """The material for an explanation of one neuron, or for scoring one."""

    unit: Unit
    """Its statistics."""
    top: list[Window]
    """Windows with the greatest activation, greatest first."""
    tenths: list[Window]
    """Places drawn from each tenth of the activations above 0, greatest first."""
    random: list[Window]
    """Places drawn from the whole corpus, whatever the neuron does there."""


def texts_of(
    model: Model, site: Site | str, found: Found, half: Literal["shown", "held out"] | None = None, *, top: int = 10,
    tenth: int = 1, random_windows: int = 10, context: int = 24, seed: int = 0, progress: Progress | None = None,
) -> UnitTexts:
    """Windows of one neuron, each with its tokens as text and the activation at every one.

    `found`: an `Index(folder)`, or `Scanned(model, {Site("neuron", 3): [unit]}, corpus, Silent())`. `half`: only
    windows with an even ("shown") or an odd number ("held out"), so that an explanation made from one half is scored on
    the other; None for all. At most as many windows come as the half holds. Raises SiteError for what is no single
    neuron or feature, SpecError if the index is another model's, or if the unit is constant.
    """
    where = Site.parse(site)
    whole, number = check_unit(model, where)
    if isinstance(found, Index):
        found.check_model(model)
    unit = found.units(whole, [number])[0]
    if unit.constant:
        raise SpecError(f"{where} is constant over {found.where} ({unit.high:g} at all {unit.tokens} tokens); nothing "
                        "tells its windows apart")

    def is_ours(window: int) -> bool:
        return half is None or window % 2 == (half == "held out")

    tops = [peak for peak in unit.top if is_ours(peak.window)][:top]
    own = [(t, peak) for t, peak in unit.tenths if is_ours(peak.window)]
    tenths = [peak for n in range(10, 0, -1) for peak in [p for t, p in own if t == n][:tenth]]
    places = [divmod(place, found.length) for place in found.sample if is_ours(place // found.length)]
    drawn = random.Random(seed).sample(places, min(random_windows, len(places)))
    chosen = [*tops, *tenths, *(Peak(NOWHERE, window, position) for window, position in drawn)]
    read = read_windows(model, found, [(where, peak) for peak in chosen], context, progress or Silent())
    _mark(read[len(tops) : len(tops) + len(tenths)], unit)
    return UnitTexts(unit, read[: len(tops)], read[len(tops) : len(tops) + len(tenths)],
                       read[len(tops) + len(tenths) :])
