"""Training of the two networks: the autoencoder, given or trained and then frozen, and the denoiser on its latents.

What a step draws depends on the step alone (see `companion.training`), so a training that was killed and continued
ends with the weights it would have had.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from companion import geometry, training
from companion.config import diffusion as settings_of
from companion.device import Device, Recorded, enough_memory
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder, encode_all, load_autoencoder, save_autoencoder
from companion.diffusion.denoiser import Denoiser, load_denoiser, noise_process, save_denoiser
from companion.errors import CompanionError
from companion.micrographs.patches import Patches
from companion.provenance import hash_arrays
from companion.seeds import Seeds
from companion.weights import digest, is_finished

DISTANCE = {"l1": F.l1_loss, "l2": F.mse_loss}


@dataclass(frozen=True)
class Fitting:
    """Where a network is trained; `folder` is that of weights and checkpoints, `every` the steps between those."""

    device: Device
    seeds: Seeds
    folder: Path
    every: int

    def identity(self, settings: settings_of.Autoencoder | settings_of.Denoiser, *data: Any) -> str:
        """`training.fingerprint` of a training with `settings` on data of these hashes."""
        return training.fingerprint("companion.diffusion.train", settings=settings.model_dump(mode="json"), data=data,
                           seeds=self.seeds.integer(), precision=str(self.device.dtype))  # fmt: skip


def get_autoencoder(
    train: Patches, settings: settings_of.Autoencoder, fitting: Fitting, weights: Path | None = None
) -> tuple[Autoencoder, dict[str, Any]]:
    """The frozen autoencoder, scaled to `train`: that of file `weights`, else one that is trained on `train`.

    Also what is kept with the weights: "log", a row per step with step, loss and commitment (none for given weights).
    """
    images, device, path = np.asarray(train.images), fitting.device, fitting.folder / "autoencoder.safetensors"
    given = load_autoencoder(weights, device.torch)[0] if weights else None
    _check_side(train, (given or settings).downsampling)
    identity = fitting.identity(settings, hash_arrays(images), given and digest(given))
    if not is_finished(path, identity):
        if given:
            autoencoder, log = given, []
            autoencoder.fit_grey(images)
        else:
            side = min(settings.crop_px, train.size)
            autoencoder, log = fit_autoencoder(
                lambda rng: (random_crops(images, settings.batch_size, side, rng),) * 2,
                (float(images.mean()), float(images.std())), settings, fitting, identity,
            )  # fmt: skip
        autoencoder.eval().requires_grad_(False).fit_scaling(images)
        save_autoencoder(autoencoder, path, identity=identity, log=log)
        training.drop_checkpoint(fitting.folder, "autoencoder")
    # What the next process will have, not what this one has: a compiled encoder's latents differ in their last bits.
    return load_autoencoder(path, device.torch)


def fit_autoencoder(
    draw: Callable[[np.random.Generator], tuple[NDArray, NDArray]], grey: tuple[float, float],
    settings: settings_of.Autoencoder, fitting: Fitting, identity: str, start: Autoencoder | None = None,
) -> tuple[Autoencoder, list[dict[str, float]]]:  # fmt: skip
    """Train an autoencoder on crops that `draw` gives; its latents are not scaled yet.

    Parameters
    ----------
    draw : a batch of crops [B, c, c] in 0-255, as the encoder sees them and as the decoder should draw them
    grey : grey level that the network sees as 0, and the difference that it sees as 1
    start : trained further, its codes in use at once; None: a new network, whose codes are spread over its latents
        after a quarter of the steps: codes that start far from the latents are never chosen
    """
    device, seeds = fitting.device, fitting.seeds
    with device.global_seed(seeds.integer("autoencoder", "weights")):
        autoencoder = start or Autoencoder(autoencoders.configuration(settings, grey)).to(device.torch)
    optimizer = device.adamw(autoencoder, settings.learning_rate, betas=(0.9, 0.99))
    device.prepare(autoencoder.vq.encoder, autoencoder.vq.decoder)
    quantised_from = settings.steps // 4 if start is None else 0

    def step(i: int) -> dict[str, Tensor]:  # not recorded as a graph: diffusers' decoder copies to the device
        rng = seeds.rng("autoencoder", i)
        seen, wanted = (autoencoder.scale(device.send(torch.from_numpy(crops))) for crops in draw(rng))  # (B, 1, c, c)
        training.set_learning_rate(optimizer, training.one_cycle(i, settings.steps, settings.learning_rate))
        with device.autocast():
            latents = autoencoder.unscaled_latents(seen)  # (B, C, c/f, c/f)
            if i == quantised_from and start is None:
                vectors, codes = latents.detach().movedim(1, -1).flatten(0, -2), autoencoder.vq.quantize.embedding
                codes.weight.data.copy_(vectors[rng.integers(len(vectors), size=len(codes.weight))])
            decoded, commitment = autoencoder.reconstruction(latents, quantise=i >= quantised_from)
            error = DISTANCE[settings.loss](decoded, wanted)
        optimizer.zero_grad(set_to_none=True)
        descend(error + commitment, autoencoder)
        optimizer.step()
        return {settings.loss: error.detach(), "commitment": commitment.detach()}

    parts = {"autoencoder": autoencoder, "optimizer": optimizer}
    log = training.fit(step, parts, steps=settings.steps, folder=fitting.folder, identity=identity,
                       every=fitting.every, title="autoencoder")  # fmt: skip
    return autoencoder, log.to_dict("records")


def random_crops(images: NDArray, count: int, side: int, rng: np.random.Generator) -> NDArray:
    """Square crops [count, ..., side, side] of patches [P, ..., S, S], at random places and turns."""
    chosen = rng.integers(len(images), size=count)
    corners = rng.integers(images.shape[-1] - side + 1, size=(count, 2))
    codes = rng.integers(geometry.SYMMETRIES, size=count)
    return np.stack([
        geometry.symmetry(images[k][..., y : y + side, x : x + side], code)
        for k, (y, x), code in zip(chosen, corners, codes, strict=True)
    ])  # fmt: skip


def denoising_loss(
    denoiser: Denoiser, process: DDPMScheduler, latents: Tensor, masks: Tensor, timesteps: Tensor, noise: Tensor,
    *, loss: str = "l1", defect_weight: float = 0.0, min_snr: float = 0.0, shown: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One training step's loss: add noise, predict it (or the velocity) under the mask, compare.

    Parameters
    ----------
    latents, noise : [B, C, s, s]
    masks : [B, S, S], see `denoisers.outlined`
    timesteps : int [B]
    loss : "l1" (the paper's) or "l2"
    defect_weight : by how much a latent under a defect counts more; defects cover a few per cent of a patch
    min_snr : ratio of signal to noise at which the weight of an error in z_0 stops growing (min-SNR, Hang et al.
        2023); 0: every timestep counts the same
    shown : bool [B], whose masks the denoiser sees; None: all
    """
    noisy = process.add_noise(latents, noise, timesteps)
    velocity = process.config.prediction_type == "v_prediction"
    target = process.get_velocity(latents, noise, timesteps) if velocity else noise
    predicted = denoiser(noisy, timesteps, denoiser.mask_encoder(masks, shown)).float()
    factor = masks.shape[-1] // latents.shape[-1]
    defects = F.avg_pool2d((masks > 0).float().unsqueeze(1), factor)  # (B, 1, s, s), share of the latent's pixels
    weight = 1 + defect_weight * defects
    error = weight * DISTANCE[loss](predicted, target, reduction="none") / weight.mean()
    if min_snr:
        signal = process.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        ratio = signal / (1 - signal)
        error = error * ratio.clamp(max=min_snr) / (ratio + velocity)  # as a weight of the error in z_0
    return error.mean()


