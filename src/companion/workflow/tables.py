"""Tables of executed notebooks as pages show them: one line of names, numbers of two or three digits, few columns.

Pandas writes the names of the index on a line of their own, counts as floats and intervals as two columns. The files
that a notebook writes keep every column and digit; what a page shows of them is tidied after the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape
from itertools import groupby, product

from nbformat import NotebookNode

from companion.evaluation.wording import NAMES

WORDS = NAMES | {  # columns of the result files, as text says them
    "n_train": "N", "tp": "TP", "fp": "FP", "fn": "FN", "p_holm": "p, Holm", "p_sign_flip": "p, sign flip",
    "hedges_g": "Hedges g", "auc": "AUC", "c2st_auc": "classifier AUC", "kid": "KID", "cmmd": "CMMD",
}  # fmt: skip


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Tidy every table of an executed notebook, in place.

    A code cell's metadata may say ``companion: {caption: a caption, leave out: [columns]}`` of its tables.
    """
    for cell in notebook.cells:
        wanted = cell.metadata.pop("companion", {})
        for data in (output["data"] for output in cell.get("outputs", ()) if "data" in output):
            if "<thead" in (text := data.get("text/html", "")) and "touch" not in text:
                data["text/html"] = table(text, wanted.get("caption", ""), wanted.get("leave out", ()))
            if "text/markdown" in data:
                data["text/markdown"] = said(data["text/markdown"])
    return notebook


def table(html: str, caption: str = "", leave_out: Sequence[str] = ()) -> str:
    """An HTML table of pandas with one line of names and tidy numbers; levels of columns are joined by commas.

    Columns `low` and `high` that stand side by side become one, `interval`; those that `leave_out` names go, and all
    that stand under such a name.
    """
    above, _, below = html.partition("</thead>")
    head, body, index = _lines(above), _lines(below), len(re.findall("<th", below.partition("</tr>")[0]))
    title = re.search(r"<caption>(.*?)</caption>", above, re.DOTALL)
    caption = said(caption or (unescape(title[1]) if title else ""))
    if not body:
        return f"<p>{escape(caption)}: no rows.</p>"
    under = len(head) > 1 and not any(head[-1][index:])  # the names of the index stand on a line of their own
    own = head[-1] if under or len(head) == 1 else [""] * index
    above_each = [", ".join(dict.fromkeys(filter(None, levels))) for levels in zip(*head, strict=True)]
    names = [*own[:index], *above_each[index:]]
    columns = [[name, *texts] for name, texts in zip(names, zip(*body, strict=True), strict=True)]
    if not names[0] and list(columns[0][1:]) == [str(k) for k in range(len(body))]:
        del columns[0]  # numbers of rows
    shown: list[list[str]] = []
    for name, *texts in columns:
        if {name, name.partition(", ")[0]} & set(leave_out):
            continue
        texts = _numbers(texts, name)
        if name.endswith("high") and shown and shown[-1][0] == name[:-4] + "low":
            low = shown.pop()[1:]
            texts = [f"{a} to {b}" if a and b else "" for a, b in zip(low, texts, strict=True)]
            name = f"{name[:-4]} interval".strip("_ ")
        shown.append([name, *texts])
    names = [re.sub(r"(?<!F1)_(?=\w)", " ", said(name)) for name, *_ in shown]
    lines = ["".join(f"<th>{escape(name)}</th>" if name else "<td></td>" for name in names)]
    for texts in zip(*(column[1:] for column in shown), strict=True):
        lines.append("".join(
            f"<td{'' if re.match(r'-?[0-9]|$', text) else ' class=words'}>{escape(said(text))}</td>" for text in texts
        ))  # fmt: skip
    first, *others = (f"<tr>{line}</tr>" for line in lines)
    return (f'<table class="tidy"><caption>{escape(caption)}</caption>'
            f"<thead>{first}</thead><tbody>{''.join(others)}</tbody></table>")  # fmt: skip


def said(text: str) -> str:
    """A text with names of columns as the book spells them, e.g. F1HM and F1_detect; names of files stay."""
    scores = {"ap50": "AP50", "f1_class": "F1"}  # of one class, by its number or name
    found = re.compile(r"\b(ap50|f1_class)_(?:(\d)\b|(?=[\w<]))")
    text = found.sub(lambda of: scores[of[1]] + (f", class {of[2]}" if of[2] else " of "), text)
    return re.sub(r"(?<![`/.])\b\w+\b(?![`/.]\w)", lambda found: WORDS.get(found[0], found[0]), text)


def _lines(html: str) -> list[list[str]]:
    """Texts of the cells, line by line; what spans several lines or columns stands in each."""
    grid: dict[tuple[int, int], str] = {}  # line, column
    for y, line in enumerate(re.findall(r"<tr.*?</tr>", html, re.DOTALL)):
        x = 0
        for attributes, text in re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", line, re.DOTALL):
            text = unescape(re.sub(r"<.*?>", "", text)).strip()
            text = f"{float(text):g}" if re.fullmatch(r"-?\d+\.\d{6}", text) else text  # of an index
            spans = dict(re.findall(r"(row|col)span=\"(\d+)\"", attributes))
            while (y, x) in grid:
                x += 1
            for v, u in product(range(int(spans.get("row", 1))), range(int(spans.get("col", 1)))):
                grid[y + v, x + u] = text
    return [[grid[place] for place in line] for _, line in groupby(sorted(grid), key=lambda place: place[0])]


def _numbers(texts: Sequence[str], column: str) -> list[str]:
    """Counts as integers; other numbers with three digits, those of one size rounded together."""
    values = {text: float(text) for text in texts if re.fullmatch(r"-?\d+\.\d+", text)}
    sizes = [abs(value) for value in values.values() if value]
    alike, whole = max(sizes, default=0) < 100 * min(sizes, default=1), all(v == int(v) for v in values.values())
    if not sizes or re.match(r"p\b|p_", column):
        return [f"{values[t]:.{min(4, len(t.partition('.')[2]))}f}" if t in values else t for t in texts]
    for text, value in values.items():
        size = max(sizes) if alike else abs(value)
        counts = whole or size >= 100 or (value and not value % 1 and not alike)
        digits = 0 if counts else 3 - (size >= 1) - (size >= 10)
        values[text] = f"{value:.{min(digits, len(text.partition('.')[2]))}f}"
    return [str(values.get(text, text)) for text in texts]
