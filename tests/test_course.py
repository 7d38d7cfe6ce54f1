"""The course: from its own zip each page runs, fails at its blank only, and its checks tell right from wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

pytest.importorskip("jupyterquiz", reason="the course's packages: pip install -e '.[course]'")

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
import check_setup  # noqa: E402
import course  # noqa: E402
import course_pages as pages  # noqa: E402

from companion.errors import CompanionError  # noqa: E402

TREE = ROOT / "runs" / "smoke" / "phantom"
READS = json.dumps('profile: str = "reference"')[1:-1]  # in a notebook's file


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kernel: tests that run side by side would wait for each other's threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What students get, unpacked."""
    if not (TREE / "claims" / "stamp.json").is_file():
        pytest.skip("no smoke run: `make smoke` makes it")
    folder = tmp_path_factory.mktemp("handed out") / course.TITLE
    course.write_student(folder, TREE)
    return folder


def blank_of(notebook: nbformat.NotebookNode, kind: str) -> nbformat.NotebookNode:
    marks = [(cell.metadata.get("nbgrader", {}).get("grade_id", ""), cell) for cell in notebook.cells]
    (found,) = [cell for grade_id, cell in marks if grade_id.startswith(kind)]
    return found


def refusal(client: NotebookClient, *sources: str) -> str:
    """What is shown below the first of these cells that fails; one must."""
    for cell in map(new_code_cell, sources):
        try:
            client.execute_cell(cell, 0)
        except CellExecutionError:
            return "\n".join(cell.outputs[-1]["traceback"])
    pytest.fail("no cell failed")


@pytest.mark.slow
@pytest.mark.parametrize("name", pages.NAMES)
def test_a_page_runs_fails_at_its_blank_only_and_its_check_tells_right_from_wrong(name, student, tmp_path) -> None:
    page, given = pages.page_of(name), nbformat.read(student / "notebooks" / f"{name}.ipynb", as_version=4)
    solved = pages.course_page(name, page, solved=True, profile=course.profile_of(name, student))
    fill, check, empty = blank_of(solved, "blank"), blank_of(solved, "check"), blank_of(given, "blank")
    code = [[cell.source for cell in notebook.cells if cell.cell_type == "code"] for notebook in (given, solved)]
    hidden = [cell for cell in solved.cells if "hide-cell" in cell.metadata.get("tags", [])]
    taken_out = [cell.source for cell in hidden if cell.cell_type == "code"]
    assert set(code[0]) - set(code[1]) == {empty.source, "# Your answer"}
    assert set(code[1]) - set(code[0]) == {fill.source, *taken_out}
    client = course.client(solved, student, tmp_path)
    with client.setup_kernel():
        for index, cell in enumerate(solved.cells):
            if cell is fill:
                assert "`...`" in refusal(client, empty.source, check.source)
                for wrong in page["wrong"]:
                    values = {of: text for of, text in wrong.items() if of != "why"}
                    said = refusal(client, pages.filled(fill.source, values), check.source)
                    assert said and "\n" not in said, wrong["why"]
            client.execute_cell(cell, index)
        client.execute_cell(new_code_cell("import time\n\nassert time.process_time() < 60"), index)
    assert len(page["wrong"]) == 3 and sum(answer.get("correct", False) for answer in page["question"]["answers"]) == 1
    assert len(page["question"]["answers"]) == 4 and all(answer["feedback"] for answer in page["question"]["answers"])


