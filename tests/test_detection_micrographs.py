"""Whole micrographs: tiles cover them, defects on tile borders are found once, sizes are in nanometres."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_detection import COMPUTE

from companion.detection import micrographs
from companion.detection.batch import Detections
from companion.detection.micrographs import detect_micrograph, predict_micrographs, tile_starts
from companion.detection.train import Card, load_detector
from companion.errors import CompanionError
from companion.findings import write_findings
from companion.geometry import box_of, decode_rle, ellipse_radius
from companion.params import Detection
from companion.training import save_state

CARD = Card(Detection(), ("loop", "dot"), patch_size=64)
BOX = ["x1", "y1", "x2", "y2"]


class Dark:
    """Finds every connected dark region of a tile; large ones are class 1, small ones class 2."""

    network = torch.nn.Identity()

    def detect(self, images):
        from scipy import ndimage

        found = []
        for image in images.numpy():
            regions, count = ndimage.label(image < 100)
            masks = (
                np.stack([regions == k for k in range(1, count + 1)]) if count else np.zeros((0, 64, 64), dtype=bool)
            )
            boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
            labels = np.where(masks.sum(axis=(1, 2)) > 60, 1, 2)
            found.append(Detections(boxes, np.full(count, 0.9, np.float32), labels, masks))
        return found


def picture(shape, ellipses):
    pixels = np.full(shape, 180, dtype=np.uint8)
    for x, y, major, minor in ellipses:
        radius, window = ellipse_radius(shape, x, y, major, minor, 30)
        pixels[window][radius <= 1] = 50
    return pixels


@given(st.integers(1, 700), st.integers(16, 128), st.floats(0, 0.8))
def test_tiles_cover_a_side(length, size, share):
    overlap = int(share * size)
    starts = tile_starts(length, size, overlap)
    assert starts[0] == 0 and (length <= size or starts[-1] == length - size)
    assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(starts))


def test_a_defect_on_a_tile_border_is_found_once_and_whole():
    # Tiles of 64 px start at 0, 32 and 64: one defect lies across each border, and one in four tiles.
    truth = [(32, 20, 24, 16), (64, 90, 20, 12), (64, 64, 22, 22), (100, 20, 6, 6), (5, 110, 12, 8)]
    pixels = picture((128, 128), truth)
    found = detect_micrograph(Dark(), CARD, pixels, COMPUTE)
    assert len(found) == len(truth)
    assert found["area_px"].sum() == (pixels == 50).sum()
    for x, y, major, _ in truth[:3]:
        row = found.loc[((found["x_px"] - x).abs() + (found["y_px"] - y).abs()).idxmin()]
        assert abs(row["x_px"] - x) < 0.6 and abs(row["y_px"] - y) < 0.6
        assert row["size_px"] == pytest.approx(major, rel=0.06)
    masks = decode_rle(found["mask"].tolist(), (128, 128))
    for mask, box in zip(masks, found[BOX].to_numpy(), strict=True):
        assert box_of(mask) == tuple(box)


def test_neighbours_stay_apart():
    found = detect_micrograph(Dark(), CARD, picture((64, 150), [(30, 30, 12, 12), (45, 30, 12, 12)]), COMPUTE)
    assert len(found) == 2


def test_a_micrograph_smaller_than_a_tile_and_an_empty_one():
    small = detect_micrograph(Dark(), CARD, picture((40, 50), [(20, 20, 14, 10)]), COMPUTE)
    assert len(small) == 1 and small["area_px"][0] == (picture((40, 50), [(20, 20, 14, 10)]) == 50).sum()
    assert len(detect_micrograph(Dark(), CARD, picture((90, 90), []), COMPUTE)) == 0


def test_low_scores_are_left_out():
    pixels = picture((64, 64), [(30, 30, 12, 12)])
    assert len(detect_micrograph(Dark(), CARD, pixels, COMPUTE, confidence=0.95)) == 0


def test_table_coco_and_overlay_say_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(micrographs, "load_detector", lambda path, compute: (Dark(), CARD))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.fromarray(picture((128, 100), [(50, 50, 20, 14), (80, 20, 5, 5)])).save(paths[0])
    Image.fromarray(picture((70, 70), [])).save(paths[1])
    table, card = predict_micrographs(tmp_path / "w", paths, COMPUTE, pixel_size_nm={"a.png": 0.5})
    assert table["class"].tolist().count("dot") == 1
    assert np.allclose(table["size_nm"], table["size_px"] * 0.5)
    written = write_findings(table, card, paths, tmp_path / "out")
    assert all(path.stat().st_size > 0 for path in written) and len(written) == 4
    document = json.loads((tmp_path / "out" / "defects.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.png"]
    assert len(document["annotations"]) == len(table) == len(pd.read_csv(tmp_path / "out" / "defects.csv"))
    first = document["annotations"][0]
    mask = decode_rle([first["segmentation"]["counts"].encode()], tuple(first["segmentation"]["size"]))[0]
    assert mask.sum() == first["area"]


def test_no_pixel_size_gives_no_nanometres(tmp_path, monkeypatch):
    monkeypatch.setattr(micrographs, "load_detector", lambda path, compute: (Dark(), CARD))
    Image.fromarray(picture((64, 64), [(30, 30, 12, 12)])).save(tmp_path / "a.png")
    assert predict_micrographs(tmp_path / "w", [tmp_path / "a.png"], COMPUTE)[0]["size_nm"].isna().all()


def test_what_cannot_be_used_is_said(tmp_path):
    with pytest.raises(CompanionError, match="no micrographs"):
        predict_micrographs(tmp_path / "w", [], COMPUTE)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(CompanionError, match="not a readable image"):
        predict_micrographs(tmp_path / "w", [tmp_path / "a.png"], COMPUTE)
    with pytest.raises(CompanionError, match="several micrographs are called a:"):
        predict_micrographs(tmp_path / "w", [tmp_path / "a.png", tmp_path / "x" / "a.tif"], COMPUTE)
    with pytest.raises(CompanionError, match=r"pixel size 0 nm per px is not above 0"):
        predict_micrographs(tmp_path / "w", [tmp_path / "a.png"], COMPUTE, pixel_size_nm=0)
    pages = [Image.fromarray(picture((64, 64), [])) for _ in range(2)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(CompanionError, match="stack of 2 pictures"):
        predict_micrographs(tmp_path / "w", [tmp_path / "stack.tif"], COMPUTE)


def test_weights_of_another_kind_are_refused_in_words(tmp_path):
    with pytest.raises(CompanionError, match=r"is a folder, not a weights file; a detector's is called weights"):
        load_detector(tmp_path, COMPUTE)
    save_state({"w": torch.ones(2)}, tmp_path / "other.safetensors", {"identity": "denoiser"})
    with pytest.raises(CompanionError, match="does not hold the weights of a detector; is it the file of another"):
        load_detector(tmp_path / "other.safetensors", COMPUTE)
    card = {"settings": {"network": "huge"}, "classes": ["a"], "patch_size": 64}
    save_state({"w": torch.ones(2)}, tmp_path / "huge.safetensors", card)
    with pytest.raises(CompanionError, match=r"(?s)does not hold the weights of a detector: .*network"):
        load_detector(tmp_path / "huge.safetensors", COMPUTE)


def test_sixteen_bits_are_scaled_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(micrographs, "load_detector", lambda path, compute: (Dark(), CARD))
    pixels = picture((80, 90), [(40, 40, 20, 14)])
    Image.fromarray(pixels).save(tmp_path / "eight.png")
    Image.fromarray(pixels.astype(np.uint16) * 100 + 4000).save(tmp_path / "sixteen.tif")
    table, _ = predict_micrographs(tmp_path / "w", [tmp_path / "eight.png", tmp_path / "sixteen.tif"], COMPUTE)
    assert len(table) == 2 and table["area_px"].nunique() == 1
