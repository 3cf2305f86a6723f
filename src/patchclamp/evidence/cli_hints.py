"""How a spec's field would like to be written on the command line; every other reader ignores these.

    class AblateSpec(Spec):
        sites: Annotated[list[str], Positional()]
        parts: Annotated[list[str], CommaList()] = ["resid", "attn"]

makes `patchclamp neurons ablate neuron.19.1044 neuron.3.5 --parts resid,mlp`. A marker belongs to the whole
field, so `None` goes inside: `Annotated[list[str] | None, CommaList()]`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Positional:
    """The field is written without its option's name, in the order of the spec's fields.

    A list takes all the values it can get, so there can be one positional list per spec."""


@dataclass(frozen=True)
class CommaList:
    """The list is written as one value, `resid,attn`.

    For names: a value with a comma in it cannot be written, and blanks around a comma do not count."""
