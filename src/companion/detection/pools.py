"""Training patches that lie on the device, from which batches are made there.

A step sends the device only the numbers of its patches and their symmetries; images, instance ids and truths are
already there, and what depends on how many truths a patch has is known on the host.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from companion.micrographs.patches import Patches
from companion.detection.batch import Batch, send
from companion.geometry import SYMMETRIES, symmetry, symmetry_boxes

CPU = torch.device("cpu")
Row = tuple[NDArray[np.uint8], NDArray[np.integer], NDArray[np.float64]]  # image, instance ids, truth [N, 6]


class Pool:
    """A pool of patches on a device, its truths padded to the largest number in a patch.

    Parameters
    ----------
    patches : with images; on the CPU their arrays are used as they are, memory-mapped or not
    device : where batches are made
    """

    def __init__(self, patches: Patches, device: torch.device) -> None:
        self.device, self.size = device, patches.size
        self.images, self.instances = (_resident(array, device) for array in (patches.images, patches.instances))
        table = patches.table
        # A box without an area (nothing visible) cannot be learnt from.
        table = table[(table["x2"] > table["x1"]) & (table["y2"] > table["y1"])].sort_values("patch", kind="stable")
        patch = table["patch"].to_numpy()
        bounds = np.searchsorted(patch, np.arange(len(patches) + 1))
        self.counts = np.diff(bounds)  # truths per patch, on the host
        places = np.arange(len(table)) - bounds[patch]
        most = int(self.counts.max(initial=0))
        boxes = np.zeros((len(patches), SYMMETRIES, most, 4), dtype=np.float32)
        for code in range(SYMMETRIES):
            boxes[patch, code, places] = symmetry_boxes(table[["x1", "y1", "x2", "y2"]].to_numpy(), code, self.size)
        labels, ids = np.zeros((2, len(patches), most), dtype=np.int64)
        labels[patch, places], ids[patch, places] = table["class"], table["instance"]
        self.boxes, self.labels, self.ids = (torch.from_numpy(a).to(device) for a in (boxes, labels, ids))

    def __len__(self) -> int:
        return len(self.counts)

    def most(self, numbers: NDArray[np.int64]) -> int:
        """The largest number of truths in these patches."""
        return int(self.counts[numbers].max(initial=0))

    def take(self, numbers: NDArray[np.int64], symmetries: NDArray[np.int64], places: int) -> Batch:
        """Patches in their symmetries, with room for `places` truths each."""
        rows, codes = send(torch.from_numpy(np.stack([numbers, symmetries])), self.device)
        order = _order_of_pixels(self.size, self.device)[codes]  # (n, S * S)
        images, instances = (
            array[rows].flatten(1).gather(1, order).reshape(-1, self.size, self.size)
            for array in (self.images, self.instances)
        )
        boxes, labels, ids = self.boxes[rows, codes], self.labels[rows], self.ids[rows]
        extra = places - labels.shape[1]  # negative: cut off, which is padding then
        return Batch(
            images, instances, F.pad(boxes, (0, 0, 0, extra)), F.pad(labels, (0, extra)), F.pad(ids, (0, extra))
        )


def _resident(array: NDArray, device: torch.device) -> Tensor:
    if array.dtype == np.uint16:  # torch does little with it
        array = array.astype(np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that cannot be written: nothing writes to a pool
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@lru_cache(maxsize=4)
def _order_of_pixels(size: int, device: torch.device) -> Tensor:
    """For each symmetry, which pixel of a patch comes to each place: int64 [8, S * S]."""
    pixels = np.arange(size * size).reshape(size, size)
    orders = np.stack([symmetry(pixels, code).ravel() for code in range(SYMMETRIES)])
    return torch.from_numpy(orders).to(device)


def rows_of(batch: Batch) -> list[Row]:
    """A batch on the CPU patch by patch: image, instance ids, truth (box, class, id) without padding."""
    truths = torch.cat([batch.boxes.double(), batch.labels[..., None], batch.ids[..., None]], dim=2)
    return [
        (image.numpy(), instances.numpy(), truth[real].numpy())
        for image, instances, truth, real in zip(batch.images, batch.instances, truths, batch.labels > 0, strict=True)
    ]


def batch_of(rows: list[Row], places: int) -> Batch:
    """The inverse of `rows_of`, with room for `places` truths each."""
    images, instances, truths = zip(*rows, strict=True)
    boxes = np.zeros((len(rows), places, 4), dtype=np.float32)
    labels, ids = np.zeros((2, len(rows), places), dtype=np.int64)
    for place, truth in enumerate(truths):
        boxes[place, : len(truth)] = truth[:, :4]
        labels[place, : len(truth)], ids[place, : len(truth)] = truth[:, 4], truth[:, 5]
    # Pasting may number more instances than a byte holds.
    arrays = np.stack(images), np.stack(instances).astype(np.int32), boxes, labels, ids
    return Batch(*map(torch.from_numpy, arrays))


def joined(parts: list[Batch]) -> Batch:
    """Batches with equally many places as one."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*([p.images, p.instances, p.boxes, p.labels, p.ids] for p in parts), strict=True)
    return Batch(*(torch.cat(column) for column in columns))
