"""A finished run as plain files that fit into git, packed and installed.

A bundle has the layout of ``runs/``, and its stamps name the hash of every file. For the book it holds predictions,
scores, logs, and what pages show of the stages on them; weights, arrays and tables of every defect stay behind, and the
stamps say so: ``left_out``, ``packed``. To go on elsewhere it holds every finished stage whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from companion import layout
from companion.config import Profile
from companion.errors import CompanionError, problems
from companion.layout import Layout
from companion.provenance import atomic_folder, hash_file, write_json, write_table
from companion.workflow import freshness
from companion.workflow.freshness import EXECUTED, STAMP, read_stamp

FILE_LIMIT, TOTAL_LIMIT = 15 << 20, 60 << 20  # bytes, of what goes into git
# Tables with a row for each patch or defect stay behind where pages do not read them.
PER_DEFECT = ("index.parquet", "table.parquet", "drawn.parquet", "statistics.parquet")
READ_BY_PAGES = ("masks-plain/patches/table.parquet", "masks-rare/patches/table.parquet", "patches/index.parquet")


@contextmanager
def committed(P: Profile) -> Iterator[bool]:
    """Let ``results/`` be the folder of runs where a profile's run is committed there and none is here; yield which."""
    kept = layout.root() / "results"
    use = not any(freshness.stages(Layout(P).tree)) and (kept / P.folder / Path(P.dataset).name).is_dir()
    with runs_in(kept if use else layout.runs()):
        yield use


@contextmanager
def runs_in(folder: Path) -> Iterator[None]:
    """Let `folder` be the folder of runs, for this process and those that it starts."""
    before = os.environ.get("COMPANION_RUNS")
    os.environ["COMPANION_RUNS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("COMPANION_RUNS") if before is None else os.environ.update(COMPANION_RUNS=before)


def bundle(P: Profile, out: Path, purpose: Literal["book", "resume"]) -> list[Path]:
    """Pack a run into the folder `out`, which must not be there or be empty; returns the files written.

    Parameters
    ----------
    purpose : "book": a complete run, without what no page needs; "resume": every stage that is fresh, whole

    Raises
    ------
    CompanionError
        The run is not complete or not fresh ("book"), holds nothing ("resume"), is too large for git (the largest files
        are named), or tells where on this machine it was made.
    """
    from companion.workflow.book import shown
    from companion.workflow.status import jobs

    if out.exists() and any(out.iterdir()):
        raise CompanionError(f"--out {out} holds something already; give a folder that is empty or not there yet")
    tree = Layout(P).tree
    states = {job.folder: job.why for job in jobs(P)}
    waiting = {name: why for name, why in states.items() if why != []}
    if waiting and (purpose == "book" or len(waiting) == len(states)):
        said = (f"{name}: {'; '.join(why or ['missing'])}" for name, why in waiting.items())
        raise problems(f"the run of {P.name} is not complete; `companion run {P.name}` makes it:", first(said))
    pages = {folder.relative_to(tree).as_posix() for folder in shown(P, tree).values()}
    with atomic_folder(out) as folder:
        for name in states.keys() - waiting.keys():
            target = folder / P.folder / tree.name / name
            if purpose == "resume":
                _copy(tree / name, target, list((read_stamp(tree / name) or {})["outputs"]), True)
            else:
                _pack(tree / name, target, name in pages, P.evaluation.confidence)
        _check(folder, purpose)
    return [path for path in sorted(out.rglob("*")) if path.is_file()]


def _copy(stage: Path, target: Path, names: Iterable[str], executed: bool) -> None:
    for name in (*names, STAMP, *([EXECUTED] if executed else [])):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage / name, target / name)


def _pack(stage: Path, target: Path, page: bool, least_score: float) -> None:
    stamp = read_stamp(stage) or {}
    names = [name for name in stamp["outputs"] if _is_packed(stage, name, page)]
    _copy(stage, target, names, page)
    for name in (name for name in names if name.startswith("predictions/")):
        # Masks below the score at which pages look at them are most of the file.
        table = pd.read_parquet(target / name)
        write_table(target / name, table.assign(mask=table["mask"].where(table["score"] >= least_score)))
        stamp["packed"] = {**stamp.get("packed", {}), name: hash_file(target / name)}
    stamp["left_out"] = sorted(stamp["outputs"].keys() - set(names))
    write_json(target / STAMP, stamp)


