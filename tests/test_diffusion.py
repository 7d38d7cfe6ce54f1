"""Autoencoder, denoiser, their training and sampling: shapes, conditioning, reproducibility, messages."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import ellipse_patches

from companion import geometry, params, training
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import denoiser as denoisers
from companion.diffusion import pretrain, train, train_autoencoder
from companion.diffusion.presets import PRESETS, build_denoiser
from companion.diffusion.sample import decode_steps, generate, sample
from companion.errors import CompanionError
from companion.config.diffusion import Sampler

MACHINE = training.Compute(torch.device("cpu"), torch.float32, 7)
AUTOENCODER = params.Autoencoder(channels=[8, 8], codes=16, steps=6, batch_size=2, crop_px=32)
DENOISER = params.Denoiser(stem=1, channels=[16, 16], attention_factors=[], steps=6, batch_size=4)
SAMPLING = params.Sampling(steps=3, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    patches = ellipse_patches(12)
    setting = {"machine": MACHINE, "name": "test", "folder": folder, "every": 3}
    autoencoder, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting)
    denoiser, _ = train.get_denoiser(patches, autoencoder, DENOISER, **setting)
    return patches, autoencoder, denoiser, folder


def test_mask_encoders_keep_what_they_should():
    labels = torch.zeros(1, 16, 16)
    labels[0, 4:8, 8:12] = 2
    bilinear = denoisers.one_hot_at_latent_size(labels, 3, 4, "bilinear")  # (1, 4, 4, 4)
    assert bilinear.shape == (1, 4, 4, 4)
    assert bilinear[0, 2, 1, 2] == 1 and bilinear[0, 2].sum() == 1  # aligned with one latent pixel: kept whole
    assert torch.allclose(bilinear.sum(dim=1), torch.ones(1, 4, 4))  # classes and background are shares of a pixel
    labels.zero_()[0, 5, 9] = 1
    assert denoisers.one_hot_at_latent_size(labels, 3, 4, "bilinear")[0, 1].max() == pytest.approx(1 / 16)
    folded = denoisers.one_hot_at_latent_size(labels, 3, 4, "space-to-depth")
    assert folded.shape == (1, 4 * 16, 4, 4) and folded[0, 16:32].max() == 1  # no dot is averaged away


@pytest.mark.parametrize("code", range(8))
def test_torch_symmetries_equal_numpys(code):
    batch = np.random.default_rng(0).integers(0, 255, (3, 5, 5), dtype=np.uint8)
    turned = train.symmetries(torch.from_numpy(batch), torch.tensor([code, 0, code]))
    assert np.array_equal(turned[0], geometry.symmetry(batch[0], code))
    assert np.array_equal(turned[1], batch[1])
    assert np.array_equal(turned[2], geometry.symmetry(batch[2], code))


def test_turned_batches_and_crops_are_those_of_one_by_one():
    rng = torch.Generator().manual_seed(3)
    batch, codes = torch.randint(0, 255, (11, 2, 6, 6), generator=rng), torch.tensor([7, 0, 7, 3, 3, 5, 0, 1, 4, 4, 7])
    alone = [
        torch.from_numpy(geometry.symmetry(x.numpy(), c).copy()) for x, c in zip(batch, codes.tolist(), strict=True)
    ]
    assert torch.equal(train.symmetries(batch, codes), torch.stack(alone))
    chosen, corners, turns = (
        torch.randint(high, shape, generator=rng.manual_seed(9) if first else rng)
        for high, shape, first in ((11, (5,), True), (3, (5, 2), False), (8, (5,), False))
    )
    crops = train.random_crops(batch, 5, 4, torch.Generator().manual_seed(9))
    for crop, k, (y, x), code in zip(crops, chosen, corners.tolist(), turns.tolist(), strict=True):
        assert np.array_equal(crop, geometry.symmetry(batch[k, :, y : y + 4, x : x + 4].numpy(), code))


def test_random_crops_come_from_the_patches():
    images = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6)
    rng = torch.Generator().manual_seed(0)
    crops = train.random_crops(
        torch.from_numpy(images), 50, 6, rng
    )  # crops as large as the patches can only be symmetries of them
    known = {geometry.symmetry(image, code).tobytes() for image in images for code in range(8)}
    assert {crop.numpy().tobytes() for crop in crops} <= known
    assert len({crop.numpy().tobytes() for crop in crops}) > 8


@pytest.mark.parametrize(("stem", "channels"), [(1, [8, 8, 8]), (2, [8, 8]), (4, [8])])
def test_latents_are_scaled_and_survive_the_file(tmp_path, stem, channels):
    parameters = params.Autoencoder(stem=stem, channels=channels, codes=16)
    images = ellipse_patches(6, 32).images
    autoencoder = autoencoders.freeze(autoencoders.Autoencoder(autoencoders.configuration(parameters, (160, 20))))
    autoencoder.fit_scaling(images, 4)
    latents = autoencoders.encode_all(autoencoder, images, 4)
    assert latents.shape == (6, 4, 8, 8)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    autoencoders.save(autoencoder, tmp_path / "a.safetensors", note="kept")
    loaded, about = autoencoders.load(tmp_path / "a.safetensors")
    assert about["note"] == "kept"
    assert np.array_equal(autoencoders.reconstruct(autoencoder, images), autoencoders.reconstruct(loaded, images))


def test_structural_similarity_is_one_for_equal_patches_and_falls_with_noise():
    images = ellipse_patches(5, 32).images
    noise = np.random.default_rng(0).normal(0, 20, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    assert autoencoders.structural_similarity(images, images) == 1
    assert 0 < autoencoders.structural_similarity(images, noisy) < 0.9
    assert autoencoders.structural_similarity(images, np.concatenate([images[:1], noisy[1:]]), most=1) == 1


def test_autoencoder_learns_to_reconstruct(tmp_path):
    patches = ellipse_patches(24)
    parameters = params.Autoencoder(channels=[8, 16], codes=64, steps=60, batch_size=8, crop_px=32)
    autoencoder, log = train_autoencoder.get_autoencoder(
        patches, parameters, machine=MACHINE, name="learn", folder=tmp_path, every=60
    )
    assert log["l1"].tail(5).mean() < 0.85 * log["l1"].head(5).mean()
    decoded = autoencoders.reconstruct(autoencoder, patches.images).astype(float)
    inside, outside = patches.instances > 0, patches.instances == 0
    assert decoded[inside].mean() < decoded[outside].mean() - 15  # 60 in the patches


def test_presets_have_the_published_sizes():
    counts = {name: denoisers.parameter_count(build_denoiser(p, 3, "meta")) / 1e6 for name, p in PRESETS.items()}
    assert counts["paper"] == pytest.approx(326, abs=1)
    assert counts["compact"] == pytest.approx(38, abs=1)
    assert counts["tiny"] < 2
    paper = build_denoiser(PRESETS["paper"], 3, "meta")
    assert paper.unet.config.in_channels == 8 and paper.unet.config.out_channels == 4
    assert paper.mask_encoder.project.weight.shape == (4, 4, 1, 1)


@pytest.mark.parametrize(("profile", "preset"), [("paper", "paper"), ("course", "compact"), ("smoke", "tiny")])
def test_profiles_are_their_presets(profile, preset):
    found, wanted = params.load_profile(profile).diffusion, PRESETS[preset]
    assert found.denoiser == wanted.denoiser and found.checkpoint_every == wanted.checkpoint_every
    assert found.autoencoder.weights or found.autoencoder == wanted.autoencoder


def test_pretraining_writes_a_file_that_any_size_can_use(tmp_path):
    small = pretrain.PARAMETERS.model_copy(update={"steps": 4, "batch_size": 2, "channels": [8, 8], "codes": 16})
    pretrain.pretrain(tmp_path / "a.safetensors", small, size_px=96)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    patches = ellipse_patches(4)
    parameters = params.Autoencoder(weights=str(tmp_path / "a.safetensors"))
    autoencoder, log = train_autoencoder.get_autoencoder(
        patches, parameters, machine=MACHINE, name="given", folder=tmp_path / "stage", every=1
    )
    assert log.empty and not any(p.requires_grad for p in autoencoder.parameters())
    latents = autoencoders.encode_all(autoencoder, patches.images, 4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)  # scaled anew, on these patches
    _, about = autoencoders.load(tmp_path / "stage" / "autoencoder.safetensors")
    dim = replace(patches, images=(patches.images // 3 + 20).astype(np.uint8))
    other, _ = train_autoencoder.get_autoencoder(
        dim, parameters, machine=MACHINE, name="x", folder=tmp_path / "dim", every=1
    )
    seen = [a.scale(torch.from_numpy(p.images)) for a, p in ((autoencoder, patches), (other, dim))]
    assert torch.allclose(*seen, atol=0.15)  # two microscopes' contrasts look alike to the network
    assert about["pretrained"] and about["origin"]["data"].startswith("phantom")


def test_pretraining_pairs_differ_by_noise_alone():
    recorded, clean, defects = pretrain.micrographs(size_px=96).swapaxes(0, 1)
    difference = recorded.astype(float) - clean
    assert recorded.shape == (len(pretrain.PRESETS) * pretrain.IMAGES_PER_PRESET, 96, 96)
    assert set(np.unique(defects)) == {0, 1} and clean[defects == 1].mean() < clean[defects == 0].mean() - 5
    assert np.abs(difference.mean()) < 3 and (difference.std(axis=(1, 2)) > 3).all()


def test_noise_schedule_is_linear_in_the_square_root_of_beta():
    schedule = denoisers.noise_schedule({"schedule": denoisers.schedule_of(PRESETS["paper"].denoiser)})
    root = schedule.betas.sqrt()
    assert root[0] ** 2 == pytest.approx(0.0015) and root[-1] ** 2 == pytest.approx(0.0205)
    assert torch.allclose(root.diff(), root.diff().mean().expand(999), atol=1e-6)


def test_learning_rate_rises_and_falls():
    rates = [train.learning_rate(DENOISER.model_copy(update={"warmup_steps": 2}), i) for i in range(6)]
    assert rates == pytest.approx([DENOISER.learning_rate * share for share in (1 / 3, 2 / 3, 1, 1, 1, 1)])
    decayed = DENOISER.model_copy(update={"warmup_steps": 0, "decay": "cosine", "steps": 100})
    assert train.learning_rate(decayed, 50) == pytest.approx(DENOISER.learning_rate / 2)
    assert train.learning_rate(decayed, 99) < 0.001 * DENOISER.learning_rate


def test_any_subset_gives_the_same_images(trained):
    patches, autoencoder, denoiser, _ = trained
    labels = patches.label_maps()
    setting = {"machine": MACHINE, "name": "noise"}
    whole = sample(autoencoder, denoiser, labels, range(12), SAMPLING, **setting)
    some = sample(autoencoder, denoiser, labels[[7, 2]], [7, 2], SAMPLING, **setting)
    assert np.array_equal(some, whole[[7, 2]])
    other = sample(autoencoder, denoiser, labels, range(12), SAMPLING.model_copy(update={"batch_size": 5}), **setting)
    assert np.abs(other.astype(int) - whole).max() <= 1
    assert not np.array_equal(whole[0], sample(autoencoder, denoiser, labels[:1], [99], SAMPLING, **setting)[0])


@pytest.mark.parametrize("solver", get_args(Sampler))
def test_the_mask_decides_what_is_drawn(trained, solver):
    patches, autoencoder, denoiser, _ = trained
    parameters = SAMPLING.model_copy(update={"sampler": solver})
    empty = np.zeros_like(patches.label_maps()[:1])
    full = np.full_like(empty, 2)
    drawn = [sample(autoencoder, denoiser, m, [0], parameters, machine=MACHINE, name="n") for m in (empty, full)]
    assert drawn[0].shape == (1, 64, 64) and drawn[0].dtype == np.uint8
    assert not np.array_equal(*drawn)


def test_solvers_reach_what_the_noise_process_started_from():
    # Of one point z0 the best denoiser is known exactly: epsilon = (z_t - sqrt(abar) z0) / sqrt(1 - abar).
    z0 = torch.tensor([[0.7, -1.3]])
    for prediction in ("epsilon", "v_prediction"):
        parameters = PRESETS["paper"].denoiser.model_copy(update={"prediction": prediction})
        config = {"schedule": denoisers.schedule_of(parameters)}
        process = denoisers.noise_schedule(config)
        for solver in get_args(Sampler):
            made = denoisers.sampler(config, params.Sampling(sampler=solver, steps=20))
            assert len(made.timesteps) == 20
            z = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
            for t in made.timesteps:
                abar = process.alphas_cumprod[int(t)]
                epsilon = (z - abar.sqrt() * z0) / (1 - abar).sqrt()
                velocity = abar.sqrt() * epsilon - (1 - abar).sqrt() * z0
                z = made.step(epsilon if prediction == "epsilon" else velocity, t, z).prev_sample
            assert torch.allclose(z, z0, atol=0.1), solver  # ddim ends at the first timestep's noise, not at none


def test_interrupted_sampling_goes_on(trained, tmp_path, monkeypatch):
    patches, autoencoder, denoiser, _ = trained
    simulated = replace(patches, images=None)
    setting = {"machine": MACHINE, "name": "resume"}
    whole = generate(autoencoder, denoiser, simulated, SAMPLING, folder=tmp_path / "a", **setting)
    from companion.diffusion import sample as module

    calls = []

    def stop_at_third(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*given, **named)

    monkeypatch.setattr(module, "sample", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate(autoencoder, denoiser, simulated, SAMPLING, folder=tmp_path / "b", **setting)
    again = generate(autoencoder, denoiser, simulated, SAMPLING, folder=tmp_path / "b", **setting)
    assert len(calls) == 4  # two batches, the interrupted one, and that one again: nothing is drawn twice
    assert np.array_equal(again.images, whole.images)
    # What comes after sampling may be killed as well: nothing is drawn once more before the stage is finished.
    assert np.array_equal(
        generate(autoencoder, denoiser, simulated, SAMPLING, folder=tmp_path / "b", **setting).images, whole.images
    )
    assert len(calls) == 4 and len(list((tmp_path / "b" / "checkpoint").glob("images-*.npy"))) == 3
    assert again.table is patches.table and np.array_equal(again.instances, patches.instances)


def test_frames_end_with_the_image(trained):
    patches, autoencoder, denoiser, _ = trained
    labels = patches.label_maps()[:2]
    setting = {"machine": MACHINE, "name": "frames"}
    frames = decode_steps(autoencoder, denoiser, labels, [0, 1], [0, 2, 3], SAMPLING, **setting)
    few = SAMPLING.model_copy(update={"batch_size": 2})
    assert frames.shape == (3, 2, 64, 64)
    assert np.array_equal(frames[-1], sample(autoencoder, denoiser, labels, [0, 1], few, **setting))


def test_finished_training_is_not_repeated(trained, monkeypatch):
    patches, _, denoiser, folder = trained
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    setting = {"machine": MACHINE, "name": "test", "folder": folder, "every": 3}
    same, log = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting)
    assert len(log) == AUTOENCODER.steps
    again, log = train.get_denoiser(patches, same, DENOISER, **setting)
    assert len(log) == DENOISER.steps
    for name, value in denoiser.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_diffusion
test_diffusion.torch.set_num_threads(1)
test_diffusion.train_both(Path(sys.argv[1]))
"""


