"""Studies beyond the paper: equal conditions, effects by hand, steering, interruption, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ellipse_patches

from companion import paths, stages
from companion.errors import CompanionError
from companion.studies import bias, feedback, shift, study, verdicts
from companion.config.profile import load_profile
from companion.config.phantom import Annotator

TINY = {
    "seeds": [1], "image_px": 128, "n_train": 2, "n_val": 1, "n_test": 1, "n_generated": 4, "denoiser_steps": 2,
    "denoiser_batch": 2, "sampling_steps": 2, "detector_steps": 2, "detector_batch": 2,
    "shifts": {"dark": {"dose_electrons": 20.0}},
}  # fmt: skip


def opened(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **extensions) -> study.Study:
    """A study of a tiny profile whose runs go to `folder`."""
    values = yaml.safe_load((paths.profiles() / "smoke.yaml").read_text(encoding="utf-8"))
    values["extensions"] = {"studies": ["bias", "feedback", "shift"], **TINY, **extensions}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setenv("COMPANION_RUNS", str(folder / "runs"))
    return study.open_study(stages.begin(kind, {"profile": str(folder / "tiny.yaml"), "dataset": "phantom"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"patch_px": 40}, "patch_px 40 should be a multiple of 32"),
        ({"annotators": [{"miss": 0.0}]}, "one without errors"),
        ({"shifts": {"none": {}}}, r"shifts \['none'\] change nothing"),
        ({"studies": ["biass"]}, "'biass'"),
        ({"seeds": [1, 1]}, "names a value twice"),
    ],
)
def test_unusable_numbers_are_refused(given, said):
    with pytest.raises(CompanionError, match=said):
        load_profile("smoke", extensions=given)


def test_studies_run_on_the_phantom_alone_and_only_where_named():
    named = {"bias", "feedback", "shift"}
    assert named <= {s.kind.name for s in stages.matrix(load_profile("smoke"))}
    assert not named & {s.kind.name for s in stages.matrix(load_profile("smoke", dataset="loops_316L"))}
    assert not named & {s.kind.name for s in stages.matrix(load_profile("smoke", extensions={}))}
    with pytest.raises(CompanionError, match="on loops_316L, which has: none; it needs exact truth: dataset phantom"):
        stages.open_stage(stages.KINDS["bias"], {"profile": "smoke", "dataset": "loops_316L"})


def test_an_annotators_errors_are_in_the_labels_and_not_in_the_truth(tmp_path, monkeypatch):
    tiny = opened("bias", tmp_path, monkeypatch)
    exact, biased = study.draw_fields(tiny), study.draw_fields(tiny, Annotator(miss=0.5, confusion=0.5))
    dark = study.draw_fields(tiny, dose_electrons=20.0)
    for part, field in exact.items():
        pd.testing.assert_frame_equal(field.labels.table, field.truth.table)
        pd.testing.assert_frame_equal(biased[part].truth.table, field.truth.table)
        assert np.array_equal(biased[part].labels.images, field.labels.images)
        pd.testing.assert_frame_equal(dark[part].truth.table, field.truth.table)  # the same scenes, other noise
        assert not np.array_equal(dark[part].truth.images, field.truth.images)
    assert len(biased["train"].labels.table) < len(exact["train"].labels.table)
    files = [set(field.labels.index["image"]) for field in exact.values()]
    assert sum(map(len, files)) == len(set.union(*files)) == 4


def test_without_errors_scores_against_labels_are_those_against_the_truth(tmp_path, monkeypatch):
    scores = bias.run(opened("bias", tmp_path, monkeypatch, annotators=[{"miss": 0.6}]))
    assert len(scores) == 2 * len(bias.ARMS) * 2  # annotators, arms, labels and truth
    against = {tested: own.reset_index(drop=True) for tested, own in scores.groupby("tested")}
    same = (against["test:labels"] == against["test:truth"]) | against["test:labels"].isna()
    exact = against["test:truth"]["annotator"] == bias.EXACT
    columns = ["confidence", "tp", "fp", "fn", *study.MEASURES, "best_on_test"]
    assert same.loc[exact, columns].all(axis=None)
    assert (
        (against["test:labels"]["tp"] + against["test:labels"]["fn"])[~exact]
        .lt((against["test:truth"]["tp"] + against["test:truth"]["fn"])[~exact])
        .all()
    )


def test_amplification_is_a_difference_of_differences():
    rows = [
        {"annotator": name, "arm": arm, "seed": seed, "tested": tested, **dict.fromkeys(study.MEASURES, value)}
        for name, arm, values in [
            (bias.EXACT, "EXP", (0.8, 0.7)), (bias.EXACT, "EXP+GEN", (0.9, 0.9)),
            ("careless", "EXP", (0.6, 0.6)), ("careless", "EXP+GEN", (0.5, 0.7)),
        ]
        for seed, value in enumerate(values, start=1)
        for tested in ("test:labels", "test:truth")
    ]  # fmt: skip
    found = bias.effects(pd.DataFrame(rows), 0.95).query("measure == 'recall'").set_index("quantity")
    assert found["mean"].to_dict() == pytest.approx({"cost, EXP": 0.15, "cost, EXP+GEN": 0.3, "amplification": 0.15})
    half = 12.706 * np.std([0.2, 0.1], ddof=1) / np.sqrt(2)  # t interval of the two pairs' 0.2 and 0.1
    assert found["n"].eq(2).all() and found.loc["amplification", "high"] == pytest.approx(0.15 + half, abs=1e-4)


def exact_scores(*means: float) -> pd.DataFrame:
    return pd.DataFrame([
        {"arm": arm, "seed": seed, "real": 5, "f1_detect": mean + spread}
        for arm, mean in zip(bias.ARMS, means, strict=False) for seed, spread in ((1, -0.1), (2, 0.1))
    ])  # fmt: skip


@pytest.mark.parametrize(("means", "learnt"), [((0.8, 0.6), True), ((0.8, 0.45), False), ((0.3, 0.7), False)])
def test_verdicts_need_every_arm_to_have_learnt_from_exact_labels(tmp_path, monkeypatch, means, learnt):
    tiny = opened("bias", tmp_path, monkeypatch)
    exact = exact_scores(*means)
    intervals = ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))
    words = [verdicts.verdict(*ends, "amplified", "dampened", exact) for ends in intervals]
    assert words == (["amplified", "dampened", "undecided"] if learnt else ["no verdict"] * 3)
    said = verdicts.standing(tiny, exact)
    assert f"{means[0]:.2f} (EXP) and {means[1]:.2f} (EXP+GEN)" in said
    assert ("gets no verdict" in said) != learnt
    if not learnt:
        assert f"compared with those of {'EXP' if means[0] < means[1] else 'EXP+GEN'} gets" in said


def test_binding_is_the_gain_that_a_shift_takes_away():
    scores = {
        ("EXP", shift.SOURCE): 0.7,
        ("EXP+GEN", shift.SOURCE): 0.8,
        ("EXP", "dark"): 0.5,
        ("EXP+GEN", "dark"): 0.4,
    }
    rows = [
        {"arm": arm, "tested": tested, "seed": seed, **dict.fromkeys(study.MEASURES, value + 0.01 * seed)}
        for (arm, tested), value in scores.items()
        for seed in (1, 2)
    ]
    found = shift.effects(pd.DataFrame(rows), 0.95).query("measure == 'f1_hm'").set_index(["tested", "quantity"])
    assert found["mean"].to_dict() == pytest.approx({
        (shift.SOURCE, "gain"): 0.1, ("dark", "gain"): -0.1, ("dark", "loss of EXP"): 0.2, ("dark", "binding"): 0.2,
    })  # fmt: skip


def test_both_second_rounds_have_equal_numbers_of_images_and_steps(tmp_path, monkeypatch):
    tiny = opened("feedback", tmp_path, monkeypatch)
    scores, errors = feedback.run(tiny)
    second = scores[scores["round"] == 2].set_index("masks")
    assert second["generated"].to_dict() == {"plain": 8, "steered": 8}
    assert scores.loc[scores["round"] == 1, "generated"].tolist() == [4]
    assert scores["steps"].eq(2).all() and scores["real"].nunique() == 1
    assert errors["labelled"].sum() == len(study.draw_fields(tiny)["val"].truth.table)
    assert set(feedback.effects(scores, 0.95)["quantity"]) == {"second round", "steering"}


def test_error_rates_by_class_and_size(tmp_path, monkeypatch):
    tiny = opened("feedback", tmp_path, monkeypatch)
    train = ellipse_patches(40)
    box = ["patch", "x1", "y1", "x2", "y2"]
    found = train.table[[*box, "class"]].rename(columns={"class": "label"}).assign(score=0.9)
    found.loc[found["label"] == 1, "label"] = 2  # every defect of class 1 is called 2
    found = found[train.table["class"] != 3]  # and none of class 3 is found
    rates = feedback.error_rates(tiny, found, train, train).set_index(["class", "group"])
    assert rates["labelled"].groupby("class").sum().to_dict() == train.table["class"].value_counts().to_dict()
    assert rates.loc[1, "wrong"].equals(rates.loc[1, "labelled"])
    assert rates.loc[2, "wrong"].eq(0).all()
    assert rates.loc[3, "rate"].to_numpy() == pytest.approx(
        (rates.loc[3, "labelled"] + 1) / (rates.loc[3, "labelled"] + 2)
    )


def test_steering_draws_what_was_missed_and_keeps_numbers():
    train = ellipse_patches(40)
    size = feedback.long_sides(train.table[train.table["class"] == 2])
    edge = float(np.median(size))
    rates = pd.DataFrame(
        [(1, 0, 0.0, 0.001), (2, 0, 0.0, 0.001), (2, 1, edge, 1.0), (3, 0, 0.0, 0.001)],
        columns=["class", "group", "from_px", "rate"],
    )
    measured, numbers = feedback.steered_tables(train, rates, np.random.default_rng(0))
    assert (measured["class"] == 2).mean() > 0.95
    before = train.table.groupby("patch").size().reindex(range(len(train)), fill_value=0)
    assert numbers.groupby("patch")["count"].sum().equals(before.rename("count").astype(numbers["count"].dtype))
    assert numbers.loc[numbers["class"] == 2, "count"].sum() > 0.9 * len(train.table)


def test_two_pools_become_one():
    first, second = ellipse_patches(5, seed=1), ellipse_patches(7, seed=2)
    both = feedback.join(first, second)
    assert len(both) == 12 and len(both.index) == 12
    assert np.array_equal(both.label_maps()[5:], second.label_maps())
    assert both.of(5 + 3)["class"].tolist() == second.of(3)["class"].tolist()


def test_interrupted_and_continued_equals_uninterrupted(tmp_path, monkeypatch):
    whole = shift.run(opened("shift", tmp_path / "whole", monkeypatch))
    tiny = opened("shift", tmp_path / "stopped", monkeypatch)
    calls = []

    def stop_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == len(shift.ARMS):  # sets of the first arm are predicted, the second has just been trained
            raise KeyboardInterrupt
        return predict(*arguments)

    predict = study.predict
    monkeypatch.setattr(study, "predict", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        shift.run(tiny)
    weights = tiny.folder("detectors", "EXP", "seed-1") / "weights.safetensors"
    written = weights.stat().st_ino
    monkeypatch.setattr(study, "predict", predict)
    continued = shift.run(tiny)
    pd.testing.assert_frame_equal(continued, whole)
    assert weights.stat().st_ino == written  # found, not trained again
    tiny.close(scores=continued)
    assert [path.name for path in tiny.stage.folder.iterdir()] == ["scores.parquet"]
