"""A method in a package of its own: `patchclamp example tokens "Hello world"`."""

from typing import Annotated

import pandas as pd

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Progress, Result, Spec, method
from patchclamp.forward import Model


class TokensSpec(Spec):
    prompt: Annotated[str, Positional()]
    """The text to split."""


class TokensResult(Result):
    tokens: list[str]
    """What each token says, in order."""

    def table(self) -> pd.DataFrame:
        """One row a token."""
        return pd.DataFrame({"position": range(len(self.tokens)), "token": self.tokens})


@method("example.tokens", spec=TokensSpec, result=TokensResult)
def tokens(model: Model, spec: TokensSpec, progress: Progress) -> tuple[TokensResult, None]:
    """Show how the model's tokenizer splits a prompt."""
    return TokensResult(tokens=model.tokens(spec.prompt)), None
