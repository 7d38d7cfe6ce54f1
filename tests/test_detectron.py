"""The adapter for detectron2, run for real wherever detectron2 is installed."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ellipse_patches
from safetensors.torch import save_file
from test_detection import CASES, DEVICE, train

from companion.config.sections import Detection
from companion.detection.model import build, load_weights
from companion.detection.predict import COLUMNS, predict
from companion.detection.train import load_detector
from companion.geometry import decode_rle

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is not on PyPI; see the book's page Run)")

PAPER = {
    "backend": "detectron2", "network": "r50-fpn", "anchor_sizes_px": [8, 16, 32, 64, 128], "checkpoint_every": 2,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("deterministic")
TORCHVISION_LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}


@pytest.mark.parametrize("kind", ["no defect anywhere", "some patches empty", "one class", "one-pixel defects"])
def test_every_kind_of_patch_trains_and_gives_predictions_at_its_own_size(tmp_path, kind):
    patches = CASES[kind]
    detector, log = train(tmp_path, patches, steps=4, resize_px=96, score_floor=0.0, **PAPER)
    assert np.isfinite(log.to_numpy()).all()
    assert set(log.columns) == {"step", "learning_rate", "total", *TORCHVISION_LOSSES}
    written = predict(detector, patches.images[:2], DEVICE)
    assert list(written.columns) == list(COLUMNS) and written["label"].between(1, len(patches.classes)).all()
    assert (written[["x2", "y2"]].to_numpy() <= patches.size).all()
    assert decode_rle(written["mask"].tolist(), (64, 64)).shape == (len(written), 64, 64)


def test_an_interrupted_training_continues_to_the_same_bits_and_is_read_back(tmp_path):
    patches = ellipse_patches(4)

    def stop(step):
        if step == 2:
            raise KeyboardInterrupt

    train(tmp_path / "straight", patches, **PAPER)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", patches, callback=stop, **PAPER)
    name = "weights.safetensors"
    assert not (tmp_path / "cut" / name).exists()
    detector, log = train(tmp_path / "cut", patches, **PAPER)
    assert log["step"].tolist() == [0, 1, 2, 3]
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    again, about = load_detector(tmp_path / "cut" / name, DEVICE)
    assert about["settings"]["backend"] == "detectron2"
    pd.testing.assert_frame_equal(predict(detector, patches.images, DEVICE), predict(again, patches.images, DEVICE))


def test_pretrained_weights_fill_all_but_the_heads_and_freeze_what_the_authors_froze(tmp_path):
    source = build(Detection(**PAPER), 5).network
    save_file({n: v.contiguous() for n, v in source.state_dict().items()}, tmp_path / "five.safetensors")
    pretrained = {**PAPER, "weights": str(tmp_path / "five.safetensors")}
    network = build(Detection(**pretrained), 3).network
    load_weights(network, tmp_path / "five.safetensors")
    own, given = network.state_dict(), source.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own if name.startswith("backbone."))
    assert not any(p.requires_grad for p in network.backbone.bottom_up.stem.parameters())
    assert all(p.requires_grad for p in network.roi_heads.parameters())
    train(tmp_path / "run", ellipse_patches(4), steps=1, **pretrained)
    (tmp_path / "five.safetensors").unlink()  # a trained detector does not need the file it started from
    load_detector(tmp_path / "run" / "weights.safetensors", DEVICE)
