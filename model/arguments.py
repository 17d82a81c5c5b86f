"""Arguments of a command line, looked at before anything is made of them."""

from __future__ import annotations

import os
from collections.abc import Sequence


def require_no_empty(arguments: Sequence[str], *, may_be_empty: tuple[str, ...] = ()) -> None:
    """ValueError where a value is empty, as that of a shell's variable that is not set: a path would be the current
    folder.

    may_be_empty: how the names of options begin for which nothing is a value.
    """
    option = ""
    for argument in arguments:
        value = argument
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            if not equals:
                continue
        if not value.strip() and not option.startswith(may_be_empty):
            raise ValueError(
                f"{option or 'an argument'} is empty, as from a variable of the shell that is not set: give a value "
                "(the current folder is .)"
            )


def with_home(arguments: Sequence[str]) -> list[str]:
    """The arguments with `~` where values begin as the home folder: shells leave it after `=` and in quotes.

    `./~x` is a file of that name.
    """
    expanded = []
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        expanded.append(f"{option}{equals}{os.path.expanduser(value)}")
    return expanded
