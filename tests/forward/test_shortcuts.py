"""What the fast mode leaves out: exactness of each shortcut, and that it is really taken."""

import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.forward import execute

CLEAN, OTHER = (10, 11, 12, 13, 14, 15, 16, 17), (10, 11, 12, 60, 14, 15, 16, 17)
READ = [pc.Readout.logits()]


@pytest.fixture
def batches(monkeypatch):
    """The layouts that are executed, as they are executed."""
    seen = []
    run = execute._run

    def watched(anatomy, layout, *rest):
        seen.append(layout)
        run(anatomy, layout, *rest)

    monkeypatch.setattr(execute, "_run", watched)
    return seen


def agree(model, plan):
    for fast, slow in zip(model.execute(plan), model.execute(plan, "single"), strict=True):
        assert torch.allclose(fast[0], slow[0], atol=1e-5)


def test_a_value_patched_into_itself_is_the_unedited_run(batches):
    """Before the first token that differs, the two prompts have the same values."""
    model = tiny_model("llama")
    sites = [f"resid.{layer}@{p}" for layer in range(3) for p in range(3)]
    plan = pc.Plan.of([(OTHER, [pc.Edit.swap(site, CLEAN)], READ) for site in sites])
    model.execute(plan)
    assert not any(layout.joined for layout in batches)
    agree(model, plan)


def test_a_patch_behind_an_earlier_edit_is_run():
    """The swap restores the clean value behind an edit in an earlier block, so it changes something."""
    model = tiny_model("llama")
    edits = [pc.Edit.zero("mlp.0"), pc.Edit.swap("resid.1@2", CLEAN)]
    plan = pc.Plan.of([(OTHER, edits, READ), (OTHER, edits[:1], READ)])
    agree(model, plan)
    both, one = model.execute(plan)
    assert not torch.allclose(both[0], one[0], atol=1e-4)


def test_another_unit_or_position_is_no_identity():
    model = tiny_model("llama")
    plan = pc.Plan.of([
        (OTHER, [pc.Edit.swap("head.1.0@2", CLEAN, "head.1.1@2")], READ),
        (OTHER, [pc.Edit.swap("resid.1@2", CLEAN, "resid.1@1")], READ),
        (OTHER, [pc.Edit.swap("resid.1@2", CLEAN, "resid.0@2")], READ),
        (OTHER, [], READ),
    ])
    agree(model, plan)
    *edited, clean = model.execute(plan)
    assert all(not torch.allclose(row[0], clean[0], atol=1e-4) for row in edited)


def test_unedited_rows_on_one_prompt_are_one_run(batches):
    model = tiny_model("llama")
    model.execute(pc.Plan.of([(CLEAN, [], [f"resid.{layer}"]) for layer in range(3)]))
    assert [len(layout.jobs) for layout in batches] == [1]


def test_rows_join_at_the_block_of_their_first_edit(batches):
    model = tiny_model("llama")
    agree(model, pc.Plan.of([(CLEAN, [pc.Edit.zero(f"mlp.{layer}")], READ) for layer in range(3)]))
    assert batches[0].joins == [0, 1, 2]
    assert [batches[0].rows_at(block) for block in range(3)] == [2, 3, 4]


def test_a_run_stops_at_the_deepest_site(monkeypatch):
    model = tiny_model("llama")
    reached = []
    handle = model.anatomy.blocks[2].register_forward_hook(lambda *_: reached.append(True))
    model.capture([CLEAN], ["resid.1"])
    handle.remove()
    assert not reached


def test_a_prefix_nobody_changes_is_computed_once(batches, monkeypatch):
    monkeypatch.setattr(execute, "PASS_COST", 1)
    model = tiny_model("llama")
    sites = [f"mlp.{layer}@{p}" for layer in range(3) for p in (5, 6, 7)]
    agree(model, pc.Plan.of([(CLEAN, [pc.Edit.zero(site)], READ) for site in sites]))
    assert batches[0].start > 0


def test_an_exhausted_memory_is_said_in_one_sentence(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(execute, "_run", full)
    with pytest.raises(pc.RunError, match="memory"):
        tiny_model("llama").run(CLEAN, read="resid.1@last")
