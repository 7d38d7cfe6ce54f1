"""The course on the book's pages: objectives and question from their files, and lesson plans whose minutes add up."""

import re

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from companion import layout
from companion.workflow.teaching import WHERE_OUTPUT_WENT, add_course, course_of, objectives

NAMES = sorted(path.stem for path in (layout.root() / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_gets_its_objectives_and_a_question_with_one_right_answer_hidden(name: str) -> None:
    page = new_notebook(cells=[new_markdown_cell(text) for text in ("# 1", "badge", "found", WHERE_OUTPUT_WENT)])
    add_course(page, name)
    texts = [cell.source for cell in page.cells]
    assert texts == ["# 1", "badge", "found", objectives(course_of(name)), texts[4], WHERE_OUTPUT_WENT]
    shown = re.sub(r"</summary>.*?</details>", "", texts[4], flags=re.DOTALL)
    assert texts[4].count("Right.") == 1 and "Right." not in shown and "Not so." not in shown
    cells = nbformat.read(layout.notebook(name), as_version=4).cells
    (asked,) = [cell.source for cell in cells if "## Exercises" in cell.source]
    assert re.findall(r"\d\. \*\*(\w+)\.\*\*", asked) == ["Look", "Change", "Build"]


@pytest.mark.parametrize(("plan", "total"), [("lecture", [45]), ("half_day", [180]), ("two_days", [360, 360])])
def test_the_minutes_of_a_lesson_plan_add_up(plan: str, total: list[int]) -> None:
    tables = (layout.root() / "book" / "teach" / f"{plan}.md").read_text(encoding="utf-8").split("| minutes |")[1:]
    assert [sum(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) for table in tables] == total
