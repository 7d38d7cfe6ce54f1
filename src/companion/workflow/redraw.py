"""The pages of a committed run drawn again: what trains nothing is executed from the committed files, and compared."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion import layout
from companion.config import Profile
from companion.errors import problems
from companion.layout import Layout
from companion.workflow import job
from companion.workflow.freshness import STAMP, read_stamp
from companion.workflow.reference_run import first, runs_in

TOLERANCE = 1e-6  # of numbers that are computed again


def draw_again(P: Profile, tree: Path, cores: int, pages: Mapping[str, Path]) -> Path:
    """Execute what trains nothing and a page shows, from committed files, and compare with them.

    Returns
    -------
    The run with what was drawn, in _build/

    Raises
    ------
    CompanionError
        A notebook stopped, or values differ by more than `TOLERANCE`: with the names of the values.
    """
    base = layout.root() / "_build" / "runs"
    drawn = base / P.folder / tree.name
    shutil.rmtree(drawn, ignore_errors=True)
    shutil.copytree(tree, drawn)
    groups = [
        [("01_micrographs", Layout(P, drawn).micrographs(split)) for split in P.split_names],
        [(name, drawn / pages[name].relative_to(tree)) for name in ("02_mask_statistics", "07_thresholds")],
        [(name, drawn / pages[name].relative_to(tree)) for name in ("03_mask_simulation", "08_sizes_and_splits",
         "09_significance", "10_class_imbalance", "12_errors")],
        [("11_claims", drawn / pages["11_claims"].relative_to(tree))],
    ]  # fmt: skip
    different: list[str] = []
    with runs_in(base), ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        for group in groups:
            given = [(name, P.name, P.dataset, (read_stamp(folder) or {})["keys"], folder) for name, folder in group]
            list(pool.map(job.draw, *zip(*given, strict=True)))
            for _, folder in group:
                different += differences(tree / folder.relative_to(drawn), folder)
    if different:
        raise problems("what is committed was not found again:", first(different))
    return drawn


def differences(before: Path, after: Path) -> list[str]:
    """Names of the values in which the tables and JSON files of two folders of one stage differ."""
    found = []
    for path in sorted(before.rglob("*")):
        name = path.relative_to(before)
        if path.suffix == ".parquet" and name.parts[0] != "predictions":
            old, new = pd.read_parquet(path), pd.read_parquet(after / name)
            if list(old.columns) != list(new.columns) or len(old) != len(new):
                found.append(f"{name}: {old.shape} and {new.shape} rows and columns")
            else:
                found += [f"{name}: {c}" for c in old if not all(map(_same, old[c].tolist(), new[c].tolist()))]
        elif path.suffix == ".json" and path.name != STAMP:
            old, new = (_leaves(json.loads((folder / name).read_text("utf-8"))) for folder in (before, after))
            found += [f"{name}: {key}" for key in old.keys() | new.keys() if not _same(old.get(key), new.get(key))]
    return found


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {name: value}
    return {k: v for key, item in items for k, v in _leaves(item, f"{name}.{key}").items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (a != a and b != b)
    return bool(np.array_equal(a, b)) if isinstance(a, (np.ndarray, list)) else a == b or (pd.isna(a) and pd.isna(b))
