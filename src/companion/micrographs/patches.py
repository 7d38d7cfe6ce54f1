"""Patches: the square pieces of micrographs that every later stage works on.

A patches folder holds plain files (see `Patches`); simulated and generated patches have the same layout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from companion.errors import CompanionError
from companion.provenance import write_array, write_json, write_table

INDEX_COLUMNS = ["patch", "image", "x0", "y0", "symmetry", "pixel_size_nm"]
TABLE_COLUMNS = ["patch", "instance", "class", "x1", "y1", "x2", "y2", "area_px", "touches_border"]


@dataclass(frozen=True)
class Patches:
    """Patches with their instance masks.

    Attributes
    ----------
    images : uint8 [P, S, S] grey levels, None where nothing has been imaged (simulated masks)
    instances : uint8 or uint16 [P, S, S] instance ids, 0 for none; where instances overlap the later is on top
    index : one row per patch: patch (0...P-1), image (file name, or the condition that it was drawn for),
        x0, y0 (px, top left corner in the image), symmetry (0-7), pixel_size_nm
    table : one row per instance: patch, instance (id in `instances`), class (code, 1...), box x1 y1 x2 y2
        (px, half-open, of the visible part), area_px (visible), touches_border
    classes : names of the classes 1, 2, ... in this order
    symmetries : the symmetries of the square (see `geometry.symmetry`) that training may apply to every patch;
        they multiply the number of training patches without being stored
    """

    images: NDArray[np.uint8] | None
    instances: NDArray[np.uint8] | NDArray[np.uint16]
    index: pd.DataFrame
    table: pd.DataFrame
    classes: tuple[str, ...]
    symmetries: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def size(self) -> int:
        """Side of a patch, px."""
        return int(self.instances.shape[-1])

    def label_maps(self, patches: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.uint8]:
        """Class codes per pixel, uint8 [n, S, S], of the chosen patches; 0 is background."""
        lookup = np.zeros((len(self), int(self.instances.max(initial=0)) + 1), dtype=np.uint8)
        lookup[self.table["patch"], self.table["instance"]] = self.table["class"]
        numbers = np.arange(len(self))[patches]
        maps = np.empty((len(numbers), self.size, self.size), dtype=np.uint8)
        for place, patch in enumerate(numbers):
            maps[place] = lookup[patch][self.instances[patch]]
        return maps

    def of(self, patch: int) -> pd.DataFrame:
        """Rows of `table` of one patch."""
        return self.table[self.table["patch"] == patch]

    def only(self, numbers: NDArray[np.integer]) -> Patches:
        """The patches of these numbers, in this order, renumbered from 0; each number once."""
        place = pd.Series(range(len(numbers)), index=numbers)
        table = self.table[self.table["patch"].isin(numbers)]
        table = table.assign(patch=table["patch"].map(place).astype(table["patch"].dtype))
        return replace(
            self,
            images=None if self.images is None else self.images[numbers],
            instances=self.instances[numbers],
            index=self.index.iloc[numbers].assign(patch=range(len(numbers))).reset_index(drop=True),
            table=table.sort_values(["patch", "instance"], ignore_index=True),
        )

    def save(self, folder: Path) -> None:
        """Write images.npy (unless None), instances.npy, index.parquet, table.parquet and patches.json."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.images is not None:
            write_array(folder / "images.npy", self.images)
        write_array(folder / "instances.npy", self.instances)
        write_table(folder / "index.parquet", self.index[INDEX_COLUMNS])
        write_table(folder / "table.parquet", self.table[TABLE_COLUMNS])
        write_json(folder / "patches.json", {"classes": self.classes, "symmetries": self.symmetries})


def load_patches(folder: Path) -> Patches:
    """Read a patches folder; arrays are memory-mapped."""
    try:
        said = json.loads((folder / "patches.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r") if (folder / "images.npy").exists() else None
        instances = np.load(folder / "instances.npy", mmap_mode="r")
        index = pd.read_parquet(folder / "index.parquet", columns=INDEX_COLUMNS)
        table = pd.read_parquet(folder / "table.parquet", columns=TABLE_COLUMNS)
    except (OSError, ValueError, KeyError) as error:  # a column that is missing is a ValueError
        raise CompanionError(f"{folder} is not a patches folder: {error}") from None
    if len(index) != len(instances) or (images is not None and images.shape != instances.shape):
        shapes = f"images {None if images is None else images.shape}, instances {instances.shape}"
        raise CompanionError(f"{folder}: {shapes} and {len(index)} rows of index.parquet do not belong together")
    return Patches(images, instances, index, table, tuple(said["classes"]), tuple(said["symmetries"]))


def instance_table(instances: NDArray[np.integer], labels: dict[tuple[int, int], int] | pd.DataFrame) -> pd.DataFrame:
    """`Patches.table` of instance maps.

    Parameters
    ----------
    instances : [P, S, S] instance ids
    labels : class code by (patch, instance), as a dict or as a table with columns patch, instance, class;
        instances with no visible pixel get no row
    """
    if isinstance(labels, pd.DataFrame):
        labels = labels.set_index(["patch", "instance"])["class"].to_dict()
    rows, size = [], instances.shape[-1]
    for patch, ids in enumerate(instances):
        areas = np.bincount(ids.ravel())
        for instance, window in enumerate(ndimage.find_objects(ids), start=1):
            if window is not None:
                (y1, y2), (x1, x2) = ((part.start, part.stop) for part in window)
                touches = min(x1, y1) == 0 or max(x2, y2) == size
                rows.append((patch, instance, labels[patch, instance], x1, y1, x2, y2, areas[instance], touches))
    types = {**dict.fromkeys(TABLE_COLUMNS, "int32"), **dict.fromkeys(["x1", "y1", "x2", "y2"], "float32")}
    return pd.DataFrame(rows, columns=TABLE_COLUMNS).astype({**types, "touches_border": bool})
