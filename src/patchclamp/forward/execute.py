"""Executing a plan: which rows run together, from which block and from which token on."""

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from patchclamp.errors import RunError
from patchclamp.forward.batch import Batch, KeyValues, Layout, compute_prefix, inputs_of
from patchclamp.forward.plan import Mode
from patchclamp.forward.prepare import Job
from patchclamp.forward.read import read_all
from patchclamp.model.anatomy import Anatomy

T = TypeVar("T")
Track = Callable[[Iterable[T], str, int | None], Iterator[T]]

TOKENS_PER_BATCH = 4096
"""Enough to keep two cores busy; more only needs memory."""
PASS_COST = 32
"""What starting another pass costs, in tokens: the weights are read from memory once more."""
PREFIX_TOKENS = 4 * TOKENS_PER_BATCH
"""Tokens whose keys and values rows that share a prefix may hold together: each block copies them to every row."""


@dataclass
class Group:
    """Jobs on one prompt that share their unedited run."""

    root: Job
    jobs: list[Job]
    start: int

    @property
    def suffix(self) -> int:
        """Tokens to compute."""
        return len(self.root.encoded) - self.start

    @property
    def rows(self) -> int:
        return 1 + len(self.jobs)

    @property
    def free(self) -> int:
        """Tokens at the beginning that no job reads or edits, so that nobody needs them computed in its own row."""
        jobs = [job for job in (self.root, *self.jobs) if job.reads or job.edits]
        return 0 if any(job.needs_pattern for job in jobs) else min(job.start for job in jobs)


def execute(
    anatomy: Anatomy, jobs: list[Job], mode: Mode, say: Callable[[int], str], track: Track | None = None
) -> None:
    """Run every job; its readouts' values are put in `job.results`. Raises RunError when memory runs out."""
    shared = _Shared(jobs) if mode != "single" else None
    todo = shared.todo if shared else jobs
    batches = [layout for side in rotary_sides(anatomy, todo) for layout in _batches(anatomy, side, mode)]
    prefixes = _Prefixes(anatomy, batches)
    steps = track(batches, "running", len(batches)) if track and len(batches) > 1 else batches
    for layout in steps:
        try:
            _run(anatomy, layout, prefixes, say)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise RunError("the run does not fit in memory: give fewer or shorter prompts at once") from error
    if shared:
        shared.hand_out()


class _Shared:
    """Unedited jobs on the same prompt are one run with all their readouts."""

    def __init__(self, jobs: list[Job]) -> None:
        clean: dict[tuple, list[Job]] = defaultdict(list)
        for job in jobs:
            if not job.edits:
                clean[job.encoded.ids].append(job)
        self.several = [same for same in clean.values() if len(same) > 1]
        self.merged = [Job(same[0].encoded, [], [r for j in same for r in j.reads]) for same in self.several]
        double = {id(j) for same in self.several for j in same}
        self.todo = [j for j in jobs if id(j) not in double] + self.merged

    def hand_out(self) -> None:
        """Give each job its own readouts' values."""
        for merged, same in zip(self.merged, self.several, strict=True):
            values = iter(merged.results)
            for job in same:
                job.results = [next(values) for _ in job.reads]


def run_layout(anatomy: Anatomy, layout: Layout) -> None:
    """Execute one batch as it is laid out; its jobs' readouts get their values."""
    _run(anatomy, layout, _Prefixes(anatomy, [layout]), str)


@torch.no_grad()
def _run(anatomy: Anatomy, layout: Layout, prefixes: "_Prefixes", say: Callable[[int], str]) -> None:
    batch = Batch(anatomy, layout, prefixes.of(layout), stop_block(layout.jobs))
    hidden = batch.run(inputs_of(anatomy, layout, accepts_positions(anatomy)))
    for job, results in zip(layout.jobs, read_all(anatomy, batch, hidden, say), strict=True):
        job.results = results


def accepts_positions(anatomy: Anatomy) -> bool:
    """BLOOM and MPT place tokens by distance alone and take no position ids."""
    return "position_ids" in inspect.signature(anatomy.base.forward).parameters


def stop_block(jobs: Sequence[Job]) -> int | None:
    """The last block anyone needs, or None if the logits are needed."""
    if any(r.needs_logits for j in jobs for r in j.reads):
        return None
    return max([r.layer for j in jobs for r in j.reads] + [e.layer for j in jobs for e in j.edits], default=0)


def _clean_copy(job: Job) -> Job:
    return Job(job.encoded, [], [])


def rotary_sides(anatomy: Anatomy, jobs: list[Job]) -> list[list[Job]]:
    """Jobs whose rotary embeddings turn by other angles must not share a pass: its longest prompt decides for all."""
    sides = [[j for j in jobs if anatomy.rope_side(len(j.encoded)) is beyond] for beyond in (False, True)]
    return [side for side in sides if side]


