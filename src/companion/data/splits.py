"""Which micrographs train and which test: disjoint by image, and the training sets nested in N."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from companion import seeds
from companion.data.dataset import DataSet
from companion.errors import CompanionError, nearest, problems
from companion.provenance import atomic

KEYS = ("name", "dataset", "seed", "train", "test", "val")
NEAR_DUPLICATE_BITS = 6  # of the 64 bits of a perceptual hash; unrelated micrographs differ in about half


@dataclass(frozen=True)
class Split:
    """File names of a split.

    Attributes
    ----------
    train : in the order in which they are used: N training micrographs are the first N
    test, val : held out; disjoint from `train` and each other
    near_duplicates : (training file, test file) pairs that look like the same field of view
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


def make_split(dataset: DataSet, split: int | str, sizes: Sequence[int], n_test: int, root_seed: int) -> Split:
    """Training and test micrographs of a data set.

    Parameters
    ----------
    split : number of a split drawn by seed, or the path of a split file (YAML: name, dataset, and either
        seed or lists train, test and optionally val)
    sizes : numbers N of training micrographs; the largest must fit
    n_test : test micrographs of a drawn split; listed ones are all used

    Raises
    ------
    CompanionError
        Too few micrographs, an unreadable or misspelt split file, a file that is not in the data set, or one
        that is both trained on and tested on.

    Warns
    -----
    UserWarning
        Near-duplicate micrographs across training and test, listed.
    """
    if isinstance(split, str):
        made = _from_file(dataset, Path(split), sizes, n_test, root_seed)
    else:
        made = _drawn(dataset, str(split), split, sizes, n_test, root_seed)
    pairs = near_duplicates(dataset, made.train[: max(sizes)], made.test)
    if pairs:
        lines = "\n".join(f"  - {a} ~ {b}" for a, b in pairs)
        warnings.warn(f"split {made.name}: near-duplicates across training and test:\n{lines}", stacklevel=2)
    return Split(made.name, made.dataset, made.train, made.test, made.val, made.seed, tuple(pairs))


def near_duplicates(dataset: DataSet, train: Sequence[str], test: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (training file, test file) whose perceptual hashes differ in at most `NEAR_DUPLICATE_BITS` bits."""
    import imagehash
    from PIL import Image

    found = {name: imagehash.phash(Image.fromarray(dataset.micrograph(name).read())) for name in (*train, *test)}
    return [(a, b) for a in train for b in test if found[a] - found[b] <= NEAR_DUPLICATE_BITS]


def _drawn(
    dataset: DataSet, name: str, seed: int, sizes: Sequence[int], n_test: int, root_seed: int, source: str = ""
) -> Split:
    files = sorted(dataset.files)
    n_train = max(sizes)
    if len(files) < n_train + n_test:
        fits = f"at most N = {len(files) - n_test} fits" if len(files) > n_test else f"fewer than {len(files)} test fit"
        raise CompanionError(
            f"{source}{dataset.name} has {len(files)} micrographs; {n_train} for training and {n_test} for testing "
            f"need {n_train + n_test}: with {n_test} held out {fits} (sizes and n_test of the profile)"
        )
    order = seeds.generator(root_seed, "split", dataset.name, seed).permutation(len(files))
    test = tuple(sorted(files[i] for i in order[:n_test]))
    return Split(name, dataset.name, tuple(files[i] for i in order[n_test:]), test, seed=seed)


def _from_file(dataset: DataSet, path: Path, sizes: Sequence[int], n_test: int, root_seed: int) -> Split:
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
        return _drawn(dataset, name, content["seed"], sizes, n_test, root_seed, f"{path}: ")
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