def _is_packed(stage: Path, name: str, page: bool) -> bool:
    """Whether a page needs a file, as it is or to be computed again."""
    path = PurePosixPath(name)
    if path.parts[0] == "figures":
        return (page and path.suffix == ".png") or path.match("fig[1-5].svg") or path.match("strip.svg")
    if path.suffix not in (".json", ".parquet", ".yaml"):
        return False
    return path.name not in PER_DEFECT or any(f"{stage.name}/{name}".endswith(each) for each in READ_BY_PAGES)


def _check(folder: Path, purpose: str) -> None:
    """A bundle for the book fits into git, and none says where on a machine it was made."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    if purpose == "book" and (sum(sizes) > TOTAL_LIMIT or sizes[0] > FILE_LIMIT):
        most = f"{TOTAL_LIMIT >> 20} MiB, {FILE_LIMIT >> 20} MiB a file"
        told = [f"{path.relative_to(folder)}: {path.stat().st_size / 2**20:.1f} MiB" for path in files[:5]]
        raise problems(f"a bundle of {sum(sizes) / 2**20:.1f} MiB is above the limits ({most}); its largest:", told)
    here = [str(path).encode() for path in (layout.root(), layout.runs(), layout.data_cache(), Path.home())]
    texts = [path for path in files if path.suffix in (".json", ".yaml", ".ipynb", ".svg")]
    if found := [str(p.relative_to(folder)) for p in texts if any(each in p.read_bytes() for each in here)]:
        raise problems("files of this run name a folder of this machine, which a bundle must not:", first(found))


def unbundle(source: Path) -> str:
    """Check a bundle against its stamps and install it whole; nothing in it is executed.

    Only files that a stamp names are taken. One for the book takes the place of a run in results/; of one to go on with
    the stages that are missing here go to runs/.

    Returns
    -------
    What was installed and where

    Raises
    ------
    CompanionError
        Not a bundle, of other code than this checkout's, or with files that are missing, changed, or links.
    """
    trees = sorted({path.parent for path in source.glob("*/*/*") if any(path.rglob(STAMP))})
    if len(trees) != 1:
        raise CompanionError(f"{source} is not a bundle: it should hold one run, as `companion bundle` writes it")
    stages = [folder.relative_to(trees[0]) for folder in freshness.stages(trees[0])]
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        folder, wrong = Path(scratch), []
        for name in stages:  # the copies are checked, so that nothing can change between the check and the copying
            try:
                stamp = read_stamp(trees[0] / name) or {}
                kept = [each for each in stamp["outputs"] if each not in stamp.get("left_out", [])]
                if odd := [each for each in (*kept, STAMP) if not _is_plain(trees[0] / name / each, trees[0])]:
                    raise CompanionError(f"{odd[0]} is missing, a link, or elsewhere")
                _copy(trees[0] / name, folder / name, kept, (trees[0] / name / EXECUTED).is_file())
                expected = {each: stamp.get("packed", {}).get(each, stamp["outputs"][each]) for each in kept}
                if changed := [each for each, sha in freshness.outputs(folder / name).items() if expected[each] != sha]:
                    raise CompanionError(f"{changed[0]} is not what was packed")
                if stamp["code"] != freshness.code(stamp["notebook"]):
                    raise CompanionError("made by another version of the code than this checkout's")
            except (KeyError, TypeError, OSError, CompanionError) as error:
                wrong.append(f"{name}: {error}")
        if wrong:
            raise problems(f"{source} cannot be installed:", first(wrong))
        book = any("left_out" in (read_stamp(folder / name) or {}) for name in stages)
        target = (layout.root() / "results" if book else layout.runs()) / trees[0].parent.name / trees[0].name
        if book:
            with atomic_folder(target) as whole:
                shutil.copytree(folder, whole, dirs_exist_ok=True)
        for name in [] if book else [name for name in stages if read_stamp(target / name) is None]:
            with atomic_folder(target / name) as whole:
                shutil.copytree(folder / name, whole, dirs_exist_ok=True)
    return f"{len(stages)} stages of {target.parent.name} on {target.name}: {layout.shown(target)}"


def _is_plain(path: Path, root: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(root.resolve())


def first(lines: Iterable[str], most: int = 10) -> list[str]:
    """The first of many lines, and how many more there are."""
    lines = list(lines)
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else lines
