"""environment.yml (conda) and pyproject.toml (pip) ask for the same packages in the same versions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
# pip's name -> conda's, where they differ.
CONDA_NAMES = {"opencv-python-headless": "opencv", "snakemake": "snakemake-minimal", "torch": "pytorch"}
ONLY_CONDA = {"detectron2", "pip"}


def pip_packages() -> dict[str, SpecifierSet]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    found = {}
    for requirement in map(Requirement, lines):
        found[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement.specifier
    return {**found, "python": SpecifierSet(project["requires-python"])}


def conda_packages() -> dict[str, SpecifierSet]:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    requirements = [Requirement(entry) for entry in [*entries, *by_pip] if isinstance(entry, str)]
    assert len({r.name for r in requirements}) == len(requirements), "a package is named twice"
    return {requirement.name: requirement.specifier for requirement in requirements}


def test_both_name_the_same_packages() -> None:
    assert conda_packages().keys() - ONLY_CONDA == pip_packages().keys()


def test_both_ask_for_the_same_versions() -> None:
    conda = conda_packages()
    differing = {
        name: (str(spec), str(conda.get(name))) for name, spec in pip_packages().items() if conda.get(name) != spec
    }
    assert not differing, f"pyproject.toml and environment.yml differ: {differing}"


def test_detectron2_is_offered_where_it_can_be_had() -> None:
    assert "detectron2" in conda_packages() and "detectron2" not in pip_packages()
