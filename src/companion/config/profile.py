"""A profile: all parameters of a run, read from YAML and checked whole before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from companion import layout
from companion.config.arms import ARMS, PHANTOM_ONLY
from companion.config.base import Count, Section, Whole
from companion.config.diffusion import Diffusion, Sampling
from companion.config.phantom import Phantom
from companion.config.sections import Detection, Device, Evaluation, Faithfulness, Masks, Patches, Studies
from companion.errors import CompanionError, nearest, problems

Model = TypeVar("Model", bound=BaseModel)


class Profile(Section):
    """All parameters of a run."""

    name: str = Field(pattern=r"^[^/\\.][^/\\]*$", description="folder of the run; the YAML file's stem unless given")
    description: str = Field("", description="for whom and how long, one line")
    changed: dict[str, Any] = Field({}, description="entries given on the command line; they name the folder, too")
    root_seed: Whole = Field(20260602, description="every random draw descends from it")
    device: Device = Device()
    jobs_per_device: Count = Field(1, description="stages that share one GPU of this machine at a time")
    dataset: Annotated[
        str, AfterValidator(lambda of: str(Path(of).resolve()) if Path(of, "annotations.json").is_file() else of)
    ] = Field("phantom", description="registered name, or path of a data set folder")
    splits: Annotated[list[Whole | str], Field(min_length=1)] = Field(
        [1], description="numbers (drawn by seed) or split files; named by the number or the file's stem"
    )
    sizes: Annotated[list[Count], AfterValidator(sorted)] = Field([10], min_length=1, description="N, nested sets")
    n_test: Count = Field(6, description="test micrographs per split")
    n_val: Whole = Field(0, description="validation micrographs per split at most; they choose thresholds")
    n_fresh: Count = Field(8, description="further labelled micrographs of arm EXP+FRESH")
    group_by: dict[str, str] = Field(
        {}, description="data set -> entry of its images, or pattern in file names, that drawn splits keep on one side"
    )
    arms: list[str] = Field(["EXP", "EXP+GEN"], min_length=1, description="at every N of every split")
    controls: dict[str, list[Count]] = Field(
        {}, description="arm -> the N at which it is run, on the first split alone; on other data than the phantom "
        "without those that need its optics; with one class without oversampling"
    )  # fmt: skip
    seeds: list[Whole] = Field([1, 2], min_length=1, description="detector seeds")
    phantom: Phantom = Phantom()
    patches: Patches = Patches()
    masks: Masks = Masks()
    diffusion: Diffusion = Diffusion()
    sampling: Sampling = Sampling()
    detection: Detection = Detection()
    faithfulness: Faithfulness = Faithfulness()
    evaluation: Evaluation = Evaluation()
    studies: Studies = Studies()

    @property
    def split_names(self) -> list[str]:
        """Names of the splits: '1' for number 1, 'mine' for the file my/folder/mine.yaml."""
        return [split_name(split) for split in self.splits]

    def split_source(self, split: str) -> int | str:
        """What a split's name stands for: a number, or the path of a file; a `CompanionError` where there is none."""
        for source in self.splits:
            if split_name(source) == str(split):
                return source
        raise CompanionError(f"split '{split}' is not in profile {self.name}: {nearest(str(split), self.split_names)}")

    @property
    def folder(self) -> str:
        """Name of the run's folder: the profile's, and what was changed on the command line."""
        changes = (re.sub(r"[^\w.-]+", "_", f"{name}-{value}") for name, value in self.changed.items())
        return "+".join([self.name, *(text[:200] for text in changes)])

    def arms_at(self, split: str, n_train: int) -> list[str]:
        """Names of the arms that are run in a condition."""
        if str(split) != self.split_names[0]:
            return list(self.arms)
        left_out = [] if self.dataset == "phantom" else list(PHANTOM_ONLY)
        left_out += [arm for arm in self.controls if ARMS[arm].masks == "rare" and _has_one_class(self.dataset)]
        return [*self.arms, *(a for a, sizes in self.controls.items() if n_train in sizes and a not in left_out)]

    def conditions(self) -> Iterator[tuple[str, int]]:
        """Every split with every N."""
        yield from product(self.split_names, self.sizes)

    def detectors(self) -> list[dict[str, Any]]:
        """Every detector of the run as {"split", "n_train", "arm", "seed"}."""
        return [
            {"split": split, "n_train": n_train, "arm": arm, "seed": seed}
            for split, n_train in self.conditions() for arm in self.arms_at(split, n_train) for seed in self.seeds
        ]  # fmt: skip

    @model_validator(mode="after")
    def _entries_fit_together(self) -> Profile:
        if misfits := list(self._misfits()):
            raise ValueError("\n".join(misfits))
        return self

    def _misfits(self) -> Iterator[str]:
        for field in ("sizes", "arms", "seeds"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                yield f"{field} {values} names a value twice"
        names = self.split_names
        if double := sorted({name for name in names if names.count(name) > 1}):
            yield f"splits {self.splits}: two have the name {double[0]}; rename a file"
        if odd := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]:
            yield f"splits: '{odd[0]}' names a folder of results; rename the file to letters, digits, . _ -"
        if self.dataset == "phantom" and not any(isinstance(split, str) for split in self.splits):
            fresh = self.n_fresh if "EXP+FRESH" in [*self.arms, *self.controls] else 0
            needed = max(self.sizes) + self.n_test + self.n_val + fresh
            if needed > self.phantom.n_images:
                parts = f"{max(self.sizes)} training, {self.n_test} test, {self.n_val} validation and {fresh} fresh"
                yield f"phantom.n_images {self.phantom.n_images}: {parts} micrographs are {needed}"
        if self.dataset == "phantom" and self.patches.size > self.phantom.size_px:
            yield f"patches.size {self.patches.size}: micrographs of the phantom are {self.phantom.size_px} px wide"
        for arm in [*self.arms, *self.controls]:
            if arm not in ARMS:
                yield f"arms: no arm '{arm}'; {nearest(arm, ARMS)}"
            if arm in PHANTOM_ONLY and arm in self.arms and self.dataset != "phantom":
                yield f"arms: {arm} needs the phantom's own optics and is not for dataset '{self.dataset}'"
        if double := sorted(set(self.arms) & set(self.controls)):
            yield f"controls: {double[0]} is among arms already"
        for arm, sizes in self.controls.items():
            if missing := set(sizes) - set(self.sizes):
                yield f"controls: {arm} at N = {sorted(missing)}, which are not among sizes {self.sizes}"
        if absent := sorted({"EXP", "EXP+GEN"} - set(self.arms)):
            yield f"arms: add {' and '.join(absent)}; every page compares EXP+GEN with EXP"
        if self.studies.bias_n_train not in (None, *self.sizes):
            yield f"studies.bias_n_train {self.studies.bias_n_train} is not among sizes {self.sizes}"
        if self.studies.bias_n_train is not None and not self.n_val:
            yield "studies.bias_n_train needs validation micrographs, which choose thresholds (n_val)"


