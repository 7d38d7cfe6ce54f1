"""Studies over a run tree: made here from synthetic predictions, read as the notebooks read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from test_scores import BOX, noisy

from companion import places, provenance, stages
from companion.evaluation import runs, sliders, studies, thresholds
from companion.evaluation.claims import claims_table, gather, verdicts_beside
from companion.evaluation.scores import Counts
from companion.evaluation.significance import gain_table, operating_points, paired_scores, records, significance_table
from companion.evaluation.threshold_page import threshold_page
from companion.geometry import encode_rle
from companion.config.profile import load_profile

ARMS = ("EXP", "EXP+GEN")


def with_masks(found: pd.DataFrame, size: int = 64) -> pd.DataFrame:
    y, x = np.mgrid[:size, :size] + 0.5
    masks = [(x > a) & (x < c) & (y > b) & (y < d) for a, b, c, d in found[BOX].to_numpy()]
    return found.assign(mask=encode_rle(np.stack(masks)))


def make_tree(dataset: str, classes: int) -> stages.Stage:
    """Artifacts of every stage up to the detectors; returns the claims stage."""
    everything = stages.matrix(load_profile("smoke", dataset=dataset))
    for number, stage in enumerate(everything):
        folder = stage.folder
        folder.mkdir(parents=True, exist_ok=True)
        match stage.kind.name:
            case "micrographs":
                ellipse_patches(24, seed=1, classes=classes).save(folder / "test")
                ellipse_patches(12, seed=3, classes=classes).save(folder / "val")
                ellipse_patches(12, seed=2, classes=classes).save(folder / "train-n10")
            case "masks":
                replace(ellipse_patches(10, seed=number, classes=classes), images=None).save(folder)
            case "generated":
                ellipse_patches(10, seed=number, classes=classes).save(folder)
                ellipse_patches(10, seed=number, classes=classes).only(np.arange(4)).save(folder / "sample")
                quality = {"measure": ["darker"], "value": [0.9], "low": [0.8], "high": [1.0], "n": [9]}
                provenance.write_table(folder / "quality.parquet", pd.DataFrame({**quality, "yardstick": [0.95]}))
            case "detector":
                test = ellipse_patches(24, seed=1, classes=classes)
                misses = 0.4 if stage.keys["arm"] == "EXP" else 0.2
                provenance.write_table(folder / "predictions.parquet", with_masks(noisy(test, number, misses=misses)))
                val = ellipse_patches(12, seed=3, classes=classes)
                provenance.write_table(folder / "predictions-val.parquet", noisy(val, number, misses=misses))
            case "statistics" | "diffusion":
                provenance.write_json(folder / "summary.json", {})
            case _:
                return next(s for s in everything if s.kind.name == "claims")
        outputs = provenance.artifact_hashes(folder)
        provenance.write_json(
            folder / "stamp.json", {"outputs": outputs, "device": "CPU", "wall_s": 3.0, "commit": "c"}
        )
    raise AssertionError("no stage after the detectors")


@pytest.fixture(scope="module", params=[("phantom", 3), ("loops_316L", 1)], ids=["three classes", "one class"])
def study(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("COMPANION_DATA", str(tmp_path_factory.mktemp("data")))  # not what happens to be fetched here
        claims = make_tree(*request.param)
        stage = next(s for s, _ in claims.upstream.values() if s.kind.name == "thresholds")
        found = runs.runs(stage)
        counts = runs.count_runs(found, [0.3, 0.5], [0.1, 0.3, 0.5, 0.7])
        scores = runs.tabulate_runs(found, counts)
        measure = "f1_hm" if request.param[1] > 1 else "f1_detect"
        yield {
            "claims": claims, "found": found, "counts": counts, "scores": scores, "measure": measure,
            "chosen": operating_points(scores, 0.5, measure, 0.5), "rng": np.random.default_rng(0),
        }  # fmt: skip


def test_every_detector_is_scored(study):
    scores = study["scores"]
    assert len(scores) == 6 * 2 * 4 and set(scores["arm"]) == {"EXP", "EXP+GEN", "EXP+RARE"}
    assert scores["split"].eq("1").all() and scores["n_train"].eq(10).all()
    assert scores["f1_hm"].isna().all() == (study["measure"] == "f1_detect")


def test_rules_are_compared_on_boxes_and_masks(study):
    table = runs.compare_rules(study["found"], 0.5, 0.3)
    assert len(table) == 6 * 3 * 2 * 2
    totals = table.groupby(["rule", "on", "classes"])["tp"].sum()
    boxes = totals.xs("boxes", level="on").xs("ignored", level="classes")
    assert boxes["optimal"] >= boxes["truth-greedy"] and boxes["optimal"] >= boxes["score-greedy"] > 0
    assert (totals.xs("equal", level="classes") <= totals.xs("ignored", level="classes")).all()


def test_masks_are_compared_where_those_that_count_have_one(study):
    full = runs.compare_rules(study["found"], 0.5, 0.5)
    low = [run.predictions["score"] < 0.5 for run in study["found"]]
    assert any(rows.any() for rows in low) and "masks" in set(full["on"])
    few = [
        replace(run, predictions=run.predictions.assign(mask=run.predictions["mask"].mask(rows, None)))
        for run, rows in zip(study["found"], low, strict=True)
    ]
    pd.testing.assert_frame_equal(runs.compare_rules(few, 0.5, 0.5), full)
    assert set(runs.compare_rules(few, 0.5, 0.3)["on"]) == {"boxes"}


def test_errors_of_all_runs(study):
    predictions, truths = studies.audit_runs(study["found"], study["chosen"], 0.5)
    counts = studies.error_counts(predictions, truths)
    assert len(counts) == 6 * 5 and len(truths) == 6 * len(study["found"][0].truth.table)
    recall = studies.recall_tables(truths, study["found"][0].truth.classes, study["rng"], 20, 0.95)
    defects = study["found"][0].truth.table
    per_class = recall["size"].groupby("arm")["truths"].sum()  # of two seeds per arm each defect counts once
    assert per_class.tolist() == [len(defects)] * 3 and set(recall["size"]["n_train"]) == {10}
    groups = studies.error_groups(predictions, truths, study["found"][0].truth.classes)
    assert groups.groupby("by")["count"].sum().nunique() == 1 and (groups["count"].sum() > 0)
    missed = counts[counts["error"] == "missed"].groupby("arm")["per_truth"].mean()
    assert missed["EXP"] > missed["EXP+GEN"]
    materials = studies.materials_runs(study["found"], study["chosen"])
    assert set(materials["image"]) == {f"{k}.png" for k in range(6)}
    precision = studies.precision_runs(study["found"])
    assert precision["AP50"].between(0, 1).all() and (precision["AP50"] >= precision["AP"]).all()


def test_optimism_and_bootstrap(study):
    optimism = studies.optimism_runs(study["found"], study["counts"], 0.5, study["measure"], study["rng"], 5)
    assert len(optimism) == 6 and (optimism["optimism"] >= 0).all()
    table = studies.bootstrap_runs(
        study["found"], study["counts"], study["chosen"], ARMS, 0.5, study["measure"], study["rng"], 50, 0.9
    )
    assert table["resampled"].tolist() == ["images", "images and seeds"] and (table["pairs"] == 2).all()
    pairs = paired_scores(study["scores"], 0.5, ARMS, study["chosen"])
    mean = pairs.loc[pairs["measure"] == study["measure"], "difference"].mean()
    assert table["difference"].tolist() == pytest.approx([mean, mean])


def swept(pairs: list[list[int]], predicted: list[list[int]], truths: int = 10) -> tuple[runs.Run, Counts]:
    """One class, one IoU, a patch per micrograph: pairs and predictions per patch and confidence (0.3, 0.6)."""
    n = len(pairs)
    counts = Counts(
        np.array(pairs)[:, None, :, None, None], np.array(predicted), np.full((n, 1), truths), (0.5,), (0.3, 0.6),
        (1,), tuple(range(n)),
    )  # fmt: skip
    index = pd.DataFrame({"patch": range(n), "image": [f"{k}.png" for k in range(n)]})
    keys = {"dataset": "d", "split": "1", "n_train": 4, "arm": "EXP", "seed": 1}
    return runs.Run(keys, pd.DataFrame(), None, None, index, 64), counts


def test_optimism_of_a_threshold_chosen_on_test():
    test = swept([[8, 6]] * 3, [[10, 6]] * 3)  # F1_detect 16/20 = 0.8 and 12/16 = 0.75: best at 0.3
    validation = swept([[8, 6]] * 2, [[20, 6]] * 2)  # 16/30 and 12/16: best at 0.6
    found = thresholds.validated([test], [validation], 0.5, "f1_detect", np.random.default_rng(0), 20, 0.9)
    row = found.iloc[0]
    assert (row["on_test"], row["on_validation"]) == (0.3, 0.6)
    # All micrographs are alike, so whichever are drawn the optimism is the same.
    assert [row[k] for k in ("best_on_test", "chosen_on_validation", "optimism", "low", "high")] == pytest.approx(
        [0.8, 0.75, 0.05, 0.05, 0.05]
    )
    assert (row["seeds"], row["test_micrographs"], row["validation_micrographs"]) == (1, 3, 2)
    said = thresholds.optimism_in_words(found, "F1_detect", 0.9)
    assert said.startswith("- split 1, N = 4, EXP: best on test at confidence 0.3 (0.800), chosen on validation 0.6")
    undefined = thresholds.validated([test], [validation], 0.5, "f1_hm", np.random.default_rng(0), 20, 0.9)
    assert undefined[["on_validation", "optimism", "low"]].isna().all(axis=None)
    assert "F1HM is undefined on the validation patches" in thresholds.optimism_in_words(undefined, "F1HM", 0.9)
    assert thresholds.validated([test], [], 0.5, "f1_detect", np.random.default_rng(0), 20, 0.9).empty


def test_a_seed_without_a_score_takes_its_threshold_out_of_the_choice():
    first, second = swept([[8, 6]], [[10, 6]]), swept([[8, 0]], [[10, 0]], truths=0)  # 0/0 at 0.6
    found = thresholds.validated([first, second], [first, second], 0.5, "f1_detect", np.random.default_rng(0), 5, 0.9)
    assert found["on_validation"].tolist() == [0.3] and found["seeds"].tolist() == [2]


def test_thresholds_are_chosen_on_the_validation_patches_of_a_run(study):
    stage = study["claims"].upstream["thresholds"][0]
    validation = runs.runs(stage, "val")
    assert [run.keys for run in validation] == [run.keys for run in study["found"]]
    assert {run.test.name for run in validation} == {"val"}
    own = list(zip(study["found"], study["counts"], strict=True))
    other = list(zip(validation, runs.count_runs(validation, [0.3, 0.5], [0.1, 0.3, 0.5, 0.7]), strict=True))
    chosen = study["chosen"].set_index("arm")["confidence"]
    for second in (own, other):
        table = thresholds.validated(own, second, 0.5, study["measure"], study["rng"], 50, 0.9)
        assert table["arm"].tolist() == ["EXP", "EXP+GEN", "EXP+RARE"]
        assert table.set_index("arm")["on_test"].equals(chosen.rename("on_test"))
        optimism = table["optimism"].dropna()  # undefined where a seed has no score at the confidence that was chosen
        assert len(optimism) and ((optimism == 0).all() if second is own else (optimism >= 0).all())
        assert (table["low"].dropna() >= 0).all() and (table["high"] >= table["low"])[table["low"].notna()].all()


def test_without_validation_patches_halves_of_the_test_micrographs_stand_in(study, monkeypatch):
    stage = study["claims"].upstream["thresholds"][0]
    found = runs.runs(stage)
    counts = runs.count_runs(found, [0.5], stage.profile.evaluation.confidence_sweep)
    table, said = thresholds.optimism(stage, found, counts, "f1_detect")
    assert table["validation_micrographs"].tolist() == [3] * 3 and said.count("chosen on validation") == 3
    monkeypatch.setattr(thresholds, "runs", lambda stage, held_out: [])
    table, said = thresholds.optimism(stage, found, counts, "f1_detect")
    assert (table["optimism"] >= 0).all() and len(table) == 3 and "no validation micrographs" in said


def test_class_shares(study):
    shares = runs.class_shares(study["claims"].upstream["imbalance"][0])
    assert shares.groupby("set")["share"].sum().tolist() == pytest.approx([1, 1, 1])
    assert list(dict.fromkeys(shares["set"])) == ["real", "simulated-plain", "simulated-rare"]


def test_the_page_with_sliders_is_one_piece(study):
    arms, pictures = sliders.slider_data(study["found"], study["counts"])
    classes = study["found"][0].truth.classes
    page = threshold_page(arms, pictures, [0.3, 0.5], [0.1, 0.3, 0.5, 0.7], (0.5, 0.5), classes, "a < b", "six")
    assert 4 <= len(pictures) <= 6 and "a &lt; b" in page and page.count("<script>") == 1
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page) and "@" not in page.split("<script>")[0]
    assert "NaN" not in page and (study["measure"] == "f1_hm" or '"f1_hm":[[null' in page)
    data = json.loads(re.search(r"const data = (.*), root =", page)[1])
    run, patch = study["found"][0], int(pictures[0]["name"].split()[-1])
    scores = run.predictions.loc[run.predictions["patch"] == patch, "score"]
    assert data["pictures"][0]["found"]["EXP"]["kept"] == [(scores >= c).sum() for c in (0.1, 0.3, 0.5, 0.7)]
    # Without scripts: the table, and the detections of the first arm where the sliders start.
    still = page.split("<script>")[0]
    assert still.count("<svg") == len(pictures) and still.count("<tr>") == 1 + len(arms)
    assert still.count("<rect") == sum(picture["kept"]["EXP"][2] for picture in pictures) > 0
    assert still.count('dasharray="none"') == sum((p["pairs"]["EXP"][1, 2] >= 0).sum() for p in pictures)
    assert still.count("<circle") == sum((p["pairs"]["EXP"][1, 2] < 0).sum() for p in pictures)


def test_patches_that_change_under_both_sliders_come_first_and_from_every_micrograph():
    pairs = np.zeros((5, 2, 2, 1, 1), dtype=int)
    pairs[:, 0, 0] = 2
    pairs[0, 1, 0] = 2  # patch 0: the IoU changes nothing
    pairs[3] = 1  # patch 3: nothing changes
    counts = Counts(pairs, np.full((5, 2), 3), np.full((5, 1), 3), (0.3, 0.5), (0.1, 0.9), (1,), tuple(range(5)))
    images = np.array(["a", "a", "a", "b", "b"])
    assert sliders.lively_patches([counts], images).tolist() == [1, 4, 2, 0, 3]
    still = replace(counts, pairs=np.ones_like(pairs))
    assert sliders.lively_patches([counts, still], images).tolist() == [0, 3, 1, 4, 2]


def test_claims_of_a_small_run_claim_little(study):
    claims, scores, chosen = study["claims"], study["scores"], study["chosen"]
    folders = {name: claims.upstream[name][0].folder for name in ("thresholds", "sizes", "significance", "imbalance")}
    pairs = paired_scores(scores, 0.5, ARMS, chosen)
    provenance.write_table(folders["thresholds"] / "scores.parquet", scores)
    provenance.write_table(folders["sizes"] / "sizes.parquet", gain_table(pairs, ARMS))
    tests = records(significance_table(pairs).assign(operating_point="best on test"))
    provenance.write_json(folders["significance"] / "significance.json", {"tests": tests})
    provenance.write_json(
        folders["imbalance"] / "imbalance.json", {"status": "not run: no detectors", "differences": []}
    )
    table = pd.DataFrame(claims_table(gather(claims), claims)).set_index("id")
    assert len(table) == 12 and table["reason"].str.len().min() > 10
    decided = table[~table["verdict"].isin(["not attempted", "cannot be compared"])]
    assert set(decided.index) <= {"C1"}, decided
    assert table.loc["C5", "verdict"] == "cannot be compared" and table.loc["C3", "verdict"] == "not attempted"
    assert table.loc["C2", "stamp"] == "sizes/stamp.json" and table.loc["C11", "value"] == 10
    rows = table.reset_index().to_dict("records")
    provenance.write_json(places.tree(claims.profile).parent / "other" / "claims" / "claims.json", {"claims": rows})
    beside = verdicts_beside(claims, rows)
    assert list(beside) == ["phantom", "loops_316L", "fecral", "other (None)"] and beside.shape == (12, 4)
    assert beside["fecral"].eq("not attempted").all()
    assert beside[claims.profile.dataset].tolist() == table["verdict"].tolist() == beside["other (None)"].tolist()
    # Twelve patches of train-n10 in four symmetries, ten generated ones.
    assert table.loc["C11", "ours"] == "real 48, generated 10"
    strip = runs.strip_pictures(claims, scores)
    assert strip.test.shape == (64, 64) and strip.generated.dtype == np.uint8 and "split 1, N = 10" in strip.caption
    assert strip.real_labels.any() and strip.simulated_labels.any()
