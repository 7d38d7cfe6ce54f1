"""Micrographs into patches, on a regular grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from companion.errors import problems
from companion.micrographs.dataset import DataSet
from companion.micrographs.patches import INDEX_COLUMNS, Patches, instance_table


def grid(length: int, size: int, stride: int) -> range:
    """Starts of the crops of `size` px along a side of `length` px, `stride` px apart.

    The paper's: ``grid(1024, 256, 192)`` has 5 starts, 25 crops per micrograph. What is left over at the
    far border is not cut.
    """
    return range(0, length - size + 1, stride)


def cut_patches(
    dataset: DataSet, files: Sequence[str], size: int, stride: int, min_visible: float,
    symmetries: Sequence[int] = (0,),
) -> tuple[Patches, pd.DataFrame]:  # fmt: skip
    """Cut micrographs into square patches.

    Parameters
    ----------
    files : file names of the micrographs, in the order wanted
    size, stride : side of a patch and distance of neighbouring patches, px
    min_visible : share of an instance's pixels that must lie in a patch; of less, the pixels become background
    symmetries : recorded in the patches for training to apply, not applied here; (0,) for test patches

    Returns
    -------
    patches : crops at symmetry 0, row by row; instance ids count from 1 in each patch
    report : one row per micrograph: image, patches, instances, empty_patches, cut_away (instance-in-patch
        pieces below `min_visible`), overlap_share (see `InstanceMap`)

    Raises
    ------
    CompanionError
        Lists the micrographs that are smaller than a patch.
    """
    chosen = [dataset.micrograph(name) for name in files]
    small = [f"{m.file_name} is {m.width} x {m.height} px" for m in chosen if min(m.width, m.height) < size]
    if small:
        raise problems(f"{dataset.name}: {len(small)} micrograph(s) smaller than a patch of {size} px", small)
    crops = [(m, y0, x0) for m in chosen for y0 in grid(m.height, size, stride) for x0 in grid(m.width, size, stride)]
    many = any(len(m.annotations) > 255 for m in chosen)
    images = np.empty((len(crops), size, size), dtype=np.uint8)
    instances = np.zeros((len(crops), size, size), dtype=np.uint16 if many else np.uint8)
    labels: dict[tuple[int, int], int] = {}
    report, patch = [], 0
    for micrograph in chosen:
        first, cut_away = patch, 0
        pixels, truth = micrograph.read(), micrograph.instances()
        whole = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))
        for y0 in grid(micrograph.height, size, stride):
            for x0 in grid(micrograph.width, size, stride):
                window = np.s_[y0 : y0 + size, x0 : x0 + size]
                inside = np.bincount(truth.ids[window].ravel(), minlength=len(whole))
                inside[0] = 0
                kept = (inside > 0) & (inside >= min_visible * whole)
                new = np.where(kept, np.cumsum(kept), 0)  # id in the patch by id in the micrograph
                images[patch], instances[patch] = pixels[window], new[truth.ids[window]]
                labels.update({(patch, int(new[i])): int(truth.codes[i]) for i in np.flatnonzero(kept)})
                cut_away += int(((inside > 0) & ~kept).sum())
                patch += 1
        empty = int((~instances[first:patch].any(axis=(1, 2))).sum())
        found = len(truth.codes) - 1
        report.append((micrograph.file_name, patch - first, found, empty, cut_away, truth.overlap_share))
    index = pd.DataFrame(
        [(k, m.file_name, x0, y0, 0, m.pixel_size_nm) for k, (m, y0, x0) in enumerate(crops)], columns=INDEX_COLUMNS
    )
    columns = ["image", "patches", "instances", "empty_patches", "cut_away", "overlap_share"]
    patches = Patches(images, instances, index, instance_table(instances, labels), dataset.classes, tuple(symmetries))
    return patches, pd.DataFrame(report, columns=columns)


def describe(patches: Patches) -> dict[str, float]:
    """Micrographs, patches (with and without symmetries), empty ones, instances per patch, and each class's share.

    The symmetries multiply patches and instances alike, so shares and means hold with and without them.
    """
    table, per_patch = patches.table, np.bincount(patches.table["patch"], minlength=len(patches))
    return {
        "micrographs": patches.index["image"].nunique(), "patches": len(patches),
        "patches with symmetries": len(patches) * len(patches.symmetries), "empty patches": int((per_patch == 0).sum()),
        "instances": len(table), "instances per patch": per_patch.mean() if len(patches) else np.nan,
        "most in a patch": int(per_patch.max(initial=0)), "share cut by a border": table["touches_border"].mean(),
        **{f"share of {name}": (table["class"] == code).mean() for code, name in enumerate(patches.classes, start=1)},
    }  # fmt: skip
