"""Reading anyone's predictions and truths: this package's files, COCO JSON, detectron2's JSON output."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion.micrographs.patches import load_patches
from companion.errors import CompanionError, problems

BOX = ["x1", "y1", "x2", "y2"]
PREDICTION_COLUMNS = ["patch", *BOX, "score", "label"]
TRUTH_COLUMNS = ["patch", *BOX, "class"]
_SHOWN = 10  # problems of one kind that are listed one by one


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


def read_truth(path: Path) -> Truth:
    """Truths of a patches folder or a COCO annotations JSON.

    Raises
    ------
    CompanionError
        If it is neither, or lists annotations that cannot be used.
    """
    if path.is_dir():
        patches = load_patches(path)
        table = patches.table[[*TRUTH_COLUMNS, "instance"]].reset_index(drop=True)
        names = dict(enumerate(patches.classes, start=1))
        truth = Truth(table, patches.index["patch"].tolist(), names, str(path))
        if found := [*_box_problems(table, "instance"), *_unknown(table["class"], names, "class")]:
            raise problems(f"{path}: instances that cannot be used", found)
        return truth
    content = _read_json(path, "truths should be a patches folder or a COCO annotations JSON")
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in _COCO):
        missing = [k for k in _COCO if not isinstance(content, dict) or not isinstance(content.get(k), list)]
        raise CompanionError(f"{path} is not a COCO annotations file: it has no list(s) {', '.join(missing)}")
    return _coco_truth(content, path)


_COCO = ("images", "annotations", "categories")


def _coco_truth(content: dict[str, Any], path: Path) -> Truth:
    found = []
    for kind in ("images", "categories"):
        ids = [item.get("id") if isinstance(item, dict) else None for item in content[kind]]
        found += [f"{kind} entry {n}: id {i!r} is not a whole number" for n, i in enumerate(ids, 1) if not _is_whole(i)]
        times = Counter(i for i in ids if _is_whole(i))
        found += [f"{kind}: id {i} occurs {n} times" for i, n in sorted(times.items()) if n > 1]
    if found:
        raise problems(f"{path} is not a COCO annotations file that can be used:", _shorten(found))
    images = [item["id"] for item in content["images"]]
    names = {item["id"]: str(item.get("name", item["id"])) for item in content["categories"]}
    table, found = _coco_rows(content["annotations"], "annotation", {"image_id": "patch", "category_id": "class"})
    crowds = [n for n, a in enumerate(content["annotations"], 1) if isinstance(a, dict) and a.get("iscrowd")]
    found += [f"annotation {n}: iscrowd is set; crowd regions are not scored, take them out" for n in crowds]
    found += [*_unknown(table["patch"], images, "image"), *_unknown(table["class"], names, "category")]
    found += _box_problems(table, "annotation")
    if found:
        raise problems(f"{path}: annotations that cannot be used", _shorten(found))
    if not images:
        raise CompanionError(f"{path}: there are no images to score")
    return Truth(table, images, names, str(path))


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
    expected = "predictions should be a predictions.parquet, or a JSON list of COCO results (detectron2 writes one too)"
    if path.suffix in (".pth", ".pt", ".pkl", ".pickle"):
        raise CompanionError(
            f"{path} is a pickle, which can run code when it is opened, and is not read. detectron2 writes the same "
            "predictions as JSON beside it: give coco_instances_results.json."
        )
    if not path.is_file():
        raise CompanionError(f"{path}: no such file; {expected}")
    if path.suffix == ".json":
        content = _read_json(path, expected)
        if not isinstance(content, list):
            raise CompanionError(f"{path} holds {type(content).__name__}, not a list of COCO results; {expected}")
        table, found = _coco_rows(content, "result", {"image_id": "patch", "category_id": "label"}, score=True)
        kind, place, unit = "result", "image", "category"
    else:
        table, found = _parquet_predictions(path, expected)
        kind, place, unit = "row", "patch", "class"
    found += [*_unknown(table["patch"], truth.patches, place), *_unknown(table["label"], truth.classes, unit)]
    found += _box_problems(table, kind)
    wrong = ~table["score"].between(0, 1)  # NaN is wrong too
    found += [f"{kind} {n + 1}: score {table['score'].iloc[n]} is not in [0, 1]" for n in np.flatnonzero(wrong)]
    if found:
        raise problems(f"{path}: predictions that cannot be used (truths: {truth.source})", _shorten(found))
    return table


def _parquet_predictions(path: Path, expected: str) -> tuple[pd.DataFrame, list[str]]:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise CompanionError(f"{path} is not a readable parquet file ({error}); {expected}") from None
    if missing := [column for column in PREDICTION_COLUMNS if column not in table]:
        raise CompanionError(
            f"{path} lacks the column(s) {', '.join(missing)}; it should have {', '.join(PREDICTION_COLUMNS)}"
        )
    table = table[[*PREDICTION_COLUMNS, *(["mask"] if "mask" in table else [])]].reset_index(drop=True)
    types = {c: "whole numbers" if c in ("patch", "label") else "numbers" for c in PREDICTION_COLUMNS}
    wrong = [c for c in types if len(table) and not pd.api.types.is_numeric_dtype(table[c])]
    wrong += [c for c in ("patch", "label") if c not in wrong and not (table[c] == np.floor(table[c])).all()]
    if wrong:
        found = [f"{c} ({table[c].dtype}) should hold {types[c]}" for c in wrong]
        raise problems(f"{path}: columns of the wrong type", found)
    if len(table) == 0:
        table = table.astype(dict.fromkeys(PREDICTION_COLUMNS, float))
    return table.astype({"patch": "int64", "label": "int64"}), []


def _coco_rows(items: list[Any], kind: str, ids: dict[str, str], score: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Rows of COCO annotations or results, and what is wrong with those that give none."""
    rows, found = [], []
    for number, item in enumerate(items, start=1):
        wrong = None
        if not isinstance(item, dict):
            wrong = f"is {item!r:.40}, not a mapping"
        elif missing := [key for key in (*ids, "bbox", *(["score"] if score else [])) if key not in item]:
            wrong = f"lacks {', '.join(missing)}"
        elif strange := [f"{key} {item[key]!r}" for key in ids if not _is_whole(item[key])]:
            wrong = f"{', '.join(strange)} is not a whole number"
        elif not isinstance(item["bbox"], list) or len(item["bbox"]) != 4 or not all(map(_is_number, item["bbox"])):
            wrong = f"bbox {item['bbox']!r:.60} is not [x, y, width, height]"
        elif score and not _is_number(item["score"]):
            wrong = f"score {item['score']!r} is not a number"
        if wrong:
            found.append(f"{kind} {number}: {wrong}")
            continue
        x, y, width, height = item["bbox"]
        rows.append((*(item[key] for key in ids), x, y, x + width, y + height, *([item["score"]] if score else [])))
    table = pd.DataFrame(rows, columns=[*ids.values(), *BOX, *(["score"] if score else [])])
    return table.astype({column: "int64" if column in ids.values() else "float64" for column in table}), found


