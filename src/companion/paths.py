"""Every folder of the project, from one file."""

from __future__ import annotations

import os
from pathlib import Path

from companion.errors import CompanionError


def root() -> Path:
    """The project folder: ``COMPANION_ROOT``, else the nearest folder upwards that holds ``profiles/``.

    Raises
    ------
    CompanionError
        When there is none: the package is a companion to a project folder and does not run without one.
    """
    if named := os.environ.get("COMPANION_ROOT"):
        candidates = [Path(named)]
    else:
        here = Path.cwd().resolve()
        # The checkout that this file lies in serves commands started from anywhere (editable installs).
        candidates = [here, *here.parents, Path(__file__).resolve().parents[2]]
    for folder in candidates:
        if (folder / "profiles").is_dir() and (folder / "notebooks").is_dir():
            return folder.resolve()
    raise CompanionError(
        f"no project folder at {candidates[0]}: it needs profiles/ and notebooks/. "
        "Run from inside a checkout, or set COMPANION_ROOT to one."
    )


def notebooks() -> Path:
    """Source notebooks, without outputs."""
    return root() / "notebooks"


def profiles() -> Path:
    """Profile YAML files."""
    return root() / "profiles"


def given(path: str) -> Path:
    """A file that a profile names: absolute, or relative to the project folder wherever a command is started."""
    return root() / path


def runs() -> Path:
    """The run tree (``COMPANION_RUNS`` moves it, for instance to a scratch disk)."""
    return Path(os.environ.get("COMPANION_RUNS", root() / "runs")).resolve()


def data_cache() -> Path:
    """Where data sets are kept once downloaded or rendered (``COMPANION_DATA`` moves it)."""
    return Path(os.environ.get("COMPANION_DATA", root() / "data")).resolve()


def data_mirror() -> Path | None:
    """Offline mirror of the data registry, when ``COMPANION_DATA_MIRROR`` names one."""
    named = os.environ.get("COMPANION_DATA_MIRROR")
    return Path(named).resolve() if named else None
