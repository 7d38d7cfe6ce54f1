"""The Makefile: both ways of installing ask for the same packages, and how many cores each profile gets."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def recipe(target: str, *variables: str, path: str | None = None, **environment: str) -> str:
    """What `make target` would do, nothing of it done; as in a checkout without an environment."""
    cleared = {k: v for k, v in os.environ.items() if k not in ("CORES", "PROFILE", "MAKEFLAGS", "MAKELEVEL")}
    place = {**cleared, **({"PATH": f"{path}:{os.environ['PATH']}"} if path else {}), **environment}
    command = ["make", "--dry-run", target, "VENV=/nonexistent/venv", *variables]
    return subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True, check=True).stdout


def extras(text: str) -> set[str]:
    (found,) = re.findall(r"'\.\[([a-z,]+)\]'", text)
    return set(found.split(","))


def test_an_installation_without_a_network_finds_every_extra_in_the_wheelhouse() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras(recipe("wheelhouse")) == extras(recipe("install")) == set(offered)
    assert "pip wheel --wheel-dir" in recipe("wheelhouse"), "what has no wheel must be built where there is a network"


def test_an_installation_beside_a_wheelhouse_asks_no_network(tmp_path: Path) -> None:
    (tmp_path / "torch-2.9.0-py3-none-any.whl").touch()
    assert f"--no-index --find-links {tmp_path}" in recipe("install", f"WHEELHOUSE={tmp_path}")
    assert "--no-index" not in recipe("install", f"WHEELHOUSE={tmp_path / 'none'}")


@pytest.mark.parametrize(("profile", "cores"), [("smoke", "2"), ("mini", "2"), ("course", "7"), ("paper", "7")])
def test_profiles_for_a_gpu_get_all_cores(profile: str, cores: str, tmp_path: Path) -> None:
    (tmp_path / "nproc").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "nproc").chmod(0o755)
    assert f"companion run {profile} --cores {cores}\n" in recipe(profile, path=str(tmp_path))
    assert f"companion run {profile} --cores 5\n" in recipe(profile, "CORES=5", path=str(tmp_path))


def test_every_data_file_of_the_package_is_in_a_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["companion"]
    package = ROOT / "src" / "companion"
    files = [p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert {"throughputs.yaml", "phantom/difficulty.json"} <= set(data)
    # As setuptools reads them: '*' does not cross a folder.
    missing = [n for n in data if not any(fnmatch(n, p) and n.count("/") == p.count("/") for p in patterns)]
    assert not missing, f"{missing}: name them in pyproject.toml, [tool.setuptools.package-data]"
