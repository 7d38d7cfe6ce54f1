"""How hard a phantom is: what the reference detector reached on it, as ``benchmarks/calibration.py --record`` wrote.

A measurement holds for the parameters and for the code that drew the micrographs; after either has changed the card
says that the phantom is not calibrated until the benchmark is recorded again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from companion.config.phantom import Phantom
from companion.provenance import code_hashes, hash_value, write_json

MEASURED = Path(__file__).with_name("difficulty.json")
DRAWN_BY = ("companion.phantom.scene", "companion.phantom.optics", "companion.phantom.annotator")
FILES = ("companion/phantom/", "companion/geometry.py", "companion/seeds.py")  # of what they import


def look(parameters: Phantom) -> str:
    """Hash of all parameters that decide how a phantom's micrographs look and are labelled; not of how many."""
    return hash_value(parameters.model_dump(mode="json", exclude={"preset", "n_images"}))


def code() -> str:
    """Hash of the code that draws, images and labels a phantom."""
    return hash_value({name: sha for name, sha in code_hashes(*DRAWN_BY).items() if name.startswith(FILES)})


def difficulty(parameters: Phantom) -> str:
    """One sentence for the data set card: F1 of the reference detector by number of training micrographs.

    F1_detect and F1_class are those of real-arm training alone (EXP) on held-out micrographs at IoU 0.5, at the
    confidence that is best on these very micrographs.
    """
    known = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    if (measured := known.get(look(parameters))) is None:
        return "not calibrated with these parameters"
    if measured.get("code") != code():
        return "not calibrated: measured with these parameters before the code of the phantom changed"
    rows = "; ".join(f"N={r['n_train']}: {r['f1_detect']:.2f} and {r['f1_class']:.2f}" for r in measured["rows"])
    gain = next(g for g in measured["gain"] if g["measure"] == "f1_hm")
    return (
        f"F1_detect and F1_class of {measured['detector']}, trained on micrographs alone, at the confidence that is "
        f"best on the test micrographs themselves: {rows}; F1_HM gains {gain['difference']:.2f} from the first to the "
        f"last (95 % interval {gain['low']:.2f} to {gain['high']:.2f})"
    )


def record(parameters: Phantom, detector: str, rows: list[dict[str, Any]], gain: list[dict[str, Any]]) -> None:
    """Keep what was measured for a phantom, beside this file: rows by number of micrographs, gain by measure."""
    known = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    entry = {"preset": parameters.preset, "code": code(), "detector": detector, "rows": rows, "gain": gain}
    write_json(MEASURED, {**known, look(parameters): entry})
