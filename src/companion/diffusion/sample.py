"""Stage 5: from noise and a simulated mask to a micrograph patch.

Every image has a random generator of its own, so image i is the same in any subset of a run, in any order and
after any interruption. Batches are padded to one size, because the last bits of a convolution can depend on it;
another `batch_size` gives the same grey levels but for rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from companion.config import profile as params, seeds, training
from companion.micrographs.patches import Patches
from companion.diffusion import conditions
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder, reconstruct, to_grey
from companion.diffusion.denoiser import Denoiser
from companion.diffusion.noise import NoiseModel, measure
from companion.errors import CompanionError
from companion.machine import uncompiled
from companion.provenance import write_array

Watch = Callable[[int, torch.Tensor], None]


def noise_of(train: Patches, autoencoder: Autoencoder, parameters: params.Sampling) -> NoiseModel | None:
    """The noise to put back after decoding, measured on training patches; None where the profile asks for none."""
    return measure(train, reconstruct(autoencoder, train.images)) if parameters.noise == "measured" else None


def generate(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    simulated: Patches,
    parameters: params.Sampling,
    *,
    machine: training.Compute,
    name: str,
    folder: Path,
    noise: NoiseModel | None = None,
) -> Patches:
    """Images for all simulated masks; continues where an interrupted call of the same run stopped.

    Parameters
    ----------
    autoencoder, denoiser : see `autoencoder.load` and `denoiser.load`
    simulated : patches whose ``images`` is None
    parameters : the profile's section
    machine : device, precision and root seed
    name : path of names that the noise descends from, e.g. the stage's address
    folder : finished batches are kept in its ``checkpoint/``, which goes when the stage is finished: what comes after
        sampling may be interrupted as well
    noise : put back after decoding; None: the images are what the autoencoder decodes, as in the paper

    Returns
    -------
    `simulated` with its images; its masks, index and table are untouched
    """
    masks = simulated.label_maps()
    identity = training.fingerprint(
        __name__, parameters=parameters.model_dump(mode="json"), name=name, root_seed=machine.root_seed,
        precision=machine.precision, weights=training.digest(denoiser), autoencoder=training.digest(autoencoder),
        masks=hashlib.sha256(masks).hexdigest(),
        noise=noise and [hashlib.sha256(part).hexdigest() for part in (noise.line, noise.spectrum)],
        pixel_sizes_nm=simulated.index["pixel_size_nm"].tolist(),
    )[:16]  # fmt: skip
    kept = folder / training.CHECKPOINT
    parts = []
    size = parameters.batch_size
    for start in tqdm(range(0, len(masks), size), desc="sampling", mininterval=2, leave=False):
        path = kept / f"images-{identity}-{start}.npy"
        numbers = range(start, min(start + size, len(masks)))
        if not path.exists():
            some = masks[start : start + size]
            drawn = sample(
                autoencoder, denoiser, some, numbers, parameters, machine=machine, name=name, noise=noise,
                pixel_sizes_nm=simulated.index["pixel_size_nm"].tolist()[start : start + size],
            )  # fmt: skip
            write_array(path, drawn)
        parts.append(np.load(path, allow_pickle=False))
    images = np.concatenate(parts) if parts else np.zeros(simulated.instances.shape, dtype=np.uint8)
    return replace(simulated, images=images)


@torch.no_grad()
def sample(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    label_maps: NDArray[np.uint8],
    numbers: Sequence[int],
    parameters: params.Sampling,
    *,
    machine: training.Compute,
    name: str,
    noise: NoiseModel | None = None,
    pixel_sizes_nm: Sequence[float] | None = None,
    watch: Watch | None = None,
) -> NDArray[np.uint8]:
    """Images for given masks and noise numbers.

    Parameters
    ----------
    label_maps : uint8 [n, S, S] class codes
    numbers : a range or list of n image numbers; the same mask and number give the same image
    noise : see `generate`
    pixel_sizes_nm : of the n masks, for a denoiser that is told conditions: it is told those of a training micrograph
        of the nearest pixel size, drawn by the image's number; None: of any
    watch : called with (step, latents [n, C, s, s]) before the first step (0) and after each
        of the steps, to show how an image appears

    Returns
    -------
    uint8 [n, S, S]

    Raises
    ------
    CompanionError
        Masks that do not fit the networks, or whose number is not that of `numbers`; guidance that the denoiser was not
        trained for; a device with too little memory.
    """
    _check(autoencoder, denoiser, label_maps, numbers, parameters)
    machine.prepare(denoiser.unet, autoencoder.vq.decoder)
    size = parameters.batch_size
    images = np.zeros(label_maps.shape, dtype=np.uint8)
    for start in range(0, len(images), size):
        here = slice(start, min(start + size, len(images)))
        count = here.stop - here.start
        masks = np.zeros((size, *label_maps.shape[1:]), dtype=np.uint8)  # padded with empty masks
        masks[:count] = label_maps[here]
        chosen = [int(number) for number in numbers[here]]
        generators = [machine.generator(name, "image", number) for number in chosen]
        told = None
        if described := denoiser.config.get("conditions"):
            nm = [None] * count if pixel_sizes_nm is None else pixel_sizes_nm[here]
            rngs = [machine.generator(name, "conditions", number) for number in chosen]
            lenders = [conditions.drawn_micrograph(described, *one) for one in zip(nm, rngs, strict=True)]
            told = conditions.of_micrographs(described, lenders + lenders[:1] * (size - count))  # (B, conditions)
        with training.enough_memory("sampling"):
            drawn = _denoise(autoencoder, denoiser, masks, told, generators, parameters, machine, watch)  # (B, S, S)
        if noise:
            rngs = [seeds.generator(machine.root_seed, name, "noise", number) for number in chosen]
            drawn = noise.add_to_all(drawn, rngs, torch.get_num_threads())
        images[here] = np.rint(np.clip(drawn, 0, 255))
    return images


def sample_few(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    label_maps: NDArray[np.uint8],
    numbers: Sequence[int],
    parameters: params.Sampling,
    *,
    machine: training.Compute,
    name: str,
    watch: Watch | None = None,
) -> NDArray[np.uint8]:
    """`sample` for a few images that are shown: in one batch of their number, and uncompiled, as none comes again."""
    few = parameters.model_copy(update={"batch_size": max(1, len(label_maps))})
    plain = replace(machine, compile=False)
    with uncompiled(autoencoder, denoiser):
        return sample(autoencoder, denoiser, label_maps, numbers, few, machine=plain, name=name, watch=watch)


@torch.no_grad()
def decode_steps(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    label_maps: NDArray[np.uint8],
    numbers: Sequence[int],
    steps: Sequence[int],
    parameters: params.Sampling,
    *,
    machine: training.Compute,
    name: str,
) -> NDArray[np.uint8]:
    """How images appear: the latents after each of `steps` denoising steps (0: pure noise), decoded.

    Parameters as for `sample`; few masks, as for `sample_few`.

    Returns
    -------
    uint8 [len(steps), n, S, S]
    """
    frames: dict[int, NDArray[np.uint8]] = {}

    def watch(step: int, latents: torch.Tensor) -> None:
        if step in steps:
            frames[step] = to_grey(autoencoder.decode(latents).float())

    sample_few(autoencoder, denoiser, label_maps, numbers, parameters, machine=machine, name=name, watch=watch)
    return np.stack([frames[step] for step in steps])


def _denoise(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    masks: NDArray[np.uint8],
    told: torch.Tensor | None,
    generators: list[torch.Generator],
    parameters: params.Sampling,
    machine: training.Compute,
    watch: Watch | None,
) -> NDArray[np.float32]:
    side = masks.shape[-1] // autoencoder.downsampling
    shape = (autoencoder.latent_channels, side, side)
    count = len(generators)
    scale = parameters.guidance

    def draw() -> torch.Tensor:  # (B, C, s, s), zeros where the batch is padded
        noise = torch.zeros(len(masks), *shape)
        for k, generator in enumerate(generators):
            noise[k] = torch.randn(shape, generator=generator)
        return machine.send(noise)

    scheduler = denoisers.sampler(denoiser.config, parameters)
    latents = draw()
    label_maps = machine.send(torch.from_numpy(masks))
    told = told if told is None else machine.send(told)
    with machine.autocast():
        features = denoiser.mask_encoder(label_maps)  # once: the mask stays
        if scale != 1:  # every patch twice in one batch: with its mask, and with none
            none = denoiser.mask_encoder(label_maps, label_maps.new_zeros(len(masks)))
            features = torch.cat([features, none])
            told = told if told is None else torch.cat([told, told])
    if watch:
        watch(0, latents[:count])
    for k, timestep in enumerate(scheduler.timesteps, start=1):
        twice = latents if scale == 1 else torch.cat([latents, latents])
        with machine.autocast():
            times = machine.send(timestep).expand(len(twice))
            prediction = denoiser(twice, times, features, told).float()
        if scale != 1:
            masked, unmasked = prediction.chunk(2)
            prediction = unmasked + scale * (masked - unmasked)
        stochastic = {"eta": parameters.eta, "variance_noise": draw()} if parameters.sampler == "ddim" else {}
        latents = scheduler.step(prediction, timestep, latents, **stochastic).prev_sample
        if watch:
            watch(k, latents[:count])
    with machine.autocast():
        return autoencoder.decode(latents)[:count].float().cpu().numpy()


def _check(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    label_maps: NDArray[np.uint8],
    numbers: Sequence[int],
    parameters: params.Sampling,
) -> None:
    if parameters.guidance != 1 and not denoiser.config.get("mask_dropout"):
        raise CompanionError(
            f"sampling.guidance is {parameters.guidance}, but the denoiser was never trained without a mask; "
            "train it with diffusion.denoiser.mask_dropout, e.g. 0.1, or leave guidance at 1"
        )
    if len(label_maps) != len(numbers):
        raise CompanionError(f"{len(label_maps)} masks but {len(numbers)} noise numbers; give one number per mask")
    factor = (
        autoencoder.downsampling
        * denoiser.config["stem"]
        * 2 ** (len(denoiser.config["unet"]["block_out_channels"]) - 1)
    )
    if label_maps.shape[-1] % factor:
        raise CompanionError(f"masks of {label_maps.shape[-1]} px: the networks need a multiple of {factor} px")
    classes = denoiser.config["mask"]["classes"]
    if label_maps.max(initial=0) > classes:
        raise CompanionError(
            f"a mask holds class {label_maps.max()}, but the denoiser was trained on {classes} class(es)"
        )
