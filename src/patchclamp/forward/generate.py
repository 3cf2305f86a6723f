"""Generation with edits: Hugging Face's own `generate`, with hooks that know which token they see."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.errors import EditError, PromptError
from patchclamp.forward.attention import attention_weights, change_weights
from patchclamp.forward.batch import compute_prefix, first_tensor, order_of, prefix_cache, with_first
from patchclamp.forward.prepare import ReadyEdit
from patchclamp.forward.turns import may_go_on
from patchclamp.model.anatomy import Anatomy, part
from patchclamp.model.tap import Tap
from patchclamp.model.tokens import Encoded


@dataclass(frozen=True)
class Generated:
    """What a model answered to one prompt."""

    text: str
    """The answer, without the prompt and without special tokens."""
    tokens: tuple[int, ...]
    """The answer's token ids, up to and with the end token."""


class Steering:
    """Edits on a model whose tokens arrive in several calls: positions count from each prompt's first token.

    An edit at `all` or `response` goes on through the generated tokens; any other stays on the prompt's.
    """

    def __init__(self, anatomy: Anatomy, edits: Sequence[Sequence[ReadyEdit]], encoded: Sequence[Encoded]) -> None:
        self.anatomy = anatomy
        self.width = max(len(e) for e in encoded)
        self.pad = [self.width - len(e) for e in encoded]
        self.answers = [pad + e.n_prompt for pad, e in zip(self.pad, encoded, strict=True)]
        self.offset = 0
        self.n_tokens = 0
        self.by_tap: dict[tuple[str, int], list[tuple[int, ReadyEdit]]] = defaultdict(list)
        ready = [(row, edit) for row, some in enumerate(edits) for edit in some]
        for row, edit in sorted(ready, key=lambda pair: order_of(anatomy, (pair[1].site.place, pair[1].layer))):
            self.by_tap[edit.site.place, edit.layer].append((row, edit))

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Install the edits for the time of a `generate` call."""
        # on the whole model: OPT's calls its decoder past the base model
        handles = [self.anatomy.hf.register_forward_pre_hook(self._place, with_kwargs=True)]
        pattern: dict[nn.Module, Callable[[Tensor], None]] = {}
        try:
            for (point, layer), edits in self.by_tap.items():
                if point == "pattern":
                    module = part(self.anatomy.blocks[layer], self.anatomy.family.attention)
                    pattern[module] = partial(self._edit_pattern, edits)
                    continue
                tap = self.anatomy.tap(point, layer)
                if tap.side == "in":
                    handles.append(tap.module.register_forward_pre_hook(self._before(tap, edits), with_kwargs=True))
                else:
                    handles.append(tap.module.register_forward_hook(self._after(tap, edits)))
            with attention_weights(self.anatomy, bool(pattern), pattern):
                yield
        finally:
            for handle in handles:
                handle.remove()
        for edits in self.by_tap.values():
            for row, edit in edits:
                if not edit.fired:
                    raise EditError(f"{edit.edit.op} at {edit.site} did not fire in row {row}: no token it selects "
                                    "was generated")

    def _place(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before each call: how many tokens came before, how many come now."""
        may_go_on()
        ids = kwargs.get("input_ids", args[0] if args else None)
        seen = kwargs.get("past_key_values")
        self.offset = int(seen.get_seq_length()) if seen is not None else 0
        self.n_tokens = int((ids if ids is not None else kwargs["inputs_embeds"]).shape[1])

    def columns(self, row: int, edit: ReadyEdit) -> slice | list[int] | None:
        """The columns of this call that an edit concerns, or None."""
        first, last = self.offset, self.offset + self.n_tokens
        kind = edit.site.positions.kind
        if kind == "response":
            begin = max(self.answers[row], first)
        elif kind == "all":
            begin = max(self.pad[row], first)
        else:
            chosen = [t + self.pad[row] - first for t in edit.tokens if first <= t + self.pad[row] < last]
            return chosen or None
        return slice(begin - first, self.n_tokens) if begin < last else None

    def _edit(self, value: Tensor, edits: list[tuple[int, ReadyEdit]]) -> None:
        if self._whole_batch(edits):
            value[:] = edits[0][1].change(value)
            for _, edit in edits:
                edit.fired = True
            return
        for row, edit in edits:
            columns = self.columns(row, edit)
            if columns is not None:
                where = (row, columns) if edit.site.unit is None else (row, columns, edit.site.unit)
                value[where] = edit.change(value[where])
                edit.fired = True

    def _whole_batch(self, edits: list[tuple[int, ReadyEdit]]) -> bool:
        """Whether every row has one and the same edit here, on all of its new token: one operation then does for all
        what row by row would cost more than the model itself."""
        first = edits[0][1]
        return (self.n_tokens == 1 and len(edits) == len(self.pad) > 1 and first.site.unit is None
                and first.site.positions.kind in ("all", "response") and self.offset >= max(self.answers)
                and all(edit.edit is first.edit for _, edit in edits)
                and len({row for row, _ in edits}) == len(edits))

    def _apply(self, tap: Tap, edits: list[tuple[int, ReadyEdit]], raw: Tensor) -> Tensor:
        if all(self.columns(row, edit) is None for row, edit in edits):
            return raw
        return tap.write(raw, self.n_tokens, lambda value: self._edit(value, edits))

    def _before(self, tap: Tap, edits: list[tuple[int, ReadyEdit]]) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (self._apply(tap, edits, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._apply(tap, edits, kwargs["hidden_states"])}

        return hook

    def _after(self, tap: Tap, edits: list[tuple[int, ReadyEdit]]) -> Callable:
        def hook(_: nn.Module, __: tuple, output: Any) -> Any:
            return with_first(output, self._apply(tap, edits, first_tensor(output)))

        return hook

    def _edit_pattern(self, edits: list[tuple[int, ReadyEdit]], weights_RHTS: Tensor) -> None:
        # A sliding-window cache has dropped the oldest keys.
        dropped = self.offset + self.n_tokens - weights_RHTS.shape[-1]
        for row, edit in edits:
            columns = self.columns(row, edit)
            if columns is not None:
                change_weights(weights_RHTS[row], edit, columns, self.pad[row] - dropped)


def padded_inputs(anatomy: Anatomy, encoded: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Left-padded ids and mask for `generate`."""
    width = max(len(e) for e in encoded)
    ids = torch.full((len(encoded), width), pad_id)
    mask = torch.zeros(len(encoded), width, dtype=torch.long)
    for row, one in enumerate(encoded):
        ids[row, width - len(one) :] = torch.tensor(one.ids)
        mask[row, width - len(one) :] = 1
    device = anatomy.unembedding.weight.device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def shared_prefix(anatomy: Anatomy, encoded: Sequence[Encoded], edits: Sequence[Sequence[ReadyEdit]]) -> int:
    """How many tokens all prompts begin with before the first edit: 0 for a single prompt, or for prompts of different
    lengths, whose padding would stand between their beginnings and the rest."""
    first = encoded[0]
    one_length = all(len(e) == len(first) for e in encoded)
    if len(encoded) == 1 or not one_length or not anatomy.family.rows_may_join or anatomy.rope_side(len(first)):
        return 0
    untouched = min([len(first) - 1, *(min(edit.tokens) for some in edits for edit in some)])
    distinct = {e.ids for e in encoded}
    return next((i for i in range(untouched) if any(ids[i] != first.ids[i] for ids in distinct)), untouched)


@torch.no_grad()
def generate(
    anatomy: Anatomy, tokenizer: Any, encoded: Sequence[Encoded], edits: Sequence[Sequence[ReadyEdit]],
    settings: dict[str, Any], streamer: Any = None,
) -> list[Generated]:
    """Answers to the prompts, each under its own edits. Raises PromptError if there is no room for new tokens."""
    new, limit = settings["max_new_tokens"], anatomy.context
    longest = max(len(e) for e in encoded)
    if limit is not None and longest + new > limit:
        raise PromptError(f"a prompt of {longest} tokens and {new} new ones exceed the model's context of {limit}")
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else tokenizer.eos_token_id or 0
    inputs: dict[str, Any] = dict(padded_inputs(anatomy, encoded, pad))
    shared = shared_prefix(anatomy, encoded, edits) if settings["use_cache"] else 0
    if shared:
        prefix = compute_prefix(anatomy, {"input_ids": inputs["input_ids"][:1]}, shared)
        inputs["past_key_values"] = prefix_cache(prefix, lambda block: [0] * len(encoded))
    steering = Steering(anatomy, edits, encoded)
    with steering.hooks():
        out = anatomy.hf.generate(**inputs, pad_token_id=pad, streamer=streamer, **settings)
    return [_answer(tokenizer, row[longest:].tolist(), anatomy.hf.generation_config.eos_token_id) for row in out]


def _answer(tokenizer: Any, ids: list[int], eos: int | list[int] | None) -> Generated:
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    cut = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return Generated(tokenizer.decode(ids[:cut], skip_special_tokens=True), tuple(ids[:cut]))


class _Abandoned(Exception):
    """The reader of a stream has gone; ends the generating thread."""


class _Pieces:
    """A streamer for transformers' `generate`: hands each new token's id to the consuming thread, with the last row of
    what `seen` was given before."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.queue: Queue[tuple[int, Tensor | None] | BaseException | None] = Queue()
        self.seen = seen
        self.prompt = True
        self.abandoned = False

    def put(self, value: Tensor) -> None:
        if self.abandoned:
            raise _Abandoned
        if self.prompt:
            self.prompt = False
            return
        self.queue.put((int(value.flatten()[0]), self.seen.pop()[-1].float().cpu() if self.seen else None))
        self.seen.clear()

    def end(self) -> None:
        self.queue.put(None)


def watching(ready: ReadyEdit, seen: list[Tensor]) -> ReadyEdit:
    """An edit that changes nothing, and puts the values it passes into `seen`."""

    def look(value: Tensor) -> Tensor:
        seen.append(value.detach().clone())
        return value

    return replace(ready, change=look)


def stream(
    run: Callable[[Any], Any], tokenizer: Any, seen: list[Tensor] | None = None
) -> Iterator[tuple[str, list[Tensor]]]:
    """The answer's text piece by piece, while `run` generates it in a second thread; with each piece what was `seen` at
    the tokens it was written from."""
    pieces = _Pieces([] if seen is None else seen)

    def work() -> None:
        try:
            run(pieces)
        except BaseException as error:
            pieces.queue.put(error)

    thread = Thread(target=copy_context().run, args=(work,), daemon=True)
    thread.start()
    ids: list[int] = []
    values: list[Tensor] = []
    said = text = ""
    try:
        while (item := pieces.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            ids.append(item[0])
            values += [item[1]] if item[1] is not None else []
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("�") and len(text) > len(said):
                yield text[len(said) :], values
                said, values = text, []
        if len(text) > len(said):
            yield text[len(said) :], values
    finally:
        # a reader who stops early must not leave the model generating, with hooks on it, behind their back
        pieces.abandoned = True
        thread.join()
    while not pieces.queue.empty():
        item = pieces.queue.get()
        if isinstance(item, BaseException):
            raise item
