"""The one data set format: micrographs in ``images/`` and COCO instances in ``annotations.json``.

``images[].pixel_size_nm`` gives the scale of each micrograph, ``info.dataset_card`` says where the set comes
from. COCO categories become class codes 1, 2, ... in the order in which the file lists them; 0 is background.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from companion.errors import CompanionError, problems
from companion.micrographs.coco import outline_problem, read_coco, segmentation_mask
from companion.micrographs.images import SUFFIXES, read_grey, to_uint8

ANNOTATIONS = "annotations.json"
KNOWN = ("file_name", "width", "height", "pixel_size_nm")  # of a micrograph; else its entry may say anything


class InstanceMap(NamedTuple):
    """Instances of one micrograph as pixels."""

    ids: NDArray[np.integer]  # uint8 (uint16 beyond 255 instances) [H, W]; 0 is background, later ones lie on top
    codes: NDArray[np.uint8]  # [n + 1], class code by id; codes[0] is 0
    overlap_share: float  # labelled pixels that a later instance hides, divided by all labelled pixels; in [0, 1)


@dataclass(frozen=True)
class Micrograph:
    """One image of a data set with its annotations."""

    path: Path
    file_name: str  # below images/
    width: int  # px
    height: int
    pixel_size_nm: float  # nm per px
    annotations: tuple[Mapping[str, Any], ...] = field(repr=False)  # COCO's, in the order of the file
    codes: Mapping[int, int] = field(repr=False)  # class code by COCO category id
    attributes: Mapping[str, Any] = field(repr=False)  # what else its entry in images says, e.g. magnification

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
    """A validated data set folder."""

    name: str  # of the data set card, else of the folder
    folder: Path
    classes: tuple[str, ...]  # names of the classes with codes 1, 2, ...
    micrographs: tuple[Micrograph, ...] = field(repr=False)
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)  # info.dataset_card: source, licence, citation...

    @property
    def files(self) -> list[str]:
        """File names of the micrographs, in the order of the annotation file."""
        return [micrograph.file_name for micrograph in self.micrographs]

    def micrograph(self, file_name: str) -> Micrograph:
        """The micrograph of that file name."""
        return self.micrographs[self.files.index(file_name)]


def load_dataset(folder: Path | str, annotations: str = ANNOTATIONS) -> DataSet:
    """Read and validate a data set folder; a `CompanionError` lists every problem at once, with file names.

    Parameters
    ----------
    annotations : name of the COCO file in it; a phantom also has truth.json, what a perfect annotator had drawn
    """
    folder, found, micrographs, own = Path(folder), [], [], defaultdict(list)
    document, place = read_coco(folder / annotations), (folder / "images").resolve()
    codes = {category["id"]: code for code, category in enumerate(document["categories"], start=1)}
    if not document["images"] or not 0 < len(codes) <= 255:
        held = f"it has {len(document['images'])} images and {len(codes)} categories"
        found.append(f"{held}: one to 255 categories fit")
    for annotation in document["annotations"]:
        own[annotation["image_id"]].append(annotation)
    for image in document["images"]:
        known = name, width, height, size = [image.pop(key, None) for key in KNOWN]
        path, annotated, said = folder / "images" / name, tuple(own.pop(image.pop("id"), ())), ""
        try:
            if not path.resolve().is_relative_to(place) or path.suffix.lower() not in SUFFIXES or not path.is_file():
                said = f"missing from {place} (images there are {', '.join(SUFFIXES)})"
            elif (shape := read_grey(path).shape) != (height, width):
                said = f"is {shape[1]} x {shape[0]} px, annotated as {width} x {height}"
            elif not size or size < 0:
                said = f"pixel_size_nm should be a positive number of nm per px, is {size}"
        except CompanionError as error:
            said = str(error)
        found += [f"{name}: {said}"] * bool(said)
        for annotation in annotated:
            wrong, category = "", annotation["category_id"]
            if category not in codes:
                wrong = f"unknown category_id {category}; known: {list(codes)}"
            elif not said:  # where its image has a problem, that is told already
                wrong = outline_problem(annotation.get("segmentation"), height, width)
            found += [f"{name}, annotation {annotation.get('id')}: {wrong}"] * bool(wrong)
        micrographs.append(Micrograph(path, *known, annotated, codes, image))
    found += [f"annotation {annotation.get('id')}: image_id {number} is not among the images"
              for number, lost in own.items() for annotation in lost]  # fmt: skip
    if found:
        raise problems(f"{folder / annotations}: {len(found)} problem(s)", found)
    card = document["info"].get("dataset_card", {})
    name = str(card.get("name") or folder.resolve().name)
    return DataSet(name, folder, tuple(c["name"] for c in document["categories"]), tuple(micrographs), card)
