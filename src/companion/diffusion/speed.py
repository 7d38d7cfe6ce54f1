"""Quality against steps and seconds: which sampler, with how many steps, is fast enough and good enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.config import profile as params, training
from companion.micrographs.patches import Patches
from companion.diffusion import measures
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.denoiser import Denoiser
from companion.diffusion.noise import NoiseModel
from companion.diffusion.quality import spectral_distance
from companion.diffusion.sample import sample
from companion.config.diffusion import Sampler

REAL = 100  # held-out patches that each setting is compared with


def settings_study(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    simulated: Patches,
    held: Patches,
    parameters: params.Sampling,
    *,
    machine: training.Compute,
    name: str,
    noise: NoiseModel | None = None,
    encode: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
) -> pd.DataFrame:
    """The same masks and noise drawn by each sampler with each number of steps.

    Parameters
    ----------
    simulated : masks; its first ``parameters.study_patches`` are drawn
    held : real patches that no training saw
    parameters : ``study_steps`` says the numbers of steps
    encode : features [P, D] of images, see `quality.judge`
    others : see `sample`

    Returns
    -------
    One row per sampler and number of steps: sampler, steps, seconds (per image, decoding included), spectrum
    (decades), distance (KID) and contrast (mean over defects), the first two from held-out images
    """
    few = simulated.only(np.arange(min(parameters.study_patches, len(simulated))))
    masks, numbers = few.label_maps(), range(len(few))
    real = held.only(np.linspace(0, len(held) - 1, min(len(held), REAL)).astype(int))
    power = measures.power_spectra(real.images)[1].mean(axis=0)
    features = encode(real.images)
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    rows = []
    for sampler in get_args(Sampler):
        for steps in parameters.study_steps:
            setting = {"sampler": sampler, "steps": steps, "batch_size": min(len(few), parameters.batch_size)}
            now = parameters.model_copy(update=setting)
            draw = {"machine": machine, "name": name, "noise": noise}
            if not rows:  # the first call prepares kernels
                sample(autoencoder, denoiser, masks, numbers, now.model_copy(update={"steps": 1}), **draw)
            began = time.perf_counter()
            images = sample(autoencoder, denoiser, masks, numbers, now, **draw)
            seconds = (time.perf_counter() - began) / max(1, len(few))
            spectrum = spectral_distance(measures.power_spectra(images)[1].mean(axis=0), power)
            distance = measures.kernel_distance((encode(images) - centre) / scale, (features - centre) / scale)
            contrast = measures.mask_contrast(replace(few, images=images))["contrast"].mean()
            rows.append((sampler, steps, seconds, spectrum, distance, contrast))
    return pd.DataFrame(rows, columns=["sampler", "steps", "seconds", "spectrum", "distance", "contrast"])
