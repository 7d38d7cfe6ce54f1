"""The harness that tries what a run survives (benchmarks/faults.py) sees what went wrong."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import disturbed  # noqa: E402
import faults  # noqa: E402


def test_a_differing_artifact_is_a_failure(tmp_path, monkeypatch):
    project = disturbed.Project(tmp_path)
    trial = faults.Trial(project, {"a/x.json": "1", "a/stamp.json": "2"}, tmp_path, 1, random.Random(1))
    monkeypatch.setattr(disturbed.Project, "results", lambda self: {"a/x.json": "1", "a/stamp.json": "3"})
    assert trial.verdict(project, (0, "")) == "FAILED: 1 artifacts differ, for instance a/stamp.json"
    monkeypatch.setattr(disturbed.Project, "results", lambda self: dict(trial.expected))
    assert trial.verdict(project, (0, "")) == "all 2 artifacts and stamps as undisturbed"
    assert trial.verdict(project, (1, "why")).startswith("FAILED: exit code 1")


def test_only_one_clear_message_is_a_refusal():
    said = "error: another run is working on x"
    assert not faults.refused((2, said), "another run").startswith("FAILED")
    for ended in ((2, "error: something else"), (1, said), (2, "Traceback\nerror: another run")):
        assert faults.refused(ended, "another run").startswith("FAILED")


@pytest.mark.parametrize("way", faults.DAMAGES)
def test_every_way_of_damage_changes_what_lies_there(tmp_path, way):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345678")
    faults.DAMAGES[way](path)
    assert not path.exists() or path.read_bytes() != b"12345678"
