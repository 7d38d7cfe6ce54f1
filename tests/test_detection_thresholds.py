"""Thresholds swept offline are the same as running the detector again at each of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ellipse_patches
from test_detection import COMPUTE
from test_detection_batched import warm_up

from companion.detection.batched import BatchedDetector
from companion.detection.model import TorchvisionDetector, build
from companion.detection.predict import predict
from companion.evaluation.scores import count
from companion.config.profile import Detection

FLOOR, SWEEP = 0.05, (0.1, 0.3, 0.5, 0.7, 0.9)
COLUMNS = ["patch", "label", "score", "x1", "y1", "x2", "y2"]


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, torch.Tensor], dict]:
    torch.manual_seed(3)
    settings = {"rois_per_image": 32, "proposals": 40}
    detector = build(Detection(**settings), 3)
    warm_up(detector, ellipse_patches(12), 40)
    return detector.network.state_dict(), settings


def predictions(trained, backend: str, **changes) -> pd.DataFrame:
    state, settings = trained
    detector = build(Detection(backend=backend, **settings, **changes), 3)
    assert isinstance(detector, TorchvisionDetector if backend == "torchvision" else BatchedDetector)
    detector.network.load_state_dict(state)
    return predict(detector, ellipse_patches(12).images, COMPUTE)


@pytest.mark.parametrize("backend", ["batched", "torchvision"])
@pytest.mark.parametrize("most", [100, 3], ids=["all detections", "three detections a patch at most"])
def test_sweeping_offline_equals_running_again(trained, backend, most):
    # Suppression goes from high scores to low ones, and what is cut off at `max_detections` are the lowest: neither
    # lets a prediction below a threshold touch one above it.
    truths = ellipse_patches(12).table
    written = predictions(trained, backend, score_floor=FLOOR, max_detections=most)
    assert (written.groupby("patch").size() == most).any() or most == 100
    kept = []
    for threshold in SWEEP:
        again = predictions(trained, backend, score_floor=threshold, max_detections=most)
        offline = written[written["score"] > threshold].reset_index(drop=True)
        kept.append(len(again))
        # Masks are computed for other numbers of regions together, which changes the last bits of their probabilities.
        pd.testing.assert_frame_equal(offline[COLUMNS], again[COLUMNS], atol=1e-5)
        both = [count(table, truths, range(12), (1, 2, 3), [0.5], [threshold]) for table in (written, again)]
        assert (both[0].pairs == both[1].pairs).all() and (both[0].predicted == both[1].predicted).all()
    assert kept[0] > kept[-1] and kept[0] > 12


def test_the_limit_is_the_score_floor(trained):
    # Below the floor nothing was written, so that a sweep must not start lower.
    written = predictions(trained, "batched", score_floor=0.5)
    again = predictions(trained, "batched", score_floor=FLOOR)
    assert written["score"].min() > 0.5 and len(again) > len(written)
    assert np.allclose(again[again["score"] > 0.5]["score"], written["score"], atol=1e-5)
