"""What the paper does not do and the profile may ask for: each off by default, each tested to do what it says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ellipse_patches
from safetensors.torch import save_file

from companion.config import profile as params, training
from companion.diffusion import adversarial, conditions, pools, train, train_autoencoder
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import denoiser as denoisers
from companion.diffusion.sample import sample
from companion.errors import CompanionError

MACHINE = training.Compute(torch.device("cpu"), torch.float32, 7)
AUTOENCODER = params.Autoencoder(channels=[8, 8], codes=16, steps=6, batch_size=4, crop_px=32)
DENOISER = params.Denoiser(stem=1, channels=[16, 16], attention_factors=[], steps=6, batch_size=4)
SAMPLING = params.Sampling(steps=3, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def patches():
    made = ellipse_patches(8)
    index = made.index.assign(image=["a", "b"] * 4, pixel_size_nm=[0.28, 0.87] * 4)
    return replace(made, index=index)


@pytest.fixture(scope="module")
def autoencoder(patches, tmp_path_factory):
    return train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path_factory.mktemp("ae")))[0]


def setting(folder: Path, machine: training.Compute = MACHINE) -> dict[str, object]:
    return {"machine": machine, "name": "test", "folder": folder, "every": 3}


def trained(patches, autoencoder, folder, machine=MACHINE, **more):
    return train.get_denoiser(patches, autoencoder, DENOISER.model_copy(update=more), **setting(folder, machine))[0]


def drawn(autoencoder, denoiser, patches, numbers=(0, 1, 2), nm=None, watch=None, **more):
    labels, asked = patches.label_maps()[list(numbers)], SAMPLING.model_copy(update=more)
    given = {"machine": MACHINE, "name": "n", "pixel_sizes_nm": nm, "watch": watch}
    return sample(autoencoder, denoiser, labels, numbers, asked, **given)


def test_a_withheld_mask_is_not_an_empty_one():
    encoder = denoisers.MaskEncoder(2, 4, 3, "bilinear")
    empty = torch.zeros(2, 16, 16, dtype=torch.uint8)
    shown, withheld = encoder(empty, torch.tensor([True, False]))
    assert torch.allclose(withheld, encoder.project.bias.view(3, 1, 1).expand(3, 4, 4))
    assert torch.equal(shown, encoder(empty)[0]) and not torch.allclose(shown, withheld)


def test_guidance_goes_from_no_mask_through_the_mask_and_beyond(patches, autoencoder, tmp_path):
    denoiser = trained(patches, autoencoder, tmp_path / "d", mask_dropout=0.3)
    plain = drawn(autoencoder, denoiser, patches).astype(int)
    almost = drawn(autoencoder, denoiser, patches, guidance=1 + 1e-6).astype(int)
    assert np.abs(plain - almost).max() <= 1
    # Without the mask's share, two masks give one image.
    other = replace(patches, instances=patches.instances[::-1])
    unguided = [drawn(autoencoder, denoiser, p, guidance=0.0) for p in (patches, other)]
    assert np.array_equal(*unguided)
    far = drawn(autoencoder, denoiser, patches, guidance=4.0)
    assert not np.array_equal(far, plain)
    assert np.array_equal(drawn(autoencoder, denoiser, patches, (2,), guidance=4.0)[0], far[2])
    never = trained(patches, autoencoder, tmp_path / "never")
    with pytest.raises(CompanionError, match=r"guidance is 4.0.*never trained without a mask"):
        drawn(autoencoder, never, patches, guidance=4.0)


def test_masks_are_withheld_as_often_as_asked(patches, autoencoder, tmp_path, monkeypatch):
    seen = []
    forward = denoisers.MaskEncoder.forward
    monkeypatch.setattr(
        denoisers.MaskEncoder, "forward", lambda s, m, shown=None: (seen.append(shown), forward(s, m))[1]
    )
    trained(patches, autoencoder, tmp_path / "some", mask_dropout=0.25, steps=40, batch_size=16)
    share = 1 - torch.stack(seen).float().mean()
    assert 0.2 < share < 0.3  # 640 draws: within 3 standard deviations
    seen.clear()
    trained(patches, autoencoder, tmp_path / "none")
    assert seen == [None] * DENOISER.steps


def test_noise_level_is_that_of_white_noise_on_a_slope():
    rng = np.random.default_rng(0)
    image = np.add.outer(np.linspace(80, 160, 96), np.linspace(0, 20, 96)) + rng.normal(0, 9, (96, 96))
    assert conditions.noise_level(np.rint(image).astype(np.uint8)) == pytest.approx(9, rel=0.05)


def test_conditions_reach_the_image_and_come_from_the_nearest_magnification(patches, autoencoder, tmp_path):
    described = conditions.describe(patches, ["pixel_size_nm", "noise"])
    told = conditions.of_micrographs(described, ["a", "b"])
    assert told[:, 0].tolist() == pytest.approx([-1, 1])  # two pixel sizes, scaled logarithms
    rngs = [torch.Generator().manual_seed(k) for k in range(20)]
    assert {conditions.drawn_micrograph(described, 0.3, rng) for rng in rngs} == {"a"}
    assert {conditions.drawn_micrograph(described, None, rng) for rng in rngs} == {"a", "b"}
    one = conditions.describe(replace(patches, index=patches.index.assign(pixel_size_nm=0.5)), ["pixel_size_nm"])
    assert torch.equal(conditions.of_micrographs(one, ["a"]), torch.zeros(1, 1))  # nothing to tell apart
    learns = {"steps": 20, "learning_rate": 1e-2, "warmup_steps": 0, "ema_decay": 0.0}
    denoiser = trained(patches, autoencoder, tmp_path, conditions=["pixel_size_nm"], mask_dropout=0.1, **learns)
    for more in ({}, {"guidance": 2.0}):
        fine, coarse = [], []  # latents after every step: the few codes of a small decoder hide small differences
        whole = drawn(autoencoder, denoiser, patches, nm=[0.28] * 3, watch=lambda _, z, to=fine: to.append(z), **more)
        drawn(autoencoder, denoiser, patches, nm=[0.87] * 3, watch=lambda _, z, to=coarse: to.append(z), **more)
        assert torch.equal(fine[0], coarse[0]) and (fine[-1] - coarse[-1]).abs().max() > 1e-3
        assert np.array_equal(drawn(autoencoder, denoiser, patches, (2,), nm=[0.28], **more)[0], whole[2])
    assert drawn(autoencoder, denoiser, patches).shape == (3, 64, 64)  # none given: any micrograph's


def test_a_training_with_a_discriminator_continues_to_the_bit(patches, tmp_path, monkeypatch):
    asked = AUTOENCODER.model_copy(update={"adversarial_weight": 0.5, "feature_weight": 1.0, "steps": 10})
    whole, log = train_autoencoder.get_autoencoder(patches, asked, **setting(tmp_path / "whole"))
    assert (log["discriminator"][:5] == 0).all() and (log["discriminator"][5:] > 0).all() and log["feature"][9] > 0
    calls, update = [], train_autoencoder.update

    def cut(*given):
        calls.append(1)
        if len(calls) == 12:  # within step 8, between the two networks' turns
            raise KeyboardInterrupt
        update(*given)

    monkeypatch.setattr(train_autoencoder, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder.get_autoencoder(patches, asked, **setting(tmp_path / "cut"))
    continued, again = train_autoencoder.get_autoencoder(patches, asked, **setting(tmp_path / "cut"))
    assert log.equals(again)
    assert all(torch.equal(value, continued.state_dict()[name]) for name, value in whole.state_dict().items())


def test_the_discriminator_learns_and_its_features_measure_distance():
    torch.manual_seed(1)
    judge = adversarial.Discriminator()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, betas=(0.5, 0.9))
    noisy = torch.randn(16, 1, 32, 32)
    smooth = torch.nn.functional.avg_pool2d(noisy, 5, stride=1, padding=2)
    losses = []
    for _ in range(30):
        loss = adversarial.hinge_loss(judge, smooth, noisy)
        train.update(loss, judge, optimizer, MACHINE)
        losses.append(loss.item())
    assert losses[0] > 0.9 and losses[-1] < 0.3  # texture is what tells them apart
    near, far = (adversarial.feature_loss(judge, x, noisy).item() for x in (noisy + 0.01, smooth))
    assert near < 0.2 * far


def test_vgg_features_come_from_safetensors(autoencoder, tmp_path):
    from torchvision.models import vgg16

    network = vgg16(weights=None).features[:16]
    save_file({f"features.{name}": value for name, value in network.state_dict().items()}, tmp_path / "v.safetensors")
    features = adversarial.VggFeatures(tmp_path / "v.safetensors").features(torch.randn(2, 1, 16, 16))
    assert [tuple(level.shape) for level in features] == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4)]
    images = ellipse_patches(5, 16).images
    assert pools.feature_space(autoencoder, SAMPLING) == (autoencoder.features, "encoder features")
    encode, said = pools.feature_space(
        autoencoder, SAMPLING.model_copy(update={"feature_weights": str(tmp_path / "v.safetensors")})
    )
    assert said == "VGG16 features" and encode(images).shape == (5, 2 * (64 + 128 + 256))
    first = adversarial.VggFeatures(tmp_path / "v.safetensors").features(
        (torch.tensor(images[:1, None]) / 255 - 0.449) / 0.226
    )
    assert encode(images, 2)[0, :64] == pytest.approx(first[0].mean(dim=(2, 3))[0].numpy(), abs=1e-5)
    with pytest.raises(CompanionError, match="VGG16 weights as safetensors"):
        adversarial.VggFeatures(tmp_path / "absent.safetensors")
    with pytest.raises(CompanionError, match="feature_weight needs feature_weights"):
        params.validate(params.Autoencoder, {"feature_weight": 1.0}, "test")


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_and_channels_last_give_the_same_numbers(patches, autoencoder, tmp_path):
    torch._dynamo.reset()
    fast = replace(MACHINE, compile=True, channels_last=True)
    plain, compiled = (trained(patches, autoencoder, tmp_path / str(m.compile), m, steps=2) for m in (MACHINE, fast))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, compiled.state_dict()[name], atol=2e-4), name


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_diffusion_options as here
here.train_together(Path(sys.argv[1]))
"""


