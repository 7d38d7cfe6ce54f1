"""The one data set format: micrographs in ``images/`` and COCO instances in ``annotations.json``.

``images[].pixel_size_nm`` gives the scale of each micrograph, ``info.dataset_card`` says where the set comes
from. COCO category ids become class codes 1, 2, ... in the order of the ids; 0 is background.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from companion.errors import CompanionError, problems
from companion.micrographs.images import GREY_MODES, read_grey, segmentation_mask, to_uint8

ANNOTATIONS = "annotations.json"
SUFFIXES = (".png", ".tif", ".tiff")
TOLERANCE_PX = 1.0  # annotation tools round outwards, so an outline may end this far outside its image
SHOWN = 20  # problems listed before "and n more"
ENTRIES = {"images": {"id": int, "file_name": str}, "categories": {"id": int, "name": str},
           "annotations": {"image_id": int, "category_id": int}}  # fmt: skip


@dataclass(frozen=True)
class InstanceMap:
    """Instances of one micrograph as pixels.

    Attributes
    ----------
    ids : uint8 (uint16 beyond 255 instances) [H, W]; 0 is background, later annotations lie on top
    codes : uint8 [n + 1], class code by id; ``codes[0]`` is 0
    overlap_share : labelled pixels that a later instance hides, divided by all labelled pixels; in [0, 1)
    """

    ids: NDArray[np.uint8] | NDArray[np.uint16]
    codes: NDArray[np.uint8]
    overlap_share: float


@dataclass(frozen=True)
class Micrograph:
    """One image of a data set with its annotations.

    Attributes
    ----------
    path : the image file
    file_name : its name below ``images/``
    width, height : px
    pixel_size_nm : nm per px
    annotations : COCO annotations of this image, in the order of the file
    codes : class code by COCO category id
    attributes : everything else that its entry in ``images`` says, e.g. magnification
    """

    path: Path
    file_name: str
    width: int
    height: int
    pixel_size_nm: float
    annotations: tuple[Mapping[str, Any], ...] = field(repr=False)
    codes: Mapping[int, int] = field(repr=False)
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def read(self) -> NDArray[np.uint8]:
        """Grey levels [H, W]; 16-bit images are scaled linearly, 0.5th percentile to 0 and 99.5th to 255."""
        return to_uint8(read_grey(self.path))

    def instances(self) -> InstanceMap:
        """Instances as pixels: annotation k has id k + 1."""
        dtype = np.uint8 if len(self.annotations) <= 255 else np.uint16
        ids, labelled = np.zeros((self.height, self.width), dtype=dtype), 0
        for number, annotation in enumerate(self.annotations, start=1):
            mask, window = segmentation_mask(annotation["segmentation"], self.height, self.width)
            ids[window][mask] = number
            labelled += int(mask.sum())
        codes = np.array([0, *(self.codes[a["category_id"]] for a in self.annotations)], dtype=np.uint8)
        return InstanceMap(ids, codes, 1 - np.count_nonzero(ids) / labelled if labelled else 0.0)


@dataclass(frozen=True)
class DataSet:
    """A validated data set folder.

    Attributes
    ----------
    name : of the data set card, else of the folder
    classes : names of the classes with codes 1, 2, ...
    card : ``info.dataset_card``: source, licence, citation and what else is known
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    micrographs: tuple[Micrograph, ...] = field(repr=False)
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> list[str]:
        """File names of the micrographs, in the order of the annotation file."""
        return [micrograph.file_name for micrograph in self.micrographs]

    def micrograph(self, file_name: str) -> Micrograph:
        """The micrograph of that file name; KeyError if there is none."""
        for micrograph in self.micrographs:
            if micrograph.file_name == file_name:
                return micrograph
        raise KeyError(file_name)


def load_dataset(folder: Path | str, annotations: str = ANNOTATIONS) -> DataSet:
    """Read and validate a data set folder.

    Parameters
    ----------
    annotations : name of the COCO file in it; a phantom also has truth.json, what a perfect annotator had drawn

    Raises
    ------
    CompanionError
        Every problem at once, with file names: a category or image that is not there, an image of another size than
        annotated, an outline outside its image, no images, no categories, ...
    """
    folder = Path(folder)
    document = read_coco(folder / annotations)
    if found := list(dataset_problems(document, folder / "images")):
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise problems(f"{folder / annotations}: {len(found)} problem(s)", [*found[:SHOWN], *more])
    categories = sorted(document["categories"], key=lambda category: category["id"])
    codes = {category["id"]: code for code, category in enumerate(categories, start=1)}
    of_image: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    micrographs = []
    for image in document["images"]:
        known = [image.pop(key) for key in ("file_name", "width", "height", "pixel_size_nm")]
        annotated = tuple(of_image[image.pop("id")])
        micrographs.append(Micrograph(folder / "images" / known[0], *known, annotated, codes, image))
    card = document["info"].get("dataset_card", {})
    name = str(card.get("name") or folder.resolve().name)
    return DataSet(name, folder, tuple(category["name"] for category in categories), tuple(micrographs), card)


