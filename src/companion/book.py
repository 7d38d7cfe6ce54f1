"""From executed notebooks to the pages of the book: one page per stage, each with a badge made from its stamps."""

from __future__ import annotations

import argparse
import html
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from companion import fragments, paths, places, provenance, stages
from companion.errors import CompanionError, problems
from companion.config.profile import Profile, load_profile


def assemble(profile: Profile, target: Path, states: Mapping[str, list[str] | None] | None = None) -> list[Path]:
    """Copy one executed notebook per stage into `target`, with badges; the pages stand for the largest condition.

    Parameters
    ----------
    profile : whose run is shown
    target : book/executed; replaced whole
    states : of `stages.states`, where they are known already

    Raises
    ------
    CompanionError
        When the run is not complete. (A notebook that trains and that nothing else reads may be missing: a reference
        run may be older than the notebook. Its page shows the code and says so.)
    """
    shown, states = representatives(profile), stages.states(profile) if states is None else states
    absent = [s for s in shown.values() if not (s.folder / "notebook.ipynb").exists()]
    if any(not stage.kind.trained for stage in absent):
        title = f"the book needs a complete run; `companion run {profile.name}` makes what is missing:"
        raise problems(title, [stage.address for stage in absent])
    with provenance.atomic_folder(target) as folder:
        for stage in shown.values():
            nbformat.write(page(stage, states[stage.address]), folder / f"{stage.kind.notebook}.ipynb")
        for kind in stages.KINDS.values():
            if kind.name not in shown:
                nbformat.write(page_not_run(kind, profile), folder / f"{kind.notebook}.ipynb")
        for figure in sorted((shown["claims"].folder / "figures").glob("strip.*")):
            shutil.copy(figure, folder / figure.name)
        claims, sizes = shown["claims"].folder / "claims.json", shown["sizes"].folder / "sizes.parquet"
        shutil.copy(claims, folder / "claims.json")
        fragments.write_fragments(folder, profile, claims, sizes, states)
    return sorted(target.glob("*.ipynb"))


def collect_figures(profile: Profile, target: Path) -> list[Path]:
    """Copy the paper's figures as this run reproduced them, fig1 to fig5 as SVG and PNG, into `target`."""
    with provenance.atomic_folder(target) as folder:
        for stage in representatives(profile).values():
            for figure in sorted((stage.folder / "figures").glob("fig[1-5].*")):
                shutil.copy(figure, folder / figure.name)
    return sorted(target.iterdir())


def representatives(profile: Profile) -> dict[str, stages.Stage]:
    """The stage of each kind that a page shows: first split, most images, EXP+GEN where there is one, first seed."""

    def rank(stage: stages.Stage) -> tuple[Any, ...]:
        keys = stage.keys
        order = profile.seeds.index(keys["seed"]) if "seed" in keys else 0
        first_split = places.split_name(keys.get("split", "")) == places.split_name(profile.splits[0])
        return (not first_split, -keys.get("n_train", 0), keys.get("arm") != "EXP+GEN",
                keys.get("masks") != "plain", order)  # fmt: skip

    chosen: dict[str, stages.Stage] = {}
    for stage in sorted(stages.matrix(profile), key=rank):
        chosen.setdefault(stage.kind.name, stage)
    return chosen


def page(stage: stages.Stage, reasons: list[str] | None) -> nbformat.NotebookNode:
    """The executed notebook of `stage` as a page with its badge after the title; the source where it was not run."""
    executed = stage.folder / provenance.EXECUTED
    notebook = clean(nbformat.read(executed if executed.exists() else stage.notebook, as_version=4))
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(badge(stage, reasons), id="badge"))
    return notebook


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`notebook` without papermill's own cell, times and paths, and without progress bars."""
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":  # progress bars and paths of one machine are no part of a page
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and "remove-cell" not in tags:
            cell.metadata.tags = [*tags, "remove-cell"]
    notebook.metadata.pop("papermill", None)
    return notebook


