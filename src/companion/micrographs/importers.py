"""Micrographs and annotations of other tools into the one format: everything or nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import pandas as pd

from companion.errors import CompanionError, nearest, problems
from companion.geometry import box_of
from companion.micrographs.coco import coco_problems, read_coco
from companion.micrographs.dataset import ANNOTATIONS, DataSet, load_dataset
from companion.micrographs.formats import FORMATS
from companion.micrographs.images import SUFFIXES, read_grey, segmentation_mask, write_grey
from companion.provenance import atomic_folder, write_json


def import_dataset(
    format: str, images: Path, labels: Path, classes: Sequence[str] | None, pixel_size_nm: float | str | None,
    out: Path, merge: Mapping[str, str] | None = None, card: Mapping[str, Any] | None = None,
) -> DataSet:  # fmt: skip
    """Convert to a data set folder.

    Parameters
    ----------
    format : a name in `companion.micrographs.formats.FORMATS`: coco, labelmap, yolo-seg, via, detectron2
    images : folder with the micrographs: grey, 8 or 16-bit; colour files whose channels are equal count as grey
    labels : the annotation file, or for labelmap and yolo-seg the folder with one file per micrograph
    classes : names of the classes in the order of their codes; of a COCO file they choose, and none keeps all
    pixel_size_nm : nm per px of every image; or "70kx=0.8805,300kx=0.4785", texts in file names and their sizes;
        or the path of a CSV file with columns file_name and pixel_size_nm; None where a COCO file has it
    out : data set folder to make; must not exist
    merge : sub-label -> class that it is part of, for a file that splits a class, e.g. {"edge-on": "<100> loop",
        "face-on": "<100> loop"}; `classes` then names the class, not its parts
    card : data set card, beside what a COCO file's own says

    A `CompanionError` lists every problem at once, with file names; nothing is written then.
    """
    images, labels, out, merge = Path(images), Path(labels), Path(out), merge or {}
    if format not in FORMATS:
        raise CompanionError(f"format '{format}': {nearest(format, FORMATS)}")
    if not images.is_dir() or not labels.exists():
        raise CompanionError(f"no folder of images {images}, or no annotations at {labels}")
    if out.exists():
        raise CompanionError(f"{out} exists already; give a new folder")
    categories, known = [], {"name": out.name, "source": f"{labels.name} ({format})"}
    if format == "coco":
        document = read_coco(labels)
        categories = [c["name"] for c in sorted(document["categories"], key=lambda c: c["id"])]
        known |= document["info"].get("dataset_card", {})
    merged = list(dict.fromkeys(merge.get(name, name) for name in categories))  # in order of the first id of each
    classes, sizes = tuple(classes or merged), _pixel_sizes(pixel_size_nm)
    if not classes:
        raise CompanionError(f"format {format} needs the names of the classes, in order")
    codes = {given: k + 1 for k, name in enumerate(classes) for given in (name, k)}  # by name, and by number from 0
    codes |= {part: codes[name] for part, name in merge.items() if name in codes}
    found = [f"class '{name}' is not among those of {labels.name}; {nearest(name, valid)}"
             for names, valid in ((merge, categories), (classes, merged)) if valid
             for name in names if name not in valid]  # fmt: skip
    entries, annotations = [], []
    try:
        rows = list(FORMATS[format](labels, images, classes, found))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise CompanionError(f"{labels} is not of format {format}: {error!r}") from None
    with atomic_folder(out) as temporary:
        for number, (image, instances) in enumerate(rows, start=1):
            named = image["file_name"]
            found += [f"{named}, instance {k}: its class {given} is not one of {list(classes)}"
                      for k, (given, _) in enumerate(instances, start=1)
                      if given not in codes and given not in categories]  # fmt: skip
            try:
                image = {"id": number, **image, **_copied(named, images, temporary / "images")}
                if sizes is not None:
                    image["pixel_size_nm"] = fitting_size(named, sizes)
            except CompanionError as error:
                found.append(f"{named}: {error}")
                continue
            entries.append(image)
            for given, annotation in instances:
                if given in codes:
                    placed = {**annotation, "image_id": image["id"], "category_id": codes[given]}
                    annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **placed})
        document = {
            "info": {"dataset_card": {**known, **(card or {})}}, "images": entries, "annotations": annotations,
            "categories": [{"id": code, "name": name} for code, name in enumerate(classes, start=1)],
        }  # fmt: skip
        found += coco_problems(document, temporary / "images")
        if found:
            raise problems(f"{labels}: {len(found)} problem(s), nothing imported", found)
        shapes = {image["id"]: (image["height"], image["width"]) for image in entries}
        for annotation in annotations:
            mask, (rows, columns) = segmentation_mask(annotation["segmentation"], *shapes[annotation["image_id"]])
            x1, y1, x2, y2 = box_of(mask)
            box = [columns.start + x1, rows.start + y1, x2 - x1, y2 - y1]
            annotation.update({"bbox": box, "area": int(mask.sum()), **annotation})
        write_json(temporary / ANNOTATIONS, document)
    return load_dataset(out)


def parse_merge(text: str) -> dict[str, str]:
    """Sub-label -> class, from "edge-on,face-on=<100> loop", several merges parted by semicolons."""
    parts = [re.fullmatch(r"([^=]+)=\s*([^=]*\S)\s*", part) for part in text.split(";")]
    pairs = [(name.strip(), part[2]) for part in parts if part for name in part[1].split(",")]
    if not all(parts) or not all(name for name, _ in pairs) or len(dict(pairs)) < len(pairs):
        raise CompanionError(f"merge '{text}' is not sub-labels=class, each once, like 'edge-on,face-on=<100> loop'")
    return dict(pairs)


def _copied(name: str, images: Path, target: Path) -> dict[str, Any]:
    """Copies an image, as grey PNG unless it is PNG or TIFF already; its file_name in `target`, height and width.

    Where `images` has no file of that name, the folders that its author's machine had are left out.
    """
    source = images / name
    if not source.is_file() or Path(name).is_absolute() or ".." in Path(name).parts:
        bare = PureWindowsPath(name).name  # parted by either slash
        source = next((path for path in sorted(images.rglob("*")) if path.name == bare), None)
    if source is None:
        raise CompanionError(f"missing from {images}")
    kept = source.suffix.lower() in SUFFIXES
    copy, pixels = target / source.relative_to(images).with_suffix(source.suffix if kept else ".png"), read_grey(source)
    if copy.exists():
        raise CompanionError(f"another image becomes {copy.name}, too")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, copy) if kept else write_grey(copy, pixels)
    return {"file_name": copy.relative_to(target).as_posix(), "height": pixels.shape[0], "width": pixels.shape[1]}


def _pixel_sizes(given: float | str | None) -> dict[str, float] | None:
    """Pixel sizes by text in the file name, from what `import_dataset` takes."""
    text = str(given)
    try:
        if given is None:
            return None
        if text.lower().endswith(".csv"):
            return pd.read_csv(text).set_index("file_name")["pixel_size_nm"].astype(float).to_dict()
        pairs = [part.partition("=") for part in text.split(",")] if "=" in text else [("", "=", text)]
        return {part.strip(): float(size) for part, _, size in pairs}
    except (OSError, KeyError, ValueError) as error:
        raise CompanionError(
            f"pixel size '{text}' should be a number (nm per px), pairs like 70kx=0.8805,300kx=0.4785, or the path of "
            f"a CSV file with columns file_name and pixel_size_nm: {error}"
        ) from None


def fitting_size(name: str, sizes: Mapping[str, float]) -> float:
    """The pixel size by text in a file name, which should contain one; 170kx does not say 70kx."""
    fitting = {size for part, size in sizes.items() if re.search(rf"(?<![\d.]){re.escape(part.lower())}", name.lower())}
    if len(fitting) != 1:
        raise CompanionError(f"its name should contain one of {', '.join(sizes)} to give a pixel size")
    return fitting.pop()
