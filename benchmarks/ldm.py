"""How fast latent diffusion is: ``python benchmarks/ldm.py [--preset tiny] [--profile smoke] [--batch 32]``.

One preset on random patches, on the device and in the precision of a profile. "reference" encodes every batch again
in float32, as the usual training loop does; "companion" encodes each patch once and trains on kept latents. Both
take turns, the median of the rounds counts. Prints a table and appends a line of JSON to
``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from companion import provenance
from companion.diffusion import denoiser as denoisers
from companion.diffusion.autoencoder import Autoencoder, configuration, freeze
from companion.diffusion.presets import PRESETS, build_denoiser
from companion.params import load_profile
from companion.training import Compute, compute


def per_second(work: Callable[[], object], images: int, device: torch.device, rounds: int) -> float:
    """Images per second, median over `rounds` after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return images / statistics.median(times[1:])


def measure(preset: str, size: int, batch: int, machine: Compute, rounds: int) -> list[dict[str, object]]:
    """Rows of the table for one preset, patch side `size` px and `batch` patches at a time."""
    parameters, device = PRESETS[preset], machine.device
    autoencoder = Autoencoder(configuration(parameters.autoencoder, (128, 30))).to(device)
    denoiser = build_denoiser(parameters, classes=3, device=str(device))
    optimizers = [torch.optim.AdamW(network.parameters()) for network in (autoencoder, denoiser)]
    images = torch.randint(0, 256, (batch, size, size), device=device)
    crops = images[:, : parameters.autoencoder.crop_px, : parameters.autoencoder.crop_px]
    masks = torch.randint(0, 4, (batch, size, size), device=device)
    schedule = denoisers.noise_schedule(denoiser.config)
    with torch.no_grad():
        latents = autoencoder.encode(images)
        features = denoiser.mask_encoder(masks)
    timestep = torch.randint(0, parameters.denoiser.timesteps, (batch,), device=device)

    def train_autoencoder() -> None:
        with machine.autocast():
            scaled = autoencoder.scale(crops)
            decoded, commitment = autoencoder.reconstruction(autoencoder.unscaled_latents(scaled))
            loss = (decoded - scaled).abs().mean() + commitment
        update(loss, optimizers[0])

    def train_denoiser(clean: torch.Tensor) -> None:
        noise = torch.randn_like(clean)
        noisy = schedule.add_noise(clean, noise, timestep)
        loss = (denoiser(noisy, timestep, denoiser.mask_encoder(masks)) - noise).abs().mean()
        update(loss, optimizers[1])

    def reference() -> None:
        with torch.no_grad():
            clean = autoencoder.encode(images)
        train_denoiser(clean)

    def companion() -> None:
        with machine.autocast():
            train_denoiser(latents)

    @torch.no_grad()
    def evaluate() -> None:
        with machine.autocast():
            denoiser(latents, timestep, features)

    @torch.no_grad()
    def decode() -> None:
        with machine.autocast():
            autoencoder.decode(latents)

    rows = [{"work": "autoencoder, training crops", "images/s": per_second(train_autoencoder, batch, device, rounds)}]
    freeze(autoencoder)
    for name, work in (
        ("denoiser, training, reference", reference), ("denoiser, training, companion", companion),
        ("denoiser, one evaluation in sampling", evaluate), ("autoencoder, decoding", decode),
    ):  # fmt: skip
        rows.append({"work": name, "images/s": per_second(work, batch, device, rounds)})
    return rows


def update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--profile", default="smoke", help="whose device, precision, threads and patch size count")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    profile = load_profile(given.profile)
    rows = measure(given.preset, profile.patches.size, given.batch, compute(profile), given.rounds)
    title = f"{given.preset}, {profile.patches.size} px, batch {given.batch}, {profile.precision}"
    print(f"{title}, {provenance.device_name()}")
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    record = {"benchmark": "ldm", "date": time.strftime("%Y-%m-%d"), **provenance.environment(),
              "preset": given.preset, "patch_px": profile.patches.size, "batch": given.batch,
              "precision": profile.precision, "threads": profile.threads, "measured": rows}  # fmt: skip
    with open(Path(__file__).with_name("results.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(provenance.plain(record)) + "\n")


if __name__ == "__main__":
    main()
