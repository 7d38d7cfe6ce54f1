"""The detector: what it trains on, what it writes, and that it can be killed."""

import multiprocessing
import os
import re
import signal
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ellipse_patches, patches_of
from safetensors.torch import save_file

from companion.config.sections import Detection
from companion.detection.data import Detections, Recipe, recipe_of
from companion.detection.model import anchor_boxes, build, load_weights
from companion.detection.predict import COLUMNS, predict
from companion.detection.train import learning_rate, load_detector, train_detector
from companion.device import Device
from companion.errors import CompanionError
from companion.geometry import box_iou, box_of, decode_rle
from companion.micrographs.patches import Patches
from companion.seeds import Seeds
from companion.weights import load_state, save_state

DEVICE = Device(torch.device("cpu"))
QUICK = {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "rois_per_image": 16, "proposals": 20}
BOX = ["x1", "y1", "x2", "y2"]
pytestmark = pytest.mark.usefixtures("deterministic")


def made(patches: Patches, arm="EXP", other=None, seed=1, **settings) -> tuple[Recipe, Detection]:
    settings = Detection(**{**QUICK, **settings})
    return recipe_of(arm, patches, other, settings, Seeds(11, "detector", seed)), settings


def train(folder: Path, patches: Patches, callback=None, **changes):
    return train_detector(*made(patches, **changes), DEVICE, folder, callback=callback)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_detector(folder / "weights.safetensors", DEVICE)[0].network.state_dict()


def patches_with(instances: np.ndarray, labels: dict[tuple[int, int], int], n_classes: int = 3) -> Patches:
    return patches_of(instances, labels, ellipse_patches(2).images, tuple(f"class {k}" for k in range(n_classes)))


def forty_defects(n_classes: int = 3) -> Patches:
    instances = np.zeros((2, 64, 64), dtype=np.uint8)
    for k in range(40):
        row, column = divmod(k, 8)
        instances[:, row * 12 : row * 12 + 6, column * 8 : column * 8 + 5] = k + 1
    return patches_with(instances, {(p, k + 1): k % n_classes + 1 for p in range(2) for k in range(40)}, n_classes)


def one_pixel_defects() -> Patches:
    instances = np.zeros((2, 64, 64), dtype=np.uint8)
    instances[:, 0, 0], instances[:, 63, 63], instances[:, 30, 31] = 1, 2, 3
    return patches_with(instances, {(p, k): k for p in range(2) for k in (1, 2, 3)})


CASES = {
    "no defect anywhere": patches_with(np.zeros((2, 64, 64), dtype=np.uint8), {}),
    "some patches empty": ellipse_patches(6),
    "one-pixel defects": one_pixel_defects(),
    "forty defects": forty_defects(),
    "one class": ellipse_patches(4, classes=1),
    "ten classes": forty_defects(10),
}


@pytest.mark.parametrize("patches", CASES.values(), ids=CASES.keys())
def test_every_kind_of_patch_trains(tmp_path, patches):
    detector, log = train(tmp_path, patches, steps=2)
    assert np.isfinite(log.to_numpy()).all() and log["step"].tolist() == [0, 1]
    assert {"learning_rate", "total", "loss_mask", "loss_objectness", "loss_classifier"} <= set(log.columns)
    predictions = predict(detector, patches.images, DEVICE)
    assert predictions["label"].between(1, len(patches.classes)).all()


def test_a_killed_training_continues_to_the_same_bits(tmp_path):
    patches = ellipse_patches(6)
    train(tmp_path / "straight", patches)
    folder = tmp_path / "killed"

    def kill(step: int) -> None:  # by the kernel, right after the first checkpoint
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, patches, kill))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert (folder / "checkpoint" / "detector.safetensors").exists() and not (folder / "weights.safetensors").exists()
    steps = []
    train(folder, patches, callback=steps.append)
    assert steps == [4]  # it went on from step 2
    for name in ("weights.safetensors", "log.parquet"):
        assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert not (folder / "checkpoint").exists()


def test_a_finished_training_is_read_back_and_a_changed_one_is_not(tmp_path):
    patches = ellipse_patches(6)
    _, log = train(tmp_path, patches)
    before = (tmp_path / "weights.safetensors").stat().st_ino  # a file that is written again is another one
    (tmp_path / "log.parquet").unlink()  # a new run of the notebook starts without it
    pd.testing.assert_frame_equal(train(tmp_path, patches)[1], log)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "log.parquet"), log)
    assert (tmp_path / "weights.safetensors").stat().st_ino == before
    train(tmp_path, replace(patches, images=255 - patches.images))
    assert (tmp_path / "weights.safetensors").stat().st_ino != before
    assert len(train(tmp_path, patches, steps=3)[1]) == 3
    (tmp_path / "weights.safetensors").write_bytes(b"foreign")
    pd.testing.assert_frame_equal(train(tmp_path, patches)[1], log)


