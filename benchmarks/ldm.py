"""How fast latent diffusion is: ``python benchmarks/ldm.py [--preset tiny] [--profile smoke] [--batch 32]``.

One preset on random patches. "reference" is the usual loop: float32 (TF32 on a GPU, as everywhere), not compiled, every
batch drawn on the device and encoded again, losses read at every step, the mask encoded at every step of sampling.
"companion" works as the profile says (precision, compile, channels_last): trains by the step of
`companion.diffusion.train.get_denoiser` (kept latents, draws on the host, average of weights), and samples by
`companion.diffusion.sample.sample`, both ways with the profile's sampler and, where it asks for it, noise put back. One
comes after the other, so that each has the whole memory; the median of the rounds counts, and what does not fit into
memory is undefined. The autoencoder is trained at the preset's own batch size. Prints a table and appends a line of
JSON to ``benchmarks/results.jsonl``.

On a GPU::

    python benchmarks/ldm.py --preset paper --profile paper --batch 32
    python benchmarks/ldm.py --preset paper --profile paper --batch 128
    python benchmarks/ldm.py --preset compact --profile course --batch 64
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from companion import geometry, params, provenance
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder, configuration, encode_all, freeze
from companion.diffusion.denoiser import Denoiser
from companion.diffusion.noise import NoiseModel
from companion.diffusion.presets import PRESETS, build_denoiser
from companion.diffusion.sample import sample
from companion.diffusion.train import ENCODE_BATCH, ema_decay, learning_rate, symmetries, update
from companion.errors import CompanionError
from companion.machine import uncompiled
from companion.measurements import record
from companion.config.profile import load_profile
from companion.training import Compute, compute, set_learning_rate

STEPS = 4  # per round, so that waiting for the device once does not count
SAMPLINGS = 2  # rounds of sampling at most: each is hundreds of evaluations
TURNS = 4  # symmetries that training draws from, as in the profiles
DISTANCE = {"l1": F.l1_loss, "l2": F.mse_loss}


class Work(NamedTuple):
    """What is timed: a call, the patches that it works on, and how many rounds count at most.

    `warm_up` does the same for less, before the first round; None: the call itself does.
    """

    call: Callable[[], object]
    patches: int
    rounds: float = math.inf
    warm_up: Callable[[], object] | None = None


def companion_training(
    denoiser: Denoiser,
    latents: Tensor,
    label_maps: Tensor,
    parameters: params.Denoiser,
    machine: Compute,
    name: str = "benchmark",
) -> tuple[Callable[[int], object], AveragedModel]:
    """The step of `companion.diffusion.train.get_denoiser` (a test compares), and the average of weights.

    Parameters
    ----------
    latents : [symmetries, P, C, s, s]
    label_maps : [P, S, S], on the device
    """
    turned, count, *shape = latents.shape
    done = [0]

    def mix(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(parameters, done[0]))

    average = AveragedModel(denoiser, multi_avg_fn=mix)
    optimizer = machine.adamw(denoiser, parameters.learning_rate)
    schedule, distance = denoisers.noise_schedule(denoiser.config), DISTANCE[parameters.loss]
    f = label_maps.shape[-1] // latents.shape[-1]

    def step(i: int) -> dict[str, Tensor]:
        rng, size = machine.generator(name, "denoiser", i), parameters.batch_size
        chosen = torch.randint(count, (size,), generator=rng)
        turns = torch.randint(turned, (size,), generator=rng)
        timestep = torch.randint(parameters.timesteps, (size,), generator=rng)
        noise = torch.randn((size, *shape), generator=rng)
        shown = torch.rand(size, generator=machine.generator(name, "withheld", i)) >= parameters.mask_dropout
        chosen, turns, timestep, noise, shown = map(machine.share, (chosen, turns, timestep, noise, shown))
        masks = symmetries(label_maps[machine.send(chosen)], torch.arange(turned)[turns])
        chosen, turns, timestep, noise, shown = map(machine.send, (chosen, turns, timestep, noise, shown))
        clean = latents[turns, chosen]
        noisy = schedule.add_noise(clean, noise, timestep)
        target = noise if parameters.prediction == "epsilon" else schedule.get_velocity(clean, noise, timestep)
        set_learning_rate(optimizer, learning_rate(parameters, i))
        weight = 1 + parameters.defect_weight * F.avg_pool2d((masks > 0).float().unsqueeze(1), f)
        mean_weight = weight.mean()
        machine.mean(mean_weight)
        with machine.autocast():
            features = denoiser.mask_encoder(masks, shown if parameters.mask_dropout else None)
            predicted = denoiser(noisy, timestep, features).float()
        loss = (weight * distance(predicted, target, reduction="none")).mean() / mean_weight
        update(loss, denoiser, optimizer, machine)
        done[0] = i
        average.update_parameters(denoiser)
        return machine.means({parameters.loss: loss})

    return step, average


def usual_training(
    denoiser: Denoiser,
    autoencoder: Autoencoder,
    images: Tensor,
    label_maps: Tensor,
    parameters: params.Denoiser,
    machine: Compute,
) -> Callable[[int], object]:
    """A step of the usual loop on `images` [symmetries, P, S, S]: the same loss, unweighted, and average of weights."""
    turned, count = images.shape[:2]
    average = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(parameters.ema_decay))
    optimizer = machine.adamw(denoiser, parameters.learning_rate)
    schedule, distance = denoisers.noise_schedule(denoiser.config), DISTANCE[parameters.loss]

    def step(i: int) -> float:
        size, device = parameters.batch_size, machine.device
        chosen, turns = torch.randint(count, (size,), device=device), torch.randint(turned, (size,))
        masks = symmetries(label_maps[chosen], turns)
        with torch.no_grad():
            clean = autoencoder.encode(images[turns.to(device), chosen])
        noise, timestep = torch.randn_like(clean), torch.randint(parameters.timesteps, (size,), device=device)
        noisy = schedule.add_noise(clean, noise, timestep)
        target = noise if parameters.prediction == "epsilon" else schedule.get_velocity(clean, noise, timestep)
        set_learning_rate(optimizer, learning_rate(parameters, i))
        loss = distance(denoiser(noisy, timestep, denoiser.mask_encoder(masks)), target)
        update(loss, denoiser, optimizer, machine)
        average.update_parameters(denoiser)
        return loss.item()

    return step


@torch.no_grad()
def usual_sampling(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    label_maps: Tensor,
    parameters: params.Sampling,
    noise: NoiseModel | None,
) -> NDArray[np.uint8]:
    """One batch [B, S, S] by the usual loop: the mask encoded at every step, noise put back image by image."""
    count, side = len(label_maps), label_maps.shape[-1] // autoencoder.downsampling
    scheduler = denoisers.sampler(denoiser.config, parameters)
    stochastic = {"eta": parameters.eta} if parameters.sampler == "ddim" else {}
    latents = torch.randn((count, autoencoder.latent_channels, side, side), device=label_maps.device)
    for timestep in scheduler.timesteps.to(latents.device):
        predicted = denoiser(latents, timestep.expand(count), denoiser.mask_encoder(label_maps))
        latents = scheduler.step(predicted, timestep, latents, **stochastic).prev_sample
    drawn, rng = autoencoder.decode(latents).cpu().numpy(), np.random.default_rng(1)
    if noise:
        drawn = np.stack([noise.add(image, rng) for image in drawn])
    return np.rint(np.clip(drawn, 0, 255)).astype(np.uint8)


def works(
    preset: str, size: int, batch: int, machine: Compute, asked: params.Sampling, reference: bool
) -> dict[str, Work]:
    """What is timed, by name: `STEPS` batches, of `batch` patches of side `size` px, and one batch of sampling."""
    parameters, device = PRESETS[preset], machine.device
    autoencoder = Autoencoder(configuration(parameters.autoencoder, (128, 30))).to(device)
    frozen = freeze(Autoencoder(autoencoder.config).to(device))
    denoiser = build_denoiser(parameters, classes=3, device=str(device))
    machine.prepare(*(part for a in (autoencoder, frozen) for part in (a.vq.encoder, a.vq.decoder)), denoiser.unet)
    optimizer = machine.adamw(autoencoder, 1e-6)
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 256, (batch, size, size), dtype=np.uint8)
    turned = [np.ascontiguousarray(geometry.symmetry(patches, code)) for code in range(TURNS)]
    crop_px, crops_per_step = parameters.autoencoder.crop_px, parameters.autoencoder.batch_size
    crops = torch.randint(0, 256, (crops_per_step, crop_px, crop_px), device=device)
    masks = rng.integers(0, 4, (batch, size, size), dtype=np.uint8)
    label_maps = torch.from_numpy(masks).to(device)
    with uncompiled(frozen):  # not timed: compiling for this batch would take minutes
        latents = torch.stack([encode_all(frozen, some, ENCODE_BATCH) for some in turned])  # (turns, B, C, s, s)
    with torch.no_grad():
        features = denoiser.mask_encoder(label_maps)
    trained = parameters.denoiser.model_copy(update={"batch_size": batch})
    if reference:
        images = torch.from_numpy(np.stack(turned)).to(device)  # (turns, B, S, S)
        train_denoiser = usual_training(denoiser, frozen, images, label_maps, trained, machine)
    else:
        train_denoiser, _ = companion_training(denoiser, latents, label_maps, trained, machine)
    # One for all and expanded, as in sampling: a tensor of other strides would be compiled for anew there.
    timestep = torch.tensor(trained.timesteps // 2, device=device).expand(batch)
    # What the noise is like does not change how long it takes.
    noise = NoiseModel(np.array([[25.0, 0.1]]), np.ones((1, size, size // 2 + 1), np.float32))
    noise = noise if asked.noise == "measured" else None

    def train_autoencoder(_: int) -> None:
        with machine.autocast():
            scaled = autoencoder.scale(crops)
            decoded, commitment = autoencoder.reconstruction(autoencoder.unscaled_latents(scaled))
            loss = (decoded - scaled).abs().mean() + commitment
        update(loss, autoencoder, optimizer, machine)
        if reference:
            loss.item()

    def evaluate(_: int) -> None:
        with torch.no_grad(), machine.autocast():
            denoiser(latents[0], timestep, denoiser.mask_encoder(label_maps) if reference else features)

    def decode(_: int) -> None:
        with torch.no_grad(), machine.autocast():
            frozen.decode(latents[0])

    def draw(steps: int) -> None:
        used = asked.model_copy(update={"batch_size": batch, "steps": steps, "guidance": 1.0})
        if reference:
            usual_sampling(frozen, denoiser, label_maps, used, noise)
        else:
            sample(frozen, denoiser, masks, range(batch), used, machine=machine, name="benchmark", noise=noise)

    def repeated(work: Callable[[int], object], patches: int) -> Work:
        return Work(lambda: [work(i) for i in range(STEPS)], STEPS * patches)

    return {
        "autoencoder, training crops": repeated(train_autoencoder, crops_per_step),
        "denoiser, training": repeated(train_denoiser, batch),
        "denoiser, one evaluation in sampling": repeated(evaluate, batch),
        "autoencoder, decoding": repeated(decode, batch),
        sampling_name(asked): Work(lambda: draw(asked.steps), batch, SAMPLINGS, lambda: draw(2)),
    }


def sampling_name(asked: params.Sampling) -> str:
    """The row of the table in which whole images are drawn."""
    return f"sampling, {asked.sampler}, {asked.steps} steps{', noise put back' if asked.noise == 'measured' else ''}"


def measure(
    preset: str, size: int, batch: int, machine: Compute, asked: params.Sampling, rounds: int
) -> list[dict[str, object]]:
    """Rows of the table: patches per second of the reference and of the companion, median over `rounds`."""
    plain = replace(machine, dtype=torch.float32, compile=False, channels_last=False)
    rates: dict[str, dict[str, float]] = {}
    for way, used in (("reference", plain), ("companion", machine)):
        named = works(preset, size, batch, used, asked, way == "reference")
        rates[way] = {
            name: work.patches / _seconds(work.call, machine.device, min(rounds, work.rounds), work.warm_up)
            for name, work in tqdm(named.items(), desc=way, leave=False)
        }
        del named  # the next way has the memory to itself
        _free(machine.device)
    return [
        {"patches per second": name, "reference": rate, "companion": rates["companion"][name],
         "times": rates["companion"][name] / rate}
        for name, rate in rates["reference"].items()
    ]  # fmt: skip


def _seconds(
    work: Callable[[], object], device: torch.device, rounds: int, warm_up: Callable[[], object] | None = None
) -> float:
    # Median of the rounds; NaN where the device's memory is too small.
    times = []
    try:
        for call in (warm_up or work, *[work] * rounds):  # the first compiles, too
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    except (torch.OutOfMemoryError, CompanionError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        tqdm.write(f"undefined: {str(error).splitlines()[0]}")
        times = [math.nan, math.nan]
    if math.isnan(times[-1]):  # once the error, which holds what was being computed, is gone
        _free(device)
    return statistics.median(times[1:])


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def sampling_minutes(rows: list[dict[str, object]], images: int = 10_000) -> list[dict[str, object]]:
    """Minutes for so many images: from the rate of whole images, and from those of evaluation and decoding."""
    *_, evaluate, decode, drawn = rows
    ways = ("reference", "companion")
    whole = {
        "minutes": f"{images:,} images, {str(drawn['patches per second']).removeprefix('sampling, ')}, as timed",
        **{way: images / drawn[way] / 60 for way in ways},
    }
    return [whole] + [
        {"minutes": f"{images:,} images by {steps} steps and decoding, by calculation",
         **{way: images * (steps / evaluate[way] + 1 / decode[way]) / 60 for way in ways}}
        for steps in (20, 200)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument(
        "--profile", default="smoke", help="whose device, precision, compiling, patches and sampler count"
    )
    parser.add_argument("--batch", type=int, default=32, help="patches of a batch, in training and in sampling")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    profile = load_profile(given.profile)
    rows = measure(given.preset, profile.patches.size, given.batch, compute(profile), profile.sampling, given.rounds)
    minutes = sampling_minutes(rows)
    fast = ", ".join(name for name in ("compile", "channels_last") if getattr(profile, name)) or "not compiled"
    ways = ("precision", "compile", "channels_last", "threads")
    record(
        "ldm", preset=given.preset, profile=given.profile, patch_px=profile.patches.size, batch=given.batch,
        rounds=given.rounds, **{name: getattr(profile, name) for name in ways}, measured=[*rows, *minutes],
    )  # fmt: skip
    title = f"{given.preset}, {profile.patches.size} px, batch {given.batch}, {profile.precision}, {fast}"
    print(f"{title}, {provenance.device_name()}")
    for table in (minutes, rows):
        print(pd.DataFrame(table).round(2).to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main()
