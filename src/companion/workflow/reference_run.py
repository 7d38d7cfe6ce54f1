"""A finished run as plain files: packed to go on elsewhere, or for the book, which draws it again and compares.

A bundle has the layout of ``runs/``, and its stamps name the hash of every file. To go on elsewhere it holds every
finished stage whole. For the book it fits into git and holds predictions, scores, and the pages of what is not drawn
again; weights, arrays, logs, masks and tables with a row for each defect or resample stay behind, and the stamps say
so: ``left_out``, ``packed``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from unittest.mock import patch

import nbformat
import pandas as pd
from nbformat import NotebookNode

from companion import layout
from companion.config import Profile
from companion.errors import CompanionError, problems
from companion.evaluation.errors import BOX
from companion.layout import Layout
from companion.provenance import atomic_folder, hash_file, write_json
from companion.workflow import freshness, job
from companion.workflow.found import PAGES
from companion.workflow.freshness import EXECUTED, STAMP, read_stamp, stamps
from companion.workflow.status import jobs

TOLERANCE = 1e-6  # of numbers that are computed again
DRAWN_AGAIN = (  # after 01; each group reads what those before it have written
    ("02_mask_statistics", "07_thresholds"),
    ("12_errors", "08_sizes_and_splits", "09_significance", "10_class_imbalance"),
    ("11_claims",),
)
REAL = "16_real_micrographs"  # all that is drawn again of a run on micrographs that do not come with the project
LIMIT = 40 << 20  # bytes, of what goes into git
LONG = ("log.parquet", "drawn.parquet", "statistics.parquet", "resampled.parquet")  # a row per step, defect or resample


def shown(P: Profile, tree: Path) -> dict[str, Path]:
    """The folder whose run stands on the page of each notebook: first split, largest N, EXP+GEN, first seed."""
    page = {"split": P.split_names[0], "n_train": str(P.sizes[-1]), "arm": "EXP+GEN", "seed": str(P.seeds[0]),
            "model": "1", "masks": "plain"}  # fmt: skip
    return {stamp["notebook"]: tree / folder for folder, stamp in stamps(tree).items()
            if stamp["keys"].items() <= page.items()}  # fmt: skip


def bundle(P: Profile, out: Path | None) -> list[Path]:
    """Pack a run: for the book into its folder in results/, or all that is finished into `out`; returns the files.

    A `CompanionError` says that the run is not complete (for the book) or has begun nothing, is there in `out` already,
    is too large for git (the largest files are named), or tells where on this machine it was made.
    """
    tree, found = Layout(P).tree, jobs(P)
    place = (out or layout.root() / "results") / P.folder / tree.name
    if out and place.exists():
        raise CompanionError(f"{place} is there already; give another folder as --out")
    made = [tree / each.folder for each in found if each.why == [] and read_stamp(tree / each.folder)]
    if not made or (not out and len(made) < len(found)):
        said = (f"{e.folder}: {'; '.join(e.why or ['missing'])}" for e in found if tree / e.folder not in made)
        raise problems(f"the run of {P.name} is not complete; `companion run {P.name}` makes it:", said)
    # What is drawn again needs no copy of its page. Of the run on real micrographs one is shown, and a picture of 05.
    again = {REAL, *(["01_micrographs", *chain(*DRAWN_AGAIN)] if P.dataset == "phantom" else [])}
    pages = {folder: name for name, folder in shown(P, tree).items()
             if name not in again and (P.name != "real" or name == "05_generated_images")}  # fmt: skip
    with atomic_folder(place) as folder:
        for stage in made:
            target = folder / stage.relative_to(tree)
            if out:
                job.copy(stage, target, (read_stamp(stage) or {})["outputs"])
            else:
                _pack(stage, target, pages.get(stage), P.name == "real")
            if out or (stage in pages and P.name != "real"):
                nbformat.write(executed(stage / EXECUTED), target / EXECUTED)
        _check(folder, None if out else LIMIT)
    return [path for path in sorted(place.rglob("*")) if path.is_file()]


def _pack(stage: Path, target: Path, page: str | None, real: bool) -> None:
    """Copy what the book needs of a stage, which a notebook's page shows or none; its stamp says what is left out."""
    stamp = read_stamp(stage) or {}
    names = [name for name in stamp["outputs"] if _is_packed(stage, name, page, real)]
    job.copy(stage, target, names)
    for name in (name for name in names if name.startswith("predictions/")):
        # Boxes are matched: no page reads a mask. Bytes of numbers side by side by place compress best.
        table = pd.read_parquet(target / name).assign(mask=None)
        table.to_parquet(target / name, index=False, compression="zstd", compression_level=19, use_dictionary=False,
                         use_byte_stream_split=[*BOX, "score"])  # fmt: skip
        stamp["packed"] = {**stamp.get("packed", {}), name: hash_file(target / name)}
    stamp["left_out"] = sorted(stamp["outputs"].keys() - set(names))
    write_json(target / STAMP, stamp)


def executed(path: Path) -> NotebookNode:
    """An executed notebook without papermill's entries, progress bars and warnings, which name folders of a machine."""
    found = nbformat.read(path, as_version=4)
    for cell in found.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    found.metadata.pop("papermill", None)
    return found


def _is_packed(stage: Path, name: str, page: str | None, real: bool) -> bool:
    """Whether a page needs a file, as it is or to be computed again."""
    path = PurePosixPath(name)
    if path.parts[0] == "test" and stage.parent.parent.name != "phantom":  # the phantom is drawn again
        return True
    if path.parts[0] == "figures":  # one above each page; of notebook 05 also those of the paper, and what is wiped
        own = (f"{PAGES[page][0]}.png", *(() if real else ("fig[12].*", "edited.svg"))) if page else ()
        return any(path.match(each) for each in own)
    if path.name in LONG:
        return page is not None and path.name == "log.parquet"
    return path.suffix in (".json", ".parquet", ".yaml")


