"""Micrographs and annotations of other tools into the one format: everything or nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import pandas as pd
from PIL import Image

from companion.errors import CompanionError, nearest, problems
from companion.micrographs.dataset import ANNOTATIONS, SUFFIXES, DataSet, dataset_problems, load_dataset, read_coco
from companion.micrographs.formats import FORMATS, read_coco_instances
from companion.micrographs.images import GREY_MODES, read_grey, write_grey
from companion.provenance import atomic_folder, write_json


def import_dataset(
    format: str, images: Path, labels: Path, classes: Sequence[str] | None, pixel_size_nm: float | str | None,
    out: Path, merge: Mapping[str, str] | None = None,
) -> DataSet:  # fmt: skip
    """Convert to a data set folder.

    Parameters
    ----------
    format : a name in `companion.micrographs.formats.FORMATS`: coco, labelmap, yolo-seg, via, detectron2
    images : folder with the micrographs: grey, 8 or 16-bit; colour files whose channels are equal become grey
    labels : the annotation file, or for labelmap and yolo-seg the folder with one file per micrograph
    classes : names of the classes in the order of their codes; a COCO file brings its own and needs none
    pixel_size_nm : nm per px of every image; or "70kx=0.8805,300kx=0.4785", texts in file names and their sizes;
        or the path of a CSV file with columns file_name and pixel_size_nm; None where a COCO file has it
    out : data set folder to make; must not exist
    merge : sub-label -> class that it is part of, for a COCO file that splits a class, e.g. {"edge-on": "<100> loop",
        "face-on": "<100> loop"}; see `parse_merge` for the command line's way to write it

    Raises
    ------
    CompanionError
        Every problem at once, with file names; nothing is written then.
    """
    images, labels, out, chosen = Path(images), Path(labels), Path(out), tuple(classes or ())
    if format not in FORMATS:
        raise CompanionError(f"format '{format}': {nearest(format, FORMATS)}")
    if not images.is_dir():
        raise CompanionError(f"no folder of images {images}")
    if not labels.exists():
        raise CompanionError(f"no annotations at {labels}")
    if out.exists():
        raise CompanionError(f"{out} exists already; give a new folder")
    if format != "coco" and (not chosen or len(set(chosen)) < len(chosen)):
        raise CompanionError(f"format {format} needs the class names, each once, in order (given: {list(chosen)})")
    if merge and format != "coco":
        raise CompanionError(f"merge is for COCO files; format {format} takes the classes as they are named")
    sizes = _pixel_sizes(pixel_size_nm)
    draft = read_coco_instances(labels, images, chosen, merge) if merge else FORMATS[format](labels, images, chosen)
    with atomic_folder(out) as temporary:
        entries = [image for image, _ in draft.images]
        found = [*draft.found, *_copy_images(entries, images, temporary / "images")]
        found += _add_pixel_sizes(entries, sizes) if sizes is not None else []
        for number, image in enumerate(entries, start=1):
            image.setdefault("id", number)
        annotations = [{"iscrowd": 0, **a, "image_id": image["id"]} for image, own in draft.images for a in own]
        document = {
            "info": {"dataset_card": {"name": out.name, "source": f"{labels.name} ({format})", **draft.card}},
            "images": entries, "annotations": [{"id": k, **a} for k, a in enumerate(annotations, start=1)],
            "categories": [{"id": code, "name": name} for code, name in enumerate(draft.classes, start=1)],
        }  # fmt: skip
        said = {line.split(":")[0] for line in found}  # a problem of the copy may only repeat one met on the way
        found += [line for line in dataset_problems(document, temporary / "images")
                  if ": missing from " not in line or line.split(":")[0] not in said]  # fmt: skip
        if found:
            raise problems(f"{labels}: {len(found)} problem(s), nothing imported", found)
        write_json(temporary / ANNOTATIONS, document)
    return load_dataset(out)


def parse_merge(text: str) -> dict[str, str]:
    """Sub-label -> class, from "edge-on,face-on=<100> loop", several merges parted by semicolons.

    Raises
    ------
    CompanionError
        A part without names on both sides of one "=", or a sub-label that is given to two classes.
    """
    merge: dict[str, str] = {}
    for part in text.split(";"):
        left, sign, target = part.partition("=")
        names = [name.strip() for name in left.split(",")]
        if not sign or not target.strip() or not all(names) or "=" in target:
            raise CompanionError(f"merge '{part.strip()}' is not sub-labels=class, like 'edge-on,face-on=<100> loop'")
        for name in names:
            if merge.setdefault(name, target.strip()) != target.strip():
                raise CompanionError(f"merge gives sub-label '{name}' to both '{merge[name]}' and '{target.strip()}'")
    return merge


def _copy_images(entries: Sequence[dict[str, Any]], images: Path, target: Path) -> list[str]:
    """Copies grey PNG and TIFF files, rewrites the others as grey PNG; fills in names and missing sizes."""
    found = []
    for image in entries:
        source = images / image["file_name"]
        try:
            pixels = read_grey(source)
        except CompanionError as error:
            found.append(f"{image['file_name']}: {error if source.is_file() else f'missing from {images}'}")
            continue
        with Image.open(source) as opened:
            kept = opened.mode in GREY_MODES and source.suffix.lower() in SUFFIXES
        copy = target / (image["file_name"] if kept else Path(image["file_name"]).with_suffix(".png"))
        if copy.exists():
            found.append(f"{image['file_name']}: another image becomes {copy.name}, too")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy) if kept else write_grey(copy, pixels)
        image["file_name"] = copy.relative_to(target).as_posix()
        image.setdefault("height", int(pixels.shape[0]))
        image.setdefault("width", int(pixels.shape[1]))
    return found


def _pixel_sizes(given: float | str | None) -> float | dict[str, float] | None:
    """A pixel size for all, or by file name (from a CSV file) or text in the file name."""
    try:
        return None if given is None else float(given)
    except ValueError:
        pass
    text = str(given)
    if text.lower().endswith(".csv"):
        try:
            table = pd.read_csv(text).set_index("file_name")["pixel_size_nm"].astype(float)
        except (OSError, KeyError, ValueError) as error:
            columns = "file_name and pixel_size_nm (a number, nm per px)"
            raise CompanionError(f"{text} is not a table with columns {columns}: {error}") from None
        return table.to_dict()
    try:
        return {part.strip(): float(size) for part, size in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        said = "should be a number (nm per px), the path of a CSV file, or pairs like 70kx=0.8805,300kx=0.4785"
        raise CompanionError(f"pixel size '{text}' {said}") from None


def _add_pixel_sizes(entries: Sequence[dict[str, Any]], sizes: float | dict[str, float]) -> list[str]:
    """Sets ``pixel_size_nm`` of every image; returns what is wrong with it."""
    found = []
    for image in entries:
        name = image["file_name"]
        fitting = {sizes} if isinstance(sizes, float) else {size for part, size in sizes.items() if says(name, part)}
        image["pixel_size_nm"] = fitting.pop() if len(fitting) == 1 else None
        if image["pixel_size_nm"] is None:
            found.append(f"{name}: its name should contain one of {', '.join(sizes)} to give a pixel size")
    return found


def says(name: str, part: str) -> bool:
    """Whether a file name says `part`; 170kx does not say 70kx."""
    return re.search(rf"(?<![\d.]){re.escape(part.lower())}", name.lower()) is not None


# nm per px at a width of 1024 px, by the magnification in the file name (the paper's microscope).
PAPER_MAGNIFICATIONS = {"70kx": 0.8805, "100kx": 0.8691, "300kx": 0.4785, "500kx": 0.2832}


def import_record(downloads: Path, folder: Path, card: Mapping[str, Any]) -> None:
    """A downloaded record into `folder`, where it holds one COCO file and the images that it names.

    Pixel sizes come from the magnification in each file name.

    Raises
    ------
    CompanionError
        The record is laid out otherwise; the files stay where they are for ``companion data import``.
    """
    for archive in sorted(downloads.rglob("*.zip")):
        shutil.unpack_archive(archive, archive.with_suffix(""))
    documents = []
    for path in sorted(downloads.rglob("*.json")):
        try:
            documents.append((path, read_coco(path)))
        except CompanionError:
            continue
    if len(documents) != 1:
        named = ", ".join(path.name for path, _ in documents) or "none"
        raise CompanionError(
            f"{downloads} holds {len(documents)} COCO files ({named}); one was expected. The files are there: use "
            "`companion data import --format coco` on the one you want"
        )
    places = {path.name: path.relative_to(downloads) for path in downloads.rglob("*") if path.is_file()}
    path, document = documents[0]
    for image in document["images"]:
        name = PureWindowsPath(image["file_name"]).name  # parted by either slash
        image["file_name"] = str(places.get(name, name))
        sizes = [size for part, size in PAPER_MAGNIFICATIONS.items() if says(name, part)]
        if "pixel_size_nm" not in image and len(sizes) == 1:
            image["pixel_size_nm"] = sizes[0] * 1024 / image.get("width", 1024)
    document["info"]["dataset_card"] = dict(card)
    write_json(path, document)
    import_dataset("coco", downloads, path, None, None, folder)
