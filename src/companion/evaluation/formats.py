"""Reading anyone's predictions and truths: this package's files, COCO JSON, detectron2's JSON output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from pydantic import BaseModel, BeforeValidator, Field, StrictInt, TypeAdapter, ValidationError

from companion.errors import CompanionError, problems
from companion.micrographs.dataset import read_document
from companion.micrographs.patches import Patches, load_patches

BOX = ["x1", "y1", "x2", "y2"]
PREDICTION_COLUMNS = ["patch", *BOX, "score", "label"]
TRUTH_COLUMNS = ["patch", *BOX, "class"]
_SHOWN = 50  # problems of one file that are listed
_EXPECTED = "predictions should be a parquet file, or a JSON list of COCO results (detectron2 writes one too)"


@dataclass(frozen=True)
class Truth:
    """What should have been found.

    Attributes
    ----------
    table : columns patch, x1, y1, x2, y2 (px), class (and instance, of a patches folder); one row per defect, in
        file order
    patches : every patch, those without defects too
    classes : class code -> name
    source : where it was read from, for messages
    """

    table: pd.DataFrame
    patches: list[int]
    classes: dict[int, str]
    source: str


_Number = Annotated[float, Field(strict=True)]


class _Named(BaseModel):
    id: StrictInt


class _Annotation(BaseModel):
    image_id: StrictInt
    category_id: StrictInt
    bbox: list[_Number] = Field(min_length=4, max_length=4)
    iscrowd: Annotated[Literal[0], BeforeValidator(int)] = 0  # crowd regions are not scored


class _Result(_Annotation):
    score: _Number


def read_truth(path: Path) -> Truth:
    """Truths of a patches folder or a COCO annotations JSON.

    Raises
    ------
    CompanionError
        If it is neither, or lists annotations that cannot be used.
    """
    if path.is_dir():
        return truth_of(load_patches(path), str(path))
    document = read_document(path)
    found = []
    for name in ("images", "categories"):
        ids = [item.id for item in _valid(_Named, document[name], name, path)]
        found += [f"{name}: id {i} occurs {ids.count(i)} times" for i in sorted({i for i in ids if ids.count(i) > 1})]
    names = {category["id"]: str(category.get("name", category["id"])) for category in document["categories"]}
    table = _table(_valid(_Annotation, document["annotations"], "annotation", path), "class")
    truth = Truth(table, [image["id"] for image in document["images"]], names, str(path))
    found += [] if truth.patches else ["there are no images to score"]
    _refuse(f"{path}: truths that cannot be used", found + _unusable(table, truth, "annotation", "image", "category"))
    return truth


def truth_of(patches: Patches, source: str) -> Truth:
    """Truths of patches; instances that cannot be used raise a `CompanionError`."""
    table = patches.table[[*TRUTH_COLUMNS, "instance"]].reset_index(drop=True)
    truth = Truth(table, patches.index["patch"].tolist(), dict(enumerate(patches.classes, start=1)), source)
    _refuse(f"{source}: instances that cannot be used", _unusable(table, truth, "instance", "patch", "class"))
    return truth


def read_predictions(path: Path, truth: Truth) -> pd.DataFrame:
    """Predictions for the patches of `truth`.

    Returns
    -------
    Columns patch, x1, y1, x2, y2 (px), score, label (and mask where the file has it); one row per prediction.

    Raises
    ------
    CompanionError
        If the file is missing, broken or of another format, lacks a column, or holds predictions that cannot be
        used: unknown patch, unknown class, a box or a score that is not one (all listed).
    """
    if path.suffix in (".pth", ".pt", ".pkl", ".pickle"):
        raise CompanionError(
            f"{path} is a pickle, which can run code when it is opened, and is not read. detectron2 writes the same "
            "predictions as JSON beside it: give coco_instances_results.json."
        )
    if not path.is_file():
        raise CompanionError(f"{path}: no such file; {_EXPECTED}")
    words = ("result", "image", "category") if path.suffix == ".json" else ("row", "patch", "class")
    if path.suffix == ".json":
        items = _valid(_Result, path.read_bytes(), "result", path)
        table = _table(items, "label").assign(score=np.array([item.score for item in items], dtype=float))
    else:
        table = _parquet_predictions(path)
    wrong = np.flatnonzero(~table["score"].between(0, 1))  # NaN is wrong too
    found = [f"{words[0]} {n + 1}: score {table['score'].iloc[n]} is not in [0, 1]" for n in wrong]
    title = f"{path}: predictions that cannot be used (truths: {truth.source})"
    _refuse(title, _unusable(table.rename(columns={"label": "class"}), truth, *words) + found)
    return table


def _parquet_predictions(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise CompanionError(f"{path} is not a readable parquet file ({error}); {_EXPECTED}") from None
    if missing := [column for column in PREDICTION_COLUMNS if column not in table]:
        raise CompanionError(
            f"{path} lacks the column(s) {', '.join(missing)}; it should have {', '.join(PREDICTION_COLUMNS)}"
        )
    table = table[[*PREDICTION_COLUMNS, *(["mask"] if "mask" in table else [])]].reset_index(drop=True)
    if len(table) == 0:
        table = table.astype(dict.fromkeys(PREDICTION_COLUMNS, float))
    found = [
        f"{c} ({table[c].dtype}) should hold numbers" for c in PREDICTION_COLUMNS if not is_numeric_dtype(table[c])
    ]
    if not found:
        fractions = [c for c in ("patch", "label") if (table[c] % 1 != 0).any()]
        found = [f"{c} ({table[c].dtype}) should hold whole numbers" for c in fractions]
    _refuse(f"{path}: columns of the wrong type", found)
    return table.astype({"patch": "int64", "label": "int64"})


def _valid(model: type[BaseModel], items: Any, what: str, path: Path) -> list[Any]:
    """Items of a JSON list, given as text or as read; everything that is not as `model` says in one error."""
    adapter = TypeAdapter(list[model])  # type: ignore[valid-type]
    found = []
    try:
        return adapter.validate_json(items) if isinstance(items, bytes) else adapter.validate_python(items)
    except ValidationError as error:
        for item in error.errors():
            if not item["loc"]:
                raise CompanionError(f"{path} is no list of COCO {what}s: {item['msg']}; {_EXPECTED}") from None
            number, *name = item["loc"]
            says = f"lacks {name[0]}" if item["type"] == "missing" else f"{item['input']!r:.60}: {item['msg']}"
            found.append(
                f"{what} {int(number) + 1}: {f'{name[0]} ' if name and item['type'] != 'missing' else ''}{says}"
            )
    _refuse(f"{path}: entries that cannot be used", found)
    return []


def _table(items: list[Any], code: str) -> pd.DataFrame:
    boxes = np.array([item.bbox for item in items], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # COCO writes width and height
    ids = np.array([(item.image_id, item.category_id) for item in items], dtype=np.int64).reshape(-1, 2)
    return pd.concat([pd.DataFrame(ids, columns=["patch", code]), pd.DataFrame(boxes, columns=BOX)], axis=1)


def _unusable(table: pd.DataFrame, truth: Truth, row: str, patch: str, category: str) -> list[str]:
    """Unknown patches and classes, and boxes that are not finite or have a negative side; an empty box is a box."""
    found = []
    for name, known, what in (("patch", truth.patches, patch), ("class", sorted(truth.classes), category)):
        if strange := sorted(set(table[name].tolist()) - set(known)):
            shown = ", ".join(map(str, known[:10])) + (f" … ({len(known)} in all)" if len(known) > 10 else "")
            found.append(f"unknown {what} {', '.join(map(str, strange[:10]))}: the truths have {shown or 'none'}")
    boxes = table[BOX].to_numpy(dtype=float)
    finite = np.isfinite(boxes).all(axis=1)
    for n in np.flatnonzero(~finite | (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])):
        what = "inverted: a side is negative" if finite[n] else "not finite"
        found.append(f"{row} {n + 1}: box (x1, y1, x2, y2) = {tuple(boxes[n].tolist())} is {what}")
    return found


def _refuse(title: str, found: list[str]) -> None:
    if found:
        raise problems(title, found if len(found) <= _SHOWN else [*found[:_SHOWN], f"… and {len(found) - _SHOWN} more"])