def read_coco(path: Path) -> dict[str, Any]:
    """A file of COCO instances.

    Returns
    -------
    dict with lists of dicts images (id and file_name unique), categories (id and name unique), annotations (each with
    image_id and category_id, which need not be among these), and a dict info; ids are whole numbers

    Raises
    ------
    CompanionError
        The file is missing, not JSON, or not of this form; every entry that is not is listed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompanionError(f"no annotation file {path}; a data set folder holds images/ and {ANNOTATIONS}") from None
    except (OSError, ValueError) as error:
        raise CompanionError(f"{path} is not a COCO annotation file: {error}") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in ENTRIES):
        raise CompanionError(f"{path} is not a COCO annotation file: it needs lists named {', '.join(ENTRIES)}")
    document["info"] = document.get("info") or {}
    if not isinstance(document["info"], dict) or not isinstance(document["info"].get("dataset_card", {}), dict):
        raise CompanionError(f"{path}: info and info.dataset_card should be mappings, are {document['info']!r:.80}")
    found = []
    for name, needed in ENTRIES.items():
        right = [isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in needed.items())
                 for entry in document[name]]  # fmt: skip
        found += [f"{name}[{k}] needs {' and '.join(needed)}, is {str(document[name][k])[:80]}"
                  for k in np.flatnonzero(~np.array(right, dtype=bool))]  # fmt: skip
        for key in needed if name != "annotations" else ():
            seen = Counter(entry[key] for entry, good in zip(document[name], right, strict=True) if good)
            found += [f"{name}: two have the {key} {value!r}" for value, times in seen.items() if times > 1]
    if found:
        raise problems(f"{path} is not a COCO annotation file:", found[:SHOWN])
    return document


def dataset_problems(document: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What keeps a COCO document from being the one format with the images in `folder`, a line each."""
    if not document["images"]:
        yield "the data set is empty: images has no entry"
    if not 0 < len(document["categories"]) <= 255:
        yield f"categories has {len(document['categories'])} entries: a class to learn is needed, at most 255 fit"
    images = {image["id"]: image for image in document["images"]}
    codes = sorted(category["id"] for category in document["categories"])
    for image in document["images"]:
        yield from (f"{image['file_name']}: {problem}" for problem in _image_problems(image, folder))
    for annotation in document["annotations"]:
        image, code = images.get(annotation["image_id"]), annotation["category_id"]
        label = f"annotation {annotation.get('id')}"
        if image is None:
            yield f"{label}: image_id {annotation['image_id']} is not among the images"
            continue
        if code not in codes:
            yield f"{image['file_name']}, {label}: unknown category_id {code}; known: {codes}"
        found = _annotation_problems(annotation, image.get("width"), image.get("height"))
        yield from (f"{image['file_name']}, {label}: {problem}" for problem in found)


def _image_problems(image: Mapping[str, Any], folder: Path) -> Iterator[str]:
    size, scale = (image.get("width"), image.get("height")), image.get("pixel_size_nm")
    if not _numbers([scale]) or scale <= 0:
        yield f"pixel_size_nm should be a positive number of nm per px, is {scale!r}"
    name = PurePosixPath(image["file_name"])
    if name.is_absolute() or ".." in name.parts:
        yield "the file name leads out of the images folder"
    elif name.suffix.lower() not in SUFFIXES:
        yield f"images are {', '.join(SUFFIXES)}, this is '{name.suffix}'"
    elif not (folder / name).is_file():
        yield f"missing from {folder}"
    else:
        try:
            with Image.open(folder / name) as opened:
                if opened.size != size:
                    yield f"is {opened.size[0]} x {opened.size[1]} px, annotated as {size[0]} x {size[1]}"
                if opened.mode not in GREY_MODES:
                    yield f"is not an 8 or 16-bit grey image (mode {opened.mode})"
        except (OSError, ValueError) as error:
            yield f"not a readable image: {error}"


def _annotation_problems(annotation: Mapping[str, Any], width: Any, height: Any) -> Iterator[str]:
    if not _numbers([width, height]):
        return  # its image is a problem of its own
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        for ring in segmentation:
            if not (isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and _numbers(ring)):
                yield "a polygon should be a list of at least three x, y pairs"
            elif _outside(ring, width, height):
                yield f"a polygon reaches outside the {width} x {height} px image"
    elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (str, list)):
        counts = segmentation["counts"]
        if segmentation.get("size") != [height, width]:
            yield f"its run lengths are for size {segmentation.get('size')}, the image has [{height}, {width}]"
        elif isinstance(counts, list) and sum(counts) != height * width:
            yield f"its run lengths add up to {sum(counts)} px, the image has {height * width}"
    else:
        yield "segmentation should be polygons or run lengths; a box alone does not say which pixels"


def _outside(points: list[float], width: int, height: int) -> bool:
    xs, ys = points[::2], points[1::2]
    return min(*xs, *ys) < -TOLERANCE_PX or max(xs) > width + TOLERANCE_PX or max(ys) > height + TOLERANCE_PX


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
