"""COCO instances: files, of which every problem is reported at once, and segmentations as masks and back."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from companion.errors import CompanionError, problems
from companion.geometry import box_of

OUTSIDE_SHARE = 0.1  # of its pixels, that an outline may have outside its image: there it is cut off
TOLERANCE_PX = 1.0  # annotation tools round outwards, so an outline may end this far outside without being noted

Window = tuple[slice, slice]  # (rows, columns)
Rings = Sequence[Sequence[float]]  # polygons x1, y1, x2, y2, ... px; of one segmentation they are united
T = TypeVar("T")


def _unique(entries: list[Any]) -> list[Any]:
    for name in ("id", "file_name", "name"):
        first: dict[Any, Any] = {}
        for entry in (entry for entry in entries if hasattr(entry, name)):
            if entry is not first.setdefault(value := getattr(entry, name), entry):
                ids = f" (ids {first[value].id}, {entry.id})" * (name != "id")
                raise ValueError(f"two have the {name} {value!r}{ids}")
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


Whole = Annotated[int, BeforeValidator(_whole), Field(ge=-(2**63), lt=2**63)]
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


class Category(Entry):
    id: Whole
    name: str


class _Annotation(Entry):
    id: Whole | None = None
    image_id: Whole
    category_id: Whole
    segmentation: Segmentation = None


class _Coco(Entry):
    info: _Info
    images: Annotated[list[_Image], AfterValidator(_unique)]
    categories: Annotated[list[Category], AfterValidator(_unique)]
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
        places, kinds = {}, defaultdict(list)
        for item in error.errors(include_url=False):  # deeper, every kind that an entry could be of says why it is not
            places.setdefault(item["loc"][:3], item)
        for place, item in places.items():
            label = ", ".join(f"entry {step + 1}" if isinstance(step, int) else step for step in place)
            shown = f" (given: {item['input']!r:.60})" * (item["type"] not in ("missing", "value_error"))
            said = item["msg"].removeprefix("Value error, ").partition(" or instance of")[0]
            kind = tuple(step for step in place if isinstance(step, str)), item["msg"]
            kinds[kind].append(f"{label or 'the whole'}: {said}{shown}")
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


def _counts(text: str) -> list[int] | None:
    """Run lengths in COCO's compressed text; None where it is none: the library decodes that to what lies in memory.

    A character has five bits of a number, lowest first, and whether more follow; its highest bit is the sign. The
    fourth number and later are less the last but one.
    """
    if not re.fullmatch("([P-o]*[0-O])*", text):
        return None
    counts: list[int] = []
    for digits in re.findall("[P-o]*[0-O]", text):
        value = sum((ord(digit) - 48 & 31) << 5 * k for k, digit in enumerate(digits))
        value -= (ord(digits[-1]) - 48 & 16 and 1) << 5 * len(digits)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def outline_problem(given: Any, height: int | None, width: int | None) -> str:
    """Why a segmentation is none of an image of that size, px (None: any); empty where it is one."""
    if isinstance(given, Mapping):
        (rows, columns), counts = given["size"], given["counts"]
        if (counts := _counts(counts) if isinstance(counts, str) else counts) is None:
            return f"its run lengths {given['counts']!r:.20} are not COCO's: damaged, or cut off within a number"
        if (height or rows, width or columns) != (rows, columns):
            return f"its run lengths are of {columns} x {rows} px, not {width} x {height}"
        right = min(counts, default=0) >= 0 and sum(counts) == rows * columns
        return "" if right else f"its run lengths are not counts that add up to {columns} x {rows} px"
    if not given or any(len(ring) < 6 or len(ring) % 2 or not np.isfinite(ring).all() for ring in given):
        return "segmentation should be run lengths, or polygons of three or more x, y pairs (no box alone)"
    share = 0.0
    if height and width and leaves(given, height, width):
        margin = int(max(np.abs(ring).max() for ring in given)) + 1
        # An outline as far away as a whole image is none of it.
        moved = [(np.asarray(ring) + margin).tolist() for ring in given] if margin < 2 * max(height, width) else []
        whole = coco.area(_drawn(moved, height + 2 * margin, width + 2 * margin)) if moved else 0
        share = 1 - coco.area(_drawn(given, height, width)) / whole if whole else 1.0
    if share <= OUTSIDE_SHARE:
        return ""
    said = f"a polygon reaches outside the {width} x {height} px image with {share:.0%} of its area"
    return f"{said} (up to {OUTSIDE_SHARE:.0%} is cut off): redraw it, or is it another image's?"


def _drawn(given: Any, height: int, width: int) -> Any:
    """A segmentation as compressed run lengths: polygons are united, and lie in an image of that size, px."""
    if isinstance(given, Mapping):
        return coco.frPyObjects(given, *given["size"]) if isinstance(given["counts"], list) else given
    return coco.merge(coco.frPyObjects(given, height, width))


def reach(rings: Rings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and the highest x, y of polygons, px."""
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in rings])
    return points.min(axis=0), points.max(axis=0)


def leaves(rings: Rings, height: int, width: int) -> bool:
    """Whether polygons reach farther out of an image than tools round."""
    low, high = reach(rings)
    return bool(max(*-low, *(high - (width, height))) > TOLERANCE_PX)


def segmentation_box(given: Any) -> tuple[float, ...]:
    """Box (x1, y1, x2, y2), px, of a segmentation without an `outline_problem`; of no pixels (0, 0, 0, 0)."""
    if not isinstance(given, Mapping):
        return tuple(np.concatenate(reach(given)).tolist())
    x, y, w, h = coco.toBbox(_drawn(given, 0, 0)).tolist()
    return x, y, x + w, y + h


def run_lengths(mask: NDArray[np.bool_], window: Window, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of a mask [h, w], not empty, that lies in a window of an image of that size, px."""
    columns, rows = np.nonzero(mask.T)
    pixels = (columns + window[1].start) * height + rows + window[0].start  # down the columns
    gaps = np.flatnonzero(np.diff(pixels) != 1)
    ends = np.stack([pixels[np.r_[0, gaps + 1]], pixels[np.r_[gaps, -1]] + 1], axis=1).ravel()
    plain = {"size": [height, width], "counts": np.diff(np.r_[0, ends, height * width]).tolist()}
    return {**plain, "counts": _drawn(plain, height, width)["counts"].decode("ascii")}


def segmentation_mask(segmentation: Any, height: int, width: int) -> tuple[NDArray[np.bool_], Window]:
    """Pixels of a segmentation: a mask, bool [h, w], which may be empty, and the window of the image that it fills."""
    if isinstance(segmentation, Mapping):
        mask = coco.decode(_drawn(segmentation, height, width)).astype(bool)
        x1, y1, x2, y2 = box_of(mask)
        return mask[y1:y2, x1:x2], (slice(y1, y2), slice(x1, x2))
    # Polygons are drawn in their own window: a 4096 px micrograph has hundreds of small ones.
    low, high = reach(segmentation)
    x1, y1 = np.clip(np.floor(low) - 1, 0, (width, height)).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(high) + 1, 0, (width, height)).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return np.zeros((0, 0), dtype=bool), (slice(0, 0), slice(0, 0))
    shifted = [(np.reshape(ring, (-1, 2)) - (x1, y1)).ravel().tolist() for ring in segmentation]
    return coco.decode(_drawn(shifted, y2 - y1, x2 - x1)).astype(bool), (slice(y1, y2), slice(x1, x2))
