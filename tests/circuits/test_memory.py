"""Work in parts, when memory is short."""

from itertools import chain

import pytest
import torch
from cut import same, tiny_runs

from patchclamp.circuits.memory import Parts
from patchclamp.errors import RunError


def test_parts_that_do_not_fit_are_halved_and_it_is_said():
    sizes = []

    def work(part):
        if part.stop - part.start > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate much")
        sizes.append(part.stop - part.start)
        return list(range(10))[part]

    parts = Parts()
    with pytest.warns(UserWarning, match="8 runs at once do not fit in memory: going on with 4"):
        assert list(chain(*parts.run(10, 8, work))) == list(range(10))
    assert sizes == [2, 2, 2, 2, 2]
    sizes.clear()
    assert list(chain(*parts.run(4, 8, work))) == [0, 1, 2, 3]
    assert sizes == [2, 2]


def test_one_thing_that_does_not_fit_is_an_error():
    def work(part):
        raise MemoryError

    with pytest.warns(UserWarning), pytest.raises(RunError, match="one run alone does not fit in memory"):
        Parts().run(2, 2, work)


def test_other_errors_stay_what_they_are():
    def work(part):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Parts().run(2, 2, work)


def test_a_subgraph_run_with_little_memory_is_the_same(monkeypatch):
    runs = tiny_runs("llama")
    kept = torch.stack([runs.graph.edges & (torch.rand(runs.graph.edges.shape) < share) for share in (0.3, 0.6, 0.9)])
    usual = runs.subgraphs(kept)
    whole = type(runs.groups[0])._measured

    def short(self, kept_MNS, known, computed, part):
        if part.stop - part.start > 1:
            raise MemoryError
        return whole(self, kept_MNS, known, computed, part)

    monkeypatch.setattr(type(runs.groups[0]), "_measured", short)
    with pytest.warns(UserWarning, match="do not fit in memory"):
        assert same(runs.subgraphs(kept), usual)
