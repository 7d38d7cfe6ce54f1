"""The controls beside generated patches: the same masks painted by the phantom, and real masks instead of simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion import geometry, paths, seeds
from companion.micrographs.patches import Patches, instance_table
from companion.diffusion.adversarial import VggFeatures
from companion.diffusion.autoencoder import Autoencoder, reconstruct
from companion.diffusion.noise import NoiseModel
from companion.errors import CompanionError
from companion.masks.statistics import CONTOUR_PX, measure
from companion.config.profile import Profile, Sampling
from companion.phantom.paint import paint

DECODED = 200  # training patches that are encoded and decoded as a yardstick
DECODED_NAME, PAINTED_NAME = "real, encoded and decoded", "phantom, same masks"


def painted(masks: Patches, profile: Profile, *names: str | int) -> NDArray[np.uint8]:
    """Images [P, S, S] of the given masks by the phantom's own optics: what a perfect generator would make of them.

    Raises
    ------
    CompanionError
        When the data set is not the phantom, whose optics alone are known.
    """
    if profile.dataset != "phantom":
        raise CompanionError(f"masks are painted with the phantom's optics; data set '{profile.dataset}' is not of it")
    # Moments see the region as it is; only of a defect that the border cuts must the ellipse be continued.
    ellipses, arcs = measure(masks, fit="moments"), measure(masks, fit="arc")
    arcs[["major_px", "minor_px"]] += CONTOUR_PX
    ellipses = ellipses.mask(ellipses["touches_border"], arcs)
    sizes = masks.index["pixel_size_nm"].to_numpy()
    return paint(ellipses, sizes, masks.size, masks.classes, profile.phantom, profile.root_seed, *names)


def real_masks(train: Patches, number: int) -> Patches:
    """Masks of training patches, `number` of them: all once, then again in the next symmetry, round and round.

    Returns
    -------
    Patches without images, in one symmetry each, as simulated masks are
    """
    if len(train) == 0:
        raise CompanionError("real masks are those of training patches, but there is none")
    rounds, patches = np.divmod(np.arange(number), len(train))
    codes = np.asarray(train.symmetries)[rounds % len(train.symmetries)]
    instances = np.stack(
        [geometry.symmetry(train.instances[p], int(code)) for p, code in zip(patches, codes, strict=True)]
    )
    source = pd.DataFrame({"source": patches, "patch": np.arange(number)})
    labels = source.merge(train.table.rename(columns={"patch": "source"}), on="source")[["patch", "instance", "class"]]
    index = train.index.iloc[patches].assign(patch=np.arange(number), symmetry=codes).reset_index(drop=True)
    table = instance_table(instances, labels)
    return replace(train, images=None, instances=instances, index=index, table=table, symmetries=(0,))


def make(
    masks: str, simulated: Patches, train: Patches, profile: Profile, name: str, draw: Callable[[Patches], Patches]
) -> Patches:
    """The pool that a stage is asked for: plain or rare (simulated masks drawn), resynth (real ones), or render.

    Parameters
    ----------
    masks : key of the stage
    name : path of names of the random draws
    draw : gives masks their images, see `sample.generate`
    """
    if masks == "render":
        return replace(simulated, images=painted(simulated, profile, name, "render"))
    return draw(real_masks(train, len(simulated)) if masks == "resynth" else simulated)


def yardsticks(
    generated: Patches, train: Patches, autoencoder: Autoencoder, noise: NoiseModel | None, profile: Profile, name: str
) -> dict[str, Patches]:
    """What generated images could at best be, to be measured beside them.

    "real, encoded and decoded": training patches through the autoencoder, noise put back as in sampling: what the
    denoiser would reach if it were perfect. "phantom, same masks": the same masks painted with new draws, only
    where the data set is the phantom.
    """
    few = train.only(np.unique(np.linspace(0, len(train) - 1, min(len(train), DECODED)).astype(int)))
    sets = {DECODED_NAME: replace(few, images=decoded(few.images, autoencoder, noise, profile.root_seed, name))}
    if profile.dataset == "phantom":
        sets[PAINTED_NAME] = replace(generated, images=painted(generated, profile, name, "yardstick"))
    return sets


def feature_space(
    autoencoder: Autoencoder, parameters: Sampling
) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float64]], str]:
    """What distances between sets of images are measured in: features [P, D] of images, and their name in words.

    VGG16's where the profile names its weights; else those of the autoencoder's own encoder.
    """
    if parameters.feature_weights is None:
        return autoencoder.features, "encoder features"
    network = VggFeatures(paths.given(parameters.feature_weights)).to(autoencoder.latent_mean.device)
    return network.describe, "VGG16 features"


def decoded(
    images: NDArray[np.uint8], autoencoder: Autoencoder, noise: NoiseModel | None, root_seed: int, name: str
) -> NDArray[np.uint8]:
    """Images [P, S, S] encoded and decoded, with the noise put back that sampling puts back."""
    plain = reconstruct(autoencoder, images)
    if noise is None:
        return plain
    rng = seeds.generator(root_seed, name, "decoded")
    return np.stack([np.rint(np.clip(noise.add(x.astype(float), rng), 0, 255)) for x in plain]).astype(np.uint8)
