"""Figures and tables of scores and errors show what they hold, and say of which data and runs."""

from __future__ import annotations

import re
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from companion.evaluation import plots
from companion.evaluation.wording import at_condition, condition_name
from companion.plots import captioned

NAN = float("nan")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def table(seeds=(1, 2)) -> pd.DataFrame:
    """Scores 0.4 + 0.1 seed at every threshold; the second seed is undefined at the highest."""
    rows = [
        ("1", n, arm, seed, 0.5, confidence, NAN if (seed, confidence) == (2, 0.9) else 0.4 + 0.1 * seed)
        for n, arm, seed, confidence in product((10, 50), ("EXP", "EXP+GEN"), seeds, (0.1, 0.5, 0.9))
    ]
    columns = ["split", "n_train", "arm", "seed", "iou_threshold", "confidence", "f1_detect"]
    return pd.DataFrame(rows, columns=columns).assign(f1_class=NAN, f1_hm=NAN)


def test_bands_reach_from_the_lowest_to_the_highest_seed():
    figure = plots.score_curves(at_condition(table(), ("1", 50)), 0.5, ["EXP", "EXP+GEN"], "phantom")
    assert [axes.get_title() for axes in figure.axes] == [f"F1_detect, {condition_name(('1', 50))}"]
    bands = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    assert len(bands) == 2
    corners = bands[0].get_paths()[0].vertices
    assert np.allclose([corners[:, 1].min(), corners[:, 1].max()], [0.5, 0.6])
    assert corners[:, 0].max() == 0.5  # where a seed is undefined there is no band
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["EXP", "EXP+GEN"]


def test_a_caption_stands_above_numbers_that_are_rounded_and_gaps_that_are_empty():
    index = pd.MultiIndex.from_tuples([("x & y", 1), ("x & y", 2)], names=["arm", "seed"])
    table = pd.DataFrame({"n": [1, 20], "a < b": [0.12345, np.nan], "class": ["<100> loop", "dot"]}, index=index)
    html = captioned(table, "scores < 1", "phantom").to_html()
    assert "<caption>scores &lt; 1 (phantom)</caption>" in html
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["1", "0.123", "&lt;100&gt; loop", "20", "", "dot"]
    assert "a &lt; b" in html and html.count("x &amp; y") == 1
    assert captioned(table, "scores < 1", "phantom").to_html() == html
    assert "0.12<" in captioned(table, "scores", "phantom", 2).to_html()