def train_together(folder: Path) -> None:
    """Both trainings, as one of the processes that the environment names."""
    machine = training.compute(params.Profile(name="x", device="cpu"))
    made = ellipse_patches(8)
    autoencoder, _ = train_autoencoder.get_autoencoder(made, AUTOENCODER, **setting(folder, machine))
    more = {"defect_weight": 3.0, "mask_dropout": 0.2}
    train.get_denoiser(made, autoencoder, DENOISER.model_copy(update=more), **setting(folder, machine))


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SHARED, str(tmp_path / "two"), str(Path(__file__).parent)]
    both = [
        subprocess.Popen(command, env={**there, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        train_together(tmp_path / "one")
        for process in both:
            _, said = process.communicate(timeout=400)
            assert process.returncode == 0, said
    finally:
        for process in both:
            process.kill()
    parts = {
        "autoencoder": (autoencoders.load, autoencoders.Autoencoder),
        "denoiser": (denoisers.load, denoisers.Denoiser),
    }
    for network, (load, build) in parts.items():
        (one, about), (two, again) = (load(tmp_path / way / f"{network}.safetensors") for way in ("one", "two"))
        for before, after in zip(about["log"], again["log"], strict=True):  # of the whole batch, not of a share
            before.pop("spectral", None), after.pop("spectral", None)  # of a share: its mean power scatters more
            assert after == pytest.approx(before, rel=2e-3, abs=1e-4)
        with MACHINE.global_seed("test", network, "weights"):
            first = build(about["config"]).state_dict()
        # AdamW steps by rounding errors where a gradient is zero, so weights differ, but by far less than they moved.
        moved, apart = (
            sum((a - b[name]).square().sum() for name, a in one.state_dict().items() if "quantize" not in name).sqrt()
            for b in (first, two.state_dict())
        )
        assert apart < 0.03 * moved
    with pytest.raises(CompanionError, match="batch of 3 cannot be shared equally by 2"):
        replace(MACHINE, processes=2).share(torch.zeros(3))
