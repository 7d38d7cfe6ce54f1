"""Stage 4, second half: the mask-conditioned denoiser on the latents of a frozen autoencoder.

Its training and the autoencoder's (`companion.diffusion.train_autoencoder`) go through `training.fit`: the draws of a
step depend on the step alone, so a training that was killed and continued ends with the weights it would have had.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from companion import geometry, params, training
from companion.micrographs.patches import Patches
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import conditions
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.denoiser import Denoiser
from companion.errors import CompanionError
from companion.machine import send, uncompiled
from companion.provenance import atomic
from companion.weights import is_main

PICTURES = "grid"  # folder of what is drawn at checkpoints of a denoiser
ENCODE_BATCH = 32  # patches encoded at a time; the same everywhere, so that latents do not depend on other batch sizes


def get_denoiser(
    patches: Patches,
    autoencoder: Autoencoder,
    parameters: params.Denoiser,
    *,
    machine: training.Compute,
    name: str,
    folder: Path,
    every: int,
    watch: Callable[[int, Denoiser], None] | None = None,
) -> tuple[Denoiser, pd.DataFrame]:
    """The denoiser, from `folder` if this very training has finished there, else trained on `patches`.

    The autoencoder is frozen, so every patch is encoded once in each of its symmetries. Parameters and errors
    as for `train_autoencoder.get_autoencoder`; `watch` is called at every checkpoint with the number of steps done
    and the denoiser with averaged weights. What it draws belongs into ``folder/grid``, which holds pictures of this
    training alone.

    Returns
    -------
    denoiser : in evaluation mode, with averaged weights
    log : one row per optimiser step
    """
    path = folder / "denoiser.safetensors"
    images = imaged(patches)
    config = denoisers.configuration(
        parameters, classes=len(patches.classes), latent_channels=autoencoder.latent_channels,
        downsampling=autoencoder.downsampling, conditions=conditions.describe(patches, parameters.conditions),
    )  # fmt: skip
    # Of the autoencoder's weights, not of latents: on a GPU their last bits may differ from process to process.
    identity = training.fingerprint(
        __name__, parameters=parameters.model_dump(mode="json"), config=config, name=name, root_seed=machine.root_seed,
        precision=machine.precision, images=digest(patches), autoencoder=training.digest(autoencoder),
    )  # fmt: skip
    _keep_pictures_of(identity, folder / PICTURES)
    if training.is_finished(path, identity):
        denoiser, about = denoisers.load(path, machine.device)
        return denoiser, pd.DataFrame(about["log"])
    with training.enough_memory("encoding the training patches"):
        latents = torch.stack([  # (symmetries, P, C, s, s)
            autoencoders.encode_all(autoencoder, geometry.symmetry(images, code), ENCODE_BATCH)
            for code in patches.symmetries
        ])  # fmt: skip
        label_maps = machine.send(torch.from_numpy(patches.label_maps()))  # (P, S, S)
    told = config["conditions"] and machine.send(
        conditions.of_micrographs(config["conditions"], patches.index["image"].tolist())  # (P, conditions)
    )
    with machine.global_seed(name, "denoiser", "weights"):
        denoiser = Denoiser(config).to(machine.device)
    machine.prepare(denoiser.unet)  # first, so that the average has the same layout in memory
    done = [0]  # steps; here and not on the device, where to look at it would make the host wait

    def mix(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(parameters, done[0]))

    average = AveragedModel(denoiser, multi_avg_fn=mix)
    optimizer = machine.adamw(denoiser, parameters.learning_rate)
    schedule = denoisers.noise_schedule(config)
    distance = {"l1": F.l1_loss, "l2": F.mse_loss}[parameters.loss]
    f = autoencoder.downsampling

    def step(i: int) -> dict[str, Tensor]:
        rng = machine.generator(name, "denoiser", i)
        size = parameters.batch_size
        chosen = torch.randint(len(patches), (size,), generator=rng)
        turns = torch.randint(len(patches.symmetries), (size,), generator=rng)
        timestep = torch.randint(parameters.timesteps, (size,), generator=rng)
        noise = torch.randn((size, *latents.shape[2:]), generator=rng)
        withheld = machine.generator(name, "withheld", i)
        shown = torch.rand(size, generator=withheld) >= parameters.mask_dropout
        drawn = (chosen, turns, timestep, noise, shown)
        chosen, turns, timestep, noise, shown = (machine.share(values) for values in drawn)
        masks = symmetries(label_maps[machine.send(chosen)], torch.tensor(patches.symmetries)[turns])  # (B, S, S)
        chosen, turns, timestep, noise, shown = map(machine.send, (chosen, turns, timestep, noise, shown))
        clean = latents[turns, chosen]  # (B, C, s, s)
        noisy = schedule.add_noise(clean, noise, timestep)
        target = noise if parameters.prediction == "epsilon" else schedule.get_velocity(clean, noise, timestep)
        training.set_learning_rate(optimizer, learning_rate(parameters, i))
        # Defects cover a few per cent of a patch: each of their latents may be made to count for more.
        defect = F.avg_pool2d((masks > 0).float().unsqueeze(1), f)  # (B, 1, s, s), share of the latent's pixels
        weight = 1 + parameters.defect_weight * defect
        mean_weight = weight.mean()
        machine.mean(mean_weight)
        with machine.autocast():
            features = denoiser.mask_encoder(masks, shown if parameters.mask_dropout else None)
            predicted = denoiser(noisy, timestep, features, told if told is None else told[chosen]).float()
        loss = (weight * distance(predicted, target, reduction="none")).mean() / mean_weight
        update(loss, denoiser, optimizer, machine)
        done[0] = i
        average.update_parameters(denoiser)
        return machine.means({parameters.loss: loss})

    def at_checkpoint(steps: int) -> None:
        if steps and watch:
            watch(steps, average.module)

    log = training.fit(
        step, {"denoiser": denoiser, "average": average, "optimizer": optimizer}, steps=parameters.steps, folder=folder,
        identity=identity, every=every, title="denoiser", callback=at_checkpoint,
    )  # fmt: skip
    denoiser = average.module.eval().requires_grad_(False)
    denoisers.save(denoiser, path, identity=identity, log=log.to_dict("records"))
    training.drop_checkpoint(folder)
    return denoiser, log


def _keep_pictures_of(identity: str, pictures: Path) -> None:
    """Empty the folder `pictures` unless what it holds was drawn by this very training."""
    mark = pictures / ".training"  # hidden: no artifact
    if not is_main() or (mark.is_file() and mark.read_text(encoding="utf-8") == identity):
        return
    shutil.rmtree(pictures, ignore_errors=True)
    with atomic(mark) as temporary:
        temporary.write_text(identity, encoding="utf-8")


def ema_decay(parameters: params.Denoiser, step: int) -> float:
    """Decay of the average of weights in a step: it rises to its final value, so that the first weights are forgotten.

    With 0.9999 from the start, the weights of the first step would still make up 3 % after 36,000 steps.
    """
    return min(parameters.ema_decay, (1 + step) / (10 + step))


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
    with uncompiled(autoencoder):
        return autoencoders.to_grey(autoencoder.decode(process.add_noise(latents, noise.expand_as(latents), times)))


def last_losses(log: pd.DataFrame) -> dict[str, float]:
    """Number of optimiser steps of a log and the mean of each loss over its last tenth; empty for an empty log."""
    if log.empty:
        return {"steps": 0}
    losses = log.drop(columns=["step", "network"], errors="ignore").dropna(axis=1, how="all")
    return {"steps": len(log), **losses.tail(max(1, len(log) // 10)).mean().to_dict()}


def symmetries(batch: Tensor, codes: Tensor) -> Tensor:
    """Each of [B, ..., S, S] under its own symmetry of the square (see `geometry.symmetry`).

    Parameters
    ----------
    batch : on any device
    codes : int [B], 0-7, on the CPU: then nothing waits for a GPU
    """
    order = torch.argsort(codes, stable=True)  # one symmetry after another, so that each is turned in one go
    order, back = send(torch.stack([order, torch.argsort(order)]), batch.device)
    counts = torch.bincount(codes, minlength=geometry.SYMMETRIES).tolist()
    parts = [
        torch.rot90(some.flip(-1) if code >= 4 else some, code % 4, (-2, -1))
        for code, some in enumerate(batch[order].split(counts))
        if len(some)
    ]
    return torch.cat(parts)[back]


def random_crops(images: Tensor, count: int, side: int, rng: torch.Generator) -> Tensor:
    """Square crops [count, ..., side, side] of patches [P, ..., S, S], on their device, at random places and turns."""
    span = images.shape[-1] - side + 1
    chosen = torch.randint(len(images), (count,), generator=rng)
    corners = torch.randint(span, (count, 2), generator=rng)
    codes = torch.randint(geometry.SYMMETRIES, (count,), generator=rng)
    drawn = send(torch.cat([chosen[:, None], corners], dim=1), images.device)  # (count, 3)
    along = torch.arange(side, device=images.device)
    pixels = images.movedim((-2, -1), (1, 2))  # (P, S, S, ...)
    crops = pixels[drawn[:, 0, None, None], (drawn[:, [1]] + along)[:, :, None], (drawn[:, [2]] + along)[:, None, :]]
    return symmetries(crops.movedim((1, 2), (-2, -1)), codes)


def update(loss: Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer, machine: training.Compute) -> None:
    """One optimiser step down `loss`, with gradients averaged over the processes and clipped to a norm of 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    machine.mean(*(parameter.grad for parameter in network.parameters() if parameter.grad is not None))
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def imaged(patches: Patches) -> np.ndarray:
    """The images of training patches, uint8 [P, S, S], in memory.

    Raises
    ------
    CompanionError
        When there are none.
    """
    if patches.images is None or len(patches) == 0:
        what = "no patches" if patches.images is not None else "masks without images"
        raise CompanionError(
            f"diffusion is trained on imaged patches, but got {what}; give the split's training patches"
        )
    return np.asarray(patches.images)


def digest(patches: Patches) -> str:
    """Identity of training patches: images, masks and symmetries."""
    digest = hashlib.sha256(np.ascontiguousarray(patches.images))
    digest.update(np.ascontiguousarray(patches.label_maps()))
    return digest.hexdigest() + str(patches.symmetries)
