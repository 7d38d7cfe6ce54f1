"""Annotation formats of other tools, each read into a draft of the one format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from companion.micrographs.dataset import SUFFIXES, read_document
from companion.micrographs.images import annotation_of, read_grey
from companion.errors import CompanionError, nearest

IMAGE_SUFFIXES = (*SUFFIXES, ".jpg", ".jpeg", ".bmp")
CIRCLE_POINTS = 36


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

    def add(self, image_id: int, code: int, segmentation: Any) -> None:
        self.annotations.append({"image_id": image_id, "category_id": code, "segmentation": segmentation, "iscrowd": 0})


def read_coco(labels: Path, images: Path, classes: tuple[str, ...], merge: Mapping[str, str] | None = None) -> Draft:
    """COCO instances; `classes` chooses and orders its categories, none keeps all in order of id.

    Parameters
    ----------
    merge : category -> class that it is part of: annotations of several categories become one class, which may have
        a category of its own; `classes` then names the class, not its parts
    """
    document, merge = read_document(labels), merge or {}
    good = [c for c in document["categories"] if isinstance(c, dict) and {"id", "name"} <= c.keys()]
    categories = {c["name"]: c["id"] for c in sorted(good, key=lambda c: str(c["id"]).zfill(9))}
    names = {merge.get(name, name): None for name in categories}  # in order of the first id of each
    draft = Draft(classes or tuple(names), card=dict(document["info"].get("dataset_card", {})))
    draft.found += [f"merge: there is no category '{name}'; {nearest(name, categories)}"
                    for name in merge if name not in categories]  # fmt: skip
    draft.found += [f"class '{name}' is merged into '{merge[name]}': name that" if name in merge
                    else f"class '{name}' is not among the categories; {nearest(name, names)}"
                    for name in classes if name not in names]  # fmt: skip
    code_of = {name: code for code, name in enumerate(draft.classes, start=1) if name in names}
    codes = {categories[name]: code_of[of] for name in categories if (of := merge.get(name, name)) in code_of}
    ids: dict[Any, int] = {}
    for image in document["images"]:
        if not isinstance(image, dict) or "id" not in image or not isinstance(image.get("file_name"), str):
            draft.found.append(f"an image needs id and file_name, is {str(image)[:80]}")
            continue
        if image["id"] in ids:
            draft.found.append(f"{image['file_name']}: id {image['id']} is used by two images")
        known = {key: value for key, value in image.items() if key not in ("id", "file_name")}
        ids[image["id"]] = draft.add_image(_found_name(image["file_name"], images), **known)
    for annotation in document["annotations"]:
        label = f"annotation {annotation.get('id')}" if isinstance(annotation, dict) else str(annotation)[:80]
        if not isinstance(annotation, dict) or annotation.get("image_id") not in ids:
            draft.found.append(f"{label}: its image_id is not among the images")
        elif annotation.get("category_id") in codes:
            code = codes[annotation["category_id"]]
            draft.annotations.append({**annotation, "image_id": ids[annotation["image_id"]], "category_id": code})
        elif annotation.get("category_id") not in categories.values():
            draft.found.append(f"{label}: unknown category_id {annotation.get('category_id')!r}")
    return draft


def read_labelmaps(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """One grey label map per micrograph, of the same stem: a grey value per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    from scipy import ndimage

    draft = Draft(_needed(classes, "labelmap"))
    maps, values = {}, set()
    for path, stem in _pairs(draft, images, labels, SUFFIXES, "label map"):
        try:
            maps[path.name] = read_grey(stem)
        except CompanionError as error:
            draft.found.append(str(error))
            continue
        values |= set(np.unique(maps[path.name]).tolist())
    codes = _codes_of_values(sorted(values - {0}), len(classes))
    if codes is None:
        draft.found.append(
            f"label maps hold the values {sorted(values - {0})}, which do not fit {len(classes)} class(es)"
        )
    for name, pixels in maps.items():
        image_id = draft.add_image(name, height=int(pixels.shape[0]), width=int(pixels.shape[1]))
        for value in np.unique(pixels[pixels > 0]).tolist() if codes else ():
            regions, _ = ndimage.label(pixels == value, structure=np.ones((3, 3)))
            for number, window in enumerate(ndimage.find_objects(regions), start=1):
                entry = annotation_of(regions[window] == number, window, pixels.shape, codes[value])
                draft.annotations.append({"image_id": image_id, **entry})
    return draft


