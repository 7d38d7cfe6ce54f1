"""Pieces of the book that are written from files: glued numbers, the notice on the data, badges, verdicts.

MyST-NB takes numbers into prose from the outputs of a notebook. `glue_notebook` writes such a notebook
without running one; a page then says ``{glue:text}`executed/headline.ipynb::key:s```. The trailing ``:s`` is
needed: MyST-NB 1.4 takes what follows the last colon as the format, and without it the key itself.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion.errors import CompanionError, problems
from companion.provenance import atomic

# MyST-NB (and scrapbook before it) hides an output whose media types carry this prefix.
_HIDDEN = "application/papermill.record/"
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_GLUED = re.compile(r"\{glue:text\}`[^`:]*::([^`:]+):s`")

VERDICTS = ("reproduced", "partly", "not reproduced", "not attempted")


def glue_notebook(values: Mapping[str, str], path: Path, sources: Mapping[str, str] | None = None) -> None:
    """Write a notebook whose outputs are `values`, for pages of the book to quote.

    Parameters
    ----------
    values : key -> text exactly as it is to appear in prose, e.g. ``{"gain": "+0.031 [+0.012, +0.050]"}``;
        keys are lower-case letters, digits and underscores
    path : where the notebook goes, inside the book's sources
    sources : key -> file that the number was read from, shown beside it on the notebook's own page

    Raises
    ------
    CompanionError
        A key that MyST-NB could not quote, or a value that is not a text.
    """
    sources = sources or {}
    wrong = [f"{key!r} is not lower-case letters, digits and underscores" for key in values if not _KEY.fullmatch(key)]
    wrong += [f"{key}: {value!r} is not a text" for key, value in values.items() if not isinstance(value, str)]
    if wrong:
        raise problems(f"{path}: cannot be glued", wrong)
    rows = [f"| `{key}` | {_cell(value)} | {_cell(sources.get(key, ''))} |" for key, value in values.items()]
    outputs = [
        # repr: MyST-NB evaluates the text as a literal, so a bare "0.410" would come out as 0.41.
        new_output(
            "display_data",
            data={f"{_HIDDEN}text/plain": repr(value)},
            metadata={"scrapbook": {"name": key, "mime_prefix": _HIDDEN}},
        )
        for key, value in values.items()
    ]
    cells = [
        new_markdown_cell(
            "# Numbers quoted in the text\n\n"
            "Every number that a page of this book quotes from the companion's own results, with the file that it "
            "was read from. None is typed by hand.\n\n"
            + "\n".join(["| key | value | read from |", "|---|---|---|", *rows]),
            id="numbers",
        ),
        new_code_cell("", outputs=outputs, id="glue", metadata={"tags": ["remove-input"]}),
    ]
    notebook = new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}},
    )
    with atomic(path) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def glued_keys(page: str) -> list[str]:
    """Keys that a page (its MyST source) quotes, in order, each once."""
    return list(dict.fromkeys(_GLUED.findall(page)))


def data_notice(dataset: str, profile: str) -> str:
    """MyST admonition that says what data and profile every number of the book comes from."""
    if dataset == "phantom":
        title = "The numbers in this book come from simulated micrographs"
        data = (
            "They were computed on the **phantom**: micrographs drawn by a program, with exact truth. The phantom "
            "stands in for the paper's micrographs. It is **not the paper's data**, and agreement or disagreement on "
            "it is agreement or disagreement on the phantom only."
        )
    else:
        title = f"The numbers in this book come from the data set {dataset}"
        data = (
            f"They were computed on **{dataset}**. This is **not the paper's data** unless the data set's card "
            "says so; see the first notebook."
        )
    size = (
        "The **smoke** profile checks that every step runs: tiny networks, two training runs per arm, minutes on two "
        "processor cores. It is too small to decide any claim of the paper."
        if profile == "smoke"
        else f"Profile: **{profile}**; its numbers are in `profiles/{profile}.yaml`."
    )
    return f":::{{admonition}} {title}\n:class: warning companion-notice\n\n{data}\n\n{size}\n:::\n"


def badge(stamp: Mapping[str, Any], stale: Sequence[str] | None = ()) -> str:
    """One line of HTML made from a stamp: data set, profile, device, wall time, commit and date.

    Parameters
    ----------
    stamp : content of a ``stamp.json``
    stale : reasons of `companion.stages.Stage.staleness`; empty when the stage is fresh
    """
    data = "phantom (simulated)" if stamp["dataset"] == "phantom" else stamp["dataset"]
    keys = ", ".join(f"{name} {value}" for name, value in stamp.get("keys", {}).items())
    parts = {
        "data": data, "profile": stamp["profile"], "run": keys, "device": stamp["device"],
        "time": f"{stamp['wall_s']:.0f} s", "commit": stamp.get("commit") or "outside git",
        "date": str(stamp["started"])[:10],
    }  # fmt: skip
    shown = [f"<span><b>{name}</b> {html.escape(str(text))}</span>" for name, text in parts.items() if text]
    state = "stale" if stale else "fresh"
    title = html.escape("; ".join(stale or ["code, parameters, inputs and outputs are those of the stamp"]), quote=True)
    shown.append(f'<span class="companion-{state}" title="{title}">{state}</span>')
    return f'<div class="companion-badge">{" ".join(shown)}</div>'


def verdict_chip(verdict: str) -> str:
    """HTML chip of a verdict of the claims table."""
    if verdict not in VERDICTS:
        raise CompanionError(f"verdict {verdict!r} is none of {', '.join(VERDICTS)}")
    return f'<span class="verdict verdict-{verdict.replace(" ", "-")}">{verdict}</span>'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
