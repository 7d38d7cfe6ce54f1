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
    rows, tables = [], []
    for micrograph in dataset.micrographs:
        truth, scale = micrograph.instances(), micrograph.pixel_size_nm
        areas = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))[1:]
        rows.append((micrograph.file_name, f"{micrograph.width} x {micrograph.height}", f"{scale:g}", len(areas),
                     truth.overlap_share, micrograph.read().mean()))  # fmt: skip
        names = pd.Categorical.from_codes(truth.codes[1:].astype(int) - 1, dataset.classes)
        diameter = 2 * np.sqrt(areas / np.pi) * scale
        tables.append(pd.DataFrame({"image": micrograph.file_name, "class": names, "diameter": diameter}))
    m = pd.DataFrame(rows, columns=["image", "size", "scale", "instances", "overlap", "grey"])
    found = pd.concat(tables)
    by_class = found.groupby("class", observed=False)
    classes = by_class.agg(instances=("diameter", "size"), micrographs=("image", "nunique")).reset_index()
    classes.insert(2, "share", classes["instances"] / max(len(found), 1))
    for name, share in (("median_nm", 0.5), ("p5_nm", 0.05), ("p95_nm", 0.95)):
        classes[name] = by_class["diameter"].quantile(share).to_numpy()
    pairs = near_duplicates(dataset, dataset.files, dataset.files)
    counted = {what: ", ".join(f"{value} ({n})" for value, n in m[what].value_counts().sort_index().items())
               for what in ("size", "scale")}  # fmt: skip
    card = {
        "name": dataset.name, **{key: str(dataset.card[key]) for key in CARD if dataset.card.get(key)},
        "micrographs": f"{len(m)}, of which {(m['instances'] == 0).sum()} without a labelled defect",
        "size, px": counted["size"], "pixel size, nm": counted["scale"],
        "instances": f"{m['instances'].sum()}, per micrograph {m['instances'].min()} to {m['instances'].max()}, "
        f"median {m['instances'].median():g}",
        "labelled px lost to overlap": f"{m['overlap'].mean():.2%} on average",
        "near-duplicates": f"{len(pairs)} pair(s)",
    }  # fmt: skip
    notes = [f"class '{name}' has no instance" for name in classes["class"][classes["instances"] == 0]]
    if hidden := (found["diameter"] == 0).sum():
        notes.append(f"{hidden} instance(s) lie wholly under later ones")
    notes += [f"{row.image}: {row.overlap:.0%} of its labelled pixels are hidden by overlap"
              for row in m[m["overlap"] > 0.1].itertuples()]  # fmt: skip
    notes += [f"{row.image}: mean grey level {row.grey:.0f}, nearly black or white"
              for row in m[~m["grey"].between(10, 245)].itertuples()]  # fmt: skip
    notes += [f"{a} and {b} look like the same field: a drawn split keeps them on one side" for a, b in pairs]
    notes += ["the data set card states no licence"] * (not dataset.card.get("licence"))
    return Check(dataset, card, classes, tuple(notes))


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
    defects = [a for m in exact.micrographs for a in m.annotations]
    pairs = [(defect, labels.get(defect["label_id"])) for defect in defects]
    table = pd.DataFrame({
        "class": pd.Categorical([exact.classes[defect["category_id"] - 1] for defect in defects], exact.classes),
        "overlooked": [label is None for _, label in pairs],
        "confused": [np.nan if b is None else b["category_id"] != a["category_id"] for a, b in pairs],
        "iou": [np.nan if b is None else coco.iou([a["segmentation"]], [b["segmentation"]], [0])[0, 0]
                for a, b in pairs],
    }).astype({"confused": float, "iou": float})  # fmt: skip
    rates = table.groupby("class", observed=False)[["overlooked", "confused", "iou"]].mean()
    rates.insert(0, "defects", table["class"].value_counts().reindex(exact.classes))
    return rates.reset_index()
