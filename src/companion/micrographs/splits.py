"""Which micrographs train, which choose thresholds and which test: nested in N, with the same mix of pixel sizes.

Splits 1, 2, ... k are drawn independently: a profile that lists k numbers repeats its experiment k times.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from companion.errors import CompanionError, nearest, problems
from companion.micrographs.dataset import DataSet
from companion.micrographs.images import read_grey, to_uint8
from companion.provenance import write_text
from companion.seeds import Seeds

LISTS = ("train", "val", "test", "fresh")
ENTRIES = ("name", "dataset", *LISTS)
# Of the 64 bits of a perceptual hash: unrelated micrographs differ in about 32, standard deviation 4; frames of one
# field, shifted by a few per cent, in 2 to 20.
NEAR_DUPLICATE_BITS = 12


@dataclass(frozen=True)
class Split:
    """File names of a split; no file is in two lists.

    Attributes
    ----------
    train : in the order in which they are used: N training micrographs are the first N
    val, test : choose thresholds, and test
    fresh : further labelled micrographs, for arm EXP+FRESH alone
    warning : what deserves attention, in words: pixel sizes that are tested but not trained on, near-duplicates in
        two lists; empty where nothing does
    """

    name: str
    dataset: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    warning: str = field(default="", compare=False)

    def save(self, path: Path) -> None:
        """Write the split file, YAML with explicit lists."""
        lists = {name: list(getattr(self, name)) for name in LISTS if getattr(self, name)}
        content = {"name": self.name, "dataset": self.dataset, **lists}
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def mix(self, dataset: DataSet, sizes: Sequence[int]) -> pd.DataFrame:
        """Number of micrographs by list (rows: training N = 10, ..., val, test, fresh) and nm per px (columns)."""
        lists = {f"train, N = {n}": self.train[:n] for n in sizes}
        lists |= {name: getattr(self, name) for name in LISTS[1:] if getattr(self, name)}
        scale = _scales(dataset)
        sizes_nm = sorted({scale[file] for files in lists.values() for file in files})
        rows = {
            name: [sum(scale[file] == size for file in files) for size in sizes_nm] for name, files in lists.items()
        }
        return pd.DataFrame.from_dict(rows, "index", columns=[f"{size:g}" for size in sizes_nm])


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
    group_by : what a drawn split keeps on one side, see `groups`; it always keeps near-duplicates together
    n_fresh : further micrographs that stand in no other list and are near-duplicates of none that is held out

    Raises
    ------
    CompanionError
        Too few micrographs, an unreadable or misspelt split file, a file that is not in the data set, or one
        that is in two lists.
    """
    seeds = Seeds(root_seed, "split", dataset.name, source if isinstance(source, int) else name)
    if isinstance(source, int):
        lists = _draw(dataset, max(sizes), n_test, n_val, group_by, seeds.rng())
        lists["train"], left = lists["train"][: max(sizes)], lists["train"][max(sizes) :]
    else:
        lists = _read(dataset, Path(source), max(sizes))
        left = [file for file in dataset.files if not any(file in files for files in lists.values())]
        left = [file for (file,) in _mixed(dataset, [[file] for file in left], seeds.rng())]
    if (wanted := n_fresh - len(lists["fresh"])) > 0:
        leaking = {file for file, _ in near_duplicates(dataset, left, [*lists["val"], *lists["test"]])}
        lists["fresh"] += [file for file in left if file not in leaking][:wanted]
    if (lacking := n_fresh - len(lists["fresh"])) > 0:
        larger = f"phantom.n_images would have to be {len(dataset.files) + lacking}; " * (dataset.name == "phantom")
        raise CompanionError(
            f"arm EXP+FRESH needs n_fresh = {n_fresh} micrographs beside those of split {name}, {dataset.name} has "
            f"{n_fresh - lacking}: {larger}lower n_fresh or sizes of the profile"
        )
    files = {part: tuple(lists[part]) for part in LISTS}
    return Split(name, dataset.name, **files, warning="\n".join(_warnings(dataset, files, sizes)))