def _batches(anatomy: Anatomy, jobs: list[Job], mode: Mode) -> Iterator[Layout]:
    return _fast_batches(anatomy, jobs) if mode == "fast" else _plain_batches(jobs, mode)


def _plain_batches(jobs: list[Job], mode: Mode) -> Iterator[Layout]:
    """Every row runs whole: one at a time, or batched with rows of like length. A clean twin runs beside a row
    whose readout compares with it."""
    ordered = sorted(jobs, key=lambda j: len(j.encoded)) if mode == "batch" else jobs
    size = 0
    batch: list[list[Job]] = []
    for job in ordered:
        pair = [job, _clean_copy(job)] if job.needs_clean else [job]
        size += len(pair) * len(job.encoded)
        if batch and (mode == "single" or size > TOKENS_PER_BATCH):
            yield _whole(batch)
            batch, size = [], len(pair) * len(job.encoded)
        batch.append(pair)
    if batch:
        yield _whole(batch)


def _whole(pairs: list[list[Job]]) -> Layout:
    roots = [job for pair in pairs for job in pair]
    layout = Layout(roots)
    first = 0
    for pair in pairs:
        layout.base[first] = first + len(pair) - 1
        first += len(pair)
    return layout


def _fast_batches(anatomy: Anatomy, jobs: list[Job]) -> Iterator[Layout]:
    if not anatomy.family.rows_may_join:
        yield from _plain_batches(jobs, "batch")
        return
    groups = []
    for family in _families(list(_groups(anatomy, jobs))):
        if len(family) > 1 and may_share(anatomy, [group.root for group in family]):
            yield from _alike(family)
        else:
            groups += family
    groups.sort(key=lambda g: (g.suffix, len(g.root.encoded)))
    batch: list[Group] = []
    for group in groups:
        rows = sum(g.rows for g in batch) + group.rows
        if batch and (rows * group.suffix > TOKENS_PER_BATCH or not _mixes(batch[-1], group)):
            yield _merge(anatomy, batch)
            batch = []
        batch.append(group)
    if batch:
        yield _merge(anatomy, batch)


