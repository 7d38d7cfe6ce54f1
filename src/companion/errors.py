"""The one exception that a user sees, and the help that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompanionError(Exception):
    """Something a user gave cannot be used.

    The message says what is wrong, the value, where it came from and what would be right.
    The command line prints it alone, without a traceback, and exits with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def nearest(name: str, valid: Iterable[str]) -> str:
    """What an unknown name was meant to be: "did you mean 'split'?" where one is close, else "valid names: a, b, c"."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"valid names: {', '.join(names)}"


def problems(title: str, found: Iterable[str]) -> CompanionError:
    """One error that lists problems at once, a line each; of very many the first 20, and how many more there are."""
    lines = list(found)
    lines[20:] = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
    return CompanionError("\n".join([title, *(f"  - {line}" for line in lines)]))
