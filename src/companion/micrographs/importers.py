"""Micrographs and annotations of other tools into the one format: everything or nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion.errors import CompanionError, nearest, problems
from companion.geometry import box_of
from companion.micrographs.coco import leaves, outline_problem, read_coco, run_lengths, segmentation_mask
from companion.micrographs.dataset import ANNOTATIONS, DataSet, load_dataset
from companion.micrographs.formats import FORMATS
from companion.micrographs.images import IMAGE_SUFFIXES, SUFFIXES, read_micrograph, write_grey
from companion.micrographs.pictures import Source, folded, picture_files
from companion.provenance import atomic_folder, write_json


def import_dataset(
    format: str, images: Path, labels: Path, classes: Sequence[str] | None, pixel_size_nm: float | str | None,
    out: Path, merge: Mapping[str, str] | None = None, card: Mapping[str, Any] | None = None,
    crop_bottom: int | str = 0,
) -> DataSet:  # fmt: skip
    """Convert to a data set folder, with the ids, names and sub-folders that there are.

    Parameters
    ----------
    format : a name in `companion.micrographs.formats.FORMATS`
    images : folder with the micrographs, see `read_micrograph`
    labels : the annotation file, or the folder with one file per micrograph
    classes : names of the classes in the order of their codes; of a COCO file they choose, and none keeps all but those
        that only group others or stand for background
    pixel_size_nm : nm per px of every image; or "70kx=0.8805,300kx=0.4785", texts in file names and their sizes;
        or the path of a CSV file with columns file_name and pixel_size_nm; None where a COCO file or the images say it
    out : data set folder to make; must not exist
    merge : sub-label -> class that it is part of, for a file that splits a class, e.g. {"edge-on": "<100> loop",
        "face-on": "<100> loop"}; `classes` then names the class, not its parts
    card : data set card, beside what a COCO file's own says; what was noticed at import is added as its notes
    crop_bottom : rows to leave out of every micrograph, px; "auto": their data bars

    A `CompanionError` lists every problem at once, with file names; nothing is written then.
    """
    images, labels, out, merge = Path(images), Path(labels), Path(out), merge or {}
    if format not in FORMATS:
        raise CompanionError(f"format '{format}': {nearest(format, FORMATS)}")
    if not images.is_dir() or not labels.exists():
        raise CompanionError(f"no folder of images {images}, or no annotations at {labels}")
    if out.exists():
        raise CompanionError(f"{out} exists already; give a new folder")
    source = Source(labels, images, picture_files(images, labels))
    found, notes, listed = source.found, source.notes, {}
    known = {"name": out.name, "source": f"{labels.name} ({format})"}
    if not source.files:
        raise CompanionError(f"{images} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    if format == "coco":
        source.document = read_coco(labels)
        listed = {category["name"]: category for category in source.document["categories"]}
        known |= source.document["info"].get("dataset_card", {})
    elif not classes:
        raise CompanionError(f"format {format} needs the names of the classes, in order")
    merged = list(dict.fromkeys(merge.get(name, name) for name in listed))  # in order of the first of each
    used = {annotation["category_id"] for annotation in source.document.get("annotations", ())}
    groups = {str(category.get("supercategory")) for category in listed.values()}
    # Without an annotation: what only groups others (Roboflow), or stands for background.
    none = [name for name in sorted(listed) if not classes and listed[name]["id"] not in used
            and (name in groups or name.strip("_").casefold() in ("background", "ignore"))]  # fmt: skip
    notes["categories that are no classes, left out"] += none
    source.classes = chosen = tuple(classes or [name for name in merged if name not in none])
    ids = {name: 1 + k for k, name in enumerate(chosen)}  # of a COCO file its own, of merged ones the first
    ids |= {merge.get(name, name): c["id"] for name, c in reversed(listed.items()) if merge.get(name, name) in ids}
    codes = {given: ids[name] for k, name in enumerate(chosen) for given in (name, k)}  # by name, and number from 0
    codes |= {part: ids[name] for part, name in merge.items() if name in ids}
    found += [f"class '{name}' is not among those of {labels.name}; {nearest(name, valid)}"
              for names, valid in ((merge, listed), (chosen, merged)) if valid
              for name in names if name not in valid]  # fmt: skip
    entries, annotations, sizes = [], [], pixel_sizes(pixel_size_nm)
    with atomic_folder(out) as temporary:
        for number, (image, instances) in enumerate(FORMATS[format](source), start=1):
            named, relative = image["file_name"], image.pop("relative", False)
            found += [f"{named}, instance {k}: its class {given} is not one of {list(chosen)}"
                      for k, (given, _) in enumerate(instances, start=1)
                      if given not in codes and given not in listed]  # fmt: skip
            try:
                copy, whole = _copied(image, source, temporary / "images", sizes, crop_bottom)
            except CompanionError as error:
                found.append(f"{named}: {error}")
                continue
            entries.append({"id": number, **image, **copy})
            for k, (given, annotation) in enumerate(instances, start=1):
                if given in codes:
                    own = {"image_id": entries[-1]["id"], "category_id": codes[given], "iscrowd": 0}
                    fitted, problem = _fitted(annotation, copy, whole, relative, named, notes)
                    found += [f"{named}, annotation {annotation.get('id', k)}: {problem}"] * bool(problem)
                    annotations += [{**annotation, **own, **fitted}] * bool(fitted)
        if len({annotation.get("id") for annotation in annotations}) < len(annotations):
            notes["ids of annotations used twice, all new"] += [labels.name] * any("id" in a for a in annotations)
            annotations = [{**annotation, "id": k} for k, annotation in enumerate(annotations, start=1)]
        if not annotations and not found:
            found.append(f"no label of {', '.join(chosen)} in it, for {len(entries)} micrograph(s) below {images}")
        if found := list(dict.fromkeys(found)):
            raise problems(f"{labels}: {len(found)} problem(s), nothing imported", found)
        told = [f"{what}: {len(w)} ({', '.join(w[:3])}{', ...' * (len(w) > 3)})" for what, w in notes.items() if w]
        document = {
            "info": {"dataset_card": {**known, **(card or {}), "notes": told}}, "images": entries,
            "annotations": annotations,
            "categories": [{**listed.get(name, {}), "id": ids[name], "name": name} for name in chosen],
        }  # fmt: skip
        write_json(temporary / ANNOTATIONS, document)
        made = load_dataset(temporary)  # refuses what is not covered above, such as ids that are used twice
    there = [replace(micrograph, path=out / "images" / micrograph.file_name) for micrograph in made.micrographs]
    return replace(made, folder=out, micrographs=tuple(there))


def _copied(
    image: Mapping[str, Any], source: Source, target: Path, sizes: Callable[[str, str], float | None] | None,
    crop_bottom: int | str,
) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Copies an image, as PNG (float32: TIFF) unless it is PNG or TIFF already.

    What its entry says then, and its height before rows were cropped, px.
    """
    name = source.find(image["file_name"])
    path = source.files[name]
    picture = read_micrograph(path, crop_bottom)
    height, width = picture.pixels.shape
    whole = height + picture.cropped
    for note in picture.notes:
        source.notes[note].append(name)
    for side, real in (("height", whole), ("width", width)):
        if image.get(side) and image[side] != real:
            raise CompanionError(f"is {width} x {whole} px, its labels are of {side} {image[side]} px")
    copy, kept = target / name, path.suffix.lower() in SUFFIXES and not picture.cropped
    if not kept:
        copy = copy.with_suffix(".tif" if picture.pixels.dtype == np.float32 else ".png")
    if copy.exists():
        raise CompanionError(f"another image becomes {copy.name}, too")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy) if kept else write_grey(copy, picture.pixels)
    said = sizes(image["file_name"], name) if sizes else image.get("pixel_size_nm") or picture.pixel_size_nm
    if not said or not 0 < said < np.inf:
        raise CompanionError(f"pixel_size_nm should be a positive number of nm per px (--pixel-size-nm), is {said}")
    if picture.pixel_size_nm and abs(said / picture.pixel_size_nm - 1) > 0.01:
        source.notes[f"the file says {picture.pixel_size_nm:.4g} nm per px, {said:g} is taken"].append(name)
    named = copy.relative_to(target).as_posix()
    entry = {"file_name": named, "height": height, "width": width, "pixel_size_nm": said}
    return entry | ({"source_name": image["file_name"]} if image["file_name"] != named else {}), whole


