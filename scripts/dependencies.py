"""The list of pinned packages with their licences: ``python scripts/dependencies.py > book/dependencies.md``."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Packages and licences

What `requirements.lock` pins, with the licence that each package states of itself. `make audit` writes this list anew
and asks `pip-audit` for known vulnerabilities of these versions, which needs a network.

| package | version | licence |
| --- | --- | --- |
"""


def pinned(lock: Path) -> dict[str, str]:
    """Name -> version of a lock file's lines ``name==version``."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


def licence(package: str) -> str:
    """What an installed package says of its licence, in one line."""
    about = metadata.metadata(package)
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License")]
    stated = about.get("License-Expression") or "; ".join(classifiers) or (about.get("License") or "").split("\n")[0]
    return stated or "not stated"


if __name__ == "__main__":
    rows = pinned(ROOT / "requirements.lock").items()
    print(HEAD + "".join(f"| {name} | {version} | {licence(name)} |\n" for name, version in rows), end="")
