"""The compiled detector: the same losses and detections, in bfloat16 too, with shapes that do not change."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ellipse_patches
from test_detection import CASES, train
from test_detection_batched import (
    BatchedFirst,
    assert_equal_detections,
    assert_equal_losses_and_gradients,
    batch_of,
    gradients,
    pair,
)

from companion.detection import regions
from companion.detection.batch import pad_truths
from companion.detection.model import build
from companion.errors import CompanionError
from companion.config.profile import Detection, load_profile

COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or "COMPANION_TEST_COMPILER" not in os.environ,
    reason="minutes of a C++ compiler; COMPANION_TEST_COMPILER=1 runs it where there is one",
)
SETTINGS = Detection(rois_per_image=16, proposals=20)


def test_compiled_losses_gradients_and_detections_are_those_of_the_eager_detector(monkeypatch):
    # One graph for the whole step, traced and differentiated ahead of time, without the minutes of the C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    torch.manual_seed(3)
    made = build(SETTINGS, 3)
    eager, compiled = BatchedFirst(made.network, 1), BatchedFirst(made.network, 1)
    compiled.compile()
    patches = ellipse_patches(4)
    # A second batch with another number of truths fits the places of the first: nothing is compiled again.
    for batch in (batch_of(patches, size=2), batch_of(patches, step=1, size=2)):
        expected, expected_gradients = gradients(eager, batch)
        found, found_gradients = gradients(compiled, batch)
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        for name, gradient in expected_gradients.items():
            assert (found_gradients[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name
    images = torch.from_numpy(np.array(patches.images[:2]))
    for one, other in zip(eager.detect(images), compiled.detect(images), strict=True):
        assert np.allclose(one.boxes, other.boxes, atol=1e-3) and np.allclose(one.scores, other.scores, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_few_steps_in_bfloat16_compiled(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.manual_seed(3)
    detector = build(SETTINGS, 3)
    detector.compile()
    patches = ellipse_patches(4)
    optimizer = torch.optim.AdamW(detector.network.parameters(), lr=2e-3)
    totals = []
    for _ in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = torch.stack(list(detector.losses(batch_of(patches, size=2)).values())).sum()
        assert total.dtype == torch.float32
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert np.isfinite(totals).all() and totals[-1] < totals[0]


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["course", "paper"])
def test_profiles_that_compile_are_traced_whole(profile, monkeypatch):
    # Their settings in bfloat16 as one graph without a break; sides and counts that only take time are smaller.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    given = load_profile(profile).detection
    assert given.compile
    smaller = {"proposals": 40, "rois_per_image": 16, "resize_px": given.resize_px and 96, "score_floor": 0.0}
    torch.manual_seed(3)
    made = build(given.model_copy(update=smaller), 3)
    made.network.rpn._pre_nms_top_n = {"training": 60, "testing": 60}
    eager = BatchedFirst(made.network, made.channels, made.resize_px)
    compiled = BatchedFirst(made.network, made.channels, made.resize_px)
    compiled.compile()
    patches = ellipse_patches(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = gradients(eager, batch_of(patches, size=2))
        found, found_gradients = gradients(compiled, batch_of(patches, size=2))
        detections = compiled.detect(torch.from_numpy(np.array(patches.images[:2])))
    assert sum(found.values()) == pytest.approx(sum(expected.values()), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in found_gradients.values())
    assert all(d.masks.shape[1:] == (64, 64) for d in detections) and sum(len(d.boxes) for d in detections) > 0


@pytest.mark.parametrize("case", ["some patches empty", "forty defects"])
def test_fixed_shapes_as_on_a_gpu_are_torchvisions_too(case, monkeypatch):
    # What a GPU computes, computed here: no shape depends on a value.
    monkeypatch.setattr(regions, "fixed_shapes", lambda values: True)
    theirs, ours = pair(3)
    assert_equal_losses_and_gradients(theirs, ours, batch_of(CASES[case], size=2))
    assert_equal_detections(theirs, ours, CASES[case].images[:2])


def test_without_a_compiler_training_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CompanionError, match=r"compile: true needs a C\+\+ compiler"):
        train(tmp_path, ellipse_patches(2), compile=True)


def test_padded_truths_change_nothing_and_take_few_shapes():
    torch.manual_seed(3)
    detector = BatchedFirst(build(SETTINGS, 3).network, 1)
    batch = batch_of(ellipse_patches(4), size=2)
    padded = pad_truths(batch, 16)
    assert padded.boxes.shape == (2, 16, 4) and padded.labels.shape == padded.ids.shape == (2, 16)
    assert gradients(detector, batch)[0] == pytest.approx(gradients(detector, padded)[0], rel=1e-6)
    crowded = replace(batch, boxes=torch.zeros(2, 40, 4), labels=torch.zeros(2, 40), ids=torch.zeros(2, 40))
    assert pad_truths(crowded, 16).labels.shape == (2, 64)
    assert pad_truths(padded, 16).labels.shape == (2, 16)
