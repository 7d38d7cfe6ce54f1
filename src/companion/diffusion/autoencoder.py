"""Patches to latents and back: diffusers' vector-quantised autoencoder for grey images.

The paper takes a VQGAN (Esser et al. 2021) pretrained on natural images and freezes it; diffusion then runs on
its latents, before quantisation, as in Rombach et al. (2022).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from numpy.typing import NDArray
from torch import Tensor, nn

from companion.config import diffusion as settings_of
from companion.device import uncompiled
from companion.weights import load_network, save_state

KIND = "companion autoencoder"
DISTANCES = 2**28  # from latent pixels to codes that are held at a time: 1 GiB
BATCH = 32  # patches at a time; the same everywhere, so that latents do not depend on other batch sizes


def configuration(
    settings: settings_of.Autoencoder, grey: tuple[float, float], spread: float | None = 1.0
) -> dict[str, Any]:
    """What defines an autoencoder, as plain values kept with the weights.

    `grey`: grey level that the network sees as 0, and the difference that it sees as 1, in 0-255. `spread`: standard
    deviation of what the network sees, over its training images; None: see `Autoencoder.fit_grey`.
    """
    levels, depth = len(settings.channels), settings.stem**2
    vq = {
        "in_channels": depth, "out_channels": depth, "latent_channels": settings.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(settings.channels), "layers_per_block": settings.blocks,
        "num_vq_embeddings": settings.codes, "norm_num_groups": math.gcd(32, *settings.channels),
        "mid_block_add_attention": settings.attention,
    }  # fmt: skip
    return {"vq": vq, "stem": settings.stem, "grey": [float(value) for value in grey], "spread": spread}


class Autoencoder(nn.Module):
    """`VQModel` for grey images, with the scaling of its latents to zero mean and unit variance.

    ``config["stem"]`` px along a side become channels before the network, and are put back after it (1: not done).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.vq = VQModel(**config["vq"])
        shape = (1, self.latent_channels, 1, 1)
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel f, along a side."""
        return int(self.config["stem"] * 2 ** (len(self.config["vq"]["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """C."""
        return int(self.config["vq"]["latent_channels"])

    def scale(self, images: Tensor) -> Tensor:
        """Grey levels [B, S, S] in 0-255 -> network input, float [B, 1, S, S]."""
        mean, step = self.config["grey"]
        return ((images.to(self.latent_mean.dtype) - mean) / step).unsqueeze(1)

    def fold(self, scaled: Tensor) -> Tensor:
        """What the encoder gets, [B, stem^2 or 3, S/stem, S/stem], of `scale`'s output."""
        folded, channels = F.pixel_unshuffle(scaled, self.config["stem"]), self.config["vq"]["in_channels"]
        return folded.expand(-1, channels, -1, -1)  # a network for colour images sees grey as three equal channels

    def unscaled_latents(self, scaled: Tensor) -> Tensor:
        """Latents as the network gives them, [B, C, S/f, S/f], of `scale`'s output."""
        return self.vq.encode(self.fold(scaled)).latents

    def reconstruction(self, latents: Tensor, quantise: bool = True) -> tuple[Tensor, Tensor]:
        """Network output [B, 1, S, S] (scaled grey levels) and commitment loss of unscaled latents."""
        decoded = self.vq.decode(latents, force_not_quantize=not quantise)
        sample = F.pixel_shuffle(decoded.sample, self.config["stem"])  # (B, 1 or 3, S, S)
        return sample.mean(dim=1, keepdim=True), decoded.commit_loss.mean()

    def encode(self, images: Tensor) -> Tensor:
        """Grey levels [B, S, S] in 0-255 -> latents [B, C, S/f, S/f], of mean 0, variance 1 over training patches."""
        return (self.unscaled_latents(self.scale(images)) - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Grey levels, float [B, S, S] in 0-255, of latents as `encode` gives them; quantises them first."""
        raw, vq = latents * self.latent_std + self.latent_mean, self.config["vq"]
        # diffusers measures the distance of every latent pixel to every code at once: 17 GB for 256 of the paper's.
        most = max(1, DISTANCES // (raw.shape[-1] ** 2 * vq["num_vq_embeddings"]))
        codes = torch.cat([self.vq.quantize(part)[0] for part in raw.split(most)])
        scaled, _ = self.reconstruction(codes, quantise=False)
        mean, step = self.config["grey"]
        return (scaled.squeeze(1) * step + mean).clamp(0, 255)

    def fit_grey(self, images: NDArray[np.uint8]) -> None:
        """Adapt a pretrained network to the brightness and contrast of patches uint8 [P, S, S].

        It then sees their mean as 0 and their standard deviation as that of the images it was trained on. A network
        trained on photographs of every contrast (``spread`` None) keeps its scale, as in the paper's code base.
        """
        if self.config["spread"] is not None:
            scale = max(float(np.std(images)) / self.config["spread"], 1.0)
            self.config["grey"] = [float(np.mean(images)), scale]

    def fit_scaling(self, images: NDArray[np.uint8]) -> None:
        """Set the latents' mean and standard deviation, per channel, from patches uint8 [P, S, S]."""
        self.latent_mean.zero_()
        self.latent_std.fill_(1)
        std, mean = torch.std_mean(encode_all(self, images), dim=(0, 2, 3), keepdim=True)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std.clamp_min(1e-6))

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """What the encoder sees: mean and standard deviation over each of its levels' channels, float [P, D].

        Distances between sets of images are taken in it, as no other network pretrained on such images is at hand.
        """
        encoder, rows = self.vq.encoder, []
        for start in range(0, len(images), BATCH):
            part = torch.from_numpy(np.array(images[start : start + BATCH])).to(self.latent_mean.device)
            x, levels = encoder.conv_in(self.fold(self.scale(part))), []
            for block in [*encoder.down_blocks, encoder.mid_block]:
                x = block(x)  # (B, channels, side, side)
                levels += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
            rows.append(torch.cat(levels, dim=1))
        return torch.cat(rows).double().cpu().numpy()


@torch.no_grad()
def encode_all(autoencoder: Autoencoder, images: NDArray[np.uint8]) -> Tensor:
    """Latents [P, C, S/f, S/f] of patches uint8 [P, S, S], on the autoencoder's device."""
    device = autoencoder.latent_mean.device
    parts = [torch.from_numpy(np.array(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    with uncompiled(autoencoder):
        return torch.cat([autoencoder.encode(part.to(device)) for part in parts])


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode, quantise and decode patches uint8 [P, S, S]: the ceiling of what diffusion can draw."""
    with uncompiled(autoencoder):
        parts = [to_grey(autoencoder.decode(part)) for part in encode_all(autoencoder, images).split(BATCH)]
    return np.concatenate(parts)


def to_grey(decoded: Tensor) -> NDArray[np.uint8]:
    """Nearest uint8 grey levels of a float tensor in 0-255."""
    return decoded.round().to(torch.uint8).cpu().numpy()


def save_autoencoder(autoencoder: Autoencoder, path: Path, **about: Any) -> None:
    """Write weights, latent scaling and configuration as safetensors; `about` goes along."""
    save_state(autoencoder.state_dict(), path, {"kind": KIND, "config": autoencoder.config, **about})


def load_autoencoder(path: Path, device: str | torch.device = "cpu") -> tuple[Autoencoder, dict[str, Any]]:
    """A frozen autoencoder and what was written about it; needs no profile. Errors: see `weights.load_network`."""
    return load_network(path, KIND, Autoencoder, device)
