"""Reading anyone's predictions and truths: this package's files and COCO JSON, which detectron2 writes, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, StrictInt, TypeAdapter, ValidationError

from companion.errors import CompanionError, problems
from companion.micrographs.dataset import read_coco
from companion.micrographs.patches import Patches, load_patches

BOX = ["x1", "y1", "x2", "y2"]
PREDICTION_COLUMNS = ["patch", *BOX, "score", "label"]
SHOWN = 50  # problems of one file that are listed
_EXPECTED = (
    "predictions should be a parquet file, or a JSON list of COCO results (detectron2's coco_instances_results.json)"
)


@dataclass(frozen=True)
class Truth:
    """What should have been found: a row per defect, in file order."""

    table: pd.DataFrame  # patch, x1, y1, x2, y2 (px), class (and instance, of a patches folder)
    patches: list[int]  # every patch, those without defects too (of COCO files the image ids)
    classes: dict[int, str]  # class code -> name


class _Annotation(BaseModel):
    image_id: StrictInt
    category_id: StrictInt
    bbox: list[float] = Field(min_length=4, max_length=4)
    iscrowd: int = Field(0, le=0)  # crowd regions are not scored
    score: float = 1.0


class _Result(_Annotation):
    score: float


def read_truth(path: Path) -> Truth:
    """Truths of a patches folder or a COCO annotations JSON; a `CompanionError` lists what cannot be used."""
    if path.is_dir():
        return truth_of(load_patches(path))
    document = read_coco(path)
    table = _table(_valid(_Annotation, document["annotations"], path))
    names = {category["id"]: category["name"] for category in document["categories"]}
    truth = Truth(table.rename(columns={"label": "class"}), [image["id"] for image in document["images"]], names)
    _refuse(path, [] if truth.patches else ["there are no images to score"], table, truth)
    return truth


def truth_of(patches: Patches) -> Truth:
    """Truths of patches, by the number of the patch."""
    table = patches.table[["patch", *BOX, "class", "instance"]].reset_index(drop=True)
    return Truth(table, patches.index["patch"].tolist(), dict(enumerate(patches.classes, start=1)))


def read_predictions(path: Path, truth: Truth) -> pd.DataFrame:
    """Predictions for the patches of `truth`, a row each: patch, x1, y1, x2, y2 (px), score, label.

    A `CompanionError` says that the file is missing, broken, of another format or lacks a column, or lists predictions
    that cannot be used: unknown patch, unknown class, a box or a score that is not one.
    """
    if not path.is_file() or path.suffix not in (".json", ".parquet"):
        raise CompanionError(f"{path}: {'' if path.is_file() else 'no such file; '}{_EXPECTED}")
    if path.suffix == ".json":
        table = _table(_valid(_Result, path.read_bytes(), path))
    else:
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise CompanionError(f"{path} is not a readable parquet file ({error}); {_EXPECTED}") from None
        if missing := [column for column in PREDICTION_COLUMNS if column not in table]:
            expected = f"{', '.join(missing)}; it should have {', '.join(PREDICTION_COLUMNS)}"
            raise CompanionError(f"{path} lacks the column(s) {expected}")
        numbers = table[PREDICTION_COLUMNS].apply(pd.to_numeric, errors="coerce")
        whole = numbers[["patch", "label"]].fillna(0.5) % 1 == 0
        if len(table) and not (whole.all(axis=None) and numbers.notna().all(axis=None)):
            columns = ", ".join(PREDICTION_COLUMNS)
            raise CompanionError(f"{path}: {columns} should hold numbers, patch and label whole ones")
        table = numbers.astype({"patch": "int64", "label": "int64"}).reset_index(drop=True)
    wrong = np.flatnonzero(~table["score"].between(0, 1))  # NaN is wrong too
    found = [f"entry {n + 1}: score {table['score'].iloc[n]} is not in [0, 1]" for n in wrong]
    _refuse(path, found, table, truth)
    return table


def _valid(model: type[BaseModel], items: Any, path: Path) -> list[Any]:
    """Entries of a JSON list, given as text or as read; everything that is not as `model` says in one error."""
    adapter = TypeAdapter(list[model])  # type: ignore[valid-type]
    try:
        return adapter.validate_json(items) if isinstance(items, bytes) else adapter.validate_python(items)
    except ValidationError as error:
        found = [
            f"entry {int(e['loc'][0]) + 1}: {' '.join(map(str, e['loc'][1:2]))} {e['input']!r:.60}: {e['msg']}"
            if e["loc"] else f"{e['msg']}; {_EXPECTED}" for e in error.errors()
        ]  # fmt: skip
    raise problems(f"{path}: entries that cannot be used", found[:SHOWN])


def _table(items: list[Any]) -> pd.DataFrame:
    boxes = np.array([item.bbox for item in items], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # COCO writes width and height
    scores = np.array([item.score for item in items], dtype=float)
    ids = np.array([(item.image_id, item.category_id) for item in items], dtype=np.int64).reshape(-1, 2)
    return pd.DataFrame(boxes, columns=BOX).assign(patch=ids[:, 0], score=scores, label=ids[:, 1])[PREDICTION_COLUMNS]


def _refuse(path: Path, found: list[str], table: pd.DataFrame, truth: Truth) -> None:
    """Unknown patches and classes, and boxes that are not finite or have a negative side; an empty box is a box."""
    for column, known, what in (("patch", truth.patches, "patch (image)"), ("label", truth.classes, "class")):
        for strange in sorted(set(table[column]) - set(known)):
            found.append(f"unknown {what} {strange}: the truths have {', '.join(map(str, known)):.60}")
    boxes = table[BOX].to_numpy(dtype=float)
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    for n in np.flatnonzero(wrong):
        found.append(f"entry {n + 1}: box (x1, y1, x2, y2) = {tuple(boxes[n].tolist())} is inverted or not finite")
    if found:
        raise problems(f"{path}: entries that cannot be used", found[:SHOWN])
