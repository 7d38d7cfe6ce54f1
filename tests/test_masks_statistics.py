"""Ellipses, counts and touching instances; neighbours, crystal azimuths, border weights."""

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse, ellipse_patches, patches_of
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.masks import spatial, statistics
from companion.micrographs.patches import Patches


def of_maps(instances: np.ndarray, labels: dict, **index) -> Patches:
    return patches_of(instances, labels, classes=("a", "b"), **{"pixel_size_nm": 0.5, **index})


def one_ellipse(*shape) -> Patches:
    return of_maps(ellipse((96, 96), *shape)[None].astype(np.uint8), {(0, 1): 1})


@given(x=st.floats(40, 56), y=st.floats(40, 56), major=st.floats(16, 60), aspect=st.floats(1.3, 3),
       angle=st.floats(0, 179.99))  # fmt: skip
@settings(max_examples=60, deadline=None)
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
    for fit, lost, close in (("moments", 0.0, 0.05), ("contour", 0.9, 0.2)):
        mean = pd.concat([statistics.measure(one_ellipse(*row), fit) for row in rows])[["major_px", "minor_px"]].mean()
        assert mean.tolist() == pytest.approx([24 - lost, 14 - lost], abs=close)


def test_tiny_and_thin_instances_fall_back_on_moments():
    instances = np.zeros((1, 16, 16), np.uint8)
    instances[0, 3, 4] = 1  # a pixel
    instances[0, 8, 2:12] = 2  # a line
    instances[0, 12:14, 5:7] = 3  # a 2 x 2 square: four contour points
    measured = statistics.measure(of_maps(instances, {(0, 1): 1, (0, 2): 1, (0, 3): 2}))
    assert measured[["x", "y"]].to_numpy().tolist() == [[4.5, 3.5], [7.0, 8.5], [6.0, 13.0]]
    assert measured["major_px"][1] == pytest.approx(4 * np.sqrt(100 / 12)) and measured["angle_deg"][1] == 0
    assert measured["major_px"][2] == pytest.approx(4 * np.sqrt(4 / 12))


def test_tables_follow_the_patches():
    patches = ellipse_patches(30)
    measured, counts = statistics.measure(patches), statistics.counts(patches)
    assert list(measured) == statistics.STATISTICS_COLUMNS
    assert (measured["touches_border"] == patches.table["touches_border"]).all()
    assert (measured["image"] == patches.index["image"].to_numpy()[measured["patch"]]).all()
    assert (measured["major_px"] >= measured["minor_px"]).all()
    assert len(counts) == 30 * 3 and (counts.groupby("patch")["count"].sum() == 0).any()
    table = patches.table.groupby(["patch", "class"]).size()
    assert counts.set_index(["patch", "class"])["count"].loc[lambda n: n > 0].to_dict() == table.to_dict()


def test_no_instance_gives_an_empty_table():
    patches = of_maps(np.zeros((2, 8, 8), np.uint8), {})
    assert len(statistics.measure(patches)) == 0 and list(statistics.measure(patches)) == statistics.STATISTICS_COLUMNS
    assert statistics.counts(patches)["count"].tolist() == [0, 0, 0, 0]
    table = statistics.summary(statistics.measure(patches), statistics.counts(patches), ("a", "b"), 8)
    assert table["instances"].tolist() == [0, 0] and table["major_nm"].isna().all()
    assert statistics.merge_touching(patches) is patches


def test_touching_instances_merge_within_a_class_and_one_cut_in_two_comes_apart():
    instances = np.zeros((3, 8, 8), np.uint8)
    instances[0, 0:3, 0:3] = 1
    instances[0, 3:5, 3:5] = 2  # diagonal contact, same class
    instances[0, 5:7, 3:5] = 3  # contact, other class
    instances[1, 0:2, 0:2] = 1
    instances[1, 5:7, 5:7] = 2  # apart
    instances[2, 4, :] = 1
    instances[2, :, 4] = 2  # on top of it
    labels = {(0, 1): 1, (0, 2): 1, (0, 3): 2, (1, 1): 1, (1, 2): 1, (2, 1): 1, (2, 2): 2}
    patches = of_maps(instances, labels)
    label_maps = patches.label_maps()
    merged = statistics.merge_touching(patches)
    found = merged.table.groupby(["patch", "class"]).size().to_dict()
    assert found == dict(zip([(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)], [1, 1, 2, 2, 1], strict=True))
    assert merged.table["area_px"].sum() == patches.table["area_px"].sum()
    assert (merged.label_maps() == label_maps).all()


