"""How fast latent diffusion is: ``python benchmarks/ldm.py [--profile smoke] [--batch 32]``.

The profile's networks on random patches. "reference" is the usual loop: float32 (TF32 on a GPU, as everywhere), not
compiled, every batch drawn on the device and encoded again, losses read at every step, the mask encoded at every step
of sampling. "companion" works as the profile says (precision, compile, channels_last): kept latents, draws on the host,
average of weights, and `LatentDiffusion.sample`. One comes after the other, so that each has the whole memory; the
median of the rounds counts. Prints a table and appends a line of JSON to ``benchmarks/results.jsonl``. On a GPU::

    python benchmarks/ldm.py --profile paper --batch 128
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from companion.config import Profile, load_profile
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.autoencoder import configuration as autoencoder_configuration
from companion.diffusion.denoiser import Denoiser, configuration, noise_process, sampler
from companion.diffusion.sample import LatentDiffusion
from companion.diffusion.train import denoising_loss, descend
from companion.seeds import Seeds
from companion.training import Device, open_device

STEPS = 4  # per round, so that waiting for the device once does not count


def works(P: Profile, batch: int, device: Device, reference: bool) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, by name: a call, and the patches that it works on."""
    settings, asked, size = P.diffusion.denoiser, P.sampling.model_copy(update={"guidance": 1.0}), P.patches.size
    made = autoencoder_configuration(P.diffusion.autoencoder, (128, 30))
    autoencoder = Autoencoder(made).to(device.torch).eval().requires_grad_(False)
    latent = autoencoder.latent_channels, autoencoder.downsampling
    denoiser = Denoiser(configuration(settings, 3, *latent)).to(device.torch)
    average = [parameter.detach().clone() for parameter in denoiser.parameters()]
    device.prepare(autoencoder.vq.encoder, autoencoder.vq.decoder, denoiser.unet)
    optimizer, process = device.adamw(denoiser, settings.learning_rate), noise_process(denoiser.config)
    images = torch.randint(0, 256, (batch, size, size), device=device.torch)
    masks = np.random.default_rng(1).integers(0, 4, (batch, size, size), dtype=np.uint8)
    label_maps = torch.from_numpy(masks).to(device.torch)
    with torch.no_grad():
        latents, seeds = autoencoder.encode(images), Seeds(1, "benchmark")
        features = denoiser.mask_encoder(label_maps)

    def train(i: int) -> None:
        if reference:
            with torch.no_grad():
                clean = autoencoder.encode(images)
            noise = torch.randn_like(clean)
            times = torch.randint(settings.timesteps, (batch,), device=device.torch)
        else:
            rng, clean = seeds.torch(i), latents
            times = device.send(torch.randint(settings.timesteps, (batch,), generator=rng))
            noise = device.send(torch.randn(latents.shape, generator=rng))
        with device.autocast():
            loss = denoising_loss(denoiser, process, clean, label_maps, times, noise, loss=settings.loss)
        optimizer.zero_grad(set_to_none=True)
        descend(loss, denoiser)
        optimizer.step()
        get_ema_multi_avg_fn(settings.ema_decay)(average, list(denoiser.parameters()), None)
        if reference:
            loss.item()

    @torch.no_grad()
    def evaluate(_: int) -> None:
        times = torch.full((batch,), settings.timesteps // 2, device=device.torch)
        with device.autocast():
            denoiser(latents, times, denoiser.mask_encoder(label_maps) if reference else features)

    @torch.no_grad()
    def decode(_: int) -> None:
        with device.autocast():
            autoencoder.decode(latents)

    @torch.no_grad()
    def draw() -> None:
        if not reference:
            steps = asked.model_copy(update={"batch_size": batch})
            LatentDiffusion(autoencoder, denoiser, steps, device, seeds).sample(masks, range(batch))
            return
        scheduler, z = sampler(denoiser.config, asked), torch.randn_like(latents)
        for t in scheduler.timesteps.to(z.device):
            predicted = denoiser(z, t.expand(batch), denoiser.mask_encoder(label_maps))
            z = scheduler.step(predicted, t, z, **({"eta": asked.eta} if asked.sampler == "ddim" else {})).prev_sample
        autoencoder.decode(z).cpu()

    repeated = {"denoiser, training": train, "denoiser, one evaluation": evaluate, "autoencoder, decoding": decode}
    calls = {
        name: (lambda work=work: [work(i) for i in range(STEPS)], STEPS * batch) for name, work in repeated.items()
    }
    return {**calls, f"sampling, {asked.sampler}, {asked.steps} steps": (draw, batch)}


def seconds(call: Callable[[], object], device: Device, rounds: int) -> float:
    """Median time of a call, after one that compiles."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        if device.torch.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    """Time both ways, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="smoke", help="whose networks, device, patches and sampler count")
    parser.add_argument("--batch", type=int, default=32, help="patches of a batch, in training and in sampling")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    P = load_profile(given.profile)
    device, rates = open_device(P.device), {}
    plain = replace(device, dtype=torch.float32, compile=False, channels_last=False)
    for way, used in (("reference", plain), ("companion", device)):
        named = works(P, given.batch, used, way == "reference")
        rates[way] = {name: n / seconds(call, used, given.rounds) for name, (call, n) in named.items()}
        del named  # the next way has the memory to itself
        gc.collect()
        torch.cuda.empty_cache()
    table = pd.DataFrame(rates).assign(times=lambda t: t["companion"] / t["reference"])
    gpu = torch.cuda.get_device_name() if device.torch.type == "cuda" else platform.machine()
    setting = {**vars(given), "patch_px": P.patches.size, **P.device.model_dump(mode="json")}
    line = {"benchmark": "ldm", "setting": setting, "device": gpu, "rows": table.reset_index().to_dict("records")}
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"patches per second, profile {given.profile}, {P.patches.size} px, batch {given.batch}, {gpu}")
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
