"""A data set folder at a glance: what it holds, and what should make one look twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as coco

from companion.micrographs.dataset import DataSet, load_dataset
from companion.micrographs.splits import near_duplicates
from companion.phantom.render import TRUTH


def check_dataset(folder: Path | str) -> tuple[DataSet, dict[str, str], pd.DataFrame, list[str]]:
    """Validate a data set folder (see `load_dataset`) and describe it.

    Returns
    -------
    dataset
    card : names and texts, ready to print
    classes : one row per class: class, instances, share, micrographs (that show it), and the 5th percentile, median
        and 95th percentile of the equivalent circle's diameter (nm)
    notes : what deserves a second look, in words
    """
    dataset = load_dataset(folder)
    counts, found, notes = [], [], []
    for micrograph in dataset.micrographs:
        truth = micrograph.instances()
        areas = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))[1:]
        diameter = 2 * np.sqrt(areas / np.pi) * micrograph.pixel_size_nm
        names = pd.Categorical.from_codes(truth.codes[1:].astype(int) - 1, dataset.classes)
        found.append(pd.DataFrame({"image": micrograph.file_name, "class": names, "diameter": diameter}))
        counts.append(len(areas))
        if truth.overlap_share > 0.1:
            notes.append(f"{micrograph.file_name}: {truth.overlap_share:.0%} of its labelled pixels are under others")
        if not 10 < (grey := micrograph.read().mean()) < 245:
            notes.append(f"{micrograph.file_name}: mean grey level {grey:.0f}, nearly black or white")
    by_class = pd.concat(found).groupby("class", observed=False)
    classes = by_class.agg(instances=("diameter", "size"), micrographs=("image", "nunique"))
    classes.insert(1, "share", classes["instances"] / max(sum(counts), 1))
    classes[["p5_nm", "median_nm", "p95_nm"]] = by_class["diameter"].quantile([0.05, 0.5, 0.95]).unstack()
    classes = classes.reset_index()
    notes += [f"class '{name}' has no instance" for name in classes["class"][classes["instances"] == 0]]
    notes += [f"{a} and {b} look like the same field: a drawn split keeps them on one side"
              for a, b in near_duplicates(dataset, dataset.files, dataset.files)]  # fmt: skip
    notes += ["the data set card states no licence"] * (not dataset.card.get("licence"))
    sizes = Counter(f"{m.width} x {m.height} px of {m.pixel_size_nm:g} nm" for m in dataset.micrographs)
    told = ("title", "source", "licence", "citation")
    card = {
        "name": dataset.name, **{key: str(dataset.card[key]) for key in told if dataset.card.get(key)},
        "micrographs": f"{len(counts)}, of which {counts.count(0)} without a labelled defect",
        "sizes": ", ".join(f"{size} ({n})" for size, n in sorted(sizes.items())),
        "instances": f"{sum(counts)}, per micrograph {min(counts)} to {max(counts)}, median {np.median(counts):g}",
    }  # fmt: skip
    return dataset, card, classes, notes


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
        "confused": [np.nan if b is None else float(b["category_id"] != a["category_id"]) for a, b in pairs],
        "iou": [np.nan if b is None else coco.iou([a["segmentation"]], [b["segmentation"]], [0])[0, 0]
                for a, b in pairs],
    })  # fmt: skip
    rates = table.groupby("class", observed=False)
    return rates.mean().assign(defects=rates.size())[["defects", "overlooked", "confused", "iou"]].reset_index()
