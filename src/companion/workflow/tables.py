"""Tables of executed notebooks as pages show them: one line of names, numbers of two or three digits, few columns.

Pandas writes the names of the index on a line of their own, counts as floats and intervals as two columns. The files
that a notebook writes keep every column and digit; what a page shows of them is tidied here, after the run, so that no
result depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from nbformat import NotebookNode

WORDS = {  # columns of the result files, as text says them
    "n_train": "N", "f1_hm": "F1HM", "map50": "mAP50", "p_holm": "p, Holm", "p_sign_flip": "p, sign flip",
    "p_equivalence": "p, equivalence", "hedges_g": "Hedges g", "auc": "AUC", "kid": "KID", "tp": "TP", "fp": "FP",
    "fn": "FN",
}  # fmt: skip
NUMBER = re.compile(r"-?\d+\.\d+")
FILES = ["file", "KiB"]  # columns of `layout.written`


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Tidy every table of an executed notebook, in place.

    A code cell's metadata may say ``companion: {caption: a caption, leave out: [columns]}`` of its tables.
    """
    for cell in notebook.cells:
        wanted = cell.metadata.pop("companion", {})
        for data in (output["data"] for output in cell.get("outputs", ()) if "data" in output):
            if "<thead" in data.get("text/html", "") and "touch" not in data["text/html"]:
                parts = re.split(r"(<table.*?</table>)", data["text/html"], flags=re.DOTALL)[1::2]
                tidied = (table(part, wanted.get("caption", ""), wanted.get("leave out", ())) for part in parts)
                data["text/html"] = "".join(tidied)
            if "text/markdown" in data:
                data["text/markdown"] = said(data["text/markdown"])
    return notebook


def table(html: str, caption: str = "", leave_out: Sequence[str] = ()) -> str:
    """An HTML table of pandas with one line of names (two where columns have two levels), and tidy numbers.

    Columns `low` and `high` that stand side by side become one, `interval`; those named in `leave_out` go, and what
    stands under a wider name with it.
    """
    root = ElementTree.fromstring(html[html.index("<table") :].replace("&nbsp;", " "))
    if not root.findall("tbody/tr"):
        return f"<p>{root.findtext('caption', 'Table')}: no rows.</p>"
    root.attrib = {"class": root.get("class", "").replace("dataframe", "").strip() or "tidy"}
    lines, body = root.findall("thead/tr"), root.findall("tbody/tr")
    if len(lines) > 1 and not any(map(_text, lines[-1][-len(body[0].findall("td")) :])):
        names = [_text(cell) for cell in lines[-1] if _text(cell)]
        root.find("thead").remove(lines.pop())  # the names of the index go where the line above is empty
        for cell, name in zip(lines[-1], names, strict=False):
            cell.text = name
    elif not _text(lines[-1][0]) and [_text(line[0]) for line in body] == [str(k) for k in range(len(body))]:
        for line in (*lines, *body):
            line.remove(line[0])
    for top in [cell for cell in lines[0] if len(lines) > 1 and _text(cell) in leave_out]:
        wide = [int(cell.get("colspan", 1)) for cell in lines[0]]
        first = sum(wide[: list(lines[0]).index(top)]) - sum(wide)  # counted from the right
        lines[0].remove(top)
        for line in (lines[-1], *body):
            for cell in list(line)[first : first + int(top.get("colspan", 1)) or None]:
                line.remove(cell)
    columns = [_text(cell) for cell in lines[-1]]
    for at in reversed(range(len(columns))):  # from the right: cells on the left may span lines
        back = at - len(lines[-1])
        cells = [line[back] for line in body if len(line) >= -back and line[back].tag == "td"]
        if columns[at] in leave_out:
            _drop(lines, body, back)
        elif columns[at].endswith("high") and at and columns[at - 1].endswith("low"):
            _numbers([cell for line in body for cell in line[back - 1 : back + 1 or None]], "")
            for line in body:
                low, high = (_text(line[back + k]) for k in (-1, 0))
                line[back - 1].text = f"{low} to {high}" if low and high else ""
            lines[-1][back - 1].text = columns[at][:-4].strip("_") + " interval"
            _drop(lines, body, back)
            columns[at - 1] = ""
        elif cells and columns[at]:
            _numbers(cells, columns[at])
    for cell in root.iter("th"):
        cell.text = said(_text(cell))
        if not any(cell in line for line in body):
            cell.text = re.sub(r"(?<!F1)_(?=\w)", " ", cell.text)
        if NUMBER.fullmatch(cell.text):
            cell.text = f"{float(cell.text):g}"
        if not cell.text:
            cell.tag = "td"  # an empty name of a column is none
    for line in body:
        for back in range(-len(line.findall("td")), 0):
            line[back].set("data-label", _text(lines[-1][back]))
    for element in root.iter():
        element.attrib = {k: v for k, v in element.attrib.items() if k in ("rowspan", "colspan", "data-label")
                          or element is root}  # fmt: skip
    title = root.find("caption")
    if title is None:
        title = Element("caption")
        root.insert(0, title)
        title.text = caption or ("Files below runs/" if [_text(cell) for cell in lines[-1]] == FILES else "")
    title.text = said(caption or _text(title))
    return ElementTree.tostring(root, encoding="unicode", method="html")


def said(text: str) -> str:
    """A text with names of columns as the book spells them, e.g. F1HM and F1_detect; names of files stay."""
    words = re.sub(r"(?<![`/.])\b\w+\b(?![`/.]\w)", lambda found: WORDS.get(found[0], found[0]), text)
    return re.sub(r"\bf1_(?=detect|class)", "F1_", words)


def _text(cell: Element) -> str:
    return "".join(cell.itertext()).strip()


def _drop(lines: Sequence[Element], body: Sequence[Element], back: int) -> None:
    for line in (lines[-1], *body):
        line.remove(line[back])


def _numbers(cells: Sequence[Element], column: str) -> None:
    """Counts as integers; other numbers with three digits, together where they are of one size."""
    values = [float(_text(cell)) for cell in cells if NUMBER.fullmatch(_text(cell))]
    sizes = [abs(value) for value in values if value]
    if not sizes or re.match(r"p\b|p_", column):
        return
    alike, whole = max(sizes) < 100 * min(sizes), all(value == int(value) for value in values)
    for cell in (cell for cell in cells if NUMBER.fullmatch(_text(cell))):
        value = float(_text(cell))
        size = max(sizes) if alike else abs(value)
        decimals = (
            0
            if whole or size >= 100 or (value and value == int(value) and not alike)
            else 1
            if size >= 10
            else 2
            if size >= 1
            else 3
        )
        cell.text = f"{value:.{min(decimals, len(_text(cell).partition('.')[2]))}f}"
