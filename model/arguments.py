"""Command lines as shells hand them over."""

from __future__ import annotations

from collections.abc import Sequence


def require_values(arguments: Sequence[str]) -> None:
    """Look for an argument that is empty, as a shell makes it of a variable that is not set (`--output "$UNSET"`).

    A path that is empty would mean the current folder. Options of a section (`--faces.root`) may be empty.

    Raises:
        ValueError: there is one; the message names its option.
    """
    option = ""
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if not argument or (has_value and not value and name.startswith("--")):
            named = name or option
            if "." not in named:
                raise ValueError(f"{named or 'an argument'} is empty: is the variable set that it is taken from?")
        option = argument if argument.startswith("--") and not has_value else ""
