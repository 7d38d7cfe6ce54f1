"""The one data set format: micrographs in ``images/`` and COCO instances in ``annotations.json``.

``images[].pixel_size_nm`` gives the scale of each micrograph, ``info.dataset_card`` says where the set comes
from. COCO category ids become class codes 1, 2, ... in the order of the ids; 0 is background.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.micrographs.images import GREY_MODES, read_grey, segmentation_mask, to_uint8
from companion.errors import CompanionError, problems

ANNOTATIONS = "annotations.json"
SUFFIXES = (".png", ".tif", ".tiff")
TOLERANCE_PX = 1.0  # annotation tools round outwards, so an outline may end this far outside its image
SHOWN = 20  # problems listed before "and n more"


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
        ids = np.zeros((self.height, self.width), dtype=dtype)
        labelled = 0
        for number, annotation in enumerate(self.annotations, start=1):
            mask, window = segmentation_mask(annotation["segmentation"], self.height, self.width)
            ids[window][mask] = number
            labelled += int(mask.sum())
        codes = np.array([0, *(self.codes[a["category_id"]] for a in self.annotations)], dtype=np.uint8)
        lost = 1 - np.count_nonzero(ids) / labelled if labelled else 0.0
        return InstanceMap(ids, codes, float(lost))


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
        Every problem at once, with file names: not COCO, a category or image that is not there, an image of
        another size than annotated, an outline outside its image, no images, no categories, ...
    """
    folder = Path(folder)
    document = read_document(folder / annotations)
    found = list(find_problems(document, folder / "images"))
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise problems(f"{folder / annotations}: {len(found)} problem(s)", [*found[:SHOWN], *more])
    categories = sorted(document["categories"], key=lambda category: category["id"])
    codes = {category["id"]: code for code, category in enumerate(categories, start=1)}
    of_image: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in document["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    named = ("id", "file_name", "width", "height", "pixel_size_nm")
    micrographs = tuple(
        Micrograph(
            folder / "images" / image["file_name"], image["file_name"], image["width"], image["height"],
            float(image["pixel_size_nm"]), tuple(of_image.get(image["id"], ())), codes,
            {key: value for key, value in image.items() if key not in named},
        )
        for image in document["images"]
    )  # fmt: skip
    card = document.get("info", {}).get("dataset_card", {})
    name = str(card.get("name") or folder.resolve().name)
    return DataSet(name, folder, tuple(category["name"] for category in categories), micrographs, card)


def read_document(path: Path) -> dict[str, Any]:
    """A COCO file as a dict with lists images, annotations and categories; CompanionError if it is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "" if path.parent.is_dir() else " (there is no such folder)"
        raise CompanionError(
            f"no annotation file {path}{hint}; a data set folder holds images/ and {ANNOTATIONS}"
        ) from None
    except (OSError, ValueError) as error:
        raise CompanionError(f"{path} is not a COCO annotation file: {error}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in lists):
        raise CompanionError(f"{path} is not a COCO annotation file: it needs lists named {', '.join(lists)}")
    card = (document.get("info") or {}).get("dataset_card", {}) if isinstance(document.get("info", {}), dict) else None
    if not isinstance(card, dict):
        raise CompanionError(f"{path}: info.dataset_card should be a mapping, is {card!r}")
    document["info"] = document.get("info") or {}
    return document


def find_problems(document: Mapping[str, Any], images: Path) -> Iterator[str]:
    """Everything in a COCO document that keeps it from being the one format, a line each."""
    yield from _category_problems(document["categories"])
    sizes: dict[Any, tuple[str, int, int]] = {}
    names: set[str] = set()
    if not document["images"]:
        yield "the data set is empty: images has no entry"
    for number, image in enumerate(document["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
            yield f"images[{number}] needs id and file_name, is {str(image)[:80]}"
            continue
        name = image["file_name"]
        if name in names or image["id"] in sizes:
            yield f"{name}: file name or id {image['id']} is used by two images"
        names.add(name)
        sizes[image["id"]] = (name, image.get("width", 0), image.get("height", 0))
        yield from (f"{name}: {problem}" for problem in _image_problems(image, images))
    categories = {category.get("id") for category in document["categories"] if isinstance(category, dict)}
    for number, annotation in enumerate(document["annotations"]):
        if not isinstance(annotation, dict):
            yield f"annotations[{number}] is not a mapping: {str(annotation)[:80]}"
            continue
        label = f"annotation {annotation.get('id', f'at position {number}')}"
        if annotation.get("image_id") not in sizes:
            yield f"{label}: image_id {annotation.get('image_id')!r} is not among the images"
            continue
        name, width, height = sizes[annotation["image_id"]]
        if annotation.get("category_id") not in categories:
            yield f"{name}, {label}: unknown category_id {annotation.get('category_id')!r}; known: {sorted(categories)}"
        if isinstance(width, int) and isinstance(height, int):
            yield from (f"{name}, {label}: {p}" for p in _annotation_problems(annotation, width, height))


def _category_problems(categories: list[Any]) -> Iterator[str]:
    if not categories:
        yield "categories is empty: there is no class to learn"
    good = [c for c in categories if isinstance(c, dict) and _is_whole(c.get("id")) and isinstance(c.get("name"), str)]
    if len(good) < len(categories):
        yield "every category needs a whole number id and a name"
    if len({c["id"] for c in good}) < len(good) or len({c["name"] for c in good}) < len(good):
        yield "two categories share an id or a name"
    if len(good) > 255:
        yield f"{len(good)} categories; class codes are 8-bit, at most 255 fit"


def _image_problems(image: Mapping[str, Any], folder: Path) -> Iterator[str]:
    width, height, scale = image.get("width"), image.get("height"), image.get("pixel_size_nm")
    if not _is_number(scale) or scale <= 0:
        yield f"pixel_size_nm should be a positive number of nm per px, is {scale!r}"
    if not (_is_whole(width) and _is_whole(height) and width > 0 and height > 0):
        yield f"width and height should be positive whole numbers, are {width!r} and {height!r}"
        return
    path = folder / image["file_name"]
    if PurePosixPath(image["file_name"]).is_absolute() or ".." in PurePosixPath(image["file_name"]).parts:
        yield "the file name leads out of the images folder"
    elif path.suffix.lower() not in SUFFIXES:
        yield f"images are {', '.join(SUFFIXES)}, this is '{path.suffix}'"
    elif not path.is_file():
        yield f"missing from {folder}"
    else:
        from PIL import Image

        try:
            with Image.open(path) as opened:
                size, mode = opened.size, opened.mode
        except (OSError, ValueError) as error:
            yield f"not a readable image: {error}"
            return
        if size != (width, height):
            yield f"is {size[0]} x {size[1]} px, annotated as {width} x {height}"
        if mode not in GREY_MODES:
            yield f"is not an 8 or 16-bit grey image (mode {mode})"


def _annotation_problems(annotation: Mapping[str, Any], width: int, height: int) -> Iterator[str]:
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    if box is not None:
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            yield f"bbox should be [x, y, width, height], is {box!r}"
        elif (
            box[2] <= 0 or box[3] <= 0 or _outside([box[0], box[0] + box[2]], [box[1], box[1] + box[3]], width, height)
        ):
            yield f"box {box} is empty or outside the {width} x {height} px image"
    if isinstance(segmentation, list) and segmentation:
        for ring in segmentation:
            if not (isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(map(_is_number, ring))):
                yield "a polygon should be a list of at least three x, y pairs"
            elif _outside(ring[::2], ring[1::2], width, height):
                yield f"a polygon reaches outside the {width} x {height} px image"
    elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (str, list)):
        if segmentation.get("size") != [height, width]:
            yield f"its run lengths are for size {segmentation.get('size')}, the image has [{height}, {width}]"
        elif isinstance(segmentation["counts"], list) and sum(segmentation["counts"]) != height * width:
            yield f"its run lengths add up to {sum(segmentation['counts'])} px, the image has {height * width}"
    else:
        yield "segmentation should be polygons or run lengths; a box alone does not say which pixels"


def _outside(xs: Iterable[float], ys: Iterable[float], width: int, height: int) -> bool:
    xs, ys = list(xs), list(ys)
    low, high = -TOLERANCE_PX, TOLERANCE_PX
    return min(xs) < low or min(ys) < low or max(xs) > width + high or max(ys) > height + high


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
