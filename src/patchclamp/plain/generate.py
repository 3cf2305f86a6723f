"""Generation as a method: what the model answers under edits, beside what it answers without them."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.forward import Edit, Model
from patchclamp.model.tokens import Prompt

if TYPE_CHECKING:
    import altair
    import pandas


class GenerateSpec(Spec):
    """What to answer, and under which edits."""

    prompts: Annotated[tuple[Prompt, ...], Positional()] = Field(min_length=1)
    """Texts to continue, or conversations (JSON lists of messages) put through the chat template."""
    edits: tuple[Edit, ...] = ()
    """Edits in force; @response edits only the generated tokens."""
    max_new_tokens: int = Field(64, ge=1)
    """How many tokens at most."""
    sample: bool = False
    """Draw tokens at random instead of taking the likeliest."""
    temperature: float = Field(1.0, gt=0)
    """For sampling: higher is more random."""
    top_p: float = Field(1.0, gt=0, le=1)
    """For sampling: the share of probability drawn from."""


class Answer(BaseModel):
    """One prompt's answers."""

    prompt: str
    text: str
    """The answer under the edits."""
    unedited: str | None
    """The answer without them, as a control; None where there are no edits."""


class Generation(Result):
    """The answers."""

    rows: list[Answer]

    def table(self) -> "pandas.DataFrame":
        """One row a prompt."""
        import pandas

        return pandas.DataFrame([row.model_dump() for row in self.rows])

    def chart(self) -> "altair.TopLevelMixin":
        """The answers as text, with and without the edits."""
        from patchclamp.charts.plain import generation_chart

        return generation_chart(self)


@method("forward.generate", spec=GenerateSpec, result=Generation)
def generate(model: Model, spec: GenerateSpec, progress: Progress) -> Outcome:
    """Let the model answer under edits, and without them as a control.

    There is no verdict: one text is no measurement.
    """
    settings: dict[str, Any] = spec.model_dump(exclude={"prompts", "edits"})
    rows = []
    for prompt in progress.track(spec.prompts, "generating", len(spec.prompts)):
        edited = model.generate(prompt, spec.edits, **settings)
        plain = model.generate(prompt, **settings) if spec.edits else None
        shown = prompt if isinstance(prompt, str) else "".join(model.encode(prompt).pieces)
        rows.append(Answer(prompt=shown, text=edited.text, unedited=plain.text if plain else None))
    return Generation(rows=rows), None