def test_arms_of_one_seed_start_from_the_same_weights(tmp_path):
    labelled, generated = ellipse_patches(6), ellipse_patches(6, seed=9)
    train(tmp_path / "exp", labelled, steps=1, learning_rate=1e-30)
    train(tmp_path / "gen", labelled, arm="EXP+GEN", other=generated, steps=1, learning_rate=1e-30)
    one, other = weights(tmp_path / "exp"), weights(tmp_path / "gen")
    assert all(torch.allclose(one[n], other[n], atol=1e-7) for n in one if "running" not in n)


def test_a_diverging_loss_names_step_batch_and_the_last_good_checkpoint(tmp_path):
    diverging = {"steps": 12, "optimizer": "sgd", "learning_rate": 1e12, "checkpoint_every": 1}
    with pytest.raises(CompanionError) as caught:
        train(tmp_path, ellipse_patches(6), **diverging)
    said = str(caught.value)
    step = int(re.search(r"loss is not finite at step (\d+)", said)[1])
    draw = made(ellipse_patches(6), **diverging)[0].draw(step)["labelled"]
    assert f"labelled patches {draw.patches.tolist()} in symmetries {draw.symmetries.tolist()}" in said
    assert f"last good checkpoint: step {step}, {tmp_path / 'checkpoint'}" in said
    assert "Lower the learning rate (detection.learning_rate = 1e+12)" in said
    assert load_state(tmp_path / "checkpoint" / "detector.safetensors")[1]["step"] == step >= 1
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    patches = ellipse_patches(8, classes=2)
    settings = {"steps": 60, "batch_size": 4, "rois_per_image": 32}
    return patches, *train(tmp_path_factory.mktemp("learnt"), patches, **settings)


def test_it_learns_and_its_boxes_fit(learnt):
    patches, detector, log = learnt
    assert log["total"].tail(5).mean() < 0.6 * log["total"].head(5).mean()
    best = predict(detector, patches.images, DEVICE).query("score > 0.5")
    hits = [(box_iou(rows[BOX], patches.of(p)[BOX]).max(axis=1, initial=0) > 0.5).sum()
            for p, rows in best.groupby("patch")]  # fmt: skip
    assert len(best) > 0 and sum(hits) > 0.7 * len(best)


@pytest.mark.parametrize("most", [100, 3], ids=["all detections", "three detections a patch at most"])
def test_thresholds_swept_offline_are_those_of_running_again(learnt, most):
    # Suppression goes from high scores to low ones, and what is cut off at `max_detections` are the lowest: neither
    # lets a prediction below a threshold touch one above it. The limit is the score floor.
    patches, detector, _ = learnt
    state = detector.network.state_dict()

    def at(floor):
        other = build(Detection(**{**QUICK, "score_floor": floor, "max_detections": most}), 2)
        other.network.load_state_dict(state)
        return predict(other, patches.images, DEVICE)

    written, kept = at(0.05), []
    for threshold in (0.1, 0.3, 0.5, 0.7):
        again, offline = at(threshold), written[written["score"] > threshold].reset_index(drop=True)
        kept.append(len(again))
        # Masks are computed for other numbers of regions together, which changes their last bits.
        numbers = ["patch", "label", "score", *BOX]
        pd.testing.assert_frame_equal(offline[numbers], again[numbers], atol=1e-5)
    assert len(written) >= kept[0] > kept[-1] > 0


def detections(masks, labels, scores, size=64) -> Detections:
    """What a detector finds in a patch, from masks bool [size, size]."""
    boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
    masks = np.stack(masks) if len(masks) else np.zeros((0, size, size), dtype=bool)
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64), masks)


def finding(detect) -> SimpleNamespace:
    """A detector without a network."""
    return SimpleNamespace(network=torch.nn.Identity(), resize_px=None, detect=detect)


def scripted(answers: list[list[tuple]]) -> SimpleNamespace:
    """A detector that finds what it is told to: for each patch a list of (box, score, class)."""
    left = iter(answers)

    def detect(images, size):
        found = []
        for answer in islice(left, len(images)):
            masks = np.zeros((len(answer), size, size), dtype=bool)
            for mask, ((x1, y1, x2, y2), *_) in zip(masks, answer, strict=True):
                mask[y1:y2, x1:x2] = True
            found.append(detections(masks, [label for *_, label in answer], [score for _, score, _ in answer], size))
        return found

    return finding(detect)


HERE, NEAR, FAR = (3, 2, 7, 5), (3, 2, 7, 6), (20, 20, 28, 28)


