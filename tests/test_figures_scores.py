"""Figures of scores show what their tables hold, and say of which data and runs."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PolyCollection

from companion.evaluation.conditions import at_condition, condition_name, headline_condition
from companion.plots import captioned, scores
from companion.config.profile import load_profile


def table(seeds=(1, 2)) -> pd.DataFrame:
    """Scores 0.4 + 0.1 seed at every threshold; the second seed is undefined at the highest."""
    rows = [
        ("1", n, arm, seed, 0.5, confidence, NAN if (seed, confidence) == (2, 0.9) else 0.4 + 0.1 * seed)
        for n, arm, seed, confidence in product((10, 50), ("EXP", "EXP+GEN"), seeds, (0.1, 0.5, 0.9))
    ]
    columns = ["split", "n_train", "arm", "seed", "iou_threshold", "confidence", "f1_detect"]
    return pd.DataFrame(rows, columns=columns).assign(f1_class=NAN, f1_hm=NAN)


NAN = float("nan")


def test_bands_reach_from_the_lowest_to_the_highest_seed():
    figure = scores.score_curves(table(), 0.5, ["EXP", "EXP+GEN"], "phantom")
    bands = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    assert len(bands) == 2
    corners = bands[0].get_paths()[0].vertices
    assert np.allclose([corners[:, 1].min(), corners[:, 1].max()], [0.5, 0.6])
    assert corners[:, 0].max() == 0.5  # where a seed is undefined there is no band
    assert "band: lowest to highest" in figure.legends[0].get_texts()[0].get_text()
    one = scores.score_curves(table(seeds=(1,)), 0.5, ["EXP"], "phantom")
    assert not [c for c in one.axes[0].collections if isinstance(c, PolyCollection)]


def test_the_headline_condition_is_the_first_split_at_the_largest_n():
    profile = load_profile("smoke").model_copy(update={"splits": ["my/other.yaml", 1], "sizes": [10, 50, 20]})
    condition = headline_condition(profile)
    assert condition == ("other", 50) and condition_name(condition) == "split other, N = 50"
    assert at_condition(table(), ("1", 50))["n_train"].eq(50).all() and len(at_condition(table(), condition)) == 0


def test_a_table_names_its_data():
    shown = captioned(pd.DataFrame({"a": [0.12345, NAN]}), "Scores", "phantom (simulated), smoke profile").to_html()
    assert "Scores (phantom (simulated), smoke profile)" in shown and "0.123<" in shown and "nan" not in shown


def test_quality_by_n_tells_generators_and_splits_apart():
    rows = [
        (m, v + s, v - 0.1, v + 0.2, 0.4, split, n, g)
        for m in ("contrast", "spectrum")
        for v, n in ((0.5, 4), (0.3, 16))
        for s, split in ((0.0, "1"), (0.05, "2"))
        for g in (1, 2)
    ]
    columns = ["measure", "value", "low", "high", "yardstick", "split", "n_train", "generator"]
    figure = scores.quality_by_size(pd.DataFrame(rows, columns=columns), "phantom (simulated), mini profile")
    assert [axes.get_title() for axes in figure.axes] == ["contrast", "spectrum"]
    for axes in figure.axes:
        drawn = [line for line in axes.containers if line.has_yerr]
        assert sum(len(line.lines[0].get_xdata()) for line in drawn) == 8  # 2 N x 2 splits x 2 generators
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["split 1", "split 2"]
    one = scores.quality_by_size(pd.DataFrame(rows, columns=columns).query("split == '1'"), "phantom (simulated)")
    assert not one.legends
    plt.close("all")
