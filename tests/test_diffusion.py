"""Autoencoder, denoiser and their training: shapes, conditioning, one training step by hand, interruption, messages."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ellipse_patches, patches_of
from diffusers import UNet2DModel

from companion import geometry, training, weights
from companion.config import diffusion as settings_of
from companion.config import load_profile
from companion.device import Device
from companion.diffusion import denoiser as denoisers
from companion.diffusion import train
from companion.diffusion.autoencoder import Autoencoder, encode_all, load_autoencoder, reconstruct, save_autoencoder
from companion.diffusion.autoencoder import configuration as autoencoder_configuration
from companion.diffusion.denoiser import OUTLINE, Denoiser, MaskedUNet, MaskEncoder, noise_process, outlined
from companion.errors import CompanionError
from companion.seeds import Seeds

DEVICE = Device(torch.device("cpu"))
AUTOENCODER = settings_of.Autoencoder(channels=[8, 8], codes=16, steps=6, batch_size=2, crop_px=32)
DENOISER = settings_of.Denoiser(stem=1, channels=[16, 16], attention_factors=[], steps=6, batch_size=4)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return train.get_autoencoder(ellipse_patches(8), AUTOENCODER, fitting(tmp_path_factory.mktemp("ae")))[0]


def fitting(folder: Path, device: Device = DEVICE, every: int = 2) -> train.Fitting:
    return train.Fitting(device, Seeds(7, "test"), folder, every)


def changed(settings, **more):
    return settings.model_copy(update=more)


def draw(network: Denoiser) -> np.ndarray:
    """A picture that tells the weights apart."""
    return (next(network.unet.parameters()).detach().flatten()[:9].view(1, 3, 3) * 1e4).to(torch.uint8).numpy()


@pytest.mark.parametrize(("stem", "channels"), [(1, [8, 8, 8]), (2, [8, 8]), (4, [8])])
def test_latents_are_scaled_and_survive_the_file(tmp_path, stem, channels):
    settings = settings_of.Autoencoder(stem=stem, channels=channels, codes=16)
    images = ellipse_patches(6, 32).images
    made = Autoencoder(autoencoder_configuration(settings, (160, 20))).eval().requires_grad_(False)
    made.fit_scaling(images)
    latents = encode_all(made, images)
    assert latents.shape == (6, 4, 8, 8)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    save_autoencoder(made, tmp_path / "a.safetensors", note="kept")
    loaded, about = load_autoencoder(tmp_path / "a.safetensors")
    assert about["note"] == "kept" and weights.digest(loaded) == weights.digest(made)
    assert np.array_equal(reconstruct(made, images), reconstruct(loaded, images))
    assert made.features(images).shape == (6, 2 * (sum(channels) + channels[-1]))


def test_autoencoder_learns_to_reconstruct(tmp_path):
    patches = ellipse_patches(24)
    settings = changed(AUTOENCODER, channels=[8, 16], codes=64, steps=60, batch_size=8)
    made, about = train.get_autoencoder(patches, settings, fitting(tmp_path, every=60))
    losses = [row["l1"] for row in about["log"]]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
    decoded = reconstruct(made, patches.images).astype(float)
    inside, outside = patches.instances > 0, patches.instances == 0
    assert decoded[inside].mean() < decoded[outside].mean() - 15  # 60 in the patches


def test_given_autoencoder_sees_another_microscope_alike(tmp_path):
    shipped = Path(__file__).parents[1] / "weights" / "autoencoder_phantom.safetensors"
    patches = ellipse_patches(4)
    dim = replace(patches, images=(patches.images // 3 + 20).astype(np.uint8))
    seen = []
    for name, given in (("bright", patches), ("dim", dim)):
        made, about = train.get_autoencoder(given, AUTOENCODER, fitting(tmp_path / name), shipped)
        assert about["log"] == [] and not any(p.requires_grad for p in made.parameters())
        assert torch.allclose(encode_all(made, given.images).std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
        seen.append(made.scale(torch.from_numpy(given.images)))
    assert torch.allclose(*seen, atol=0.15)


def test_mask_encoders_keep_what_they_should():
    labels = torch.zeros(1, 16, 16)
    labels[0, 4:8, 8:12] = 2
    bilinear = denoisers.one_hot_at_latent_size(labels, 3, 4, "bilinear")
    assert bilinear.shape == (1, 4, 4, 4)
    assert bilinear[0, 2, 1, 2] == 1 and bilinear[0, 2].sum() == 1  # aligned with one latent pixel: kept whole
    assert torch.allclose(bilinear.sum(dim=1), torch.ones(1, 4, 4))  # classes and background are shares of a pixel
    labels.zero_()[0, 5, 9] = 1
    assert denoisers.one_hot_at_latent_size(labels, 3, 4, "bilinear")[0, 1].max() == pytest.approx(1 / 16)
    folded = denoisers.one_hot_at_latent_size(labels, 3, 4, "space-to-depth")
    assert folded.shape == (1, 4 * 16, 4, 4) and folded[0, 16:32].max() == 1  # no dot is averaged away
    encoder, empty = MaskEncoder(2, 4, 3, "bilinear"), torch.zeros(2, 16, 16, dtype=torch.uint8)
    shown, withheld = encoder(empty, torch.tensor([True, False]))  # a withheld mask is not an empty one
    assert torch.allclose(withheld, encoder.project.bias.view(3, 1, 1).expand(3, 4, 4))
    assert torch.equal(shown, encoder(empty)[0]) and not torch.allclose(shown, withheld)


def test_outlines_tell_touching_defects_apart():
    ids = np.zeros((1, 32, 32), dtype=np.uint8)
    ids[0, 8:16, 8:16], ids[0, 8:16, 16:24], ids[0, 24:, :8] = 1, 2, 3  # two touch, one is cut by the border
    patches = patches_of(ids, {(0, 1): 2, (0, 2): 2, (0, 3): 1})
    shown = outlined(patches)
    assert np.array_equal(shown % OUTLINE, patches.label_maps())
    edge = shown[0] >= OUTLINE
    assert edge[8:16, 8:16].sum() == edge[8:16, 16:24].sum() == 28  # all around, where they touch as well
    assert edge[24:, :8].sum() == 15  # not along the border, which cuts it
    maps = torch.from_numpy(shown)
    for outline, inside in (("boundary", 0.0), ("distance", 2 / 8)):
        added = denoisers.one_hot_at_latent_size(maps, 3, 1, "bilinear", outline)[0, 4]
        assert added[11, 11] == pytest.approx(inside + (outline == "distance") / 8)  # the middle: 3 px from the edge
        assert added[8, 8] == (outline == "boundary") and added[0, 31] == (outline == "distance")


def test_without_additions_the_unet_is_diffusers_own_and_with_them_every_level_sees_the_mask():
    torch.manual_seed(0)
    x, t, mask = torch.randn(2, 8, 16, 16), torch.tensor([3, 900]), torch.randn(2, 4, 16, 16)
    config = denoisers.configuration(changed(DENOISER, channels=[16, 32, 32]), 3, 4, 4)["unet"]
    ours, theirs = MaskedUNet(**config), UNet2DModel(**{k: v for k, v in config.items() if k != "mask_channels"})
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x, t, mask), theirs(x, t).sample)
    added = MaskedUNet(**{**config, "mask_channels": 4})
    assert len(added.additions) == 2 * 3
    for k, project in enumerate(added.additions):  # each alone changes what comes out
        for other in added.additions:
            torch.nn.init.zeros_(other.weight), torch.nn.init.zeros_(other.bias)
        plain = added(x, t, mask)
        torch.nn.init.normal_(project.weight)
        assert not torch.allclose(added(x, t, mask), plain), k


def test_the_papers_denoiser_has_its_size_and_noise_process():
    paper = load_profile("paper").diffusion.denoiser
    with torch.device("meta"):
        network = Denoiser(denoisers.configuration(paper, 3, 4, 8))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(326, abs=1)
    assert network.unet.config.in_channels == 8 and network.unet.config.out_channels == 4
    assert network.mask_encoder.project.weight.shape == (4, 4, 1, 1)
    root = noise_process(network.config).betas.sqrt()
    assert root[0] ** 2 == pytest.approx(0.0015) and root[-1] ** 2 == pytest.approx(0.0205)
    assert torch.allclose(root.diff(), root.diff().mean().expand(999), atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_by_hand(prediction):
    settings = changed(DENOISER, prediction=prediction)
    torch.manual_seed(0)
    network = Denoiser(denoisers.configuration(settings, 3, 4, 4))
    process = noise_process(network.config)
    latents, noise, times = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[0, :16] = 1  # half of one patch: of its latents' pixels, all
    signal = process.alphas_cumprod[times].view(2, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    target = noise if prediction == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents
    error = network(noisy, times, network.mask_encoder(masks)) - target
    loss = train.denoising_loss(network, process, latents, masks, times, noise)
    assert torch.allclose(loss, error.abs().mean())
    weight = torch.ones(2, 1, 8, 8)
    weight[0, :, :4] = 9
    weighted = train.denoising_loss(network, process, latents, masks, times, noise, loss="l2", defect_weight=8.0)
    assert torch.allclose(weighted, (weight * error.square()).mean() / weight.mean())
    ratio = signal / (1 - signal)
    clipped = ratio.clamp(max=5) / (ratio if prediction == "epsilon" else ratio + 1)  # Hang et al., of |error| here
    snr = train.denoising_loss(network, process, latents, masks, times, noise, min_snr=5.0)
    assert torch.allclose(snr, (clipped * error.abs()).mean())
    shown = torch.tensor([False, True])
    hidden = train.denoising_loss(network, process, latents, masks, times, noise, shown=shown)
    assert not torch.allclose(hidden, loss)


def test_every_symmetry_is_trained_on_and_masks_are_withheld(autoencoder, tmp_path, monkeypatch):
    patches, seen, loss = ellipse_patches(6), [], train.denoising_loss
    patches = replace(patches.only(np.unique(patches.table["patch"])[:3]), symmetries=(0, 5))  # no mask is empty

    def watched(network, process, latents, masks, *given, **named):
        seen.append((latents, masks, named["shown"]))
        return loss(network, process, latents, masks, *given, **named)

    monkeypatch.setattr(train, "denoising_loss", watched)
    train.get_denoiser(patches, autoencoder, changed(DENOISER, batch_size=64, mask_dropout=0.25), fitting(tmp_path))
    latents, masks, shown = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert 0.15 < 1 - shown.float().mean() < 0.35  # masks are withheld as often as asked: 384 draws
    known = {geometry.symmetry(m, c).tobytes(): (k, c) for k, m in enumerate(outlined(patches)) for c in (0, 5)}
    assert {mask.numpy().tobytes() for mask in masks} == set(known)
    for z, mask in zip(latents[:20], masks, strict=False):  # a latent comes with its own mask
        k, code = known[mask.numpy().tobytes()]
        own = encode_all(autoencoder, geometry.symmetry(patches.images[[k]], code))[0]
        assert torch.allclose(z, own, atol=1e-4)


def train_both(folder: Path):
    """Train both networks on a few patches."""
    patches, more = ellipse_patches(8), {"steps": 14}
    made, _ = train.get_autoencoder(patches, changed(AUTOENCODER, **more), fitting(folder))
    return made, *train.get_denoiser(patches, made, changed(DENOISER, mask_dropout=0.2, **more), fitting(folder), draw)


def digests(trained) -> list[str]:
    return [weights.digest(network) for network in trained[:2]]


def test_interrupted_trainings_end_with_the_same_weights_and_pictures(tmp_path, monkeypatch):
    folder, save, titles = tmp_path / "cut", training.save_state, ("autoencoder", "denoiser")
    for title in titles:  # each training stops before its third checkpoint

        def stop(state, path, about, title=title):
            if path.stem == title and about["step"] == 6:
                raise KeyboardInterrupt
            save(state, path, about)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "save_state", stop)
            train_both(folder)
        assert (folder / "checkpoint" / f"{title}.safetensors").exists()
    continued, whole = train_both(folder), train_both(tmp_path / "whole")
    assert digests(continued) == digests(whole)
    assert continued[2]["log"] == whole[2]["log"] and len(whole[2]["log"]) == 14
    assert list(whole[2]["pictures"]) == [2, 4, 6, 8, 10, 12, 14]
    assert all(torch.equal(picture, continued[2]["pictures"][k]) for k, picture in whole[2]["pictures"].items())
    assert not any((folder / "checkpoint" / f"{title}.safetensors").exists() for title in titles)


def test_finished_trainings_are_not_repeated_and_others_are(tmp_path, monkeypatch):
    whole = train_both(tmp_path)
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = train_both(tmp_path)
    assert digests(again) == digests(whole)
    assert again[2]["pictures"].keys() == whole[2]["pictures"].keys()
    with torch.no_grad():
        next(whole[0].parameters()).add_(1e-3)  # another autoencoder: another training
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        settings = changed(DENOISER, mask_dropout=0.2, steps=14)
        train.get_denoiser(ellipse_patches(8), whole[0], settings, fitting(tmp_path))


def test_messages_name_what_is_wrong(autoencoder, tmp_path):
    patches, here = ellipse_patches(4), fitting(tmp_path)
    deep = changed(DENOISER, channels=[16, 16, 16, 16, 16, 16])
    with pytest.raises(CompanionError, match=r"patches\.size is 64 px, but the networks need a multiple of 128 px"):
        train.get_denoiser(patches, autoencoder, deep, here)
    with pytest.raises(CompanionError, match=r"patches\.size is 30 px, but the networks need a multiple of 4 px"):
        train.get_autoencoder(ellipse_patches(4, 30), AUTOENCODER, here)
    train.get_denoiser(patches, autoencoder, DENOISER, here)
    with pytest.raises(CompanionError, match="holds 'companion denoiser', not a companion autoencoder"):
        load_autoencoder(tmp_path / "denoiser.safetensors")
    save_autoencoder(autoencoder, tmp_path / "a.safetensors")
    with pytest.raises(CompanionError, match="holds 'companion autoencoder', not a companion denoiser"):
        denoisers.load_denoiser(tmp_path / "a.safetensors")
