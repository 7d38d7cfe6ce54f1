"""Where everything lies: the project's folders, and one method per notebook that says where it writes.

A run is ``runs/<profile>/<data set>/``; below it the folders are named by split, n_train, arm, model and seed, with the
same words as the columns of every table.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from companion.errors import CompanionError, nearest, problems

if TYPE_CHECKING:
    from companion.config import Profile


class Layout:
    """Folders of a run, used by the Snakefile (with wildcards) and by the notebooks.

    Parameters
    ----------
    P : whose run
    tree : another folder than ``runs/<profile>/<data set>``; empty: relative paths, for patterns

    A folder that a run with changed entries has not made is that of the unchanged run: so a notebook that is run by
    hand with another IoU reads what there is, and writes beside it.
    """

    def __init__(self, P: Profile, tree: Path | None = None) -> None:
        self.P = P
        self.tree = runs() / P.folder / Path(P.dataset).name if tree is None else tree
        self.unchanged = runs() / P.name / Path(P.dataset).name if tree is None and P.changed else self.tree

    def micrographs(self, split: str) -> Path:
        """01: split.yaml, tables, and a folder of patches for each of `patches`."""
        return self._at(f"split-{split}", "micrographs")

    def patches(self, split: str, part: str) -> Path:
        """Patches of 01: part "train-n10" (of the first 10 training micrographs), "val", "test" or "fresh"."""
        return self.micrographs(split) / part

    def statistics(self, split: str, n_train: int) -> Path:
        """02: statistics.parquet (a row per defect), counts.parquet (a row per patch and class)."""
        return self._condition(split, n_train) / "statistics"

    def masks(self, split: str, n_train: int, masks: str) -> Path:
        """03: simulated masks "plain" or "rare"; the patches themselves in ``patches/``."""
        return self._condition(split, n_train) / f"masks-{masks}"

    def diffusion(self, split: str, n_train: int, model: str) -> Path:
        """04: autoencoder.safetensors, denoiser.safetensors, log.parquet."""
        return self._condition(split, n_train) / f"model-{model}" / "diffusion"

    def generated(self, split: str, n_train: int, model: str, masks: str) -> Path:
        """05: images for simulated masks, by a model or ("phantom") by the phantom itself; patches in ``patches/``."""
        return self._condition(split, n_train) / f"model-{model}" / f"generated-{masks}"

    def detector(self, split: str, n_train: int, arm: str, seed: int) -> Path:
        """06: weights.safetensors, log.parquet; what it finds in test and val patches in ``predictions/``."""
        return self._condition(split, n_train) / arm / f"seed-{seed}"

    def faithfulness(self, split: str, n_train: int) -> Path:
        """13: what an EXP detector says of the first model's images; the patches that it confirms in ``kept/``."""
        return self._condition(split, n_train) / "model-1" / "faithfulness"

    def page(self, name: str) -> Path:
        """07-12: thresholds, sizes, significance, imbalance, claims, errors; 14-16: annotation-bias and on."""
        return self._at(name)

    def output(self, folder: Path) -> Path:
        """The folder that a notebook writes to, made where it is missing: of this run, never of the unchanged one."""
        own = self.tree / folder.relative_to(self.unchanged if folder.is_relative_to(self.unchanged) else self.tree)
        own.mkdir(parents=True, exist_ok=True)
        return own

    def _condition(self, split: str, n_train: int) -> Path:
        if "{" not in str(n_train) and int(n_train) not in self.P.sizes:
            raise CompanionError(f"n_train {n_train}: profile {self.P.name} has N = {self.P.sizes} (sizes)")
        return self._at(f"split-{split}", f"n-{n_train}")

    def _at(self, first: str, *more: str) -> Path:
        split = first.removeprefix("split-")
        if split != first and "{" not in split and split not in self.P.split_names:
            known = nearest(split, self.P.split_names)
            more = f"`companion run {self.P.name} --split {split}` makes another, and a profile.yaml for its notebooks"
            raise CompanionError(f"split '{split}': {known}; {more}")
        if more != ("micrographs",) and not (self.tree.exists() or self.unchanged.exists()):
            of = f" --dataset {self.P.dataset}" * (self.P.dataset != "phantom")
            raise CompanionError(f"no run in {shown(self.tree)}: `companion run {self.P.name}{of}` makes it")
        own, unchanged = (tree.joinpath(first, *more) for tree in (self.tree, self.unchanged))
        return own if own.exists() or not unchanged.exists() else unchanged


