"""What the course says of a page: from book/course/<NN>.yaml, for the book and for the zip for students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_markdown_cell

from companion import layout
from companion.provenance import write_text
from companion.workflow.pages import markdown_table

WHERE_OUTPUT_WENT = "## Where the output went"  # the question stands before this heading


def course_of(name: str) -> dict[str, Any]:
    """What stands in book/course/<NN>.yaml of notebook `name`."""
    return yaml.safe_load((layout.root() / "book" / "course" / f"{name[:2]}.yaml").read_text(encoding="utf-8"))


def add_course(notebook: nbformat.NotebookNode, name: str) -> None:
    """Put objectives below the figure that begins a page, and its question, answers hidden, below its exercises."""
    course = course_of(name)
    number = next(k for k, cell in enumerate(notebook.cells) if cell.source.startswith(WHERE_OUTPUT_WENT))
    notebook.cells.insert(number, new_markdown_cell(question(course["question"], int(name[:2])), id="question"))
    text = f":::{{admonition}} After this page you can\n:class: tip companion-objectives\n\n{objectives(course)}\n:::"
    notebook.cells.insert(3, new_markdown_cell(text, id="objectives"))


def objectives(course: dict[str, Any]) -> str:
    """Markdown: what one can do after the page, what one should know before it, and how long it takes in a room."""
    can = "\n".join(f"- {objective}" for objective in course["objectives"])
    return f"{can}\n\n**Before you start:** {course['before']}. **In a course:** {course['minutes']} minutes."


def question(asked: dict[str, Any], turn: int) -> str:
    """Markdown: a question whose answers, turned round by `turn`, each hide what is to be said about them."""
    lines, first = ["## A question", "", asked["text"], ""], turn % 4
    for letter, answer in zip("abcd", asked["answers"][first:] + asked["answers"][:first], strict=True):
        said = ("Right. " if answer.get("correct") else "Not so. ") + answer["feedback"].removeprefix("Yes. ")
        lines += ['<details class="companion-answer">', f"<summary>{letter}. {answer['text']}</summary>", "", said, "",
                  "</details>", ""]  # fmt: skip
    return "\n".join(lines)


def write_overview(folder: Path) -> None:
    """Write course.md, which the page for teachers includes: of each page minutes, seconds, first objective."""
    files = sorted((layout.root() / "notebooks").glob("*.ipynb"))
    rows = [(f"[{file.stem[:2]}](executed/{file.name})", course["minutes"],
             f"{course['seconds']} s" if "seconds" in course else "read, not run", course["objectives"][0])
            for file in files for course in [course_of(file.stem)]]  # fmt: skip
    write_text(folder / "course.md", markdown_table(("page", "minutes", "runs in", "afterwards you can"), rows))
