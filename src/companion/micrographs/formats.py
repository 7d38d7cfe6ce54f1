"""Annotation formats of other tools, each read into a draft of the one format.

Every reader takes the annotation file (for label maps and YOLO the folder of them), the folder of the images and the
names of the classes in the order of their codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from scipy import ndimage

from companion.errors import CompanionError, nearest
from companion.geometry import encode_rle
from companion.micrographs.dataset import SUFFIXES, read_coco
from companion.micrographs.images import read_grey

IMAGE_SUFFIXES = (*SUFFIXES, ".jpg", ".jpeg", ".bmp")


@dataclass
class Draft:
    """A data set in the making: COCO images and annotations (class codes as category ids), and what is wrong."""

    classes: tuple[str, ...]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)

    def add_image(self, file_name: str, **known: Any) -> int:
        """Appends an image; returns its id."""
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, **known})
        return len(self.images)

    def add(self, image_id: int, code: int, segmentation: Any, **known: Any) -> None:
        """Appends an annotation."""
        self.annotations.append({"id": len(self.annotations) + 1, "image_id": image_id, "category_id": code,
                                 "segmentation": segmentation, "iscrowd": 0, **known})  # fmt: skip


def read_coco_instances(
    labels: Path, images: Path, classes: tuple[str, ...], merge: Mapping[str, str] | None = None
) -> Draft:
    """COCO instances, images and annotations with their ids; `classes` chooses and orders the categories, none keeps
    all in order of id.

    Parameters
    ----------
    merge : category -> class that it is part of: annotations of several categories become one class, which may have
        a category of its own; `classes` then names the class, not its parts
    """
    document, merge = read_coco(labels), merge or {}
    categories = {c["name"]: c["id"] for c in sorted(document["categories"], key=lambda c: c["id"])}
    names = list(dict.fromkeys(merge.get(name, name) for name in categories))  # in order of the first id of each
    draft = Draft(classes or tuple(names), card=dict(document["info"].get("dataset_card", {})))
    draft.found += [f"merge: there is no category '{name}'; {nearest(name, categories)}"
                    for name in merge if name not in categories]  # fmt: skip
    draft.found += [f"class '{name}' is merged into '{merge[name]}': name that" if name in merge
                    else f"class '{name}' is not among the categories; {nearest(name, names)}"
                    for name in classes if name not in names]  # fmt: skip
    codes = {id: draft.classes.index(merge.get(name, name)) + 1 for name, id in categories.items()
             if merge.get(name, name) in draft.classes}  # fmt: skip
    draft.images = [{**image, "file_name": _found_name(image["file_name"], images)} for image in document["images"]]
    for number, annotation in enumerate(document["annotations"], start=1):
        category = annotation["category_id"]
        if category in codes:
            draft.annotations.append({"id": number, **annotation, "category_id": codes[category]})
        elif category not in categories.values():
            draft.found.append(f"annotation {annotation.get('id', number)}: unknown category_id {category}")
    return draft


def read_labelmaps(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """One grey label map per micrograph, of the same stem: a grey value per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    draft, maps = Draft(classes), {}
    for path, label in _pairs(draft, images, labels, SUFFIXES):
        if label is None:
            draft.found.append(f"{path.name}: {labels} has no label map of that name")
        elif (pixels := _read(draft, label)) is not None:
            maps[path.name] = pixels
    values = sorted(set().union(*(np.unique(pixels).tolist() for pixels in maps.values())) - {0})
    codes = _codes_of_values(values, len(classes))
    if not codes and values:
        draft.found.append(f"label maps hold the values {values}, which do not fit {len(classes)} class(es)")
    for name, pixels in maps.items():
        height, width = map(int, pixels.shape)
        image_id = draft.add_image(name, height=height, width=width)
        for value, code in codes.items():
            regions, _ = ndimage.label(pixels == value, structure=np.ones((3, 3)))
            for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
                full = np.zeros((width, height, 1), dtype=np.uint8).T  # [1, H, W], run lengths go down its columns
                full[0, rows, columns] = regions[rows, columns] == number
                box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
                counts = encode_rle(full)[0].decode("ascii")
                draft.add(image_id, code, {"size": [height, width], "counts": counts}, bbox=box, area=int(full.sum()))
    return draft


