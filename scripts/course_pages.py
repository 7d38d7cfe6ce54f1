"""From a notebook of the book to a page of the course: objectives, a blank to fill in, a check, a question.

What a page adds stands in ``book/course/<NN>.yaml`` (02 says how). Code and solutions are the notebook's own, so that
nothing drifts. Pages without a blank train networks, or read all that there are: they are read in the book.
"""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from companion.workflow.teaching import WHERE_OUTPUT_WENT, course_of, objectives, question

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [file.stem for file in FILES if "blank" in course_of(file.stem)]
START = "import sys\n\nsys.path.append('..')  # a notebook stays in the folder notebooks/ of the course\n"
START += "from check_setup import start, typed\n\nstart()"
ANSWER = "# Your answers (the + above, or key B, makes a cell below this one)"


def assignment(source: str, name: str) -> tuple[ast.stmt, ast.Assign]:
    """The statement of a cell that holds its one assignment to `name`, and that assignment."""
    (found,) = [
        (statement, node) for statement in ast.parse(source).body for node in ast.walk(statement)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]  # fmt: skip
    return found


def filled(source: str, name: str, value: str) -> str:
    """The source of a cell in which `name` is assigned another value."""
    node = assignment(source, name)[1]
    whole, before = (ast.get_source_segment(source, part) or "" for part in (node, node.value))
    return source.replace(whole, value.join(whole.rsplit(before, 1)))


def course_page(name: str, *, solved: bool, profile: str = "smoke") -> nbformat.NotebookNode:
    """A notebook as students get it, or for the teacher: solved, with the answers that one will hear."""
    notebook, course = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4), course_of(name)
    about = new_markdown_cell(f"**Afterwards you can**\n\n{objectives(course)}")
    cells = [notebook.cells[0], about, new_code_cell(START)]
    for cell in notebook.cells[1:]:
        tags = cell.metadata.get("tags", [])
        cell.source = cell.source.replace('profile: str = "smoke"', f'profile: str = "{profile}"')
        if cell.cell_type == "markdown":
            cell.source = for_jupyter(cell.source)
        elif "hide-input" in tags:  # as in the book, one click opens it
            cell.metadata["jupyter"] = {"source_hidden": True}
        if cell.source.startswith(WHERE_OUTPUT_WENT):
            cells.append(new_markdown_cell(question(course["question"], int(name[:2]))))
        if cell.id == course["blank"]["cell"]:
            cells += blank_cells(cell, name[:2], course, solved)
        elif solved or "hide-cell" not in tags or cell.source == "written(out)":
            cells.append(cell)
        elif cells[-1].source != ANSWER:
            cells.append(new_code_cell(ANSWER))
    for number, cell in enumerate(cells):  # the same bytes from the same sources
        cell.id = f"course-{name[:2]}-{number}"
    notebook.cells = [cell for cell in cells if cell.source]
    return notebook


def blank_cells(cell: nbformat.NotebookNode, number: str, course: dict[str, Any], solved: bool) -> list[Any]:
    """The cell with the blank as task, code up to the blank, check, and the rest, marked as nbgrader knows it."""
    name, told = course["blank"]["name"], []
    source = cell.source if solved else filled(cell.source, name, "...")
    held, lines = assignment(source, name)[0], source.splitlines()
    before, blank, after = ("\n".join(some) for some in (
        lines[: held.lineno - 1], lines[held.lineno - 1 : held.end_lineno], lines[held.end_lineno :],
    ))  # fmt: skip
    if solved:
        blank = f"### BEGIN SOLUTION\n{blank}\n### END SOLUTION"
        wrong = [f"- `{each['value']}`: {each['why']}" for each in course["wrong"]]
        told = [new_markdown_cell("\n".join(["**Wrong answers that the check refuses**", "", *wrong]))]
    fill = new_code_cell(f"{before}\n{blank}".lstrip("\n"))
    empty = f'assert {name} is not ..., "`{name}` is still `...`: fill it in above"'
    end = "print('The check finds nothing wrong.')"
    check = new_code_cell(f"# Check: run it as it is\n{empty}\n{course['checks']}{end}")
    for one, solution, more in ((fill, True, {}), (check, False, {"points": 1})):
        marks = {"solution": solution, "grade": not solution, "locked": not solution, **more}
        grade_id = f"{'blank' if solution else 'check'}-{number}"
        one.metadata["nbgrader"] = {"schema_version": 3, "task": False, "grade_id": grade_id, **marks}
    check.metadata["jupyter"] = {"source_hidden": True}
    cell.source = after.lstrip("\n")
    return [new_markdown_cell(f"**Your turn.** {course['blank']['task']}"), fill, check, *told, cell]


def for_jupyter(text: str) -> str:
    """Markdown of the book without what only the book can show: citations become names and years."""

    def cited(keys: re.Match[str]) -> str:
        return "[" + re.sub(r"([a-z]+)(\d{4})\w*", lambda key: f"{key[1].title()} {key[2]}", keys[1]) + "]"

    text = re.sub(r"\{cite\}`([^`]+)`", cited, re.sub(r"(?<=\d|[a-z]),(?=[a-z]+\d{4})", ", ", text))
    return "" if "{raw}" in text else re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text)
