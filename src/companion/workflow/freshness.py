"""Whether the result of a notebook is fresh, and why it is not.

A result is fresh when nothing that it was made from has changed: the code of its notebook and of the package files that
the notebook imports (as syntax trees), the profile's entries that the notebook reads, and the files that it read, as
the stamps of those who wrote them say. Where a file lies, when it was written and on which machine makes no difference.
"""

from __future__ import annotations

import ast
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from companion import layout
from companion.config import ARMS, Profile
from companion.errors import CompanionError
from companion.provenance import code_hashes, hash_file, hash_value

STAMP, EXECUTED, DONE, ERROR = "stamp.json", "notebook.ipynb", ".done", "error.txt"
# Entries behind the profile's methods, where a notebook calls one.
BEHIND = {
    "split_names": ("splits",), "conditions": ("splits", "sizes"), "arms_at": ("splits", "arms", "controls"),
    "detectors": ("splits", "sizes", "arms", "controls", "seeds"),
}  # fmt: skip


def source(name: str) -> str:
    """All code of a notebook."""
    cells = json.loads(layout.notebook(name).read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@lru_cache(maxsize=64)
def code(name: str) -> dict[str, str]:
    """Hashes of a notebook's code and of every package file behind it, by name.

    Figures are no result of a training: for notebooks that use a device, files of figures do not count.
    """
    return code_hashes(source(name), f"notebooks/{name}.ipynb", ["plots.py"] if trains(name) else [])


def trains(name: str) -> bool:
    """Whether a notebook runs networks: it reads the profile's device."""
    return "device" in entries(source(name))


@lru_cache(maxsize=64)
def entries(text: str) -> list[str]:
    """Dotted entries of the profile that a code reads as attributes of `P`; comments do not count."""
    return sorted(set(re.findall(r"(?<![\w.])P\.(\w+(?:\.\w+)*)", ast.unparse(ast.parse(text)))))


def parameters(name: str, P: Profile, keys: Mapping[str, str]) -> dict[str, Any]:
    """What a notebook reads of the profile (where its code says ``P.section.entry``), by dotted name, and its keys."""
    text = source(name)
    values = _flat(P.model_dump(mode="json") | {"splits": P.split_names, "dataset": _data(P)})
    found: dict[str, Any] = dict(keys)
    for entry in entries(text):
        if entry.startswith("split_source") and "split" in keys:
            given = P.split_source(keys["split"])
            found["split file"] = hash_file(layout.given(given)) if isinstance(given, str) else given
        for read in BEHIND.get(entry.split(".")[0], (entry,)):
            while read and not any(f"{name}.".startswith(f"{read}.") for name in values):
                read = read.rpartition(".")[0]  # what is called of a value
            found |= {name: value for name, value in values.items() if read and f"{name}.".startswith(f"{read}.")}
    if "ARMS" in text:
        for arm in [keys["arm"]] if "arm" in keys else [*P.arms, *P.controls]:
            a = ARMS[arm]
            found[f"arm {arm}"] = [a.other, a.masks, a.model, a.labelled, a.baseline]
    return found


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Values by dotted name; of a file of weights its hash, since it does not count where it lies."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key == "weights" and value is not None:
            value = hash_file(file) if (file := layout.given(value)).is_file() else None
        found |= _flat(value, f"{within}{key}.") if isinstance(value, dict) and value else {f"{within}{key}": value}
    return found


def _data(P: Profile) -> str | list[str]:
    """The data set's name, and for one of micrographs a hash of its files (the phantom is drawn from its entries)."""
    folder = layout.dataset_folder(P.dataset)
    if P.dataset == "phantom" or not folder.is_dir():
        return folder.name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [folder.name, hash_value({p.relative_to(folder).as_posix(): hash_file(p) for p in files})]


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp in `folder`; None where there is none or it is not readable."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and "outputs" in stamp else None


def input_hash(folder: Path, tree: Path) -> str | None:
    """Hash of the files in a folder of a run, as the stamp of the stage that wrote them says; None without a stamp."""
    for owner in (folder, *folder.parents):
        if owner == tree:
            break
        if stamp := read_stamp(owner):
            part = "" if owner == folder else f"{folder.relative_to(owner).as_posix()}/"
            return hash_value({name: sha for name, sha in stamp["outputs"].items() if name.startswith(part)})
    return None


def outputs(folder: Path) -> dict[str, str]:
    """Hashes of the files that a stage wrote, by name; not its stamp, its executed copy and what it works with."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        working = any(part.startswith(".") or part == "checkpoint" for part in name.parts)
        if path.is_file() and not working and name.as_posix() not in (STAMP, EXECUTED, "failed.ipynb", ERROR):
            found[name.as_posix()] = hash_file(path)
    return found


def reasons(folder: Path, P: Profile, tree: Path, inputs: Sequence[str] | None = None) -> list[str]:
    """Why the stage in `folder` must run (again); empty: it is fresh.

    Parameters
    ----------
    folder : below `tree`, the run's folder
    inputs : folders below `tree` that it reads; None: as its stamp says
    """
    if (stamp := read_stamp(folder)) is None:
        return ["it has not been made"]
    try:
        now = made_from(stamp["notebook"], P, stamp["keys"], stamp["inputs"] if inputs is None else inputs, tree)
    except (OSError, CompanionError) as error:  # a notebook, a size or a split that is no more
        return [str(error)]
    before, here = (of["parameters"].get("dataset") for of in (stamp, now))
    if isinstance(before, list) and before[0] == here:  # micrographs that are not on this machine: no other ones either
        now["parameters"]["dataset"] = before
    now["outputs"] = outputs(folder) | {name: stamp["outputs"][name] for name in stamp.get("left_out", [])}
    for name, sha in stamp.get("packed", {}).items():  # as a bundle holds it, with less in it
        if now["outputs"].get(name) == sha:
            now["outputs"][name] = stamp["outputs"][name]
    found = []
    for what, values in now.items():
        before = stamp.get(what, {})
        if changed := sorted(k for k in before.keys() | values.keys() if before.get(k) != values.get(k)):
            more = f" and {len(changed) - 3} more" if changed[3:] else ""
            found.append(f"{what} changed: {', '.join(changed[:3])}{more}")
    if not (found or "left_out" in stamp or (folder / EXECUTED).exists()):
        found = ["its executed copy is missing"]
    return found


def made_from(
    name: str, P: Profile, keys: Mapping[str, str], inputs: Sequence[str], tree: Path
) -> dict[str, dict[str, Any]]:
    """What a result depends on: hashes of code, parameters, and hashes of the folders `inputs` below `tree`."""
    read = {folder: input_hash(tree / folder, tree) for folder in inputs}
    return {"code": code(name), "parameters": parameters(name, P, keys), "inputs": read}


def stamps(tree: Path) -> dict[str, dict[str, Any]]:
    """Every stamp of a run that can be read, by the folder of its stage below `tree`."""
    places = [path.parent for path in sorted(tree.rglob(STAMP))]
    found = {place.relative_to(tree).as_posix(): read_stamp(place) for place in places}
    return {name: stamp for name, stamp in found.items() if stamp and not re.search(r"(^|/)\.", name)}


def states(P: Profile, tree: Path) -> dict[str, list[str]]:
    """Why each finished stage of a run must run again, by its folder below `tree`; empty: it is fresh.

    What reads a stage that must run again may have to run as well, which is told when that has run.
    """
    made = stamps(tree)
    found = {name: reasons(tree / name, P, tree) for name in made}
    waiting = [name for name, why in found.items() if why]
    for stale in waiting:  # grows on the way
        for name, stamp in made.items():
            if not found[name] and any(f"{folder}/".startswith(f"{stale}/") for folder in stamp["inputs"]):
                found[name] = [f"reads {stale}"]
                waiting.append(name)
    return found


def mark(P: Profile, tree: Path) -> None:
    """Make Snakemake's flags say what the stamps say: a fresh stage has its flags, all of one time, no other any."""
    made, now = stamps(tree), time.time() - 10_000
    fresh = [name for name, why in states(P, tree).items() if not why]
    kept = {tree / name / part / DONE for name in fresh for part in made[name]["flags"]}
    for flag in {*tree.rglob(DONE)} - kept:
        flag.unlink(missing_ok=True)  # another run of the same tree may mark it, too
    for flag in kept:
        flag.parent.mkdir(parents=True, exist_ok=True)
        flag.touch()
        os.utime(flag, (now, now))
