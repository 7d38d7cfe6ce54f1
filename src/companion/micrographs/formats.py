"""Annotation formats of other tools. Each reader gives, image by image, its entry and its instances.

An entry is a dict with file_name and whatever else a COCO image has; ``relative`` says that its outlines are shares of
width and height. An instance is the class as the file says it (a name, or a number from 0) and a COCO annotation: its
segmentation, polygons or run lengths, and whatever else the file says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from roifile import ROI_TYPE, ImagejRoi
from skimage.measure import label, regionprops

from companion.errors import CompanionError
from companion.micrographs.coco import Entry, Segmentation, Whole, read_json, run_lengths, validated
from companion.micrographs.images import IMAGE_SUFFIXES, SUFFIXES, read_label_map
from companion.micrographs.pictures import Rows, Source

VOID = 255  # of label maps whose other values are 1...K: the border of an object, in PASCAL VOC
# Shapes of VIA 3, and what their numbers are (of others corners).
VIA3 = {3: ("circle", "cx", "cy", "r"), 4: ("ellipse", "cx", "cy", "rx", "ry"), 6: ("polyline",), 7: ("polygon",)}
AREAS = "only polygons, circles and ellipses, with all their numbers, say which pixels"


def coco(source: Source) -> Rows:
    """COCO instances; images and annotations keep their ids."""
    own, names = defaultdict(list), {c["id"]: c["name"] for c in source.document["categories"]}
    for annotation in source.document["annotations"]:
        named = names.get(annotation["category_id"], f"category_id {annotation['category_id']}")
        own[annotation.pop("image_id")].append((named, annotation))
        if annotation.get("iscrowd"):  # CVAT marks every brush mask so
            source.notes["marked as a crowd, taken as one instance"].append(f"annotation {annotation.get('id')}")
    for image in source.document["images"]:
        yield image, own.pop(image["id"], [])
    source.found += [f"image_id {k} of {len(lost)} annotation(s) is not among the images" for k, lost in own.items()]


def _outline(kind: str, x: Any, y: Any, rx: Any = 0, ry: Any = 0, turn: Any = 0) -> dict[str, Any]:
    """Segmentation of a polygon of corners x, y, or of an ellipse of centre x, y, half axes and a turn in radians."""
    if kind in ("circle", "ellipse"):
        around, turn = np.deg2rad(np.arange(0, 360, 10)), float(turn)
        u, v = float(rx) * np.cos(around), float(ry) * np.sin(around)
        x, y = float(x) + u * np.cos(turn) - v * np.sin(turn), float(y) + u * np.sin(turn) + v * np.cos(turn)
    elif kind != "polygon":
        raise ValueError(kind)
    return {"segmentation": [np.stack([x, y], axis=1).astype(float).ravel().tolist()]}


class _Region(Entry):
    shape_attributes: dict[str, Any]
    region_attributes: dict[str, Any] | None = None


class _ViaImage(Entry):
    filename: str
    regions: list[_Region] | dict[str, _Region] | None = None


def via(source: Source) -> Rows:
    """VGG Image Annotator 2 or 3, annotations or whole project; the class is a region attribute's value.

    With one class, regions without an attribute are of it.
    """
    content, classes = read_json(source.labels), source.classes
    if isinstance(content, dict) and {"file", "metadata"} <= content.keys():
        content = _as_via2(content, source.labels)
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    for entry in validated(dict[str, _ViaImage], content, source.labels, "a VIA file").values():
        instances, regions = [], entry.get("regions") or []
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
            # An attribute is a text, or a mapping of boxes to whether they are ticked.
            said = [name for v in (region.get("region_attributes") or {}).values()
                    for name in ([name for name, on in v.items() if on] if isinstance(v, dict) else [v])]  # fmt: skip
            named = [name for name in classes if name in said] or list(classes[:1]) * (len(classes) == 1 and not said)
            shape = region["shape_attributes"]
            x, y = (shape.get(f"all_points_{axis}", shape.get(f"c{axis}")) for axis in "xy")
            half = [shape.get(f"r{axis}", shape.get("r")) for axis in "xy"]
            try:
                outline = _outline(str(shape.get("name")), x, y, *half, shape.get("theta", 0))
            except (ArithmeticError, TypeError, ValueError):
                source.found.append(f"{entry['filename']}, region {number}, {shape.get('name')}: {AREAS}")
            else:
                instances.append((named[0] if len(named) == 1 else str(said), outline))
        yield {"file_name": entry["filename"]}, instances


def _as_via2(project: dict[str, Any], path: Path) -> dict[str, Any]:
    """A VIA 3 project as VIA 2 writes it: numbers of shapes and options become names."""
    try:
        images = {k: {"filename": file["fname"], "regions": []} for k, file in project["file"].items()}
        options = {k: attribute.get("options") or {} for k, attribute in (project.get("attribute") or {}).items()}
        for mark in project["metadata"].values():
            kind, *xy = mark["xy"] or [0]  # what concerns the whole image has no shape
            shown = ((project.get("view") or {}).get(mark["vid"]) or {}).get("fid_list") or [mark["vid"]]
            name, *keys = VIA3.get(kind, (f"shape {kind}",))
            shape = dict(zip(keys, xy, strict=False)) if keys else {"all_points_x": xy[::2], "all_points_y": xy[1::2]}
            said = {k: options.get(k, {}).get(str(v), v) for k, v in mark["av"].items()}
            region = {"shape_attributes": {"name": name, **shape}, "region_attributes": said}
            images[shown[0]]["regions"] += [region] * bool(kind)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CompanionError(f"{path} is not a VIA 3 project: {error!r}") from None
    return images


class _Shape(Entry):
    label: str
    points: list[list[float]]
    shape_type: str = "polygon"


class _LabelMe(Entry):
    shapes: list[_Shape] | None = None
    imageHeight: Whole | None = None  # noqa: N815
    imageWidth: Whole | None = None  # noqa: N815


def labelme(source: Source) -> Rows:
    """LabelMe: a JSON file per micrograph; shapes of one label and group are one instance."""
    for name, path in source.optional(".json"):
        content = validated(_LabelMe, read_json(path), path, "a LabelMe file") if path else {}
        groups = defaultdict(list)
        for number, shape in enumerate(content.get("shapes") or [], start=1):
            group = (shape["label"], str(shape.get("group_id") or f"alone {number}"))
            kind, half = shape.get("shape_type", "polygon"), ()
            try:
                x, y = np.reshape(shape["points"], (-1, 2)).T
                if kind == "circle":  # its centre, and a point on it
                    (x, edge), (y, side) = x, y
                    half = [np.hypot(edge - x, side - y)] * 2
                groups[group] += _outline(kind, x, y, *half)["segmentation"]
            except ValueError:
                source.found.append(f"{path.name}, shape {number}, {kind}: {AREAS}")
        instances = [(said, {"segmentation": rings}) for (said, _), rings in groups.items()]
        yield {"file_name": name, "height": content.get("imageHeight"), "width": content.get("imageWidth")}, instances


def imagej(source: Source) -> Rows:
    """ImageJ: per micrograph a .zip of the ROI Manager or a .roi; of several classes a ROI's name begins with one."""
    areas = (ROI_TYPE.POLYGON, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
    for name, path in source.optional(".zip", ".roi"):
        instances, read = [], []
        try:
            read = ImagejRoi.fromfile(path) if path else []
        except Exception as error:  # a damaged file fails in many ways
            source.found.append(f"{path.name} holds no ImageJ ROIs: {error}")
        for number, roi in enumerate(read if isinstance(read, list) else [read], start=1):
            said = [k for k in source.classes
                    if len(source.classes) == 1 or roi.name.casefold().startswith(k.casefold())]  # fmt: skip
            rings = roi.coordinates(multi=True)
            if roi.roitype not in areas and not roi.composite:
                where = f"{path.name}, ROI {number} ({roi.name})"
                source.found.append(f"{where}: {roi.roitype.name} does not say which pixels")
                continue
            if len(rings) > 1:
                source.notes["ROIs of several outlines, whose holes are filled"].append(f"{path.name}, ROI {number}")
            outline = [np.asarray(ring, dtype=float).ravel().tolist() for ring in rings]
            instances.append((max(said, key=len, default=roi.name), {"segmentation": outline}))
        yield {"file_name": name}, instances


def yolo(source: Source, boxes: bool = False) -> Rows:
    """YOLO: per micrograph a text file of lines ``class x1 y1 x2 y2 ...``, shares of width and height, or of lines
    ``class x y width height`` of boxes, by their centres, which become rectangles. Classes count from 0.
    """
    for name, path in source.optional(".txt"):
        instances, lines = [], path.read_text("utf-8-sig", "replace").splitlines() if path else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                code, *ring = map(float, line.split())
                if not np.all(np.abs([code, *ring]) < 1e6) or code % 1 or len(ring) % 2 or len(ring) < 4:
                    raise ValueError
            except ValueError:
                said = "is not a class and x, y pairs" + " (is its last number a score?)" * (len(line.split()) > 5)
                source.found.append(f"{path.name}, line {number}: '{line[:60]}' {said}")
                continue
            if boxes != (len(ring) == 4):
                other = "an outline: --format yolo-seg" if boxes else "a box, without an outline: --format yolo-boxes"
                source.found.append(f"{path.name}, line {number} is {other}?")
                continue
            if boxes:
                (x, y), (w, h) = ring[:2], np.divide(ring[2:], 2)
                ring = [x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h]
                source.notes["boxes, taken as rectangles: masks learnt from them are rectangles"].append(path.name)
            instances.append((int(code), {"segmentation": [ring]}))
        yield {"file_name": name, "relative": True}, instances


class _Defect(Entry):
    category_id: Whole
    segmentation: Segmentation = None


class _Detectron2(Entry):
    file_name: str
    height: Whole | None = None
    width: Whole | None = None
    annotations: list[_Defect] | None = None


def detectron2(source: Source) -> Rows:
    """A JSON list of detectron2's standard dicts; classes count from 0; image ids that are numbers are kept."""
    entries = validated(list[_Detectron2], read_json(source.labels), source.labels, "a list of detectron2's dicts")
    ids = [entry.get("image_id") for entry in entries]
    numbered = all(type(k) is int for k in ids) and len(set(ids)) == len(ids)
    for entry in entries:
        image = {key: entry[key] for key in ("file_name", "height", "width") if key in entry}
        image |= {"id": entry["image_id"]} if numbered else {}
        instances = entry.get("annotations") or []
        yield image, [(a["category_id"], {"segmentation": a.get("segmentation")}) for a in instances]


def labelmap(source: Source) -> Rows:
    """One label map per micrograph: a grey value (or index) per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    maps, n = _maps(source), len(source.classes)
    values = set().union(*(np.unique(_values(path)).tolist() for path in maps.values())) - {0}
    few = set(range(1, n + 1))
    if values & few and values - few == {VOID}:
        source.notes[f"label map value {VOID} is taken as background"].append(str(source.labels))
        values.discard(VOID)
    if scale := _scale(sorted(values), n, source.found):
        shown = ", ".join(f"{value} is {name}" for value, name in zip(scale, source.classes, strict=True))
        source.notes["values of the label maps"].append(shown)
    for name, path in maps.items() if scale else ():
        pixels = _values(path)
        codes = np.where(np.isin(pixels, scale), np.searchsorted(scale, pixels), -1)
        yield _regions(name, label(codes, background=-1, connectivity=2), codes)


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
        smoothed = "a mask that was smoothed or saved as JPEG, or " * (values != list(range(1, len(values) + 1)))
        guess = f"{smoothed}instance numbers (--format instances)"
        found.append(f"label maps hold {len(values)} values ({shown}), which do not fit {n} class(es): {guess}?")
    return []


def instances(source: Source) -> Rows:
    """One map per micrograph of instance numbers, 0 for background, as Cellpose, StarDist and Fiji write; one class."""
    if len(source.classes) != 1:
        raise CompanionError(f"instance numbers do not say a class: name one, not {', '.join(source.classes)}")
    for name, path in _maps(source).items():
        pixels = _values(path)
        numbers = np.searchsorted(np.unique([0, *np.unique(pixels)]), pixels)  # without gaps
        yield _regions(name, numbers, np.zeros_like(numbers))


def _maps(source: Source) -> dict[str, Path]:
    maps = dict(source.pairs(*IMAGE_SUFFIXES))
    for name, path in maps.items():
        if path is None:
            source.found.append(f"{name}: {source.labels} has no label map of that name")
        elif path.suffix.lower() not in SUFFIXES:
            source.found.append(f"{name}: {path.name} is no label map; JPEG changes values, save PNG or TIFF")
    return {name: path for name, path in maps.items() if path and path.suffix.lower() in SUFFIXES}


def _values(path: Path) -> NDArray[np.integer]:
    pixels = read_label_map(path)
    whole = pixels.astype(np.int32) if pixels.dtype.kind == "f" and np.abs(pixels).max() < 2**31 else pixels
    if (whole != pixels).any() or whole.dtype.kind == "f" or whole.min() < 0:
        raise CompanionError(f"{path} is no label map: its values should be whole numbers from 0")
    return whole


def _regions(name: str, numbers: NDArray[np.integer], codes: NDArray[np.integer]) -> Any:
    instances = [(int(region.intensity_max), {"segmentation": run_lengths(region.image, region.slice, *codes.shape)})
                 for region in regionprops(numbers, codes)]  # fmt: skip
    return {"file_name": name}, instances


FORMATS: dict[str, Callable[[Source], Rows]] = {
    "coco": coco, "labelmap": labelmap, "instances": instances, "yolo-seg": yolo,
    "yolo-boxes": partial(yolo, boxes=True), "via": via, "labelme": labelme, "imagej": imagej, "detectron2": detectron2,
}  # fmt: skip
