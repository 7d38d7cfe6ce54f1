"""The first page's answer follows from an interval; what pages say first comes from the files of a run."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from project import ROOT
from statsmodels.stats.power import TTestPower

from companion.config import load_profile
from companion.evaluation.significance import paired_scores, paired_tests
from companion.layout import Layout
from companion.plots import data_name
from companion.provenance import write_json
from companion.workflow import answer, book, found, reference_run


def chosen(gain: float, spread: float, seeds: int = 4) -> pd.DataFrame:
    """Scores of two splits and N: EXP+GEN is better by `gain`, and by `spread` more from seed to seed."""
    rows = [
        (split, n, arm, seed, *[0.5 + (arm == "EXP+GEN") * (gain + spread * (seed - (seeds + 1) / 2))] * 3)
        for split in "12" for n in (10, 50) for arm in ("EXP", "EXP+GEN") for seed in range(1, seeds + 1)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["split", "n_train", "arm", "seed", "f1_detect", "f1_class", "f1_hm"])
    return table.assign(choice="chosen on validation", against="labels", map50=0.5)


@pytest.mark.parametrize(("gain", "spread", "begins", "holds"), [
    (0.05, 0.01, "Yes, on X", ""), (-0.05, 0.01, "No, on X", ""), (0.0, 0.01, "Not shown, on X", "does not hold"),
    (0.01, 0.05, "Not shown, on X", "does hold"), (0.05, 0.0, "Not known, on X", "too few"),
])  # fmt: skip
def test_the_answer_follows_from_the_interval(gain: float, spread: float, begins: str, holds: str) -> None:
    pairs = paired_scores(chosen(gain, spread))
    said, alone = answer.sentence(pairs, "f1_hm", "X", 0.95)
    assert said.startswith(begins) and holds in said and "N = 10: " in alone


def test_where_one_n_gains_and_another_loses_their_mean_is_no_answer() -> None:
    pairs = paired_scores(chosen(0.05, 0.01))
    pairs.loc[pairs["n_train"] == 50, "difference"] *= -1
    said, each = answer.sentence(pairs, "f1_hm", "X", 0.95)
    assert said.startswith("On X it depends") and "where 10 micrographs are labelled, and lower it where 50 are" in said
    assert "N = 10: +0.050 (95 %" in each and "N = 50: −0.050 (95 %" in each


def test_the_mean_change_has_the_interval_and_the_power_of_its_pooled_spread() -> None:
    one = answer.change(paired_scores(chosen(0.01, 0.02)).query("split == '1' and n_train == 10"), "f1_hm", 0.95)
    test = paired_tests(paired_scores(chosen(0.01, 0.02))).query("measure == 'f1_hm'").iloc[0]
    assert (one.low, one.high, one.n) == (pytest.approx(test["low"]), pytest.approx(test["high"]), 4)
    assert one.chance == one.chance_of_one == pytest.approx(TTestPower().power(0.02 / test["sd"], 4, 0.05), abs=1e-6)
    four = answer.change(paired_scores(chosen(0.01, 0.02)), "f1_hm", 0.95)
    assert four.high - four.low < (one.high - one.low) / 2 and four.chance > one.chance  # 12 degrees of freedom, not 3
    assert np.isnan(answer.change(paired_scores(chosen(0.01, 0.02, seeds=1)), "f1_hm", 0.95).low)


def test_real_micrographs_have_a_number_where_they_were_run_and_else_none(tmp_path: Path) -> None:
    assert answer.real(None)[0] == "not run yet"
    said = {"images": 16, "level": 0.95, "gains": [{"arm": "EXP+GEN", "gain": 0.05, "low": 0.02, "high": 0.08}]}
    write_json(tmp_path / "real.json", said)
    value, what, said = answer.real(tmp_path)
    assert "generated images raise F1_detect" in said
    assert value.startswith("+0.050 (95 % interval 0.020") and what == "F1_detect on 16 real micrographs, better"


def test_the_readme_says_what_the_committed_runs_found() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    P, results = load_profile("reference"), ROOT / "results"
    at = {"07_thresholds": results / "reference" / P.dataset / "thresholds"}
    pairs, _, measure = answer.tables(answer.Results(P, at))
    said, _ = answer.sentence(pairs, measure, data_name(P.dataset), P.evaluation.confidence_level)
    *_, on_real = answer.real(results / "real" / "loops_316L" / "real-micrographs")
    assert said in readme and re.search("On [^<]*", on_real)[0].strip() in readme


def test_every_notebook_has_something_to_say_first() -> None:
    P = load_profile("smoke")
    folders = book.shown(P, Layout(P).tree)
    if set(folders) != set(found.PAGES) - {reference_run.REAL}:
        pytest.skip("no finished smoke run: `make smoke` makes one")
    for name, (figure, _) in ((name, found.PAGES[name]) for name in folders):
        said = found.sentences(name, found.Results(P, folders))
        assert len(said) == 4 and not any("nan" in text.split() for text in said), name
        assert not figure or (folders[name] / "figures" / f"{figure}.png").is_file(), name
