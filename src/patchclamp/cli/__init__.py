"""The command `patchclamp`. Each registered method is a command made from its spec.

| module     | what it holds                                                     |
|------------|-------------------------------------------------------------------|
| `app`      | all commands together; errors and exit codes                      |
| `line`     | telling values from options                                       |
| `build`    | a method as a command, and the options all commands share         |
| `run`      | what a method's command does                                      |
| `catalog`  | names of the methods without importing them                       |
| `terminal` | tables, JSON, progress                                            |
| `runs`     | `patchclamp runs`: stored records                                 |
| `models`   | `patchclamp models`: embedded models, checks                      |
| `serve`    | `patchclamp serve`: the workbench                                 |
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line given (default: the process's own) and exit.

    Exit codes: 0 done (whatever the verdict), 1 the run failed, 2 the input is wrong, 130 interrupted,
    141 nobody reads the output."""
    try:
        from patchclamp.cli.app import execute  # the imports take a while; Ctrl-C may come here
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(execute(sys.argv[1:] if arguments is None else list(arguments)))
