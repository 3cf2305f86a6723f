"""Proof that the engine's shortcuts are exact on an architecture that no table names.

Padding, rows that join between blocks, and a prefix from the key/value cache rest on how an architecture builds masks,
positions and caches. For the families with a table the tests prove that. For one resolved by inspection it is
measured here, on load, against the same runs one row at a time.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from patchclamp.errors import PatchclampError, UnsupportedModel
from patchclamp.forward.batch import Layout
from patchclamp.forward.edit import Edit
from patchclamp.forward.execute import run_layout
from patchclamp.forward.prepare import Job, ReadyEdit, ReadyRead, change_of
from patchclamp.forward.readout import Readout
from patchclamp.model.anatomy import Anatomy, family_of
from patchclamp.model.tokens import Encoded

LONG, SHORT, START = 9, 6, 5
"""Tokens of the two prompts, and of the cached prefix."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Relative to the largest logit: other batch shapes add in another order, through all blocks."""
HALF_TOLERANCE = 0.1
MISFITS = (PatchclampError, AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)


def prove_shortcuts(anatomy: Anatomy) -> None:
    """Run an inspected architecture's rows together and alone; where they differ, rows no longer join.

    Raises UnsupportedModel if prompts of different lengths cannot even be padded into one batch.
    """
    if family_of(anatomy.hf) is not None:
        return
    try:
        alone = [_logits(anatomy, Layout([job]))[0] for job in _jobs(anatomy)]
    except MISFITS as error:
        raise UnsupportedModel(f"{type(anatomy.hf).__name__} (addressed as {anatomy.family.name}) cannot be run by the "
                               f"engine, so it is refused: {type(error).__name__}: {error}") from error
    if not _agree(anatomy, Layout(_jobs(anatomy)), alone):
        raise UnsupportedModel(
            f"{type(anatomy.hf).__name__} (addressed as {anatomy.family.name}) gives other numbers to a prompt that is "
            "padded beside a longer one, so it is refused"
        )
    if anatomy.family.rows_may_join and not _may_join(anatomy, alone):
        anatomy.family = replace(anatomy.family, rows_may_join=False)


def _may_join(anatomy: Anatomy, alone: Sequence[torch.Tensor]) -> bool:
    """Rows that join their roots, without and with a prefix from the cache, and rows that begin with one prefix."""
    long, *edited, short = _jobs(anatomy)
    joined = Layout([long, short], edited, [0] * len(edited))
    # jobs are ordered roots first, then by the block they join at, which is the order they were made in
    expected = [alone[0], alone[-1], *alone[1:-1]]
    if not _agree(anatomy, joined, expected):
        return False
    long, *edited, _ = _jobs(anatomy)
    if not _agree(anatomy, Layout([long], edited, [0] * len(edited), START), alone[:-1]):
        return False
    long, *edited, _ = _jobs(anatomy)
    shorter = Job(Encoded(long.encoded.ids[:SHORT], SHORT, tokenizer=None), [],  # type: ignore[arg-type]
                  [ReadyRead(Readout.logits(), [SHORT - 1])])
    expected = [alone[0], *_logits(anatomy, Layout([shorter])), *alone[1:-1]]
    return _agree(anatomy, Layout([long, shorter], edited, [0] * len(edited), START, alike=True), expected)


def _jobs(anatomy: Anatomy) -> list[Job]:
    """An unedited long prompt, that prompt with an MLP scaled near its end, block by block, and a shorter prompt."""
    first, last = 0, anatomy.n_layers - 1
    blocks = sorted({first, (first + last) // 2, last})
    return [_job(anatomy, LONG, None), *(_job(anatomy, LONG, block) for block in blocks), _job(anatomy, SHORT, None)]


def _job(anatomy: Anatomy, length: int, block: int | None) -> Job:
    limit = min(anatomy.n_vocab, anatomy.n_embeddings, 997)
    ids = tuple((i * 131 + 17 * length) % limit for i in range(length))
    encoded = Encoded(ids, length, tokenizer=None)  # type: ignore[arg-type]
    read = ReadyRead(Readout.logits(), [length - 1])
    if block is None:
        return Job(encoded, [], [read])
    edit = Edit.scale(f"mlp.{block}@{length - 2}", -2.0)
    assert edit.value is not None
    value = edit.value.tensor.to(anatomy.unembedding.weight)
    return Job(encoded, [ReadyEdit(edit, encoded, [length - 2], change_of(edit, value, None, value.dtype))], [read])


def _logits(anatomy: Anatomy, layout: Layout) -> list[torch.Tensor]:
    run_layout(anatomy, layout)
    return [job.results[0] for job in layout.jobs]


def _agree(anatomy: Anatomy, layout: Layout, expected: Sequence[torch.Tensor]) -> bool:
    try:
        got = _logits(anatomy, layout)
    except torch.OutOfMemoryError:
        raise
    except MISFITS:
        return False
    scale = max(float(e.abs().max()) for e in expected)
    allowed = TOLERANCE.get(expected[0].dtype, HALF_TOLERANCE) * scale
    return all(float((g.double() - e.double()).abs().max()) <= allowed for g, e in zip(got, expected, strict=True))