def _box_problems(table: pd.DataFrame, kind: str) -> list[str]:
    """Boxes that are not finite or have a negative side; an empty box is a box (it overlaps nothing)."""
    boxes = table[BOX].to_numpy(dtype=float)
    infinite = ~np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        inverted = ~infinite & ((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]))
    return [
        f"{kind} {n + 1}: box (x1, y1, x2, y2) = ({', '.join(f'{v:g}' for v in boxes[n])}) is {what}"
        for mask, what in ((infinite, "not finite"), (inverted, "inverted: a side is negative"))
        for n in np.flatnonzero(mask)
    ]


def _unknown(column: pd.Series, valid: Iterable[int], what: str) -> list[str]:
    known = sorted(valid)
    strange = sorted(set(column.unique().tolist()) - set(known))
    if not strange:
        return []
    shown = ", ".join(map(str, known[:_SHOWN])) + (f" … ({len(known)} in all)" if len(known) > _SHOWN else "")
    return [f"unknown {what} {', '.join(map(str, strange[:_SHOWN]))}: the truths have {shown or 'none'}"]


def _shorten(found: list[str]) -> list[str]:
    """All problems of a small file; of a large one the first of them, and how many more."""
    limit = 5 * _SHOWN
    return found if len(found) <= limit else [*found[:limit], f"… and {len(found) - limit} more"]


def _read_json(path: Path, expected: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompanionError(f"{path} cannot be read ({error.strerror or error}); {expected}") from None
    except ValueError as error:
        raise CompanionError(f"{path} is not JSON ({error}); {expected}") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
