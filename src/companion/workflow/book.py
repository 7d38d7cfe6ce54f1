"""From executed notebooks to the pages of the book: one page per notebook, each with a badge made from its stamp."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from companion import layout
from companion.config import Profile, load_profile
from companion.errors import CompanionError, problems
from companion.evaluation.sliders import edited, wiped
from companion.layout import Layout
from companion.plots import data_name
from companion.provenance import atomic_folder, write_text
from companion.workflow import found, pages, reference_run, tables, teaching
from companion.workflow.answer import Results
from companion.workflow.freshness import EXECUTED, read_stamp, states
from companion.workflow.reference_run import REAL, shown
from companion.workflow.status import committed

SMALL = 200_000  # bytes of a file of results that a page offers
STUDIES = {"14_annotation_bias": "studies.bias_n_train", "15_distribution_shift": "studies.shifts"}


class Run(NamedTuple):
    """A finished run: profile, folder with its stamps, and with what is shown of it: the same, or drawn again."""

    P: Profile
    tree: Path
    drawn: Path


def run_of(P: Profile, cores: int) -> Run:
    """The run of a profile that is here, else the committed one, drawn again and compared."""
    with committed(P) as is_committed:
        tree = Layout(P).tree
        return Run(P, tree, reference_run.draw_again(P, tree, cores, shown(P, tree)) if is_committed else tree)


def assemble(run: Run, real: Run, target: Path) -> dict[str, Path]:
    """Write one page per notebook into `target`, with badges, and what the other pages quote and include.

    Returns the folder of what is shown of each notebook that was run.

    Parameters
    ----------
    run, real : what is shown, and the run on real micrographs, of which one page is shown where there is one
    target : book/executed; replaced whole
    """
    names = sorted(path.stem for path in (layout.root() / "notebooks").glob("*.ipynb"))
    folders, why = shown(run.P, run.tree), {run.tree / name: said for name, said in states(run.P, run.tree).items()}
    of = dict.fromkeys(folders, run)
    if REAL not in folders and (place := shown(real.P, real.tree).get(REAL)):
        folders[REAL], of[REAL] = place, real
        why[place] = states(real.P, real.tree)[place.relative_to(real.tree).as_posix()]
    if absent := [name for name in names if name not in (*STUDIES, REAL) and name not in folders]:
        raise problems(f"the book needs a complete run; `companion run {run.P.name}` makes what is missing:", absent)
    at = {name: of[name].drawn / place.relative_to(of[name].tree) for name, place in folders.items()}
    with atomic_folder(target) as folder:
        for name in names:
            if place := folders.get(name):
                made = tables.tidy(page(name, at[name], of[name].P.split_names))
                line = pages.badge(read_stamp(place) or {}, why[place]) + warned(of[name], read_stamp(place) or {})
                said = first_minute(name, Results(of[name].P, at), made, folder)
                top = [new_markdown_cell(line, id="badge"), new_markdown_cell(said, id="one-minute")]
                made.cells = [made.cells[0], *top, *linked(name, made.cells[1:], at[name], layout.shown(place), folder)]
                teaching.add_course(made, name)
            else:
                made = page_not_run(name, run.P)
            nbformat.write(made, folder / f"{name}.ipynb")
        drawn = at["11_claims"].glob("figures/strip.*"), at["08_sizes_and_splits"].glob("figures/waterfall.*")
        for figure in (figure for some in drawn for figure in some):
            shutil.copy(figure, folder / figure.name)
        for piece, name in ((wiped, "05_generated_images"), (edited, "13_mask_faithfulness")):
            write_text(folder / f"{piece.__name__}.html", piece(at[name] / "figures"))
        pages.write_fragments(folder, Results(run.P, at), [(read_stamp(place) or {}, why[place]) for place in why])
        teaching.write_overview(folder)
    return at


def warned(run: Run, stamp: dict[str, Any]) -> str:
    """Markdown of what deserves attention in the splits that a stage was computed from; "" where nothing does."""
    splits, found = [stamp["keys"]["split"]] if "split" in stamp["keys"] else run.P.split_names, []
    for split in splits:
        about = yaml.safe_load((Layout(run.P, run.tree).micrographs(split) / "split.yaml").read_text(encoding="utf-8"))
        found += [f"- Split {split}: {line}" for line in about.get("warning", "").splitlines()]
    return "\n\n:::{warning}\n" + "\n".join(found) + "\n:::\n" if found else ""


def page(name: str, folder: Path, splits: list[str]) -> NotebookNode:
    """A notebook as a page: its text as it is now, its outputs and parameters as it was executed in `folder`.

    Without papermill's own cell. Where the code has other cells by now, the executed copy (its badge says: stale).
    """
    executed, current = reference_run.executed(folder / EXECUTED), nbformat.read(layout.notebook(name), as_version=4)
    code = "\n".join(cell.source for cell in current.cells)
    used = {"splits": splits, **(read_stamp(folder) or {}).get("parameters", {})}
    named = re.findall(r'"([a-z_]+\.[a-z_.]+)": (\w+)', code)  # entries of the profile and parameters
    values = {key: repr(used[entry]) for entry, key in [("splits", "splits"), *named] if entry in used}
    for cell in (cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", [])):
        executed.cells.remove(cell)
        values |= dict(re.findall(r"(?m)^(\w+) = (.+)$", cell.source))
    for defaults in (c for c in current.cells if "parameters" in c.metadata.get("tags", [])):
        for key, value in values.items():
            defaults.source = re.sub(rf"(?m)^({key}: \w+ = ).+?(?=  #|$)", rf"\g<1>{value}", defaults.source)
    ran, now = ([c for c in notebook.cells if c.cell_type == "code"] for notebook in (executed, current))
    if len(ran) != len(now):
        return executed
    for before, cell in zip(ran, now, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return current


def first_minute(name: str, results: Results, notebook: NotebookNode, target: Path) -> str:
    """Markdown at the top of a page: what was found, and the figure that shows it, copied into `target`, above what
    the notebook says of it to who cannot see it; or the cards of the claims."""
    said, more, *but = found.sentences(name, results)
    text = f":::{{admonition}} In one minute\n:class: one-minute\n\n**{said}** {more}\n\n*But*: {' '.join(but)}\n:::\n"
    if name == "11_claims":
        return text + "\n" + pages.claim_cards(results.json(name, "claims")["claims"], whole=True)
    figure = found.PAGES[name][0]
    if not (made := results.at[name] / "figures" / f"{figure}.png").is_file():
        return text  # nothing to draw in this run
    (target / "figures").mkdir(exist_ok=True)
    shutil.copy(made, target / "figures" / f"{name}.png")
    drawn = next(cell.metadata for cell in notebook.cells if f', out, "{figure}")' in cell.source)
    alt = drawn.get("mystnb", {"image": {"alt": said}})["image"]["alt"]
    caption = f'{alt} <a href="#code-{figure}">The code that draws it</a>'
    return f"{text}\n:::{{figure}} figures/{name}.png\n:alt: {said} {more}\n\n{caption}\n:::\n"


def linked(name: str, cells: list[NotebookNode], made: Path, place: str, target: Path) -> list[NotebookNode]:
    """Cells of a page with a mark before the code of each figure, and with its list of files in a line, which opens: of
    small ones copies in `target`. `made` is the stage's folder, `place` how text names it."""
    found: list[NotebookNode] = []
    for cell in cells:
        if figure := re.search(r'save\(.*, out, "(\w+)"\)', cell.source) if cell.cell_type == "code" else None:
            found.append(new_markdown_cell(f'<span id="code-{figure[1]}"></span>', id=f"code-{figure[1]}"))
        if cell.source.strip() == "written(out)":
            names = sorted((read_stamp(made) or {})["outputs"])
            small = [file for file in names if file.endswith((".json", ".parquet", ".yaml"))
                     and (made / file).is_file() and (made / file).stat().st_size <= SMALL]  # fmt: skip
            for file in small:
                (target / "files" / name / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(made / file, target / "files" / name / file)
            rows = [f"- {{download}}`{n} <files/{name}/{n}>`" if n in small else f"- {n}" for n in names]
            text = [f"{len(names)} files in `{place}/`.\n\n:::{{dropdown}} Their names", *rows, ":::"]
            cell = new_markdown_cell("\n".join(text), id="files")
        found.append(cell)
    return found


def page_not_run(name: str, P: Profile) -> NotebookNode:
    """The title of a notebook that this run does not hold, and why."""
    notebook = nbformat.read(layout.notebook(name), as_version=4)
    needed = f"the phantom, whose exact truth is known, and a profile that asks for it (`{STUDIES.get(name)}`)"
    said = f"Not part of this run (profile {P.name}, {data_name(P.dataset)}): the study needs {needed}."
    if name not in STUDIES:
        said = "Not run yet: `companion data fetch loops_316L` and `companion run real` make it."
    notebook.cells = [notebook.cells[0], new_markdown_cell(said, id="not-run")]
    return notebook


def main() -> None:
    """``python -m companion.workflow.book PROFILE``: make book/executed and figures from a finished run.

    Where the profile's run is committed in results/, from that: what trains nothing is computed again and compared.
    The figures are the paper's as this run reproduced them, fig1 to fig5, the waterfall and the first page's strip.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    try:
        run, real = (run_of(load_profile(name), given.cores) for name in (given.profile, "real"))
        at = assemble(run, real, layout.root() / "book" / "executed")
        figures = [figure for name in at if name != REAL for figure in at[name].glob("figures/*")
                   if re.fullmatch("fig[1-5]|waterfall|strip", figure.stem)]  # fmt: skip
        with atomic_folder(layout.root() / ("figures" if run.drawn != run.tree else "_build/figures")) as folder:
            for figure in figures:
                shutil.copy(figure, folder / figure.name)
        print(f"book/executed: {len(at)} pages, {len(figures)} figures of {run.P.name} on {data_name(run.P.dataset)}")
    except CompanionError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
