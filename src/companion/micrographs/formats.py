"""Annotation formats of other tools in one JSON file. Each reader gives, image by image, its entry and its instances.

An entry is a dict with file_name and whatever else a COCO image has; ``relative`` says that its outlines are shares of
width and height. An instance is the class as the file says it (a name, or a number from 0) and a COCO annotation: its
segmentation, polygons or run lengths, and whatever else the file says. What cannot be read is appended to `found`, a
line each, what was done about something to `notes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from companion.errors import CompanionError
from companion.micrographs import labelfiles
from companion.micrographs.coco import Entry, Segmentation, Whole, read_json, validated
from companion.micrographs.pictures import Notes, Pictures

Rows = Iterator[tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]]


def coco(
    document: dict[str, Any], pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes
) -> Rows:
    """COCO instances, as `read_coco` gives them; images and annotations keep their ids."""
    own, names = defaultdict(list), {category["id"]: category["name"] for category in document["categories"]}
    for annotation in document["annotations"]:
        named = names.get(annotation["category_id"], f"category_id {annotation['category_id']}")
        own[annotation.pop("image_id")].append((named, annotation))
        if annotation.get("iscrowd"):  # CVAT marks every brush mask so
            notes["marked as a crowd, taken as one instance"].append(f"annotation {annotation.get('id')}")
    for image in document["images"]:
        yield image, own.pop(image["id"], [])
    found += [f"image_id {image} of {len(lost)} annotation(s) is not among the images" for image, lost in own.items()]


class _Region(Entry):
    shape_attributes: dict[str, Any]
    region_attributes: dict[str, Any] | None = None


class _ViaImage(Entry):
    filename: str
    regions: list[_Region] | dict[str, _Region] | None = None


def via(labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes) -> Rows:
    """VGG Image Annotator 2 or 3, annotations or whole project; the class is a region attribute's value.

    With one class, regions without an attribute are of it.
    """
    content = read_json(labels)
    if isinstance(content, dict) and {"file", "metadata"} <= content.keys():
        content = _as_via2(content, labels)
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    for entry in validated(dict[str, _ViaImage], content, labels, "a VIA file").values():
        instances, regions = [], entry.get("regions") or []
        for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
            # An attribute is a text, or a mapping of boxes to whether they are ticked.
            said = [name for v in (region.get("region_attributes") or {}).values()
                    for name in ([name for name, on in v.items() if on] if isinstance(v, dict) else [v])]  # fmt: skip
            named = [name for name in classes if name in said] or list(classes[:1]) * (len(classes) == 1 and not said)
            try:
                outline = {"segmentation": [_via_polygon(region["shape_attributes"])]}
            except (ArithmeticError, KeyError, TypeError, ValueError):
                shape = "only polygon, circle and ellipse say which pixels; a polyline is open"
                found.append(f"{entry['filename']}, region {number}: {shape}")
            else:
                instances.append((named[0] if len(named) == 1 else str(said), outline))
        yield {"file_name": entry["filename"]}, instances


def _via_polygon(shape: dict[str, Any]) -> list[float]:
    if shape["name"] == "polygon":
        return np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1).astype(float).ravel().tolist()
    if shape["name"] not in ("circle", "ellipse"):
        raise ValueError
    around, turn = np.deg2rad(np.arange(0, 360, 10)), float(shape.get("theta", 0))
    x, y = float(shape.get("rx", shape.get("r"))), float(shape.get("ry", shape.get("r")))
    x, y = x * np.cos(around), y * np.sin(around)
    xs = float(shape["cx"]) + x * np.cos(turn) - y * np.sin(turn)
    return np.stack([xs, float(shape["cy"]) + x * np.sin(turn) + y * np.cos(turn)], axis=1).ravel().tolist()


def _as_via2(project: dict[str, Any], path: Path) -> dict[str, Any]:
    """A VIA 3 project as VIA 2 writes it: numbers of shapes and options become names."""
    try:
        images = {k: {"filename": file["fname"], "regions": []} for k, file in project["file"].items()}
        options = {k: attribute.get("options") or {} for k, attribute in (project.get("attribute") or {}).items()}
        for mark in project["metadata"].values():
            kind, *xy = mark["xy"] or [0]  # what concerns the whole image has no shape
            shown = ((project.get("view") or {}).get(mark["vid"]) or {}).get("fid_list") or [mark["vid"]]
            shape = {3: ("circle", "cx", "cy", "r"), 4: ("ellipse", "cx", "cy", "rx", "ry")}.get(kind, ("polygon",))
            outline = dict(zip(shape[1:], xy, strict=False)) | {"all_points_x": xy[::2], "all_points_y": xy[1::2]}
            said = {k: options.get(k, {}).get(str(v), v) for k, v in mark["av"].items()}
            outline["name"] = shape[0] if kind in (3, 4, 7) else "open"
            images[shown[0]]["regions"] += [{"shape_attributes": outline, "region_attributes": said}] * bool(kind)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CompanionError(f"{path} is not a VIA 3 project: {error!r}") from None
    return images


class _Defect(Entry):
    category_id: Whole
    segmentation: Segmentation = None


class _Detectron2(Entry):
    file_name: str
    height: Whole | None = None
    width: Whole | None = None
    image_id: Any = None
    annotations: list[_Defect] | None = None


def detectron2(labels: Path, pictures: Pictures, classes: tuple[str, ...], found: list[str], notes: Notes) -> Rows:
    """A JSON list of detectron2's standard dicts; classes count from 0; image ids that are numbers are kept."""
    entries = validated(list[_Detectron2], read_json(labels), labels, "a list of detectron2's dicts")
    ids = [entry.get("image_id") for entry in entries]
    numbered = all(type(k) is int for k in ids) and len(set(ids)) == len(ids)
    for entry in entries:
        image = {key: entry[key] for key in ("file_name", "height", "width") if key in entry}
        image |= {"id": entry["image_id"]} if numbered else {}
        instances = entry.get("annotations") or []
        yield image, [(a["category_id"], {"segmentation": a.get("segmentation")}) for a in instances]


FORMATS: dict[str, Callable[[Any, Pictures, tuple[str, ...], list[str], Notes], Rows]] = {
    "coco": coco, "labelmap": labelfiles.labelmap, "instances": labelfiles.instances, "yolo-seg": labelfiles.yolo,
    "yolo-boxes": partial(labelfiles.yolo, boxes=True), "via": via, "labelme": labelfiles.labelme,
    "imagej": labelfiles.imagej, "detectron2": detectron2,
}  # fmt: skip