def _check(folder: Path, limit: int | None) -> None:
    """Refuse a bundle of more bytes than its limit, and one that says where on a machine it was made."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    files, total = sorted(sizes, key=sizes.get, reverse=True), sum(sizes.values())
    if limit and total > limit:
        told = [f"{path.relative_to(folder)}: {sizes[path] / 2**20:.1f} MiB" for path in files[:5]]
        said = f"a bundle of {total / 2**20:.1f} MiB is above the limit of {limit >> 20} MiB; its largest:"
        raise problems(said, told)
    here = [str(path).encode() for path in (layout.root(), layout.runs(), layout.data_cache(), Path.home())]
    texts = [path for path in files if path.suffix in (".json", ".yaml", ".ipynb", ".svg")]
    if found := [str(p.relative_to(folder)) for p in texts if any(each in p.read_bytes() for each in here)]:
        raise problems("files of this run name a folder of this machine, which a bundle must not:", found)


def unbundle(source: Path) -> str:
    """Check a bundle against its stamps and install in runs/ what is missing there; returns what and where.

    Only files that a stamp names are taken, and nothing is executed. A `CompanionError` says that it is no bundle, was
    packed for the book, is of other code than this checkout's, or lacks files or has changed ones.
    """
    trees = {path.parent for path in source.glob("*/*/*") if any(path.rglob(STAMP))}
    if len(trees) != 1:
        raise CompanionError(f"{source} is not a bundle: it should hold one run, as `companion bundle` writes it")
    (tree,), taken, wrong = trees, {}, []
    for stage in (path.parent for path in sorted(tree.rglob(STAMP))):
        try:
            if (stamp := read_stamp(stage)) is None:
                raise CompanionError(f"{STAMP} cannot be read")
            there = freshness.outputs(stage)
            if changed := [name for name, sha in stamp["outputs"].items() if there.get(name) != sha]:
                raise CompanionError(f"{changed[0]} is not what was packed")
            if stamp["code"] != freshness.code(stamp["notebook"]):
                raise CompanionError("made by another version of the code than this checkout's")
            executed(stage / EXECUTED)
            taken[stage.relative_to(tree)] = [*stamp["outputs"], EXECUTED]
        except (KeyError, TypeError, ValueError, OSError, CompanionError) as error:
            wrong.append(f"{stage.relative_to(tree)}: {error}")
    if wrong:
        raise problems(f"{source} cannot be installed:", wrong)
    target = layout.runs() / tree.parent.name / tree.name
    for stage, names in taken.items():
        if read_stamp(target / stage) is None:
            with atomic_folder(target / stage) as folder:
                job.copy(tree / stage, folder, names)
    return f"{len(taken)} stages of {target.parent.name} on {target.name}: {layout.shown(target)}"


def draw_again(P: Profile, tree: Path, cores: int, pages: Mapping[str, Path]) -> Path:
    """Execute what trains nothing and a page shows, from committed files; returns the run with what was drawn.

    Values that differ from the committed ones by more than `TOLERANCE` are a `CompanionError` with their names.
    """
    base = layout.root() / "_build" / "runs"
    drawn = base / P.folder / tree.name
    shutil.rmtree(drawn, ignore_errors=True)
    shutil.copytree(tree, drawn)
    groups = [[pages[name] for name in names] for names in (DRAWN_AGAIN if P.dataset == "phantom" else [[REAL]])]
    if P.dataset == "phantom":
        groups.insert(0, [Layout(P, tree).micrographs(split) for split in P.split_names])
    different: list[str] = []
    spawned, elsewhere = get_context("spawn"), patch.dict(os.environ, COMPANION_RUNS=str(base))
    with elsewhere, ProcessPoolExecutor(cores, mp_context=spawned) as pool:
        for group in groups:
            copies = [drawn / place.relative_to(tree) for place in group]
            list(pool.map(_draw, copies))
            different += [each for pair in zip(group, copies, strict=True) for each in differences(*pair)]
    if different:
        raise problems("what is committed was not found again:", different)
    return drawn


def _draw(folder: Path) -> None:
    stamp = read_stamp(folder) or {}
    job.draw(stamp["notebook"], stamp["profile"], stamp["dataset"], stamp["keys"], folder)


def differences(before: Path, after: Path) -> list[str]:
    """Names of the values in which the tables and JSON files of two folders of one stage differ."""
    found = []
    for path in sorted(before.rglob("*")):
        name = path.relative_to(before)
        if path.name == STAMP or path.suffix not in (".parquet", ".json") or name.parts[0] == "predictions":
            continue
        old, new = (_table(folder / name) for folder in (before, after))
        for column in old.columns.union(new.columns):
            try:
                pd.testing.assert_series_equal(
                    old[column], new[column], check_dtype=False, rtol=TOLERANCE, atol=TOLERANCE
                )
            except (AssertionError, KeyError):  # another value or number of rows, or a column that one of them lacks
                found.append(f"{name}: {column}")
    return found


def _table(path: Path) -> pd.DataFrame:
    """A table; of a JSON file one row with a column for each value, e.g. claims.0.verdict."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.json_normalize(json.loads(path.read_bytes(), object_hook=lambda entry: {
        name: dict(enumerate(v)) if isinstance(v, list) else v for name, v in entry.items()}))  # fmt: skip
