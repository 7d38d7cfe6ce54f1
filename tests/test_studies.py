"""Studies beyond the paper: confirmed pairs, edited masks, differences of differences, and their figures."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches

from companion.config.sections import Faithfulness
from companion.studies import comparison, faithfulness, plots


def table(column: str, values: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Scores of two seeds: as given for the first and 0.02 more for the second, by (column, arm)."""
    return pd.DataFrame(
        {column: name, "arm": arm, "seed": seed, **dict.fromkeys(comparison.MEASURES, value + 0.02 * seed)}
        for ((name, arm), value), seed in product(values.items(), (0, 1))
    )


def test_what_an_annotator_costs_and_what_generation_adds():
    scores = table("labels", {("exact", "EXP"): 0.8, ("annotator", "EXP"): 0.7, ("exact", "EXP+GEN"): 0.9,
                              ("annotator", "EXP+GEN"): 0.75})  # fmt: skip
    named = scores.assign(column=scores["labels"] + " " + scores["arm"])
    found = comparison.paired_effects(named, comparison.COSTS, 0.95)
    means = found[found["measure"] == "f1_detect"].set_index("quantity")["mean"]
    assert means.to_dict() == pytest.approx({"cost, EXP": 0.1, "cost, EXP+GEN": 0.15, "amplification": 0.05})
    assert comparison.verdict(0.01, 0.1, "amplified", "dampened", scores) == "amplified"
    assert comparison.verdict(-0.01, 0.1, "amplified", "dampened", scores) == "undecided"
    poor = comparison.verdict(0.01, 0.1, "amplified", "dampened", scores.assign(f1_detect=0.49))
    assert poor.startswith("no verdict") and "EXP 0.49, EXP+GEN 0.49" in poor
    plots.scores_by(scores, "labels", ["f1_detect", "recall"], "phantom")


def test_what_a_shift_costs_and_binds():
    scores = table("tested", {("as trained", "EXP"): 0.7, ("as trained", "EXP+GEN"): 0.8, ("low dose", "EXP"): 0.5,
                              ("low dose", "EXP+GEN"): 0.53})  # fmt: skip
    found = comparison.shift_effects(scores, 0.95)
    means = found[found["measure"] == "f1_hm"].set_index("quantity")["mean"]
    assert means.to_dict() == pytest.approx({"loss of EXP": 0.2, "gain": 0.03, "binding": 0.07})
    figure = plots.differences(found, "tested", ["f1_detect", "f1_class"], "phantom", "difference")
    assert [len(axes.containers) for axes in figure.axes] == [3, 3]


def test_the_threshold_is_that_of_the_other_table():
    swept = pd.DataFrame({"confidence": [0.3, 0.6] * 2, "f1_detect": [0.5, 0.7, 0.6, 0.7], "seed": [0, 0, 1, 1]})
    swept["arm"] = "EXP"
    there = comparison.at_chosen(swept, swept.assign(f1_detect=[0.9, 0.1, 0.8, 0.2]), ["arm"])
    assert there["f1_detect"].tolist() == [0.5, 0.6]


def test_a_perfect_detector_confirms_every_pair_and_a_blind_one_only_empty_masks():
    patches, settings = ellipse_patches(12), Faithfulness()
    perfect = patches.table.rename(columns={"class": "label"}).assign(score=0.9)
    found = faithfulness.found_defects({"all": (patches, perfect), "none": (patches, perfect[:0])}, settings)
    assert found.groupby("images")["error"].unique().map(list).to_dict() == {"all": ["correct"], "none": ["missed"]}
    rng = np.random.default_rng(0)
    shares = faithfulness.shares(found, "class", rng, 20, 0.95).set_index("images")
    assert shares.loc["all", ["recall", "agreement"]].eq(1).all(axis=None) and shares.loc["none", "recall"].eq(0).all()
    assert len(faithfulness.consistent(patches, found[found["images"] == "all"], 1.0)) == 12
    empty = 12 - patches.table["patch"].nunique()
    assert len(faithfulness.consistent(patches, found[found["images"] == "none"], 0.5)) == empty > 0
    plots.faithfulness({by: faithfulness.shares(found, by, rng, 9, 0.9) for by in ("class", "size")}, "")


def test_an_edited_defect_goes_where_it_is_told_and_an_obedient_image_keeps_its_contrast():
    patches = ellipse_patches(12)
    whole = patches.table[~patches.table["touches_border"]]
    defects = whole.loc[whole.groupby("patch")["area_px"].idxmax()]
    masks = {name: faithfulness.edited(patches, defects, change) for name, change in faithfulness.EDITS.items()}
    before = masks["as simulated"].table.merge(defects[["patch", "instance"]]).set_index("patch")
    after = {name: edit.table.merge(defects[["patch", "instance"]]).set_index("patch") for name, edit in masks.items()}
    sides = [t[["x2", "y2"]].to_numpy() - t[["x1", "y1"]].to_numpy() for t in (before, after["turned"])]
    assert np.allclose(sides[0], sides[1][:, ::-1]) and after["turned"]["area_px"].equals(before["area_px"])
    assert (after["moved"]["x1"] - before["x1"]).abs().eq(patches.size // 4).all() and not len(after["removed"])
    assert after["grown"]["area_px"].gt(before["area_px"]).all()
    drawn = {name: replace(edit, images=np.where(edit.instances > 0, 80, 160)) for name, edit in masks.items()}
    kept = faithfulness.contrast_kept(drawn, defects, np.random.default_rng(0), 20, 0.95).set_index("edit")
    assert kept["kept"].drop("removed").eq(1).all() and kept["contrast"].iloc[0] == 0.5
    assert abs(kept.loc["removed", "kept"]) < 0.2  # where it was, another defect may lie
