"""Distribution shift: detectors that a run has trained, tested on micrographs of another kind."""

from __future__ import annotations

from typing import Any

import pandas as pd

from companion.config.phantom import Phantom
from companion.config.sections import Shift
from companion.studies.comparison import paired_effects

SOURCE = "as trained"


def test_phantoms(phantom: Phantom, shifts: dict[str, Shift], n_test: int) -> dict[str, Phantom]:
    """Phantoms of the test domains by name: `SOURCE` first, then one for each shift, each of `n_test` micrographs.

    Scenes are drawn by the number of the micrograph, so that one that changes the dose shows the very same defects.
    """
    values: dict[str, Any] = {**phantom.model_dump(), "n_images": n_test}
    return {SOURCE: Phantom(**values), **{name: Phantom(**values | shift.changes()) for name, shift in shifts.items()}}


def effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """What a shift costs, what EXP+GEN gains on the shifted micrographs, and how much of the gain the shift takes.

    Parameters
    ----------
    scores : against the truth, a row per detector and domain: tested (its name), arm, seed, and the measures

    Returns
    -------
    tested, quantity (loss of EXP: as trained minus shifted; gain: EXP+GEN minus EXP; binding: gain as trained minus
    gain shifted), measure, mean, low, high, n; paired by seed
    """
    rows = []
    for tested in [name for name in dict.fromkeys(scores["tested"]) if name != SOURCE]:
        own = scores[scores["tested"].isin((SOURCE, tested))]
        table = own.assign(column=own["tested"].eq(SOURCE).map({True: "trained ", False: "shifted "}) + own["arm"])
        rows += paired_effects(table, {
            "loss of EXP": lambda w: w["trained EXP"] - w["shifted EXP"],
            "gain": lambda w: w["shifted EXP+GEN"] - w["shifted EXP"],
            "binding": lambda w: (w["trained EXP+GEN"] - w["trained EXP"]) - (w["shifted EXP+GEN"] - w["shifted EXP"]),
        }, level, tested=tested)  # fmt: skip
    return pd.DataFrame(rows)
