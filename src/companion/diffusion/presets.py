"""Published and own configurations of the diffusion stage, one row each: `table` shows them.

paper is the authors'; compact is for one GPU, tiny for CPUs.
"""

from __future__ import annotations

import pandas as pd
import torch

from companion.diffusion import denoiser as denoisers
from companion.diffusion.denoiser import Denoiser
from companion.params import Autoencoder, Diffusion
from companion.params import Denoiser as DenoiserParameters

PRESETS: dict[str, Diffusion] = {
    "paper": Diffusion(
        # CompVis' VQ-f8: as the authors' it is loaded, not trained here, so only the shape of its latents matters.
        autoencoder=Autoencoder(
            downsampling=8, stem=1, channels=[128, 256, 256, 512], blocks=2, attention=True, latent_channels=4,
            codes=16384, crop_px=256, steps=20_000, batch_size=8, learning_rate=1e-4,
        ),
        # base learning rate 1e-6 times the batch of 32, as CompVis' rule scales it.
        denoiser=DenoiserParameters(
            stem=1, channels=[256, 512, 512, 512, 1024], blocks=2, attention_factors=[1, 2, 4, 8],
            mask_encoding="bilinear", prediction="epsilon", loss="l1", timesteps=1000, beta_start=0.0015,
            beta_end=0.0205, steps=36_000, batch_size=32, learning_rate=3.2e-5, warmup_steps=1000, ema_decay=0.9999,
        ),
        checkpoint_every=5000,
    ),
    "compact": Diffusion(
        autoencoder=Autoencoder(
            downsampling=4, stem=1, channels=[32, 64, 96], blocks=2, codes=4096, crop_px=128, steps=8000,
            learning_rate=1e-3,
        ),
        denoiser=DenoiserParameters(
            stem=1, channels=[96, 192, 256, 320], blocks=2, attention_factors=[4, 8], mask_encoding="space-to-depth",
            prediction="v_prediction", loss="l2", steps=10_000, batch_size=64, learning_rate=3e-4, warmup_steps=500,
            ema_decay=0.999,
        ),
        checkpoint_every=1000,
    ),
    "tiny": Diffusion(
        denoiser=DenoiserParameters(
            steps=280, batch_size=16, decay="cosine", mask_encoding="space-to-depth", prediction="v_prediction",
            loss="l2", defect_weight=8.0,
        ),
    ),
}  # fmt: skip


def build_denoiser(parameters: Diffusion, classes: int, device: str = "cpu") -> Denoiser:
    """An untrained denoiser; on the "meta" device without memory for its weights, to count parameters."""
    config = denoisers.configuration(
        parameters.denoiser, classes=classes, latent_channels=parameters.autoencoder.latent_channels,
        downsampling=parameters.autoencoder.downsampling,
    )  # fmt: skip
    with torch.device(device):
        return Denoiser(config)


def table(patch_px: int = 256) -> pd.DataFrame:
    """What tells the presets apart, one row each, with the size of the networks for three classes."""
    rows = {}
    for name, preset in PRESETS.items():
        network, side = preset.denoiser, patch_px // preset.autoencoder.downsampling
        rows[name] = {
            f"latents of {patch_px} px": f"{side} × {side} × {preset.autoencoder.latent_channels}",
            "U-Net channels": ", ".join(map(str, network.channels)),
            "attention at": ", ".join(map(str, network.attention_factors)),
            "parameters / M": round(denoisers.parameter_count(build_denoiser(preset, 3, "meta")) / 1e6, 1),
            "mask": network.mask_encoding,
            "loss": f"{network.loss} on {network.prediction.removesuffix('_prediction')}",
            "β": f"{network.beta_start:g} to {network.beta_end:g}, {network.timesteps:,} steps",
            "learning rate": f"{network.learning_rate:g} after {network.warmup_steps:,} steps, decay {network.decay}",
            "average of weights": network.ema_decay or "none",
            "codes": f"{preset.autoencoder.codes:,}",
            "steps × batch": f"{network.steps:,} × {network.batch_size}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
