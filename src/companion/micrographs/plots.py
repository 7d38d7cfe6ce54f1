"""Figures of notebook 01: micrographs with their labels, and the patches cut from them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from companion.micrographs.dataset import DataSet
from companion.micrographs.patches import Patches
from companion.plots import CLASS_COLORS, class_legend


def outline(axes: Axes, ids: NDArray[np.integer], codes: NDArray[np.integer]) -> None:
    """Draw the outlines of instances [H, W] in the colours of their classes (`codes` by id)."""
    for instance in np.unique(ids[ids > 0]):
        color = CLASS_COLORS[(int(codes[instance]) - 1) % len(CLASS_COLORS)]
        axes.contour(ids == instance, levels=[0.5], colors=[color], linewidths=0.8)


def labelled_micrographs(dataset: DataSet, files: Sequence[str], note: str) -> Figure:
    """Micrographs (top) and the same with the outlines of their labels (bottom); scale bar in nm."""
    figure, axes = plt.subplots(2, len(files), figsize=(3.2 * len(files), 6.6), squeeze=False)
    for (above, below), name in zip(axes.T, files, strict=True):
        micrograph = dataset.micrograph(name)
        truth = micrograph.instances()
        for place in (above, below):
            place.imshow(micrograph.read(), vmin=0, vmax=255)
            place.axis("off")
        outline(below, truth.ids, truth.codes)
        above.set_title(f"{name}: {len(truth.codes) - 1} defects")
        scale_bar(above, micrograph.width, micrograph.pixel_size_nm)
    class_legend(figure, dataset.classes)
    figure.suptitle(f"Micrographs and their labels ({note})")
    return figure


def scale_bar(axes: Axes, width: int, pixel_size_nm: float) -> None:
    """A bar of a round number of nm, about a fifth of the image wide."""
    wanted = 0.2 * width * pixel_size_nm
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    bar = AnchoredSizeBar(
        axes.transData, length / pixel_size_nm, f"{length:g} nm", "lower left", size_vertical=width / 100
    )
    bar.patch.set(alpha=0.8, linewidth=0)
    axes.add_artist(bar)


def patch_grid(patches: Patches, chosen: Sequence[int], note: str, columns: int = 6) -> Figure:
    """Chosen patches with the outlines of their labels."""
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.75 * rows + 0.6), squeeze=False)
    plt.setp(axes.ravel(), frame_on=False, xticks=[], yticks=[])
    for place, patch in zip(axes.ravel(), chosen, strict=False):
        own = patches.of(patch)
        place.imshow(patches.images[patch], vmin=0, vmax=255)
        codes = dict(zip(own["instance"], own["class"], strict=True))
        outline(place, np.asarray(patches.instances[patch]), codes)
        place.set_title(f"patch {patch}", fontsize=7)
    class_legend(figure, patches.classes)
    figure.suptitle(f"Training patches and their labels ({note})")
    return figure
