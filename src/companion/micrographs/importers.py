"""Micrographs and annotations of other tools into the one format: everything or nothing."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from companion.micrographs.dataset import ANNOTATIONS, SUFFIXES, DataSet, find_problems, load_dataset, read_document
from companion.micrographs.formats import FORMATS, Draft, read_coco
from companion.micrographs.images import is_grey_file, read_grey, write_grey
from companion.errors import CompanionError, nearest, problems
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
    images, labels, out = Path(images), Path(labels), Path(out)
    if format not in FORMATS:
        raise CompanionError(f"format '{format}': {nearest(format, FORMATS)}")
    if not images.is_dir():
        raise CompanionError(f"no folder of images {images}")
    if not labels.exists():
        raise CompanionError(f"no annotations at {labels}")
    if out.exists():
        raise CompanionError(f"{out} exists already; give a new folder")
    if merge and format != "coco":
        raise CompanionError(f"merge is for COCO files; format {format} takes the classes as they are named")
    chosen = tuple(classes or ())
    draft = read_coco(labels, images, chosen, merge) if merge else FORMATS[format](labels, images, chosen)
    source = f"{labels.name} ({format})"
    with atomic_folder(out) as temporary:
        found = [*draft.found, *_copy_images(draft, images, temporary / "images")]
        found += _add_pixel_sizes(draft.images, pixel_size_nm)
        document = _document(draft, {"name": out.name, "source": source, **draft.card})
        found += [p for p in find_problems(document, temporary / "images") if not _said(p, found)]
        if found:
            raise problems(f"{labels}: {len(found)} problem(s), nothing imported", found)
        write_json(temporary / ANNOTATIONS, document)
    return load_dataset(out)


def import_coco(
    images: Path, labels: Path, classes: Sequence[str] | None, pixel_size_nm: float | str | None, out: Path
) -> DataSet:
    """`import_dataset` of a COCO instances file."""
    return import_dataset("coco", images, labels, classes, pixel_size_nm, out)


def _document(draft: Draft, card: dict[str, Any]) -> dict[str, Any]:
    return {
        "info": {"dataset_card": card},
        "images": draft.images,
        "annotations": [{**a, "id": k} for k, a in enumerate(draft.annotations, start=1)],
        "categories": [{"id": code, "name": name} for code, name in enumerate(draft.classes, start=1)],
    }


def _copy_images(draft: Draft, images: Path, target: Path) -> list[str]:
    """Copies grey PNG and TIFF files, rewrites the others as grey PNG; fills in names and missing sizes."""
    target.mkdir()
    found = []
    for image in draft.images:
        source = images / image["file_name"]
        if not source.is_file():
            found.append(f"{image['file_name']}: missing from {images}")
            continue
        try:
            pixels = read_grey(source)
        except CompanionError as error:
            found.append(f"{image['file_name']}: {error}")
            continue
        if is_grey_file(source) and source.suffix.lower() in SUFFIXES:
            shutil.copyfile(source, target / source.name)
            image["file_name"] = source.name
        else:
            image["file_name"] = f"{source.stem}.png"
            write_grey(target / image["file_name"], pixels)
        image.setdefault("height", int(pixels.shape[0]))
        image.setdefault("width", int(pixels.shape[1]))
    return found


def _said(problem: str, found: Sequence[str]) -> bool:
    """Whether a problem of the copy only repeats one that was found on the way to it."""
    return ": missing from " in problem and any(f.startswith(problem.split(":")[0] + ":") for f in found)


def _add_pixel_sizes(images: Sequence[dict[str, Any]], given: float | str | None) -> list[str]:
    """Sets ``pixel_size_nm`` of every image; returns what is wrong with it."""
    if given is None:
        return []
    found: list[str] = []
    table = _table(str(given), found)
    for image in images:
        name = image["file_name"]
        if isinstance(table, float):
            image["pixel_size_nm"] = table
        elif str(given).lower().endswith(".csv"):
            if name in table:
                image["pixel_size_nm"] = table[name]
            else:
                found.append(f"{name}: {given} has no row for it")
        else:
            sizes = {size for part, size in table.items() if _named(part, name)}
            if len(sizes) == 1:
                image["pixel_size_nm"] = sizes.pop()
            else:
                found.append(f"{name}: its name should contain one of {', '.join(table)} to give a pixel size")
    return found


def _named(part: str, name: str) -> bool:
    """Whether a file name says `part`; 70kx is not said by 170kx."""
    return re.search(rf"(?<![\d.]){re.escape(part.lower())}", name.lower()) is not None


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
            example = "edge-on,face-on=<100> loop"
            raise CompanionError(f"merge '{part.strip()}' is not sub-labels=class, like '{example}'")
        for name in names:
            if merge.setdefault(name, target.strip()) != target.strip():
                raise CompanionError(f"merge gives sub-label '{name}' to both '{merge[name]}' and '{target.strip()}'")
    return merge


def _table(given: str, found: list[str]) -> float | dict[str, float]:
    """A pixel size for all, or by file name, or by a text in the file name."""
    try:
        return float(given)
    except ValueError:
        pass
    if given.lower().endswith(".csv"):
        try:
            with open(given, newline="", encoding="utf-8-sig") as file:
                return {row["file_name"]: float(row["pixel_size_nm"]) for row in csv.DictReader(file)}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CompanionError(
                f"{given} is not a table with columns file_name and pixel_size_nm (a number, nm per px): {error}"
            ) from None
    pairs = re.findall(r"([^=,]+)=([^=,]+)", given)
    try:
        if not pairs:
            raise ValueError
        return {part.strip(): float(size) for part, size in pairs}
    except ValueError:
        raise CompanionError(
            f"pixel size '{given}' should be a number (nm per px), the path of a CSV file, or pairs like "
            "70kx=0.8805,300kx=0.4785"
        ) from None


# --- a downloaded record ------------------------------------------------------------------------------------

# nm per px at a width of 1024 px, by the magnification in the file name (the paper's microscope).
PAPER_MAGNIFICATIONS = {"70kx": 0.8805, "100kx": 0.8691, "300kx": 0.4785, "500kx": 0.2832}


def import_record(downloads: Path, folder: Path, card: dict[str, Any]) -> None:
    """A downloaded record into `folder`, where it holds one COCO file and the images that it names.

    Pixel sizes come from the magnification in each file name.

    Raises
    ------
    CompanionError
        The record is laid out otherwise; the files stay where they are for ``companion data import``.
    """
    for archive in sorted(downloads.rglob("*.zip")):
        unpacked = archive.with_suffix("")
        if not unpacked.is_dir():
            with atomic_folder(unpacked) as temporary:
                shutil.unpack_archive(archive, temporary)
    documents = [path for path in sorted(downloads.rglob("*.json")) if _is_coco(path)]
    if len(documents) != 1:
        raise CompanionError(
            f"{downloads} holds {len(documents)} COCO files ({', '.join(p.name for p in documents) or 'none'}); one "
            "was expected. The files are there: use `companion data import --format coco` on the one you want"
        )
    draft = FORMATS["coco"](documents[0], downloads, ())
    places = {path.name: path.relative_to(downloads) for path in downloads.rglob("*") if path.is_file()}
    for image in draft.images:
        image["file_name"] = str(places.get(Path(image["file_name"]).name, image["file_name"]))
    found = [*draft.found, *_copy_images(draft, downloads, folder / "images")]
    for image in draft.images:
        name = image["file_name"].lower()
        sizes = [size for part, size in PAPER_MAGNIFICATIONS.items() if _named(part, name)]
        if "pixel_size_nm" not in image and len(sizes) == 1:
            image["pixel_size_nm"] = sizes[0] * 1024 / image.get("width", 1024)
    document = _document(draft, card)
    found += find_problems(document, folder / "images")
    if found:
        raise problems(f"{downloads}: {len(found)} problem(s); the files stay there", found[:20])
    write_json(folder / ANNOTATIONS, document)


def _is_coco(path: Path) -> bool:
    try:
        read_document(path)
    except CompanionError:
        return False
    return True
