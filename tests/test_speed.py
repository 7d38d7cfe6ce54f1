"""The benchmark of speed (benchmarks/speed.py) runs without a GPU, and its records are the tables that pages show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import speed
import tables
from bench import Bench

EXPECTED = {
    "card": {"card", "matrix product", "copy"},
    "correct": {
        "detector, float32", "detector, bfloat16", "suppression", "pasted masks", "region pooling", "denoiser, float32",
        "autoencoder, three steps", "four samples", "stopped and continued", "recorded against called", "waits",
        "detections",
    },
    "detector": {"detector, training", "detector, prediction"},
    "diffusion": {
        "denoiser, training", "sampling, dpm-solver++, 15 steps", "the usual loop: denoiser, training",
        "the usual loop: denoiser, one evaluation", "the usual loop: autoencoder, decoding",
    },
}  # fmt: skip


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("block", EXPECTED)
def test_a_block_finds_nothing_wrong_and_says_everything(block: str, tmp_path_factory, capfd) -> None:
    work = tmp_path_factory.getbasetemp() / "speed"  # whose patches are drawn once
    work.mkdir(exist_ok=True)
    speed.BLOCKS[block](Bench("cpu", 0.01, work))
    found = lines(capfd)
    assert {line["what"] for line in found} == EXPECTED[block]
    assert not [line for line in found if line["ok"] is False]


@pytest.mark.slow
def test_processes_wait_for_each_other_and_a_failed_block_is_told(monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cpu", "--each", "0.01", "--only", "side"])
    monkeypatch.setattr(speed, "START", 60)
    speed.main()
    (side,) = lines(capfd)
    assert side["processes"] == 2 and side["images_per_s"] > 0 and side["together"] > 0
    monkeypatch.setattr(speed, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    speed.main()
    assert lines(capfd) == [{"what": "side", "ok": False, "error": "ended with exit code 3"}]


@pytest.mark.parametrize("record", tables.RECORDS, ids=lambda path: path.name)
def test_a_recorded_table_is_that_of_its_lines(record: Path) -> None:
    assert record.with_suffix(".md").read_text(encoding="utf-8") == tables.page(record)


def test_an_aim_is_met_missed_or_not_measured() -> None:
    asked = {"what": "detector, training", "network": "tiny, batch 8"}
    told = [asked | {"way": "torchvision", "images_per_s": 100.0}, asked | {"way": "recorded", "images_per_s": 299.0}]
    rows = {row.split(" | ")[0]: row for row in tables.aims(told).splitlines()}
    assert rows["| reference's detector, training, times torchvision"].endswith("| 2.99 | missed |")
    assert rows["| R50 detector, training, times torchvision"].endswith("|  | not measured |")
    told += [{"what": tables.FAST, "network": "reference", tables.TEN: 1.5}]
    (row,) = (row for row in tables.aims(told).splitlines() if "reference's networks" in row)
    assert row.endswith("| ≤ 1.5 | 1.5 | met |")
