"""A course from the sources of the book: ``python scripts/course.py`` (`make course`) writes ``_build/course/``.

- ``companion-course.zip``, what students get: notebooks without solutions, the data that they read, questions,
  ``check_setup.py`` and the package as a wheel
- ``teacher/``: the same notebooks with solutions, executed; ``answers.md``; ``slides/index.html``

The data are the run of smoke, without what no page reads. Where the reference run is committed, pages 08 and 09 read
two tables of its scores, and slides show its figures.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pandas as pd
from course_pages import NAMES, ROOT, answer_key, course_page, page_of
from nbclient import NotebookClient
from traitlets.config import Config

from companion.config import load_profile
from companion.errors import CompanionError
from companion.evaluation.significance import headline_measure
from companion.layout import Layout
from companion.provenance import atomic_folder, write_table
from companion.workflow.book import shown
from companion.workflow.freshness import DONE
from companion.workflow.status import snakemake

OUT = ROOT / "_build" / "course"
TITLE = "companion-course"
REFERENCE = ROOT / "results" / "reference" / "phantom"
SCORES, RESAMPLES = ("08_sizes_and_splits", "09_significance"), 200  # of 1000: for intervals to talk about
# What pages read of the run, below its folder.
READ = (
    "split-*/micrographs/*/*", "split-*/n-*/statistics/*.parquet", "split-*/n-*/masks-*/patches/*",
    "split-*/n-*/model-1/diffusion/*.safetensors", "split-*/n-*/model-1/generated-plain/patches/*",
    "split-*/n-*/model-1/generated-plain/quality.parquet", "split-*/n-*/EXP/seed-1/weights.safetensors",
    "split-*/n-*/*/seed-*/predictions/*", "thresholds/*.parquet",
)  # fmt: skip
PARTS = ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "plugin/markdown/markdown.js",
         "plugin/notes/notes.js", "LICENSE")  # fmt: skip
SLIDES = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="reveal/dist/reset.css"><link rel="stylesheet" href="reveal/dist/reveal.css">
<style>body {{background: white}} .reveal {{font: 28px/1.35 sans-serif; color: #222}} .reveal h1 {{font-size: 1.8em}}
.reveal h2 {{font-size: 1.4em}} .reveal img {{max-width: 100%; max-height: 440px}} .reveal li {{text-align: left}}
</style></head>
<body><div class="reveal"><div class="slides">
<section data-markdown data-separator="^---$" data-separator-notes="^Note:"><textarea data-template>
{text}
</textarea></section></div></div>
<script src="reveal/dist/reveal.js"></script><script src="reveal/plugin/markdown/markdown.js"></script>
<script src="reveal/plugin/notes/notes.js"></script>
<script>Reveal.initialize({{hash: true, plugins: [RevealMarkdown, RevealNotes]}})</script></body></html>
"""


def run_what_is_missing(cores: int) -> Path:
    """Make the stages of smoke that the course needs, where they are missing or stale; the run's folder."""
    P = load_profile("smoke")
    place, pages = Layout(P, Path()), ("sizes", "significance", "imbalance", "claims", "errors")
    flags = [place.page(page) / DONE for page in pages]
    flags += [place.faithfulness(*condition) / DONE for condition in P.conditions()]
    command, environment = snakemake(P, "--cores", str(cores), "--quiet", "all", "--", *map(str, flags))
    if subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode:
        raise CompanionError("the run of smoke failed; `companion run smoke` says why")
    return Layout(P).tree


def write_student(folder: Path, tree: Path) -> None:
    """Fill `folder` with what students get, the data from the run in `tree`."""
    sources = {
        "LICENSE": ROOT / "LICENSE",
        "LICENSE-text": ROOT / "LICENSE-text",
        "constraints.txt": ROOT / "requirements.lock",
        "check_setup.py": ROOT / "scripts" / "check_setup.py",
        "README.md": ROOT / "book" / "course" / "start.md",
    }
    sources |= {f"weights/{file.name}": file for file in (ROOT / "weights").iterdir()}
    sources |= {f"profiles/{file.name}": file for file in (ROOT / "profiles").glob("*.yaml")}
    read = {file for pattern in READ for file in tree.glob(pattern) if file.is_file() and file.parent.name != "figures"}
    sources |= {f"runs/smoke/phantom/{file.relative_to(tree).as_posix()}": file for file in sorted(read)}
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    if REFERENCE.is_dir():
        tables = REFERENCE / "thresholds", folder / "runs" / "reference" / "phantom" / "thresholds"
        chosen, resampled = (pd.read_parquet(tables[0] / f"{name}.parquet") for name in ("chosen", "resampled"))
        columns = ["split", "n_train", "arm", "seed", "resample", headline_measure(chosen)[0]]
        write_table(tables[1] / "chosen.parquet", chosen)
        write_table(tables[1] / "resampled.parquet", resampled.loc[resampled["resample"] <= RESAMPLES, columns])
    for name in NAMES:
        page = page_of(name)
        write(course_page(name, page, solved=False, profile=profile_of(name, folder)), folder / "notebooks", name)
        answers = [{"answer": a["text"], "correct": a.get("correct", False), "feedback": a["feedback"]}
                   for a in page["question"]["answers"]]  # fmt: skip
        quiz = [{"question": page["question"]["text"], "type": "multiple_choice", "answers": answers}]
        asked = folder / "questions" / f"{name[:2]}.txt"
        asked.parent.mkdir(exist_ok=True)
        asked.write_bytes(base64.b64encode(json.dumps(quiz).encode()))  # not to be read by chance
    wanted = f"-c constraints.txt\n./{build_wheel(folder)}\njupyterlab\njupyterquiz\n"
    (folder / "requirements.txt").write_text(wanted, encoding="utf-8")


