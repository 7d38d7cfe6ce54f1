"""Quality measures on images whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from scipy.ndimage import gaussian_filter

from companion.micrographs.patches import instance_table
from companion.diffusion import edit, measures, noise, quality
from companion.errors import CompanionError
from companion.geometry import symmetry


def test_mask_contrast_by_hand():
    patches = ellipse_patches(1)
    instances = np.zeros((1, 64, 64), dtype=np.uint8)
    instances[0, 20:30, 20:30] = 1
    instances[0, 30:40, 20:30] = 2  # touches the first: not part of its ring
    images = np.full((1, 64, 64), 100, dtype=np.uint8)
    images[instances == 1], images[instances == 2] = 80, 125
    table = instance_table(instances, {(0, 1): 1, (0, 2): 3})
    found = measures.mask_contrast(replace(patches, images=images, instances=instances, table=table))
    assert found["contrast"].tolist() == pytest.approx([0.2, -0.25])
    assert found["class"].tolist() == [1, 3]


def test_mask_contrast_without_defects_or_ring():
    patches = ellipse_patches(1)
    empty = replace(patches, instances=np.zeros_like(patches.instances), table=patches.table.iloc[:0])
    assert measures.mask_contrast(empty).empty
    full = np.ones_like(patches.instances)
    assert measures.mask_contrast(replace(patches, instances=full, table=instance_table(full, {(0, 1): 1}))).empty


def test_power_spectrum_finds_a_wave_and_white_noise_is_flat():
    size = 64
    x = np.arange(size)
    wave = np.clip(128 + 50 * np.sin(2 * np.pi * 8 * x / size), 0, 255)[None, None, :].repeat(size, 1).astype(np.uint8)
    frequency, power = measures.power_spectra(wave)
    assert frequency[power[0].argmax()] == pytest.approx(8 / size)
    noise = np.random.default_rng(0).normal(128, 10, (20, size, size)).round().astype(np.uint8)
    mean = measures.power_spectra(noise)[1].mean(axis=0)[3:]
    assert mean == pytest.approx(np.full_like(mean, 100), rel=0.15)  # the variance, at every frequency


def test_kernel_distance_is_unbiased_and_grows():
    rng = np.random.default_rng(0)
    same = [measures.kernel_distance(rng.normal(size=(30, 5)), rng.normal(size=(20, 5))) for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
    a = rng.normal(size=(30, 5))
    apart = [measures.kernel_distance(a, rng.normal(shift, 1, size=(30, 5))) for shift in (0, 1, 2)]
    assert apart == sorted(apart)


def test_kernel_distance_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    # k(x, y) = (xy + 1)^3: within a k(0,1) = 1, within b k(0,2) = 1, between (1 + 1 + 1 + 27) / 4
    assert measures.kernel_distance(a, b) == pytest.approx(1 + 1 - 2 * 7.5)


def test_copies_are_found_in_every_symmetry():
    train = ellipse_patches(8)
    copies = np.stack([symmetry(train.images[5], 3), train.images[2]])
    noisy = np.clip(copies + np.random.default_rng(0).normal(0, 3, copies.shape) + 20, 0, 255).astype(np.uint8)
    found = measures.nearest_training(noisy, train)
    assert found["nearest"].tolist() == [5, 2] and found["symmetry"].tolist() == [3, 0]
    assert found["distance"].max() < 3
    turned = measures.turned(train, found["nearest"], found["symmetry"])
    assert np.array_equal(turned, copies)


def _judge(generated, train, test, **more):
    rng = np.random.default_rng(0)

    def encode(images):
        return images.reshape(len(images), -1)[:, ::97].astype(float)

    return quality.judge(generated, train, test, encode, rng, resamples=50, **more).set_index("measure")


def test_good_images_pass_and_wrong_masks_do_not():
    train, test = ellipse_patches(24, seed=1), ellipse_patches(24, seed=2)
    good = _judge(ellipse_patches(24, seed=3), train, test)
    assert good.loc["darker inside its mask", "value"] == 1
    assert (good["low"] <= good["value"] + 1e-9).all()
    other = ellipse_patches(24, seed=4)
    mixed = _judge(replace(other, images=ellipse_patches(24, seed=5).images), train, test)
    assert mixed.loc["darker inside its mask", "value"] < 0.8
    smooth = replace(other, images=(other.images // 4 + 120).astype(np.uint8))
    blurred = _judge(smooth, train, test)
    name = "power spectrum, distance to held-out"
    assert blurred.loc[name, "value"] > 5 * good.loc[name, "value"]


def test_one_wrong_frequency_shows_in_the_largest_distance_alone():
    flat = np.full(64, 100.0)
    peaked = flat.copy()
    peaked[40] *= 10**0.5
    assert quality.largest_spectral_distance(peaked, flat) == pytest.approx(0.5)
    assert quality.spectral_distance(peaked, flat) == pytest.approx(0.5 / 64)
    train, test = ellipse_patches(24, seed=1), ellipse_patches(24, seed=2)
    wave = 12 * np.sin(2 * np.pi * 0.3 * np.arange(64))
    ringing = np.clip(test.images + wave, 0, 255).astype(np.uint8)
    table = _judge(replace(test, images=ringing), train, test, features_of="grey levels of some pixels")
    mean, most = (table.loc[f"power spectrum, {name}"] for name in (
        "distance to held-out", "largest distance at any frequency"))  # fmt: skip
    assert most["value"] > 0.3 > mean["value"] and most["yardstick"] > mean["yardstick"]
    assert "KID, grey levels of some pixels" in set(table["unit"])


def test_copied_training_images_show():
    train, test = ellipse_patches(24, seed=1), ellipse_patches(24, seed=2)
    table = _judge(train, train, test)
    row = table.loc["distance to the nearest training patch"]
    assert row["value"] == 0 and row["yardstick"] > 1


def test_other_sets_are_measured_as_generated_images_are():
    train, test = ellipse_patches(24, seed=1), ellipse_patches(24, seed=2)
    own = ellipse_patches(24, seed=3)
    table = _judge(own, train, test, others={"same": own, "training": train})
    paired = table[table["unit"] != "AUC"]  # the classifier draws its folds
    assert np.allclose(paired["same"], paired["value"])
    distances = paired[paired["yardstick_of"].str.contains("against")]
    assert len(distances) == 7 and np.allclose(distances["training"], distances["yardstick"])


def test_profile_across_an_outline_by_hand():
    instances = np.zeros((1, 64, 64), dtype=np.uint8)
    instances[0, 20:40, 20:40] = 1
    images = np.full((1, 64, 64), 100, dtype=np.uint8)
    images[instances == 1] = 80
    images[0, 30, 40] = 90  # the first pixel outside, of 20 on each of four sides
    table = instance_table(instances, {(0, 1): 2})
    patches = replace(ellipse_patches(1), images=images, instances=instances, table=table)
    total, count = measures.contrast_profiles(patches)
    assert total.shape == (1, 3, 2 * measures.PROFILE_PX) and count[0, [0, 2]].sum() == 0
    middle = measures.PROFILE_PX
    assert count[0, 1, middle] == 80 and count[0, 1, middle - 1] == 4 * 20 - 4
    profile = total[0, 1] / count[0, 1]
    assert profile[:middle] == pytest.approx(0.8) and profile[middle + 1 :] == pytest.approx(1)
    assert profile[middle] == pytest.approx((79 + 0.9) / 80)


def test_autocorrelation_of_white_noise_and_of_scan_lines():
    rng = np.random.default_rng(0)
    patches = replace(ellipse_patches(1), instances=np.zeros((1, 96, 96), dtype=np.uint8))
    white = rng.normal(128, 10, (1, 96, 96)).astype(np.uint8)
    lines = (128 + 10 * rng.normal(size=(1, 96, 1)) + np.zeros((1, 96, 96))).astype(np.uint8)
    found = measures.autocorrelations(replace(patches, images=white))[0]
    assert np.abs(found).max() < 0.06
    along = measures.autocorrelations(replace(patches, images=lines))[0, : measures.LAGS]
    assert (along > 0.95).all()
    covered = replace(patches, images=white, instances=np.ones_like(patches.instances))
    assert np.isnan(measures.autocorrelations(covered)).all()


def test_copies_are_told_in_pixels_and_latents():
    train, test = ellipse_patches(12, seed=1), ellipse_patches(12, seed=2)
    mixed = ellipse_patches(6, seed=3)
    mixed = replace(mixed, images=np.concatenate([train.images[[4]], mixed.images[1:]]))
    table = quality.copies(mixed, train, test, lambda images: images.astype(float) / 2, most=3)
    assert table.loc[0, ["patch", "nearest", "copy", "latent_copy"]].tolist() == [0, 4, True, True]
    assert table["distance"].is_monotonic_increasing and table["latent_distance"].notna().sum() == 3
    assert not table["copy"].iloc[3:].any()


def test_judging_images_without_defects_says_undefined():
    train, test = ellipse_patches(8, seed=1), ellipse_patches(8, seed=2)
    empty = replace(test, instances=np.zeros_like(test.instances), table=test.table.iloc[:0])
    table = _judge(empty, train, test)
    assert np.isnan(table.loc["darker inside its mask", ["value", "low", "high"]].astype(float)).all()
    with pytest.raises(CompanionError, match="patches with images"):
        measures.mask_contrast(replace(train, images=None))


def test_editing_moves_and_removes_one_defect():
    instances = np.zeros((20, 20), dtype=np.uint8)
    instances[4:6, 2:8], instances[10:14, 10:14] = 1, 2
    labels = np.where(instances == 1, 3, instances).astype(np.uint8)
    gone = edit.remove(instances, labels, 1)
    assert set(np.unique(gone)) == {0, 2}
    moved = edit.move(instances, labels, 1, dx=5, dy=-2)
    assert (moved[2:4, 7:13] == 3).all() and (moved == 3).sum() == 12 and (moved == 2).sum() == 16
    turned = edit.move(instances, labels, 1, 0, 0, turn_deg=90)
    rows, columns = np.nonzero(turned == 3)
    assert np.ptp(rows) == 5 and np.ptp(columns) == 1  # a bar along x now stands along y
    assert np.array_equal(edit.move(instances, labels, 0, 3, 3), labels)
    assert np.array_equal(edit.remove(instances, labels, 9), labels)


def test_turning_is_counter_clockwise():
    instances = np.zeros((21, 21), dtype=np.uint8)
    instances[10, 4:17] = 1
    turned = edit.move(instances, instances, 1, 0, 0, turn_deg=30)
    rows, columns = np.nonzero(turned)
    assert np.polyfit(columns, -rows, 1)[0] == pytest.approx(np.tan(np.deg2rad(30)), rel=0.15)


def test_histograms_are_shares():
    images = np.zeros((2, 4, 4), dtype=np.uint8)
    images[1, 0] = 255
    shares = measures.histograms(images)
    assert shares[0, 0] == 1 and shares[1, 255] == 0.25 and shares.sum() == pytest.approx(2)


def test_classifier_tells_only_what_differs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(80, 6)), rng.normal(size=(60, 6))
    groups = np.arange(80), np.arange(60) // 3
    same = measures.told_apart(a, b, *groups, rng)
    assert 0.3 < same < 0.7
    shifted = b + np.array([2, 0, 0, 0, 0, 0])
    assert measures.told_apart(a, shifted, *groups, rng) > 0.9
    assert np.isnan(measures.told_apart(a, b, np.zeros(80), np.zeros(60), rng))  # one group each: nothing to judge on


def test_classifier_is_not_fooled_by_the_micrograph():
    # Two sets whose patches differ by micrograph only: a classifier that had seen the micrograph would win.
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(8), 10)
    offsets = rng.normal(size=(16, 30)) * 3
    a = rng.normal(size=(80, 30)) + offsets[groups]
    b = rng.normal(size=(80, 30)) + offsets[8 + groups]
    assert measures.told_apart(a, b, groups, groups, rng) < 0.85
    assert measures.told_apart(a, b, np.arange(80), np.arange(80), rng) > 0.95


def test_interval_of_an_auc():
    low, high = measures.auc_interval(0.5, 50, 50, 0.95)
    assert low == pytest.approx(1 - high) and high - low == pytest.approx(2 * 1.96 * 0.0580, rel=0.02)
    assert measures.auc_interval(1.0, 5, 5, 0.95) == (1.0, 1.0)


def _background(images, micrographs=None):
    names = micrographs or ["a"] * len(images)
    patches = ellipse_patches(1)
    return replace(
        patches, images=images, instances=np.zeros(images.shape, np.uint8), index=pd.DataFrame({"image": names})
    )


def test_noise_model_finds_variance_and_correlation():
    rng = np.random.default_rng(0)
    size = 64
    signal = np.linspace(60, 200, size)[None, None, :].repeat(40, 0).repeat(size, 1)
    white = rng.normal(size=signal.shape)
    lines = rng.normal(size=(40, size, 1)) * 0.5  # scan lines: one gain per row
    images = np.clip(np.rint(signal + np.sqrt(4 + 0.25 * signal) * (white + lines)), 0, 255).astype(np.uint8)
    model = noise.measure(_background(images), signal)
    total = 1 + 0.25  # variance of pixel noise and lines together
    assert model.line[0] == pytest.approx([4 * total, 0.25 * total], rel=0.25)
    drawn = np.stack([model.add(signal[0], np.random.default_rng(k)) for k in range(40)]) - signal[0]
    scaled = drawn / np.sqrt((4 + 0.25 * signal[0]) * total)
    assert scaled.std() == pytest.approx(1, rel=0.05)
    rows = np.corrcoef(scaled[:, :, 0].ravel(), scaled[:, :, 30].ravel())[0, 1]
    columns = np.corrcoef(scaled[:, 0].ravel(), scaled[:, 30].ravel())[0, 1]
    assert rows == pytest.approx(0.25 / total, abs=0.06) and abs(columns) < 0.06


def test_noise_closes_the_gap_in_the_power_spectrum():
    rng = np.random.default_rng(0)
    train, test = (
        np.clip(np.rint(gaussian_filter(rng.normal(150, 30, (30, 64, 64)), (0, 0.6, 0))), 0, 255) for _ in "ab"
    )
    smooth, held = (gaussian_filter(images, (0, 3, 3)) for images in (train, test))
    model = noise.measure(_background(train.astype(np.uint8), list("abcdef") * 5), smooth)
    noisy = np.stack([model.add(image, np.random.default_rng(k)) for k, image in enumerate(held)])
    real, without, put_back = (
        np.log10(measures.power_spectra(np.clip(np.rint(x), 0, 255).astype(np.uint8))[1].mean(axis=0))[2:]
        for x in (test, held, noisy)
    )
    assert np.abs(without - real).mean() > 1
    assert np.abs(put_back - real).mean() < 0.1  # the aim: within 0.1 decade up to Nyquist


def test_noise_of_an_image_is_its_own_whatever_the_batch_and_the_threads():
    rng = np.random.default_rng(0)
    images = np.clip(rng.normal(140, 20, (6, 24, 24)), 0, 255).astype(np.uint8)
    model = noise.measure(_background(images, list("aabbcc")), gaussian_filter(images, (0, 2, 2)))
    signals = rng.uniform(60, 200, (5, 24, 24)).astype(np.float32)

    def rngs(numbers):
        return [np.random.default_rng(k) for k in numbers]

    whole = model.add_to_all(signals, rngs(range(5)), 2)
    assert whole.dtype == np.float32 and whole.shape == signals.shape
    assert np.array_equal(model.add_to_all(signals[[3, 1]], rngs([3, 1]), 1), whole[[3, 1]])
    assert np.array_equal(model.add(signals[4], *rngs([4])), whole[4])
    # The same sum in double precision, from the same white noise.
    again = np.random.default_rng(2)
    micrograph = int(again.integers(3))
    white = np.fft.rfft2(again.standard_normal((24, 24), dtype=np.float32).astype(float))
    shaped = np.fft.irfft2(white * np.sqrt(model.spectrum[micrograph].astype(float)), s=(24, 24))
    assert whole[2] == pytest.approx(signals[2] + shaped * model.standard_deviation(micrograph, signals[2]), abs=1e-3)


def test_noise_of_one_grey_level_and_messages():
    flat = np.full((3, 16, 16), 100.0)
    images = np.clip(flat + np.random.default_rng(0).normal(0, 5, flat.shape), 0, 255).astype(np.uint8)
    model = noise.measure(_background(images, ["a", "b", "b"]), flat)
    assert model.line[:, 0] + 100 * model.line[:, 1] == pytest.approx([25, 25], rel=0.3)
    with pytest.raises(CompanionError, match="measured on patches of 16 px, the image has 32 px"):
        model.add(np.zeros((32, 32)), np.random.default_rng(0))
    with pytest.raises(CompanionError, match="there are none"):
        noise.measure(_background(images[:0]), flat[:0])
    full = replace(_background(images), instances=np.ones(images.shape, dtype=np.uint8))
    with pytest.raises(CompanionError, match="no background in the training patches of a"):
        noise.measure(full, flat)
