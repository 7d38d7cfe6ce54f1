"""Numbers of the diffusion stage: autoencoder, denoiser and sampling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from companion.config.base import Count, NotNegative, Positive, Section, Share, Whole


class Autoencoder(Section):
    """diffusers VQModel between micrograph patches and latents."""

    weights: str | None = Field(
        None,
        description="path of pretrained weights, from the project folder; their file says the network's shape, and "
        "what is said of it here does not count. None: trained here, then frozen",
    )
    downsampling: Literal[4, 8] = Field(4, description="pixels per latent pixel, along a side")
    channels: list[Count] = Field([16, 32], description="base channels per resolution, finest first")
    stem: Literal[1, 2, 4] = Field(2, description="px along a side folded into channels first; the paper's has 1")
    blocks: Count = Field(1, description="residual blocks per resolution")
    attention: bool = Field(False, description="self-attention at the coarsest resolution; the paper's has it")
    latent_channels: Count = Field(4, description="embedding dimension")
    codes: Count = Field(256, description="entries of the codebook")
    steps: Count = Field(300, description="optimiser steps")
    batch_size: Count = Field(16, description="crops per step")
    crop_px: Count = Field(64, description="side of the training crop, px; at most the patch")
    learning_rate: Positive = Field(4e-3, description="peak learning rate (AdamW, one cycle)")
    loss: Literal["l1", "l2"] = Field(
        "l1", description="of the reconstruction; l1, VQGAN's, draws what is faint in noise fainter than l2 does"
    )

    @model_validator(mode="after")
    def _levels(self) -> Autoencoder:
        if (given := self.stem * 2 ** (len(self.channels) - 1)) != self.downsampling:
            raise ValueError(
                f"stem {self.stem} and {len(self.channels)} channel level(s) give downsampling {given}, "
                f"not {self.downsampling}"
            )
        if self.crop_px % self.downsampling:
            raise ValueError(f"crop_px {self.crop_px} is not a multiple of downsampling {self.downsampling}")
        return self


class Denoiser(Section):
    """diffusers UNet2DModel on latents, with the mask concatenated to its input."""

    stem: Literal[1, 2, 4] = Field(
        2, description="latent px along a side folded into channels first; the paper's has 1"
    )
    channels: list[Count] = Field([64, 96], description="channels per resolution, finest first")
    blocks: Count = Field(1, description="residual blocks per resolution")
    attention_factors: list[Count] = Field([2], description="down-factors that have attention; the middle always has")
    mask_encoding: Literal["bilinear", "space-to-depth"] = Field(
        "bilinear", description="how the one-hot mask reaches latent size; bilinear is the paper's"
    )
    mask_channels: Count = Field(4, description="features of the mask per latent pixel; the paper's has 4")
    mask_at: Literal["input", "every level"] = Field(
        "input", description="where these features enter the U-Net; the paper's: concatenated to its input"
    )
    outline: Literal["none", "boundary", "distance"] = Field(
        "none", description="what the mask says beside its classes: the outline of each defect, or how far that is"
    )
    prediction: Literal["epsilon", "v_prediction"] = Field("epsilon", description="what the network predicts")
    loss: Literal["l1", "l2"] = Field("l1", description="the paper uses l1 on epsilon")
    defect_weight: NotNegative = Field(
        0.0, description="by how much a latent under a defect counts more in the loss; the paper: 0"
    )
    mask_dropout: Share = Field(
        0.0, description="share of training patches whose mask is withheld, which guidance needs; the paper: 0"
    )
    min_snr: NotNegative = Field(
        0.0, description="signal-to-noise ratio beyond which steps of little noise count less in the loss; 0: none do"
    )
    timesteps: Count = Field(1000, description="diffusion steps T")
    beta_start: Positive = Field(0.0015, description="first variance (linear in its square root)")
    beta_end: Positive = Field(0.0205, description="last variance")
    steps: Count = Field(150, description="optimiser steps")
    batch_size: Count = Field(32, description="patches per step")
    learning_rate: Positive = Field(2e-3, description="learning rate after warm-up (AdamW)")
    warmup_steps: Whole = Field(20, description="linear warm-up, steps")
    decay: Literal["none", "cosine"] = Field("none", description="of the learning rate after warm-up; the paper: none")
    ema_decay: Share = Field(0.95, description="decay of the weight average used for sampling; 0: none")


class Diffusion(Section):
    """Mask-conditioned latent diffusion."""

    autoencoder: Autoencoder = Autoencoder()
    denoiser: Denoiser = Denoiser()
    checkpoint_every: Count = Field(100, description="steps between checkpoints")


class Sampling(Section):
    """From noise to micrographs."""

    sampler: Literal["ddim", "dpm-solver++"] = Field("ddim", description="the paper uses ddim")
    steps: Count = Field(15, description="denoising steps")
    eta: Share = Field(1.0, description="DDIM stochasticity; the paper uses 1")
    guidance: NotNegative | Annotated[list[NotNegative], Field(min_length=1)] = Field(
        1.0,
        description="classifier-free guidance; 1: none, as in the paper; else mask_dropout must be above 0. "
        "Of a list that one is taken whose defects have the labelled ones' contrast on masks of validation micrographs",
    )
    noise: Literal["none", "measured"] = Field(
        "none", description="measured: noise with the statistics of training micrographs is put back after decoding"
    )
    batch_size: Count = Field(64, description="patches denoised together")
    study_steps: list[Count] = Field([5, 15], description="numbers of steps that the samplers are compared at")
    study_patches: Count = Field(24, description="patches drawn for each point of that comparison")
