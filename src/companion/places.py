"""Where a run of a profile keeps its results, and where its data set lies."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from companion import paths
from companion.config.profile import Profile


def tree(profile: Profile) -> Path:
    """runs/<profile>/<dataset>/"""
    return paths.runs() / profile.name / dataset_name(profile.dataset)


def dataset_name(dataset: str) -> str:
    """Folder name of a data set given by name or path."""
    return Path(dataset).name


def dataset_folder(profile: Profile) -> Path:
    """Where a data set given by path or by registered name lies (the phantom is rendered elsewhere)."""
    given = Path(profile.dataset)
    return given if len(given.parts) > 1 or given.is_dir() else paths.data_cache() / profile.dataset


def class_count(profile: Profile) -> int | None:
    """Number of classes that the data set declares; None while it is not here."""
    path = dataset_folder(profile) / "annotations.json"
    return _class_count(path, path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=16)
def _class_count(path: Path, _modified: int) -> int | None:
    try:
        return len(json.loads(path.read_text(encoding="utf-8"))["categories"])
    except (ValueError, KeyError, TypeError):
        return None  # the importer says what is wrong with it


def split_name(split: int | str) -> str:
    """1 -> '1', 'my/split.yaml' -> 'split'."""
    return Path(split).stem if isinstance(split, str) else str(split)