def _has_one_class(dataset: str) -> bool:
    """Whether a data set that is here declares one class only, so that none is rare."""
    try:
        annotations = layout.dataset_folder(dataset) / "annotations.json"
        return len(json.loads(annotations.read_text(encoding="utf-8"))["categories"]) == 1
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not here yet, or the importer says what is wrong with it


def split_name(split: int | str) -> str:
    """1 -> '1', 'my/split.yaml' -> 'split'."""
    return Path(split).stem if isinstance(split, str) else str(split)


def load_profile(
    name: str | Path,
    dataset: str | None = None,
    splits: Sequence[int | str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Profile:
    """Read and validate a profile; one `CompanionError` lists everything that cannot be used.

    Parameters
    ----------
    name : a name in ``profiles/`` or the path of a YAML file
    dataset, splits : replace the file's entries where given
    changes : dotted entries to change, e.g. ``{"evaluation.iou": 0.3}``; None stands for the file's own value,
        "null" for none. A changed run has a folder of its own.
    """
    named = str(name)
    path = Path(named) if named.endswith((".yaml", ".yml")) else layout.root() / "profiles" / f"{named}.yaml"
    if not path.is_file():
        names = sorted(path.stem for path in (layout.root() / "profiles").glob("*.yaml"))
        raise CompanionError(f"no profile '{named}': {nearest(named, names)} (or give a YAML file)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise CompanionError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise CompanionError(f"{path}: should be a mapping of parameter names to values, holds {content!r}")
    content = {"name": path.stem, **content} | ({} if dataset is None else {"dataset": dataset})
    changed = {key: None if value == "null" else value for key, value in (changes or {}).items() if value is not None}
    if splits is not None:
        changed["splits"] = list(splits)
    for key, value in changed.items():
        inner, (*sections, last) = content, key.split(".")
        for section in sections:
            inner[section] = inner.get(section) or {}
            if not isinstance(inner := inner[section], dict):
                raise CompanionError(f"{key}: {section} is no section of a profile")
        inner[last] = value
    if changed:
        content["changed"] = {**content.get("changed", {}), **changed}
    return validate(Profile, content, source=f"{path}{', as changed' * bool(changed)}")


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """`model` from `values`, or one `CompanionError` that lists every entry that cannot be used."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = list(_explain(model, error))
        raise problems(f"{source}: {len(found)} unusable parameter(s)", found) from None


def _explain(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "(the whole)"
        if item["type"] == "extra_forbidden":
            parent = _section(model, item["loc"][:-1])
            yield f"{place}: no such parameter; {nearest(str(item['loc'][-1]), parent.model_fields)}"
        else:
            shown = f" (given: {item['input']!r})" if item["type"] not in ("missing", "value_error") else ""
            for reason in item["msg"].removeprefix("Value error, ").splitlines():
                yield f"{place}: {reason}{shown}"


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        inner = getattr(model.model_fields.get(str(part)), "annotation", None)
        if not isinstance(inner, type) or not issubclass(inner, BaseModel):
            break
        model = inner
    return model
