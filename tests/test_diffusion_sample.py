"""From noise and a mask to an image: reproducibility, resuming, guidance, measured noise, edited masks, messages."""

import copy
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import ellipse_patches, patches_of
from scipy.ndimage import gaussian_filter

from companion.config import diffusion as settings_of
from companion.device import Device
from companion.diffusion import noise, quality
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.autoencoder import configuration as autoencoder_configuration
from companion.diffusion.denoiser import Denoiser, configuration, noise_process, outlined, sampler
from companion.diffusion.measures import power_spectra
from companion.diffusion.sample import LatentDiffusion, noise_of, put_back
from companion.errors import CompanionError
from companion.seeds import Seeds

SAMPLING = settings_of.Sampling(steps=3, batch_size=4)
SAMPLERS = get_args(settings_of.Sampling.model_fields["sampler"].annotation)


def changed(ldm, **more):
    return replace(ldm, settings=ldm.settings.model_copy(update=more))


@pytest.fixture(scope="module")
def patches():
    return ellipse_patches(12)


@pytest.fixture(scope="module")
def ldm(patches):
    """Networks with random weights: whatever they draw, it is drawn from the mask and the noise alone."""
    torch.manual_seed(0)
    given = settings_of.Autoencoder(channels=[8, 8], codes=64)
    autoencoder = Autoencoder(autoencoder_configuration(given, (160, 20))).eval().requires_grad_(False)
    codes = autoencoder.vq.quantize.embedding.weight
    codes.copy_(torch.randn(codes.shape))
    settings = settings_of.Denoiser(stem=1, channels=[16, 16], attention_factors=[], mask_dropout=0.1)
    denoiser = Denoiser(configuration(settings, 3, 4, 4)).eval().requires_grad_(False)
    denoiser.mask_encoder.project.weight.mul_(20)
    return LatentDiffusion(autoencoder, denoiser, SAMPLING, Device(torch.device("cpu")), Seeds(7, "images"))


def test_any_subset_gives_the_same_images(ldm, patches):
    labels = patches.label_maps()
    noisy = replace(ldm, noise=noise_of(patches, ldm.autoencoder, SAMPLING.model_copy(update={"noise": "measured"})))
    for model in (ldm, noisy, changed(ldm, guidance=2.0), changed(ldm, sampler="dpm-solver++")):
        whole = model.sample(labels, range(12))
        assert whole.shape == (12, 64, 64) and whole.dtype == np.uint8
        assert np.array_equal(model.sample(labels[[7, 2]], [7, 2]), whole[[7, 2]])
    other = changed(ldm, batch_size=5).sample(labels, range(12))
    assert np.abs(other.astype(int) - ldm.sample(labels, range(12))).max() <= 1
    few = ldm.sample_few(labels[:2], [0, 1])
    assert np.abs(few.astype(int) - other[:2]).max() <= 1
    assert not np.array_equal(ldm.sample(labels[:1], [99]), ldm.sample(labels[:1], [0]))
    assert ldm.sample(labels[:0], []).shape == (0, 64, 64)
    for name in SAMPLERS:  # the mask decides what is drawn
        empty, full = (changed(ldm, sampler=name).sample_few(np.full_like(labels[:1], code), [0]) for code in (0, 2))
        assert not np.array_equal(empty, full)


def test_solvers_reach_what_the_noise_process_started_from():
    # Of one point z0 the best denoiser is known exactly: epsilon = (z_t - sqrt(abar) z0) / sqrt(1 - abar).
    z0 = torch.tensor([[0.7, -1.3]])
    for prediction in ("epsilon", "v_prediction"):
        config = configuration(settings_of.Denoiser(prediction=prediction), 3, 4, 4)
        process = noise_process(config)
        for name in SAMPLERS:
            made = sampler(config, settings_of.Sampling(sampler=name, steps=20))
            assert len(made.timesteps) == 20
            z = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
            for t in made.timesteps:
                abar = process.alphas_cumprod[int(t)]
                epsilon = (z - abar.sqrt() * z0) / (1 - abar).sqrt()
                velocity = abar.sqrt() * epsilon - (1 - abar).sqrt() * z0
                z = made.step(epsilon if prediction == "epsilon" else velocity, t, z).prev_sample
            assert torch.allclose(z, z0, atol=0.1), name  # ddim ends at the first timestep's noise, not at none