def page_not_run(kind: stages.Kind, profile: Profile) -> nbformat.NotebookNode:
    """The title of a notebook that has no stage in this run, and why."""
    notebook = nbformat.read(paths.notebooks() / f"{kind.notebook}.ipynb", as_version=4)
    data = fragments.data_name(places.dataset_name(profile.dataset))
    said = (
        f"Not part of this run (profile {profile.name}, {data}): the study needs micrographs whose exact truth is "
        "known, the phantom's, and a profile that names it in `extensions.studies`."
    )
    notebook.cells = [notebook.cells[0], nbformat.v4.new_markdown_cell(said, id="not-run")]
    return notebook


def badge(stage: stages.Stage, reasons: list[str] | None) -> str:
    """HTML line from the stamp: data set, condition, profile, device, wall time, commit, date, freshness.

    Parameters
    ----------
    reasons : of `stages.states`: None never run, empty fresh
    """
    stamp = provenance.read_stamp(stage.folder)
    if stamp is None or reasons is None:
        why = f"this run does not hold it: the notebook below as it is, without outputs; profile {stage.profile.name}"
        return f'<div class="stamp stamp-stale"><span>{html.escape(why)}</span><span class="state">not run</span></div>'
    keys = ", ".join(f"{name} {value}" for name, value in stamp["keys"].items())
    entries = [
        ("data", fragments.data_name(stamp["dataset"])), ("profile", stamp["profile"]),
        ("condition", keys or "all"), ("device", stamp["device"]),
        ("wall time", f"{stamp['wall_s']:.0f} s"), ("peak memory", f"{stamp['peak_memory_mib']} MiB"),
        ("commit", stamp["commit"] or "none"), ("date", stamp["started"][:10]),
    ]  # fmt: skip
    chips = "".join(f"<span><b>{name}</b> {html.escape(str(value))}</span>" for name, value in entries)
    state = "stale" if reasons else "fresh"
    why = html.escape("; ".join(reasons), quote=True)
    return f'<div class="stamp stamp-{state}" title="{why}">{chips}<span class="state">{state}</span></div>'


def main() -> None:
    """``python -m companion.book PROFILE [DATASET]``: make book/executed and figures from a finished run.

    With "reference" instead of a profile: from results/reference/, what trains nothing computed again here.
    """
    from companion import reference

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    try:
        if given.profile == "reference":
            found = reference.find(dataset=given.dataset)
            with reference.runs_in(reference.redrawn()):
                again = reference.redraw(found, given.cores)
                states = stages.states(found.profile)
                print(f"results/reference: {len(again)} notebooks executed again, {told_stale(states, again)}")
                _make(found.profile, states)
        else:
            profile = load_profile(given.profile, **({"dataset": given.dataset} if given.dataset else {}))
            _make(profile, stages.states(profile))
    except CompanionError as error:
        parser.exit(2, f"error: {error}\n")


def told_stale(states: Mapping[str, list[str] | None], again: Sequence[str]) -> str:
    """What is to be said of the stages that a reference holds as they were run: how many are stale, and why."""
    kept = {address: reasons for address, reasons in states.items() if address not in again}
    stale = {address: reasons for address, reasons in kept.items() if reasons}
    if not stale:
        return f"the other {len(kept)} as they were run, none of them stale"
    changes = Counter(reason for reasons in stale.values() for reason in reasons if "changed" in reason)
    lines = [f"  {n} stages: {reason}" for reason, n in changes.most_common(5)]
    more = (
        [f"  and {len(changes) - 5} more reasons; `companion status reference` lists them"] if len(changes) > 5 else []
    )
    said = f"the other {len(kept)} as they were run, {len(stale)} of them STALE: their pages say so"
    return "\n".join([said, *lines, *more])


def _make(profile: Profile, states: Mapping[str, list[str] | None]) -> None:
    pages = assemble(profile, paths.root() / "book" / "executed", states)
    figures = collect_figures(profile, paths.root() / "figures")
    data = fragments.data_name(places.dataset_name(profile.dataset))
    print(f"book/executed: {len(pages)} pages, figures: {len(figures)} files, from {profile.name} on {data}")


if __name__ == "__main__":
    main()
