"""Stage 4: train the autoencoder (where none is given), freeze it, train the mask-conditioned denoiser.

Both trainings go through `training.fit`: the draws of a step depend on the step alone, so a training that was
killed and continued ends with the weights it would have had.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from companion import geometry, params, paths, training
from companion.data.patches import Patches
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.denoiser import Denoiser
from companion.errors import CompanionError
from companion.provenance import hash_value

ENCODE_BATCH = 32  # patches encoded at a time; the same everywhere, so that latents do not depend on other batch sizes


def get_autoencoder(
    patches: Patches, parameters: params.Autoencoder, *, machine: training.Compute, name: str, folder: Path, every: int
) -> tuple[Autoencoder, pd.DataFrame]:
    """The frozen autoencoder: from ``parameters.weights``, else from `folder`, else trained on `patches`.

    Parameters
    ----------
    patches : training patches with images
    parameters : the profile's section
    machine : device, precision and root seed
    name : path of names that the draws descend from, e.g. the stage's address
    folder : where ``autoencoder.safetensors`` and the checkpoint are written
    every : steps between checkpoints

    Returns
    -------
    autoencoder : frozen, its grey scale and latents scaled to `patches`
    log : one row per optimiser step (none where weights were given)

    Raises
    ------
    CompanionError
        No images, crops larger than patches, or weights that cannot be read.
    """
    images = _images(patches)
    path = folder / "autoencoder.safetensors"
    if parameters.weights is not None:
        autoencoder, about = autoencoders.load(paths.given(parameters.weights), machine.device)
        _check_sides(patches.size, autoencoder.downsampling, "patches.size")
        autoencoder.fit_grey(images)
        autoencoder.fit_scaling(images, ENCODE_BATCH)
        autoencoders.save(autoencoder, path, pretrained=True, origin=about.get("origin"))
        return autoencoder, pd.DataFrame(columns=["step"])
    if parameters.crop_px > patches.size:
        raise CompanionError(
            f"diffusion.autoencoder.crop_px is {parameters.crop_px}, larger than the patches ({patches.size} px)"
        )
    _check_sides(parameters.crop_px, parameters.downsampling, "diffusion.autoencoder.crop_px")
    identity = training.fingerprint(
        __name__, parameters=parameters.model_dump(mode="json"), name=name, root_seed=machine.root_seed,
        dtype=str(machine.dtype), images=_digest(patches),
    )  # fmt: skip
    if training.is_finished(path, identity):
        autoencoder, about = autoencoders.load(path, machine.device)
        return autoencoder, pd.DataFrame(about["log"])

    def draw(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        crops = random_crops(images, parameters.batch_size, parameters.crop_px, rng)
        return crops, crops

    grey = (float(images.mean()), float(images.std()))
    autoencoder, log = fit_autoencoder(
        draw, grey, parameters, machine=machine, name=name, folder=folder, every=every, identity=identity
    )
    autoencoders.freeze(autoencoder).fit_scaling(images, ENCODE_BATCH)
    autoencoders.save(autoencoder, path, identity=identity, pretrained=False, log=log.to_dict("records"))
    training.drop_checkpoint(folder)
    return autoencoder, log


def fit_autoencoder(
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    grey: tuple[float, float],
    parameters: params.Autoencoder,
    *,
    machine: training.Compute,
    name: str,
    folder: Path,
    every: int,
    identity: str,
    start: Autoencoder | None = None,
) -> tuple[Autoencoder, pd.DataFrame]:
    """Train an autoencoder on crops that `draw` gives; its latents are not scaled yet.

    Parameters
    ----------
    draw : a batch of crops [B, c, c] in 0-255, as the encoder sees them and as the decoder should draw them
    grey : grey level that the network sees as 0, and the difference that it sees as 1
    identity : see `training.fit`; the other parameters are those of `get_autoencoder`
    start : trained further, its codes in use at once; None: a new network, whose codes are spread over its latents
        after a quarter of the steps

    Returns
    -------
    autoencoder : still trainable
    log : one row per optimiser step
    """
    with machine.global_seed(name, "autoencoder", "weights"):
        autoencoder = start or Autoencoder(autoencoders.configuration(parameters, grey)).to(machine.device)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=parameters.learning_rate, betas=(0.9, 0.99))
    quantised_from = parameters.steps // 4 if start is None else 0

    def step(i: int) -> dict[str, float]:
        rng = machine.generator(name, "autoencoder", i)
        seen, wanted = (autoencoder.scale(crops.to(machine.device)) for crops in draw(rng))  # (B, 1, c, c)
        training.set_learning_rate(optimizer, training.one_cycle(i, parameters.steps, parameters.learning_rate))
        with machine.autocast():
            latents = autoencoder.unscaled_latents(seen)  # (B, C, c/f, c/f)
            if i == quantised_from and start is None:
                _spread_codes(autoencoder, latents.detach(), rng)
            # Codes that start far from the latents are never chosen; so the encoder trains alone first.
            decoded, commitment = autoencoder.reconstruction(latents, quantise=i >= quantised_from)
            error = F.l1_loss(decoded, wanted)
            spectral = _spectral_loss(decoded.float(), wanted)
            loss = error + parameters.spectral_weight * spectral + commitment
        _update(loss, autoencoder, optimizer)
        return {"l1": error.item(), "spectral": spectral.item(), "commitment": commitment.item()}

    log = training.fit(
        step, {"autoencoder": autoencoder, "optimizer": optimizer}, steps=parameters.steps, folder=folder,
        identity=identity, every=every, title="autoencoder",
    )  # fmt: skip
    return autoencoder, log


def get_denoiser(
    patches: Patches,
    autoencoder: Autoencoder,
    parameters: params.Denoiser,
    *,
    machine: training.Compute,
    name: str,
    folder: Path,
    every: int,
) -> tuple[Denoiser, pd.DataFrame]:
    """The denoiser, from `folder` if this very training has finished there, else trained on `patches`.

    The autoencoder is frozen, so every patch is encoded once in each of its symmetries. Parameters and errors
    as for `get_autoencoder`.

    Returns
    -------
    denoiser : in evaluation mode, with averaged weights
    log : one row per optimiser step
    """
    path = folder / "denoiser.safetensors"
    config = denoisers.configuration(
        parameters, classes=len(patches.classes), latent_channels=autoencoder.latent_channels,
        downsampling=autoencoder.downsampling,
    )  # fmt: skip
    images = _images(patches)
    latents = torch.stack([  # (symmetries, P, C, s, s)
        autoencoders.encode_all(autoencoder, geometry.symmetry(images, code), ENCODE_BATCH)
        for code in patches.symmetries
    ])  # fmt: skip
    label_maps = torch.from_numpy(patches.label_maps()).to(machine.device)  # (P, S, S)
    identity = training.fingerprint(
        __name__, parameters=parameters.model_dump(mode="json"), config=config, name=name, root_seed=machine.root_seed,
        dtype=str(machine.dtype), images=_digest(patches), latents=hash_value(latents.mean(dim=1).tolist()),
    )  # fmt: skip
    if training.is_finished(path, identity):
        denoiser, about = denoisers.load(path, machine.device)
        return denoiser, pd.DataFrame(about["log"])
    with machine.global_seed(name, "denoiser", "weights"):
        denoiser = Denoiser(config).to(machine.device)
    average = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(parameters.ema_decay))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=parameters.learning_rate)
    schedule = denoisers.noise_schedule(config)
    distance = {"l1": F.l1_loss, "l2": F.mse_loss}[parameters.loss]
    f = autoencoder.downsampling

    def step(i: int) -> dict[str, float]:
        rng = machine.generator(name, "denoiser", i)
        size = parameters.batch_size
        chosen = torch.randint(len(patches), (size,), generator=rng)
        turns = torch.randint(len(patches.symmetries), (size,), generator=rng)
        clean = latents[turns, chosen]  # (B, C, s, s)
        codes = torch.tensor(patches.symmetries)[turns]
        masks = symmetries(label_maps[chosen], codes)  # (B, S, S)
        timestep = torch.randint(parameters.timesteps, (size,), generator=rng).to(machine.device)
        noise = torch.randn(clean.shape, generator=rng).to(machine.device)
        noisy = schedule.add_noise(clean, noise, timestep)
        target = noise if parameters.prediction == "epsilon" else schedule.get_velocity(clean, noise, timestep)
        training.set_learning_rate(optimizer, learning_rate(parameters, i))
        # Defects cover a few per cent of a patch: each of their latents may be made to count for more.
        defect = F.avg_pool2d((masks > 0).float().unsqueeze(1), f)  # (B, 1, s, s), share of the latent's pixels
        weight = 1 + parameters.defect_weight * defect
        with machine.autocast():
            predicted = denoiser(noisy, timestep, denoiser.mask_encoder(masks)).float()
        loss = (weight * distance(predicted, target, reduction="none")).mean() / weight.mean()
        _update(loss, denoiser, optimizer)
        average.update_parameters(denoiser)
        return {parameters.loss: loss.item()}

    log = training.fit(
        step, {"denoiser": denoiser, "average": average, "optimizer": optimizer}, steps=parameters.steps, folder=folder,
        identity=identity, every=every, title="denoiser",
    )  # fmt: skip
    denoiser = average.module.eval().requires_grad_(False)
    denoisers.save(denoiser, path, identity=identity, log=log.to_dict("records"))
    training.drop_checkpoint(folder)
    return denoiser, log


def learning_rate(parameters: params.Denoiser, step: int) -> float:
    """Linear warm-up, then constant (the paper's) or a half cosine down to 0 at the last step."""
    rate = parameters.learning_rate * min(1.0, (step + 1) / (parameters.warmup_steps + 1))
    return rate if parameters.decay == "none" else rate * (1 + math.cos(math.pi * step / parameters.steps)) / 2


@torch.no_grad()
def noised(
    autoencoder: Autoencoder,
    image: np.ndarray,
    steps: list[int],
    parameters: params.Denoiser,
    machine: training.Compute,
) -> np.ndarray:
    """One patch [S, S], encoded, noised to each of the timesteps with the same noise, and decoded: [n, S, S]."""
    latents = autoencoders.encode_all(autoencoder, image[None], 1).expand(len(steps), -1, -1, -1)  # (n, C, s, s)
    noise = torch.randn(latents[:1].shape, generator=machine.generator("noised")).to(machine.device)
    process = denoisers.noise_schedule({"schedule": denoisers.schedule_of(parameters)})
    times = torch.tensor(steps, device=machine.device)
    return autoencoders.to_grey(autoencoder.decode(process.add_noise(latents, noise.expand_as(latents), times)))


def last_losses(log: pd.DataFrame) -> dict[str, float]:
    """Number of optimiser steps of a log and the mean of each loss over its last tenth; empty for an empty log."""
    if log.empty:
        return {"steps": 0}
    losses = log.drop(columns=["step", "network"], errors="ignore").dropna(axis=1, how="all")
    return {"steps": len(log), **losses.tail(max(1, len(log) // 10)).mean().to_dict()}


def symmetries(batch: Tensor, codes: Tensor) -> Tensor:
    """Each of [B, ..., S, S] under its own symmetry of the square, code 0-7 (see `geometry.symmetry`)."""
    turned = torch.empty_like(batch)
    for code in codes.unique().tolist():
        chosen = torch.nonzero(codes == code).flatten().to(batch.device)
        some = batch[chosen]
        turned[chosen] = torch.rot90(some.flip(-1) if code >= 4 else some, code % 4, (-2, -1))
    return turned


def random_crops(images: np.ndarray, count: int, side: int, rng: torch.Generator) -> Tensor:
    """Square crops [count, ..., side, side] at random places and symmetries of patches [P, ..., S, S]."""
    span = images.shape[-1] - side + 1
    chosen = torch.randint(len(images), (count,), generator=rng).tolist()
    corners = torch.randint(span, (count, 2), generator=rng).tolist()
    crops = np.stack([images[p, ..., y : y + side, x : x + side] for p, (y, x) in zip(chosen, corners, strict=True)])
    return symmetries(torch.from_numpy(crops), torch.randint(geometry.SYMMETRIES, (count,), generator=rng))


def _spread_codes(autoencoder: Autoencoder, latents: Tensor, rng: torch.Generator) -> None:
    vectors = latents.movedim(1, -1).flatten(0, -2)  # (B s s, C)
    codes = autoencoder.vq.quantize.embedding.weight
    drawn = torch.randint(len(vectors), (len(codes),), generator=rng).to(vectors.device)
    codes.data.copy_(vectors[drawn])


def _spectral_loss(decoded: Tensor, target: Tensor) -> Tensor:
    # Log amplitudes without phases: asks for the right amount of texture, not for the same noise in the same place.
    # Mean power over the batch first, since single images' noise spectra scatter.
    power = [torch.fft.rfft2(x, norm="ortho").abs().square().mean(dim=(0, 1)) for x in (decoded, target)]
    return (torch.log10(power[0] + 1e-6) - torch.log10(power[1] + 1e-6)).abs().mean()


def _update(loss: Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _images(patches: Patches) -> np.ndarray:
    if patches.images is None or len(patches) == 0:
        what = "no patches" if patches.images is not None else "masks without images"
        raise CompanionError(
            f"diffusion is trained on imaged patches, but got {what}; give the split's training patches"
        )
    return np.asarray(patches.images)


def _check_sides(side: int, downsampling: int, what: str) -> None:
    if side % downsampling:
        raise CompanionError(f"{what} is {side} px, not a multiple of the autoencoder's downsampling {downsampling}")


def _digest(patches: Patches) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(patches.images))
    digest.update(np.ascontiguousarray(patches.label_maps()))
    return digest.hexdigest() + str(patches.symmetries)
