"""A language model on this machine that is asked."""

from collections.abc import Sequence

from patchclamp.evidence.method import Progress
from patchclamp.forward import load
from patchclamp.forward.asked import as_prompt, auto_format

AT_ONCE = 8


class LocalModel:
    """A Hugging Face model, id or folder, or an embedded one. Raises ModelError if it cannot be loaded."""

    def __init__(self, ref: str) -> None:
        self.model = load(ref)
        self.name = self.model.name

    def ask_all(self, texts: Sequence[str], longest: int, progress: Progress, description: str) -> list[str]:
        """A greedy reply to each text, in order; equal texts are asked once."""
        distinct = sorted(dict.fromkeys(texts), key=len)
        format = auto_format(self.model)
        answers: dict[str, str] = {}
        starts = range(0, len(distinct), AT_ONCE)
        for first in progress.track(starts, description, len(starts)):
            some = distinct[first : first + AT_ONCE]
            said = self.model.generate([as_prompt(self.model, text, format) for text in some], max_new_tokens=longest)
            answers |= {text: one.text for text, one in zip(some, said, strict=True)}
        return [answers[text] for text in texts]
