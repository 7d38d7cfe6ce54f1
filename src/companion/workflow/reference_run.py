"""A finished run as plain files that fit into git, packed and installed.

`bundle` packs a run with a manifest of checksums: for the book (predictions, scores, logs, stamps; figures and executed
notebooks of the stages that pages show; weights, arrays and tables of every defect stay behind, and the stamps say so:
``left_out``, ``packed``), or whole, to go on with on another machine. `unbundle` checks and installs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd

from companion import layout
from companion.config import Profile
from companion.errors import CompanionError, problems
from companion.layout import Layout
from companion.provenance import atomic_folder, hash_file, write_json, write_table
from companion.workflow import freshness, job
from companion.workflow.freshness import EXECUTED, STAMP, read_stamp

MANIFEST = "manifest.json"
FILE_LIMIT, TOTAL_LIMIT = 15 << 20, 60 << 20  # bytes, of what goes into git
SUFFIXES = (".json", ".parquet", ".yaml", ".png", ".svg", ".ipynb", ".npy", ".safetensors")
# Tables with a row for each patch or defect stay behind where pages do not read them.
PER_DEFECT = ("index.parquet", "table.parquet", "drawn.parquet", "statistics.parquet")
READ_BY_PAGES = ("masks-plain/patches/table.parquet", "masks-rare/patches/table.parquet", "patches/index.parquet")


@contextmanager
def committed(P: Profile) -> Iterator[bool]:
    """Let ``results/`` be the folder of runs where a profile's run is committed there and none is here; yield which."""
    here = any(freshness.stages(Layout(P).tree))
    kept = layout.root() / "results"
    use = not here and (kept / P.folder / Path(P.dataset).name).is_dir()
    with runs_in(kept) if use else runs_in(layout.runs()):
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


# --- packing ------------------------------------------------------------------------------------------------


def bundle(P: Profile, out: Path, purpose: Literal["book", "resume"]) -> list[Path]:
    """Pack a run into the folder `out`; returns the files written, the manifest last.

    Parameters
    ----------
    purpose : "book": a complete run, without what no page needs; "resume": every stage that is finished, whole

    Raises
    ------
    CompanionError
        The run is not complete or not fresh ("book"), holds nothing ("resume"), is too large (the largest files are
        named), tells where on this machine it was made, or `out` holds something else than a bundle.
    """
    from companion.workflow.book import shown
    from companion.workflow.status import jobs

    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise CompanionError(f"--out {out} exists and is not a bundle; give a folder that is empty or not there yet")
    tree = Layout(P).tree
    folders = (
        list(freshness.stages(tree)) if purpose == "resume" else [tree / each.folder for each in jobs(P, look=True)]
    )
    waiting = {folder: why for folder in folders if (why := freshness.reasons(folder, P, tree)) != []}
    if waiting and purpose == "book":
        said = (f"{f.relative_to(tree)}: {'; '.join(why or ['missing'])}" for f, why in waiting.items())
        raise problems(f"the run of {P.name} is not complete; `companion run {P.name}` makes it:", first(said))
    pages = set(shown(P, tree).values())
    with atomic_folder(out) as folder:
        for stage in folders:
            if stage not in waiting:
                _pack(stage, folder / stage.relative_to(tree), stage in pages or purpose == "resume", purpose, P)
        files = {p.relative_to(folder).as_posix(): hash_file(p) for p in _files(folder)}
        if not files:
            raise CompanionError(f"{layout.shown(tree)}: nothing is finished, so there is nothing to pack")
        if purpose == "book":
            _check_size(folder)
        _check_no_place(folder)
        write_json(folder / MANIFEST, {
            "profile": P.folder, "dataset": Path(P.dataset).name, "purpose": purpose, "commit": job.git_commit(),
            "files": files,
        })  # fmt: skip
    return [*(out / name for name in files), out / MANIFEST]


def _pack(stage: Path, target: Path, page: bool, purpose: str, P: Profile) -> None:
    stamp = read_stamp(stage)
    assert stamp is not None  # it is fresh
    names = [name for name in stamp["outputs"] if purpose == "resume" or _is_packed(stage, name, page)]
    for name in [*names, *([EXECUTED] if page else [])]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage / name, target / name)
    if purpose == "book":
        for name in (name for name in names if name.startswith("predictions/")):
            # Masks below the confidence at which pages look at them are most of the file.
            table = pd.read_parquet(target / name)
            write_table(
                target / name, table.assign(mask=table["mask"].where(table["score"] >= P.evaluation.confidence))
            )
            stamp["packed"] = {**stamp.get("packed", {}), name: hash_file(target / name)}
        stamp["left_out"] = sorted(stamp["outputs"].keys() - set(names))
    write_json(target / STAMP, stamp)


def _is_packed(stage: Path, name: str, page: bool) -> bool:
    """Whether a page needs an artifact, as it is or to be computed again."""
    path = PurePosixPath(name)
    if path.parts[0] == "figures":
        return (page and path.suffix == ".png") or path.match("fig[1-5].svg") or path.match("strip.svg")
    if path.suffix not in (".json", ".parquet", ".yaml"):
        return False
    return path.name not in PER_DEFECT or any(f"{stage.name}/{name}".endswith(each) for each in READ_BY_PAGES)


