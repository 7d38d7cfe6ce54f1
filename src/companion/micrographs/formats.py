"""Annotation formats of other tools. Each reader gives, image by image, its entry and its instances.

An entry is a dict with file_name and whatever else a COCO image has. An instance is the class as the file says it (a
name, or a number from 0) and a COCO annotation: its segmentation, polygons or run lengths, and whatever else the file
says. What cannot be read is appended to `found`, a line each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.measure import label, regionprops

from companion.geometry import encode_rle
from companion.micrographs.coco import read_coco
from companion.micrographs.images import SUFFIXES, read_grey

IMAGE_SUFFIXES = (*SUFFIXES, ".jpg", ".jpeg", ".bmp")
Rows = Iterator[tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]]


def coco(labels: Path, images: Path, classes: tuple[str, ...], found: list[str]) -> Rows:
    """COCO instances; images and annotations keep their ids."""
    document, own = read_coco(labels), defaultdict(list)
    names = {category["id"]: category["name"] for category in document["categories"]}
    for annotation in document["annotations"]:
        named = names.get(annotation["category_id"], f"category_id {annotation['category_id']}")
        own[annotation.pop("image_id")].append((named, annotation))
    for image in document["images"]:
        yield image, own.pop(image["id"], [])
    found += [f"image_id {image} of {len(lost)} annotation(s) is not among the images" for image, lost in own.items()]


def labelmap(labels: Path, images: Path, classes: tuple[str, ...], found: list[str]) -> Rows:
    """One grey label map per micrograph, of the same stem: a grey value per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    maps = {}
    for image, path in _pairs(images, labels, SUFFIXES, found):
        if path is None:
            found.append(f"{image.name}: {labels} has no label map of that name")
        else:
            maps[image.name] = read_grey(path)
    values, n = sorted(set().union(*(np.unique(pixels).tolist() for pixels in maps.values())) - {0}), len(classes)
    full = 255 if max(values, default=0) <= 255 else 65535
    steps = (range(1, n + 1), [round(full * k / n) for k in range(1, n + 1)], values)
    scale = next(list(scale) for scale in steps if set(values) <= set(scale))
    if len(scale) > n:
        found.append(f"label maps hold the values {values}, which do not fit {n} class(es)")
        return
    for name, pixels in maps.items():
        regions = label(pixels, connectivity=2)
        instances = []
        for region in regionprops(regions, pixels):
            counts = encode_rle((regions == region.label)[None])[0].decode("ascii")
            outline = {"size": list(pixels.shape), "counts": counts}
            instances.append((scale.index(int(region.intensity_max)), {"segmentation": outline}))
        yield {"file_name": name}, instances


def yolo(labels: Path, images: Path, classes: tuple[str, ...], found: list[str]) -> Rows:
    """YOLO segmentation: per micrograph a text file of lines ``class x1 y1 x2 y2 ...``, shares of width and height.

    Classes count from 0; a micrograph without a text file is an empty one.
    """
    for image, path in _pairs(images, labels, (".txt",), found):
        with Image.open(image) as opened:
            size, instances = opened.size, []
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines() if path else [], start=1):
            try:
                code, *shares = map(float, line.split() or [-1])
                polygon = (np.reshape(shares, (-1, 2)) * size).ravel().tolist()
            except ValueError:
                found.append(f"{path.name}, line {number}: '{line[:60]}' is not a class and x, y pairs")
            else:
                instances += [(int(code), {"segmentation": [polygon]})] * bool(line.strip())
        yield {"file_name": image.name}, instances


def via(labels: Path, images: Path, classes: tuple[str, ...], found: list[str]) -> Rows:
    """VGG Image Annotator JSON, annotations or whole project; the class is a region attribute's value."""
    content = json.loads(labels.read_text("utf-8"))
    for entry in content.get("_via_img_metadata", content).values():
        instances, regions = [], entry.get("regions", [])
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
            # An attribute is a text, or a mapping of boxes to whether they are ticked.
            said = [name for v in region["region_attributes"].values()
                    for name in ([name for name, on in v.items() if on] if isinstance(v, dict) else [v])]  # fmt: skip
            named = [name for name in classes if name in said]
            try:
                outline = {"segmentation": [_via_polygon(region["shape_attributes"])]}
            except (KeyError, TypeError, ValueError):
                shape = "only polygon, polyline, circle and ellipse say which pixels"
                found.append(f"{entry['filename']}, region {number}: {shape}")
            else:
                instances.append((named[0] if len(named) == 1 else str(said), outline))
        yield {"file_name": entry["filename"]}, instances


def _via_polygon(shape: dict[str, Any]) -> list[float]:
    if "all_points_x" in shape:
        return np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1).astype(float).ravel().tolist()
    around, turn = np.deg2rad(np.arange(0, 360, 10)), float(shape.get("theta", 0))
    x, y = shape.get("rx", shape.get("r")) * np.cos(around), shape.get("ry", shape.get("r")) * np.sin(around)
    xs = shape["cx"] + x * np.cos(turn) - y * np.sin(turn)
    return np.stack([xs, shape["cy"] + x * np.sin(turn) + y * np.cos(turn)], axis=1).ravel().tolist()


def detectron2(labels: Path, images: Path, classes: tuple[str, ...], found: list[str]) -> Rows:
    """A JSON list of detectron2's standard dicts; classes count from 0."""
    for entry in json.loads(labels.read_text("utf-8")):
        instances = [(a["category_id"], {"segmentation": a["segmentation"]}) for a in entry.get("annotations", [])]
        yield {"file_name": entry["file_name"]}, instances


FORMATS: dict[str, Callable[[Path, Path, tuple[str, ...], list[str]], Rows]] = {
    "coco": coco, "labelmap": labelmap, "yolo-seg": yolo, "via": via, "detectron2": detectron2,
}  # fmt: skip


def _pairs(
    images: Path, labels: Path, suffixes: tuple[str, ...], found: list[str]
) -> Iterator[tuple[Path, Path | None]]:
    """Images with the label file of the same stem, if any; label files without an image are problems."""
    partners = {path.stem: path for path in sorted(labels.iterdir()) if path.suffix.lower() in suffixes}
    for path in sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
        yield path, partners.pop(path.stem, None)
    found += [f"{path.name}: there is no image of that name" for path in partners.values()
              if path.name != "classes.txt"]  # fmt: skip
