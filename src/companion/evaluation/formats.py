"""Reading anyone's predictions and truths, joined by file name where predictions have one, else by image id.

Predictions are tables (parquet, CSV) or COCO results, alone or in a mapping with its own images and categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from companion.errors import CompanionError, nearest, problems
from companion.micrographs import coco
from companion.micrographs.dataset import ANNOTATIONS
from companion.micrographs.patches import Patches, load_patches
from companion.micrographs.pictures import meant

BOX = ["x1", "y1", "x2", "y2"]
NUMBERS = [*BOX, "score"]
PREDICTION_COLUMNS = ["patch", *NUMBERS, "label"]
ROUNDING = 1e-6  # by which a score may exceed 1: sums of float32 do
LISTS = ("annotations", "predictions", "results", "detections")  # where a mapping has its results
_JSON = f"COCO results: a list, or a mapping that has it under {', '.join(LISTS)}"
_EXPECTED = f"predictions should be parquet, CSV or JSON, as detectron2's coco_instances_results.json: {_JSON}"


@dataclass(frozen=True)
class Truth:
    """What should have been found: a row per defect, in file order."""

    table: pd.DataFrame  # patch, x1, y1, x2, y2 (px), class (and instance, of a patches folder)
    patches: list[int]  # every patch, those without defects too (of COCO files the image ids)
    classes: dict[int, str]  # class code -> name
    images: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # COCO's entries, by image id


class _Image(coco.Entry):
    id: int | str
    file_name: str


class _Result(coco.Entry):
    image_id: int | str | None = None
    file_name: str | None = None
    category_id: coco.Whole
    bbox: coco.Box | None = None
    segmentation: coco.Segmentation = None
    score: float


class _Results(coco.Entry):
    images: list[_Image] | None = None
    categories: list[coco.Category] | None = None
    results: list[_Result]


def read_truth(path: Path) -> Truth:
    """Truths of a patches folder, a COCO annotations JSON or a data set folder with one.

    Crowd regions (iscrowd: 1) are defects like others, as at import: CVAT calls every painted mask one. A
    `CompanionError` lists what cannot be used.
    """
    if path.is_dir() and not (path / ANNOTATIONS).is_file():
        return truth_of(load_patches(path))
    path = path / ANNOTATIONS if path.is_dir() else path
    document = coco.read_coco(path)
    images = {image["id"]: image for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    given = _given([{**one, "score": 1.0, "file_name": None} for one in document["annotations"]], {}, {})
    truth = Truth(given, list(images), names, images)
    found = [] if images else ["there are no images to score"]
    return replace(truth, table=_usable(given, truth, path, found).rename(columns={"label": "class"}))


def truth_of(patches: Patches) -> Truth:
    """Truths of patches, by the number of the patch."""
    table = patches.table[["patch", *BOX, "class", "instance"]].reset_index(drop=True)
    return Truth(table, patches.index["patch"].tolist(), dict(enumerate(patches.classes, start=1)))


def read_predictions(path: Path, truth: Truth) -> pd.DataFrame:
    """Predictions for the patches of `truth`, a row each: patch, x1, y1, x2, y2 (px), score, label.

    A table has these columns, or image and class (file names, names of classes) instead of patch and label. The box of
    a COCO result without one is that of its segmentation. A `CompanionError` says that the file is missing, broken or
    of another format, or lists what cannot be used: an image or a class that is not among the truths' or could be
    several of them; a box, a segmentation or a score that is none.
    """
    readers = {".json": _results, ".parquet": _columns, ".csv": _columns}
    if not path.is_file() or path.suffix.lower() not in readers:
        raise CompanionError(f"{path}: {'' if path.is_file() else 'no such file; '}{_EXPECTED}")
    return _usable(readers[path.suffix.lower()](path), truth, path, [])


def _results(path: Path) -> pd.DataFrame:
    content = coco.read_json(path)
    if isinstance(content, dict):
        if len(keys := [key for key in LISTS if isinstance(content.get(key), list)]) != 1:
            raise CompanionError(f"{path} is a mapping of {', '.join(content):.80}; {_EXPECTED}")
        content["results"] = content.pop(keys[0])
    whole = content if isinstance(content, dict) else {"results": content}
    content = coco.validated(_Results, whole, path, _JSON)
    files = {image["id"]: image["file_name"] for image in content.get("images") or []}
    names = {category["id"]: category["name"] for category in content.get("categories") or []}
    return _given(content["results"], files, names)


def _columns(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, encoding="utf-8-sig") if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except Exception as error:  # a damaged file ends in whatever error its reader has
        raise CompanionError(f"{path} is not a readable {path.suffix[1:].lower()} file: {error}") from None
    other = {"image": "patch", "class": "label"}
    table = table.rename(columns={name: own for name, own in other.items() if own not in table})
    if missing := [column for column in PREDICTION_COLUMNS if column not in table]:
        expected = f"{', '.join(missing)}; it should have {', '.join(PREDICTION_COLUMNS)}"
        raise CompanionError(f"{path} lacks the column(s) {expected}")
    table = table[PREDICTION_COLUMNS].reset_index(drop=True)
    return table.apply(lambda column: column if is_numeric_dtype(column) else column.astype(str))


def _given(items: Sequence[Mapping[str, Any]], files: Mapping[Any, str], names: Mapping[int, str]) -> pd.DataFrame:
    """COCO annotations as rows, with images and classes by name where there are `files` and `names` of their ids.

    The box of what has none is NaN; its segmentation is in a column of that name.
    """
    rows = [
        (item.get("file_name") or files.get(k := item.get("image_id"), k), *(item.get("bbox") or [np.nan] * 4),
         item.get("score"), names.get(c := item["category_id"], c), item.get("segmentation")) for item in items
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*PREDICTION_COLUMNS, "segmentation"], dtype=object)
    table[NUMBERS] = table[NUMBERS].astype(float)
    table[["x2", "y2"]] += table[["x1", "y1"]].to_numpy()  # COCO writes width and height
    return table


def _usable(table: pd.DataFrame, truth: Truth, path: Path, found: list[str]) -> pd.DataFrame:
    """Rows with the ids and codes of `truth`, or one error that lists what is wrong, after what was `found` before."""
    files = {image["file_name"]: number for number, image in truth.images.items()}
    codes = {name: code for code, name in truth.classes.items()}
    read, table = table, table[PREDICTION_COLUMNS].copy()
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric, errors="coerce")
    boxes = table[BOX].to_numpy(dtype=float, na_value=np.nan)
    for column, numbers, named, what in (
        ("patch", truth.patches, files, "patch (image)"), ("label", truth.classes, codes, "class"),
    ):  # fmt: skip
        known = {given: number for number in numbers for given in (number, str(number))} | named
        for given in table[column].drop_duplicates():
            text, names = isinstance(given, str), []
            if text and column == "patch":  # some tools leave suffixes out, and pictures are converted
                names = meant(given, files) or meant(given, files, bare=True)
            if len(names) > 1:
                found.append(f"{what} {given!r} could be {' or '.join(names):.100}")
            elif names:
                known[given] = named[names[0]]
            elif given not in known:
                there = ", ".join(map(str, numbers))
                right = nearest(given, named) if text and named else f"the truths have {there:.60}"
                guess = "; if classes are counted from 0 here, add 1" * (column == "label" and given == 0)
                found.append(f"unknown {what} {given!r:.80}: {right:.100}{guess}")
        table[column] = table[column].map(lambda given, known=known: known.get(given, -1))
    masks = read.get("segmentation", pd.Series(dtype=object))
    for n in np.flatnonzero(np.isnan(boxes[: len(masks), 0])):  # only COCO annotations may lack a box
        image, own = truth.images.get(table["patch"].iloc[n], {}), masks.iloc[n]
        sides = (None, None) if isinstance(own, list) else (image.get("height"), image.get("width"))
        if problem := coco.outline_problem(own, *sides):
            found.append(f"entry {n + 1}: it has no bbox, and its segmentation cannot be used: {problem}")
        boxes[n] = 0 if problem else coco.segmentation_box(own)
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)  # an empty box is a box
    for n in np.flatnonzero(wrong):
        found.append(f"entry {n + 1}: box (x1, y1, x2, y2) = {tuple(read[BOX].iloc[n])} is inverted or not finite")
    table["score"] = table["score"].mask(table["score"].between(1, 1 + ROUNDING), 1)
    for n in np.flatnonzero(~table["score"].between(0, 1)):
        found.append(f"entry {n + 1}: score {read['score'].iloc[n]} is not in [0, 1]")
    if found:
        raise problems(f"{path}: entries that cannot be used", found)
    if len(masks):
        table[BOX] = boxes
    return table.astype({"patch": "int64", "label": "int64"})
