"""Annotation formats with one file per micrograph, of the same name but for the suffix; see `formats`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from companion.errors import CompanionError
from companion.micrographs.coco import Entry, Whole, read_json, validated
from companion.micrographs.images import IMAGE_SUFFIXES, SUFFIXES, read_label_map
from companion.micrographs.outlines import run_lengths
from companion.micrographs.pictures import Notes, Pictures

Rows = Iterator[tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]]
VOID = 255  # of label maps whose other values are 1...K: the border of an object, in PASCAL VOC


def labelmap(labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes) -> Rows:
    """One label map per micrograph: a grey value (or index) per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    maps = _maps(labels, pictures, found, notes)
    values = set().union(*(np.unique(_values(path)).tolist() for path in maps.values())) - {0}
    few = set(range(1, len(classes) + 1))
    if values - {VOID} and values - {VOID} <= few and VOID in values - few:
        notes[f"label map value {VOID} is taken as background"].append(str(labels))
        values.discard(VOID)
    scale = _scale(sorted(values), len(classes), found)
    if scale:
        shown = ", ".join(f"{value} is {name}" for value, name in zip(scale, classes, strict=True))
        notes["values of the label maps"].append(shown)
    for name, path in maps.items() if scale else ():
        pixels = _values(path)
        pixels = np.where(np.isin(pixels, scale), pixels, 0)
        yield (
            {"file_name": name},
            [
                (scale.index(int(region.intensity_max)), _outline(region, pixels.shape))
                for region in regionprops(label(pixels, connectivity=2), pixels)
            ],
        )


def _scale(values: list[int], n: int, found: list[str]) -> list[int]:
    """The value of each of n classes, from those that label maps hold; none where they do not fit."""
    full = 255 if max(values, default=0) <= 255 else 65535
    equal = [round(full * k / n) for k in range(1, n + 1)]
    if set(values) <= set(range(1, n + 1)):
        return list(range(1, n + 1))
    if values == [full] and n > 1:
        found.append(f"label maps hold {full} alone, a mask without classes: name one class, not {n}")
    elif set(values) <= set(equal):
        return equal
    elif len(values) == n:
        return values
    else:
        shown = ", ".join(map(str, values[:6])) + ", ..." * (len(values) > 6)
        numbered = "instance numbers (--format instances)" if values == list(range(1, len(values) + 1)) else ""
        guess = numbered or "a mask that was smoothed or saved as JPEG, or instance numbers (--format instances)"
        found.append(f"label maps hold {len(values)} values ({shown}), which do not fit {n} class(es): {guess}?")
    return []


def instances(labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes) -> Rows:
    """One map per micrograph of instance numbers, 0 for background, as Cellpose, StarDist and Fiji write; one class."""
    if len(classes) != 1:
        raise CompanionError(f"instance numbers do not say a class: name one, not {', '.join(classes)}")
    for name, path in _maps(labels, pictures, found, notes).items():
        pixels = _values(path)
        numbers = np.searchsorted(np.unique([0, *np.unique(pixels)]), pixels)  # without gaps
        yield {"file_name": name}, [(0, _outline(region, pixels.shape)) for region in regionprops(numbers)]


def _maps(labels: Path, pictures: Pictures, found: list[str], notes: Notes) -> dict[str, Path]:
    maps = {}
    for name, path in pictures.pairs(labels, IMAGE_SUFFIXES, found, notes):
        if path is None:
            found.append(f"{name}: {labels} has no label map of that name")
        elif path.suffix.lower() not in SUFFIXES:
            found.append(f"{name}: {path.name} is no label map; JPEG changes values, save PNG or TIFF")
        else:
            maps[name] = path
    return maps


def _values(path: Path) -> NDArray[np.integer]:
    pixels = read_label_map(path)
    whole = pixels.astype(np.int32) if pixels.dtype.kind == "f" and np.abs(pixels).max() < 2**31 else pixels
    if (whole != pixels).any() or whole.dtype.kind == "f" or whole.min() < 0:
        raise CompanionError(f"{path} is no label map: its values should be whole numbers from 0")
    return whole


def _outline(region: Any, shape: tuple[int, int]) -> dict[str, Any]:
    return {"segmentation": run_lengths(region.image, region.slice, *shape)}