def test_guidance_goes_from_no_mask_through_the_mask_and_beyond(ldm, patches):
    labels = patches.label_maps()[:3]
    plain = ldm.sample(labels, range(3)).astype(int)
    assert np.abs(plain - changed(ldm, guidance=1 + 1e-6).sample(labels, range(3))).max() <= 1
    unguided = changed(ldm, guidance=0.0)  # without the mask's share, two masks give one image
    assert np.array_equal(unguided.sample(labels, range(3)), unguided.sample(labels[::-1].copy(), range(3)))
    assert not np.array_equal(changed(ldm, guidance=4.0).sample(labels, range(3)), plain)


def test_the_guidance_with_the_labelled_contrast_is_chosen(ldm, patches, monkeypatch):
    models = changed(ldm, guidance=[1.0, 1.5, 2.0]).each()
    assert [model.settings.guidance for model in models] == [1.0, 1.5, 2.0] and len(ldm.each()) == 1
    flat = np.full_like(patches.images, 170)

    def drawn(self, masks, numbers):  # defects as strong as the guidance says, against those of the patches
        return np.where(masks > 0, patches.images[numbers] * (2 - self.settings.guidance / 1.5), flat).astype(np.uint8)

    monkeypatch.setattr(LatentDiffusion, "sample", drawn)
    chosen, table = quality.choose_guidance(models, patches, np.random.default_rng(0))
    assert chosen.settings.guidance == 1.5 and table["guidance"].tolist() == [1.0, 1.5, 2.0]
    assert table[list(patches.classes)].iloc[1].tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert table[list(patches.classes)].diff().dropna().gt(0.2).all(axis=None)
    without = replace(patches, instances=np.zeros_like(patches.instances), table=patches.table.iloc[:0])
    assert quality.choose_guidance(models, without, np.random.default_rng(0))[0] is models[0]  # nothing to choose by


def test_interrupted_generation_goes_on_to_the_same_images(ldm, patches, tmp_path, monkeypatch):
    whole = ldm.generate(replace(patches, images=None), tmp_path / "whole")
    assert np.array_equal(whole, ldm.sample(outlined(patches), range(12)))
    calls, sample = [], LatentDiffusion.sample

    def stop_at_third(self, *given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, *given)

    monkeypatch.setattr(LatentDiffusion, "sample", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        ldm.generate(patches, tmp_path / "cut")
    assert np.array_equal(ldm.generate(patches, tmp_path / "cut"), whole)
    assert len(calls) == 4  # two batches, the interrupted one, and that one again: nothing is drawn twice
    other = replace(patches, instances=patches.instances[::-1].copy())
    assert not np.array_equal(ldm.generate(other, tmp_path / "cut"), whole)  # other masks: other images


def test_messages_name_what_is_wrong(ldm, patches):
    with pytest.raises(CompanionError, match="steps is 1001"):
        changed(ldm, steps=1001).sample(patches.label_maps()[:1], [0])
    never = Denoiser({**ldm.denoiser.config, "mask_dropout": 0.0})
    with pytest.raises(CompanionError, match=r"guidance is 4.0.*never trained without a mask"):
        changed(replace(ldm, denoiser=never), guidance=4.0)


def background(images, micrographs="a"):
    return patches_of(np.zeros(images.shape, np.uint8), {}, images, image=micrographs)


def test_noise_model_finds_variance_and_correlation():
    rng = np.random.default_rng(0)
    size = 64
    signal = np.linspace(60, 200, size)[None, None, :].repeat(40, 0).repeat(size, 1)
    white = rng.normal(size=signal.shape)
    lines = rng.normal(size=(40, size, 1)) * 0.5  # scan lines: one gain per row
    images = np.clip(np.rint(signal + np.sqrt(4 + 0.25 * signal) * (white + lines)), 0, 255).astype(np.uint8)
    model = noise.measure(background(images), signal)
    total = 1 + 0.25  # variance of pixel noise and lines together
    assert model.line[0] == pytest.approx([4 * total, 0.25 * total], rel=0.25)
    rngs = [np.random.default_rng(k) for k in range(40)]
    noisy = model.add(signal, copy.deepcopy(rngs), threads=2)
    assert np.array_equal(noisy, model.add(signal, rngs))
    drawn = noisy - signal
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
    model = noise.measure(background(train.astype(np.uint8), list("abcdef") * 5), smooth)
    noisy = put_back(model, held, Seeds(1), range(30))
    labelled, without, closed = (
        np.log10(power_spectra(put_back(None, x, Seeds(1), range(30)))[1].mean(axis=0))[2:] for x in (test, held, noisy)
    )
    assert np.abs(without - labelled).mean() > 1
    assert np.abs(closed - labelled).mean() < 0.1  # the aim: within 0.1 decade up to Nyquist