def read_yolo(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """YOLO segmentation: per micrograph a text file of lines ``class x1 y1 x2 y2 ...``, shares of width and height.

    Classes count from 0; a micrograph without a text file is an empty one.
    """
    draft = Draft(_needed(classes, "yolo-seg"))
    stems = {path.stem for path in _image_files(images)}
    draft.found += [f"{path.name}: there is no image of that name" for path in sorted(labels.glob("*.txt"))
                    if path.stem not in stems and path.name != "classes.txt"]  # fmt: skip
    for path in _image_files(images):
        try:
            height, width = read_grey(path).shape
        except CompanionError as error:
            draft.found.append(str(error))
            continue
        image_id = draft.add_image(path.name, height=int(height), width=int(width))
        text = labels / f"{path.stem}.txt"
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.is_file() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                code, *shares = (float(part) for part in line.split())
            except ValueError:
                draft.found.append(f"{text.name}, line {number}: '{line[:60]}' is not a list of numbers")
                continue
            if code != int(code) or not 0 <= code < len(classes):
                draft.found.append(f"{text.name}, line {number}: class {code:g} is not in 0...{len(classes) - 1}")
            elif len(shares) < 6 or len(shares) % 2 or not all(-0.01 <= share <= 1.01 for share in shares):
                draft.found.append(f"{text.name}, line {number}: needs three or more x, y pairs, shares in 0...1")
            else:
                polygon = (np.clip(np.reshape(shares, (-1, 2)), 0, 1) * (width, height)).ravel().tolist()
                draft.add(image_id, int(code) + 1, [polygon])
    return draft


def read_via(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """VGG Image Annotator JSON, annotations or whole project; the class is a region attribute's value."""
    draft = Draft(_needed(classes, "via"))
    content = _json(labels)
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "filename" in e for e in entries.values()):
        raise CompanionError(f"{labels} is not a VIA annotation file: it should map keys to entries with a filename")
    for entry in entries.values():
        image_id = draft.add_image(_found_name(str(entry["filename"]), images))
        regions = entry.get("regions", [])
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
            label = f"{entry['filename']}, region {number}"
            attributes = region.get("region_attributes", {}).values() if isinstance(region, dict) else ()
            named = [str(name) for value in attributes for name in _chosen(value) if str(name) in classes]
            polygon = _via_polygon(region.get("shape_attributes", {})) if isinstance(region, dict) else None
            if len(named) != 1:
                draft.found.append(f"{label}: its attributes {list(attributes)} name {len(named)} of {list(classes)}")
            elif polygon is None:
                draft.found.append(f"{label}: only polygon, polyline, circle and ellipse say which pixels")
            else:
                draft.add(image_id, classes.index(named[0]) + 1, [polygon])
    return draft


def read_detectron2(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """A JSON list of detectron2's standard dicts; classes count from 0."""
    draft = Draft(_needed(classes, "detectron2"))
    content = _json(labels)
    if not isinstance(content, list) or not all(isinstance(e, dict) and "file_name" in e for e in content):
        raise CompanionError(f"{labels} is not a list of detectron2 dicts, each with a file_name")
    for entry in content:
        sizes = {key: entry[key] for key in ("height", "width") if key in entry}
        image_id = draft.add_image(_found_name(str(entry["file_name"]), images), **sizes)
        for number, annotation in enumerate(entry.get("annotations", [])):
            code = annotation.get("category_id") if isinstance(annotation, dict) else None
            if not isinstance(code, int) or not 0 <= code < len(classes):
                draft.found.append(
                    f"{entry['file_name']}, annotation {number}: category_id {code!r} is not in 0...{len(classes) - 1}"
                )
            else:
                draft.add(image_id, code + 1, annotation.get("segmentation"))
    return draft


FORMATS: dict[str, Callable[[Path, Path, tuple[str, ...]], Draft]] = {
    "coco": read_coco,
    "labelmap": read_labelmaps,
    "yolo-seg": read_yolo,
    "via": read_via,
    "detectron2": read_detectron2,
}


def _needed(classes: tuple[str, ...], format: str) -> tuple[str, ...]:
    if not classes or len(set(classes)) < len(classes):
        raise CompanionError(f"format {format} needs the class names, each once, in order (given: {list(classes)})")
    return classes


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompanionError(f"{path} is not a JSON file: {error}") from None


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _found_name(name: str, images: Path) -> str:
    """A file name as given, or without the folders that its author's machine had."""
    bare = name.replace("\\", "/").rsplit("/", 1)[-1]
    return bare if (images / bare).is_file() or not (images / name).is_file() else name


def _pairs(
    draft: Draft, images: Path, labels: Path, suffixes: tuple[str, ...], what: str
) -> Iterator[tuple[Path, Path]]:
    """Micrographs with the label file of the same stem; notes those that lack a partner."""
    partners = {path.stem: path for path in sorted(labels.iterdir()) if path.suffix.lower() in suffixes}
    files = _image_files(images)
    if not files:
        draft.found.append(f"{images} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    for path in files:
        if path.stem in partners:
            yield path, partners.pop(path.stem)
        else:
            draft.found.append(f"{path.name}: {labels} has no {what} of that name")
    draft.found += [f"{path.name}: there is no image of that name" for path in partners.values()]


def _codes_of_values(values: list[int], n: int) -> dict[int, int] | None:
    full = 255 if not values or values[-1] <= 255 else 65535
    for steps in ([*range(1, n + 1)], [round(full * k / n) for k in range(1, n + 1)]):
        if set(values) <= set(steps):
            return {value: steps.index(value) + 1 for value in values}
    return {value: code for code, value in enumerate(values, start=1)} if len(values) == n else None


def _chosen(value: Any) -> list[Any]:
    """Values of a VIA attribute: text, or a mapping of ticked boxes."""
    return [key for key, ticked in value.items() if ticked] if isinstance(value, dict) else [value]


def _via_polygon(shape: dict[str, Any]) -> list[float] | None:
    try:
        if shape.get("name") in ("polygon", "polyline"):
            return np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1).ravel().astype(float).tolist()
        if shape.get("name") in ("circle", "ellipse"):
            rx, ry = shape.get("rx", shape.get("r")), shape.get("ry", shape.get("r"))
            t, turn = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False), float(shape.get("theta", 0))
            along, across = rx * np.cos(t), ry * np.sin(t)
            x = shape["cx"] + along * np.cos(turn) - across * np.sin(turn)
            y = shape["cy"] + along * np.sin(turn) + across * np.cos(turn)
            return np.stack([x, y], axis=1).ravel().tolist()
    except (KeyError, TypeError, ValueError):
        pass
    return None