def _check_size(folder: Path) -> None:
    sizes = {p.relative_to(folder): p.stat().st_size for p in _files(folder)}
    largest = sorted(sizes, key=lambda name: -sizes[name])
    told = [f"{name}: {sizes[name] / 2**20:.1f} MiB" for name in largest[:5]]
    if sum(sizes.values()) > TOTAL_LIMIT or sizes[largest[0]] > FILE_LIMIT:
        total, most = f"{sum(sizes.values()) / 2**20:.1f}", f"{TOTAL_LIMIT >> 20} MiB, {FILE_LIMIT >> 20} MiB a file"
        raise problems(f"a bundle of {total} MiB is above the limits ({most}); its largest files:", told)


def _check_no_place(folder: Path) -> None:
    """A bundle is published: it must not say where on a machine it was made."""
    named = (layout.root(), layout.runs(), layout.data_cache(), Path.home())
    places = [str(path).encode() for path in named if len(path.parts) > 2]
    texts = [p for p in _files(folder) if p.suffix in (".json", ".yaml", ".ipynb", ".svg")]
    if found := [str(p.relative_to(folder)) for p in texts if any(place in p.read_bytes() for place in places)]:
        raise problems("files of this run name a folder of this machine, which a bundle must not:", first(found))


# --- installing ---------------------------------------------------------------------------------------------


def unbundle(source: Path) -> str:
    """Check every file of a bundle and install it whole; nothing in it is executed.

    Returns
    -------
    What was installed and where: one for the book in results/, one to go on with in runs/, beside what is there.

    Raises
    ------
    CompanionError
        Not a bundle, of other code, or with files that are missing, changed, not listed, of another kind or links.
    """
    manifest = _manifest(source)
    listed = manifest["files"]
    wrong = [f"{name}: {reason}" for name in listed if (reason := _bad_name(name))]
    found: set[str] = set()
    for folder, folders, names in os.walk(source):  # does not follow links
        for entry in (Path(folder, n) for n in (*folders, *names)):
            relative, mode = entry.relative_to(source).as_posix(), entry.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                wrong.append(f"{relative}: a link or device, not a file")
            elif stat.S_ISREG(mode) and relative != MANIFEST:
                found.add(relative)
    wrong += [f"{name}: not in the manifest" for name in sorted(found - listed.keys())]
    wrong += [f"{name}: missing" for name in sorted(listed.keys() - found)]
    if wrong:
        raise problems(f"{source} cannot be installed:", first(wrong))
    base = layout.root() / "results" if manifest["purpose"] == "book" else layout.runs()
    target = base / manifest["profile"] / manifest["dataset"]
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        folder = Path(scratch)
        for name in listed:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name, follow_symlinks=False)
        # The copies are checked, so that nothing can change between the check and the copying.
        if changed := [name for name, sha in listed.items() if hash_file(folder / name) != sha]:
            raise problems(f"{source} cannot be installed, these files are not what was packed:", first(changed))
        stages = [stage.relative_to(folder) for stage in freshness.stages(folder)]
        if other := [f"{stage}: {', '.join(names)}" for stage in stages if (names := _other_code(folder / stage))]:
            raise problems(f"{source} is of another version of the code than this checkout's:", first(other))
        if manifest["purpose"] == "book":
            with atomic_folder(target) as whole:
                shutil.copytree(folder, whole, dirs_exist_ok=True)
        for stage in stages:
            if read_stamp(target / stage) is None:
                with atomic_folder(target / stage) as whole:
                    names = (STAMP, EXECUTED, *(read_stamp(folder / stage) or {})["outputs"])
                    for name in names:
                        (whole / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(folder / stage / name, whole / name)
    return f"{len(stages)} stages of {manifest['profile']} on {manifest['dataset']}: {layout.shown(target)}"


def _other_code(stage: Path) -> list[str]:
    stamp = read_stamp(stage) or {}
    try:
        now = freshness.code(stamp["notebook"])
    except (OSError, KeyError):
        return ["no such notebook"]
    return sorted(name for name in now.keys() | stamp["code"].keys() if now.get(name) != stamp["code"].get(name))[:3]


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = (content["profile"], content["dataset"])
        good = content["purpose"] in ("book", "resume") and all(isinstance(v, str) for v in content["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompanionError(f"{folder} is not a bundle: {MANIFEST}: {error}") from None
    if not good or not all(isinstance(name, str) and re.fullmatch(r"\w[\w.+-]*", name) for name in names):
        raise CompanionError(f"{folder / MANIFEST}: profile, data set, purpose or files are unusable")
    return content


def _bad_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or not all(re.fullmatch(r"[\w+-][\w+.-]*", part) for part in parts) or name != "/".join(parts):
        return "not a relative path of plain names"
    return "" if name.endswith(SUFFIXES) else f"not one of {', '.join(SUFFIXES)}"


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]


def first(lines: Iterable[str], most: int = 10) -> list[str]:
    lines = list(lines)
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else lines
