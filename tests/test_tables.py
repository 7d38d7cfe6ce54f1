"""Tables of a run as pages show them: names on one line, counts and rounded numbers, intervals in one column."""

from __future__ import annotations

import re

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion.plots import captioned
from companion.workflow import tables

INDEX = pd.MultiIndex.from_tuples([("1", 10), ("1", 100)], names=["split", "n_train"])
SCORES = pd.DataFrame(
    {
        "f1_hm": [0.71234, np.nan],
        "low": [-0.014, np.nan],
        "high": [0.0321, np.nan],
        "pairs": [4.0, 3.0],
        "p": [8e-4, 1],
    },
    index=INDEX,
)


def rows(html: str) -> list[list[str]]:
    """Texts of the cells, line by line."""
    lines = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [
        [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)] for line in lines
    ]


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
    assert rows(tables.table(captioned(mixed, "x", "y", 4).to_html()))[1:] == [
        ["12.3", "140", "3"],
        ["9.9", "0.012", "4"],
    ]


def test_a_notebook_says_what_its_page_leaves_out():
    html = new_output("display_data", data={"text/html": captioned(SCORES, "x", "y").to_html()})
    said = new_output("display_data", data={"text/markdown": "f1_hm, f1_detect; see `f1_hm.parquet`"})
    cell = new_code_cell(
        "1", outputs=[html, said], metadata={"companion": {"leave out": ["pairs", "p"], "caption": "z"}}
    )
    tidied = tables.tidy(new_notebook(cells=[new_markdown_cell("# Title"), cell]))
    nbformat.validate(tidied)
    data = [output["data"] for output in tidied.cells[1].outputs]
    assert (
        rows(data[0]["text/html"])[0] == ["split", "N", "F1HM", "interval"]
        and "<caption>z</caption>" in data[0]["text/html"]
    )
    assert data[1]["text/markdown"] == "F1HM, F1_detect; see `f1_hm.parquet`"
