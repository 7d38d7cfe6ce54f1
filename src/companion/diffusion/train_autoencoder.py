"""Stage 4, first half: the autoencoder, given or trained, then frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.config import profile as params, paths, training
from companion.micrographs.patches import Patches
from companion.diffusion import adversarial
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.train import ENCODE_BATCH, digest, imaged, random_crops, update
from companion.errors import CompanionError


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
    images = imaged(patches)
    path = folder / "autoencoder.safetensors"
    if parameters.weights is not None:
        return _fitted(patches, parameters.weights, path, machine), pd.DataFrame(columns=["step"])
    if parameters.crop_px > patches.size:
        raise CompanionError(
            f"diffusion.autoencoder.crop_px is {parameters.crop_px}, larger than the patches ({patches.size} px)"
        )
    _check_sides(parameters.crop_px, parameters.downsampling, "diffusion.autoencoder.crop_px")
    identity = training.fingerprint(
        __name__, parameters=parameters.model_dump(mode="json"), name=name, root_seed=machine.root_seed,
        precision=machine.precision, images=digest(patches),
    )  # fmt: skip
    if training.is_finished(path, identity):
        autoencoder, about = autoencoders.load(path, machine.device)
        return autoencoder, pd.DataFrame(about["log"])

    resident = machine.send(torch.tensor(np.stack([images, patches.instances > 0], axis=1)))  # (P, 2, S, S)

    def draw(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        crops, defects = random_crops(resident, parameters.batch_size, parameters.crop_px, rng).unbind(dim=1)
        return crops, crops, defects

    grey = (float(images.mean()), float(images.std()))
    autoencoder, log = fit_autoencoder(
        draw, grey, parameters, machine=machine, name=name, folder=folder, every=every, identity=identity
    )
    autoencoders.freeze(autoencoder).fit_scaling(images, ENCODE_BATCH)
    autoencoders.save(autoencoder, path, identity=identity, pretrained=False, log=log.to_dict("records"))
    machine.wait()
    training.drop_checkpoint(folder)
    # What the next process will have, not what this one has: a compiled encoder's latents differ in their last bits.
    return autoencoders.load(path, machine.device)[0], log


def _fitted(patches: Patches, weights: str, path: Path, machine: training.Compute) -> Autoencoder:
    # A given autoencoder, its grey scale and latents scaled to the patches; scaled once, then read from `path`.
    given = paths.given(weights)
    autoencoder, about = autoencoders.load(given, machine.device)
    _check_sides(patches.size, autoencoder.downsampling, "patches.size")
    identity = training.fingerprint(__name__, weights=training.digest(autoencoder), images=digest(patches))
    finished = training.is_finished(path, identity)
    machine.wait()  # every process has looked before one writes
    if not finished:
        images = imaged(patches)
        autoencoder.fit_grey(images)
        autoencoder.fit_scaling(images, ENCODE_BATCH)
        autoencoders.save(autoencoder, path, identity=identity, pretrained=True, origin=about.get("origin"))
        machine.wait()
    return autoencoders.load(path, machine.device)[0]


def fit_autoencoder(
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]],
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
    draw : a batch of crops [B, c, c] in 0-255, as the encoder sees them and as the decoder should draw them, and where
        they hold defects (1, else 0); equal in every process
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
    optimizer = machine.adamw(autoencoder, parameters.learning_rate, betas=(0.9, 0.99))
    parts = {"autoencoder": autoencoder, "optimizer": optimizer}
    judge, judging = None, None
    if parameters.adversarial_weight:
        with machine.global_seed(name, "discriminator", "weights"):
            judge = adversarial.Discriminator().to(machine.device)
        judging = machine.adamw(judge, parameters.learning_rate / 4, betas=(0.5, 0.9))
        parts |= {"discriminator": judge, "discriminator optimizer": judging}
    perceiving = judge
    if parameters.feature_weights is not None:
        perceiving = adversarial.VggFeatures(paths.given(parameters.feature_weights)).to(machine.device)
    machine.prepare(autoencoder.vq.encoder, autoencoder.vq.decoder)
    distance = {"l1": F.l1_loss, "l2": F.mse_loss}[parameters.loss]
    quantised_from = parameters.steps // 4 if start is None else 0
    judged_from = int(parameters.adversarial_from * parameters.steps)

    def step(i: int) -> dict[str, Tensor]:
        rng = machine.generator(name, "autoencoder", i)
        *crops, defects = (machine.send(machine.share(crops)) for crops in draw(rng))
        seen, wanted = (autoencoder.scale(each) for each in crops)  # (B, 1, c, c)
        # Defects cover a few per cent of a crop, hardly above its noise; each pixel of theirs may count for more.
        weight = 1 + parameters.defect_weight * defects.unsqueeze(1).float()
        mean_weight = weight.mean()
        machine.mean(mean_weight)
        training.set_learning_rate(optimizer, training.one_cycle(i, parameters.steps, parameters.learning_rate))
        zero = wanted.new_zeros(())
        feature = verdict = hinge = zero
        with machine.autocast():
            latents = autoencoder.unscaled_latents(seen)  # (B, C, c/f, c/f)
            if i == quantised_from and start is None:
                _spread_codes(autoencoder, machine.gather(latents.detach()), rng)
            # Codes that start far from the latents are never chosen; so the encoder trains alone first.
            decoded, commitment = autoencoder.reconstruction(latents, quantise=i >= quantised_from)
            error = (weight * distance(decoded, wanted, reduction="none")).mean() / mean_weight
            spectral = _spectral_loss(decoded.float(), wanted)
            loss = error + parameters.spectral_weight * spectral + commitment
            if parameters.feature_weight and (perceiving is not judge or i >= judged_from):
                feature = adversarial.feature_loss(perceiving, decoded, wanted)
                loss = loss + parameters.feature_weight * feature
            if judge and i >= judged_from:
                verdict = -judge(decoded).mean()
                balance = adversarial.balance(error, verdict, autoencoder.vq.decoder.conv_out.weight)
                loss = loss + parameters.adversarial_weight * balance * verdict
        update(loss, autoencoder, optimizer, machine)
        losses = {parameters.loss: error, "spectral": spectral, "commitment": commitment}
        if perceiving:
            losses["feature"] = feature
        if judge:
            if i >= judged_from:
                with machine.autocast():
                    hinge = adversarial.hinge_loss(judge, decoded, wanted)
                update(hinge, judge, judging, machine)
            losses |= {"adversarial": verdict, "discriminator": hinge}
        return machine.means(losses)

    log = training.fit(
        step, parts, steps=parameters.steps, folder=folder, identity=identity, every=every, title="autoencoder"
    )
    return autoencoder, log


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


def _check_sides(side: int, downsampling: int, what: str) -> None:
    if side % downsampling:
        raise CompanionError(f"{what} is {side} px, not a multiple of the autoencoder's downsampling {downsampling}")
