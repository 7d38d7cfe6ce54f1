"""Micrographs into patches, on a regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from companion.errors import problems
from companion.micrographs.dataset import DataSet
from companion.micrographs.patches import INDEX_COLUMNS, Patches, instance_table


def cut_patches(
    dataset: DataSet, files: Sequence[str], size: int, stride: int, min_visible: float,
    symmetries: Sequence[int] = (0,),
) -> tuple[Patches, pd.DataFrame]:  # fmt: skip
    """Cut micrographs into square patches; what is left over at the far borders is not cut.

    Parameters
    ----------
    files : file names of the micrographs, in the order wanted
    size, stride : side of a patch and distance of neighbouring patches, px; the paper's 256 and 192 give 5 x 5 patches
        of 1024 x 1024 px
    min_visible : share of an instance's pixels that must lie in a patch; of less, the pixels become background
    symmetries : recorded in the patches for training to apply, not applied here; (0,) for test patches

    Returns
    -------
    patches : crops at symmetry 0, row by row; instance ids count from 1 in each patch
    report : one row per micrograph: image, patches, instances, empty_patches, cut_away (instance-in-patch
        pieces below `min_visible`), overlap_share (see `InstanceMap`)
    """
    chosen = [dataset.micrograph(name) for name in files]
    small = [f"{m.file_name} is {m.width} x {m.height} px" for m in chosen if min(m.width, m.height) < size]
    if small:
        raise problems(f"{dataset.name}: {len(small)} micrograph(s) smaller than a patch of {size} px", small)
    images, instances, index, report = [], [], [], []
    labels: dict[tuple[int, int], int] = {}
    for micrograph in chosen:
        first, cut_away = len(index), 0
        pixels, truth = micrograph.read(), micrograph.instances()
        whole = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))
        for y0, x0 in product(*(range(0, side - size + 1, stride) for side in pixels.shape)):
            window = np.s_[y0 : y0 + size, x0 : x0 + size]
            inside = np.bincount(truth.ids[window].ravel(), minlength=len(whole))
            inside[0] = 0
            kept = (inside > 0) & (inside >= min_visible * whole)
            new = np.where(kept, np.cumsum(kept), 0).astype(truth.ids.dtype)  # id in the patch by id in the micrograph
            labels.update({(len(index), int(new[i])): int(truth.codes[i]) for i in np.flatnonzero(kept)})
            images.append(pixels[window])
            instances.append(new[truth.ids[window]])
            index.append((len(index), micrograph.file_name, x0, y0, 0, micrograph.pixel_size_nm))
            cut_away += int(((inside > 0) & ~kept).sum())
        empty = sum(not ids.any() for ids in instances[first:])
        report.append((micrograph.file_name, len(index) - first, len(whole) - 1, empty, cut_away, truth.overlap_share))
    ids = np.stack(instances)
    table, rows = instance_table(ids, labels), pd.DataFrame(index, columns=INDEX_COLUMNS)
    patches = Patches(np.stack(images), ids, rows, table, dataset.classes, tuple(symmetries))
    columns = ["image", "patches", "instances", "empty_patches", "cut_away", "overlap_share"]
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