def test_summary_by_hand():
    """Uncut boxes of 4 x 2 and 16 x 2 px in patches of 32 px: the long one weighs more, since it is more often cut."""
    instances = np.zeros((2, 32, 32), np.uint8)
    instances[0, 4:6, 4:8], instances[0, 20:22, 8:24], instances[1, 20, 20] = 1, 2, 1
    instances[0, 0:4, 20:24] = 3  # cut by the border
    patches = of_maps(instances, {(0, 1): 1, (0, 2): 1, (0, 3): 1, (1, 1): 2}, pixel_size_nm=[0.5, 0.88])
    measured = statistics.measure(patches, "moments")
    table = statistics.summary(measured, statistics.counts(patches), patches.classes, 32)
    assert table[["nm/px", "class"]].to_numpy().tolist() == [[0.5, "a"], [0.5, "b"], [0.88, "a"], [0.88, "b"]]
    assert table["instances"].tolist() == table["per_patch"].tolist() == [3, 0, 0, 1]
    assert table["share"].tolist() == [1, 0, 0, 1] and np.isnan(table["aspect"][1])
    major, minor = measured["major_px"].to_numpy()[:2], measured["minor_px"].to_numpy()[:2]
    weight = 1 / ((31 - major) * (31 - minor))
    assert weight[1] > weight[0] and table["cut_share"][0] == pytest.approx(1 / 3)
    assert table["box_long_nm"][0] == pytest.approx((weight * [4, 16]).sum() / weight.sum() * 0.5)
    assert table["aspect"][0] == pytest.approx((weight * major / minor).sum() / weight.sum())
    assert table["box_long_nm"][3] == pytest.approx(0.88)


def test_share_of_counts_by_hand_and_of_nothing():
    holds, rng = np.array([0, 0, 3, 1])[:, None] == np.arange(4), np.random.default_rng(0)
    curve = statistics.share_curve(holds, np.ones((4, 1)), ["a", "a", "b", "b"], np.arange(4), rng)
    assert curve["share"].tolist() == [0.5, 0.25, 0, 0.25]
    assert curve["low"].tolist() == [0, 0, 0, 0] and curve["high"].tolist() == [1, 0.5, 0, 0.5]  # all a, or all b
    nothing = statistics.share_curve(np.ones((3, 2)), np.zeros((3, 2)), [1, 2, 3], np.arange(2), rng)
    assert nothing[["share", "low", "high"]].isna().all(axis=None)


def table(n=0, **columns):
    base = {"image": "a.png", "patch": 0, "class": 1, "x": 0.0, "y": 0.0, "major_px": 10.0, "minor_px": 5.0,
            "angle_deg": 0.0, "area_px": 39, "touches_border": False, "pixel_size_nm": 1.0}  # fmt: skip
    n = n or max(len(value) for value in columns.values())
    return pd.DataFrame({name: columns.get(name, [value] * n) for name, value in base.items()})


def test_nearest_neighbours_by_hand():
    some = table(x=[10.0, 13.0, 50.0, 5.0], y=[10.0, 14.0, 50.0, 9.0], patch=[0, 0, 0, 1])
    found = spatial.nearest_neighbours(some, 64)
    assert found["distance_px"].tolist() == pytest.approx([5, 5, np.hypot(37, 36), np.inf])
    assert found["border_px"].tolist() == [10, 13, 14, 5]
    assert len(spatial.nearest_neighbours(table(1).iloc[:0], 64)) == 0


