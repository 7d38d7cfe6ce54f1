"""Stages of a run: a notebook with its keys, the folder of its artifacts, and whether they are fresh.

Notebooks `begin` a stage and `finish` it; Snakemake and the command line read the same table. A stage is
fresh when its stamp matches the code, parameters and inputs of now and its files are as they were written.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, TypeAdapter

from companion import paths, provenance, seeds
from companion.errors import CompanionError, nearest, problems
from companion.kinds import KEYS, KINDS, Kind
from companion.matrix import readings, stage_keys
from companion.config.profile import Profile, Splits, load_profile, validate
from companion.places import dataset_folder, dataset_name, tree


class _Named(BaseModel):
    """Notebook parameters that say which stage this is; the rest are knobs."""

    model_config = ConfigDict(extra="allow")
    profile: str
    dataset: str
    splits: Splits | None = None


@dataclass(frozen=True)
class Stage:
    """One notebook run: a kind with its keys, in the matrix of a profile.

    Attributes
    ----------
    kind : which notebook
    keys : which condition, e.g. {"split": 1, "n_train": 10}
    profile : all parameters, knobs applied
    """

    kind: Kind
    keys: Mapping[str, Any]
    profile: Profile
    began: float = field(default_factory=time.time, compare=False)
    # As `begin` found them: the code and inputs that a result was made from, and the files of earlier runs.
    found: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        """Where its artifacts are."""
        return tree(self.profile) / self.address

    @property
    def address(self) -> str:
        """Its folder below runs/<profile>/<dataset>/."""
        return self.kind.address(self.keys)

    @property
    def notebook(self) -> Path:
        return paths.notebooks() / f"{self.kind.notebook}.ipynb"

    @property
    def inputs(self) -> dict[str, Path]:
        """Folders it reads, by name."""
        return {n: s.folder / part if part.endswith("/") else s.folder for n, (s, part) in self.upstream.items()}

    @cached_property
    def upstream(self) -> dict[str, tuple[Stage, str]]:
        """Stages it reads, by name, with the prefix of the files that it reads ('' for all, 'test/' for a folder)."""
        read = readings(self.kind, self.keys, self.profile)
        return {name: (Stage(KINDS[kind], keys, self.profile), part) for name, (kind, keys, part) in read.items()}

    @property
    def parameters(self) -> dict[str, Any]:
        """What it reads of the profile, as plain values."""
        values = self.profile.model_dump(mode="json")
        read = {name: values[name] for name in ("root_seed", *self.kind.sections)}
        return {**read, "keys": {name: str(value) for name, value in self.keys.items()}}

    def seed(self, *names: str | int) -> int:
        """An integer seed of this stage for a path of names."""
        return seeds.integer(self.profile.root_seed, self.address, *names)

    def rng(self, *names: str | int) -> np.random.Generator:
        """A generator of this stage for a path of names."""
        return seeds.generator(self.profile.root_seed, self.address, *names)

    def code(self) -> dict[str, str]:
        """Hashes of its notebook and of every package file that the notebook imports, directly or not."""
        name = f"notebooks/{self.notebook.name}"
        modules = provenance.notebook_imports(self.notebook)
        return {name: provenance.hash_notebook(self.notebook), **provenance.code_hashes(*modules)}

    def input_hashes(self) -> dict[str, str | None]:
        """One hash per input, from the stamps of the stages that made them; None where there is no stamp."""
        found: dict[str, str | None] = {}
        for name in self.upstream:
            files = self._made(name)
            found[name] = provenance.hash_value(files) if files else None
        if self.kind.name == "micrographs" and (folder := dataset_folder(self.profile)).is_dir():
            found["dataset"] = provenance.hash_value(provenance.artifact_hashes(folder))
        if self.kind.name == "micrographs" and isinstance(split := self.keys["split"], str):
            found["split file"] = provenance.hash_file(Path(split)) if Path(split).is_file() else None
        for name, weights in self._weights().items():
            file = paths.given(weights)
            found[name] = provenance.hash_file(file) if file.is_file() else None
        return found

    def holds(self, name: str) -> bool:
        """Whether an input was made: a split need not have validation patches."""
        return bool(self._made(name))

    def _made(self, name: str) -> dict[str, str]:
        stage, part = self.upstream[name]
        stamp = provenance.read_stamp(stage.folder) or {"outputs": {}}
        return {file: sha for file, sha in stamp["outputs"].items() if file.startswith(part)}

    def _weights(self) -> dict[str, str]:
        """Pretrained weights files that the profile names for this stage."""
        profile = self.profile
        named = {"diffusion": profile.diffusion.autoencoder.weights, "detection": profile.detection.weights,
                 "sampling": profile.sampling.feature_weights}  # fmt: skip
        return {f"weights of {name}": given for name, given in named.items() if given and name in self.kind.sections}

    def finish(self) -> pd.DataFrame:
        """Write the stamp beside the artifacts; the last cell of a notebook.

        An artifact that has been neither written nor taken over (`touch`) since `begin` is of an earlier run and
        not in the stamp. An executed copy of an earlier run goes before the stamp that it does not belong to comes.
        What the stage kept in ``checkpoint/`` to go on from goes after it.

        Returns
        -------
        One row per artifact: file (below runs/), size in KiB, first digits of its sha256.
        """
        old = self.found["files"]
        outputs = {
            name: sha for name, sha in provenance.artifact_hashes(self.folder).items()
            if old.get(name) != provenance.signature(self.folder / name)
        }  # fmt: skip
        if not outputs:
            raise CompanionError(f"{self.folder}: the notebook has written nothing")
        (self.folder / provenance.EXECUTED).unlink(missing_ok=True)
        provenance.write_json(self.folder / provenance.STAMP, {
            "stage": self.kind.name, "notebook": self.kind.notebook, "profile": self.profile.name,
            "dataset": dataset_name(self.profile.dataset), "keys": self.keys,
            "code": self.found["code"], "parameters": self.parameters, "inputs": self.found["inputs"],
            "outputs": outputs,
            **provenance.environment(), "started": datetime.fromtimestamp(self.began, UTC).isoformat("T", "seconds"),
            "wall_s": round(time.time() - self.began, 2),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        })  # fmt: skip
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        here = Path(*self.folder.parts[len(paths.runs().parts) :])
        return pd.DataFrame(
            [(str(here / name), (self.folder / name).stat().st_size / 1024, sha[:12]) for name, sha in outputs.items()],
            columns=["file", "KiB", "sha256"],
        ).round(1)

    def staleness(self) -> list[str] | None:
        """Why this stage must run again: None if it never finished, empty if it is fresh."""
        stamp = provenance.read_stamp(self.folder)
        if stamp is None:
            return None
        now = {"code": self.code(), "parameters": self.parameters, "inputs": self.input_hashes()}
        now["outputs"] = provenance.artifact_hashes(self.folder)
        for name in stamp.get("left_out", []):  # too large for a bundle: its absence is no change
            now["outputs"].setdefault(name, stamp["outputs"].get(name))
        for name, sha in stamp.get("packed", {}).items():  # as a bundle holds it, with less in it
            if now["outputs"].get(name) == sha:
                now["outputs"][name] = stamp["outputs"].get(name)
        reasons = []
        for what, values in now.items():
            before, after = _flat(stamp.get(what, {})), _flat(values)
            changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
            if changed:
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                reasons.append(f"{what} changed: {', '.join(changed[:3])}{more}")
        return reasons

    def reasons_to_run(self) -> list[str] | None:
        """`staleness`; and a stage whose executed copy is missing was ended, or run by hand, after its stamp."""
        reasons, packed = self.staleness(), "left_out" in (provenance.read_stamp(self.folder) or {})
        missing = reasons == [] and not packed and not (self.folder / provenance.EXECUTED).exists()
        return ["its executed copy is missing"] if missing else reasons


def matrix(profile: Profile) -> list[Stage]:
    """Every stage of a profile, each after the stages it reads."""
    return [Stage(kind, keys, profile) for kind, keys in stage_keys(profile)]


def states(profile: Profile) -> dict[str, list[str] | None]:
    """Why each stage of a profile has to run: address -> None if it never finished, empty if it is fresh.

    A stage that reads one that has to run has to run as well.
    """
    found: dict[str, list[str] | None] = {}
    for stage in matrix(profile):
        waiting = [name for other, _ in stage.upstream.values() if found[name := other.address] != []]
        reasons = stage.reasons_to_run()
        if waiting and reasons is not None:
            reasons = [*reasons, f"reads {waiting[0]}" + (f" and {len(waiting) - 1} more" if waiting[1:] else "")]
        found[stage.address] = reasons
    return found


def begin(kind: str, namespace: Mapping[str, Any]) -> Stage:
    """Open the stage that a notebook's parameters name; the first call of every notebook.

    Parameters
    ----------
    kind : a name in `KINDS`
    namespace : the notebook's ``globals()``; its plain values (numbers, texts, lists) are the parameters

    Raises
    ------
    CompanionError
        A parameter is unknown, misspelt, ill-typed or not in the profile's matrix, or an input has not been made.
    """
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and (value is None or isinstance(value, (bool, int, float, str, list, tuple, dict)))
        and name not in ("In", "Out")
    }  # fmt: skip
    stage = open_stage(KINDS[kind], given)
    absent = [f"{n}: {s.folder}" for n, (s, _) in stage.upstream.items() if provenance.read_stamp(s.folder) is None]
    if absent:
        raise problems(
            f"{stage.kind.notebook} needs artifacts that have not been made; `companion run "
            f"{stage.profile.name} --dataset {stage.profile.dataset}` makes them:", absent[:5])  # fmt: skip
    stage.folder.mkdir(parents=True, exist_ok=True)
    files = {name: provenance.signature(stage.folder / name) for name in provenance.artifacts(stage.folder)}
    return replace(stage, found={"code": stage.code(), "inputs": stage.input_hashes(), "files": files})


def open_stage(kind: Kind, given: Mapping[str, Any]) -> Stage:
    """The stage that notebook parameters name; see `begin` for what is refused."""
    source = f"parameters of {kind.notebook}"
    valid = ["profile", "dataset", *(kind.keys or ["splits"]), *kind.knobs]
    if unknown := [name for name in given if name not in valid]:
        raise problems(f"{source}: no such parameter", [f"{name}; {nearest(name, valid)}" for name in unknown])
    named = validate(_Named, dict(given), source)
    profile = load_profile(named.profile, dataset=named.dataset, **({"splits": named.splits} if named.splits else {}))
    profile = _with_knobs(profile, {kind.knobs[k]: given[k] for k in kind.knobs if given.get(k) is not None}, source)
    keys = {}
    for name in kind.keys:
        try:
            keys[name] = TypeAdapter(KEYS[name]).validate_python(given[name])
        except (KeyError, ValueError):
            raise CompanionError(f"{source}: {name} = {given.get(name)!r} is not a {name}; see the profile") from None
    if "split" in keys and keys["split"] not in profile.splits:
        profile = profile.model_copy(update={"splits": [keys["split"]]})
    stage = Stage(kind, keys, profile)
    here = [other for other in matrix(profile) if other.kind is kind]
    if stage.address not in {other.address for other in here}:
        names = ", ".join(other.address for other in here) or "none"
        study = "; it needs exact truth: dataset phantom, and a profile whose extensions.studies names it"
        raise CompanionError(
            f"{source}: {stage.address} is not in profile '{profile.name}' on {dataset_name(profile.dataset)}, which "
            f"has: {names}{study if kind.study else ''}"
        )
    return stage


def _with_knobs(profile: Profile, knobs: Mapping[str, Any], source: str) -> Profile:
    values = profile.model_dump()
    for place, value in knobs.items():
        *sections, name = place.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    return validate(Profile, values, source) if knobs else profile


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix or "(all)": value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