def read_yolo(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """YOLO segmentation: per micrograph a text file of lines ``class x1 y1 x2 y2 ...``, shares of width and height.

    Classes count from 0; a micrograph without a text file is an empty one.
    """
    draft = Draft(classes)
    for path, text in _pairs(draft, images, labels, (".txt",)):
        if (pixels := _read(draft, path)) is None:
            continue
        height, width = map(int, pixels.shape)
        image_id = draft.add_image(path.name, height=height, width=width)
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text else []
        for place, line in ((f"{path.stem}.txt, line {k}", line) for k, line in enumerate(lines, 1) if line.strip()):
            try:
                code, *shares = map(float, line.split())
            except ValueError:
                draft.found.append(f"{place}: '{line[:60]}' is not a list of numbers")
                continue
            if code not in range(len(classes)):
                draft.found.append(f"{place}: class {code:g} is not in 0...{len(classes) - 1}")
            elif len(shares) < 6 or len(shares) % 2 or not all(-0.01 <= share <= 1.01 for share in shares):
                draft.found.append(f"{place}: needs three or more x, y pairs, shares in 0...1")
            else:
                polygon = np.clip(np.reshape(shares, (-1, 2)), 0, 1) * (width, height)
                draft.add(image_id, int(code) + 1, [polygon.ravel().tolist()])
    return draft


def read_via(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """VGG Image Annotator JSON, annotations or whole project; the class is a region attribute's value."""
    draft, content = Draft(classes), _json(labels)
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "filename" in e for e in entries.values()):
        raise CompanionError(f"{labels} is not a VIA annotation file: it should map keys to entries with a filename")
    for entry in entries.values():
        image_id = draft.add_image(_found_name(str(entry["filename"]), images))
        regions = entry.get("regions", [])
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
            given = region.get("region_attributes", {}).values()
            # An attribute is a text, or a mapping of boxes to whether they are ticked.
            chosen = [
                k
                for value in given
                for k in ([k for k, on in value.items() if on] if isinstance(value, dict) else [value])
            ]
            named = [name for name in chosen if name in classes]
            polygon = _via_polygon(region.get("shape_attributes", {}))
            if len(named) != 1:
                problem = f"its attributes {list(given)} name {len(named)} of {list(classes)}"
            elif polygon is None:
                problem = "only polygon, polyline, circle and ellipse say which pixels"
            else:
                draft.add(image_id, classes.index(named[0]) + 1, [polygon])
                continue
            draft.found.append(f"{entry['filename']}, region {number}: {problem}")
    return draft


def _via_polygon(shape: dict[str, Any]) -> list[float] | None:
    try:
        if shape["name"] in ("polygon", "polyline"):
            points = np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1)
        else:  # circle or ellipse; anything else has no radius
            across, turn = np.deg2rad(np.arange(0, 360, 10)), float(shape.get("theta", 0))
            x = shape.get("rx", shape.get("r")) * np.cos(across)
            y = shape.get("ry", shape.get("r")) * np.sin(across)
            points = np.stack([shape["cx"] + x * np.cos(turn) - y * np.sin(turn),
                               shape["cy"] + x * np.sin(turn) + y * np.cos(turn)], axis=1)  # fmt: skip
        return points.astype(float).ravel().tolist()
    except (KeyError, TypeError, ValueError):
        return None


def read_detectron2(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """A JSON list of detectron2's standard dicts; classes count from 0."""
    draft, content = Draft(classes), _json(labels)
    if not isinstance(content, list) or not all(isinstance(e, dict) and "file_name" in e for e in content):
        raise CompanionError(f"{labels} is not a list of detectron2 dicts, each with a file_name")
    for entry in content:
        sizes = {key: entry[key] for key in ("height", "width") if key in entry}
        image_id = draft.add_image(_found_name(str(entry["file_name"]), images), **sizes)
        for number, annotation in enumerate(entry.get("annotations", [])):
            code = annotation.get("category_id")
            if code in range(len(classes)):
                draft.add(image_id, code + 1, annotation.get("segmentation"))
            else:
                said = f"category_id {code!r} is not in 0...{len(classes) - 1}"
                draft.found.append(f"{entry['file_name']}, annotation {number}: {said}")
    return draft


FORMATS: dict[str, Callable[[Path, Path, tuple[str, ...]], Draft]] = {
    "coco": read_coco_instances, "labelmap": read_labelmaps, "yolo-seg": read_yolo, "via": read_via,
    "detectron2": read_detectron2,
}  # fmt: skip


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompanionError(f"{path} is not a JSON file: {error}") from None


def _read(draft: Draft, path: Path) -> np.ndarray | None:
    """An image [H, W], or a note of what is wrong with it."""
    try:
        return read_grey(path)
    except CompanionError as error:
        draft.found.append(str(error))
        return None


def _found_name(name: str, images: Path) -> str:
    """A file name as given, where it is found in `images`, or without the folders that its author's machine had."""
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return name if inside and (images / name).is_file() else PureWindowsPath(name).name  # parted by either slash


def _pairs(draft: Draft, images: Path, labels: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, Path | None]]:
    """Images with the label file of the same stem, if any; notes label files without an image."""
    partners = {path.stem: path for path in sorted(labels.iterdir()) if path.suffix.lower() in suffixes}
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        draft.found.append(f"{images} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    yield from ((path, partners.pop(path.stem, None)) for path in files)
    draft.found += [f"{path.name}: there is no image of that name" for path in partners.values()
                    if path.name != "classes.txt"]  # fmt: skip


def _codes_of_values(values: list[int], n: int) -> dict[int, int]:
    """Class code by grey value; empty where the values do not fit `n` classes."""
    full = 255 if not values or values[-1] <= 255 else 65535
    for steps in (
        [*range(1, n + 1)],
        [round(full * k / n) for k in range(1, n + 1)],
        values if len(values) == n else [],
    ):
        if set(values) <= set(steps):
            return {value: steps.index(value) + 1 for value in values}
    return {}
