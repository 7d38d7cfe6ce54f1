"""Files of COCO instances, checked whole: every problem of a foreign file is reported at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from companion.errors import CompanionError, problems
from companion.micrographs.images import SUFFIXES, read_grey

TOLERANCE_PX = 1.0  # annotation tools round outwards, so an outline may end this far outside its image


def _unique(entries: list[Any]) -> list[Any]:
    for name in ("id", "file_name", "name"):
        seen = Counter(getattr(entry, name) for entry in entries if hasattr(entry, name))
        if seen and max(seen.values()) > 1:
            raise ValueError(f"two have the {name} {max(seen, key=seen.get)!r}")
    return entries


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Image(_Entry):
    id: int
    file_name: str
    width: int | None = None
    height: int | None = None
    pixel_size_nm: float | None = None


class _Category(_Entry):
    id: int
    name: str


class _RunLengths(_Entry):
    size: list[int]
    counts: str | list[int]


class _Annotation(_Entry):
    image_id: int
    category_id: int
    segmentation: _RunLengths | list[list[float]] | None = None


class _Coco(_Entry):
    info: dict[str, Any]
    images: Annotated[list[_Image], AfterValidator(_unique)]
    categories: Annotated[list[_Category], AfterValidator(_unique)]
    annotations: list[_Annotation]


def read_coco(path: Path) -> dict[str, Any]:
    """Lists of dicts images, categories (of both id, and file_name or name, unique), annotations, and a dict info.

    Annotations have an image_id and a category_id, which need not be among these.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompanionError(f"{path} is not a COCO annotation file: {error}") from None
    if isinstance(document, dict):
        document["info"] = document.get("info") or {}
    if found := coco_problems(document):
        raise problems(f"{path} is not a COCO annotation file:", found)
    return document


def coco_problems(document: Any, folder: Path | None = None) -> list[str]:
    """What is wrong with a COCO document, a line each.

    With the folder of the images it is looked at as the one format: images, their sizes and pixel sizes, outlines
    within them, classes.
    """
    found = []
    try:
        _Coco.model_validate(document)
    except ValidationError as error:
        for item in error.errors():
            shown = f" (given: {item['input']!r:.60})" * (item["type"] not in ("missing", "value_error"))
            label = ".".join(map(str, item["loc"])) or "the whole"
            found.append(f"{label}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return found or ([] if folder is None else _unusable(document, folder.resolve()))


def _unusable(document: dict[str, Any], folder: Path) -> list[str]:
    files = {image["id"]: image["file_name"] for image in document["images"]}
    codes = sorted(category["id"] for category in document["categories"])
    if not files or not 0 < len(codes) <= 255:
        return [f"it has {len(files)} images and {len(codes)} categories: one to 255 categories fit"]
    found, shapes = [], {}
    for image in document["images"]:
        try:
            shapes[image["id"]] = _shape(image, folder)
        except CompanionError as error:
            found.append(f"{image['file_name']}: {error}")
    for annotation in document["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in files:
            said = f"image_id {image} is not among the images"
        elif category not in codes:
            said = f"unknown category_id {category}; known: {codes}"
        else:  # where its image has a problem, that is told already
            said = _outside(annotation.get("segmentation"), *shapes[image]) if image in shapes else ""
        found += [f"{files.get(image)}, annotation {annotation.get('id')}: {said}"] * bool(said)
    return found


def _shape(image: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Height and width of an image, px, which should be as annotated."""
    path, size = (folder / image["file_name"]).resolve(), image.get("pixel_size_nm")
    if not path.is_relative_to(folder) or path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise CompanionError(f"missing from {folder} (images there are {', '.join(SUFFIXES)})")
    height, width = read_grey(path).shape
    if (height, width) != (image.get("height"), image.get("width")):
        raise CompanionError(f"is {width} x {height} px, annotated as {image.get('width')} x {image.get('height')}")
    if not size or size < 0:
        raise CompanionError(f"pixel_size_nm should be a positive number of nm per px, is {size}")
    return height, width


def _outside(given: Any, height: int, width: int) -> str:
    """Why a segmentation is none of an image of that size; empty where it is one."""
    if isinstance(given, dict):
        pixels = height * width if isinstance(given["counts"], str) else sum(given["counts"])
        fits = given["size"] == [height, width] and pixels == height * width
        return "" if fits else f"its run lengths are not those of {width} x {height} px"
    if not given or any(len(ring) < 6 or len(ring) % 2 for ring in given):
        return "segmentation should be run lengths, or polygons of three or more x, y pairs (no box alone)"
    ends = [(value, height if k % 2 else width) for ring in given for k, value in enumerate(ring)]
    inside = all(-TOLERANCE_PX <= value <= end + TOLERANCE_PX for value, end in ends)
    return "" if inside else f"a polygon reaches outside the {width} x {height} px image"
