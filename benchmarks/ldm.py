"""How fast latent diffusion is: ``python benchmarks/ldm.py [--preset tiny] [--profile smoke] [--batch 32]``.

On a GPU: ``python benchmarks/ldm.py --preset paper --profile paper --batch 128``.

One preset on random patches. "reference" is the usual loop: float32, not compiled, every batch encoded again, losses
read at every step, the mask encoded at every step of sampling. "companion" works as the profile says (precision,
compile, channels_last) on kept latents, and waits for the device only at the end of a round. Both take turns; the
median of the rounds counts. Prints a table and appends a line of JSON to ``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from tqdm import tqdm

from companion import provenance
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder, configuration, freeze
from companion.diffusion.presets import PRESETS, build_denoiser
from companion.diffusion.train import update
from companion.measurements import record
from companion.params import load_profile
from companion.training import Compute, compute

STEPS = 4  # per round, so that waiting for the device once does not count


def works(preset: str, size: int, batch: int, machine: Compute, reference: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by name; one call is `STEPS` batches of `batch` patches of side `size` px."""
    parameters, device = PRESETS[preset], machine.device
    autoencoder = Autoencoder(configuration(parameters.autoencoder, (128, 30))).to(device)
    frozen = freeze(Autoencoder(autoencoder.config).to(device))
    denoiser = build_denoiser(parameters, classes=3, device=str(device))
    machine.prepare(*(part for a in (autoencoder, frozen) for part in (a.vq.encoder, a.vq.decoder)), denoiser.unet)
    optimizers = [machine.adamw(network, 1e-6) for network in (autoencoder, denoiser)]
    images = torch.randint(0, 256, (batch, size, size), device=device)
    crops = images[:, : parameters.autoencoder.crop_px, : parameters.autoencoder.crop_px]
    masks = torch.randint(0, 4, (batch, size, size), device=device, dtype=torch.uint8)
    schedule = denoisers.noise_schedule(denoiser.config)
    with torch.no_grad():
        latents = frozen.encode(images)
        features = denoiser.mask_encoder(masks)
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
        with torch.no_grad():
            clean = frozen.encode(images) if reference else latents
        noise = torch.randn_like(clean)
        noisy = schedule.add_noise(clean, noise, timestep)
        with machine.autocast():
            predicted = denoiser(noisy, timestep, denoiser.mask_encoder(masks)).float()
        step((predicted - noise).abs().mean(), denoiser, optimizers[1])

    def evaluate() -> None:
        with torch.no_grad(), machine.autocast():
            denoiser(latents, timestep, denoiser.mask_encoder(masks) if reference else features)

    def decode() -> None:
        with torch.no_grad(), machine.autocast():
            frozen.decode(latents)

    def repeated(work: Callable[[], None]) -> Callable[[], None]:
        return lambda: [work() for _ in range(STEPS)]

    named = {"autoencoder, training crops": train_autoencoder, "denoiser, training": train_denoiser,
             "denoiser, one evaluation in sampling": evaluate, "autoencoder, decoding": decode}  # fmt: skip
    return {name: repeated(work) for name, work in named.items()}


def measure(preset: str, size: int, batch: int, machine: Compute, rounds: int) -> list[dict[str, object]]:
    """Rows of the table: patches per second of the reference and of the companion, median over `rounds`."""
    plain = replace(machine, dtype=torch.float32, compile=False, channels_last=False)
    ways = {
        "reference": works(preset, size, batch, plain, True),
        "companion": works(preset, size, batch, machine, False),
    }
    rows = []
    for name in tqdm(ways["reference"], desc="measuring", leave=False):
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds + 1):  # the first warms up, and compiles
            for way, named in ways.items():
                began = time.perf_counter()
                named[name]()
                if machine.device.type == "cuda":
                    torch.cuda.synchronize()
                times[way].append(time.perf_counter() - began)
        rates = {way: STEPS * batch / statistics.median(spent[1:]) for way, spent in times.items()}
        rows.append({"patches per second": name, **rates, "times": rates["companion"] / rates["reference"]})
    return rows


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
