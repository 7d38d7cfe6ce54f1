"""The harness that tries what a run survives (benchmarks/faults.py) sees what went wrong."""

from __future__ import annotations

import random

import disturbed
import faults


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