class Pictures(dict[int, Tensor]):
    """What is drawn at checkpoints, uint8 [n, S, S] by steps done: part of the training's state, so never lost."""

    load_state_dict = dict.update

    def state_dict(self) -> dict[int, Tensor]:
        return dict(self)


def get_denoiser(
    train: Patches, autoencoder: Autoencoder, settings: settings_of.Denoiser, fitting: Fitting,
    draw: Callable[[Denoiser], NDArray[np.uint8]] | None = None,
) -> tuple[Denoiser, dict[str, Any]]:  # fmt: skip
    """The denoiser, trained on `train` unless this very training has finished.

    `draw` gives pictures [n, S, S] by the averaged weights, at every checkpoint. Also what is kept with the weights:
    "log", a row per step (step, the loss), and "pictures" by steps done.
    """
    images, masks, path = np.asarray(train.images), denoisers.outlined(train), fitting.folder / "denoiser.safetensors"
    device, seeds = fitting.device, fitting.seeds
    # Of the autoencoder's weights, not of latents: on a GPU their last bits may differ from process to process.
    identity = fitting.identity(settings, hash_arrays(images, masks), train.symmetries, digest(autoencoder))
    if is_finished(path, identity):
        return load_denoiser(path, device.torch)
    # The autoencoder is frozen: every patch is encoded once in each of its symmetries, (P', C, s, s) and (P', S, S).
    with enough_memory("encoding the training patches"):
        latents = torch.cat([encode_all(autoencoder, geometry.symmetry(images, code)) for code in train.symmetries])
        turned = np.concatenate([geometry.symmetry(masks, code) for code in train.symmetries])
        shown_masks = device.send(torch.from_numpy(turned))
    latent = autoencoder.latent_channels, autoencoder.downsampling
    with device.global_seed(seeds.integer("denoiser", "weights")):
        denoiser = Denoiser(denoisers.configuration(settings, len(train.classes), *latent)).to(device.torch)
    _check_side(train, denoiser.multiple_px)
    device.prepare(denoiser.unet)  # first, so that the average has the same layout in memory
    average = copy.deepcopy(denoiser).eval().requires_grad_(False)
    optimizer = device.adamw(denoiser, settings.learning_rate)
    process, pictures = noise_process(denoiser.config), Pictures()

    def gradients(latents: Tensor, masks: Tensor, timesteps: Tensor, noise: Tensor, shown: Tensor) -> Tensor:
        """The loss of a batch; leaves its gradients."""
        optimizer.zero_grad(set_to_none=True)
        with device.autocast():
            loss = denoising_loss(
                denoiser, process, latents, masks, timesteps, noise, loss=settings.loss,
                defect_weight=settings.defect_weight, min_snr=settings.min_snr,
                shown=shown if settings.mask_dropout else None,
            )  # fmt: skip
        descend(loss, denoiser)
        return loss.detach()

    recorded = Recorded(gradients, denoiser)

    def step(i: int) -> dict[str, Tensor]:
        rng, size = seeds.torch("denoiser", i), settings.batch_size
        chosen = torch.randint(len(latents), (size,), generator=rng)
        timesteps = torch.randint(settings.timesteps, (size,), generator=rng)
        noise = torch.randn((size, *latents.shape[1:]), generator=rng)
        shown = torch.rand(size, generator=rng) >= settings.mask_dropout
        chosen, timesteps, noise, shown = map(device.send, (chosen, timesteps, noise, shown))
        training.set_learning_rate(optimizer, learning_rate(settings, i))
        loss = recorded(latents[chosen], shown_masks[chosen], timesteps, noise, shown)
        optimizer.step()
        mix = get_ema_multi_avg_fn(ema_decay(settings, i))
        mix(list(average.parameters()), list(denoiser.parameters()), None)
        return {settings.loss: loss}

    def picture(done: int) -> None:
        if draw:
            pictures[done] = torch.from_numpy(draw(average))

    parts = {"denoiser": denoiser, "average": average, "optimizer": optimizer, "pictures": pictures}
    log = training.fit(step, parts, steps=settings.steps, folder=fitting.folder, identity=identity,
                       every=fitting.every, title="denoiser", callback=picture)  # fmt: skip
    save_denoiser(average, path, pictures.state_dict(), identity=identity, log=log.to_dict("records"))
    training.drop_checkpoint(fitting.folder, "denoiser")
    return load_denoiser(path, device.torch)


def ema_decay(settings: settings_of.Denoiser, step: int) -> float:
    """Decay of the average of weights in a step: it rises to its final value, so that early weights are forgotten."""
    return min(settings.ema_decay, (1 + step) / (10 + step))


def learning_rate(settings: settings_of.Denoiser, step: int) -> float:
    """Linear warm-up, then constant (the paper's) or a half cosine down to 0 at the last step."""
    rate = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
    return rate if settings.decay == "none" else rate * (1 + math.cos(math.pi * step / settings.steps)) / 2


def descend(loss: Tensor, network: torch.nn.Module) -> None:
    """Gradients of `loss`, clipped to a norm of 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)


def _check_side(train: Patches, multiple: int) -> None:
    """Whether the networks can take the patches."""
    if train.size % multiple:
        raise CompanionError(f"patches.size is {train.size} px, but the networks need a multiple of {multiple} px")