def test_the_reduced_sample_estimator_of_a_poisson_pattern_is_exponential():
    """Of a pattern with intensity q, G(r) = 1 - exp(-q pi r^2); the share among those with d <= b is far above it."""
    rng, density = np.random.default_rng(3), 8e-4
    number = rng.poisson(density * 100**2, 3000)
    places = rng.uniform(0, 100, (number.sum(), 2))
    pattern = table(x=places[:, 0], y=places[:, 1], patch=np.repeat(np.arange(3000), number))
    distance, border = spatial.nearest_neighbours(pattern, 100).to_numpy().T[:, :, None]
    r = np.array([5.0, 10.0, 15.0, 20.0, 30.0, 40.0])
    exact = 1 - np.exp(-density * np.pi * r**2)
    share = statistics.share_curve((border >= r) & (distance <= r), border >= r, pattern["patch"], r, rng)["share"]
    assert share.to_numpy() == pytest.approx(exact, abs=0.02)
    assert (distance[distance <= border] <= 15).mean() > exact[2] + 0.15


def test_weights_undo_the_loss_of_large_instances():
    """Squares of 10 and 50 px, equally many, dropped on the plane; windows of 100 px keep the uncut ones."""
    rng = np.random.default_rng(1)
    width = np.repeat([10.0, 50.0], 20_000)
    low = rng.uniform(-60, 100, (len(width), 2))
    inside = ((low >= 1) & (low + width[:, None] <= 99)).all(axis=1)
    seen = table(major_px=width[inside], minor_px=width[inside])
    weights = spatial.inclusion_weights(seen, 100)
    large = seen["major_px"].to_numpy() == 50
    assert large.mean() < 0.35  # left alone, large ones are too few
    assert weights[large].sum() / weights.sum() == pytest.approx(0.5, abs=0.02)
    assert weights.mean() == pytest.approx(1)
    assert spatial.inclusion_weights(table(touches_border=[True]), 100).tolist() == [0.0]


def test_crystal_azimuth_is_found_up_to_the_fold():
    rng = np.random.default_rng(2)
    rows, azimuths = [], rng.uniform(0, 90, 12)
    for k, azimuth in enumerate(azimuths):
        for code, offset in ((1, 0), (2, 45)):
            angle = (azimuth + offset + 90 * rng.integers(2, size=15) + rng.normal(0, 4, 15)) % 180
            minor_px = (2.5, 5.8)[code - 1]
            rows.append(table(angle_deg=angle).assign(image=f"{k}.png", minor_px=minor_px, **{"class": code}))
        noise = table(angle_deg=rng.uniform(0, 180, 15))
        rows.append(noise.assign(image=f"{k}.png", minor_px=9.5, **{"class": 3}))
    crystal = spatial.find_crystals(pd.concat(rows, ignore_index=True), 4)
    found = crystal["azimuth_deg"].reindex([f"{k}.png" for k in range(12)]).to_numpy()
    error = (found - azimuths + 45) % 90 - 45
    error = (error - np.median(error) + 45) % 90 - 45  # the common zero is arbitrary
    assert np.abs(error).max() < 4
    assert (crystal["resultant"] > 0.7).all()
    assert len(spatial.find_crystals(table(1).iloc[:0], 4)) == 0
    assert spatial.find_crystals(table(minor_px=[10.0]), 4).to_numpy().tolist() == [[0, 0]]  # round: no direction


def test_coherence_of_parallel_crossed_and_random_directions():
    assert spatial.coherence(table(angle_deg=[10.0, 10.0, 100.0]), 4) == pytest.approx(1)
    assert spatial.coherence(table(angle_deg=[10.0, 55.0]), 4) == pytest.approx(-1)
    assert spatial.coherence(table(angle_deg=[0.0, 90.0]), 2) == pytest.approx(-1)
    angles = np.random.default_rng(0).uniform(0, 180, 800)
    assert abs(spatial.coherence(table(angle_deg=angles, patch=np.repeat(np.arange(200), 4)), 4)) < 0.1
    assert np.isnan(spatial.coherence(table(angle_deg=[10.0, 10.0], patch=[0, 1]), 4))
    assert np.isnan(spatial.coherence(table(1).iloc[:0], 4))
