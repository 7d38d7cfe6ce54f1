"""What patches give back of a phantom's exact distributions."""

import numpy as np
import pytest

from companion.micrographs.check import TRUTH
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.masks import recovery
from companion.config.phantom import Phantom
from companion.phantom.render import render_dataset

STRIDE, MIN_VISIBLE = 96, 0.25


def tables(folder, annotator):
    render_dataset(Phantom(n_images=6, size_px=512, defects_per_megapixel=300, annotator=annotator), 3, folder)
    labels, truth = load_dataset(folder), load_dataset(folder, TRUTH)
    patches, _ = cut_patches(labels, labels.files, 128, STRIDE, MIN_VISIBLE)
    return recovery.recovered(patches, truth, STRIDE, MIN_VISIBLE), truth


def test_exact_defects_are_those_in_the_frame(tmp_path):
    found, truth = tables(tmp_path, {})
    exact = recovery.exact_defects(truth, truth.files)
    drawn = sum(len(m.annotations) for m in truth.micrographs)
    assert 0.8 * drawn < len(exact) < drawn  # some centres lie outside
    assert exact["x"].between(0, 512).all() and (exact["minor_px"] <= exact["major_px"]).all()
    assert found.groupby("source")["defects"].sum().tolist() == [len(exact)] * 2


def test_a_perfect_annotator_leaves_what_borders_do_and_that_is_little(tmp_path):
    found, _ = tables(tmp_path, {})
    truth, labels = (
        found[found["source"] == s].drop(columns="source").reset_index(drop=True) for s in recovery.SOURCES
    )
    assert truth.equals(labels)
    assert truth["count"].abs().max() < 0.25 and truth["major"].abs().max() < 0.15
    assert truth["neighbour"].abs().max() < 0.2 and truth["angle"].max() < 0.25


def test_what_an_annotator_does_shows_in_the_labels_alone(tmp_path):
    found, _ = tables(tmp_path, {"miss": 0.4, "outline_bias": 0.2})
    truth, labels = (found[found["source"] == s].set_index("class") for s in recovery.SOURCES)
    assert (labels["count"] - truth["count"]).mean() == pytest.approx(-0.4, abs=0.1)
    assert (labels["major"] - truth["major"]).mean() == pytest.approx(0.2, abs=0.08)
    assert (labels["neighbour"] > truth["neighbour"] + 0.05).all()  # fewer labels lie farther apart


def test_kuiper_distance_by_hand():
    one, weights = np.array([10.0, 20.0, 100.0, 110.0]), np.ones(4)
    assert recovery._kuiper(one, weights, one, 2 * weights) == 0
    assert recovery._kuiper(one, weights, (one + 45) % 180, weights) == pytest.approx(0.5)
    assert recovery._kuiper(one, weights, np.array([20.0]), np.ones(1)) == pytest.approx(0.75)
    assert np.isnan(recovery._kuiper(one, weights, one, 0 * weights))
