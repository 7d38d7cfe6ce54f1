"""What makes a decoder draw texture: a patch discriminator and a loss between features (VQGAN, Esser et al. 2021).

A reconstruction that is right on average is smooth, since noise cannot be foretold. A discriminator that sees small
neighbourhoods tells smooth from real, and the decoder learns to draw noise that it cannot tell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from companion.errors import CompanionError

CHANNELS = (32, 64, 128)
IMAGENET = (0.449, 0.226)  # mean and standard deviation that torchvision's weights expect, over the three colours
VGG_LEVELS = (3, 8, 15)  # after the last activation at full, half and quarter resolution


class Discriminator(nn.Module):
    """Verdicts on overlapping neighbourhoods of 30 px (Isola et al. 2017), of scaled grey levels [B, 1, S, S].

    Groups of channels are normalised instead of batches, so that an image's verdict is its own.
    """

    def __init__(self) -> None:
        super().__init__()
        before, levels = 1, []
        for after, stride in zip(CHANNELS, (2, 2, 1), strict=True):
            norm = nn.GroupNorm(8, after) if before > 1 else nn.Identity()
            levels.append(nn.Sequential(nn.Conv2d(before, after, 4, stride, padding=1), norm, nn.LeakyReLU(0.2)))
            before = after
        self.levels = nn.ModuleList(levels)
        self.verdict = nn.Conv2d(before, 1, 4, padding=1)

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of every level, finest first."""
        found = []
        for level in self.levels:
            images = level(images)
            found.append(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, s, s]: above 0 for real."""
        return self.verdict(self.features(images)[-1])


class VggFeatures(nn.Module):
    """Features of torchvision's VGG16, frozen, of scaled grey levels [B, 1, S, S].

    Parameters
    ----------
    path : its weights as safetensors, with torchvision's names

    Raises
    ------
    CompanionError
        When the file is missing, broken, not safetensors, or holds another network.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        from torchvision.models import vgg16

        network = vgg16(weights=None).features[: VGG_LEVELS[-1] + 1]
        try:
            state = {name.removeprefix("features."): values for name, values in load_file(path).items()}
            network.load_state_dict({name: state[name] for name in network.state_dict()})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CompanionError(f"{path} does not hold torchvision's VGG16 weights as safetensors: {error}") from None
        self.network = network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations at three resolutions, finest first."""
        images, found = images.expand(-1, 3, -1, -1), []
        for number, layer in enumerate(self.network):
            images = layer(images)
            if number in VGG_LEVELS:
                found.append(images)
        return found

    @torch.no_grad()
    def describe(self, images: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float64]:
        """Mean and standard deviation over each level's channels, [P, D], of grey levels uint8 [P, S, S].

        Grey is scaled as the network was trained: 0-255 to 0-1, then by ImageNet's mean and scatter over all colours.
        """
        device, rows = next(self.parameters()).device, []
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            levels = self.features(((batch / 255 - IMAGENET[0]) / IMAGENET[1]).unsqueeze(1))  # [(B, C, s, s)]
            rows.append(torch.cat([s for x in levels for s in (x.mean(dim=(2, 3)), x.std(dim=(2, 3)))], dim=1))
        return torch.cat(rows).double().cpu().numpy()


def feature_loss(network: Discriminator | VggFeatures, decoded: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of features, each level relative to the features' own mean size."""
    with torch.no_grad():
        known = network.features(wanted)
    pairs = zip(network.features(decoded), known, strict=True)
    return torch.stack([(a - b).abs().mean() / (b.abs().mean() + 1e-6) for a, b in pairs]).mean()


def hinge_loss(discriminator: Discriminator, decoded: Tensor, wanted: Tensor) -> Tensor:
    """What the discriminator minimises: real above 1, decoded below -1 (Lim and Ye 2017)."""
    real, drawn = discriminator(wanted), discriminator(decoded.detach())
    return (F.relu(1 - real).mean() + F.relu(1 + drawn).mean()) / 2


def balance(reconstruction: Tensor, adversarial: Tensor, last: nn.Parameter) -> Tensor:
    """Factor that gives both losses gradients of one size at the decoder's last layer (Esser et al., Eq. 7)."""
    sizes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (sizes[0] / (sizes[1] + 1e-4)).clamp(0, 1e4).detach()
