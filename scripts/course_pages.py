"""From a notebook of the book to a page of the course: objectives, a blank to fill in, a check, a question.

What a page adds stands in ``book/course/<NN>.yaml``: objectives, before, minutes; question; blank (in code cell `cell`,
the right side of the assignment to each of `names` becomes ``...`` for students); checks (run right after the statement
that holds the blank, before the rest of its cell); wrong (right sides that the checks must refuse). Code and solutions
are the notebook's own, so that nothing drifts.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell

from companion.errors import CompanionError

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "book" / "course"
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))[:13]  # 14 and 15 train networks, or read all that there are
NAMES = [file.stem for file in FILES if (COURSE / f"{file.stem[:2]}.yaml").exists()]
PARAMETERS = 'profile: str = "smoke"'
START = "import sys\n\nsys.path.append('..')  # a notebook stays in the folder notebooks/ of the course\n"
START += "from check_setup import ask, start, typed\n\nstart()"


def page_of(name: str) -> dict[str, Any]:
    """What makes notebook `name` a course page."""
    return yaml.safe_load((COURSE / f"{name[:2]}.yaml").read_text(encoding="utf-8"))


def assignment(source: str, name: str) -> tuple[ast.stmt, ast.expr]:
    """The statement of a cell that holds its one assignment to `name`, and the value that is assigned there."""
    found = [
        (statement, node.value) for statement in ast.parse(source).body for node in ast.walk(statement)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).strip("()") == name
    ]  # fmt: skip
    if len(found) != 1:
        raise CompanionError(f"blank: {len(found)} assignments to {name} instead of one in a cell: {source[:60]!r}")
    return found[0]


def filled(source: str, values: dict[str, str]) -> str:
    """The source of a cell in which each name of `values` is assigned another right side."""
    for name, text in values.items():
        value, lines = assignment(source, name)[1], source.encode().splitlines(keepends=True)
        ends = ((value.lineno, value.col_offset), (value.end_lineno, value.end_col_offset))
        start, end = (sum(map(len, lines[: line - 1])) + column for line, column in ends)
        source = (source.encode()[:start] + text.encode() + source.encode()[end:]).decode()
    return source


def parts(source: str, names: list[str]) -> list[str]:
    """A cell cut in three: what stands before the statement(s) with the blank, these, and what comes after."""
    held = [assignment(source, name)[0] for name in names]
    first, last = min(s.lineno for s in held) - 1, max(s.end_lineno or s.lineno for s in held)
    lines = source.splitlines()
    return ["\n".join(some) for some in (lines[:first], lines[first:last], lines[last:])]


def course_page(name: str, page: dict[str, Any], *, solved: bool, profile: str = "smoke") -> nbformat.NotebookNode:
    """A notebook as students get it, or with everything solved."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    about = [f"- {objective}" for objective in page["objectives"]]
    about = ["**Afterwards you can**", "", *about, "", f"**Before you start:** {page['before']}.", ""]
    head = [new_markdown_cell("\n".join([*about, f"**Time:** {page['minutes']} minutes."])), new_code_cell(START)]
    cells = [notebook.cells[0], *head]
    for cell in notebook.cells[1:]:
        cell.source = cell.source.replace(PARAMETERS, PARAMETERS.replace("smoke", profile))
        if cell.cell_type == "markdown":
            cell.source = for_jupyter(cell.source)
        if cell.source.startswith("## Where the output went"):
            cells += [new_markdown_cell("## A question"), new_code_cell(f'ask("{name[:2]}")')]
        if cell.id == page["blank"]["cell"]:
            cells += blank_cells(cell, name[:2], page, solved)
        elif solved or "hide-cell" not in cell.metadata.get("tags", []):
            cells.append(cell)
        elif cells[-1].source != "# Your answer":
            cells.append(new_code_cell("# Your answer"))
    notebook.cells = cells
    for number, cell in enumerate(cells):  # the same bytes from the same sources
        cell.id = f"course-{name[:2]}-{number}"
    return notebook


def blank_cells(cell: nbformat.NotebookNode, number: str, page: dict[str, Any], solved: bool) -> list[Any]:
    """The cell with the blank as task, code up to the blank, check, and the rest, marked as nbgrader knows it."""
    names = page["blank"]["names"]
    source = cell.source if solved else filled(cell.source, dict.fromkeys(names, "..."))
    before, blank, after = parts(source, names)
    marked = f"### BEGIN SOLUTION\n{blank}\n### END SOLUTION" if solved else blank
    task = new_markdown_cell(f"**Your turn.** {page['blank']['task']}")
    fill = new_code_cell(f"{before}\n{marked}".lstrip("\n"))
    single = [name for left in names for name in left.split(", ")]
    empty = [f'assert {name} is not ..., "`{name}` is still `...`: fill it in above"\n' for name in single]
    said = f"{''.join(empty)}{page['checks']}print('The check finds nothing wrong.')"
    check = new_code_cell(f"# Check: run it as it is\n{said}")
    for one, solution, more in ((fill, True, {}), (check, False, {"points": 1})):
        marks = {"solution": solution, "grade": not solution, "locked": not solution, **more}
        grade_id = f"{'blank' if solution else 'check'}-{number}"
        one.metadata["nbgrader"] = {"schema_version": 3, "task": False, "grade_id": grade_id, **marks}
    check.metadata["jupyter"] = {"source_hidden": True}
    cell.source = after.lstrip("\n")
    return [task, fill, check, *([cell] if cell.source else [])]


def for_jupyter(text: str) -> str:
    """Markdown of the book without what only the book can show: citations become names and years."""

    def cited(found: re.Match[str]) -> str:
        keys = [re.match(r"\s*([a-z]+)(\d*)", key) for key in found[1].split(",")]
        return ", ".join(f"{key[1].title()} {key[2]}".strip() for key in keys if key)

    text = re.sub(r"\{cite\}`([^`]+)`", cited, text)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text)


def answer_key() -> str:
    """Markdown: of every page the blank's solution, what wrong answers mean, the question with its answer."""
    lines = ["# Answers", "", "Not for students. Solutions of the exercises stand in the notebooks beside this file."]
    for name in NAMES:
        page, cells = page_of(name), nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        source = next(cell.source for cell in cells if cell.id == page["blank"]["cell"])
        lines += ["", f"## {name[:2]}", "", page["blank"]["task"], ""]
        lines += [f"- `{of} = {ast.unparse(assignment(source, of)[1])}`" for of in page["blank"]["names"]]
        for wrong in page["wrong"]:
            said = "; ".join(f"`{of} = {text}`" for of, text in wrong.items() if of != "why")
            lines.append(f"- wrong, {wrong['why']}: {said}")
        lines += ["", page["question"]["text"], ""]
        for answer in page["question"]["answers"]:
            lines.append(f"- {'**right**: ' if answer.get('correct') else ''}{answer['text']} *{answer['feedback']}*")
    return "\n".join(lines) + "\n"
