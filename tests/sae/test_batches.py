"""The order of batches depends on a seed alone, and every row comes once a pass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.errors import SpecError
from patchclamp.sae.batches import Batches

COUNTS = {0: 13, 1: 8, 2: 21, 3: 5, 4: 17}


def read(shard):
    """Rows whose number says where they are from, of two sites."""
    rows = torch.arange(COUNTS[shard], dtype=torch.float32)[:, None] + 1000 * shard
    return rows, -rows


def all_rows():
    return {1000 * shard + n for shard, count in COUNTS.items() for n in range(count)}


@pytest.mark.parametrize("buffer", [1, 2, 9])
@pytest.mark.parametrize("batch", [1, 4, 10])
def test_a_pass_has_every_row_once_but_those_that_fill_no_batch(batch, buffer):
    batches = Batches(COUNTS, batch, buffer, seed=0)
    seen = [x for rows, _ in batches.run(read, 0, batches.a_pass) for x in rows[:, 0].tolist()]

    assert len(seen) == len(set(seen)) == batches.a_pass * batch
    assert set(seen) <= all_rows()
    assert len(all_rows()) - len(seen) < batch


def test_rows_of_both_sites_stay_together():
    for x, y in Batches(COUNTS, 6, 2, seed=0).run(read, 0, 20):
        assert torch.equal(x, -y)


@given(first=st.integers(0, 25), more=st.integers(1, 15), batch=st.integers(1, 20), buffer=st.integers(1, 6),
       seed=st.integers(0, 5))
def test_going_on_later_gives_what_would_have_come(first, more, batch, buffer, seed):
    batches = Batches(COUNTS, batch, buffer, seed)
    whole = [x for x, _ in batches.run(read, 0, first + more)]
    later = [x for x, _ in batches.run(read, first, first + more)]

    assert len(later) == more
    assert all(torch.equal(one, other) for one, other in zip(whole[first:], later, strict=True))


def test_shards_that_are_not_needed_are_not_read():
    batches = Batches(COUNTS, 4, 1, seed=0)
    asked = []
    list(batches.run(lambda shard: asked.append(shard) or read(shard), batches.a_pass - 1, batches.a_pass))

    assert len(asked) < len(COUNTS)


def test_passes_and_seeds_are_mixed_differently():
    batches = Batches(COUNTS, 8, 2, seed=0)
    rows = [x[:, 0].tolist() for x, _ in batches.run(read, 0, 2 * batches.a_pass)]
    other = [x[:, 0].tolist() for x, _ in Batches(COUNTS, 8, 2, seed=1).run(read, 0, batches.a_pass)]

    assert rows[: batches.a_pass] != rows[batches.a_pass :]
    assert rows[: batches.a_pass] != other
    assert any(a > b for a, b in zip(rows[0], rows[0][1:], strict=False))
    assert len({int(x) // 1000 for x in rows[0]}) > 1


def test_fewer_rows_than_a_batch_are_refused():
    with pytest.raises(SpecError, match="64 rows to train on, fewer than one batch of 65"):
        Batches(COUNTS, 65, 2, seed=0)
