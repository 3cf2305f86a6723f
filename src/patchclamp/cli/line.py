"""The command line before cyclopts reads it: values may begin with `-`, `--debug` may stand anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cyclopts import App

DEBUG = "--debug"
RESERVED = (DEBUG, "--help", "-h", "--version")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")


def arrange(app: App, tokens: Sequence[str]) -> list[str]:
    """The line as cyclopts reads it without mistaking a value for an option, and without `--debug`.

    Options are told from values with the names the command knows: what follows an option that takes a value
    is its value, unless it is another option's name. Then values are written so that they cannot be taken
    for options: `--watch=-ing`, and positional ones behind `--`."""
    tokens = list(tokens)
    while tokens[:1] == [DEBUG]:
        tokens = tokens[1:]
    command, path = app, 0
    while path < len(tokens) and not tokens[path].startswith("-") and tokens[path] in command:
        command, path = command[tokens[path]], path + 1
    if command.default_command is None:
        return [token for token in tokens if token != DEBUG]
    options, values = _sort(tokens[path:], *_names(command))
    behind = ["--", *values] if values else []
    return [*tokens[:path], *(option for option in options if option != DEBUG), *behind]


def _names(command: App) -> tuple[set[str], set[str]]:
    """The names of the command's options: those that take a value, and all."""
    takes_value: set[str] = set()
    known = set(RESERVED)
    for argument in command.assemble_argument_collection(parse_docstring=False):
        known.update(argument.names)
        if argument.resolved_hint is not bool:
            takes_value.update(set(argument.names) - set(argument.negatives))
    return takes_value, known


def _sort(tokens: Sequence[str], takes_value: set[str], known: set[str]) -> tuple[list[str], list[str]]:
    """Part a command's tokens into options (with their values) and positional values."""
    options: list[str] = []
    values: list[str] = []
    rest: Iterator[str] = iter(tokens)
    for token in rest:
        if token == "--":
            return options, [*values, *rest]
        if options and options[-1] in takes_value and token.split("=", 1)[0] not in known:
            options[-1] += f"={token}"
        elif _OPTION.fullmatch(token.split("=", 1)[0]):
            options.append(token)
        else:
            values.append(token)
    return options, values
