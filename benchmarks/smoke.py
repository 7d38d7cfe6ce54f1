"""What the smoke profile must reach, measured: ``python benchmarks/smoke.py [--again]``.

Runs the smoke profile on the phantom from nothing in a temporary folder (``--again``: twice, and compares the scores to
the bit) and prints a table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from companion.workflow import freshness


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
    row = scores[(scores["iou_threshold"] == 0.5) & (scores["confidence"] == 0.5)].groupby("arm")["f1_detect"].mean()
    peak = max((freshness.read_stamp(folder) or {})["peak_memory_mib"] for folder in freshness.stages(tree))
    return {"peak memory of a notebook / MiB": peak, **{f"F1_detect, {arm}": value for arm, value in row.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="run twice and compare")
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("first", "second")[: 1 + given.again]]
        seconds = [run_smoke(folder, given.cores) for folder in folders]
        trees = [folder / "runs" / "smoke" / "phantom" for folder in folders]
        figures = {"smoke profile / s": seconds[0], **measure(trees[0])}
        if given.again:
            first, second = (pd.read_parquet(tree / "thresholds" / "scores.parquet") for tree in trees)
            figures["scores equal to the bit"] = first.equals(second)
        print(pd.Series(figures).to_string())


if __name__ == "__main__":
    main()
