"""One style for all figures and tables; the figures themselves are in each folder's own plots.py."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from pandas.io.formats.style import Styler

from companion.provenance import atomic, hash_value

# Okabe and Ito (2008): told apart with every common form of colour vision. Classes; arms have theirs in config.arms.
CLASS_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
COLUMN = 7.2  # inches of a page's column, at the resolution of its figures


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the book: white ground, so that it reads in dark mode too."""
    matplotlib.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 160, "figure.facecolor": "white", "savefig.facecolor": "white",
        "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "legend.frameon": False, "image.cmap": "gray", "image.interpolation": "nearest",
        "svg.hashsalt": "companion", "svg.fonttype": "none",
    })  # fmt: skip


def class_legend(figure: Figure, classes: Sequence[str]) -> None:
    """Class names with their colours, below the figure."""
    handles = [Patch(color=CLASS_COLORS[k % len(CLASS_COLORS)], label=name) for k, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes))


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write `name`.svg and `name`.png into ``folder/figures``; equal figures give equal bytes.

    A figure that is wider than a page's column is shown smaller: no text of it falls below 8 pt there.
    """
    if (least := 8 * figure.get_figwidth() / COLUMN) > 8:
        for axes in figure.axes:
            axes.tick_params(labelsize=max(9, least))
        for text in figure.findobj(Text):
            text.set_fontsize(max(text.get_fontsize(), least))
    for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
        with atomic(folder / "figures" / f"{name}{suffix}") as temporary:
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)
    return figure


def captioned(table: pd.DataFrame, what: str, note: str, digits: int = 3) -> Styler:
    """`table` as a page shows it: a caption says what it holds and what data it is from (`data_note`).

    Numbers have `digits` decimals; what is undefined stays empty. Equal tables give equal text: no identifier is drawn.
    """
    styled = table.style.set_uuid(hash_value(what)[:8]).set_caption(html.escape(f"{what} ({note})"))
    styled = styled.format(precision=digits, na_rep="", escape="html")
    for axis in (0, 1):
        styled = styled.format_index(escape="html", axis=axis)
    return styled


def data_name(dataset: str) -> str:
    """How text names a data set, given by name or path; the phantom is never named without saying what it is."""
    name = Path(dataset).name
    return "phantom (simulated)" if name == "phantom" else name


def data_note(dataset: str, profile: str) -> str:
    """What a figure's title says of where it comes from, e.g. 'phantom (simulated), smoke profile'."""
    return f"{data_name(dataset)}, {Path(profile).stem} profile"
