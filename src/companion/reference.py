"""The reference run: a finished run as plain files that fit into git, and the book's figures drawn again from them.

`bundle` packs what pages need (predictions, scores, logs, stamps; figures, sample grids and executed notebooks of the
stages that pages show) with a manifest of checksums. Weights, large arrays and tables of every defect stay behind, and
the stamps say so (``left_out``); so do the masks of predictions that no page looks at (``packed``). `unbundle` checks
and installs a bundle in results/reference/. `redraw` runs the notebooks that train nothing again, from these files:
micrographs and masks are made again, scores and figures computed again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
import numpy as np
import pandas as pd

from companion import paths, places, provenance, stages
from companion.book import clean, representatives
from companion.errors import CompanionError, problems
from companion.config.profile import Profile, load_profile, profile_names

MANIFEST = "manifest.json"
FILE_LIMIT, TOTAL_LIMIT, ARRAY_LIMIT = 15 << 20, 60 << 20, 2 << 20  # bytes
SUFFIXES = (".json", ".parquet", ".yaml", ".npy", ".png", ".svg", ".ipynb")
# Tables with a row for each patch or defect of training, simulated and generated patches stay behind, but for those
# that a page reads of stages that are not made again: class shares in notebook 10, numbers of patches in notebook 11.
PER_DEFECT = ("index.parquet", "table.parquet", "drawn.parquet", "statistics.parquet", "counts.parquet")
READ_BY_PAGES = (("masks", "table.parquet"), ("generated", "index.parquet"))
PREDICTIONS = "predictions.parquet"
_NAME = re.compile(r"[\w+-][\w+.-]*")


@dataclass(frozen=True)
class Reference:
    """An installed bundle: the profile as it was run, its name in profiles/, and where the files are."""

    profile: Profile
    name: str
    folder: Path


# --- packing ------------------------------------------------------------------------------------------------


def bundle(profile: Profile, name: str, out: Path) -> list[Path]:
    """Pack a finished run into the folder `out`; returns the files written, the manifest last.

    Raises
    ------
    CompanionError
        The run is not complete or not fresh, too large (the largest files are named), tells where on this machine it
        was made, or `out` holds something else than a bundle.
    """
    if name not in profile_names():
        raise CompanionError(f"profile {name}: a bundle names its profile; put the file into {paths.profiles()} first")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise CompanionError(f"--out {out} exists and is not a bundle; give a folder that is empty or not there yet")
    waiting = {address: reasons for address, reasons in stages.states(profile).items() if reasons != []}
    if waiting:
        title = f"the run of {name} is not complete; `companion run {name}` makes what is missing:"
        raise problems(title, _first(f"{a}: {'; '.join(why or ['missing'])}" for a, why in waiting.items()))
    tree = places.tree(profile)
    with provenance.atomic_folder(out) as folder:
        for stage in stages.matrix(profile):
            _pack(stage, stage in representatives(profile).values(), folder / stage.address)
        _check_size(folder)
        _check_no_place(folder)
        files = {p.relative_to(folder).as_posix(): provenance.hash_file(p) for p in _regular_files(folder)}
        provenance.write_json(folder / MANIFEST, {
            "profile": name, "dataset": places.dataset_name(profile.dataset), "splits": profile.splits,
            "commit": provenance.git_commit(), "run": f"runs/{tree.parent.name}/{tree.name}", "files": files,
        })  # fmt: skip
    return [*(out / name for name in files), out / MANIFEST]


def _pack(stage: stages.Stage, shown: bool, target: Path) -> None:
    stamp = provenance.read_stamp(stage.folder)
    assert stamp is not None  # the run is complete
    names = [name for name in stamp["outputs"] if _is_packed(stage, name, shown)]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage.folder / name, target / name)
    if PREDICTIONS in names:
        _drop_masks(target / PREDICTIONS, stage.profile.evaluation.confidence)
        stamp["packed"] = {PREDICTIONS: provenance.hash_file(target / PREDICTIONS)}
    stamp["left_out"] = sorted(stamp["outputs"].keys() - set(names))
    provenance.write_json(target / provenance.STAMP, stamp)
    if shown and stage.kind.trained:
        executed = nbformat.read(stage.folder / provenance.EXECUTED, as_version=4)
        nbformat.write(clean(executed), target / provenance.EXECUTED)


def _drop_masks(path: Path, confidence: float) -> None:
    """Leave out the masks of predictions below `confidence`: most of the file, and notebook 07 matches without them."""
    table = pd.read_parquet(path)
    if "mask" in table:
        provenance.write_table(path, table.assign(mask=table["mask"].where(table["score"] >= confidence)))


def _is_packed(stage: stages.Stage, name: str, shown: bool) -> bool:
    """Whether a page needs an artifact: one that is shown as it ran, or one that is computed again from the bundle."""
    path = PurePosixPath(name)
    if path.suffix not in SUFFIXES:
        return False
    if path.parts[0] == "figures":  # as SVG those that the paper has, which `book.collect_figures` takes
        return shown and (path.suffix == ".png" or (stage.kind.trained and path.match("fig[1-5].svg")))
    if path.parts[0] == "grid":
        return shown and path.stem in _drawn_steps(stage.folder)
    if path.parts[0] == "sample":  # the front page shows one of them (`evaluation.runs.strip_pictures`)
        return shown
    if path.suffix == ".npy":  # what is analysed is made again, arrays and all
        return stage.kind.trained and (stage.folder / name).stat().st_size <= ARRAY_LIMIT
    return path.name not in PER_DEFECT or (stage.kind.name, name) in READ_BY_PAGES


def _drawn_steps(folder: Path, columns: int = 4) -> set[str]:
    """Of the sample grids of a training those that its figure draws: evenly spread, first and last among them."""
    steps = sorted(path.stem for path in (folder / "grid").glob("*.npy"))
    return {steps[round(k * (len(steps) - 1) / (columns - 1))] for k in range(columns)} if steps else set()


def _check_size(folder: Path) -> None:
    sizes = {p.relative_to(folder): p.stat().st_size for p in _regular_files(folder)}
    largest = sorted(sizes, key=lambda name: -sizes[name])
    shown = [f"{name}: {sizes[name] / 2**20:.1f} MiB" for name in largest[:5]]
    if sum(sizes.values()) > TOTAL_LIMIT or sizes[largest[0]] > FILE_LIMIT:
        total, most = f"{sum(sizes.values()) / 2**20:.1f}", f"{TOTAL_LIMIT >> 20} MiB, {FILE_LIMIT >> 20} MiB a file"
        raise problems(f"a bundle of {total} MiB is above the limits ({most}); its largest files:", shown)


def _check_no_place(folder: Path) -> None:
    """A bundle is published: it must not say where on a machine it was made."""
    named = (paths.root(), paths.runs(), paths.data_cache(), Path.home())
    places = [str(path).encode() for path in named if len(path.parts) > 2]
    texts = [p for p in _regular_files(folder) if p.suffix in (".json", ".yaml", ".ipynb", ".svg")]
    if found := [str(p.relative_to(folder)) for p in texts if any(place in p.read_bytes() for place in places)]:
        raise problems("files of this run name a folder of this machine, which a bundle must not:", _first(found))


# --- installing ---------------------------------------------------------------------------------------------


def unbundle(source: Path) -> Path:
    """Check every file of a bundle and install it in results/reference/; nothing in it is executed.

    Returns
    -------
    results/reference/<profile>/<data set>

    Raises
    ------
    CompanionError
        Not a bundle, or with files that are missing, changed, not listed, of another kind, links, or outside.
    """
    manifest = _read_manifest(source)
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
        raise problems(f"{source} cannot be installed:", _first(wrong))
    _check_size(source)
    target = installed() / manifest["profile"] / manifest["dataset"]
    with provenance.atomic_folder(target) as folder:
        for name in (*listed, MANIFEST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name, follow_symlinks=False)
        # The copies are checked, so that nothing can change between the check and the copying.
        changed = [name for name, sha in listed.items() if provenance.hash_file(folder / name) != sha]
        changed += [name for name in listed if name.endswith(".npy") and not _is_plain_array(folder / name)]
        if changed:
            raise problems(f"{source} cannot be installed, these files are not what was packed:", _first(changed))
    return target


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, names = dict(content["files"]), (content["profile"], content["dataset"])
        good = all(isinstance(v, str) for v in files.values()) and isinstance(content["splits"], list) and files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompanionError(f"{folder} is not a bundle: {MANIFEST}: {error}") from None
    if not good or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise CompanionError(f"{folder / MANIFEST}: profile {names[0]!r}, data set {names[1]!r} or files are unusable")
    return content


def _bad_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or not all(_NAME.fullmatch(part) for part in parts) or name != "/".join(parts):
        return "not a relative path of plain names"
    return "" if name.endswith(SUFFIXES) else f"not one of {', '.join(SUFFIXES)}"


def _is_plain_array(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return True


# --- using it -----------------------------------------------------------------------------------------------


def installed() -> Path:
    """Where bundles are installed."""
    return paths.root() / "results" / "reference"


def find(dataset: str | None = None) -> Reference:
    """The installed reference of a data set; with none named, the phantom's; of several the one with most stages.

    Raises
    ------
    CompanionError
        When there is none.
    """
    found = []
    for path in sorted(installed().glob(f"*/{dataset or '*'}/{MANIFEST}")):
        manifest = _read_manifest(path.parent)
        given = {key: manifest[key] for key in ("dataset", "splits")}
        found.append(Reference(load_profile(manifest["profile"], **given), manifest["profile"], path.parent))
    if not found:
        raise CompanionError(f"no reference run in {installed()}; `companion unbundle` adds one")
    return min(found, key=lambda r: (r.profile.dataset != "phantom", -len(stages.matrix(r.profile))))


@contextmanager
def runs_in(folder: Path) -> Iterator[None]:
    """Let `folder` be the run tree, for this process and those that it starts."""
    before = os.environ.get("COMPANION_RUNS")
    os.environ["COMPANION_RUNS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("COMPANION_RUNS") if before is None else os.environ.update(COMPANION_RUNS=before)


def redrawn() -> Path:
    """The run tree in which references are drawn again."""
    return paths.root() / "_build" / "reference"


def redraw(reference: Reference, cores: int) -> list[str]:
    """Execute what the book shows and trains nothing again, from the committed files; call within `runs_in(redrawn())`.

    Returns
    -------
    addresses of the stages that are computed here; those of the others are copies of the reference

    Raises
    ------
    CompanionError
        The reference lacks stages that the profile has by now; or with the message of every notebook that stopped.
    """
    profile, shown = reference.profile, representatives(reference.profile).values()
    # The tests' truth comes from the micrographs of every split.
    again = [s for s in stages.matrix(profile) if not s.kind.trained and (s in shown or s.kind.name == "micrographs")]
    kept = [stage for stage in stages.matrix(profile) if stage not in again]
    if lost := [stage.address for stage in kept if not (reference.folder / stage.address).is_dir()]:
        title = (
            f"{reference.folder} is of another version of profile {reference.name}; pack a run of this version "
            "(companion run, bundle, unbundle), or go back to the version that it is from. It lacks these stages:"
        )
        raise problems(title, _first(lost))
    for stage in kept:
        with provenance.atomic_folder(stage.folder) as folder:
            shutil.copytree(reference.folder / stage.address, folder, dirs_exist_ok=True)
    waiting, splits = {s.address: s for s in again}, ",".join(map(str, profile.splits))

    def execute(address: str) -> str:
        command = [sys.executable, "-m", "companion.execute", reference.name, profile.dataset, splits, address]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{address}: {done.stderr.strip().splitlines()[-1]}" if done.returncode else ""

    with ThreadPoolExecutor(cores) as pool:
        while waiting:
            ready = [a for a, s in waiting.items() if not {u.address for u, _ in s.upstream.values()} & waiting.keys()]
            if stopped := [message for message in pool.map(execute, ready) if message]:
                raise problems("drawing the reference again stopped:", stopped)
            waiting = {a: s for a, s in waiting.items() if a not in ready}
    return [stage.address for stage in again]


def _regular_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]


def _first(lines: Iterable[str], most: int = 10) -> list[str]:
    lines = list(lines)
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else lines
