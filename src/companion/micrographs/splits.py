"""Which micrographs train, which choose thresholds and which test: disjoint by image or by group, nested in N.

Splits 1, 2, ... k are drawn independently: a profile that lists k numbers repeats its experiment k times.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from companion import seeds
from companion.micrographs.dataset import DataSet
from companion.errors import CompanionError, nearest, problems
from companion.config.profile import Profile
from companion.provenance import atomic

if TYPE_CHECKING:
    from imagehash import ImageHash

KEYS = ("name", "dataset", "seed", "group_by", "train", "test", "val")
# Of the 64 bits of a perceptual hash: unrelated micrographs differ in about 32, standard deviation 4; frames of one
# field, shifted by a few per cent, in 2 to 20.
NEAR_DUPLICATE_BITS = 12


@dataclass(frozen=True)
class Split:
    """File names of a split.

    Attributes
    ----------
    train : in the order in which they are used: N training micrographs are the first N
    test, val : held out; disjoint from `train` and each other
    near_duplicates : pairs of files of different parts (training, test, validation) that look like one field of view
    """

    name: str
    dataset: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...] = ()
    seed: int | None = None
    near_duplicates: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def save(self, path: Path) -> None:
        """Write the split file, YAML with explicit lists."""
        content: dict[str, Any] = {"name": self.name, "dataset": self.dataset}
        content |= {"seed": self.seed} if self.seed is not None else {}
        content |= {"train": list(self.train), "test": list(self.test)}
        content |= {"val": list(self.val)} if self.val else {}
        with atomic(path) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def make_split(
    dataset: DataSet, split: int | str, sizes: Sequence[int], n_test: int, root_seed: int, *, n_val: int = 0,
    group_by: str | None = None,
) -> Split:  # fmt: skip
    """Training, test and validation micrographs of a data set.

    Parameters
    ----------
    split : number of a split drawn by seed, or the path of a split file (YAML: name, dataset, and either
        lists train, test and optionally val, or a seed and optionally group_by, see `groups`)
    sizes : numbers N of training micrographs; the largest must fit
    n_test : test micrographs of a drawn split, fewer where whole groups do not fit; listed ones are all used
    n_val : validation micrographs of a drawn split, fewer where training and test leave fewer; listed ones are used
    group_by : what a split drawn by number keeps on one side, see `groups`; a split file says it itself

    Raises
    ------
    CompanionError
        Too few micrographs, an unreadable or misspelt split file, a file that is not in the data set, or one
        that is in two lists.

    Warns
    -----
    UserWarning
        Near-duplicate micrographs across training, test and validation, listed.
    """
    if isinstance(split, str):
        made = _from_file(dataset, Path(split), sizes, (n_test, n_val), root_seed)
    else:
        made = _drawn(dataset, str(split), split, sizes, (n_test, n_val), root_seed, group_by)
    train = made.train[: max(sizes)]
    # A threshold chosen on what trained, or on what is scored, was not chosen elsewhere.
    across = {("training", "test"): (train, made.test), ("training", "validation"): (train, made.val),
              ("validation", "test"): (made.val, made.test)}  # fmt: skip
    found = {sides: near_duplicates(dataset, *files) for sides, files in across.items() if all(files)}
    for (one, other), alike in found.items():
        if alike:
            lines = "\n".join(f"  - {a} ~ {b}" for a, b in alike)
            warnings.warn(f"split {made.name}: near-duplicates across {one} and {other}:\n{lines}", stacklevel=2)
    pairs = [pair for alike in found.values() for pair in alike]
    return Split(made.name, made.dataset, made.train, made.test, made.val, made.seed, tuple(pairs))


def profile_split(dataset: DataSet, split: int | str, profile: Profile) -> Split:
    """`make_split` with the numbers of a profile."""
    return make_split(
        dataset, split, profile.sizes, profile.n_test, profile.root_seed, n_val=profile.n_val,
        group_by=profile.group_by.get(dataset.name),
    )  # fmt: skip


def near_duplicates(dataset: DataSet, train: Sequence[str], test: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (training file, test file) whose perceptual hashes differ in at most `NEAR_DUPLICATE_BITS` bits.

    A file is not its own duplicate, and of two equal lists each pair is given once.
    """
    found = {name: perceptual_hash(dataset.micrograph(name).read()) for name in dict.fromkeys((*train, *test))}
    pairs = [(a, b) for a in train for b in test if a != b and found[a] - found[b] <= NEAR_DUPLICATE_BITS]
    return [pair for k, pair in enumerate(pairs) if pair[::-1] not in pairs[:k]]


def perceptual_hash(pixels: NDArray[np.uint8]) -> ImageHash:
    """64-bit hash of a micrograph [H, W] that survives noise and small shifts; hashes subtract to bits."""
    import imagehash
    from PIL import Image

    return imagehash.phash(Image.fromarray(pixels))


