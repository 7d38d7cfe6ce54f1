"""How fast latent diffusion is: ``python benchmarks/ldm.py [--preset tiny] [--profile smoke] [--batch 32]``.

On a GPU: ``python benchmarks/ldm.py --preset paper --profile paper --batch 128``.

One preset on random patches. "reference" is the usual loop: float32, not compiled, every batch encoded again, losses
read at every step, the mask encoded at every step of sampling. "companion" works as the profile says (precision,
compile, channels_last) on kept latents, and waits for the device only at the end of a round. One comes after the other,
so that each has the whole memory; the median of the rounds counts, and what does not fit into memory is undefined.
The autoencoder is trained at the preset's own batch size. Prints a table and appends a line of JSON to
``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from companion import geometry, provenance
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder, configuration, encode_all, freeze
from companion.diffusion.presets import PRESETS, build_denoiser
from companion.diffusion.train import ENCODE_BATCH, symmetries, update
from companion.measurements import record
from companion.params import load_profile
from companion.training import Compute, compute

STEPS = 4  # per round, so that waiting for the device once does not count
TURNS = 4  # symmetries that training draws from, as in the profiles


def works(
    preset: str, size: int, batch: int, machine: Compute, reference: bool
) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, by name, and the patches of a call: `STEPS` batches, of `batch` patches of side `size` px."""
    parameters, device = PRESETS[preset], machine.device
    autoencoder = Autoencoder(configuration(parameters.autoencoder, (128, 30))).to(device)
    frozen = freeze(Autoencoder(autoencoder.config).to(device))
    denoiser = build_denoiser(parameters, classes=3, device=str(device))
    machine.prepare(*(part for a in (autoencoder, frozen) for part in (a.vq.encoder, a.vq.decoder)), denoiser.unet)
    optimizers = [machine.adamw(network, 1e-6) for network in (autoencoder, denoiser)]
    patches = np.random.default_rng(1).integers(0, 256, (batch, size, size), dtype=np.uint8)
    turned = [np.ascontiguousarray(geometry.symmetry(patches, code)) for code in range(TURNS)]
    images = torch.from_numpy(np.stack(turned)).to(device)  # (turns, B, S, S)
    crop_px, crops_per_step = parameters.autoencoder.crop_px, parameters.autoencoder.batch_size
    crops = torch.randint(0, 256, (crops_per_step, crop_px, crop_px), device=device)
    masks = torch.randint(0, 4, (batch, size, size), device=device, dtype=torch.uint8)
    schedule = denoisers.noise_schedule(denoiser.config)
    latents = torch.stack([encode_all(frozen, some, ENCODE_BATCH) for some in turned])  # (turns, B, C, s, s)
    with torch.no_grad():
        features = denoiser.mask_encoder(masks)
    rng, numbers = torch.Generator().manual_seed(1), torch.arange(batch, device=device)
    timestep = torch.randint(0, parameters.denoiser.timesteps, (batch,), device=device)

    def step(loss: torch.Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        update(loss, network, optimizer, machine)
        if reference:
            loss.item()

    def train_autoencoder() -> None:
        with machine.autocast():
            scaled = autoencoder.scale(crops)
            decoded, commitment = autoencoder.reconstruction(autoencoder.unscaled_latents(scaled))
            loss = (decoded - scaled).abs().mean() + commitment
        step(loss, autoencoder, optimizers[0])

    def train_denoiser() -> None:
        turns = torch.randint(TURNS, (batch,), generator=rng)
        shown, turns = symmetries(masks, turns), machine.send(turns)
        with torch.no_grad():
            clean = frozen.encode(images[turns, numbers]) if reference else latents[turns, numbers]
        noise = torch.randn_like(clean)
        noisy = schedule.add_noise(clean, noise, timestep)
        with machine.autocast():
            predicted = denoiser(noisy, timestep, denoiser.mask_encoder(shown)).float()
        step((predicted - noise).abs().mean(), denoiser, optimizers[1])

    def evaluate() -> None:
        with torch.no_grad(), machine.autocast():
            denoiser(latents[0], timestep, denoiser.mask_encoder(masks) if reference else features)

    def decode() -> None:
        with torch.no_grad(), machine.autocast():
            frozen.decode(latents[0])

    def repeated(work: Callable[[], None]) -> Callable[[], None]:
        return lambda: [work() for _ in range(STEPS)]

    named = {"autoencoder, training crops": (train_autoencoder, crops_per_step), "denoiser, training":
             (train_denoiser, batch), "denoiser, one evaluation in sampling": (evaluate, batch),
             "autoencoder, decoding": (decode, batch)}  # fmt: skip
    return {name: (repeated(work), STEPS * patches) for name, (work, patches) in named.items()}


def measure(preset: str, size: int, batch: int, machine: Compute, rounds: int) -> list[dict[str, object]]:
    """Rows of the table: patches per second of the reference and of the companion, median over `rounds`."""
    plain = replace(machine, dtype=torch.float32, compile=False, channels_last=False)
    rates: dict[str, dict[str, float]] = {}
    for way, used in (("reference", plain), ("companion", machine)):
        named = works(preset, size, batch, used, way == "reference")
        rates[way] = {
            name: patches / _seconds(work, machine.device, rounds)
            for name, (work, patches) in tqdm(named.items(), desc=way, leave=False)
        }
        del named  # the next way has the memory to itself
        _free(machine.device)
    return [
        {"patches per second": name, "reference": rate, "companion": rates["companion"][name],
         "times": rates["companion"][name] / rate}
        for name, rate in rates["reference"].items()
    ]  # fmt: skip


def _seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    # Median of the rounds; NaN where the device's memory is too small.
    times = []
    try:
        for _ in range(rounds + 1):  # the first warms up, and compiles
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    except torch.OutOfMemoryError as error:
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
    """Minutes for so many images, from the rates of evaluation and decoding."""
    evaluate, decode = rows[-2:]
    return [
        {"minutes, by calculation": f"{images:,} images by {steps} steps and decoding",
         **{way: images * (steps / evaluate[way] + 1 / decode[way]) / 60 for way in ("reference", "companion")}}
        for steps in (20, 200)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--profile", default="smoke", help="whose device, precision, compiling and patch size count")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    profile = load_profile(given.profile)
    rows = measure(given.preset, profile.patches.size, given.batch, compute(profile), given.rounds)
    minutes = sampling_minutes(rows)
    fast = ", ".join(name for name in ("compile", "channels_last") if getattr(profile, name)) or "not compiled"
    ways = ("precision", "compile", "channels_last", "threads")
    record(
        "ldm", preset=given.preset, patch_px=profile.patches.size, batch=given.batch,
        **{name: getattr(profile, name) for name in ways}, measured=[*rows, *minutes],
    )  # fmt: skip
    title = f"{given.preset}, {profile.patches.size} px, batch {given.batch}, {profile.precision}, {fast}"
    print(f"{title}, {provenance.device_name()}")
    for table in (minutes, rows):
        print(pd.DataFrame(table).round(2).to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main()
