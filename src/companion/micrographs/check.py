"""A data set folder at a glance: what it holds, and what should make one look twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from companion.micrographs.dataset import DataSet, load_dataset
from companion.micrographs.splits import near_duplicates

TRUTH = "truth.json"  # beside the labels of a phantom


CARD = ("title", "source", "licence", "citation", "difficulty")  # what is told of a data set's own card


@dataclass(frozen=True)
class Check:
    """What a data set holds.

    Attributes
    ----------
    micrographs : one row per image: image, width, height, pixel_size_nm, instances, overlap_share, mean_grey
    classes : one row per class: class, instances, share, micrographs (that show it), median_nm and the 5th and
        95th percentile of the equivalent circle's diameter (nm)
    near_duplicates : pairs of files that look like the same field of view
    notes : what deserves a second look, in words
    """

    dataset: DataSet
    micrographs: pd.DataFrame = field(repr=False)
    classes: pd.DataFrame = field(repr=False)
    near_duplicates: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def card(self) -> dict[str, str]:
        """The card, as name and text, ready to print."""
        m = self.micrographs
        sizes = (m["width"].astype(str) + " x " + m["height"].astype(str)).value_counts()
        scales = m["pixel_size_nm"].value_counts().sort_index()
        card = self.dataset.card
        return {
            "name": self.dataset.name,
            **{key: str(card[key]) for key in CARD if card.get(key)},
            "micrographs": f"{len(m)}, of which {int((m['instances'] == 0).sum())} without a labelled defect",
            "size, px": ", ".join(f"{size} ({count})" for size, count in sizes.items()),
            "pixel size, nm": ", ".join(f"{scale:g} ({count})" for scale, count in scales.items()),
            "instances": f"{int(m['instances'].sum())}, per micrograph {m['instances'].min()} to "
            f"{m['instances'].max()}, median {m['instances'].median():g}",
            "labelled px lost to overlap": f"{m['overlap_share'].mean():.2%} on average",
            "near-duplicates": f"{len(self.near_duplicates)} pair(s)",
        }


def check_dataset(folder: Path | str) -> Check:
    """Validate a data set folder and describe it.

    Raises
    ------
    CompanionError
        Every problem at once, when it is not a valid data set (see `load_dataset`).
    """
    dataset = load_dataset(folder)
    rows, instances = [], []
    for micrograph in dataset.micrographs:
        pixels, truth = micrograph.read(), micrograph.instances()
        rows.append((micrograph.file_name, micrograph.width, micrograph.height, micrograph.pixel_size_nm,
                     len(truth.codes) - 1, truth.overlap_share, float(pixels.mean())))  # fmt: skip
        areas = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))[1:]
        diameters = 2 * np.sqrt(areas / np.pi) * micrograph.pixel_size_nm
        instances += [(micrograph.file_name, int(c), float(d)) for c, d in zip(truth.codes[1:], diameters, strict=True)]
    columns = ["image", "width", "height", "pixel_size_nm", "instances", "overlap_share", "mean_grey"]
    micrographs = pd.DataFrame(rows, columns=columns)
    found = pd.DataFrame(instances, columns=["image", "code", "diameter_nm"])
    classes = _classes(dataset, found)
    pairs = tuple(near_duplicates(dataset, dataset.files, dataset.files))
    return Check(dataset, micrographs, classes, pairs, tuple(_notes(dataset, micrographs, classes, found, pairs)))


def _classes(dataset: DataSet, found: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for code, name in enumerate(dataset.classes, start=1):
        own = found[found["code"] == code]
        low, median, high = own["diameter_nm"].quantile([0.05, 0.5, 0.95]) if len(own) else [np.nan] * 3
        rows.append((name, len(own), len(own) / max(len(found), 1), own["image"].nunique(), median, low, high))
    return pd.DataFrame(rows, columns=["class", "instances", "share", "micrographs", "median_nm", "p5_nm", "p95_nm"])


def _notes(
    dataset: DataSet, micrographs: pd.DataFrame, classes: pd.DataFrame, found: pd.DataFrame,
    pairs: tuple[tuple[str, str], ...],
) -> list[str]:  # fmt: skip
    notes = [f"class '{name}' has no instance" for name in classes.loc[classes["instances"] == 0, "class"]]
    if hidden := int((found["diameter_nm"] == 0).sum()):
        notes.append(f"{hidden} instance(s) lie wholly under later ones")
    for row in micrographs[micrographs["overlap_share"] > 0.1].itertuples():
        notes.append(f"{row.image}: {row.overlap_share:.0%} of its labelled pixels are hidden by overlap")
    for row in micrographs[(micrographs["mean_grey"] < 10) | (micrographs["mean_grey"] > 245)].itertuples():
        notes.append(f"{row.image}: mean grey level {row.mean_grey:.0f}, nearly black or white")
    notes += [f"{a} and {b} look like the same field: keep them on one side of a split" for a, b in pairs]
    if not dataset.card.get("licence"):
        notes.append("the data set card states no licence")
    return notes


def label_errors(folder: Path | str) -> pd.DataFrame | None:
    """How the labels of a phantom differ from its truth; None for data whose truth nobody knows.

    Returns
    -------
    one row per true class: class, defects, overlooked (share), confused (share of the labelled ones that carry
    another class), iou (mean mask IoU of labelled defects with what is truly there)
    """
    from pycocotools import mask as coco

    if not (Path(folder) / TRUTH).is_file():
        return None
    labels = {a["id"]: a for m in load_dataset(folder).micrographs for a in m.annotations}
    exact = load_dataset(folder, TRUTH)
    rows = []
    for defect in (a for m in exact.micrographs for a in m.annotations):
        label = labels.get(defect["label_id"])
        pair = [label["segmentation"], defect["segmentation"]] if label else []
        iou = float(coco.iou(pair[:1], pair[1:], [0])[0, 0]) if label else np.nan
        confused = float(label["category_id"] != defect["category_id"]) if label else np.nan
        rows.append((exact.classes[defect["category_id"] - 1], label is None, confused, iou))
    table = pd.DataFrame(rows, columns=["class", "overlooked", "confused", "iou"])
    summary = table.groupby("class", sort=False).agg(
        defects=("overlooked", "size"), overlooked=("overlooked", "mean"), confused=("confused", "mean"),
        iou=("iou", "mean"),
    )  # fmt: skip
    return summary.reindex(exact.classes).rename_axis("class").reset_index()
