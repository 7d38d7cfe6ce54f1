"""Tables with captions: what they are from stands above them, and equal tables give equal text."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from companion.plots import captioned


def test_a_caption_stands_above_numbers_that_are_rounded_and_gaps_that_are_empty():
    index = pd.MultiIndex.from_tuples([("x & y", 1), ("x & y", 2)], names=["arm", "seed"])
    table = pd.DataFrame({"n": [1, 20], "a < b": [0.12345, np.nan], "class": ["<100> loop", "dot"]}, index=index)
    html = captioned(table, "scores < 1", "phantom").to_html()
    assert "<caption>scores &lt; 1 (phantom)</caption>" in html
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["1", "0.123", "&lt;100&gt; loop", "20", "", "dot"]
    assert "a &lt; b" in html and html.count("x &amp; y") == 1
    assert captioned(table, "scores < 1", "phantom").to_html() == html
    assert "0.12<" in captioned(table, "scores", "phantom", 2).to_html()
