"""Files of COCO instances, checked whole: every problem of a foreign file is reported at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from companion.errors import CompanionError, problems
from companion.micrographs.images import SUFFIXES, read_grey

TOLERANCE_PX = 1.0  # annotation tools round outwards, so an outline may end this far outside its image
SHOWN = 20  # problems listed before "and n more"


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

    @model_validator(mode="after")
    def _is_as_its_file(self, info: ValidationInfo) -> Self:
        if not info.context:
            return self
        folder = info.context["folder"].resolve()
        path = (folder / self.file_name).resolve()
        if not path.is_relative_to(folder) or path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise ValueError(f"missing from {folder} (images there are {', '.join(SUFFIXES)})")
        try:
            height, width = read_grey(path).shape
        except CompanionError as error:
            raise ValueError(str(error)) from None
        if (height, width) != (self.height, self.width):
            raise ValueError(f"is {width} x {height} px, annotated as {self.width} x {self.height}")
        if not self.pixel_size_nm or self.pixel_size_nm < 0:
            raise ValueError(f"pixel_size_nm should be a positive number of nm per px, is {self.pixel_size_nm}")
        info.context["sizes"][self.id] = height, width
        return self


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

    @model_validator(mode="after")
    def _lies_in_its_image(self, info: ValidationInfo) -> Self:
        if not info.context:
            return self
        if self.image_id not in info.context["files"]:
            raise ValueError(f"image_id {self.image_id} is not among the images")
        if self.category_id not in info.context["codes"]:
            raise ValueError(f"unknown category_id {self.category_id}; known: {info.context['codes']}")
        height, width = info.context["sizes"].get(self.image_id, (None, None))
        if height is None:
            return self  # its image is a problem of its own
        given = self.segmentation
        if isinstance(given, _RunLengths):
            pixels = height * width if isinstance(given.counts, str) else sum(given.counts)
            if given.size != [height, width] or pixels != height * width:
                raise ValueError(f"its run lengths are not those of {width} x {height} px")
        elif not given or any(len(ring) < 6 or len(ring) % 2 for ring in given):
            raise ValueError(
                "segmentation should be run lengths, or polygons of three or more x, y pairs (no box alone)"
            )
        elif any(not -TOLERANCE_PX <= v <= (height if k % 2 else width) + TOLERANCE_PX
                 for ring in given for k, v in enumerate(ring)):  # fmt: skip
            raise ValueError(f"a polygon reaches outside the {width} x {height} px image")
        return self


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

    With the folder of the images, a document that `read_coco` takes is looked at as the one format: images, their
    sizes and pixel sizes, outlines within them, classes.
    """
    context, files = None, {}
    if folder is not None:
        files = {image["id"]: image["file_name"] for image in document["images"]}
        codes = sorted(category["id"] for category in document["categories"])
        if not files or not 0 < len(codes) <= 255:
            return [f"it has {len(files)} images and {len(codes)} categories: one to 255 categories fit"]
        context = {"folder": folder, "files": files, "codes": codes, "sizes": {}}
    try:
        _Coco.model_validate(document, context=context)
    except ValidationError as error:
        found = [_line(item, document, files) for item in error.errors()]
        return found[:SHOWN] + [f"and {len(found) - SHOWN} more"] * (len(found) > SHOWN)
    return []


def _line(item: Any, document: Any, files: dict[int, str]) -> str:
    label = ".".join(map(str, item["loc"])) or "the whole"
    if files:  # a document whose entries are dicts with ids
        entry = document[item["loc"][0]][item["loc"][1]]
        label = entry.get("file_name") or f"{files.get(entry['image_id'])}, annotation {entry.get('id')}"
    shown = f" (given: {item['input']!r:.60})" * (item["type"] not in ("missing", "value_error"))
    return f"{label}: {item['msg'].removeprefix('Value error, ')}{shown}"
