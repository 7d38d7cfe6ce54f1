"""Studies beyond the paper: scores against the truth, paired effects, and when they mean something."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches

from companion.config.phantom import Phantom
from companion.config.sections import Evaluation, Faithfulness, Shift
from companion.studies import annotation_bias, comparison, distribution_shift, faithfulness


def perfect(patches, drop=0):
    """Predictions that are the labels, without the first `drop` of them."""
    found = patches.table.rename(columns={"class": "label"}).assign(score=0.8)
    return found[["patch", "x1", "y1", "x2", "y2", "score", "label"]].iloc[drop:]


def rows(arm, seed, f1, **keys):
    return {"arm": arm, "seed": seed, **dict.fromkeys(comparison.MEASURES, f1), **keys}


def test_scores_keep_every_key_and_thresholds_are_chosen_elsewhere():
    patches = ellipse_patches(12)
    keys = {"split": "1", "n_train": 4, "arm": "EXP", "seed": 1}
    runs = [comparison.run_of(keys | {"labels": name}, perfect(patches, drop), patches)
            for name, drop in (("exact", 0), ("annotator", 5))]  # fmt: skip
    table = comparison.scores(runs, Evaluation())
    chosen = comparison.at_chosen(table, table, ["labels", "arm"]).set_index("labels")
    assert chosen.loc["exact", "f1_detect"] == 1 and chosen.loc["exact", "confidence"] <= 0.8
    assert chosen.loc["annotator", "fn"] == 5


def test_cost_and_amplification_by_hand():
    table = pd.DataFrame(
        [rows(arm, seed, f1 + 0.01 * seed, labels=labels) for seed in (1, 2, 3) for labels, arm, f1 in (
            ("exact", "EXP", 0.7), ("annotator", "EXP", 0.6), ("exact", "EXP+GEN", 0.8), ("annotator", "EXP+GEN", 0.5),
        )]
    )  # fmt: skip
    found = annotation_bias.effects(table, 0.95).query("measure == 'f1_detect'").set_index("quantity")["mean"]
    assert found.to_dict() == pytest.approx({"cost, EXP": 0.1, "cost, EXP+GEN": 0.3, "amplification": 0.2})


def test_loss_gain_and_binding_by_hand():
    table = pd.DataFrame(
        [rows(arm, seed, f1, tested=tested) for seed in (1, 2) for tested, arm, f1 in (
            ("as trained", "EXP", 0.7), ("as trained", "EXP+GEN", 0.75),
            ("dose", "EXP", 0.4), ("dose", "EXP+GEN", 0.42),
        )]
    )  # fmt: skip
    found = distribution_shift.effects(table, 0.95).query("measure == 'recall'").set_index("quantity")
    assert found["mean"].to_dict() == pytest.approx({"loss of EXP": 0.3, "gain": 0.02, "binding": 0.03})
    assert (found["tested"] == "dose").all() and (found["n"] == 2).all()


def test_there_is_no_verdict_on_detectors_that_hardly_detect():
    good, poor = (pd.DataFrame([rows("EXP", 1, f1), rows("EXP+GEN", 1, f1)]) for f1 in (0.7, 0.2))
    assert comparison.verdict(0.01, 0.1, "helps", "harms", good) == "helps"
    assert comparison.verdict(-0.1, -0.01, "helps", "harms", good) == "harms"
    assert comparison.verdict(-0.1, 0.01, "helps", "harms", good) == "undecided"
    assert comparison.verdict(0.01, 0.1, "helps", "harms", poor) == "no verdict"
    assert "hardly detect" in comparison.standing(poor) and "hardly detect" not in comparison.standing(good)


def test_a_shift_changes_what_it_names_and_nothing_else():
    shifts = {"dose": Shift(dose_electrons=50.0), "scale": Shift(pixel_size_nm=0.6)}
    found = distribution_shift.test_phantoms(Phantom(), shifts, 3)
    assert list(found) == ["as trained", "dose", "scale"] and {p.n_images for p in found.values()} == {3}
    assert found["dose"].dose_electrons == 50 and found["dose"].magnifications == found["as trained"].magnifications
    assert found["scale"].magnifications == {"shifted": (0.6, 1.0)}


def test_faithfulness_counts_found_and_confirmed_defects():
    patches = ellipse_patches(12)
    wrong = perfect(patches).assign(
        label=lambda t: np.where(t["patch"] == t["patch"].iloc[0], t["label"] % 3 + 1, t["label"])
    )
    found = faithfulness.found_defects({"all": (patches, perfect(patches)), "wrong": (patches, wrong)}, Faithfulness())
    by = found.groupby("images")["error"].value_counts()
    first = int((patches.table["patch"] == patches.table["patch"].iloc[0]).sum())
    assert by["all"].to_dict() == {"correct": len(patches.table)} and by["wrong"]["class"] == first
    shares = faithfulness.shares(found, "class", np.random.default_rng(1), 50, 0.95)
    assert (shares.loc[shares["images"] == "all", "recall"] == 1).all()


def test_the_filter_keeps_confirmed_pairs_and_empty_masks():
    patches = ellipse_patches(12)
    busy = int(patches.table["patch"].value_counts().idxmax())
    blind = perfect(patches)[lambda t: t["patch"] != busy]
    found = faithfulness.found_defects({"generated": (patches, blind)}, Faithfulness())
    kept = faithfulness.consistent(patches, found, 0.5)
    assert len(kept) == len(patches) - 1 and len(kept.table) == len(blind)
