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
from PIL import Image
from scipy import ndimage

from companion.errors import CompanionError, nearest
from companion.geometry import encode_rle
from companion.micrographs.dataset import SUFFIXES, read_coco
from companion.micrographs.images import read_grey

IMAGE_SUFFIXES = (*SUFFIXES, ".jpg", ".jpeg", ".bmp")
Entry = dict[str, Any]


@dataclass
class Draft:
    """A data set in the making.

    Attributes
    ----------
    images : entries of COCO images, each with those of its annotations (class codes as category_id, no image_id)
    found : what is wrong
    """

    classes: tuple[str, ...]
    images: list[tuple[Entry, list[Entry]]] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)


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
    own: dict[int, list[Entry]] = {image["id"]: [] for image in document["images"]}
    draft.images = [({**image, "file_name": _found_name(image["file_name"], images)}, own[image["id"]])
                    for image in document["images"]]  # fmt: skip
    for annotation in document["annotations"]:
        image, category, label = annotation.pop("image_id"), annotation["category_id"], annotation.get("id")
        if image not in own:
            draft.found.append(f"annotation {label}: image_id {image} is not among the images")
        elif category in codes:
            own[image].append({**annotation, "category_id": codes[category]})
        elif category not in categories.values():
            draft.found.append(f"annotation {label}: unknown category_id {category}")
    return draft


def read_labelmaps(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """One grey label map per micrograph, of the same stem: a grey value per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    draft, maps, n = Draft(classes), {}, len(classes)
    for path, label in _pairs(draft, images, labels, SUFFIXES):
        try:
            maps[path.name] = read_grey(label or labels / path.name)
        except CompanionError as error:
            draft.found.append(str(error) if label else f"{path.name}: {labels} has no label map of that name")
    values = sorted(set().union(*(np.unique(pixels).tolist() for pixels in maps.values())) - {0})
    full = 255 if max(values, default=0) <= 255 else 65535
    scales = [
        [*range(1, n + 1)],
        [round(full * k / n) for k in range(1, n + 1)],
        *([values] if len(values) == n else []),
    ]
    scale = next((scale for scale in scales if set(values) <= set(scale)), [])
    if values and not scale:
        draft.found.append(f"label maps hold the values {values}, which do not fit {n} class(es)")
    for name, pixels in maps.items():
        own, (height, width) = [], map(int, pixels.shape)
        draft.images.append(({"file_name": name, "height": height, "width": width}, own))
        for code, value in enumerate(scale, start=1):
            regions, _ = ndimage.label(pixels == value, structure=np.ones((3, 3)))
            for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
                mask = np.zeros((width, height, 1), dtype=np.uint8).T  # [1, H, W], run lengths go down its columns
                mask[0, rows, columns] = regions[rows, columns] == number
                box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
                runs = {"size": [height, width], "counts": encode_rle(mask)[0].decode("ascii")}
                own.append({"category_id": code, "bbox": box, "area": int(mask.sum()), "segmentation": runs})
    return draft


def read_yolo(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """YOLO segmentation: per micrograph a text file of lines ``class x1 y1 x2 y2 ...``, shares of width and height.

    Classes count from 0; a micrograph without a text file is an empty one.
    """
    draft = Draft(classes)
    for path, text in _pairs(draft, images, labels, (".txt",)):
        own: list[Entry] = []
        draft.images.append(({"file_name": path.name}, own))
        for number, line in enumerate(text.read_text("utf-8", errors="replace").splitlines() if text else [], start=1):
            try:
                code, *shares = map(float, line.split() or [-1.0])
            except ValueError:
                draft.found.append(f"{path.stem}.txt, line {number}: '{line[:60]}' is not a list of numbers")
                continue
            if line.strip() and code not in range(len(classes)):
                draft.found.append(f"{path.stem}.txt, line {number}: class {code:g} is not in 0...{len(classes) - 1}")
            elif line.strip() and (len(shares) < 6 or len(shares) % 2 or min(shares) < -0.01 or max(shares) > 1.01):
                draft.found.append(f"{path.stem}.txt, line {number}: needs three or more x, y pairs, shares in 0...1")
            elif line.strip():
                with Image.open(path) as opened:
                    polygon = np.clip(np.reshape(shares, (-1, 2)), 0, 1) * opened.size
                own.append({"category_id": int(code) + 1, "segmentation": [polygon.ravel().tolist()]})
    return draft


def read_via(labels: Path, images: Path, classes: tuple[str, ...]) -> Draft:
    """VGG Image Annotator JSON, annotations or whole project; the class is a region attribute's value."""
    draft, content = Draft(classes), _json(labels)
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "filename" in e for e in entries.values()):
        raise CompanionError(f"{labels} is not a VIA annotation file: it should map keys to entries with a filename")
    for entry in entries.values():
        own, regions = [], entry.get("regions", [])
        draft.images.append(({"file_name": _found_name(str(entry["filename"]), images)}, own))
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
            given = region.get("region_attributes", {}).values()
            # An attribute is a text, or a mapping of boxes to whether they are ticked.
            ticked = [{name for name, on in v.items() if on} if isinstance(v, dict) else {v} for v in given]
            named = [code for code, name in enumerate(classes, start=1) if any(name in names for names in ticked)]
            polygon, label = _via_polygon(region.get("shape_attributes", {})), f"{entry['filename']}, region {number}"
            if len(named) != 1:
                draft.found.append(f"{label}: its attributes {list(given)} name {len(named)} of {list(classes)}")
            elif polygon is None:
                draft.found.append(f"{label}: only polygon, polyline, circle and ellipse say which pixels")
            else:
                own.append({"category_id": named[0], "segmentation": [polygon]})
    return draft


def _via_polygon(shape: Mapping[str, Any]) -> list[float] | None:
    try:
        if shape["name"] in ("polygon", "polyline"):
            points = np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1)
        else:  # circle or ellipse; anything else has no radius
            around, turn = np.deg2rad(np.arange(0, 360, 10)), float(shape.get("theta", 0))
            x, y = (shape.get(axis, shape.get("r")) * f(around) for axis, f in (("rx", np.cos), ("ry", np.sin)))
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
        own: list[Entry] = []
        draft.images.append(({"file_name": _found_name(str(entry["file_name"]), images), **sizes}, own))
        for number, annotation in enumerate(entry.get("annotations", [])):
            if (code := annotation.get("category_id")) in range(len(classes)):
                own.append({"category_id": code + 1, "segmentation": annotation.get("segmentation")})
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
