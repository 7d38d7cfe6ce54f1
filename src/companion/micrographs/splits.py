"""Which micrographs train, which choose thresholds and which test: nested in N, with the same mix of pixel sizes.

Splits 1, 2, ... k are drawn independently: a profile that lists k numbers repeats its experiment k times.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import imagehash
import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from companion import layout
from companion.config.base import Section
from companion.config.profile import validate
from companion.errors import CompanionError, nearest, problems
from companion.micrographs.dataset import DataSet, Micrograph
from companion.micrographs.images import read_grey, to_uint8
from companion.provenance import write_text
from companion.seeds import Seeds

LISTS = ("train", "val", "test", "fresh")
# Of the 64 bits of a perceptual hash: unrelated micrographs differ in about 32, standard deviation 4; frames of one
# field, shifted by a few per cent, in 2 to 20.
NEAR_DUPLICATE_BITS = 12


class Split(Section):
    """File names of a split, as a split file has them; no file is in two lists."""

    name: str = ""
    dataset: str | None = None
    train: Annotated[tuple[str, ...], Field(min_length=1)]  # in order of use: N training micrographs are the first N
    val: tuple[str, ...] = ()  # choose thresholds
    test: Annotated[tuple[str, ...], Field(min_length=1)]
    fresh: tuple[str, ...] = ()  # further labelled micrographs, for arm EXP+FRESH alone
    warning: str = ""  # what deserves attention: pixel sizes tested but not trained on, near-duplicates in two lists

    def save(self, path: Path) -> None:
        """Write the split file, YAML with explicit lists."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def mix(self, dataset: DataSet, sizes: Sequence[int]) -> pd.DataFrame:
        """Number of micrographs by list (rows: training N = 10, ..., val, test, fresh) and nm per px (columns)."""
        lists = {f"train, N = {n}": self.train[:n] for n in sizes}
        lists |= {name: getattr(self, name) for name in LISTS[1:] if getattr(self, name)}
        counted = {name: Counter(dataset.micrograph(f).pixel_size_nm for f in files) for name, files in lists.items()}
        return pd.DataFrame(counted).T.fillna(0).astype(int).sort_index(axis=1).rename(columns="{:g}".format)


def choose_split(
    dataset: DataSet, source: int | str, name: str, sizes: Sequence[int], n_test: int, n_val: int,
    group_by: str | None, root_seed: int, n_fresh: int = 0,
) -> Split:  # fmt: skip
    """Training, validation and test micrographs of a data set.

    Parameters
    ----------
    source : number of a split drawn by seed, or the path of a split file: YAML with lists train, test and optionally
        val and fresh, which are used as they are
    sizes : numbers N of training micrographs; the largest must fit
    n_test : test micrographs of a drawn split, fewer where whole groups do not fit
    n_val : validation micrographs of a drawn split, fewer where training and test leave fewer
    group_by : what a drawn split keeps on one side, see `group_of`; it always keeps near-duplicates together
    n_fresh : further micrographs that stand in no other list and are near-duplicates of none that is held out
    """
    rng = Seeds(root_seed, "split", dataset.name, source if isinstance(source, int) else name).rng()
    if isinstance(source, int):
        lists = _draw(dataset, max(sizes), n_test, n_val, group_by, rng)
        lists["train"], left = lists["train"][: max(sizes)], lists["train"][max(sizes) :]
    else:
        lists = _read(dataset, layout.given(source), max(sizes))
        left = [file for file in dataset.files if not any(file in files for files in lists.values())]
        left = [file for (file,) in _mixed(dataset, [[file] for file in left], rng)]
    leaking = {file for file, _ in near_duplicates(dataset, left, [*lists["val"], *lists["test"]])}
    lists["fresh"] += [file for file in left if file not in leaking][: max(0, n_fresh - len(lists["fresh"]))]
    if len(lists["fresh"]) < n_fresh:
        has = f"{dataset.name} has {len(lists['fresh'])}: lower n_fresh or sizes of the profile"
        raise CompanionError(f"EXP+FRESH needs n_fresh = {n_fresh} micrographs beside those of split {name}, {has}")
    trained, tested = ([dataset.micrograph(file).pixel_size_nm for file in lists[part]] for part in ("train", "test"))
    found = [
        f"{number} test micrograph(s) have {size:g} nm per px, which none of the first {n} training micrographs has"
        for n in sorted(sizes) for size, number in Counter(tested).items() if size not in trained[:n]
    ]  # fmt: skip
    found += [f"{a} ({one}) and {b} ({other}) look like the same field"
              for one, other in (("train", "test"), ("train", "val"), ("val", "test"))
              for a, b in near_duplicates(dataset, lists[one], lists[other])]  # fmt: skip
    lists = {part: tuple(files) for part, files in lists.items()}
    return Split(name=name, dataset=dataset.name, **lists, warning="\n".join(found))