def yolo(
    labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes, boxes: bool = False
) -> Rows:
    """YOLO: per micrograph a text file of lines ``class x1 y1 x2 y2 ...``, shares of width and height, or of lines
    ``class x y width height`` of boxes, by their centres, which become rectangles.

    Classes count from 0; a micrograph without a text file is an empty one.
    """
    for name, path in pictures.pairs(labels, (".txt",), found, notes):
        instances, lines = [], path.read_text("utf-8-sig", "replace").splitlines() if path else []
        notes["without a label file, taken as empty"] += [name] * (path is None)
        for number, line in enumerate(lines, start=1):
            try:
                code, *ring = map(float, line.split() or [-1])
                if not np.all(np.abs([code, *ring]) < 1e6) or code % 1 or (ring and (len(ring) % 2 or len(ring) < 4)):
                    raise ValueError
            except ValueError:
                said = "is not a class and x, y pairs" + " (is its last number a score?)" * (len(line.split()) > 5)
                found.append(f"{path.name}, line {number}: '{line[:60]}' {said}")
                continue
            if line.strip() and boxes != (len(ring) == 4):
                other = "an outline: --format yolo-seg" if boxes else "a box, without an outline: --format yolo-boxes"
                found.append(f"{path.name}, line {number} is {other}?")
            elif line.strip():
                if boxes:
                    (x, y), (w, h) = ring[:2], np.divide(ring[2:], 2)
                    ring = [x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h]
                    notes["boxes, taken as rectangles: masks learnt from them are rectangles"].append(path.name)
                instances.append((int(code), {"segmentation": [ring]}))
        yield {"file_name": name, "relative": True}, instances


class _Shape(Entry):
    label: str
    points: list[list[float]]
    shape_type: str = "polygon"
    group_id: Any = None


class _LabelMe(Entry):
    shapes: list[_Shape] | None = None
    imageHeight: Whole | None = None  # noqa: N815
    imageWidth: Whole | None = None  # noqa: N815


def labelme(labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes) -> Rows:
    """LabelMe: a JSON file per micrograph; shapes of one label and group are one instance."""
    for name, path in pictures.pairs(labels, (".json",), found, notes):
        notes["without a label file, taken as empty"] += [name] * (path is None)
        content = validated(_LabelMe, read_json(path), path, "a LabelMe file") if path else {}
        groups = defaultdict(list)
        for number, shape in enumerate(content.get("shapes") or [], start=1):
            group = (shape["label"], str(shape.get("group_id") or f"alone {number}"))
            try:
                groups[group].append(_ring(shape))
            except ValueError:
                found.append(f"{path.name}, shape {number}: only polygon and circle say which pixels")
        instances = [(said, {"segmentation": rings}) for (said, _), rings in groups.items()]
        yield {"file_name": name, "height": content.get("imageHeight"), "width": content.get("imageWidth")}, instances


def _ring(shape: dict[str, Any]) -> list[float]:
    points = np.asarray(shape["points"], dtype=float).reshape(-1, 2)
    if shape.get("shape_type", "polygon") == "polygon":
        return points.ravel().tolist()
    centre, edge = points  # a circle has two
    if shape["shape_type"] != "circle":
        raise ValueError
    around = np.deg2rad(np.arange(0, 360, 10))
    return (centre + np.hypot(*(edge - centre)) * np.stack([np.cos(around), np.sin(around)], axis=1)).ravel().tolist()


def imagej(labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes) -> Rows:
    """ImageJ: per micrograph a .zip of the ROI Manager or a .roi; of several classes a ROI's name begins with one."""
    from roifile import ROI_TYPE, ImagejRoi

    areas = (ROI_TYPE.POLYGON, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
    for name, path in pictures.pairs(labels, (".zip", ".roi"), found, notes):
        instances, read = [], []
        notes["without a label file, taken as empty"] += [name] * (path is None)
        try:
            read = ImagejRoi.fromfile(path) if path else []
        except Exception as error:  # a damaged file fails in many ways
            found.append(f"{path.name} holds no ImageJ ROIs: {error}")
        for number, roi in enumerate(read if isinstance(read, list) else [read], start=1):
            said = [k for k in classes if len(classes) == 1 or roi.name.casefold().startswith(k.casefold())]
            rings = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
            if roi.roitype not in areas and not roi.composite:
                found.append(f"{path.name}, ROI {number} ({roi.name}): {roi.roitype.name} does not say which pixels")
                continue
            if len(rings) > 1:
                notes["ROIs of several outlines, whose holes are filled"].append(f"{path.name}, ROI {number}")
            outline = [np.asarray(ring, dtype=float).ravel().tolist() for ring in rings]
            instances.append((max(said, key=len, default=roi.name), {"segmentation": outline}))
        yield {"file_name": name}, instances
