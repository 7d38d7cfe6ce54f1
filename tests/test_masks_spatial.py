"""Neighbours, crystal azimuths, border weights."""

import numpy as np
import pandas as pd
import pytest

from companion.masks import spatial, statistics


def table(n=0, **columns):
    base = {"image": "a.png", "patch": 0, "class": 1, "x": 0.0, "y": 0.0, "major_px": 10.0, "minor_px": 5.0,
            "angle_deg": 0.0, "area_px": 39, "touches_border": False, "pixel_size_nm": 1.0}  # fmt: skip
    n = n or max(len(value) for value in columns.values())
    return pd.DataFrame({name: columns.get(name, [value] * n) for name, value in base.items()})


def test_pairs_stay_within_patches():
    i, j = spatial.pairs_within(np.array([0, 1, 0, 0, 2]))
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 3)]
    assert len(spatial.pairs_within(np.array([], dtype=int))[0]) == 0


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
            rows.append(
                table(angle_deg=angle).assign(image=f"{k}.png", minor_px=(2.5, 5.8)[code - 1], **{"class": code})
            )
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
