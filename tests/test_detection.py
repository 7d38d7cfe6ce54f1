"""The detector: what it trains on, what it writes, and that it can be killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ellipse_patches
from safetensors.torch import save_file

from companion.micrographs.patches import Patches, instance_table
from companion.detection.anchors import anchor_boxes, best_anchors
from companion.detection.batch import Detections
from companion.detection.model import build, load_weights
from companion.detection.predict import COLUMNS, predict, write_predictions
from companion.detection.presets import PRESETS
from companion.detection.recipes import recipe
from companion.detection.train import learning_rate, load_detector, train_detector
from companion.errors import CompanionError
from companion.detection.plots import live_losses
from companion.geometry import box_iou, decode_rle
from companion.config.profile import Detection
from companion.training import Compute, load_state

COMPUTE = Compute(torch.device("cpu"), torch.float32, root_seed=11)
QUICK = {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "rois_per_image": 16, "proposals": 20}


@pytest.fixture(autouse=True)
def deterministic():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train(folder: Path, patches: Patches, arm="EXP", generated=None, seed=1, callback=None, **settings):
    settings = Detection(**{**QUICK, **settings})
    made = recipe(
        arm, {"real": patches, **({"generated": generated} if generated else {})}, batch_size=settings.batch_size,
        generated_share=settings.generated_share, root_seed=11, names=("detector", seed),
    )  # fmt: skip
    return train_detector(made, settings, COMPUTE, folder, inputs={}, callback=callback)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_detector(folder / "weights.safetensors", COMPUTE)[0].network.state_dict()


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def patches_with(instances: np.ndarray, classes: dict[tuple[int, int], int], n_classes: int = 3) -> Patches:
    template = ellipse_patches(len(instances), size=instances.shape[-1])
    names = tuple(f"class {k}" for k in range(1, n_classes + 1))
    table = instance_table(instances, classes)
    return Patches(template.images, instances, template.index, table, names, (0, 1))


def forty_defects() -> Patches:
    instances = np.zeros((2, 64, 64), dtype=np.uint8)
    for k in range(40):
        row, column = divmod(k, 8)
        instances[:, row * 12 : row * 12 + 6, column * 8 : column * 8 + 5] = k + 1
    return patches_with(instances, {(p, k + 1): k % 3 + 1 for p in range(2) for k in range(40)})


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
    "ten classes": patches_with(
        forty_defects().instances, {(p, k): k % 10 + 1 for p in (0, 1) for k in range(1, 41)}, n_classes=10
    ),
}  # fmt: skip


@pytest.mark.parametrize("patches", CASES.values(), ids=CASES.keys())
def test_every_kind_of_patch_trains(tmp_path, patches):
    detector, log = train(tmp_path, patches, steps=2)
    assert np.isfinite(log.to_numpy()).all()
    assert log["step"].tolist() == [0, 1]
    assert {"learning_rate", "total", "loss_mask", "loss_objectness", "loss_classifier"} <= set(log.columns)
    predictions = predict(detector, patches.images, COMPUTE)
    assert predictions["label"].between(1, len(patches.classes)).all()


def test_a_killed_training_continues_to_the_same_bits(tmp_path):
    patches = ellipse_patches(6)
    train(tmp_path / "straight", patches)
    # The child is killed by the kernel right after its first checkpoint.
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_detection as t, torch\n"
        "from pathlib import Path\n"
        "torch.set_num_threads(1); torch.use_deterministic_algorithms(True)\n"
        "from companion.detection import train as module\n"
        "kill = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 2 else None\n"
        "settings = t.Detection(**t.QUICK)\n"
        "made = t.recipe('EXP', {'real': t.ellipse_patches(6)}, batch_size=2, generated_share=0.5, root_seed=11,\n"
        "                names=('detector', 1))\n"
        "module.train_detector(made, settings, t.COMPUTE, Path(sys.argv[2]), inputs={}, callback=kill)\n"
    )
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(folder)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "checkpoint" / "state.safetensors").exists()
    assert not (folder / "weights.safetensors").exists()
    _, log = train(folder, patches)
    assert log["step"].tolist() == [0, 1, 2, 3]
    assert_same_weights(folder, tmp_path / "straight")
    assert (folder / "log.parquet").read_bytes() == (tmp_path / "straight" / "log.parquet").read_bytes()
    assert not (folder / "checkpoint").exists()


def test_the_same_seed_gives_the_same_predictions_to_the_bit(tmp_path):
    patches = ellipse_patches(6)
    tables = []
    for name in ("a", "b"):
        detector, _ = train(tmp_path / name, patches)
        write_predictions(tmp_path / name, predict(detector, patches.images, COMPUTE))
        tables.append((tmp_path / name / "predictions.parquet").read_bytes())
    assert tables[0] == tables[1]
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()
    train(tmp_path / "other", patches, seed=2)
    ours, others = weights(tmp_path / "a"), weights(tmp_path / "other")
    assert any(not torch.equal(ours[name], others[name]) for name in ours)


def test_a_finished_training_is_read_back_and_a_changed_one_is_not(tmp_path):
    patches = ellipse_patches(6)
    train(tmp_path, patches)
    before = (tmp_path / "weights.safetensors").stat().st_ino  # a file that is written again is another one
    _, log = train(tmp_path, patches)
    assert (tmp_path / "weights.safetensors").stat().st_ino == before
    assert len(log) == 4
    _, log = train(tmp_path, patches, steps=3)
    assert len(log) == 3


def test_arms_of_one_seed_start_from_the_same_weights(tmp_path):
    real, generated = ellipse_patches(6), ellipse_patches(6, seed=9)
    train(tmp_path / "exp", real, steps=1, learning_rate=1e-30)
    train(tmp_path / "gen", real, "EXP+GEN", generated, steps=1, learning_rate=1e-30)
    one, other = weights(tmp_path / "exp"), weights(tmp_path / "gen")
    assert all(torch.allclose(one[n], other[n], atol=1e-7) for n in one if "running" not in n)
    train(tmp_path / "more", real, "EXP+GEN", generated, steps=2, learning_rate=1e-2)
    more = weights(tmp_path / "more")
    assert any(not torch.allclose(one[n], more[n], atol=1e-7) for n in one if "running" not in n)


def test_a_diverging_loss_names_step_batch_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(CompanionError) as caught:
        train(tmp_path, ellipse_patches(6), steps=12, optimizer="sgd", learning_rate=1e12, checkpoint_every=1)
    said = str(caught.value)
    step = int(re.search(r"loss is not finite at step (\d+)", said)[1])
    made = recipe("EXP", {"real": ellipse_patches(6)}, batch_size=2, generated_share=0.5, root_seed=11,
                  names=("detector", 1))  # fmt: skip
    draw = made.draw(step)[0]
    assert f"real patches {draw.patches.tolist()} in symmetries {draw.symmetries.tolist()}" in said
    assert f"last good checkpoint: step {step}, {tmp_path / 'checkpoint'}" in said
    assert "Lower the learning rate (detection.learning_rate = 1e+12)" in said
    _, about = load_state(tmp_path / "checkpoint" / "state.safetensors")
    assert about["step"] == step >= 1
    assert not (tmp_path / "weights.safetensors").exists()


def test_it_learns_and_its_boxes_fit(tmp_path):
    patches = ellipse_patches(8, classes=1)
    detector, log = train(tmp_path, patches, steps=60, batch_size=4, rois_per_image=32)
    assert log["total"].tail(5).mean() < 0.6 * log["total"].head(5).mean()
    found = predict(detector, patches.images, COMPUTE)
    best = found[found["score"] > 0.5]
    assert len(best) > 0
    hits = 0
    for patch, rows in best.groupby("patch"):
        boxes = ["x1", "y1", "x2", "y2"]
        hits += int((box_iou(rows[boxes], patches.of(patch)[boxes]).max(axis=1, initial=0) > 0.5).sum())
    assert hits > 0.7 * len(best)


def test_losses_are_shown_while_it_trains_and_change_nothing(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    settings = Detection(**QUICK)
    made = recipe("EXP", {"real": ellipse_patches(6)}, batch_size=2, generated_share=0.5, root_seed=11,
                  names=("detector", 1))  # fmt: skip
    train_detector(made, settings, COMPUTE, tmp_path / "a", inputs={}, watch=live_losses("so far"))
    assert [figure.axes[0].lines[0].get_xdata().tolist() for figure in shown] == [[0, 1], [0, 1, 2, 3]]
    assert not plt.get_fignums()
    train(tmp_path / "b", ellipse_patches(6))
    for name in ("weights.safetensors", "log.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class Scripted:
    """A detector that finds what it is told to."""

    network = torch.nn.Identity()

    def __init__(self, counts: list[int], size: int) -> None:
        self.counts, self.size, self.seen = counts, size, 0

    def detect(self, images: torch.Tensor) -> list[Detections]:
        found = []
        for image in images:
            assert image.shape == (self.size, self.size)
            n = self.counts[self.seen]
            masks = np.zeros((n, self.size, self.size), dtype=bool)
            masks[:, 2:5, 3:7] = True
            box = np.tile(np.array([3, 2, 7, 5], dtype=np.float32), (n, 1))
            found.append(Detections(box, np.full(n, 0.5, np.float32), np.ones(n, np.int64), masks))
            self.seen += 1
        return found


def test_predictions_have_the_agreed_columns(tmp_path):
    images = np.zeros((5, 32, 32), dtype=np.uint8)
    table = predict(Scripted([2, 0, 1, 0, 3], 32), images, COMPUTE, batch_size=2)
    assert table["patch"].tolist() == [0, 0, 2, 4, 4, 4]
    write_predictions(tmp_path, table)
    read = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(read.columns) == list(COLUMNS)
    assert {name: str(read[name].dtype) for name in COLUMNS if name != "mask"} == {
        name: kind for name, kind in COLUMNS.items() if name != "mask"
    }
    mask = decode_rle([read["mask"][0]], (32, 32))[0]
    assert mask.sum() == 12 and mask[2:5, 3:7].all()


def test_nothing_found_is_an_empty_table_of_the_same_columns(tmp_path):
    table = predict(Scripted([0, 0], 32), np.zeros((2, 32, 32), dtype=np.uint8), COMPUTE)
    assert len(table) == 0 and list(table.columns) == list(COLUMNS)
    write_predictions(tmp_path, table)
    assert list(pd.read_parquet(tmp_path / "predictions.parquet").columns) == list(COLUMNS)


def test_patches_are_not_resized(monkeypatch):
    detector = build(Detection(**QUICK), 2)
    sizes = []
    backbone = detector.network.backbone
    backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    detector.detect(torch.zeros((2, 96, 96), dtype=torch.uint8))
    assert sizes[-1] == (2, 1, 96, 96) and {size[2:] for size in sizes} == {(96, 96)}


def test_the_tiny_network_has_under_a_million_parameters():
    parameters = sum(p.numel() for p in build(Detection(), 3).network.parameters())
    assert 0.8e6 < parameters < 1.0e6


def test_the_papers_network_builds_with_trainable_normalisation():
    network = build(Detection(network="r50-fpn", anchor_sizes_px=[8, 16, 32, 64, 128]), 3).network
    norms = [m for m in network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 53
    assert all(p.requires_grad for p in network.parameters())


def test_pretrained_weights_fill_all_but_the_heads(tmp_path):
    torch.manual_seed(0)
    source = build(Detection(), 5).network
    save_file({n: v.contiguous() for n, v in source.state_dict().items()}, tmp_path / "five.safetensors")
    network = build(Detection(weights=str(tmp_path / "five.safetensors")), 3).network
    assert torch.equal(network.backbone.stem[0].weight, source.backbone.stem[0].weight)
    unfilled = load_weights(build(Detection(), 3).network, tmp_path / "five.safetensors")
    assert unfilled and all("predictor" in name for name in unfilled)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read as weights"), (b"nonsense", "cannot be read as weights")]
)
def test_unreadable_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    if content:
        path.write_bytes(content)
    with pytest.raises(CompanionError, match=message):
        build(Detection(weights=str(path)), 3)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CompanionError, match="no tensor in it fits the backbone"):
        build(Detection(weights=str(tmp_path / "w.safetensors")), 3)
    with pytest.raises(CompanionError, match="not a weights file of this package"):
        load_detector(tmp_path / "w.safetensors", COMPUTE)


def test_anchor_sizes_must_match_the_levels():
    with pytest.raises(CompanionError, match=r"anchor_sizes_px \[8, 16\].*3 feature levels"):
        build(Detection(anchor_sizes_px=[8, 16]), 3)


def test_anchors_lie_on_their_grid_in_patch_pixels():
    levels = anchor_boxes(Detection(anchor_sizes_px=[[8, 12], [16, 24], [32, 48]]), 64)
    assert [level.shape for level in levels] == [(16, 16, 6, 4), (8, 8, 6, 4), (4, 4, 6, 4)]
    centres = (levels[1][..., :2] + levels[1][..., 2:]) / 2
    assert (centres[3, 5] == (40, 24)).all()
    sides = np.sqrt(np.prod(levels[1][0, 0, :, 2:] - levels[1][0, 0, :, :2], axis=1))
    assert np.allclose(np.sort(sides), [16, 16, 16, 24, 24, 24], atol=1)
    resized = anchor_boxes(Detection(resize_px=128), 64)
    assert resized[0].shape == (32, 32, 3, 4) and resized[0][0, 0].max() <= 64 * 40 / 128


@pytest.mark.parametrize("preset", PRESETS)
def test_the_best_anchor_is_the_best_of_all(preset):
    settings = PRESETS[preset].model_copy(update={"resize_px": 160 if preset == "paper" else None})
    levels = anchor_boxes(settings, 64)
    every = np.concatenate([level.reshape(-1, 4) for level in levels])
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(1, 40, (200, 2)), 64)], axis=1)
    boxes[:3] = [[0, 0, 64, 64], [0, 0, 1, 1], [63, 20, 64, 64]]
    anchors, iou = best_anchors(boxes, levels)
    expected = box_iou(boxes, every).max(axis=1)
    assert np.allclose(iou, expected, atol=1e-12) and expected.min() >= 0 and expected.max() > 0.7
    assert np.allclose(np.diag(box_iou(boxes, anchors)), expected, atol=1e-12)
    assert all(len(part) == 0 for part in best_anchors(boxes[:0], levels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"anchor_sizes_px": [8, [16, 32], 64]}, "more sizes on one level"), ({"resize_px": 100}, "multiple of 32")],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Detection(**changes)


def test_a_missing_backend_says_where_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(CompanionError, match=r"not on PyPI.*conda-forge"):
        build(Detection(backend="detectron2", network="r50-fpn"), 3)


def test_learning_rates():
    one_cycle, sgd = Detection(steps=100), Detection(steps=100, optimizer="sgd", learning_rate=0.1)
    rates = [learning_rate(one_cycle, k) for k in range(100)]
    assert max(rates) == pytest.approx(2e-3) and rates[0] < 2e-4 and rates[-1] < 1e-5
    warm = sgd.model_copy(update={"warmup_steps": 9})
    assert [learning_rate(warm, k) for k in (0, 4, 9, 20)] == pytest.approx([0.01, 0.05, 0.1, 0.1])
    assert learning_rate(sgd, 0) == 0.1 and learning_rate(sgd, 80) == pytest.approx(0.01)
