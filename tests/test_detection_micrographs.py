"""Whole micrographs: tiles cover them, defects on tile borders are found once, sizes are in nanometres."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import matplotlib.pyplot as plt
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
from companion.detection.merging import Piece, merge
from companion.detection.micrographs import detect_micrograph, predict_micrographs, tile_starts
from companion.detection.train import Card, load_detector
from companion.errors import CompanionError
from companion.detection.findings import write_findings
from companion.geometry import box_of, decode_rle, ellipse_radius, encode_rle
from companion.config.profile import Detection
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
    assert (
        len(small) == 1
        and not small["cut"][0]
        and small["area_px"][0] == (picture((40, 50), [(20, 20, 14, 10)]) == 50).sum()
    )
    assert len(detect_micrograph(Dark(), CARD, picture((90, 90), []), COMPUTE)) == 0


class Blobs:
    """Overlapping discs at random places, scores and classes: duplicates, empty and border-touching masks."""

    network = torch.nn.Identity()

    def detect(self, images):
        found = []
        for image in images.numpy():
            rng = np.random.default_rng(int(image.astype(int).sum()))
            y, x = np.mgrid[:64, :64]
            places = rng.uniform(-4, 68, (12, 2))
            discs = zip(places, rng.uniform(0.3, 12, 12), strict=True)
            masks = np.stack([np.hypot(x - a, y - b) < r for (a, b), r in discs])
            boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32)
            scores = rng.uniform(0.3, 1, 12).astype(np.float32)
            found.append(Detections(boxes, scores, rng.integers(1, 3, 12), masks))
        return found


def with_whole_masks(detector, pixels):
    """What `merge` makes of masks of the whole micrograph, as scores, classes and masks."""
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, max(0, 64 - height)), (0, max(0, 64 - width))), mode="symmetric")
    corners = [(y, x) for y in tile_starts(padded.shape[0], 64, 32) for x in tile_starts(padded.shape[1], 64, 32)]
    pieces = []
    for y, x in corners:
        d = detector.detect(torch.from_numpy(padded[y : y + 64, x : x + 64].copy())[None])[0]
        for box, score, label, mask in zip(d.boxes, d.scores, d.labels, d.masks, strict=True):
            whole = np.zeros(padded.shape, dtype=bool)
            whole[y : y + 64, x : x + 64] = mask
            inner = np.array([x > 0, y > 0, x + 64 < padded.shape[1], y + 64 < padded.shape[0]])
            cut = (inner & np.array([box[0] < 3, box[1] < 3, box[2] > 61, box[3] > 61])).any()
            if score >= 0.5 and whole[:height, :width].any():
                tile = (x, y, x + 64, y + 64)
                pieces.append(Piece(whole[:height, :width], 0, 0, int(label), float(score), tile, bool(cut)))
    return [(piece.score, piece.label, piece.mask) for piece in merge(pieces)], len(pieces)


@pytest.mark.parametrize("shape", [(150, 203), (64, 90), (40, 130)])
def test_pieces_of_masks_give_what_whole_masks_give(shape):
    pixels = np.random.default_rng(3).integers(0, 255, shape, dtype=np.uint8)
    found, (expected, pieces) = detect_micrograph(Blobs(), CARD, pixels, COMPUTE), with_whole_masks(Blobs(), pixels)
    assert 8 < len(found) == len(expected) <= pieces
    assert found["mask"].tolist() == encode_rle(np.stack([mask for *_, mask in expected]))
    for row, (score, label, mask) in zip(found.itertuples(), expected, strict=True):
        assert (row.score, row._1) == (score, label)
        assert (row.x1, row.y1, row.x2, row.y2) == box_of(mask) and row.area_px == mask.sum()
        assert row.cut == (min(row.x1, row.y1, shape[1] - row.x2, shape[0] - row.y2) <= 1)
        y, x = np.nonzero(mask)
        assert (row.x_px, row.y_px) == (x.mean() + 0.5, y.mean() + 0.5)


def test_a_large_micrograph_takes_little_memory():
    pixels = np.random.default_rng(3).integers(0, 255, (512, 512), dtype=np.uint8)
    tracemalloc.start()
    found = detect_micrograph(Blobs(), CARD, pixels, COMPUTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) > 150
    assert peak < 0.2 * len(found) * pixels.size  # masks of the whole micrograph would take all of that


@pytest.mark.parametrize("pixels", [[(0, 0)], [(4, 3)], [(0, 0), (0, 1), (1, 0)], [(0, 3), (1, 0), (4, 2), (4, 3)]])
def test_run_lengths_are_cocos(pixels):
    mask = np.zeros((4, 5), dtype=bool)
    x, y = np.array(pixels).T
    mask[y, x] = True
    assert micrographs._run_lengths(x, y, mask.shape) == encode_rle(mask[None])[0]


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
    open_before = plt.get_fignums()
    written = write_findings(table, card, paths, tmp_path / "out")
    assert plt.get_fignums() == open_before
    assert all(path.stat().st_size > 0 for path in written) and len(written) == 4
    document = json.loads((tmp_path / "out" / "defects.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.png"]
    assert len(document["annotations"]) == len(table) == len(pd.read_csv(tmp_path / "out" / "defects.csv"))
    assert table["cut"].dtype == bool and pd.read_csv(tmp_path / "out" / "defects.csv")["cut"].dtype == bool
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
    with pytest.raises(CompanionError, match=r"(?s)huge.safetensors: .*network: .*tiny"):
        load_detector(tmp_path / "huge.safetensors", COMPUTE)


def test_sixteen_bits_are_scaled_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(micrographs, "load_detector", lambda path, compute: (Dark(), CARD))
    pixels = picture((80, 90), [(40, 40, 20, 14)])
    Image.fromarray(pixels).save(tmp_path / "eight.png")
    Image.fromarray(pixels.astype(np.uint16) * 100 + 4000).save(tmp_path / "sixteen.tif")
    table, _ = predict_micrographs(tmp_path / "w", [tmp_path / "eight.png", tmp_path / "sixteen.tif"], COMPUTE)
    assert len(table) == 2 and table["area_px"].nunique() == 1