def root() -> Path:
    """The project folder: ``COMPANION_ROOT``, else the nearest folder upwards that holds ``profiles/``.

    Without one there is a `CompanionError`: the package is a companion to a project folder.
    """
    here, named = Path.cwd().resolve(), os.environ.get("COMPANION_ROOT")
    # The checkout that this file lies in serves commands started from anywhere (editable installs).
    candidates = [Path(named)] if named else [here, *here.parents, Path(__file__).resolve().parents[2]]
    for folder in candidates:
        if (folder / "profiles").is_dir() and (folder / "notebooks").is_dir():
            return folder.resolve()
    raise CompanionError(
        f"no project folder at {candidates[0]}: it needs profiles/ and notebooks/. "
        "Run from inside a checkout, or set COMPANION_ROOT to one."
    )


def notebook(name: str) -> Path:
    """Source of a notebook, without outputs."""
    return root() / "notebooks" / f"{name}.ipynb"


def given(path: str) -> Path:
    """A file that a profile names: absolute, or relative to the project folder wherever a command is started."""
    return root() / path


def runs() -> Path:
    """The folder of all runs (``COMPANION_RUNS`` moves it, for instance to a scratch disk)."""
    return Path(os.environ.get("COMPANION_RUNS", root() / "runs")).resolve()


def data_cache() -> Path:
    """Where data sets are kept once downloaded or rendered (``COMPANION_DATA`` moves it)."""
    return Path(os.environ.get("COMPANION_DATA", root() / "data")).resolve()


def dataset_folder(dataset: str) -> Path:
    """Folder of a data set: that of a path, else that of a name in the cache, which need not be there."""
    return Path(dataset) if Path(dataset).is_dir() else data_cache() / dataset


def data_mirror() -> Path | None:
    """Offline mirror of the data registry, when ``COMPANION_DATA_MIRROR`` names one."""
    return Path(named).resolve() if (named := os.environ.get("COMPANION_DATA_MIRROR")) else None


def shown(path: Path) -> str:
    """A path as seen from the project folder."""
    return str(path.relative_to(root()) if path.is_relative_to(root()) else path)


def check_parameters() -> None:
    """Refuse parameters from outside (papermill's cell) that the notebook does not have, or of another type.

    papermill itself only warns. The reader's own variables are not looked at, so that the cell can be run again.
    One `CompanionError` names every such parameter and the nearest valid name.
    """
    from IPython import get_ipython

    space: dict[str, Any] = shell.user_ns if (shell := get_ipython()) else {"In": []}
    at = next((k for k, cell in enumerate(space["In"]) if cell.startswith("# Parameters\n")), 0)
    before, given = (ast.parse("\n".join(cells)).body for cells in (space["In"][:at], space["In"][at : at + 1]))
    declared = {node.target.id: node.annotation.id for node in before if isinstance(node, ast.AnnAssign)}
    wrong = []
    for name in (node.targets[0].id for node in given):
        value, kind = space[name], declared.get(name)
        if kind is None:
            wrong.append(f"{name}: no such parameter; {nearest(name, declared)}")
        elif type(value).__name__ not in (kind, "int" if kind == "float" or name in ("split", "model") else kind):
            wrong.append(f"{name} = {value!r}: should be of type {kind}")
    if wrong:
        raise problems("unusable parameter(s) of this notebook:", wrong)


def written(folder: Path) -> pd.DataFrame:
    """What a notebook has written, for its last cell: file (below runs/) and size in KiB."""
    rows = [(path.relative_to(runs()).as_posix(), round(path.stat().st_size / 1024, 1))
            for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]  # fmt: skip
    return pd.DataFrame(rows, columns=["file", "KiB"])
