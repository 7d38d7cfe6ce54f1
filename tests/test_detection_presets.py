"""Presets say what the profiles use and what the paper used."""

from __future__ import annotations

import pytest

from companion.detection.presets import PRESETS
from companion.config.profile import load_profile


@pytest.mark.parametrize(("preset", "profile"), [("paper", "paper"), ("compact", "course"), ("tiny", "smoke")])
def test_profiles_use_their_preset(preset, profile):
    given = load_profile(profile)
    # Compiling changes the time, not the configuration; a profile compiles both of its networks or neither.
    assert given.detection == PRESETS[preset].model_copy(update={"compile": given.compile})


def test_the_papers_configuration_and_its_native_twin():
    paper, native = PRESETS["paper"], PRESETS["native"]
    assert (paper.batch_size, paper.learning_rate, paper.steps) == (2, 2.5e-4, 100_000)
    assert (paper.rois_per_image, paper.rpn_iou, paper.roi_iou) == (128, (0.3, 0.7), 0.4)
    assert min(paper.anchor_sizes_px[0]) == 4 and max(paper.anchor_sizes_px[0]) == 256
    assert 640 <= paper.resize_px <= 800 and native.resize_px is None
    # The same network, optimiser and number of passes; the rate grows with the batch (Goyal et al. 2017).
    assert native.network == paper.network and native.optimizer == paper.optimizer
    assert native.batch_size * native.steps == paper.batch_size * paper.steps
    assert native.learning_rate / native.batch_size == pytest.approx(paper.learning_rate / paper.batch_size)
