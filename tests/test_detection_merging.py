"""What tiles show of one defect becomes one row of its true size; what is two defects stays two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_detection import COMPUTE

from companion.detection.batch import Detections
from companion.detection.micrographs import detect_micrograph, tile_starts
from companion.detection.train import Card
from companion.geometry import box_of, decode_rle, ellipse_radius, encode_rle
from companion.config.profile import Detection

CARD = Card(Detection(), ("loop", "other loop", "dot"), patch_size=64)  # tiles start at 0, 32, 64...
SHAPE = (160, 192)


class Shown:
    """A detector that shows each tile its parts of given defects, in the order given.

    `change` takes (x, y) of the tile, the number of the defect, its mask [64, 64], class and score, and gives the
    last three, or nothing if the tile misses it.
    """

    network = torch.nn.Identity()

    def __init__(self, change):
        self.change = change

    def detect(self, images):
        found = []
        for image in images.numpy():
            x, y = CORNERS[image[0, 0] - 1]
            shown = []
            for number, (mask, label) in enumerate(self.defects):
                part = mask[y : y + 64, x : x + 64]
                if part.any() and (one := self.change((x, y), number, part, label, 0.9)) is not None and one[0].any():
                    shown.append(one)
            masks = np.stack([one[0] for one in shown]) if shown else np.zeros((0, 64, 64), dtype=bool)
            boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
            labels, scores = (np.array([one[k] for one in shown]) for k in (1, 2))
            found.append(Detections(boxes, scores.astype(np.float32), labels.astype(np.int64), masks))
        return found


CORNERS = [(x, y) for y in tile_starts(SHAPE[0], 64, 32) for x in tile_starts(SHAPE[1], 64, 32)]


def as_it_is(corner, number, mask, label, score):
    return mask, label, score


def found_of(defects, change=as_it_is):
    """Rows and masks [N, H, W] found of (mask, class) pairs."""
    pixels = np.zeros(SHAPE, dtype=np.uint8)
    for k, (x, y) in enumerate(CORNERS, start=1):
        pixels[y, x] = k  # how the detector knows its tile
    detector = Shown(change)
    detector.defects = defects
    rows = detect_micrograph(detector, CARD, pixels, COMPUTE)
    return rows, decode_rle(rows["mask"].tolist(), SHAPE)


def ellipse(x, y, major, minor, angle=0.0):
    mask = np.zeros(SHAPE, dtype=bool)
    radius, window = ellipse_radius(SHAPE, x, y, major, minor, angle)
    mask[window] = radius <= 1
    return mask


def assert_same(masks, expected):
    """Masks that are the expected ones, in any order."""
    assert sorted(encode_rle(masks)) == sorted(encode_rle(np.stack(expected)))


LONG = [(90, 50, 90, 24, 0), (90, 80, 90, 20, 90), (95, 80, 110, 24, 35), (96, 80, 84, 76, 0), (64, 64, 70, 70, 0)]


@pytest.mark.parametrize("shape", LONG)
def test_a_defect_longer_than_a_tile_is_one_row_of_its_length(shape):
    whole = ellipse(*shape)
    rows, masks = found_of([(whole, 1)])
    assert_same(masks, [whole])
    assert rows["size_px"][0] == pytest.approx(shape[2], abs=1.5) and not rows["cut"][0]


@pytest.mark.parametrize("shape", LONG)
def test_boxes_that_end_before_the_border_and_ragged_masks_do_not_shorten_it(shape):
    rng = np.random.default_rng(5)

    def ragged(corner, number, mask, label, score):
        inside = np.zeros_like(mask)
        inside[2:62, 2:62] = mask[2:62, 2:62] & (rng.random((60, 60)) < 0.8)
        return inside, label, score

    rows, _ = found_of([(ellipse(*shape), 1)], ragged)
    assert len(rows) == 1 and rows["size_px"][0] == pytest.approx(shape[2], abs=3)


def test_the_score_of_a_united_defect_is_the_highest():
    def by_place(corner, number, mask, label, score):
        return mask, label, 0.6 + corner[0] / 1000

    rows, _ = found_of([(ellipse(90, 50, 90, 24), 1)], by_place)
    assert rows["score"].tolist() == pytest.approx([0.6 + 0.128])


@pytest.mark.parametrize("dot", [(90, 50), (64, 50), (97, 64), (32, 32)])  # mid-tile and on borders of tiles
@pytest.mark.parametrize("loop", [(50, 40), (90, 60)])  # whole in a tile, and united
def test_a_dot_in_a_loop_stays(dot, loop):
    defects = [(ellipse(90, 50, *loop), 1), (ellipse(*dot, 8, 8), 3), (ellipse(86, 48, 7, 7), 1)]
    rows, masks = found_of(defects)
    assert_same(masks, [mask for mask, _ in defects])
    assert sorted(rows["class"]) == [1, 1, 3]


def test_a_dot_that_only_a_cut_piece_shows_stays_in_the_loop_of_another_tile():
    def missed(corner, number, mask, label, score):
        return (mask, label, score) if number == 0 or corner == (0, 0) else None

    rows, masks = found_of([(ellipse(64, 36, 50, 40), 1), (ellipse(62, 36, 8, 8), 3)], missed)
    assert sorted(rows["class"]) == [1, 3] and masks[rows["class"] == 3].sum() < ellipse(62, 36, 8, 8).sum()


def test_loops_of_one_class_inside_each_other_stay_two_when_both_are_cut():
    defects = [(ellipse(90, 80, 110, 90), 1), (ellipse(90, 80, 76, 50), 1)]
    assert_same(found_of(defects)[1], [mask for mask, _ in defects])


def side_by_side():
    """A region longer than a tile, and its two halves along a line, two defects."""
    both = ellipse(95, 80, 100, 60)
    upper = both & (np.arange(SHAPE[0]) < 80)[:, None]
    return both, [(upper, 1), (both & ~upper, 1)]


def test_touching_defects_stay_two():
    _, defects = side_by_side()
    assert_same(found_of(defects)[1], [mask for mask, _ in defects])


def test_touching_defects_that_every_tile_but_one_shows_as_one_are_one():
    both, defects = side_by_side()

    def blurred(corner, number, mask, label, score):
        if corner == (64, 32):
            return mask, label, score
        x, y = corner
        return (both[y : y + 64, x : x + 64], label, score) if number == 0 else None

    assert_same(found_of(defects, blurred)[1], [both])


def test_a_sliver_drawn_on_its_neighbour_joins_nothing():
    # The tile at x = 0 sees three columns of the right defect and draws them three to the left, on the left defect.
    left = np.zeros(SHAPE, dtype=bool)
    left[40:56, 20:61] = True
    left[36:60, 20:24] = True
    right = np.zeros(SHAPE, dtype=bool)
    right[40:56, 61:150] = True

    def shifted(corner, number, mask, label, score):
        if number == 0 and corner[0] not in (0, 32):
            return None
        return (np.roll(mask, -3, axis=1), label, score) if number == 1 and corner[0] == 0 else (mask, label, score)

    assert_same([m for m in found_of([(left, 1), (right, 1)], shifted)[1] if m.sum() > 100], [left, right])


def test_of_two_whole_ones_the_best_stays():
    def grown(corner, number, mask, label, score):  # one tile draws it larger, calls it another, and is less sure
        return (mask | np.roll(mask, 1, axis=0), 2, 0.6) if corner == (32, 0) else (mask, label, score)

    whole = ellipse(48, 24, 12, 10)
    rows, masks = found_of([(whole, 1)], grown)
    assert_same(masks, [whole])
    assert rows["class"].tolist() == [1]


def test_a_dot_whole_in_one_tile_stays_beside_the_loop_whole_in_another():
    def divided(corner, number, mask, label, score):
        return (mask, label, score) if (number == 0) == (corner == (32, 0)) else None

    defects = [(ellipse(64, 26, 40, 36), 1), (ellipse(54, 20, 8, 8), 1)]
    assert_same(found_of(defects, divided)[1], [mask for mask, _ in defects])


@pytest.mark.parametrize("label", [1, 3])
def test_a_whole_piece_beats_cut_ones_of_higher_score(label):
    whole = ellipse(64, 32, 50, 30)

    def surer(corner, number, mask, own, score):
        return (mask, own, 0.7) if corner == (32, 0) else (mask | np.roll(mask, 1, axis=0), label, 0.95)

    rows, masks = found_of([(whole, 1)], surer)
    assert_same(masks, [whole])
    assert rows["class"].tolist() == [1] and rows["score"][0] == pytest.approx(0.7)


def test_a_whole_piece_beats_fragments_of_its_defect():
    def fragment(corner, number, mask, label, score):
        return (mask, label, score) if corner == (32, 0) else (mask & (np.arange(64) % 3 == 0)[:, None], label, score)

    whole = ellipse(64, 32, 50, 30)
    assert_same(found_of([(whole, 1)], fragment)[1], [whole])


@pytest.mark.parametrize("shape", [(96, 60, 30, 20), (90, 60, 90, 20)])  # whole in a tile, and united
def test_of_what_a_tile_shows_twice_the_best_stays(shape):
    defects = [(ellipse(*shape), 1), (ellipse(*shape[:3], shape[3] - 4), 1), (ellipse(*shape), 2)]
    rows, masks = found_of(defects, lambda corner, number, mask, label, score: (mask, label, 0.9 - number / 10))
    assert rows["class"].tolist() == [1] and rows["score"].tolist() == pytest.approx([0.9])
    assert_same(masks, [defects[0][0]])


def test_pieces_of_two_classes_are_not_united():
    def unsure(corner, number, mask, label, score):
        return mask, label if corner[0] < 64 else 2, score

    rows, _ = found_of([(ellipse(90, 50, 90, 24), 1)], unsure)
    assert sorted(rows["class"]) == [1, 2]


def test_what_the_micrograph_cuts_is_marked():
    defects = [
        (ellipse(10, 30, 30, 20), 1), (ellipse(60, 155, 90, 20), 1), (ellipse(150, 80, 90, 20), 1),
        (ellipse(96, 60, 90, 20), 2), (ellipse(180, 20, 10, 10), 3),
    ]  # fmt: skip
    rows, masks = found_of(defects)
    assert_same(masks, [mask for mask, _ in defects])
    expected = {mask.tobytes(): k < 3 for k, (mask, _) in enumerate(defects)}
    assert rows["cut"].tolist() == [expected[mask.tobytes()] for mask in masks]