def test_predictions_have_the_agreed_columns():
    found = [[(HERE, 0.9, 1), (FAR, 0.8, 2)], [], [(HERE, 0.7, 1)], [], [(FAR, 0.3, 3)]]
    table = predict(scripted(found), np.zeros((5, 32, 32), np.uint8), DEVICE, batch_size=2)
    assert table["patch"].tolist() == [0, 0, 2, 4] and table["label"].tolist() == [1, 2, 1, 3]
    assert table.dtypes.astype(str).to_dict() == COLUMNS
    mask = decode_rle([table["mask"][0]], (32, 32))[0]
    assert mask.sum() == 12 and mask[2:5, 3:7].all()
    nothing = predict(scripted([[], []]), np.zeros((2, 32, 32), np.uint8), DEVICE)
    assert len(nothing) == 0 and nothing.dtypes.astype(str).to_dict() == COLUMNS


def test_suppression_across_classes_keeps_the_best_on_each_place():
    found = [[(HERE, 0.9, 1), (NEAR, 0.8, 2), (FAR, 0.7, 2), (HERE, 0.6, 3)], []]
    images = np.zeros((2, 32, 32), np.uint8)
    assert predict(scripted(found), images, DEVICE)["label"].tolist() == [1, 2, 2, 3]
    table = predict(scripted(found), images, DEVICE, suppression="across classes")
    assert table["label"].tolist() == [1, 2] and np.allclose(table["score"], [0.9, 0.7])


def test_pretrained_weights_fill_all_but_the_heads(tmp_path):
    source = build(Detection(), 5).network
    path = tmp_path / "five.safetensors"
    save_file({n: v.contiguous() for n, v in source.state_dict().items()}, path)
    network = build(Detection(), 3).network
    unfilled = load_weights(network, path)
    assert torch.equal(network.backbone.stem[0].weight, source.backbone.stem[0].weight)
    assert unfilled and all("predictor" in name for name in unfilled)
    train(tmp_path / "run", ellipse_patches(4), weights=str(path), steps=1, learning_rate=1e-30)
    started = weights(tmp_path / "run")["backbone.stem.0.weight"]
    assert torch.allclose(started, source.backbone.stem[0].weight, atol=1e-7)


def test_unusable_weights_are_refused_in_words(tmp_path):
    path, network = tmp_path / "w.safetensors", build(Detection(), 3).network
    with pytest.raises(CompanionError, match="cannot be read as weights"):
        load_weights(network, path)
    save_file({"encoder.weight": torch.zeros(3)}, path)
    with pytest.raises(CompanionError, match="no tensor in it fits the backbone"):
        load_weights(network, path)
    with pytest.raises(CompanionError, match="not a weights file of this package"):
        load_detector(path, DEVICE)
    for about in ({"identity": "denoiser"}, {"settings": {"network": "huge"}, "classes": ["a"]}):
        save_state({"w": torch.ones(2)}, path, about)
        with pytest.raises(CompanionError, match="does not hold the weights of a detector"):
            load_detector(path, DEVICE)


def test_a_missing_backend_says_where_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(CompanionError, match=r"not on PyPI.*environment.yml"):
        build(Detection(backend="detectron2", network="r50-fpn", anchor_sizes_px=[8, 16, 32, 64, 128]), 3)


def test_anchors_lie_on_their_grid():
    settings = Detection(anchor_sizes_px=[[8, 12], [16, 24], [32, 48]])
    boxes = anchor_boxes(settings, 64).numpy()
    assert len(boxes) == 6 * (16 * 16 + 8 * 8 + 4 * 4)
    level = boxes[6 * 256 : 6 * 320].reshape(8, 8, 6, 4)
    assert ((level[3, 5, :, :2] + level[3, 5, :, 2:]) / 2 == (40, 24)).all()
    sides = np.sqrt(np.prod(level[0, 0, :, 2:] - level[0, 0, :, :2], axis=1))
    assert np.allclose(np.sort(sides), [16, 16, 16, 24, 24, 24], atol=1)


def test_learning_rates():
    one_cycle, sgd = Detection(steps=100), Detection(steps=100, optimizer="sgd", learning_rate=0.1)
    rates = [learning_rate(one_cycle, k) for k in range(100)]
    assert max(rates) == pytest.approx(2e-3) and 20 <= rates.index(max(rates)) <= 30
    assert rates[0] < 2e-4 and rates[-1] < 1e-5
    warm = sgd.model_copy(update={"warmup_steps": 9})
    assert [learning_rate(warm, k) for k in (0, 4, 9, 20)] == pytest.approx([0.01, 0.05, 0.1, 0.1])
    assert learning_rate(sgd, 0) == 0.1 and learning_rate(sgd, 80) == pytest.approx(0.01)
