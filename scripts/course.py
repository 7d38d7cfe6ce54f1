"""A course from the sources of the book: ``python scripts/course.py`` (`make course`) writes ``_build/course/``.

- ``companion-course.zip``, what students get: notebooks without solutions, the data that they read,
  ``check_setup.py`` and the package
- ``teacher/``: the same notebooks with solutions and answers, executed; ``slides/index.html``; ``project_key.md``

The data are the run of smoke, without what no page reads. Where `make book` has drawn the reference run, pages 08 and
09 read two tables of its scores.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pandas as pd
from course_pages import NAMES, ROOT, course_page
from nbclient import NotebookClient
from traitlets.config import Config

from companion.config import load_profile
from companion.errors import CompanionError
from companion.layout import Layout
from companion.provenance import atomic_folder, write_table
from companion.workflow.reference_run import shown
from companion.workflow.run import run

OUT, SOURCE = ROOT / "_build" / "course", ROOT / "book" / "course"
TITLE = "companion-course"
REFERENCE = Path("runs", "reference", "phantom", "thresholds")  # below _build, as `make book` has drawn it again
SCORES, RESAMPLES = ("08_sizes_and_splits", "09_significance"), 200  # of 1000: for intervals to talk about
# What students get, by its name in the project; below `runs` what pages read of the run.
HANDED_OUT = ("LICENSE*", "profiles/*.yaml", "weights/auto*", "src/companion/**/*.py", "src/companion/micrographs/*.*")
READ = (
    "split-*/micrographs/[tv]*/*", "split-*/n-*/statistics/*.parquet", "split-*/n-*/masks-*/patches/*",
    "split-*/n-*/model-1/diffusion/*.safetensors", "split-*/n-*/model-1/generated-plain/patches/*",
    "split-*/n-*/model-1/generated-plain/quality.parquet", "split-*/n-*/model-1/generated-plain/figures/fig2.svg",
    "split-*/n-*/EXP/seed-1/weights.safetensors", "split-*/n-*/*/seed-*/predictions/*", "thresholds/*.parquet",
)  # fmt: skip


def write_student(folder: Path, tree: Path) -> None:
    """Fill `folder` with what students get, the data from the run in `tree`."""
    sources = {file.relative_to(ROOT): file for pattern in HANDED_OUT for file in ROOT.glob(pattern)}
    sources |= {Path("constraints.txt"): ROOT / "requirements.lock", Path("README.md"): SOURCE / "start.md"}
    sources |= {Path(path).name: ROOT / path for path in ("scripts/check_setup.py", "book/references.bib")}
    read = [file for pattern in READ for file in sorted(tree.glob(pattern)) if file.is_file()]
    sources |= {Path("runs/smoke/phantom", file.relative_to(tree)): file for file in read}
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    if (drawn := ROOT / "_build" / REFERENCE / "resampled.parquet").is_file():
        columns = ["split", "n_train", "arm", "seed", "resample", "f1_hm"]
        few = pd.read_parquet(drawn, columns=columns, filters=[("resample", "<=", RESAMPLES)])
        write_table(folder / REFERENCE / drawn.name, few)
        shutil.copyfile(drawn.with_name("chosen.parquet"), folder / REFERENCE / "chosen.parquet")
    (folder / "notebooks").mkdir()
    for name in NAMES:
        page = course_page(name, solved=False, profile=profile_of(name, folder))
        nbformat.write(page, folder / "notebooks" / f"{name}.ipynb")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = ["-c constraints.txt", *needed, "ipywidgets", "jupyterlab"]
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")


def profile_of(name: str, student: Path) -> str:
    """Profile that a page reads: of scores that of the reference run, where the students' folder holds it."""
    return "reference" if name in SCORES and (student / "runs" / "reference").is_dir() else "smoke"


def client(notebook: nbformat.NotebookNode, student: Path, scratch: Path) -> NotebookClient:
    """What runs a notebook in a copy of the students' folder, made below `scratch`."""
    copy = scratch / TITLE
    shutil.copytree(student, copy)
    sockets = {"transport": "ipc", "ip": str(scratch / "k"), "connection_file": str(scratch / "kernel.json")}
    return NotebookClient(
        notebook, kernel_name="python3", timeout=600, record_timing=False, config=Config(KernelManager=sockets),
        resources={"metadata": {"path": str(copy / "notebooks")}},
    )  # fmt: skip


def execute(name: str, student: Path, teacher: Path) -> None:
    """Run a page with its solutions from the students' data, write it to `teacher`, and say how long it took."""
    notebook, began = course_page(name, solved=True, profile=profile_of(name, student)), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="course-") as scratch:
        client(notebook, student, Path(scratch)).execute()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, teacher / "notebooks" / f"{name}.ipynb")
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def write_slides(source: Path, figures: dict[str, Path], folder: Path) -> None:
    """Build the slides in the folder `source` into `folder`, with all that they need beside them.

    ``![alt](07_thresholds/fig3.png)`` shows a figure of the run: `figures` holds the folder of each notebook's stage.
    """
    with tempfile.TemporaryDirectory(prefix="slides-") as scratch:
        shutil.copytree(source, scratch, dirs_exist_ok=True)
        for name in set(re.findall(r"\]\((\d\d_\w+)/", (source / "index.md").read_text(encoding="utf-8"))):
            shutil.copytree(figures[name] / "figures", Path(scratch, name))
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "revealjs", scratch, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # a figure that the run has not drawn, for instance
        raise CompanionError(f"the slides cannot be made: {done.stderr.strip()}")


def main() -> None:
    """Build the course, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of each kernel: threads of kernels side by side wait for each other
    try:
        if run(P := load_profile("smoke"), given.cores):  # what is missing or stale
            raise CompanionError("the run of smoke failed, as said above")
        tree = Layout(P).tree
        with atomic_folder(OUT) as out:
            student, teacher = out / TITLE, out / "teacher"
            write_student(student, tree)
            write_slides(SOURCE / "slides", shown(P, tree), teacher / "slides")
            shutil.copyfile(SOURCE / "project_key.md", teacher / "project_key.md")
            (teacher / "notebooks").mkdir()
            with ProcessPoolExecutor(given.cores, mp_context=get_context("spawn")) as pool:
                list(pool.map(execute, NAMES, repeat(student), repeat(teacher)))  # raises what a page raised
            shutil.make_archive(str(out / TITLE), "zip", out, TITLE)
            shutil.rmtree(student)
    except CompanionError as error:
        parser.exit(2, f"error: {error}\n")
    size = (OUT / f"{TITLE}.zip").stat().st_size / 1e6
    print(f"{OUT.relative_to(ROOT)}: {TITLE}.zip ({size:.1f} MB) for students, teacher/ for you")


if __name__ == "__main__":
    main()
