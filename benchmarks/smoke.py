"""What the smoke profile must reach, measured: ``python benchmarks/smoke.py [--again]``.

Runs the smoke profile on the phantom from nothing in a temporary folder (``--again``: twice, and compares the
scores to the bit), prints a table and appends it as a line of JSON to ``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from companion import provenance
from companion.measurements import record

AIMS = {
    "smoke profile, all notebooks [s]": "<= 480 on 2 cores",
    "import companion [s]": "<= 0.3",
    "peak memory of a notebook [MiB]": "<= 4096",
    "F1_detect, EXP, phantom, IoU 0.5, confidence 0.5": ">= 0.4",
    "F1_detect, EXP+GEN, phantom, IoU 0.5, confidence 0.5": ">= 0.4",
    "generated defects darker than their surroundings [share]": ">= 0.9",
    "scores of a second run equal to the bit": "yes",
}


def run_smoke(folder: Path, cores: int) -> float:
    """Seconds of `companion run smoke` from nothing."""
    environment = {**os.environ, "COMPANION_RUNS": str(folder / "runs"), "COMPANION_DATA": str(folder / "data")}
    command = [sys.executable, "-m", "companion.cli", "run", "smoke", "--cores", str(cores)]
    began = time.monotonic()
    subprocess.run(command, env=environment, check=True)
    return time.monotonic() - began


def measure(tree: Path) -> dict[str, float]:
    """Figures of a finished run, from its files."""
    scores = pd.read_parquet(tree / "thresholds" / "scores.parquet")
    row = scores[(scores["iou_threshold"] == 0.5) & (scores["confidence"] == 0.5)]
    quality = pd.read_parquet(next(tree.glob("split-*/n-*/generator-*/generated-plain/quality.parquet")))
    stamps = [provenance.read_stamp(path.parent) for path in tree.rglob(provenance.STAMP)]
    return {
        "peak memory of a notebook [MiB]": max(stamp["peak_memory_mib"] for stamp in stamps),
        **{
            f"F1_detect, {arm}, phantom, IoU 0.5, confidence 0.5": float(group["f1_detect"].mean())
            for arm, group in row.groupby("arm")
        },
        "generated defects darker than their surroundings [share]": float(
            quality.set_index("measure").loc["darker inside its mask", "value"]
        ),
    }


def import_seconds() -> float:
    """Median of five fresh interpreters, less an interpreter that imports nothing."""

    def timed(statement: str) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.monotonic() - began

    return statistics.median(timed("import companion") for _ in range(5)) - min(timed("pass") for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="run twice and compare the scores to the bit")
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        found: dict[str, float | str] = {"smoke profile, all notebooks [s]": run_smoke(Path(first), given.cores)}
        found["import companion [s]"] = import_seconds()
        tree = Path("runs", "smoke", "phantom")
        found |= measure(first / tree)
        if given.again:
            run_smoke(Path(second), given.cores)
            pair = [(Path(f) / tree / "thresholds" / "scores.parquet").read_bytes() for f in (first, second)]
            found["scores of a second run equal to the bit"] = "yes" if pair[0] == pair[1] else "NO"
    for name, aim in AIMS.items():
        value = found.get(name, "not measured")
        print(f"{name:<60} {value if isinstance(value, str) else f'{value:.3f}':>14}   aim {aim}")
    record("smoke", measured=found)


if __name__ == "__main__":
    main()
