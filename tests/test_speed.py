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


def test_the_page_on_choices_says_of_its_detectors_what_its_table_shows() -> None:
    rows = [line.split(" | ") for line in tables.schedule([*tables.RECORDS][-1]).splitlines()]
    gain = {(n, arm, steps): [*map(float, by.split(";"))] for n, arm, steps, _, by, *_ in rows[2:] if by}
    assert min(gain["| 50", "EXP", "4000"]) > 0.01 > max(gain["| 50", "EXP", "8000"] + gain["| 10", "EXP", "4000"])
    test = {(n, arm, steps): float(first.split()[0]) for n, arm, steps, first, *_ in rows[2:]}
    assert test["| 50", "EXP+GEN", "4000"] < test["| 50", "EXP", "4000"]
    assert all(test["| 10", "EXP+GEN", steps] > test["| 10", "EXP", steps] for steps in ("2000", "4000"))
    assert min(gain["| 50", "EXP, 16 regions", "8000"] + gain["| 50", "EXP, half the width", "8000"]) > 0.01


def test_an_aim_is_met_missed_or_not_measured() -> None:
    asked = {"what": "detector, training", "network": "tiny, batch 8"}
    told = [asked | {"way": "torchvision", "images_per_s": 100.0}, asked | {"way": "recorded", "images_per_s": 299.0}]
    rows = {row.split(" | ")[0]: row for row in tables.aims(told).splitlines()}
    assert rows["| reference's detector, training, times torchvision"].endswith("| 2.99 | missed |")
    assert rows["| R50 detector, training, times torchvision"].endswith("|  | not measured |")
    told += [{"what": tables.FAST, "network": "reference", tables.TEN: 1.5}]
    (row,) = (row for row in tables.aims(told).splitlines() if "reference's networks" in row)
    assert row.endswith("| ≤ 1.5 | 1.5 | met |")
