"""Annotations of other tools into the one format; everything or nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from companion.data.dataset import ANNOTATIONS, SUFFIXES, DataSet, find_problems, load_dataset, read_document
from companion.errors import CompanionError, problems
from companion.provenance import atomic_folder, write_json


def import_coco(
    images: Path, labels: Path, classes: Sequence[str] | None, pixel_size_nm: float | None, out: Path
) -> DataSet:
    """Import a COCO instances file.

    Parameters
    ----------
    images : folder with the micrographs
    labels : the COCO JSON file
    classes : names of the categories to keep, in the order of their codes; None keeps all, in order of id
    pixel_size_nm : nm per px of every image; None where the file has ``images[].pixel_size_nm``
    out : data set folder to make; must not exist

    Raises
    ------
    CompanionError
        Every problem at once; nothing is written then.
    """
    document = read_document(Path(labels))
    found = []
    if pixel_size_nm is not None and pixel_size_nm <= 0:
        found.append(f"pixel size {pixel_size_nm} should be a positive number of nm per px")
    for image in document["images"]:
        if isinstance(image, dict) and pixel_size_nm is not None:
            image["pixel_size_nm"] = pixel_size_nm
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            image["file_name"] = Path(image["file_name"]).name
    found += find_problems(document, Path(images))
    if classes:
        names = [category.get("name") for category in document["categories"] if isinstance(category, dict)]
        found += [f"class '{name}' is not among the categories {names}" for name in classes if name not in names]
    if found:
        raise problems(f"{labels}: {len(found)} problem(s), nothing imported", found)
    return _write(_chosen(document, classes), Path(images), Path(out), f"COCO file {Path(labels).name}")


def _chosen(document: dict[str, Any], classes: Sequence[str] | None) -> dict[str, Any]:
    """The document with only the wanted categories, numbered 1, 2, ..."""
    ordered = sorted(document["categories"], key=lambda category: category["id"])
    kept = [next(c for c in ordered if c["name"] == name) for name in classes] if classes else ordered
    codes = {category["id"]: code for code, category in enumerate(kept, start=1)}
    annotations = [
        {**a, "category_id": codes[a["category_id"]]} for a in document["annotations"] if a["category_id"] in codes
    ]
    categories = [{"id": codes[category["id"]], "name": category["name"]} for category in kept]
    return {**document, "categories": categories, "annotations": annotations}


def _write(document: dict[str, Any], images: Path, out: Path, source: str) -> DataSet:
    if out.exists():
        raise CompanionError(f"{out} exists already; give a new folder")
    card = {"name": out.name, "source": source, **document["info"].get("dataset_card", {})}
    with atomic_folder(out) as temporary:
        (temporary / "images").mkdir()
        for image in document["images"]:
            shutil.copyfile(images / image["file_name"], temporary / "images" / image["file_name"])
        write_json(temporary / ANNOTATIONS, {**document, "info": {**document["info"], "dataset_card": card}})
        load_dataset(temporary)
    return load_dataset(out)


def import_record(downloads: Path, folder: Path, card: dict[str, Any]) -> None:
    """A downloaded record into the one format, where it holds one COCO file and the images that it names.

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
            f"{downloads} holds {len(documents)} COCO files, one was expected; the files are there: use "
            "`companion data import --format coco` on the one you want"
        )
    document = read_document(documents[0])
    places = {path.name: path for path in downloads.rglob("*") if path.suffix.lower() in SUFFIXES}
    (folder / "images").mkdir()
    for image in document["images"]:
        image["file_name"] = Path(image["file_name"]).name
        image.setdefault("pixel_size_nm", magnification_pixel_size(image["file_name"], image.get("width", 1024)))
        if image["file_name"] in places:
            shutil.copyfile(places[image["file_name"]], folder / "images" / image["file_name"])
    document["info"]["dataset_card"] = card
    write_json(folder / ANNOTATIONS, document)


def magnification_pixel_size(file_name: str, width: int) -> float | None:
    """nm per px from a magnification in a file name ("..._300kx_..."), for the paper's microscope; None without."""
    found = re.search(r"(\d+)\s*kx", file_name, re.IGNORECASE)
    at_1024 = {"70": 0.8805, "100": 0.8691, "300": 0.4785, "500": 0.2832}.get(found[1]) if found else None
    return at_1024 * 1024 / width if at_1024 else None


def _is_coco(path: Path) -> bool:
    try:
        read_document(path)
    except CompanionError:
        return False
    return True
