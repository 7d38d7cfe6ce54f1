"""Distribution shift: detectors that a run has trained, tested on micrographs of another kind."""

from __future__ import annotations

from typing import Any

import pandas as pd

from companion.config.phantom import Phantom
from companion.config.sections import Shift
from companion.studies.comparison import SHIFTS, paired_effects

SOURCE = "as trained"


def test_phantoms(phantom: Phantom, shifts: dict[str, Shift], n_test: int) -> dict[str, Phantom]:
    """Phantoms of the test domains by name: `SOURCE` first, then one for each shift, each of `n_test` micrographs.

    Scenes are drawn by the number of the micrograph, so that one that changes the dose shows the very same defects.
    """
    values: dict[str, Any] = {**phantom.model_dump(), "n_images": n_test}
    return {SOURCE: Phantom(**values), **{name: Phantom(**values | shift.changes()) for name, shift in shifts.items()}}


def effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """`comparison.SHIFTS` of every domain: tested, quantity, measure, mean, low, high, n; paired by seed.

    Parameters
    ----------
    scores : against the truth, a row per detector and domain: tested (its name), arm, seed, and the measures
    """
    trained, tables = scores[scores["tested"] == SOURCE], []
    for tested, own in scores[scores["tested"] != SOURCE].groupby("tested", sort=False):
        both = pd.concat(
            [trained.assign(column="trained " + trained["arm"]), own.assign(column="shifted " + own["arm"])]
        )
        tables.append(paired_effects(both, SHIFTS, level).assign(tested=tested))
    return pd.concat(tables, ignore_index=True)
