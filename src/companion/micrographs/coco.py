"""Files of COCO instances, checked whole: every problem of a foreign file is reported at once."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from companion.errors import CompanionError, problems
from companion.micrographs.images import SUFFIXES, read_grey
from companion.micrographs.outlines import outline_problem

T = TypeVar("T")


def _unique(entries: list[Any]) -> list[Any]:
    for name in ("id", "file_name", "name"):
        seen = Counter(getattr(entry, name) for entry in entries if hasattr(entry, name))
        if seen and max(seen.values()) > 1:
            twice = max(seen, key=seen.get)
            ids = [entry.id for entry in entries if getattr(entry, name) == twice]
            raise ValueError(f"two have the {name} {twice!r}" + f" (ids {ids[0]}, {ids[1]})" * (name != "id"))
    return entries


def _whole(value: Any) -> Any:
    """Whole numbers that tools write as text or with a decimal point; their meaning is clear."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _rings(value: Any) -> Any:
    """Polygons; VIA 2 writes one without the brackets around it."""
    return [value] if isinstance(value, list) and value and isinstance(value[0], (int, float)) else value


def _without_odd_box(value: Any) -> Any:
    """Boxes of annotations repeat what outlines say, and tools that have none leave odd things there."""
    if not isinstance(value, dict) or "bbox" not in value:
        return value
    four = isinstance(box := value["bbox"], list) and len(box) == 4
    return value if four and all(type(v) in (int, float) and abs(v) <= 1e7 for v in box) else {**value, "bbox": None}


Whole = Annotated[int, BeforeValidator(_whole)]
Ring = list[Annotated[float, Field(ge=-1e7, le=1e7)]]  # x1, y1, x2, y2, ... px
Box = Annotated[list[Annotated[int | float, Field(ge=-1e7, le=1e7)]], Field(min_length=4, max_length=4)]  # x, y, w, h


class Entry(BaseModel):
    """An entry of a foreign file: what is not named here is kept as it is."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class RunLengths(Entry):
    """COCO's run lengths, compressed or not."""

    size: Annotated[list[Whole], Field(min_length=2, max_length=2)]
    counts: str | list[Whole]


Segmentation = Annotated[RunLengths | list[Ring] | None, BeforeValidator(_rings)]


class _Info(Entry):
    dataset_card: dict[str, Any] = {}


class _Image(Entry):
    id: Whole
    file_name: str
    width: Whole | None = None
    height: Whole | None = None
    pixel_size_nm: float | None = None


class _Category(Entry):
    id: Whole
    name: str
    supercategory: Any = None


class _Annotation(Entry):
    id: Whole | None = None
    image_id: Whole
    category_id: Whole
    segmentation: Segmentation = None


class _Coco(Entry):
    info: _Info
    images: Annotated[list[_Image], AfterValidator(_unique)]
    categories: Annotated[list[_Category], AfterValidator(_unique)]
    annotations: list[Annotated[_Annotation, BeforeValidator(_without_odd_box)]]


def read_json(path: Path) -> Any:
    """What a JSON file holds, in UTF-8 or 16, with or without a byte-order mark."""
    if not path.is_file():
        raise CompanionError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; one JSON file is needed")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CompanionError(f"{path} is not a readable JSON file: {error}") from None


def validated(model: type[T], content: Any, path: Path, what: str) -> Any:
    """`content` in the plain types of `model`; a `CompanionError` says all that is not as it should be."""
    try:
        adapter = TypeAdapter(model)
        return adapter.dump_python(adapter.validate_python(content), exclude_unset=True, warnings=False)
    except ValidationError as error:
        kinds, seen = defaultdict(list), set()
        for item in error.errors(include_url=False):
            place = item["loc"][:3]  # deeper, every kind that an entry could be of says why it is not
            if place not in seen:
                seen.add(place)
                label = ", ".join(f"entry {step + 1}" if isinstance(step, int) else step for step in place)
                shown = f" (given: {item['input']!r:.60})" * (item["type"] not in ("missing", "value_error"))
                said = item["msg"].removeprefix("Value error, ").partition(" or instance of")[0]
                said = f"{label or 'the whole'}: {said}{shown}"
                kinds[tuple(step for step in place if isinstance(step, str)), item["msg"]].append(said)
        found = [line + f" (and {len(more)} more of this kind)" * bool(more) for line, *more in kinds.values()]
    looks = {"shapes": "labelme", "_via_img_metadata": "via", "metadata": "via"}
    other = [f" (is it --format {looks[key]}?)" for key in looks if isinstance(content, dict) and key in content]
    raise problems(f"{path} is not {what}{''.join(other[:1])}:", found)


def read_coco(path: Path) -> dict[str, Any]:
    """Lists of dicts images, categories (of both id, and file_name or name, unique), annotations, and a dict info.

    Annotations have an image_id and a category_id, which need not be among these.
    """
    document = read_json(path)
    if isinstance(document, dict):
        document["info"] = document.get("info") or {}
    return validated(_Coco, document, path, "a COCO annotation file")


def unusable(document: dict[str, Any], folder: Path) -> list[str]:
    """What keeps a COCO document from being a data set whose images lie in `folder`, a line each."""
    folder, files = folder.resolve(), {image["id"]: image["file_name"] for image in document["images"]}
    codes = [category["id"] for category in document["categories"]]
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
            said = outline_problem(annotation.get("segmentation"), *shapes[image]) if image in shapes else ""
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
