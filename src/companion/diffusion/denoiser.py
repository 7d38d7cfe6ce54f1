"""The denoiser: diffusers' U-Net on latents, with the encoded mask concatenated to its input.

Ho et al. (2020) for the noise process, Rombach et al. (2022) for its use on latents and the concatenation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from companion.config import profile as params, training
from companion.errors import CompanionError

KIND = "companion denoiser"


class MaskEncoder(nn.Module):
    """Label maps to features of latent size.

    Parameters
    ----------
    classes : number of defect classes K; the one-hot mask has K+1 channels
    downsampling : pixels per latent pixel f, along a side; a power of 2
    channels : channels that the U-Net receives
    encoding : "bilinear": log2(f) bilinear halvings, then a trainable 1x1 convolution (the paper's);
        "space-to-depth": f x f pixels become channels before the convolution, so that no small dot is averaged away
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
    """The part of the mask encoder that is not trained.

    Parameters
    ----------
    label_maps : [B, S, S] class codes
    classes, downsampling, encoding : see `MaskEncoder`

    Returns
    -------
    float [B, K+1, S/f, S/f] for "bilinear", [B, (K+1) f^2, S/f, S/f] for "space-to-depth"
    """
    codes = torch.arange(classes + 1, device=label_maps.device).view(1, -1, 1, 1)
    mask = (label_maps.unsqueeze(1) == codes).float()  # (B, K+1, S, S)
    if encoding == "space-to-depth":
        return F.pixel_unshuffle(mask, downsampling)
    for _ in range(int(math.log2(downsampling))):
        mask = F.interpolate(mask, scale_factor=0.5, mode="bilinear", align_corners=False)
    return mask


class Denoiser(nn.Module):
    """U-Net that predicts the noise (or velocity) of a noisy latent under a mask.

    Parameters
    ----------
    config : see `configuration`
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.mask_encoder = MaskEncoder(**config["mask"])
        self.unet = UNet2DModel(**config["unet"])
        if conditions := config.get("conditions"):
            width = (
                4 * config["unet"]["block_out_channels"][0]
            )  # of diffusers' timestep embedding, which it is added to
            last = nn.Linear(width, width)
            nn.init.zeros_(last.weight)  # starts as the network that is told nothing
            self.condition_encoder = nn.Sequential(nn.Linear(len(conditions["names"]), width), nn.SiLU(), last)

    def forward(
        self, noisy: Tensor, timestep: Tensor, mask_features: Tensor, conditions: Tensor | None = None
    ) -> Tensor:
        """What it is trained to predict.

        Parameters
        ----------
        noisy : latents [B, C, s, s]
        timestep : int [B]
        mask_features : [B, C, s, s], of `mask_encoder`
        conditions : [B, n], of `companion.diffusion.conditions`, for a denoiser that is told them

        Returns
        -------
        [B, C, s, s]
        """
        folded = F.pixel_unshuffle(
            torch.cat([noisy, mask_features], dim=1), self.config["stem"]
        )  # (B, 2C t^2, s/t, s/t)
        told = None if conditions is None else self.condition_encoder(conditions)  # (B, width)
        return F.pixel_shuffle(self.unet(folded, timestep, told).sample, self.config["stem"])  # (B, C, s, s)


def configuration(
    parameters: params.Denoiser,
    *,
    classes: int,
    latent_channels: int,
    downsampling: int,
    conditions: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What defines a denoiser: mask encoder, U-Net, what it is told, and noise schedule, kept with the weights."""
    levels = [2**k for k in range(len(parameters.channels))]
    attends = [factor in parameters.attention_factors for factor in levels]
    # Normalising a channel alone would take away what the embedding of the timestep adds to it.
    groups = math.gcd(32, *parameters.channels)
    return {
        "mask": {
            "classes": classes, "downsampling": downsampling, "channels": latent_channels,
            "encoding": parameters.mask_encoding,
        },
        "unet": {
            "in_channels": 2 * latent_channels * parameters.stem**2,
            "out_channels": latent_channels * parameters.stem**2,
            "block_out_channels": list(parameters.channels),
            "layers_per_block": parameters.blocks,
            "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            "attention_head_dim": groups,
            "norm_num_groups": groups // 2 if groups == min(parameters.channels) else groups,
            "class_embed_type": "identity" if conditions else None,  # an embedding added to the timestep's
        },
        "conditions": conditions,
        "mask_dropout": parameters.mask_dropout,
        "stem": parameters.stem,
        "schedule": schedule_of(parameters),
    }  # fmt: skip


def schedule_of(parameters: params.Denoiser) -> dict[str, Any]:
    """Arguments of diffusers' schedulers that define the noise process."""
    return {
        # "scaled_linear" is linear in the square root of beta, which CompVis' code calls "linear".
        "beta_schedule": "scaled_linear",
        "beta_start": parameters.beta_start,
        "beta_end": parameters.beta_end,
        "num_train_timesteps": parameters.timesteps,
        "prediction_type": parameters.prediction,
    }


def noise_schedule(config: dict[str, Any]) -> DDPMScheduler:
    """The forward process that the denoiser is trained on: ``add_noise`` and ``get_velocity``."""
    return DDPMScheduler(**config["schedule"], clip_sample=False)


def sampler(
    config: dict[str, Any], parameters: params.Sampling
) -> DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler:
    """The reverse process, its steps set.

    "ddim" is Song et al. (2021), with `parameters.eta` in its ``step``; "dpm-solver++" is the second-order
    multistep solver of Lu et al. (2022), and "unipc" the second-order predictor and corrector of Zhao et al. (2023);
    neither has randomness of its own.

    Raises
    ------
    CompanionError
        When more sampling steps are asked for than the noise process has.
    """
    schedule = config["schedule"]
    if parameters.steps > schedule["num_train_timesteps"]:
        raise CompanionError(
            f"sampling.steps is {parameters.steps}, but the denoiser knows {schedule['num_train_timesteps']} timesteps"
        )
    if parameters.sampler == "ddim":
        # The last step goes to the first timestep's variance, not to zero, as in the paper's code base.
        made = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")
    elif parameters.sampler == "dpm-solver++":
        made = DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", timestep_spacing="trailing")
    else:
        made = UniPCMultistepScheduler(**schedule, solver_order=2, timestep_spacing="trailing")
    made.set_timesteps(parameters.steps)
    return made


def parameter_count(network: nn.Module) -> int:
    """Trainable and frozen parameters, buffers not counted."""
    return sum(parameter.numel() for parameter in network.parameters())


def save(denoiser: Denoiser, path: Path, **about: Any) -> None:
    """Write weights and configuration as safetensors; `about` goes along."""
    training.save_state(denoiser.state_dict(), path, {"kind": KIND, "config": denoiser.config, **about})


def load(path: Path, device: str | torch.device = "cpu") -> tuple[Denoiser, dict[str, Any]]:
    """A denoiser in evaluation mode and what was written about it; needs no profile.

    Raises
    ------
    CompanionError
        When the file is missing, broken, or holds another network.
    """
    return training.load_network(path, KIND, Denoiser, device)
