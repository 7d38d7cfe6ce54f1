"""Whole micrographs: what tiles show of one defect becomes one row of its true size; what is two defects stays two."""

import itertools
import json
from functools import partial

import conftest
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from roifile import roiread
from scipy import ndimage
from skimage.measure import grid_points_in_poly
from test_detection import BOX, DEVICE, detections, finding

from companion.detection import tiling
from companion.detection.tiling import COLUMNS, detect_micrograph, predict_micrographs, tile_starts
from companion.errors import CompanionError
from companion.evaluation.scores import evaluate_files
from companion.geometry import box_of, decode_rle, encode_rle
from companion.micrographs.importers import import_dataset

ABOUT = {"classes": ["loop", "other loop", "dot"], "patch_size": 64}  # tiles start at 0, 32, 64...
SHAPE = (160, 192)
ellipse = partial(conftest.ellipse, SHAPE)


def dark_regions(images, size):
    """Every connected dark region of a tile; large ones are class 1, small ones class 3."""
    found = []
    for image in images.numpy():
        regions, count = ndimage.label(image < 100)
        masks = [regions == k for k in range(1, count + 1)]
        found.append(detections(masks, [1 if m.sum() > 60 else 3 for m in masks], [0.9] * count))
    return found


@pytest.fixture
def detector(monkeypatch):
    monkeypatch.setattr(tiling, "load_detector", lambda path, device: (finding(dark_regions), ABOUT))


CORNERS = [(x, y) for y in tile_starts(SHAPE[0], 64) for x in tile_starts(SHAPE[1], 64)]


def found_of(defects, change=lambda corner, number, *shown: shown):
    """Rows and masks [N, H, W] found by a detector that shows each tile its parts of (mask, class) pairs.

    `change` takes (x, y) of the tile, the number of the defect, its mask [64, 64], class and score, and gives the
    last three, or nothing if the tile misses it.
    """
    pixels = np.zeros(SHAPE, dtype=np.uint8)
    for k, (x, y) in enumerate(CORNERS, start=1):
        pixels[y, x] = k  # how the detector knows its tile

    def detect(images, size):
        found = []
        for image in images.numpy():
            x, y = CORNERS[int(image[0, 0]) - 1]  # what fills the batch up is 0 and shows the last tile: not read
            parts = [(k, mask[y : y + 64, x : x + 64], label) for k, (mask, label) in enumerate(defects)]
            shown = [change((x, y), k, part, label, 0.9) for k, part, label in parts if part.any()]
            shown = [one for one in shown if one is not None and one[0].any()]
            found.append(detections(*([one[k] for one in shown] for k in range(3))))
        return found

    rows = detect_micrograph(finding(detect), 64, pixels, DEVICE)
    return rows, decode_rle(rows["mask"].tolist(), SHAPE)


def assert_same(masks, expected):
    """Masks that are the expected ones, in any order."""
    assert sorted(encode_rle(masks)) == sorted(encode_rle(np.stack(expected)))


def picture(shape, ellipses):
    pixels = np.full(shape, 180, dtype=np.uint8)
    for x, y, major, minor in ellipses:
        pixels[conftest.ellipse(shape, x, y, major, minor, 30)] = 50
    return pixels


