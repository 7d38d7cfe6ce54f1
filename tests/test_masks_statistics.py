"""Ellipses, counts and touching instances."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.micrographs.patches import Patches, instance_table
from companion.geometry import ellipse_radius
from companion.masks import statistics


def of_maps(instances: np.ndarray, labels: dict, classes=("a", "b"), pixel_size_nm=0.5) -> Patches:
    index = pd.DataFrame({"patch": range(len(instances)), "image": "one.png", "x0": 0, "y0": 0, "symmetry": 0,
                          "pixel_size_nm": pixel_size_nm})  # fmt: skip
    return Patches(None, instances, index, instance_table(instances, labels), classes)


def one_ellipse(x, y, major, minor, angle, size=96) -> Patches:
    instances = np.zeros((1, size, size), np.uint8)
    radius, window = ellipse_radius((size, size), x, y, major, minor, angle)
    instances[0][window][radius <= 1] = 1
    return of_maps(instances, {(0, 1): 1})


@given(x=st.floats(40, 56), y=st.floats(40, 56), major=st.floats(16, 60), aspect=st.floats(1.3, 3),
       angle=st.floats(0, 179.99))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_both_fits_recover_a_drawn_ellipse(x, y, major, aspect, angle):
    patches = one_ellipse(x, y, major, major / aspect, angle)
    # The algebraic fit of a contour overshoots the long axis of thin ellipses aligned with the grid by up to 2 px.
    for fit, lost, close in (("contour", statistics.CONTOUR_PX, 2.2), ("moments", 0.0, 1.2)):
        row = statistics.measure(patches, fit).iloc[0]
        assert abs(row["x"] - x) < 0.6 and abs(row["y"] - y) < 0.6
        assert abs(row["major_px"] + lost - major) < close and abs(row["minor_px"] + lost - major / aspect) < close
        assert abs((row["angle_deg"] - angle + 90) % 180 - 90) < 4 + 40 / (major - major / aspect)  # pixels blur it
        assert 0 <= row["angle_deg"] < 180


def test_moments_are_unbiased_where_contours_come_out_one_pixel_short():
    rng = np.random.default_rng(0)
    rows = [[*rng.uniform(40, 56, 2), 24.0, 14.0, rng.uniform(0, 180)] for _ in range(100)]
    fits = {
        fit: pd.concat([statistics.measure(one_ellipse(*row), fit) for row in rows]) for fit in ("contour", "moments")
    }
    for axis, true in (("major_px", 24.0), ("minor_px", 14.0)):
        assert fits["moments"][axis].mean() == pytest.approx(true, abs=0.05)
        assert 0.7 < true - fits["contour"][axis].mean() < 1.1


@pytest.mark.parametrize("fit", ["contour", "moments"])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0])
def test_angle_is_counter_clockwise_as_displayed(fit, angle):
    row = statistics.measure(one_ellipse(48, 48, 40, 12, angle), fit).iloc[0]
    assert abs((row["angle_deg"] - angle + 90) % 180 - 90) < 1


def test_tiny_and_thin_instances_fall_back_on_moments():
    instances = np.zeros((1, 16, 16), np.uint8)
    instances[0, 3, 4] = 1  # a pixel
    instances[0, 8, 2:12] = 2  # a line
    instances[0, 12:14, 5:7] = 3  # a 2 x 2 square: four contour points
    measured = statistics.measure(of_maps(instances, {(0, 1): 1, (0, 2): 1, (0, 3): 2}))
    assert measured[["x", "y"]].to_numpy().tolist() == [[4.5, 3.5], [7.0, 8.5], [6.0, 13.0]]
    assert measured["major_px"][1] == pytest.approx(4 * np.sqrt(100 / 12)) and measured["angle_deg"][1] == 0
    assert measured["major_px"][2] == pytest.approx(4 * np.sqrt(4 / 12))
    assert np.isfinite(measured[["major_px", "minor_px"]]).all(axis=None)


def test_columns_and_border_contact_follow_the_patches():
    patches = ellipse_patches(30)
    measured = statistics.measure(patches)
    assert list(measured) == statistics.STATISTICS_COLUMNS
    assert len(measured) == len(patches.table)
    assert (measured["touches_border"] == patches.table["touches_border"]).all()
    assert (measured["image"] == patches.index["image"].to_numpy()[measured["patch"]]).all()
    assert (measured["major_px"] >= measured["minor_px"]).all()


def test_counts_include_zeros_and_sum_to_the_table():
    patches = ellipse_patches(20)
    counts = statistics.counts(patches)
    assert len(counts) == 20 * 3
    assert (counts.groupby("patch")["count"].sum() == 0).any()
    table = patches.table.groupby(["patch", "class"]).size()
    for row in counts.itertuples():
        assert row.count == table.get((row.patch, row._3), 0)


def test_no_instance_gives_an_empty_table():
    patches = of_maps(np.zeros((2, 8, 8), np.uint8), {})
    assert len(statistics.measure(patches)) == 0 and list(statistics.measure(patches)) == statistics.STATISTICS_COLUMNS
    assert statistics.counts(patches)["count"].tolist() == [0, 0, 0, 0]
    table = statistics.summary(statistics.measure(patches), statistics.counts(patches), ("a", "b"), 8)
    assert table["instances"].sum() == 0 and table["major_px"].isna().all()


def test_touching_instances_merge_within_a_class_only():
    instances = np.zeros((2, 8, 8), np.uint8)
    instances[0, 0:3, 0:3] = 1
    instances[0, 3:5, 3:5] = 2  # diagonal contact, same class
    instances[0, 5:7, 3:5] = 3  # contact, other class
    instances[1, 0:2, 0:2] = 1
    instances[1, 5:7, 5:7] = 2  # apart
    patches = of_maps(instances, {(0, 1): 1, (0, 2): 1, (0, 3): 2, (1, 1): 1, (1, 2): 1})
    merged = statistics.merge_touching(patches)
    assert merged.table.groupby(["patch", "class"]).size().to_dict() == {(0, 1): 1, (0, 2): 1, (1, 1): 2}
    assert merged.table["area_px"].sum() == patches.table["area_px"].sum()
    assert (merged.label_maps() == patches.label_maps()).all()
    assert (patches.instances[0] == instances[0]).all()  # the input is left alone


def test_an_instance_cut_in_two_comes_apart():
    instances = np.zeros((1, 9, 9), np.uint8)
    instances[0, 4, :] = 1
    instances[0, :, 4] = 2
    merged = statistics.merge_touching(of_maps(instances, {(0, 1): 1, (0, 2): 2}))
    assert merged.table["class"].value_counts().to_dict() == {1: 2, 2: 1}


def test_summary_by_hand():
    instances = np.zeros((2, 32, 32), np.uint8)
    instances[0, 10:12, 5:15] = 1
    instances[0, 0:4, 20:24] = 2  # cut by the border
    instances[1, 20, 20] = 1
    patches = of_maps(instances, {(0, 1): 1, (0, 2): 1, (1, 1): 2})
    table = statistics.summary(statistics.measure(patches, "moments"), statistics.counts(patches), patches.classes, 32)
    first, second, every = table.to_dict("records")
    assert (first["instances"], second["instances"], every["instances"]) == (2, 1, 3)
    assert first["share"] == pytest.approx(2 / 3) and first["per_patch"] == 1 and first["cut_share"] == 0.5
    assert first["major_px"] == pytest.approx(4 * np.sqrt(100 / 12))
    assert first["major_nm"] == pytest.approx(first["major_px"] * 0.5)
    assert first["box_long_nm"] == pytest.approx(10 * 0.5) and second["box_long_nm"] == pytest.approx(0.5)


def test_weights_remove_the_bias_of_cut_instances():
    """Discs of 8 and 24 px on large maps, cut into windows of 64 px: only the weighted mean and share are right."""
    rng = np.random.default_rng(4)
    maps, labels = np.zeros((6, 512, 512), np.uint8), {}
    for patch in range(6):
        for instance in range(1, 121):
            code = 1 + instance % 2
            major = 8.0 if rng.random() < 0.5 else 24.0
            radius, window = ellipse_radius((512, 512), *rng.uniform(0, 512, 2), major, major, 0.0)
            free = radius <= 1
            if not maps[patch][window][free].any():
                maps[patch][window][free] = instance
                labels[patch, instance] = code
    whole = of_maps(maps, labels)
    tiles = maps.reshape(6, 8, 64, 8, 64).swapaxes(2, 3).reshape(-1, 64, 64)
    names = {(t, i): labels[t // 64, i] for t in range(len(tiles)) for i in np.unique(tiles[t]) if i}
    bias = statistics.border_bias(of_maps(tiles, names), whole).set_index("class")
    assert (bias["uncut"] < -0.06).all()  # pieces come out shorter, but large defects leave more of them
    assert (bias["weighted"].abs() < 0.05).all() and (bias["arcs"].abs() < 0.2).all()
    assert bias["weighted_share"].to_numpy() == pytest.approx(bias["micrographs_share"].to_numpy(), abs=0.05)
    assert bias["micrographs_share"].sum() == pytest.approx(1)


def test_arc_continues_a_cut_ellipse_beyond_the_border():
    patches = one_ellipse(2, 50, 40, 20, 30)
    cut, whole = (statistics.measure(patches, fit).iloc[0] for fit in ("contour", "arc"))
    assert whole["major_px"] + statistics.CONTOUR_PX == pytest.approx(40, rel=0.05)
    assert whole["x"] == pytest.approx(2, abs=1) and abs(whole["angle_deg"] - 30) < 4
    assert cut["major_px"] < 34


def test_summary_weighs_large_defects_that_are_seldom_uncut():
    """Boxes of 4 and 16 px in patches of 32 px lie uncut at 27 x 27 and 15 x 27 places; the thin ones are 2 px."""
    instances = np.zeros((1, 32, 32), np.uint8)
    instances[0, 4:6, 4:8] = 1
    instances[0, 20:22, 8:24] = 2
    measured = statistics.measure(of_maps(instances, {(0, 1): 1, (0, 2): 1}), "moments")
    table = statistics.summary(measured, statistics.counts(of_maps(instances, {(0, 1): 1, (0, 2): 1})), ("a", "b"), 32)
    major, minor = measured["major_px"].to_numpy(), measured["minor_px"].to_numpy()
    weight = 1 / ((31 - major) * (31 - minor))
    assert table["box_long_nm"][0] == pytest.approx((weight * [4, 16]).sum() / weight.sum() * 0.5)
    assert table["box_long_nm"][0] > 1.1 * 10 * 0.5
    assert table["aspect"][0] == pytest.approx((weight * major / minor).sum() / weight.sum())


def test_micrographs_without_a_defect_count_in_their_magnification():
    patches = ellipse_patches(8)  # micrographs 0.png and 1.png
    scales = np.where(patches.index["image"] == "0.png", 0.5, 0.88)
    none = patches.table["patch"] >= 4  # the second micrograph is empty
    patches = replace(patches, index=patches.index.assign(pixel_size_nm=scales), table=patches.table[~none])
    table = statistics.by_magnification(statistics.measure(patches), statistics.counts(patches), patches.classes, 64)
    rows = table[table["class"] == "all"].set_index("nm/px")
    assert rows["per_patch"][0.88] == 0 and rows["per_patch"][0.5] == len(patches.table) / 4
    # Of one pixel size, the empty micrograph halves the mean.
    one = replace(patches, index=patches.index.assign(pixel_size_nm=0.5))
    table = statistics.by_magnification(statistics.measure(one), statistics.counts(one), one.classes, 64)
    assert table["per_patch"].iloc[-1] == len(patches.table) / 8