def _families(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups whose prompts begin alike, where nothing is read or edited: prompts after the same examples, say. A group
    like no other is a family of its own, so is each of several on one prompt, which were cut to compute least, and one
    that would compute more from the shared beginning on than from its own."""
    on_prompt = Counter(group.root.encoded.ids for group in groups)
    yield from ([group] for group in groups if on_prompt[group.root.encoded.ids] > 1)
    family: list[Group] = []
    shared = 0
    for group in sorted((g for g in groups if on_prompt[g.root.encoded.ids] == 1), key=lambda g: g.root.encoded.ids):
        ids = group.root.encoded.ids
        common = min(shared, group.free, _common(family[0].root.encoded.ids, ids)) if family else 0
        if common > PASS_COST and all(_gains(one, common) for one in (*family, group)):
            family.append(group)
            shared = common
            continue
        if family:
            yield family
        family, shared = [group], group.free
    if family:
        yield family


def _gains(group: Group, start: int) -> bool:
    """Whether a group computes less than half of its prompts' tokens if it begins at `start`, not more than it does by
    itself, and fits into a batch."""
    n = len(group.root.encoded)
    return 2 * start > n and group.rows * (n - start) <= min(TOKENS_PER_BATCH, group.start + group.rows * group.suffix
                                                             ) and group.rows * n <= PREFIX_TOKENS


def may_share(anatomy: Anatomy, jobs: Sequence[Job]) -> bool:
    """Whether jobs that begin with the same tokens may go on from one row's keys and values. An attention pattern is as
    wide as its own prompt; and a prefix alone may be within a window that the whole prompt exceeds: other angles."""
    return anatomy.family.rows_may_join and not any(
        job.needs_pattern or anatomy.rope_side(len(job.encoded)) for job in jobs)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts begin alike with."""
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


def _alike(family: list[Group]) -> Iterator[Layout]:
    """Batches of groups that begin alike, from the first token on that one of them reads, edits or has alone."""
    ids = family[0].root.encoded.ids
    start = min(min(g.free, _common(ids, g.root.encoded.ids)) for g in family)
    batch: list[Group] = []
    for group in sorted(family, key=lambda g: len(g.root.encoded)):
        rows, longest = sum(g.rows for g in batch) + group.rows, len(group.root.encoded)
        if batch and (rows * (longest - start) > TOKENS_PER_BATCH or rows * longest > PREFIX_TOKENS):
            yield _layout(batch, start, alike=True)
            batch = []
        batch.append(group)
    yield _layout(batch, start, alike=True)


def _layout(groups: list[Group], start: int, alike: bool = False) -> Layout:
    base = [i for i, g in enumerate(groups) for _ in g.jobs]
    return Layout([g.root for g in groups], [j for g in groups for j in g.jobs], base, start, alike)


def _mixes(first: Group, second: Group) -> bool:
    """Groups share a batch if none has to compute much more than on its own."""
    return second.suffix <= first.suffix * 1.25 + 8 and not (
        first.root.encoded == second.root.encoded and second.rows > 1 and first.rows > 1
        and second.suffix != first.suffix
    )


def _merge(anatomy: Anatomy, groups: list[Group]) -> Layout:
    longest = max(len(g.root.encoded) for g in groups)
    start = longest - max(g.suffix for g in groups)
    joined = sum(len(g.jobs) for g in groups)
    pays = joined and start * joined > PASS_COST
    # a prefix on its own is shorter, maybe within the window that the whole prompt exceeds: other angles
    return _layout(groups, start if pays and not anatomy.rope_side(longest) else 0)


def _groups(anatomy: Anatomy, jobs: list[Job]) -> Iterator[Group]:
    """Jobs by prompt; a prompt's jobs split by their first token where that saves work."""
    by_prompt: dict[tuple, list[Job]] = defaultdict(list)
    for job in jobs:
        by_prompt[job.encoded.ids].append(job)
    for same in by_prompt.values():
        clean = [j for j in same if not j.edits]
        edited = [j for j in same if j.edits]
        if not edited:
            yield Group(clean[0], [], 0)
        elif len(edited) == 1 and not clean and not edited[0].needs_clean:
            yield Group(edited[0], [], 0)
        else:
            yield from _split(anatomy, clean, edited)


def _split(anatomy: Anatomy, clean: list[Job], edited: list[Job]) -> Iterator[Group]:
    """Cut the jobs, ordered by first token, into groups so that the sum of rows × tokens is smallest."""
    ordered = sorted(edited, key=lambda j: j.start, reverse=True)
    n = len(ordered[0].encoded)
    starts = sorted({j.start for j in ordered}, reverse=True)
    weight = {s: sum(1 - min(j.join, anatomy.n_layers - 1) / anatomy.n_layers for j in ordered if j.start == s)
              for s in starts}
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(starts) + 1):
        cost = n - starts[end - 1]
        options = []
        for begin in range(end):
            rows = 1 + sum(weight[s] for s in starts[begin:end])
            options.append((best[begin][0] + PASS_COST + rows * cost, begin))
        best.append(min(options))
    cuts, end = [], len(starts)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    extra = list(clean)
    for begin, end in reversed(cuts):
        chosen = set(starts[begin:end])
        members = [j for j in ordered if j.start in chosen]
        limit = max(1, TOKENS_PER_BATCH // (n - starts[end - 1]))
        for first in range(0, len(members), limit):
            fits = extra and extra[0].start >= starts[end - 1]
            root = extra.pop(0) if fits else _clean_copy(members[0])
            yield Group(root, members[first : first + limit], starts[end - 1])
    for job in extra:
        yield Group(job, [], 0)


class _Prefixes:
    """Keys and values of unedited prefixes, each computed once at the greatest length that any batch needs."""

    def __init__(self, anatomy: Anatomy, batches: list[Layout]) -> None:
        self.anatomy = anatomy
        self.need: dict[tuple, int] = defaultdict(int)
        for layout in batches:
            key = self._key(layout)
            self.need[key] = max(self.need[key], layout.start)
        self.held: tuple[tuple, KeyValues] | None = None

    @staticmethod
    def _key(layout: Layout) -> tuple:
        return tuple(job.encoded.ids[: layout.start] if layout.alike else job.encoded.ids
                     for job in layout.roots[: 1 if layout.alike else None])

    def of(self, layout: Layout) -> KeyValues | None:
        """The prefix of a batch, or None if it starts at the first token."""
        if not layout.start:
            return None
        key = self._key(layout)
        if self.held is None or self.held[0] != key:
            self.held = (key, self._compute(layout, self.need[key]))
        return [(k[..., : layout.start, :], v[..., : layout.start, :]) for k, v in self.held[1]]

    def _compute(self, layout: Layout, length: int) -> KeyValues:
        with torch.no_grad():
            roots = layout.roots[:1] if layout.alike else layout.roots
            whole = inputs_of(self.anatomy, Layout(roots), accepts_positions(self.anatomy))
            return compute_prefix(self.anatomy, whole, length)


def prefix_of(anatomy: Anatomy, layout: Layout) -> KeyValues | None:
    """The keys and values that a batch goes on from, or None if it starts at the first token."""
    return _Prefixes(anatomy, [layout]).of(layout)