def _draw(
    dataset: DataSet, n_train: int, n_test: int, n_val: int, group_by: str | None, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Lists of a split: test from the front of a mixed sequence, then validation, training from its other end."""
    files = sorted(dataset.files)
    if len(files) < n_train + n_test:
        raise CompanionError(
            f"{dataset.name} has {len(files)} micrographs; {n_train} for training and {n_test} for testing need "
            f"{n_train + n_test}: lower sizes or n_test of the profile"
        )
    sequence = _mixed(dataset, _inseparable(dataset, files, group_by), rng)
    test, left = _take(sequence, n_test)
    val, left = _take(left, min(n_val, sum(map(len, left)) - n_train))
    train = [file for together in reversed(left) for file in together]
    if not test or len(train) < n_train:
        numbers = ", ".join(str(len(together)) for together in sorted(sequence, key=len, reverse=True)[:10])
        raise CompanionError(
            f"{dataset.name} has groups of {numbers} micrographs that stay on one side (group_by {group_by}, "
            f"near-duplicates): {n_test} for testing and {n_train} for training cannot be kept apart"
        )
    return {"train": train, "val": sorted(val), "test": sorted(test), "fresh": []}


def _mixed(dataset: DataSet, groups: Sequence[list[str]], rng: np.random.Generator) -> list[list[str]]:
    """Groups of files in random order, but so that every stretch of them has the same mix of pixel sizes.

    Systematic sampling: those of one pixel size are spread evenly, the last of them at the very end. Training begins
    there, so that what is rare is trained on before it is tested.
    """
    scale, place = _scales(dataset), np.empty(len(groups))
    strata = np.array([scale[files[0]] for files in groups])
    for value in np.unique(strata):
        own = rng.permutation(np.flatnonzero(strata == value))
        reached = np.cumsum([len(groups[k]) for k in own])
        place[own] = reached / reached[-1]
    return [groups[k] for k in np.argsort(place, kind="stable")]


def _take(groups: Sequence[list[str]], number: int) -> tuple[list[str], list[list[str]]]:
    """Files of the first groups that fit into `number`, and the groups that are left, in their order."""
    taken: list[str] = []
    left = []
    for group in groups:
        if len(taken) + len(group) <= number:
            taken += group
        else:
            left.append(group)
    return taken, left


def _inseparable(dataset: DataSet, files: Sequence[str], group_by: str | None) -> list[list[str]]:
    """Files that a split must keep together: of one group, or near-duplicates, directly or by way of others."""
    place, first = {file: k for k, file in enumerate(files)}, {}
    links = [(first.setdefault(group, k), k) for k, group in enumerate(groups(dataset, files, group_by))]
    links += [(place[a], place[b]) for a, b in near_duplicates(dataset, files, files)]
    linked = coo_array((np.ones(len(links)), np.transpose(links)), shape=(len(files), len(files)))
    number, component = connected_components(linked, directed=False)
    return [[files[k] for k in np.flatnonzero(component == c)] for c in range(number)]


def groups(dataset: DataSet, files: Sequence[str], group_by: str | None) -> list[str]:
    """The group of each file: micrographs of one group stay on one side of a split.

    Parameters
    ----------
    group_by : an entry of ``images`` in the annotation file, e.g. grain or magnification; or a regular expression
        for the file name, whose first parenthesis (or whole match) is the group; None: every file for itself
    """
    if group_by is None:
        return list(files)
    micrographs = [dataset.micrograph(file) for file in files]
    if all(group_by in m.attributes for m in micrographs):
        return [str(m.attributes[group_by]) for m in micrographs]
    try:
        found = [re.search(group_by, file) for file in files]
    except re.error as error:
        raise CompanionError(f"group_by '{group_by}' is not a regular expression: {error}") from None
    if unmatched := [file for file, match in zip(files, found, strict=True) if match is None]:
        known = sorted(set.intersection(*(set(m.attributes) for m in micrographs)))
        raise CompanionError(
            f"group_by '{group_by}' is neither an entry of every image ({', '.join(known) or 'there is none'}) nor "
            f"found in the file name of {', '.join(unmatched[:5])}"
        )
    return [match[1] if match.re.groups else match[0] for match in found if match]


def near_duplicates(dataset: DataSet, some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of files, one of each list, whose perceptual hashes differ in at most `NEAR_DUPLICATE_BITS` of 64 bits.

    A file is not its own duplicate, and of two equal lists each pair is given once.
    """
    paths = {m.file_name: m.path for m in dataset.micrographs}
    a, b = (np.array([_hash(paths[file], paths[file].stat().st_mtime_ns) for file in files]).reshape(-1, 64)
            for files in (some, others))  # fmt: skip
    alike = np.argwhere((a[:, None] != b[None]).sum(axis=2) <= NEAR_DUPLICATE_BITS)
    pairs = dict.fromkeys((some[i], others[j]) for i, j in alike if some[i] != others[j])
    return [pair for k, pair in enumerate(pairs) if pair[::-1] not in list(pairs)[:k]]


@lru_cache(maxsize=4096)
def _hash(path: Path, _modified: int) -> NDArray[np.bool_]:
    """Perceptual hash, bool [64], of an image file."""
    return imagehash.phash(Image.fromarray(to_uint8(read_grey(path)))).hash.ravel()


def _scales(dataset: DataSet) -> dict[str, float]:
    return {m.file_name: m.pixel_size_nm for m in dataset.micrographs}


def _warnings(dataset: DataSet, lists: dict[str, tuple[str, ...]], sizes: Sequence[int]) -> list[str]:
    scale = _scales(dataset)
    tested = Counter(scale[file] for file in lists["test"])
    found = [
        f"{number} test micrograph(s) have {size:g} nm per px, which none of the first {n} training micrographs has"
        for n in sorted(sizes) for size, number in tested.items() if size not in {scale[f] for f in lists["train"][:n]}
    ]  # fmt: skip
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        alike = near_duplicates(dataset, lists[one], lists[other])
        found += [f"{a} ({one}) and {b} ({other}) look like the same field" for a, b in alike]
    return found


def _read(dataset: DataSet, path: Path, n_train: int) -> dict[str, list[str]]:
    """The lists of a split file that can be used with the data set."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompanionError(f"no split file {path}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompanionError(f"{path} is not a split file: {error}") from None
    if not isinstance(content, dict):
        raise CompanionError(f"{path} is not a split file: it should map {', '.join(ENTRIES)} to values")
    found = [f"{key}: no such entry; {nearest(str(key), ENTRIES)}" for key in content if key not in ENTRIES]
    if (named := content.get("dataset", dataset.name)) != dataset.name:
        found.append(f"it is for data set '{named}', not '{dataset.name}'")
    lists = {part: content.get(part, []) for part in LISTS}
    for part, files in lists.items():
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            found.append(f"{part} should be a list of file names, is {files!r}")
            lists[part] = []
        elif not files and part in ("train", "test"):
            found.append(f"{part} is missing or empty")
    where = [(file, part) for part, files in lists.items() for file in files]
    for file, times in Counter(file for file, _ in where).items():
        parts = " and in ".join(part for name, part in where if name == file)
        if file not in dataset.files:
            found.append(f"{parts} names {file}, which {dataset.name} does not have; {nearest(file, dataset.files)}")
        if times > 1:
            found.append(f"{file} is named {times} times, in {parts}")
    if 0 < len(lists["train"]) < n_train:
        found.append(f"train lists {len(lists['train'])} micrographs; the profile asks for N = {n_train}")
    if found:
        raise problems(f"{path}: {len(found)} problem(s)", found)
    return lists