@pytest.mark.slow
def test_what_goes_wrong_in_the_room_is_one_sentence_that_says_what_to_do(student: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(student / "notebooks" / "09_significance.ipynb", as_version=4)
    client = course.client(notebook, student, tmp_path)
    first = next(cell.source for cell in notebook.cells if "start()" in cell.source)
    with client.setup_kernel():
        client.execute_cell(new_code_cell(first), 0)
        assert "run the cells above" in refusal(client, blank_of(notebook, "check").source)  # out of order
        assert "A cell above" in refusal(client, "abs(Ellipsis)")
        assert "Traceback" in refusal(client, "1 / 0")  # an error of another kind stays Python's
        printed = new_code_cell("import pathlib\n\npathlib.Path('C:\\my\\data')")
        assert "forward slashes" in client.execute_cell(printed, 0).outputs[0]["text"]
        shutil.rmtree(tmp_path / course.TITLE / "runs")
        assert "unpack the whole zip again" in refusal(client, first)


# --- what is handed out -------------------------------------------------------------------------------------


def test_students_get_no_answers_and_little_to_carry(student: Path, tmp_path: Path) -> None:
    file = shutil.make_archive(str(tmp_path / "zip"), "zip", student.parent, student.name)
    assert Path(file).stat().st_size < 20e6
    names = [path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()]
    assert max(map(len, names)) < 110  # beside check_setup.LONGEST_PATH, below what Windows takes
    told = [answer["feedback"] for name in pages.NAMES for answer in pages.page_of(name)["question"]["answers"]]
    texts = "".join(path.read_text("utf-8", errors="ignore") for path in student.rglob("*") if path.is_file())
    assert not [feedback for feedback in told if feedback in texts or json.dumps(feedback)[1:-1] in texts]
    assert not [name for name in names if "answers" in name or name.startswith("book")]
    assert all(feedback in pages.answer_key() for feedback in told)


def test_pages_of_scores_read_the_reference_run_where_it_is_committed(student, tmp_path, monkeypatch) -> None:
    shutil.copytree(TREE / "thresholds", tmp_path / "reference" / "thresholds")
    monkeypatch.setattr(course, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr(course, "RESAMPLES", 50)
    course.write_student(tmp_path / "out", TREE)
    (file,) = (tmp_path / "out" / "runs" / "reference").rglob("resampled.parquet")
    table = pd.read_parquet(file)
    assert table["resample"].max() == 50 and len(table.columns) == 6
    notebooks = sorted((tmp_path / "out" / "notebooks").iterdir())
    assert tuple(path.stem for path in notebooks if READS in path.read_text("utf-8")) == course.SCORES


@pytest.mark.parametrize(("given", "said"), [
    ({"python": (3, 9)}, "3.11 to 3.13"), ({"python": (3, 14)}, "3.11 to 3.13"),
    ({"folder": PureWindowsPath("C:/Users/someone/" + 9 * "a long folder/"), "windows": True}, "short path"),
    ({"folder": PureWindowsPath("C:/Temp/companion-course.zip/x"), "windows": True}, "unpack the zip"),
    ({"folder": "/nowhere"}, "unpack the whole zip again"),
])  # fmt: skip
def test_the_set_up_check_says_in_one_sentence_what_is_wrong(student: Path, given: dict, said: str) -> None:
    assert check_setup.problems(student) == []
    found = [sentence for sentence in check_setup.problems(**{"folder": student, **given}) if said in sentence]
    assert len(found) == 1 and found[0].endswith(".")


@pytest.mark.slow
def test_the_set_up_check_runs_a_detector(student: Path) -> None:
    command = [sys.executable, "check_setup.py"]
    done = subprocess.run(command, cwd=student, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "Ready" in done.stdout, done.stdout + done.stderr


def test_slides_need_no_network_and_no_figure_that_was_not_drawn(student: Path, tmp_path: Path) -> None:
    pytest.importorskip("sphinx_revealjs")
    drawn = {"07_thresholds": TREE / "thresholds"}
    course.write_slides("# Title\n\n---\n\n![curves](07_thresholds/fig3.png)\n", drawn, tmp_path / "slides")
    page = (tmp_path / "slides" / "index.html").read_text(encoding="utf-8")
    linked = re.findall(r"(?:src|href)=\"([^\"]+)\"|\]\(([^)]+)\)", page)
    assert len(linked) == 6 and all((tmp_path / "slides" / (a or b)).is_file() for a, b in linked)
    with pytest.raises(CompanionError, match=r"07_thresholds/fig9.png"):
        course.write_slides("![no such](07_thresholds/fig9.png)", drawn, tmp_path / "none")


def test_a_blank_is_one_assignment_wherever_it_stands() -> None:
    source = "a = 1\nfor k in range(2):\n    b, c = (k,\n            'ä')\nd = 2"
    assert pages.filled(source, {"b, c": "..."}) == "a = 1\nfor k in range(2):\n    b, c = ...\nd = 2"
    assert pages.parts(source, ["b, c"])[::2] == ["a = 1", "d = 2"]
    with pytest.raises(CompanionError, match="2 assignments to a"):
        pages.filled("a = 1\na = 2", {"a": "..."})
