"""The benchmark of speed (benchmarks/speed.py) runs without a GPU, and its records are the tables that pages show."""

import json
from pathlib import Path

import pytest
import speed
import tables
from bench import Bench


@pytest.mark.slow
@pytest.mark.parametrize("block", ["card", "correct", "detector", "diffusion"])
def test_a_block_finds_nothing_wrong(block: str, tmp_path_factory, capfd) -> None:
    work = tmp_path_factory.getbasetemp() / "speed"  # whose patches are drawn once
    work.mkdir(exist_ok=True)
    speed.BLOCKS[block](Bench("cpu", 0.01, work))
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert found and not [line for line in found if line["ok"] is False]


@pytest.mark.parametrize("record", tables.RECORDS, ids=lambda path: path.name)
def test_a_recorded_table_is_that_of_its_lines(record: Path) -> None:
    assert record.with_suffix(".md").read_text(encoding="utf-8") == tables.RECORDS[record](record)


def test_an_aim_is_met_missed_or_not_measured() -> None:
    asked = {"what": "detector, training", "network": "tiny, batch 8"}
    told = [asked | {"way": "torchvision", "images_per_s": 100.0}, asked | {"way": "recorded", "images_per_s": 299.0}]
    rows = {row.split(" | ")[0]: row for row in tables.aims(told).splitlines()}
    assert rows["| reference's detector, training, times torchvision"].endswith("| 2.99 | missed |")
    assert rows["| R50 detector, training, times torchvision"].endswith("|  | not measured |")
    told += [{"what": tables.FAST, "network": "reference", tables.TEN: 1.5}]
    (row,) = (row for row in tables.aims(told).splitlines() if "reference's networks" in row)
    assert row.endswith("| ≤ 1.5 | 1.5 | met |")