def _drawn(
    dataset: DataSet, name: str, seed: int, sizes: Sequence[int], held_out: tuple[int, int], root_seed: int,
    group_by: str | None = None, source: str = "",
) -> Split:  # fmt: skip
    files = sorted(dataset.files)
    n_train, (n_test, n_val) = max(sizes), held_out
    if len(files) < n_train + n_test:
        fits = f"at most N = {len(files) - n_test} fits" if len(files) > n_test else f"fewer than {len(files)} test fit"
        raise CompanionError(
            f"{source}{dataset.name} has {len(files)} micrographs; {n_train} for training and {n_test} for testing "
            f"need {n_train + n_test}: with {n_test} held out {fits} (sizes and n_test of the profile)"
        )
    members: dict[str, list[str]] = {}
    for file, group in zip(files, groups(dataset, files, group_by), strict=True):
        members.setdefault(group, []).append(file)
    order = seeds.generator(root_seed, "split", dataset.name, seed).permutation(len(members))
    shuffled = [list(members.values())[k] for k in order]
    test, left = _take(shuffled, n_test)
    # Of what no N trains on, from the other end: what tests, and (without groups) what trains first, is the same
    # however many choose thresholds.
    val, left = _take(left[::-1], min(n_val, sum(map(len, left)) - n_train))
    train = [file for group in left[::-1] for file in group]
    if not test or len(train) < n_train:
        sizes_of = sorted(map(len, shuffled), reverse=True)
        raise CompanionError(
            f"{source}grouped by {group_by}, {dataset.name} has groups of {', '.join(map(str, sizes_of[:10]))} "
            f"micrographs: {n_test} for testing and {n_train} for training cannot be kept apart"
        )
    return Split(name, dataset.name, tuple(train), tuple(sorted(test)), tuple(sorted(val)), seed)


def _take(groups: Sequence[list[str]], number: int) -> tuple[list[str], list[list[str]]]:
    """Files of the first groups that fit into `number`, and the groups that are left, in their order."""
    taken: list[str] = []
    left = []
    for group in groups:
        if len(taken) + len(group) <= number:
            taken.extend(group)
        else:
            left.append(group)
    return taken, left


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
    known = sorted(set.intersection(*(set(m.attributes) for m in micrographs)))
    try:
        found = [re.search(group_by, file) for file in files]
    except re.error as error:
        raise CompanionError(f"group_by '{group_by}' is not a regular expression: {error}") from None
    if unmatched := [file for file, match in zip(files, found, strict=True) if match is None]:
        raise CompanionError(
            f"group_by '{group_by}' is neither an entry of every image ({', '.join(known) or 'there is none'}) nor "
            f"found in the file name of {', '.join(unmatched[:5])}"
        )
    return [match[1] if match.re.groups else match[0] for match in found if match]


def _from_file(dataset: DataSet, path: Path, sizes: Sequence[int], held_out: tuple[int, int], root_seed: int) -> Split:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompanionError(f"no split file {path}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompanionError(f"{path} is not a split file: {error}") from None
    if not isinstance(content, dict):
        raise CompanionError(f"{path} is not a split file: it should map {', '.join(KEYS)} to values")
    found = [f"{key}: no such entry; {nearest(str(key), KEYS)}" for key in content if key not in KEYS]
    if (named := content.get("dataset", dataset.name)) != dataset.name:
        found.append(f"it is for data set '{named}', not '{dataset.name}'")
    name = str(content.get("name", path.stem))
    if "train" not in content and "test" not in content and isinstance(content.get("seed"), int) and not found:
        return _drawn(dataset, name, content["seed"], sizes, held_out, root_seed, content.get("group_by"), f"{path}: ")
    if "group_by" in content:
        found.append("group_by goes with a seed, not with lists")
    lists = {key: content.get(key, []) for key in ("train", "test", "val")}
    for key, files in lists.items():
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            found.append(f"{key} should be a list of file names, is {files!r}")
            lists[key] = []
        elif not files and key != "val":
            found.append(f"{key} is missing or empty (and there is no seed to draw it with)")
    found += _list_problems(dataset, lists, max(sizes))
    if found:
        raise problems(f"{path}: {len(found)} problem(s)", found)
    return Split(name, dataset.name, *(tuple(lists[key]) for key in ("train", "test", "val")))


def _list_problems(dataset: DataSet, lists: dict[str, list[str]], n_train: int) -> list[str]:
    found = []
    for key, files in lists.items():
        for file in sorted(set(files) - set(dataset.files)):
            found.append(f"{key} names {file}, which {dataset.name} does not have; {nearest(file, dataset.files)}")
        found += [f"{key} names {file} twice" for file in sorted({f for f in files if files.count(f) > 1})]
    for a, b in (("train", "test"), ("train", "val"), ("test", "val")):
        if both := sorted(set(lists[a]) & set(lists[b])):
            found.append(f"{a} and {b} overlap: {', '.join(both)}")
    if lists["train"] and len(lists["train"]) < n_train:
        found.append(f"train lists {len(lists['train'])} micrographs; the profile asks for N = {n_train}")
    return found
