"""Quality measures on images whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ellipse_patches, patches_of

from companion.diffusion import measures, quality
from companion.geometry import symmetry

pytestmark = pytest.mark.usefixtures("two_deals")
TRAIN, TEST = ellipse_patches(24, seed=1), ellipse_patches(24, seed=2)


def encode(images):
    return images.reshape(len(images), -1)[:, ::97].astype(float)


def judge(generated, **more):
    rng = np.random.default_rng(0)
    return quality.judge(generated, TRAIN, TEST, encode, rng, resamples=50, **more).set_index("measure")


def kid(a, b):
    kernel = quality.KERNELS["kid"]
    return quality.mmd(kernel(a, a), kernel(b, b), kernel(a, b), np.ones(len(a)), np.ones(len(b)))


def squares(*placed):
    """One patch of grey 100 with (rows, columns, grey level, class) rectangles."""
    instances, images = np.zeros((1, 64, 64), dtype=np.uint8), np.full((1, 64, 64), 100, dtype=np.uint8)
    for number, (rows, columns, grey, _) in enumerate(placed, start=1):
        instances[0, rows, columns], images[0, rows, columns] = number, grey
    return patches_of(instances, {(0, number): code for number, (*_, code) in enumerate(placed, start=1)}, images)


def test_mask_contrast_by_hand_and_without_defects_or_ring():
    # The second touches the first: it is not part of its ring.
    touching = squares((slice(20, 30), slice(20, 30), 80, 1), (slice(30, 40), slice(20, 30), 125, 3))
    found, *_ = measures.across_outlines(touching)
    assert found["contrast"].tolist() == pytest.approx([0.2, -0.25])
    assert found["class"].tolist() == [1, 3]
    for some in (squares(), squares((slice(64), slice(64), 100, 1))):
        contrast, _, count = measures.across_outlines(some)
        assert contrast.empty and count.sum() == 0


def test_profile_across_an_outline_by_hand():
    patches = squares((slice(20, 40), slice(20, 40), 80, 2))
    patches.images[0, 30, 40] = 90  # the first pixel outside, of 20 on each of four sides
    _, total, count = measures.across_outlines(patches)
    assert total.shape == (1, 3, 2 * measures.PROFILE_PX) and count[0, [0, 2]].sum() == 0
    middle = measures.PROFILE_PX
    assert count[0, 1, middle] == 80 and count[0, 1, middle - 1] == 4 * 20 - 4
    profile = total[0, 1] / count[0, 1]
    assert profile[:middle] == pytest.approx(0.8) and profile[middle + 1 :] == pytest.approx(1)
    assert profile[middle] == pytest.approx((79 + 0.9) / 80)


def test_power_spectrum_finds_a_wave_and_white_noise_is_flat():
    size = 64
    wave = np.clip(128 + 50 * np.sin(2 * np.pi * 8 * np.arange(size) / size), 0, 255)
    frequency, power = measures.power_spectra(wave[None, None, :].repeat(size, 1).astype(np.uint8))
    assert frequency[power[0].argmax()] == pytest.approx(8 / size)
    noise = np.random.default_rng(0).normal(128, 10, (20, size, size)).round().astype(np.uint8)
    mean = measures.power_spectra(noise)[1].mean(axis=0)[3:]
    assert mean == pytest.approx(np.full_like(mean, 100), rel=0.15)  # the variance, at every frequency


def test_kid_by_hand_unbiased_and_growing():
    a, b = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    # k(x, y) = (xy + 1)^3: within a k(0,1) = 1, within b k(0,2) = 1, between (1 + 1 + 1 + 27) / 4
    assert kid(a, b) == pytest.approx(1 + 1 - 2 * 7.5)
    rng = np.random.default_rng(0)
    same = [kid(rng.normal(size=(30, 5)), rng.normal(size=(20, 5))) for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
    a = rng.normal(size=(30, 5))
    apart = [kid(a, rng.normal(shift, 1, size=(30, 5))) for shift in (0, 1, 2)]
    assert apart == sorted(apart)
    # A patch that is drawn twice counts as two, without the pair of it and itself.
    kernel, w = quality.KERNELS["cmmd"], np.array([2.0, 0.0, 1.0])
    x, y = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    k = kernel(x, x)
    within = 2 * (2 * k[0, 2]) / (3**2 - 5)
    expected = within + (kernel(y, y).sum() - 4) / 12 - 2 * kernel(x[[0, 0, 2]], y).mean()
    assert quality.mmd(k, kernel(y, y), kernel(x, y), w, np.ones(4)) == pytest.approx(expected)


def test_copies_are_found_in_every_symmetry_as_by_a_slow_loop():
    train = ellipse_patches(8)
    copied = np.stack([symmetry(train.images[5], 3), train.images[2]])
    noisy = np.clip(copied + np.random.default_rng(0).normal(0, 3, copied.shape) + 20, 0, 255).astype(np.uint8)
    found = measures.nearest_training(noisy, train)
    assert found["nearest"].tolist() == [5, 2] and found["symmetry"].tolist() == [3, 0]

    def small(image):
        small = image.reshape(32, 2, 32, 2).mean(axis=(1, 3))
        return small - small.mean()

    for image, distance in zip(noisy, found["distance"], strict=True):
        loop = [np.sqrt(np.mean((small(image) - small(symmetry(k, c))) ** 2)) for k in train.images for c in range(4)]
        assert distance == pytest.approx(min(loop), abs=1e-3)


def test_good_images_pass_and_wrong_masks_do_not():
    good = judge(ellipse_patches(24, seed=3))
    assert good.loc["darker inside its mask", "value"] == 1
    tested = good.drop("c2st_auc")
    assert (tested["low"] <= tested["value"] + 1e-9).all() and (tested["value"] <= tested["high"] + 0.1).all()
    other = ellipse_patches(24, seed=4)
    mixed = judge(replace(other, images=ellipse_patches(24, seed=5).images))
    assert mixed.loc["darker inside its mask", "value"] < 0.8
    assert mixed.loc["profile across defects", "value"] > 2 * good.loc["profile across defects", "value"]
    smooth = replace(other, images=(other.images // 4 + 120).astype(np.uint8))
    judged = judge(smooth, others={"same": smooth, "training": TRAIN})
    for name in ("power spectrum", "grey levels", "kid", "cmmd", "c2st_auc"):
        assert judged.loc[name, "value"] > good.loc[name, "value"] + 0.1, name
    assert judged.loc["memorisation", ["training", "yardstick"]].tolist() == [1, 0]
    nearest = judged.loc["distance to the nearest training patch"]
    assert nearest["training"] == pytest.approx(0, abs=1e-3) and nearest["yardstick"] > 1
    judged = judged.drop("c2st_auc")  # which draws its folds
    assert np.allclose(judged["same"], judged["value"])
    distances = judged[judged["yardstick_of"].str.contains("against")]
    assert len(distances) == 6 and np.allclose(distances["training"], distances["yardstick"])


def test_one_wrong_frequency_shows_in_the_worst_alone():
    wave = 12 * np.sin(2 * np.pi * 0.3 * np.arange(64))
    table = judge(replace(TEST, images=np.clip(TEST.images + wave, 0, 255).astype(np.uint8)))
    assert table.loc["power spectrum, worst frequency", "value"] > 0.3 > table.loc["power spectrum", "value"]


def test_images_without_defects_are_undefined():
    empty = replace(TEST, instances=np.zeros_like(TEST.instances), table=TEST.table.iloc[:0])
    table = judge(empty)
    assert np.isnan(table.loc["darker inside its mask", ["value", "low", "high"]].astype(float)).all()
