"""Figures and tables show what they hold, and say of which data and runs; tables of pages are tidied for reading."""

import re

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion.plots import captioned
from companion.workflow import tables


def test_a_caption_stands_above_numbers_that_are_rounded_and_gaps_that_are_empty():
    index = pd.MultiIndex.from_tuples([("x & y", 1), ("x & y", 2)], names=["arm", "seed"])
    table = pd.DataFrame({"n": [1, 20], "a < b": [0.12345, np.nan], "class": ["<100> loop", "dot"]}, index=index)
    html = captioned(table, "scores < 1", "phantom").to_html()
    assert html == captioned(table, "scores < 1", "phantom").to_html()
    assert "<caption>scores &lt; 1 (phantom)</caption>" in html
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["1", "0.123", "&lt;100&gt; loop", "20", "", "dot"]
    assert "a &lt; b" in html and html.count("x &amp; y") == 1
    assert "0.12<" in captioned(table, "scores", "phantom", 2).to_html()


INDEX = pd.MultiIndex.from_tuples([("1", 10), ("1", 100)], names=["split", "n_train"])
SCORES = pd.DataFrame([[0.71234, -0.014, 0.0321, 4.0, 8e-4], [np.nan, np.nan, np.nan, 3.0, 1]], index=INDEX,
                      columns=["f1_hm", "low", "high", "pairs", "p"])  # fmt: skip


def rows(html: str) -> list[list[str]]:
    """Texts of the cells, line by line."""
    lines = (re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL) for line in re.findall(r"<tr.*?</tr>", html, re.DOTALL))
    return [[re.sub(r"<.*?>", "", cell) for cell in line] for line in lines]


def test_names_stand_on_one_line_and_an_interval_in_one_column():
    html = tables.table(captioned(SCORES, "f1_hm of every N", "phantom", 4).to_html())
    assert rows(html) == [
        ["split", "N", "F1HM", "interval", "pairs", "p"],
        ["1", "10", "0.712", "-0.014 to 0.032", "4", "0.0008"],
        ["1", "100", "", "", "3", "1.0000"],
    ]
    assert "<caption>F1HM of every N (phantom)</caption>" in html


def test_columns_are_left_out_with_what_stands_under_them_and_no_heading_is_empty():
    wide = pd.DataFrame([[1.0, 2.0, 0.25, 0.5]], index=["a_file.png"],
                        columns=pd.MultiIndex.from_product([["defects", "share"], ["cut", "whole"]]))  # fmt: skip
    kept = tables.table(captioned(wide, "x", "y").to_html(), leave_out=["share"])
    assert rows(kept) == [["", "defects, cut", "defects, whole"], ["a_file.png", "1", "2"]]
    assert not re.search(r"<th[^>]*>\s*</th>", kept)
    assert "no rows" in tables.table(captioned(SCORES.head(0), "x", "y").to_html())


def test_numbers_of_one_size_are_rounded_together_and_counts_are_whole():
    mixed = pd.DataFrame({"one size": [12.3456, 9.8765], "many": [140.0, 0.01234], "count": [3.0, 4.0]})
    shown = rows(tables.table(captioned(mixed, "x", "y", 4).to_html()))[1:]
    assert shown == [["12.3", "140", "3"], ["9.9", "0.012", "4"]]


def test_a_notebook_says_what_its_page_leaves_out():
    html = new_output("display_data", data={"text/html": captioned(SCORES, "x", "y").to_html()})
    said = new_output("display_data", data={"text/markdown": "f1_hm, f1_detect; see `f1_hm.parquet`"})
    asked = {"companion": {"leave out": ["pairs", "p"], "caption": "z"}}
    cell = new_code_cell("1", outputs=[html, said], metadata=asked)
    tidied = tables.tidy(new_notebook(cells=[new_markdown_cell("# Title"), cell]))
    nbformat.validate(tidied)
    data = [output["data"] for output in tidied.cells[1].outputs]
    shown = data[0]["text/html"]
    assert rows(shown)[0] == ["split", "N", "F1HM", "interval"] and "<caption>z</caption>" in shown
    assert data[1]["text/markdown"] == "F1HM, F1_detect; see `f1_hm.parquet`"
