"""The denoiser: diffusers' U-Net on latents, with the encoded mask concatenated to its input.

Ho et al. (2020) for the noise process, Rombach et al. (2022) for its use on latents and the concatenation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from companion.config import diffusion as settings_of
from companion.errors import CompanionError
from companion.micrographs.patches import Patches
from companion.weights import load_state, save_state

KIND = "companion denoiser"


OUTLINE = 128  # added to the class code of a pixel that lies on the outline of its defect
FAR_PX = 8  # how far from an outline its distance is told


def outlined(patches: Patches, numbers: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.uint8]:
    """What the denoiser is shown of patches, uint8 [n, S, S]: class codes, with `OUTLINE` added to every pixel of a
    defect that touches another defect or the background; so defects of one class that touch stay apart."""
    ids, border = np.pad(patches.instances[numbers], ((0, 0), (1, 1), (1, 1)), mode="edge"), slice(1, -1)
    inner = ids[:, border, border]
    sides = (ids[:, :-2, border], ids[:, 2:, border], ids[:, border, :-2], ids[:, border, 2:])
    edge = np.any([side != inner for side in sides], axis=0) & (inner > 0)
    return patches.label_maps(numbers) + (edge * OUTLINE).astype(np.uint8)


class MaskEncoder(nn.Module):
    """Masks of K classes (see `outlined`) to features of latent size, for a U-Net that takes `channels` of them.

    ``encoding`` "bilinear": log2(f) bilinear halvings, then a trainable 1x1 convolution (the paper's);
    "space-to-depth": f x f pixels become channels before the convolution, so that no small dot is averaged away.
    """

    def __init__(self, classes: int, downsampling: int, channels: int, encoding: str, outline: str = "none") -> None:
        super().__init__()
        self.classes, self.downsampling, self.encoding, self.outline = classes, downsampling, encoding, outline
        depth = (classes + 1 + (outline != "none")) * (1 if encoding == "bilinear" else downsampling**2)
        self.project = nn.Conv2d(depth, channels, kernel_size=1)

    def forward(self, masks: Tensor, shown: Tensor | None = None) -> Tensor:
        """Masks [B, S, S] -> features [B, channels, S/f, S/f]; where `shown` [B] is false, of no mask at all."""
        mask = one_hot_at_latent_size(masks, self.classes, self.downsampling, self.encoding, self.outline)
        if shown is not None:  # no class, not even background: a mask without defects is something else
            mask = mask * shown.view(-1, 1, 1, 1)
        return self.project(mask.to(self.project.weight.dtype))


def one_hot_at_latent_size(
    masks: Tensor, classes: int, downsampling: int, encoding: str, outline: str = "none"
) -> Tensor:
    """The part of `MaskEncoder` that is not trained: masks [B, S, S] -> float [B, D, S/f, S/f] for "bilinear",
    [B, D f^2, S/f, S/f] for "space-to-depth"; D = K + 1, and one more with an `outline`."""
    codes = torch.arange(classes + 1, device=masks.device).view(1, -1, 1, 1)
    one_hot = (masks.unsqueeze(1) % OUTLINE == codes).float()  # (B, K+1, S, S)
    if outline != "none":
        edge = (masks.unsqueeze(1) >= OUTLINE).float()
        one_hot = torch.cat([one_hot, distance_to(edge) if outline == "distance" else edge], dim=1)
    if encoding == "space-to-depth":
        return F.pixel_unshuffle(one_hot, downsampling)
    for _ in range(int(math.log2(downsampling))):
        one_hot = F.interpolate(one_hot, scale_factor=0.5, mode="bilinear", align_corners=False)
    return one_hot


def distance_to(edge: Tensor) -> Tensor:
    """Distance (of squares: the larger of |x|, |y|) to the nearest pixel of `edge` [B, 1, S, S], px over `FAR_PX`,
    at most 1."""
    near, reached = edge, edge
    for _ in range(FAR_PX - 1):
        reached = F.max_pool2d(reached, kernel_size=3, stride=1, padding=1)
        near = near + reached
    return 1 - near / FAR_PX


class MaskedUNet(UNet2DModel):
    """diffusers' U-Net; features of the mask may be added to what enters each of its levels, down and up.

    Concatenated to the input alone (the paper's), the mask must survive every layer to say something at the end.
    """

    def __init__(self, mask_channels: int, **unet: Any) -> None:
        """`mask_channels` of the features that are added at every level; 0: at none."""
        super().__init__(**unet)
        widths = list(self.config.block_out_channels)
        self.levels = [*range(len(widths)), *reversed(range(len(widths)))]
        entering = [widths[0], *widths[:-1], widths[-1], *widths[:0:-1]]
        self.additions = nn.ModuleList(nn.Conv2d(mask_channels, width, 1) for width in entering if mask_channels)

    def forward(self, sample: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
        """Network input [B, C', s, s], timesteps int [B], mask features [B, M, s, s] -> [B, C, s, s]."""
        added = [
            project(F.avg_pool2d(mask, 2**level)) for project, level in zip(self.additions, self.levels, strict=False)
        ]
        added = added or [0.0] * len(self.levels)
        embedded = self.time_embedding(self.time_proj(timesteps.expand(len(sample))).to(self.dtype))
        x = self.conv_in(sample)
        skips = (x,)
        for block, more in zip(self.down_blocks, added, strict=False):
            x, passed = block(x + more, embedded)
            skips += passed
        x = self.mid_block(x, embedded)
        for block, more in zip(self.up_blocks, added[len(self.down_blocks) :], strict=True):
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            x = block(x + more, taken, embedded)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Denoiser(nn.Module):
    """U-Net that predicts the noise (or velocity) of a noisy latent under a mask; `config`: see `configuration`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.mask_encoder = MaskEncoder(**config["mask"])
        self.unet = MaskedUNet(**config["unet"])

    @property
    def multiple_px(self) -> int:
        """What the side of a mask must be a multiple of."""
        levels = len(self.config["unet"]["block_out_channels"])
        return int(self.config["mask"]["downsampling"] * self.config["stem"] * 2 ** (levels - 1))

    def forward(self, noisy: Tensor, timesteps: Tensor, mask_features: Tensor) -> Tensor:
        """Noisy latents [B, C, s, s], timesteps int [B], features of `mask_encoder` [B, M, s, s] -> what it is trained
        to predict, [B, C, s, s]."""
        stem = self.config["stem"]  # t
        conditioned = torch.cat([noisy, mask_features], dim=1)  # (B, C + M, s, s): the mask enters here
        folded, mask = F.pixel_unshuffle(conditioned, stem), F.pixel_unshuffle(mask_features, stem)
        return F.pixel_shuffle(self.unet(folded, timesteps, mask), stem)  # (B, (C + M) t^2, s/t, s/t) -> (B, C, s, s)


def configuration(
    settings: settings_of.Denoiser, classes: int, latent_channels: int, downsampling: int
) -> dict[str, Any]:
    """What defines a denoiser: mask encoder, U-Net and noise process, as plain values kept with the weights."""
    attends = [2**level in settings.attention_factors for level in range(len(settings.channels))]
    # Normalising a channel alone would take away what the embedding of the timestep adds to it.
    groups = math.gcd(32, *settings.channels)
    mask = {"classes": classes, "downsampling": downsampling, "channels": settings.mask_channels,
            "encoding": settings.mask_encoding, "outline": settings.outline}  # fmt: skip
    depth = settings.stem**2
    unet = {
        "in_channels": (latent_channels + settings.mask_channels) * depth, "out_channels": latent_channels * depth,
        "mask_channels": settings.mask_channels * depth if settings.mask_at == "every level" else 0,
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
