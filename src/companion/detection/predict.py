"""Predictions of a trained detector, written once at a low score floor so that thresholds are swept offline."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from companion.detection.data import Detections, enlarge
from companion.detection.model import Detector
from companion.device import Device
from companion.geometry import encode_rle

COLUMNS = {
    "patch": "int64", "x1": "float32", "y1": "float32", "x2": "float32", "y2": "float32", "score": "float32",
    "label": "int64", "mask": "object",
}  # fmt: skip
SAME = 0.5  # IoU above which two detections are of one defect; that of the network's own suppression


def predict(
    detector: Detector,
    images: NDArray[np.uint8],
    device: Device,
    suppression: Literal["per class", "across classes"] = "per class",
    batch_size: int = 16,
) -> pd.DataFrame:
    """Detections in patches, uint8 [P, S, S], as the tables in ``predictions/``.

    Of detections on one place the best removes those of its class, as in Mask R-CNN, or all (`suppression`).

    Returns
    -------
    One row per detection, by patch and then by falling score: patch, box x1 y1 x2 y2 (px), score, label (class
    code), mask (COCO compressed run-length bytes). A patch without detections has no row.
    """
    rows: list[tuple] = []
    for start in range(0, len(images), batch_size):
        batch = np.zeros((batch_size, *images.shape[1:]), np.uint8)  # one shape, which is compiled once
        batch[: len(images) - start] = images[start : start + batch_size]
        seen = device.send(torch.from_numpy(batch))
        with device.autocast():
            found = detector.detect(enlarge(seen, detector.resize_px) if detector.resize_px else seen, images.shape[-1])
        for patch, d in enumerate(found[: len(images) - start], start=start):
            if suppression == "across classes":
                kept = nms(torch.from_numpy(d.boxes), torch.from_numpy(d.scores), SAME).numpy()
                d = Detections(*(values[kept] for values in d))
            parts = zip(d.boxes, d.scores, d.labels, encode_rle(d.masks), strict=True)
            rows += [(patch, *box, score, label, mask) for box, score, label, mask in parts]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