def train_both(folder: Path) -> dict[str, torch.Tensor]:
    """Train both networks on a few patches; all final weights."""
    setting = {"machine": MACHINE, "name": "killed", "folder": folder, "every": 2}
    patches, more = ellipse_patches(8), {"steps": 14}
    autoencoder, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER.model_copy(update=more), **setting)
    denoiser, _ = train.get_denoiser(patches, autoencoder, DENOISER.model_copy(update=more), **setting)
    return {**autoencoder.state_dict(), **denoiser.state_dict()}


def test_killed_training_ends_with_the_same_weights(tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)]
    # Killed in the first training, then at the start of the second.
    for target in (folder / "checkpoint" / "state.safetensors", folder / "autoencoder.safetensors"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not target.exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "denoiser.safetensors").exists()
    continued, whole = train_both(folder), train_both(tmp_path / "whole")
    assert all(torch.equal(whole[key], continued[key]) for key in whole)


def test_messages_name_what_is_wrong(trained, tmp_path):
    patches, autoencoder, denoiser, folder = trained
    setting = {"machine": MACHINE, "name": "x", "folder": tmp_path, "every": 1}
    with pytest.raises(CompanionError, match="masks without images"):
        train_autoencoder.get_autoencoder(replace(patches, images=None), AUTOENCODER, **setting)
    with pytest.raises(CompanionError, match="crop_px is 96, larger than the patches"):
        train_autoencoder.get_autoencoder(patches, AUTOENCODER.model_copy(update={"crop_px": 96}), **setting)
    with pytest.raises(CompanionError, match="holds 'companion denoiser', not a companion autoencoder"):
        autoencoders.load(folder / "denoiser.safetensors")
    with pytest.raises(CompanionError, match="class 7, but the denoiser was trained on 3"):
        sample(autoencoder, denoiser, np.full((1, 64, 64), 7, np.uint8), [0], SAMPLING, machine=MACHINE, name="x")
    with pytest.raises(CompanionError, match="one number per mask"):
        sample(autoencoder, denoiser, patches.label_maps(), [0], SAMPLING, machine=MACHINE, name="x")
    with pytest.raises(CompanionError, match="masks of 36 px: the networks need a multiple of 8"):
        sample(autoencoder, denoiser, np.zeros((1, 36, 36), np.uint8), [0], SAMPLING, machine=MACHINE, name="x")
    with pytest.raises(CompanionError, match="steps is 1001"):
        denoisers.sampler(denoiser.config, SAMPLING.model_copy(update={"steps": 1001}))
