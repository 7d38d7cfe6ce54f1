"""Reading anyone's predictions and truths, joined by file name where predictions have one, else by image id.

Predictions are tables (parquet, CSV) or COCO results, alone or in a mapping with its own images and categories.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from companion.errors import CompanionError, nearest, problems
from companion.micrographs.coco import read_coco
from companion.micrographs.dataset import ANNOTATIONS
from companion.micrographs.outlines import lengths
from companion.micrographs.patches import Patches, load_patches

BOX = ["x1", "y1", "x2", "y2"]
PREDICTION_COLUMNS = ["patch", *BOX, "score", "label"]
ROUNDING = 1e-6  # by which a score may exceed 1: sums of float32 do
LISTS = ("annotations", "predictions", "results", "detections")  # where a mapping has its results
_EXPECTED = (
    "predictions should be a table (parquet or CSV), or COCO results (JSON, detectron2's coco_instances_results.json): "
    f"a list, or a mapping that has it under {', '.join(LISTS)}"
)


@dataclass(frozen=True)
class Truth:
    """What should have been found: a row per defect, in file order."""

    table: pd.DataFrame  # patch, x1, y1, x2, y2 (px), class (and instance, of a patches folder)
    patches: list[int]  # every patch, those without defects too (of COCO files the image ids)
    classes: dict[int, str]  # class code -> name
    images: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # COCO's entries, by image id


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Image(_Entry):
    id: int | str
    file_name: str


class _Category(_Entry):
    id: int
    name: str


class _Annotation(_Entry):
    image_id: int | str | None = None
    file_name: str | None = None
    category_id: int
    bbox: list[float] | None = Field(None, min_length=4, max_length=4)
    segmentation: Any = None
    score: float = 1.0


class _Result(_Annotation):
    score: float


def read_truth(path: Path) -> Truth:
    """Truths of a patches folder, a COCO annotations JSON or a data set folder with one.

    Crowd regions (iscrowd: 1) are defects like others, as at import: CVAT calls every painted mask one. A
    `CompanionError` lists what cannot be used.
    """
    if path.is_dir() and not (path / ANNOTATIONS).is_file():
        return truth_of(load_patches(path))
    path = path / ANNOTATIONS if path.is_dir() else path
    document = read_coco(path)
    names = {category["id"]: category["name"] for category in document["categories"]}
    images = {image["id"]: image for image in document["images"]}
    found = [] if images else ["there are no images to score"]
    found += [f"the id {number} does not fit 64 bits" for number in (*names, *images) if abs(number) >= 2**63]
    given = _given(_valid(_Annotation, document["annotations"], path))
    truth = Truth(given, list(images), names, images)
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
    try:
        items, files, names = json.loads(path.read_text(encoding="utf-8-sig")), {}, {}
    except (OSError, ValueError, RecursionError) as error:
        raise CompanionError(f"{path} is not JSON: {error}; {_EXPECTED}") from None
    if isinstance(items, dict):
        if len(keys := [key for key in LISTS if isinstance(items.get(key), list)]) != 1:
            raise CompanionError(f"{path} is a mapping of {', '.join(items):.80}; {_EXPECTED}")
        images, categories = (
            _valid(model, items.get(key) or [], f"{path}, {key}")
            for model, key in ((_Image, "images"), (_Category, "categories"))
        )
        files, names = {one.id: one.file_name for one in images}, {one.id: one.name for one in categories}
        items = items[keys[0]]
    return _given(_valid(_Result, items, path), files, names)


def _columns(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, encoding="utf-8-sig") if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except Exception as error:  # a damaged file ends in whatever error its reader has
        raise CompanionError(
            f"{path} is not a readable {path.suffix[1:].lower()} file ({error}); {_EXPECTED}"
        ) from None
    other = {"image": "patch", "class": "label"}
    table = table.rename(columns={name: own for name, own in other.items() if own not in table})
    if missing := [column for column in PREDICTION_COLUMNS if column not in table]:
        expected = f"{', '.join(missing)}; it should have {', '.join(PREDICTION_COLUMNS)}"
        raise CompanionError(f"{path} lacks the column(s) {expected}")
    table, found = table[PREDICTION_COLUMNS].reset_index(drop=True), []
    for name, column in table.items():
        named = name in ("patch", "label")
        if named and column.map(type).eq(str).all():
            continue
        table[name] = pd.to_numeric(column if is_numeric_dtype(column) else column.astype(str), errors="coerce")
        if table[name].isna().any() or (named and (table[name] % 1 != 0).any()):
            found.append(f"{name} should hold {'whole numbers, or names,' if named else 'numbers'} in every row")
    if found:
        raise problems(f"{path}: columns that cannot be used", found)
    return table


def _valid(model: type[BaseModel], items: Any, what: Path | str) -> list[Any]:
    """Entries of a JSON list; everything that is not as `model` says in one error, each kind once."""
    try:
        return TypeAdapter(list[model]).validate_python(items)  # type: ignore[valid-type]
    except ValidationError as error:
        kinds = defaultdict(list)
        for item in error.errors():
            kinds[item["loc"][1:2], item["msg"].partition(" or instance")[0]].append((item["loc"], item["input"]))
    found = []
    for (named, said), ((loc, given), *more) in kinds.items():
        line = (
            f"entry {loc[0] + 1}: {' '.join(map(str, named))} {given!r:.60}: {said}" if loc else f"{said}; {_EXPECTED}"
        )
        found.append(line + f" (and {len(more)} more of this kind)" * bool(more))
    raise problems(f"{what}: entries that cannot be used", found)


def _given(
    items: Sequence[Any], files: Mapping[Any, str] | None = None, names: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """COCO annotations as rows, with images and classes by name where the file has `files` and `names` of their ids.

    The box of what has none is NaN; its segmentation is in a column of that name.
    """
    boxes = np.array([item.bbox or [np.nan] * 4 for item in items], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # COCO writes width and height
    columns = {
        "patch": [item.file_name or (files or {}).get(item.image_id, item.image_id) for item in items],
        "label": [(names or {}).get(item.category_id, item.category_id) for item in items],
        "segmentation": [item.segmentation for item in items],
    }
    table = pd.DataFrame(boxes, columns=BOX).assign(score=np.array([item.score for item in items], dtype=float))
    return table.assign(**{name: pd.Series(values, dtype=object) for name, values in columns.items()})


def _usable(table: pd.DataFrame, truth: Truth, path: Path, found: list[str]) -> pd.DataFrame:
    """Rows with the ids and codes of `truth`, or one error that lists what is wrong, after what was `found` before."""
    files = {number: image["file_name"] for number, image in truth.images.items()}
    codes = {name: [code] for code, name in truth.classes.items()}
    masks, boxes = table.get("segmentation"), table[BOX].to_numpy(dtype=float, copy=True)
    table = table[PREDICTION_COLUMNS].copy()
    for column, known, names, meaning, what in (
        ("patch", truth.patches, files.values(), lambda name: _named(name, files), "patch (image)"),
        ("label", truth.classes, codes, lambda name: codes.get(name, []), "class"),
    ):
        ids = {key: [number] for number in known for key in (number, str(number))}
        fitting = {given: (isinstance(given, str) and meaning(given)) or ids.get(given, [])
                   for given in table[column].drop_duplicates()}  # fmt: skip
        for given, numbers in fitting.items():
            if len(numbers) > 1:
                found.append(f"{what} {given!r} could be {' or '.join(files[n] for n in numbers):.100}")
            elif not numbers:
                named = isinstance(given, str) and names
                right = nearest(given, names) if named else f"the truths have {', '.join(map(str, known)):.60}"
                guess = "; if classes are counted from 0 here, add 1" * (column == "label" and given == 0)
                found.append(f"unknown {what} {given!r:.80}: {right:.100}{guess}")
        table[column] = [next(iter(fitting[given]), -1) for given in table[column]]
    for n in np.flatnonzero(np.isnan(boxes[:, 0])):  # only COCO annotations may lack a box
        try:
            boxes[n] = segmentation_box(masks[n], truth.images.get(table["patch"].iloc[n], {}))
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            found.append(f"entry {n + 1}: it has no bbox, and its segmentation cannot be used: {error}")
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)  # an empty box is a box
    for n in np.flatnonzero(wrong & ~np.isnan(boxes[:, 0])):
        found.append(f"entry {n + 1}: box (x1, y1, x2, y2) = {tuple(boxes[n].tolist())} is inverted or not finite")
    table["score"] = table["score"].mask(table["score"].between(1, 1 + ROUNDING), 1)
    for n in np.flatnonzero(~table["score"].between(0, 1)):
        found.append(f"entry {n + 1}: score {table['score'].iloc[n]} is not in [0, 1]")
    if found:
        raise problems(f"{path}: entries that cannot be used", found)
    if masks is not None:
        table[BOX] = boxes
    return table.astype({"patch": "int64", "label": "int64"})


def _named(name: str, files: Mapping[int, str]) -> list[int]:
    """Ids of the `files` that a name may mean: of the two one is the end of the other, folder by folder.

    The longest such end counts, best the whole name. Where there is none, names are compared without suffix: some tools
    leave it out, and pictures are converted.
    """
    for bare in (False, True):
        own, ranks = _parts(name, bare), {}
        for number, file in files.items():
            parts = _parts(file, bare)
            n = min(len(own), len(parts))
            if own[-n:] == parts[-n:]:
                ranks[number] = (n, len(own) == len(parts))
        if ranks:
            return [number for number, rank in ranks.items() if rank == max(ranks.values())]
    return []


@cache
def _parts(name: str, bare: bool) -> list[str]:
    """Folders and name, parted by either slash; `bare` without the suffix of a picture."""
    text = unicodedata.normalize("NFC", name).replace("\\", "/")
    text = re.sub(r"\.(png|tiff?|jpe?g|bmp)$", "", text, flags=re.IGNORECASE) if bare else text
    return [part for part in text.split("/") if part not in ("", ".")] or [""]


def segmentation_box(segmentation: Any, image: Mapping[str, Any]) -> tuple[float, ...]:
    """Box (x1, y1, x2, y2), px, of COCO polygons or run lengths, compressed or not; of no pixels (0, 0, 0, 0).

    What is neither, is damaged, or has not the height and width that `image`, a COCO entry, may say, raises an
    ArithmeticError, KeyError, TypeError or ValueError.
    """
    if isinstance(segmentation, Mapping):
        (height, width), counts = segmentation["size"], segmentation["counts"]
        if (height, width) != (image.get("height") or height, image.get("width") or width):
            raise ValueError(f"they are of {width} x {height} px, not {image['width']} x {image['height']}")
        counts = lengths(counts) if isinstance(counts, str) else [n if n == int(n) else -1 for n in counts]
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise ValueError(f"its run lengths are not counts that add up to {width} x {height} px")
        ends = np.cumsum([0, *counts])
        starts, ends = ends[1:-1:2], ends[2::2]  # column by column, background first
        starts, ends = starts[ends > starts], ends[ends > starts]
        if not len(starts):
            return 0, 0, 0, 0
        x1, x2 = starts // height, (ends - 1) // height
        whole = (x2 > x1).any()  # a run from one column into the next touches both borders
        rows = (0, height) if whole else ((starts % height).min(), ((ends - 1) % height).max() + 1)
        return x1.min(), rows[0], x2.max() + 1, rows[1]
    rings = [np.asarray(ring, dtype=float) for ring in segmentation or [[]]]
    if any(ring.ndim != 1 or len(ring) < 6 or len(ring) % 2 for ring in rings):
        raise ValueError("it should be run lengths, or polygons of three or more x, y pairs")
    points = np.concatenate(rings).reshape(-1, 2)
    return *points.min(axis=0), *points.max(axis=0)
