"""A user's prompt as the model reads it: in its chat template, or as it stands."""

from __future__ import annotations

from typing import Any, Literal

from patchclamp.errors import SpecError
from patchclamp.forward.model import Model
from patchclamp.tasks.behaviour import Asked


def has_template(model: Model) -> bool:
    """Whether the model knows conversations."""
    return bool(getattr(model.tokenizer, "chat_template", None))


def auto_format(model: Model) -> Literal["chat", "text"]:
    """How prompts are asked that do not say it: as a user's messages if the model has a chat template."""
    return "chat" if has_template(model) else "text"


def as_prompt(model: Model, asked: Asked, format: str) -> Any:
    """What the model reads: a user's message in its chat template, or the text as it stands.

    SpecError where the prompt needs a template and the model has none."""
    if (format == "chat" or not isinstance(asked, str)) and not has_template(model):
        raise SpecError(
            f"{model.name} has no chat template, and the prompt {str(asked)[:60]!r} is a chat message; use a "
            "chat model, or give prompts as plain text (format text)"
        )
    if not isinstance(asked, str):
        return [{"role": m.role, "content": m.content} for m in asked]
    return [{"role": "user", "content": asked}] if format == "chat" else asked
