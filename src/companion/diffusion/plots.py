"""Figures of notebooks 04 and 05: training, reconstructions, denoising, and generated images beside real ones."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from companion.plots import CLASS_COLORS

GREY = {"vmin": 0, "vmax": 255}


def losses(log: pd.DataFrame, note: str) -> Figure:
    """Training losses against steps, one panel per network.

    Parameters
    ----------
    log : columns network, step, and one per loss (NaN where a network does not have it)
    note : data set and profile, for the title
    """
    networks = list(dict.fromkeys(log["network"]))
    figure, axes = plt.subplots(1, len(networks), figsize=(3.6 * len(networks), 2.6), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        rows = log[log["network"] == network].drop(columns="network").dropna(axis=1, how="all").set_index("step")
        for name, values in rows.items():
            axis.plot(values.rolling(max(1, len(values) // 40), min_periods=1).mean(), label=name, lw=1.2)
        axis.set(title=network, xlabel="optimiser step", ylabel="loss (running mean)", yscale="log")
        axis.legend()
    figure.suptitle(f"Training losses ({note})", fontsize=10)
    return figure


def reconstructions(images: NDArray[np.uint8], decoded: NDArray[np.uint8], note: str) -> Figure:
    """Patches [n, S, S], what the autoencoder makes of them, and the difference (mid-grey: none)."""
    difference = np.clip(decoded.astype(float) - images + 127.5, 0, 255)
    return _grid(
        [("patch", images), ("decoded", decoded), ("difference", difference)], f"Encode, quantise, decode ({note})"
    )


def sample_grid(
    masks: NDArray[np.uint8], drawn: Sequence[NDArray[np.uint8]], steps: Sequence[int], note: str
) -> Figure:
    """Masks [n, S, S] and the images [n, S, S] that were drawn for them after so many training steps, row by row."""
    rows = [("mask", color_mask(masks)), *((f"step {s:,}", images) for s, images in zip(steps, drawn, strict=True))]
    return _grid(rows, f"The same noise and masks during training ({note})")


def denoising_strip(
    frames: NDArray[np.uint8], steps: Sequence[int], mask: NDArray[np.uint8], image: NDArray[np.uint8], note: str
) -> Figure:
    """From noise to image: the mask [S, S], decoded latents [n, S, S] after so many steps, and the image [S, S]."""
    figure, axes = plt.subplots(1, len(frames) + 2, figsize=(1.3 * (len(frames) + 2), 1.8))
    _show(axes[-1], image, "image")
    _show(axes[0], color_mask(mask), "mask")
    for axis, frame, step in zip(axes[1:-1], frames, steps, strict=True):
        _show(axis, frame, f"step {step}")
    figure.suptitle(f"Denoising under a mask ({note})", fontsize=10)
    return figure


def noising_strip(frames: NDArray[np.uint8], steps: Sequence[int], note: str) -> Figure:
    """One patch at rising timesteps of the noise process, [n, S, S]."""
    figure, axes = plt.subplots(1, len(frames), figsize=(1.35 * len(frames), 1.8), squeeze=False)
    for axis, frame, step in zip(axes[0], frames, steps, strict=True):
        _show(axis, frame, f"t = {step}")
    figure.suptitle(f"The noise process, decoded ({note})", fontsize=10)
    return figure


def edited_masks(masks: NDArray[np.uint8], drawn: NDArray[np.uint8], titles: Sequence[str], note: str) -> Figure:
    """Label maps [n, S, S] above the images [n, S, S] drawn from them with the same noise."""
    return _grid([("mask", color_mask(masks)), ("image", drawn)], f"Same noise, edited mask ({note})", titles)


def pipeline(
    real: NDArray[np.uint8],
    real_mask: NDArray[np.uint8],
    simulated_mask: NDArray[np.uint8],
    generated: NDArray[np.uint8],
    classes: Sequence[str],
    note: str,
) -> Figure:
    """The paper's idea in one strip (Fig. 1): micrograph, expert mask, simulated mask, generated image; all [S, S]."""
    figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.5))
    panels = [real, color_mask(real_mask), color_mask(simulated_mask), generated]
    titles = ["micrograph", "its mask", "simulated mask", "generated image"]
    for axis, panel, title in zip(axes, panels, titles, strict=True):
        _show(axis, panel, title)
    for axis, text in zip(axes[1:], ("labels →", "statistics →", "diffusion →"), strict=True):
        axis.annotate(
            text, (-0.02, -0.09), xycoords="axes fraction", ha="center", va="center", fontsize=7, color="0.25"
        )
    _class_legend(figure, classes)
    figure.suptitle(f"From labelled to generated micrographs ({note})", fontsize=10)
    return figure


def real_beside_generated(
    real: NDArray[np.uint8],
    real_masks: NDArray[np.uint8],
    generated: NDArray[np.uint8],
    simulated_masks: NDArray[np.uint8],
    classes: Sequence[str],
    note: str,
) -> Figure:
    """Held-out real patches with their masks above generated patches with theirs (Fig. 2); all [n, S, S]."""
    rows = [
        ("real", real), ("its mask", color_mask(real_masks)),
        ("generated", generated), ("its mask", color_mask(simulated_masks)),
    ]  # fmt: skip
    figure = _grid(rows, f"Real and generated images with their masks ({note})")
    _class_legend(figure, classes)
    return figure


def nearest_pairs(images: NDArray[np.uint8], nearest: NDArray[np.uint8], distance: NDArray, note: str) -> Figure:
    """Generated patches [n, S, S] above their most similar training patches [n, S, S], with distances [n]."""
    titles = [f"{value:.1f} grey levels" for value in distance]
    return _grid(
        [("generated", images), ("nearest training", nearest)], f"Closest to the training data ({note})", titles
    )


def confirmed_pairs(images: NDArray[np.uint8], masks: NDArray[np.uint8], titles: Sequence[str], note: str) -> Figure:
    """Generated patches [n, S, S] above their masks [n, S, S], a title over each."""
    rows = [("generated", images), ("its mask", color_mask(masks))]
    return _grid(rows, f"Pairs confirmed most and least by the detector ({note})", titles)


def color_mask(label_maps: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Class codes [..., S, S] as colours [..., S, S, 3]; the background is white."""
    palette = np.array([(1.0, 1.0, 1.0), *map(to_rgb, CLASS_COLORS)])
    codes = np.asarray(label_maps)
    return palette[np.where(codes == 0, 0, (codes.astype(int) - 1) % len(CLASS_COLORS) + 1)]


def _grid(rows: Sequence[tuple[str, NDArray]], title: str, titles: Sequence[str] | None = None) -> Figure:
    columns = len(rows[0][1])
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.2 * columns + 0.4, 1.2 * len(rows) + 0.5), squeeze=False)
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            _show(axis, image)
        line[0].set_ylabel(label)
    for axis, text in zip(axes[0], titles or [], strict=False):
        axis.set_title(text, fontsize=7)
    figure.suptitle(title, fontsize=10 if columns > 3 else 8)
    return figure


def _show(axis: Axes, image: NDArray, title: str = "") -> None:
    axis.imshow(image, **GREY)
    axis.set(xticks=[], yticks=[], title=title)
    axis.grid(False)
    for side in axis.spines.values():
        side.set(visible=True, color="0.6", linewidth=0.5)


def _class_legend(figure: Figure, classes: Sequence[str]) -> None:
    colors = [CLASS_COLORS[k % len(CLASS_COLORS)] for k in range(len(classes))]
    handles = [Patch(color=color, label=name) for color, name in zip(colors, classes, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(classes)))