def profile_of(name: str, student: Path) -> str:
    """Profile that a page reads: of scores that of the reference run, where the students' folder holds it."""
    return "reference" if name in SCORES and (student / "runs" / "reference").is_dir() else "smoke"


def write(notebook: nbformat.NotebookNode, folder: Path, name: str) -> None:
    """Write a notebook; equal ones give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


def build_wheel(folder: Path) -> str:
    """Build the package's wheel into `folder`, without a network; its file name."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, Path(scratch) / name)
        shutil.copytree(ROOT / "src", Path(scratch) / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=scratch, capture_output=True, text=True, check=True)
    (made,) = folder.glob("*.whl")
    return made.name


def client(notebook: nbformat.NotebookNode, student: Path, scratch: Path) -> NotebookClient:
    """What runs a notebook in a copy of the students' folder, made below `scratch`."""
    copy = scratch / TITLE
    shutil.copytree(student, copy)
    sockets = {"transport": "ipc", "ip": str(scratch / "k"), "connection_file": str(scratch / "kernel.json")}
    return NotebookClient(
        notebook, kernel_name="python3", timeout=600, config=Config(KernelManager=sockets),
        resources={"metadata": {"path": str(copy / "notebooks")}},
    )  # fmt: skip


def execute(name: str, student: Path, teacher: Path) -> float:
    """Run a page with its solutions from the students' data, write it to `teacher`; seconds of one core."""
    notebook, before = course_page(name, page_of(name), solved=True, profile=profile_of(name, student)), core_seconds()
    with tempfile.TemporaryDirectory(prefix="course-") as scratch:
        client(notebook, student, Path(scratch)).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    write(notebook, teacher / "notebooks", name)
    return core_seconds() - before


def core_seconds() -> float:
    """What the processes that this one has started, and that have ended, took of all cores [s]."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_slides(text: str, figures: dict[str, Path], folder: Path) -> None:
    """Slides of Markdown `text` that open without a server and a network, with reveal beside them.

    Slides are parted by ``---``; what follows ``Note:`` is for the speaker. ``![alt](07_thresholds/fig3.png)`` shows a
    figure of the run: `figures` holds the folder of each notebook's stage.
    """
    for path in sorted(set(re.findall(r"!\[[^\]]*\]\((\d\d_[^)]+)\)", text))):
        name, file = path.split("/")
        (folder / name).mkdir(parents=True, exist_ok=True)
        if name not in figures or not (figures[name] / "figures" / file).is_file():
            raise CompanionError(f"slides.md shows {path}, which the run has not drawn")
        shutil.copyfile(figures[name] / "figures" / file, folder / path)
    home = find_spec("sphinx_revealjs")
    if home is None or not home.origin:
        raise CompanionError("slides need reveal.js, from the package sphinx-revealjs: pip install -e '.[course]'")
    reveal = Path(home.origin).parent / "_static" / "revealjs"
    for part in PARTS:
        (folder / "reveal" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(reveal / part, folder / "reveal" / part)
    title = text.split("\n", 1)[0].lstrip("# ")
    (folder / "index.html").write_text(SLIDES.format(title=title, text=text), encoding="utf-8")


def main() -> None:
    """Build the course, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of each kernel: threads of kernels side by side wait for each other
    try:
        tree = run_what_is_missing(given.cores)
        with atomic_folder(OUT) as out:
            student, teacher = out / TITLE, out / "teacher"
            write_student(student, tree)
            slides = (ROOT / "book" / "course" / "slides.md").read_text(encoding="utf-8")
            profile, drawn = ("reference", REFERENCE) if REFERENCE.is_dir() else ("smoke", tree)
            write_slides(slides, shown(load_profile(profile), drawn), teacher / "slides")
            (teacher / "answers.md").write_text(answer_key(), encoding="utf-8")
            shutil.copyfile(ROOT / "book" / "course" / "project_key.md", teacher / "project_key.md")
            with ProcessPoolExecutor(given.cores, mp_context=get_context("spawn")) as pool:
                seconds = pool.map(execute, NAMES, [student] * len(NAMES), [teacher] * len(NAMES))
                for name, took in zip(NAMES, seconds, strict=True):
                    print(f"{name}: {took:.0f} s of one core")
            shutil.make_archive(str(out / TITLE), "zip", out, TITLE)
            shutil.rmtree(student)
    except CompanionError as error:
        parser.exit(2, f"error: {error}\n")
    size = (OUT / f"{TITLE}.zip").stat().st_size / 1e6
    print(f"{OUT.relative_to(ROOT)}: {TITLE}.zip ({size:.1f} MB) for students, teacher/ for you")


if __name__ == "__main__":
    main()