def _fitted(
    annotation: Mapping[str, Any], image: Mapping[str, Any], whole: int, relative: bool, named: str,
    notes: dict[str, list[str]],
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Segmentation, box and area (px) of an instance inside an image, if a pixel of it is left; and what is wrong."""
    given, height, width = annotation.get("segmentation"), image["height"], image["width"]
    if isinstance(given, list):
        sides = (width, whole) if relative else (1, 1)
        rings = [ring for ring in given if len(ring) > 4 or len(given) == 1]
        notes["rings of fewer than three points, left out"] += [named] * (len(given) - len(rings))
        given = [(np.reshape(r, (-1, 2)) * sides).ravel().tolist() if len(r) % 2 == 0 else r for r in rings]
    if problem := outline_problem(given, whole, width):
        return {}, problem
    mask, (rows, columns) = segmentation_mask(given, whole, width)
    mask = mask[: max(height - rows.start, 0)]
    if not mask.any():
        notes["outlines without a pixel, left out"].append(named)
        return {}, ""
    if isinstance(given, list) and leaves(given, height, width):
        notes["outlines cut off at the border"].append(named)
        given = {}
    if isinstance(given, dict):
        given = run_lengths(mask, (rows, columns), height, width)
    x1, y1, x2, y2 = box_of(mask)
    box, own = [columns.start + x1, rows.start + y1, x2 - x1, y2 - y1], annotation.get("bbox")
    # A file's own box, of fractions of a pixel, stays where it is one of this outline.
    box = own if own and max(abs(a - b) for a, b in zip(own, box, strict=True)) <= 2 else box
    return {"segmentation": given, "bbox": box, "area": int(mask.sum())}, ""


def parse_merge(text: str) -> dict[str, str]:
    """Sub-label -> class, from "edge-on,face-on=<100> loop", several merges parted by semicolons."""
    parts = [re.fullmatch(r"([^=]+)=\s*([^=]*\S)\s*", part) for part in text.split(";")]
    pairs = [(name.strip(), part[2]) for part in parts if part for name in part[1].split(",")]
    if not all(parts) or not all(name for name, _ in pairs) or len(dict(pairs)) < len(pairs):
        raise CompanionError(f"merge '{text}' is not sub-labels=class, each once, like 'edge-on,face-on=<100> loop'")
    return dict(pairs)


def pixel_sizes(given: float | str | None) -> Callable[[str, str], float | None] | None:
    """What `import_dataset` takes, as a function of a micrograph's names (in the labels, in the folder): nm per px."""
    text = str(given)
    if given is None:
        return None
    try:
        if text.lower().endswith(".csv"):
            rows = pd.read_csv(text, encoding="utf-8-sig", dtype={"file_name": str, "pixel_size_nm": float})
            if not {"file_name", "pixel_size_nm"} <= set(rows):
                raise ValueError(f"its columns are {', '.join(rows)}")
            by_name = dict(zip(rows["file_name"].map(folded, na_action="ignore"), rows["pixel_size_nm"], strict=True))
            return lambda named, name: by_name.get(folded(named)) or by_name.get(folded(name))
        pairs = [part.partition("=") for part in text.split(",")] if "=" in text else [("", "=", text)]
        sizes = {part.strip(): float(size) for part, _, size in pairs}
    except (OSError, ValueError) as error:
        raise CompanionError(
            f"pixel size '{text}' should be a number (nm per px, with a decimal point), pairs like "
            "70kx=0.8805,300kx=0.4785, or the path of a CSV file (commas, decimal points) with columns file_name and "
            f"pixel_size_nm: {error}"
        ) from None
    return lambda named, name: fitting_size(name, sizes)


def fitting_size(name: str, sizes: Mapping[str, float]) -> float:
    """The pixel size by text in a file name, which should contain one; 170kx does not say 70kx."""
    fitting = {size for part, size in sizes.items() if re.search(rf"(?<![\d.]){re.escape(part.lower())}", name.lower())}
    if len(fitting) != 1:
        raise CompanionError(f"its name should contain one of {', '.join(sizes)} to give a pixel size")
    return fitting.pop()