def _draw(
    dataset: DataSet, n_train: int, n_test: int, n_val: int, group_by: str | None, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Lists of a split: test from the front of a mixed sequence, then validation, training from its other end."""
    sequence = _mixed(dataset, _inseparable(dataset, sorted(dataset.files), group_by), rng)
    test, left = _take(sequence, n_test)
    val, left = _take(left, min(n_val, sum(map(len, left)) - n_train))
    train = [file for together in reversed(left) for file in together]
    if not test or len(train) < n_train:
        raise CompanionError(
            f"{dataset.name} has {len(dataset.files)} micrographs, up to {max(map(len, sequence))} of which stay on "
            f"one side (group_by {group_by}, near-duplicates): lower sizes ({n_train}) or n_test ({n_test})"
        )
    return {"train": train, "val": sorted(val), "test": sorted(test), "fresh": []}


def _mixed(dataset: DataSet, groups: Sequence[list[str]], rng: np.random.Generator) -> list[list[str]]:
    """Groups of files in random order, but so that every stretch of them has the same mix of pixel sizes.

    Systematic sampling: those of one pixel size are spread evenly, the last of them at the very end. Training begins
    there, so that what is rare is trained on before it is tested.
    """
    place, strata = np.empty(len(groups)), np.array([dataset.micrograph(files[0]).pixel_size_nm for files in groups])
    for value in np.unique(strata):
        own = rng.permutation(np.flatnonzero(strata == value))
        reached = np.cumsum([len(groups[k]) for k in own])
        place[own] = reached / reached[-1]
    return [groups[k] for k in np.argsort(place, kind="stable")]


def _take(groups: Sequence[list[str]], number: int) -> tuple[list[str], list[list[str]]]:
    """Files of the first groups that fit into `number`, and the groups that are left, in their order."""
    taken, left = [], []
    for files in groups:
        taken, left = (taken + files, left) if len(taken) + len(files) <= number else (taken, [*left, files])
    return taken, left


def _inseparable(dataset: DataSet, files: Sequence[str], group_by: str | None) -> list[list[str]]:
    """Files that a split must keep together: of one group, or near-duplicates, directly or by way of others."""
    place, first = {file: k for k, file in enumerate(files)}, {}
    links = [(first.setdefault(group_of(dataset.micrograph(file), group_by), k), k) for file, k in place.items()]
    links += [(place[a], place[b]) for a, b in near_duplicates(dataset, files, files)]
    linked = coo_array((np.ones(len(links)), np.transpose(links)), shape=(len(files), len(files)))
    number, component = connected_components(linked, directed=False)
    return [[files[k] for k in np.flatnonzero(component == c)] for c in range(number)]


def group_of(micrograph: Micrograph, group_by: str | None) -> str:
    """The group of a micrograph, whose members stay on one side of a split; None: every file for itself.

    It is an entry of ``images`` in the annotation file, e.g. grain or magnification, or the first parenthesis (or the
    whole match) of a regular expression for the file name.
    """
    if group_by is None or group_by in micrograph.attributes:
        return str(micrograph.attributes[group_by] if group_by else micrograph.file_name)
    try:
        match = re.search(group_by, micrograph.file_name)
        return match[match.lastindex or 0]
    except (re.error, AttributeError, TypeError):
        raise CompanionError(
            f"group_by '{group_by}' is neither an entry of {micrograph.file_name} in the annotation file "
            f"({', '.join(micrograph.attributes) or 'it has none'}) nor a pattern found in its name"
        ) from None


def near_duplicates(dataset: DataSet, some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of files, one of each list, whose perceptual hashes differ in at most `NEAR_DUPLICATE_BITS` of 64 bits.

    A file is not its own duplicate, and of two equal lists each pair is given once.
    """
    a, b = (np.array([_hash(path := dataset.micrograph(file).path, path.stat().st_mtime_ns) for file in files])
            .reshape(-1, 64) for files in (some, others))  # fmt: skip
    alike = np.argwhere((a[:, None] != b[None]).sum(axis=2) <= NEAR_DUPLICATE_BITS)
    pairs = {frozenset((some[i], others[j])): (some[i], others[j]) for i, j in alike[::-1] if some[i] != others[j]}
    return list(pairs.values())[::-1]


@lru_cache(maxsize=4096)
def _hash(path: Path, _modified: int) -> NDArray[np.bool_]:
    """Perceptual hash, bool [64], of an image file."""
    return imagehash.phash(Image.fromarray(to_uint8(read_grey(path)))).hash.ravel()


def _read(dataset: DataSet, path: Path, n_train: int) -> dict[str, list[str]]:
    """The lists of a split file that can be used with the data set."""
    try:
        given = validate(Split, yaml.safe_load(path.read_text(encoding="utf-8")), source=str(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompanionError(f"{path} is not a split file: {error}") from None
    found = []
    if given.dataset not in (None, dataset.name):
        found.append(f"it is for data set '{given.dataset}', not '{dataset.name}'")
    lists = {part: list(getattr(given, part)) for part in LISTS}
    named = Counter(file for files in lists.values() for file in files)
    found += [f"{file} is not in {dataset.name}; {nearest(file, dataset.files)}" for file in named
              if file not in dataset.files]  # fmt: skip
    found += [f"{file} is named {times} times" for file, times in named.items() if times > 1]
    if len(given.train) < n_train:
        found.append(f"train lists {len(given.train)} micrographs; the profile asks for N = {n_train}")
    if found:
        raise problems(f"{path}: {len(found)} problem(s)", found)
    return lists
