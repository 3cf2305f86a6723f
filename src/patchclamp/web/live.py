"""Answers streamed word by word, while a slider moves: what `vectors.apply` and `forward.generate` store, seen as it
comes.

The edits are those of the methods themselves; nothing is stored, and the page offers to ask the method for the record.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from patchclamp.errors import PatchclampError

if TYPE_CHECKING:
    from patchclamp.forward import Edit, Model
    from patchclamp.web.question import Question

STREAMED = ("vectors.apply", "forward.generate")
"""Methods that write answers."""
MOST_TOKENS = 400
"""Of an answer that is streamed."""
Piece = dict[str, Any]
"""`{"condition", "text"}`; `{"condition", "end": true}` behind the last of a condition; `{"error"}`; `{"ended"}` if
another stream of the same client took its place."""


def conditions_of(question: Question, model: Model) -> Iterator[tuple[str, Any, list[Edit]]]:
    """Under what the prompt of one of the methods `STREAMED` is answered: (condition, prompt, edits)."""
    spec: Any = question.spec
    if question.method.name == "vectors.apply":
        from patchclamp.vectors.apply import conditions_of as of_vector

        prompt, conditions = of_vector(model, spec, matched_random=False)
        yield "steered", prompt, conditions["steered"]
        yield "base", prompt, []
        if spec.how in ("add", "subtract"):
            yield "random", prompt, of_vector(model, spec)[1]["random"]
    else:
        yield "edited", spec.prompts[0], list(spec.edits)
        yield "base", spec.prompts[0], []


def strength_of(question: Question, model: Model) -> float | None:
    """How strongly a vector is added if nothing is said: as chosen, else as far as from one side's mean to the other's.
    None for a method without."""
    if question.method.name != "vectors.apply":
        return None
    from patchclamp.vectors.apply import setting_for
    from patchclamp.vectors.vector import load_vector

    spec: Any = question.spec
    return setting_for(model, load_vector(spec.vector[0], model), "add").strength


def pieces_of(question: Question, model: Model, stop: threading.Event) -> Iterator[Piece]:
    """The answers' pieces, condition after condition, until `stop`."""
    for condition, prompt, edits in conditions_of(question, model):
        if stop.is_set():
            return
        stream = model.stream(prompt, edits, question.spec.max_new_tokens)  # type: ignore[attr-defined]
        try:
            for text in stream:
                yield {"condition": condition, "text": text}
                if stop.is_set():
                    return
        finally:
            stream.close()  # type: ignore[attr-defined]
        yield {"condition": condition, "end": True}


async def lines_of(
    pieces_until: Callable[[threading.Event], Iterator[Piece]], begin: Callable[[], threading.Event],
    ended: Callable[[threading.Event], None],
) -> AsyncIterator[bytes]:
    """The pieces as lines of JSON. `begin` gives what tells them to stop, or refuses. A thread makes them; when the
    reader has gone it is told to stop, and `ended` is called at its end. Nothing is begun before the first is read."""
    from patchclamp.forward.turns import interrupted_by

    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()

    try:
        stop = begin()
    except PatchclampError as error:
        yield _line({"error": str(error)})
        return

    def put(piece: Piece | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, piece)

    def work() -> None:
        try:
            with interrupted_by(partial(_check, stop)):
                for piece in pieces_until(stop):
                    put(piece)
            if stop.is_set():
                put({"ended": "replaced"})
        except _Stopped:
            put({"ended": "replaced"})
        except PatchclampError as error:
            put({"error": str(error)})
        except Exception as error:
            put({"error": f"{type(error).__name__}: {error}"})
        finally:
            ended(stop)
            put(None)

    threading.Thread(target=work, name="live", daemon=True).start()
    try:
        while (piece := await queue.get()) is not None:
            yield _line(piece)
    finally:
        stop.set()


def _line(piece: Piece) -> bytes:
    return (json.dumps(piece, ensure_ascii=False) + "\n").encode("utf-8", "replace")


class _Stopped(BaseException):
    """Ends what prepares a stream that nobody reads any more."""


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped
