"""The denoiser: diffusers' U-Net on latents, with the encoded mask concatenated to its input.

Ho et al. (2020) for the noise process, Rombach et al. (2022) for its use on latents and the concatenation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor, nn

from companion.config import diffusion as settings_of
from companion.errors import CompanionError
from companion.weights import load_state, save_state

KIND = "companion denoiser"


class MaskEncoder(nn.Module):
    """Label maps of K classes to features of latent size, for a U-Net that takes `channels` of them.

    ``encoding`` "bilinear": log2(f) bilinear halvings, then a trainable 1x1 convolution (the paper's);
    "space-to-depth": f x f pixels become channels before the convolution, so that no small dot is averaged away.
    """

    def __init__(self, classes: int, downsampling: int, channels: int, encoding: str) -> None:
        super().__init__()
        self.classes, self.downsampling, self.encoding = classes, downsampling, encoding
        depth = classes + 1 if encoding == "bilinear" else (classes + 1) * downsampling**2
        self.project = nn.Conv2d(depth, channels, kernel_size=1)

    def forward(self, label_maps: Tensor, shown: Tensor | None = None) -> Tensor:
        """Class codes [B, S, S] -> features [B, channels, S/f, S/f]; where `shown` [B] is false, of no mask at all."""
        mask = one_hot_at_latent_size(label_maps, self.classes, self.downsampling, self.encoding)
        if shown is not None:  # no class, not even background: a mask without defects is something else
            mask = mask * shown.view(-1, 1, 1, 1)
        return self.project(mask.to(self.project.weight.dtype))


def one_hot_at_latent_size(label_maps: Tensor, classes: int, downsampling: int, encoding: str) -> Tensor:
    """The part of `MaskEncoder` that is not trained: class codes [B, S, S] -> float [B, K+1, S/f, S/f] for "bilinear",
    [B, (K+1) f^2, S/f, S/f] for "space-to-depth"."""
    codes = torch.arange(classes + 1, device=label_maps.device).view(1, -1, 1, 1)
    mask = (label_maps.unsqueeze(1) == codes).float()  # (B, K+1, S, S)
    if encoding == "space-to-depth":
        return F.pixel_unshuffle(mask, downsampling)
    for _ in range(int(math.log2(downsampling))):
        mask = F.interpolate(mask, scale_factor=0.5, mode="bilinear", align_corners=False)
    return mask


class Denoiser(nn.Module):
    """U-Net that predicts the noise (or velocity) of a noisy latent under a mask; `config`: see `configuration`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.mask_encoder = MaskEncoder(**config["mask"])
        self.unet = UNet2DModel(**config["unet"])

    @property
    def multiple_px(self) -> int:
        """What the side of a mask must be a multiple of."""
        levels = len(self.config["unet"]["block_out_channels"])
        return int(self.config["mask"]["downsampling"] * self.config["stem"] * 2 ** (levels - 1))

    def forward(self, noisy: Tensor, timesteps: Tensor, mask_features: Tensor) -> Tensor:
        """Noisy latents [B, C, s, s], timesteps int [B], features of `mask_encoder` [B, C, s, s] -> what it is trained
        to predict, [B, C, s, s]."""
        conditioned = torch.cat([noisy, mask_features], dim=1)  # (B, 2C, s, s): the mask enters here
        folded = F.pixel_unshuffle(conditioned, self.config["stem"])  # (B, 2C t^2, s/t, s/t)
        return F.pixel_shuffle(self.unet(folded, timesteps).sample, self.config["stem"])  # (B, C, s, s)


def configuration(
    settings: settings_of.Denoiser, classes: int, latent_channels: int, downsampling: int
) -> dict[str, Any]:
    """What defines a denoiser: mask encoder, U-Net and noise process, as plain values kept with the weights."""
    attends = [2**level in settings.attention_factors for level in range(len(settings.channels))]
    # Normalising a channel alone would take away what the embedding of the timestep adds to it.
    groups = math.gcd(32, *settings.channels)
    mask = {"classes": classes, "downsampling": downsampling, "channels": latent_channels,
            "encoding": settings.mask_encoding}  # fmt: skip
    unet = {
        "in_channels": 2 * latent_channels * settings.stem**2, "out_channels": latent_channels * settings.stem**2,
        "block_out_channels": list(settings.channels), "layers_per_block": settings.blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": groups,
        "norm_num_groups": groups // 2 if groups == min(settings.channels) else groups,
    }  # fmt: skip
    # "scaled_linear" is linear in the square root of beta, which CompVis' code calls "linear".
    schedule = {"beta_schedule": "scaled_linear", "beta_start": settings.beta_start, "beta_end": settings.beta_end,
                "num_train_timesteps": settings.timesteps, "prediction_type": settings.prediction}  # fmt: skip
    more = {"stem": settings.stem, "mask_dropout": settings.mask_dropout}
    return {"mask": mask, "unet": unet, "schedule": schedule, **more}


def noise_process(config: dict[str, Any]) -> DDPMScheduler:
    """The forward process that the denoiser is trained on: ``add_noise`` and ``get_velocity``."""
    return DDPMScheduler(**config["schedule"], clip_sample=False)


def sampler(config: dict[str, Any], settings: settings_of.Sampling) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """The reverse process, its steps set.

    "ddim" is Song et al. (2021), with ``settings.eta`` in its ``step``; "dpm-solver++" is the second-order multistep
    solver of Lu et al. (2022), which has no randomness of its own.
    """
    schedule = config["schedule"]
    if settings.steps > (most := schedule["num_train_timesteps"]):
        raise CompanionError(f"sampling.steps is {settings.steps}, but the denoiser knows {most} timesteps")
    if settings.sampler == "ddim":
        # The last step goes to the first timestep's variance, not to zero, as in the paper's code base.
        made = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")
    else:
        made = DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", timestep_spacing="trailing")
    made.set_timesteps(settings.steps)
    return made


def save_denoiser(denoiser: Denoiser, path: Path, pictures: dict[int, Tensor], **about: Any) -> None:
    """Write weights, configuration and the pictures drawn during training as safetensors; `about` goes along."""
    state = {"denoiser": denoiser.state_dict(), "pictures": pictures}
    save_state(state, path, {"kind": KIND, "config": denoiser.config, **about})


def load_denoiser(path: Path, device: str | torch.device = "cpu") -> tuple[Denoiser, dict[str, Any]]:
    """A denoiser in evaluation mode and what was written about it ("pictures" included); needs no profile."""
    state, about = load_state(path)
    if about.get("kind") != KIND:
        raise CompanionError(f"{path} holds '{about.get('kind')}', not a {KIND}; give the file that notebook 04 wrote")
    denoiser = Denoiser(about["config"])
    denoiser.load_state_dict(state["denoiser"])
    return denoiser.to(device).eval().requires_grad_(False), {**about, "pictures": state["pictures"]}
