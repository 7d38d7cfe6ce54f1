"""What goes into a detector and what comes out, whichever backend it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """Training patches with their truth, padded to the largest number of instances.

    Attributes
    ----------
    images : uint8 [B, S, S] grey levels
    instances : uint8 or int32 [B, S, S] instance ids, 0 for none
    boxes : float32 [B, M, 4] x1, y1, x2, y2 in px, half-open; padding is zero
    labels : int64 [B, M] class codes 1..., 0 marks padding
    ids : int64 [B, M] which id of `instances` each box belongs to
    """

    images: Tensor
    instances: Tensor
    boxes: Tensor
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: send(value, device) for name, value in vars(self).items()})


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the host on the device, without waiting for what the device is doing."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)  # only from pinned memory does a copy not wait


@dataclass(frozen=True)
class Detections:
    """What was found in one patch, best first.

    Attributes
    ----------
    boxes : float32 [N, 4] px
    scores : float32 [N] in [0, 1]
    labels : int64 [N] class codes 1...
    masks : bool [N, S, S]
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def library_targets(batch: Batch) -> list[dict[str, Tensor]]:
    """A batch as torchvision's list of targets: boxes [N, 4], labels [N], masks uint8 [N, S, S]."""
    targets = []
    for boxes, labels, ids, instances in zip(batch.boxes, batch.labels, batch.ids, batch.instances, strict=True):
        real = labels > 0
        masks = instances[None] == ids[real][:, None, None]  # [N, S, S]
        targets.append({"boxes": boxes[real], "labels": labels[real], "masks": masks.to(torch.uint8)})
    return targets


def enlarge(images: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Patches [B, S, S] at another size, floating [B, size, size], interpolated linearly."""
    return F.interpolate(images[:, None].to(dtype), size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def enlarge_batch(batch: Batch, size: int, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch at another size: images as floating point, instance ids by their nearest pixel, boxes scaled."""
    ids = F.interpolate(batch.instances[:, None].double(), size=(size, size))[:, 0].to(batch.instances.dtype)
    factor = size / batch.images.shape[-1]
    return replace(batch, images=enlarge(batch.images, size, dtype), instances=ids, boxes=batch.boxes * factor)


def pad_truths(batch: Batch, least: int) -> Batch:
    """A batch whose number of places for truths is `least` or a power of two times it: few shapes to compile for."""
    places = least
    while places < batch.labels.shape[1]:
        places *= 2
    extra = places - batch.labels.shape[1]
    return replace(
        batch, boxes=F.pad(batch.boxes, (0, 0, 0, extra)), labels=F.pad(batch.labels, (0, extra)),
        ids=F.pad(batch.ids, (0, extra)),
    )  # fmt: skip