@given(st.integers(1, 700), st.integers(16, 128))
def test_tiles_cover_a_side_each_half_over_the_next(length, size):
    starts = tile_starts(length, size)
    assert starts[0] == 0 and (length <= size or starts[-1] == length - size)
    assert all(0 < b - a <= size - size // 2 for a, b in itertools.pairwise(starts))


def test_a_micrograph_smaller_than_a_tile_an_empty_one_and_scores_below_the_threshold():
    pixels = picture((40, 50), [(20, 20, 14, 10)])
    small = detect_micrograph(finding(dark_regions), 64, pixels, DEVICE)
    assert len(small) == 1 and not small["cut"][0] and small["area_px"][0] == (pixels == 50).sum()
    assert len(detect_micrograph(finding(dark_regions), 64, picture((90, 90), []), DEVICE)) == 0
    assert len(detect_micrograph(finding(dark_regions), 64, pixels, DEVICE, confidence=0.95)) == 0


# Tiles of 64 px start at 0, 32, 64: the third lies in four of them.
BORDERS = [(32, 20, 24, 16), (64, 90, 20, 12), (64, 64, 22, 22), (100, 20, 6, 6), (8, 110, 12, 8)]
LONG = [(90, 50, 90, 24, 0), (90, 80, 90, 20, 90), (95, 80, 110, 24, 35), (96, 80, 84, 76, 0), (64, 64, 70, 70, 0)]


@pytest.mark.parametrize("shape", [*BORDERS, *LONG])
def test_a_defect_on_borders_of_tiles_or_longer_than_one_is_one_row_of_its_place_and_length(shape):
    whole = ellipse(*shape)
    rows, masks = found_of([(whole, 1)], lambda corner, *shown: (*shown[1:3], 0.6 + corner[0] / 1000))
    assert_same(masks, [whole])
    assert rows["size_px"][0] == pytest.approx(shape[2], abs=1.5) and not rows["cut"][0]
    assert rows[["x_px", "y_px"]].iloc[0].tolist() == pytest.approx(shape[:2], abs=0.6)
    assert tuple(rows[BOX].iloc[0]) == box_of(whole)
    if shape in LONG:  # no tile shows it whole: the score of its surest piece
        rightmost = max(x for x, y in CORNERS if whole[y : y + 64, x : x + 64].any())
        assert rows["score"][0] == pytest.approx(0.6 + rightmost / 1000)


@pytest.mark.parametrize("shape", LONG)
def test_boxes_that_end_before_the_border_and_ragged_masks_do_not_shorten_it(shape):
    def ragged(corner, number, mask, label, score):
        inside, rng = np.zeros_like(mask), np.random.default_rng([5, *corner])
        inside[2:62, 2:62] = mask[2:62, 2:62] & (rng.random((60, 60)) < 0.85)
        return inside, label, score

    rows, _ = found_of([(ellipse(*shape), 1)], ragged)
    assert rows["size_px"][0] == pytest.approx(shape[2], abs=3) and len(rows) == 1


@pytest.mark.parametrize("dot", [(90, 50), (64, 50), (97, 64), (32, 32)])  # mid-tile and on borders of tiles
@pytest.mark.parametrize("loop", [(50, 40), (90, 60)])  # whole in a tile, and united
def test_a_dot_in_a_loop_stays(dot, loop):
    defects = [(ellipse(90, 50, *loop), 1), (ellipse(*dot, 8, 8), 3), (ellipse(86, 48, 7, 7), 1)]
    rows, masks = found_of(defects)
    assert_same(masks, [mask for mask, _ in defects])
    assert sorted(rows["class"]) == [1, 1, 3]


def test_touching_loops_of_one_class_longer_than_a_tile_stay_two():
    both = ellipse(95, 80, 100, 60)
    upper = both & (np.arange(SHAPE[0]) < 80)[:, None]
    assert_same(found_of([(upper, 1), (both & ~upper, 1)])[1], [upper, both & ~upper])


def test_a_sliver_drawn_on_its_neighbour_joins_nothing():
    # The tile at x = 0 sees three columns of the right defect and draws them three to the left, on the left defect.
    left, right = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    left[40:56, 20:61], left[36:60, 20:24], right[40:56, 61:150] = True, True, True

    def shifted(corner, number, mask, label, score):
        if number == 0 and corner[0] not in (0, 32):
            return None
        return (np.roll(mask, -3, axis=1), label, score) if number == 1 and corner[0] == 0 else (mask, label, score)

    assert_same([m for m in found_of([(left, 1), (right, 1)], shifted)[1] if m.sum() > 100], [left, right])


@pytest.mark.parametrize(("cut", "label"), [
    (lambda m: m | np.roll(m, 1, axis=0), 1), (lambda m: m | np.roll(m, 1, axis=0), 3),
    (lambda m: m & (np.arange(64) % 3 == 0)[:, None], 1),
], ids=["one class", "another class", "scraps"])  # fmt: skip
def test_a_whole_piece_beats_cut_ones_of_higher_score(cut, label):
    whole = ellipse(64, 32, 50, 30)

    def surer(corner, number, mask, own, score):
        return (mask, own, 0.7) if corner == (32, 0) else (cut(mask), label, 0.95)

    rows, masks = found_of([(whole, 1)], surer)
    assert_same(masks, [whole])
    assert rows["class"].tolist() == [1] and rows["score"][0] == pytest.approx(0.7)


@pytest.mark.parametrize("shape", [(96, 60, 30, 20), (90, 60, 90, 20)])  # whole in a tile, and united
def test_of_what_a_tile_shows_twice_the_best_stays(shape):
    defects = [(ellipse(*shape), 1), (ellipse(*shape[:3], shape[3] - 4), 1), (ellipse(*shape), 2)]
    rows, masks = found_of(defects, lambda corner, number, mask, label, score: (mask, label, 0.9 - number / 10))
    assert rows["class"].tolist() == [1] and rows["score"].tolist() == pytest.approx([0.9])
    assert_same(masks, [defects[0][0]])


def test_what_the_micrograph_cuts_is_marked():
    defects = [
        (ellipse(10, 30, 30, 20), 1), (ellipse(60, 155, 90, 20), 1), (ellipse(150, 80, 90, 20), 1),
        (ellipse(96, 60, 90, 20), 2), (ellipse(180, 20, 10, 10), 3),
    ]  # fmt: skip
    rows, masks = found_of(defects)
    assert_same(masks, [mask for mask, _ in defects])
    expected = {mask.tobytes(): k < 3 for k, (mask, _) in enumerate(defects)}
    assert rows["cut"].tolist() == [expected[mask.tobytes()] for mask in masks]


def run_on(names, folder, **settings):
    """What `predict_micrographs` returns of pictures of those names: a loop and a dot, in the last nothing."""
    defects = [(50, 50, 20, 14), (80, 20, 5, 5)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((128, 100), defects if name != names[-1] else [])).save(folder / name)
    return predict_micrographs(folder / "w", [folder], DEVICE, folder / "out", **settings)


def test_table_coco_overlay_and_outlines_say_the_same(tmp_path, detector, capsys):
    open_before, out, names = plt.get_fignums(), tmp_path / "out", ["a.png", "s/a.png", "s/b.png"]
    table, written = run_on(names, tmp_path, pixel_size_nm=0.5)
    assert plt.get_fignums() == open_before and "27/27" in capsys.readouterr().err
    assert list(table.columns) == COLUMNS and table["image"].tolist() == ["a.png"] * 2 + ["s/a.png"] * 2
    for name in ("x", "y", "size"):
        assert np.allclose(table[f"{name}_nm"], table[f"{name}_px"] * 0.5)
    assert sorted(map(str, (path.relative_to(out) for path in written))) == [
        "a-overlay.png", "a.zip", "defects.csv", "defects.json", "s/a-overlay.png", "s/a.zip",
        "s/b-overlay.png",
    ]  # fmt: skip
    document = json.loads((out / "defects.json").read_text())
    assert len(document["annotations"]) == len(table) == len(pd.read_csv(out / "defects.csv"))
    for annotation, row in zip(document["annotations"], table.itertuples(), strict=True):
        assert document["categories"][annotation["category_id"] - 1]["name"] == row[2]
        assert document["images"][annotation["image_id"] - 1]["file_name"] == row.image
        mask = decode_rle([annotation["segmentation"]["counts"].encode()], tuple(annotation["segmentation"]["size"]))
        assert mask.sum() == annotation["area"] == row.area_px
    masks = decode_rle(table["mask"][2:].tolist(), (128, 100))
    for roi, mask in zip(roiread(out / "s/a.zip"), masks, strict=True):
        inside = grid_points_in_poly((128, 100), roi.coordinates()[:, ::-1] - 0.5)  # by the centres of the pixels
        assert (inside == mask).all()
    again, more = predict_micrographs(tmp_path / "w", [tmp_path / "s/b.png", tmp_path], DEVICE, out)  # not of out/
    assert again["size_nm"].isna().all() and len(again) == 4 and len(more) == len(written) + 1


def test_what_predict_writes_is_read_by_import_and_evaluate(tmp_path, detector):
    run_on(["p/a.png", "p/s/a.png", "p/s/b.png"], tmp_path, pixel_size_nm=0.5)
    out, imported = tmp_path / "out", tmp_path / "imported"
    dataset = import_dataset("coco", tmp_path, out / "defects.json", None, None, imported)
    assert dataset.files == ["p/a.png", "p/s/a.png", "p/s/b.png"] and dataset.micrographs[0].pixel_size_nm == 0.5
    for predictions, truth in itertools.product(("defects.json", "defects.csv"), (out / "defects.json", imported)):
        assert evaluate_files(out / predictions, truth)[["tp", "fp", "fn"]].iloc[0].tolist() == [4, 0, 0]
    by_outline = import_dataset("imagej", tmp_path / "p", out / "p", ABOUT["classes"], 0.5, tmp_path / "outlines")
    assert [len(micrograph.annotations) for micrograph in by_outline.micrographs] == [2, 2, 0]
    assert evaluate_files(out / "defects.csv", tmp_path / "outlines")["f1_hm"].iloc[0] == 1


def test_what_cannot_be_used_is_said_and_nothing_is_written(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for names, message in (
        (["a.png"], "not a readable image"), (["a.png", "x/a.tif"], "several .* called a:"),
        (["empty"], "has no micrographs"),
    ):  # fmt: skip
        with pytest.raises(CompanionError, match=message):
            predict_micrographs(tmp_path / "w", [tmp_path / name for name in names], DEVICE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
