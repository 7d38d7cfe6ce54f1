"""From executed notebooks to the pages of the book: one page per notebook, each with a badge made from its stamp."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import nbformat

from companion import layout
from companion.config import Profile, load_profile
from companion.errors import CompanionError, problems
from companion.layout import Layout
from companion.plots import data_name
from companion.provenance import atomic_folder
from companion.workflow import pages, reference_run, teaching
from companion.workflow.freshness import EXECUTED, read_stamp, stages, states

STUDIES = {"14_annotation_bias": "studies.bias_n_train", "15_distribution_shift": "studies.shifts"}


def shown(P: Profile, tree: Path) -> dict[str, Path]:
    """The folder whose run stands on the page of each notebook: first split, largest N, EXP+GEN, first seed."""
    arm = "EXP+GEN" if "EXP+GEN" in P.arms else P.arms[0]
    page = {"split": P.split_names[0], "n_train": str(P.sizes[-1]), "arm": arm, "seed": str(P.seeds[0])}
    page |= {"model": "1", "masks": "plain"}
    made = [(folder, read_stamp(folder) or {}) for folder in stages(tree)]
    return {stamp["notebook"]: folder for folder, stamp in made if stamp["keys"].items() <= page.items()}


def assemble(P: Profile, tree: Path, drawn: Path, target: Path) -> list[Path]:
    """Write one page per notebook into `target`, with badges, and what the other pages quote and include.

    Parameters
    ----------
    P : whose run is shown
    tree : the run with its stamps
    drawn : the run whose executed notebooks and figures are shown: `tree`, or one that was drawn again from it
    target : book/executed; replaced whole
    """
    folders, names = shown(P, tree), sorted(path.stem for path in (layout.root() / "notebooks").glob("*.ipynb"))
    if absent := [name for name in names if name not in STUDIES and name not in folders]:
        raise problems(f"the book needs a complete run; `companion run {P.name}` makes what is missing:", absent)
    known = states(P, tree)
    stamps = [(read_stamp(tree / name), why) for name, why in known.items()]
    with atomic_folder(target) as folder:
        for name in names:
            if place := folders.get(name):
                made = page(name, drawn / place.relative_to(tree))
                line = pages.badge(read_stamp(place) or {}, known[place.relative_to(tree).as_posix()])
                made.cells.insert(1, nbformat.v4.new_markdown_cell(line, id="badge"))
                teaching.add_course(made, name)
            else:
                made = page_not_run(name, P)
            nbformat.write(made, folder / f"{name}.ipynb")
        claims, sizes = (drawn / folders[name].relative_to(tree) for name in ("11_claims", "08_sizes_and_splits"))
        for figure in [*(claims / "figures").glob("strip.*"), *(sizes / "figures").glob("waterfall.*")]:
            shutil.copy(figure, folder / figure.name)
        for file in (claims / "claims.json", drawn / folders["09_significance"].relative_to(tree) / "significant.md"):
            shutil.copy(file, folder / file.name)
        teaching.write_overview(folder)
        pages.write_fragments(folder, P, claims / "claims.json", sizes / "sizes.parquet", stamps)
    return sorted(target.glob("*.ipynb"))


def page(name: str, folder: Path) -> nbformat.NotebookNode:
    """A notebook as a page: its text as it is now, its outputs as it was executed in `folder`.

    Without papermill's own cell, progress bars and paths of one machine. Where the code has other cells by now, all of
    the executed copy is shown (its badge says that it is stale).
    """
    executed = nbformat.read(folder / EXECUTED, as_version=4)
    for cell in executed.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    executed.metadata.pop("papermill", None)
    executed.cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    current = nbformat.read(layout.notebook(name), as_version=4)
    ran, now = ([c for c in notebook.cells if c.cell_type == "code"] for notebook in (executed, current))
    if len(ran) != len(now):
        return executed
    for before, cell in zip(ran, now, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return current


def page_not_run(name: str, P: Profile) -> nbformat.NotebookNode:
    """The title of a notebook that this run does not hold, and why."""
    notebook = nbformat.read(layout.notebook(name), as_version=4)
    said = (
        f"Not part of this run (profile {P.name}, {data_name(P.dataset)}): the study needs micrographs whose exact "
        f"truth is known, the phantom's, and a profile that asks for it (`{STUDIES[name]}`)."
    )
    notebook.cells = [notebook.cells[0], nbformat.v4.new_markdown_cell(said, id="not-run")]
    return notebook


def collect_figures(P: Profile, drawn: Path, target: Path) -> list[Path]:
    """Copy the paper's figures as this run reproduced them, fig1 to fig5 as SVG and PNG, into `target`."""
    with atomic_folder(target) as folder:
        for place in shown(P, drawn).values():
            for figure in sorted((place / "figures").glob("fig[1-5].*")):
                shutil.copy(figure, folder / figure.name)
    return sorted(target.iterdir())


def main() -> None:
    """``python -m companion.workflow.book PROFILE``: make book/executed and figures from a finished run.

    Where the profile's run is committed in results/, from that: what trains nothing is computed again and compared.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("--dataset")
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    try:
        P = load_profile(given.profile, dataset=given.dataset)
        with reference_run.committed(P) as is_committed:
            tree = Layout(P).tree
            drawn = reference_run.draw_again(P, tree, given.cores, shown(P, tree)) if is_committed else tree
            made = assemble(P, tree, drawn, layout.root() / "book" / "executed")
            figures = collect_figures(P, drawn, layout.root() / ("figures" if is_committed else "_build/figures"))
        print(f"book/executed: {len(made)} pages, {len(figures)} figures, from {P.name} on {data_name(P.dataset)}")
    except CompanionError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
