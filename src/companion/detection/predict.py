"""Predictions of a trained detector, written once at a low score floor so that thresholds are swept offline."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from companion.detection.model import Detector
from companion.geometry import encode_rle
from companion.provenance import write_table
from companion.training import Compute

COLUMNS = {
    "patch": "int64", "x1": "float32", "y1": "float32", "x2": "float32", "y2": "float32", "score": "float32",
    "label": "int64", "mask": "object",
}  # fmt: skip
PREDICTIONS, VALIDATION = "predictions.parquet", "predictions-val.parquet"


def predict(detector: Detector, images: NDArray[np.uint8], compute: Compute, batch_size: int = 16) -> pd.DataFrame:
    """Detections in patches, as the table of ``predictions.parquet``.

    Parameters
    ----------
    detector : a trained detector; its score floor decides what is kept
    images : uint8 [P, S, S]
    compute : device and precision
    batch_size : patches per forward pass

    Returns
    -------
    One row per detection, by patch and then by falling score: patch, box x1 y1 x2 y2 (px), score, label (class
    code), mask (COCO compressed run-length bytes). A patch without detections has no row.
    """
    rows: list[tuple] = []
    for start in range(0, len(images), batch_size):
        with compute.autocast():
            found = detector.detect(torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])))
        for patch, d in enumerate(found, start=start):
            parts = (d.boxes, d.scores, d.labels, encode_rle(d.masks))
            rows += [(patch, *box, score, label, mask) for box, score, label, mask in zip(*parts, strict=True)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write_predictions(folder: Path, predictions: pd.DataFrame, held_out: Literal["test", "val"] = "test") -> None:
    """Write ``predictions.parquet`` or, of validation patches ("val"), ``predictions-val.parquet``, atomically."""
    write_table(folder / (PREDICTIONS if held_out == "test" else VALIDATION), predictions[list(COLUMNS)])
