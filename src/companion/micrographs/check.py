"""A data set folder at a glance: what it holds, and what should make one look twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as coco

from companion.micrographs.dataset import DataSet, load_dataset
from companion.micrographs.splits import near_duplicates
from companion.phantom.render import TRUTH

CARD = ("title", "source", "licence", "citation")  # what is told of a data set's own card


@dataclass(frozen=True)
class Check:
    """What a data set holds.

    Attributes
    ----------
    card : names and texts, ready to print
    classes : one row per class: class, instances, share, micrographs (that show it), median_nm and the 5th and
        95th percentile of the equivalent circle's diameter (nm)
    notes : what deserves a second look, in words
    """

    dataset: DataSet
    card: dict[str, str]
    classes: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...]


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
        truth, scale = micrograph.instances(), micrograph.pixel_size_nm
        areas = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))[1:]
        rows.append((micrograph.file_name, f"{micrograph.width} x {micrograph.height}", scale, len(areas),
                     truth.overlap_share, float(micrograph.read().mean())))  # fmt: skip
        diameters = 2 * np.sqrt(areas / np.pi) * scale
        instances += [(micrograph.file_name, c, d) for c, d in zip(truth.codes[1:], diameters, strict=True)]
    m = pd.DataFrame(rows, columns=["image", "size", "scale", "instances", "overlap", "grey"])
    found = pd.DataFrame(instances, columns=["image", "code", "diameter_nm"])
    classes = []
    for code, name in enumerate(dataset.classes, start=1):
        own = found[found["code"] == code]
        middle = own["diameter_nm"].astype(float).quantile([0.5, 0.05, 0.95])
        classes.append((name, len(own), len(own) / max(len(found), 1), own["image"].nunique(), *middle))
    columns = ["class", "instances", "share", "micrographs", "median_nm", "p5_nm", "p95_nm"]
    pairs = near_duplicates(dataset, dataset.files, dataset.files)
    card = {
        "name": dataset.name,
        **{key: str(dataset.card[key]) for key in CARD if dataset.card.get(key)},
        "micrographs": f"{len(m)}, of which {int((m['instances'] == 0).sum())} without a labelled defect",
        "size, px": ", ".join(f"{size} ({count})" for size, count in m["size"].value_counts().items()),
        "pixel size, nm": ", ".join(f"{s:g} ({n})" for s, n in m["scale"].value_counts().sort_index().items()),
        "instances": f"{m['instances'].sum()}, per micrograph {m['instances'].min()} to {m['instances'].max()}, "
        f"median {m['instances'].median():g}",
        "labelled px lost to overlap": f"{m['overlap'].mean():.2%} on average",
        "near-duplicates": f"{len(pairs)} pair(s)",
    }
    notes = [f"class '{name}' has no instance" for name, number, *_ in classes if number == 0]
    if hidden := int((found["diameter_nm"] == 0).sum()):
        notes.append(f"{hidden} instance(s) lie wholly under later ones")
    notes += [f"{row.image}: {row.overlap:.0%} of its labelled pixels are hidden by overlap"
              for row in m[m["overlap"] > 0.1].itertuples()]  # fmt: skip
    notes += [f"{row.image}: mean grey level {row.grey:.0f}, nearly black or white"
              for row in m[~m["grey"].between(10, 245)].itertuples()]  # fmt: skip
    notes += [f"{a} and {b} look like the same field: a drawn split keeps them on one side" for a, b in pairs]
    notes += ["the data set card states no licence"] * (not dataset.card.get("licence"))
    return Check(dataset, card, pd.DataFrame(classes, columns=columns), tuple(notes))


def label_errors(folder: Path | str) -> pd.DataFrame | None:
    """How the labels of a phantom differ from its truth; None for data whose truth nobody knows.

    Returns
    -------
    one row per true class: class, defects, overlooked (share), confused (share of the labelled ones that carry
    another class), iou (mean mask IoU of labelled defects with what is truly there)
    """
    if not (Path(folder) / TRUTH).is_file():
        return None
    labels = {a["id"]: a for m in load_dataset(folder).micrographs for a in m.annotations}
    exact = load_dataset(folder, TRUTH)
    rows = []
    for defect in (a for m in exact.micrographs for a in m.annotations):
        name, label = exact.classes[defect["category_id"] - 1], labels.get(defect["label_id"])
        if label is None:
            rows.append((name, True, np.nan, np.nan))
            continue
        iou = coco.iou([label["segmentation"]], [defect["segmentation"]], [0])[0, 0]
        rows.append((name, False, float(label["category_id"] != defect["category_id"]), iou))
    table = pd.DataFrame(rows, columns=["class", "overlooked", "confused", "iou"])
    summary = table.groupby("class").agg(
        defects=("overlooked", "size"), overlooked=("overlooked", "mean"), confused=("confused", "mean"),
        iou=("iou", "mean"),
    )  # fmt: skip
    return summary.reindex(exact.classes).rename_axis("class").reset_index()
