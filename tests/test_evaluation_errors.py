"""Kinds of errors, recall, errors of size and density, average precision."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_scores import known as truth_table
from test_scores import noisy, predictions, truths

from companion.evaluation import errors
from companion.evaluation.formats import BOX, truth_of
from companion.evaluation.precision import IGNORED, average_precision, mean_precision
from companion.evaluation.runs import Run
from companion.evaluation.scores import count, tabulate

CORRECT, (CLASS, DUPLICATE, SLIVER, OVERLOOKED, LOCALISATION, BACKGROUND, MISSED) = errors.CORRECT, errors.ERRORS
KEYS = {"split": "1", "n_train": 10, "arm": "EXP", "seed": 1}
CHOSEN = pd.DataFrame([{"split": "1", "n_train": 10, "arm": "EXP", "confidence": 0.3}])


def index(n):
    return pd.DataFrame({"patch": range(n), "image": list(map(str, range(n))), "pixel_size_nm": 0.5})


def test_every_kind_of_error_by_hand():
    truth = truths((0, 0, 0, 10, 10, 1), (0, 20, 0, 30, 10, 2), (0, 40, 0, 50, 10, 1), (1, 0, 0, 10, 10, 1))
    found = predictions(
        (0, 0, 0, 10, 10, 0.9, 1),  # correct
        (0, 1, 0, 10, 10, 0.8, 1),  # the same defect again
        (0, 20, 0, 30, 10, 0.7, 1),  # other class
        (0, 46, 0, 56, 10, 0.6, 1),  # overlaps by a quarter
        (0, 60, 60, 64, 64, 0.6, 2),  # nothing there
    )
    seen, known = errors.audit(found, truth, index(2), 0.5)
    assert seen["error"].tolist() == [CORRECT, DUPLICATE, CLASS, LOCALISATION, BACKGROUND]
    assert known["error"].tolist() == [CORRECT, CLASS, MISSED, MISSED]
    assert seen["size_px"].tolist() == [10, 10, 10, 10, 4] and known["image"].tolist() == ["0", "0", "0", "1"]
    counts = errors.error_counts(seen.assign(**KEYS), known.assign(**KEYS)).set_index("error")
    expected = dict.fromkeys((CLASS, DUPLICATE, LOCALISATION, BACKGROUND), 1) | {MISSED: 2}
    assert counts["count"].loc[lambda n: n > 0].to_dict() == expected
    assert counts["truths"].eq(4).all() and counts.loc[MISSED, "per_truth"] == 0.5


def test_what_is_there_without_a_label_is_told_from_background():
    truth = truths((0, 0, 0, 10, 10, 1))
    found = predictions(
        (0, 0, 0, 10, 10, 0.9, 1), (0, 20, 0, 24, 10, 0.8, 1), (0, 40, 40, 50, 50, 0.7, 2), (0, 40, 40, 50, 56, 0.6, 2),
        (0, 20, 0, 40, 10, 0.5, 1), (1, 40, 40, 50, 50, 0.5, 2),
    )  # fmt: skip
    there = {SLIVER: truths((0, 20, 0, 24, 10, 1)), OVERLOOKED: truths((0, 40, 40, 50, 50, 1), (0, 0, 0, 10, 10, 1))}
    seen, _ = errors.audit(found, truth, index(2), 0.5, unlabelled=there)
    assert seen["error"].tolist() == [CORRECT, SLIVER, OVERLOOKED, OVERLOOKED, BACKGROUND, BACKGROUND]
    plain, _ = errors.audit(found, truth, index(2), 0.5)
    assert plain["error"].tolist() == [CORRECT, *[BACKGROUND] * 5]


@pytest.mark.parametrize("matching", ["truth-greedy", "score-greedy"])
def test_errors_add_up_to_the_counts(matching):
    patches = ellipse_patches(30, seed=1)
    found = noisy(patches, 2, extra=2)
    row = tabulate(count(found, truth_of(patches), [0.5], [0.3], matching)).iloc[0]
    seen, known = errors.audit_runs([Run(KEYS, found, patches)], CHOSEN, 0.5, matching)
    matched = seen["error"].isin([CORRECT, CLASS])
    assert (matched.sum(), (~matched).sum()) == (row["tp"], row["fp"])
    assert (known["error"] == MISSED).sum() == row["fn"] and len(known) == len(patches.table)
    whole = errors.error_counts(seen, known).set_index("error")["count"]
    for by in ("class", "size", "pixel size"):
        assert errors.error_counts(seen, known, [by]).groupby("error")["count"].sum().equals(whole.sort_index())


def test_nothing_predicted_and_nothing_there():
    patches = ellipse_patches(4, seed=1)
    none = noisy(patches, 0)[:0]
    seen, known = errors.audit(none, patches.table, patches.index, 0.5)
    assert len(seen) == 0 and (known["error"] == MISSED).all()
    counts = errors.error_counts(seen.assign(**KEYS), known.assign(**KEYS)).set_index("error")
    assert counts["per_truth"].reindex(errors.ERRORS).tolist() == [0] * 6 + [1]
    seen, known = errors.audit(noisy(patches, 0), patches.table[:0], patches.index, 0.5)
    assert (seen["error"] == BACKGROUND).all() and len(known) == 0


def test_wrong_predictions_count_in_the_group_of_what_they_say():
    truth = truths((0, 0, 0, 10, 10, 1), (0, 20, 0, 40, 10, 2), (1, 0, 0, 10, 10, 1))
    found = predictions(
        (0, 0, 0, 10, 10, 0.9, 2),  # a 1 called 2
        (0, 21, 0, 40, 10, 0.9, 2),  # correct
        (0, 20, 0, 40, 10, 0.8, 2),  # the same again
        (1, 40, 40, 44, 44, 0.9, 3),  # on background, of a class that the truth has not
    )
    seen, known = (table.assign(**KEYS) for table in errors.audit(found, truth, index(2), 0.5))
    table = errors.error_counts(seen, known, ["class"]).set_index(["class", "error"])
    places = [(2, CLASS), (1, CLASS), (2, DUPLICATE), (1, MISSED), (3, BACKGROUND)]
    assert table.loc[places, "count"].tolist() == [1, 0, 1, 1, 1] and table.loc[(1, MISSED), "per_truth"] == 0.5
    assert np.isnan(table.loc[(3, BACKGROUND), "per_truth"])


def test_recall_by_group():
    rows = {"image": ["a", "a", "b", "b"], "class": [1, 1, 1, 2], "error": [CORRECT, MISSED, CLASS, MISSED]}
    table = pd.DataFrame(rows).assign(row=range(4))
    found = errors.recall_by(table, "class", np.random.default_rng(0), 200, 0.95).set_index("class")
    assert found["recall"].tolist() == pytest.approx([2 / 3, 0]) and found["images"].tolist() == [2, 1]
    assert found.loc[1, "low"] == 0.5 and found.loc[1, "high"] == 1.0 and np.isnan(found.loc[2, "low"])
    twice = pd.concat([table, table.assign(error=CORRECT)])  # a second run finds all
    counted = errors.recall_by(twice, "class", np.random.default_rng(0), 10, 0.95)
    assert counted["truths"].tolist() == [3, 1] and counted["recall"].tolist() == pytest.approx([5 / 6, 1 / 2])


def test_size_and_density_errors_by_hand():
    truth = truths((0, 10, 10, 20, 20, 1), (0, 30, 30, 40, 50, 1), (0, 0, 30, 8, 36, 2))  # the last touches the border
    found = predictions((0, 10, 10, 20, 22, 0.9, 1), (0, 30, 30, 60, 60, 0.2, 1), (0, 1, 30, 9, 36, 0.9, 2))
    patches = replace(ellipse_patches(1), index=index(1))

    def signed(truth, found, classes):
        labelled = replace(patches, table=truth.assign(instance=1), classes=classes)
        seen, known = errors.audit_runs([Run(KEYS, found, labelled)], CHOSEN, 0.5)
        return errors.image_errors(seen, known, 64).set_index("class")

    table = signed(truth, found, ("loop", "dot"))
    assert table.loc["loop", "density_error"] == -0.5 and table.loc["dot", "density_error"] == 0
    assert table.loc["loop", "size_error"] == pytest.approx(12 / 15 - 1)
    assert np.isnan(table.loc["dot", "size_error"])  # the truth has no uncut dot
    assert table.loc["all", "density_error"] == pytest.approx(-1 / 3)
    assert signed(truth.assign(**{"class": 1}), found.assign(label=1), ("loop",)).index.tolist() == ["all"]


def test_micrographs_are_the_units_of_size_and_density():
    columns = {"image": ["a", "a", "b"], "density_error": [0.1, -0.3, 0.4], "size_error": np.nan}
    signed = pd.DataFrame({**columns, **KEYS, "class": "all"})
    table = errors.materials_table(signed, np.random.default_rng(0), 500, 0.95).set_index("quantity")
    assert table.loc["density", "images"] == 2 and table.loc["density", "error"] == pytest.approx((0.2 + 0.4) / 2)
    assert table.loc["density", ["low", "high"]].tolist() == pytest.approx([0.2, 0.4])
    assert table.loc["density", "bias"] == pytest.approx((-0.1 + 0.4) / 2)
    assert table.loc["size", "images"] == 0 and np.isnan(table.loc["size", "error"])


def test_average_precision():
    patches = ellipse_patches(12, seed=4)
    perfect = patches.table.rename(columns={"class": "label"}).assign(score=0.9)
    truth = replace(truth_of(patches), classes={1: "a", 2: "b", 3: "c", 4: "absent"})

    def scored(found):
        return average_precision(found, truth).set_index("class")

    table = scored(perfect)
    assert list(table.index) == [*truth.classes.values(), IGNORED]
    assert np.allclose(table.drop("absent"), 1) and table.loc["absent"].isna().all()
    wrong = scored(perfect.assign(label=perfect["label"] % 3 + 1))["AP50"]
    assert wrong[IGNORED] == 1 and wrong[["a", "b", "c"]].eq(0).all()
    assert scored(perfect[:0])["AP50"].drop("absent").eq(0).all()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("use_classes", [True, False])
def test_average_precision_is_that_of_pycocotools(seed, use_classes):
    patches = ellipse_patches(12, seed=4)
    found, truth = noisy(patches, seed), truth_of(patches)
    sets = []
    for table in (truth.table.assign(score=1.0), found.rename(columns={"label": "class"})):
        sets.append(COCO())
        sets[-1].dataset = {
            "images": [{"id": patch} for patch in truth.patches],
            "categories": [{"id": code} for code in truth.classes],
            "annotations": [
                {"id": n, "image_id": row.patch, "category_id": row[-1], "score": row.score, "iscrowd": 0,
                 "bbox": [row.x1, row.y1, row.x2 - row.x1, row.y2 - row.y1], "area": 1}
                for n, row in enumerate(table[["patch", *BOX, "score", "class"]].itertuples(), 1)
            ],
        }  # fmt: skip
        sets[-1].createIndex()
    theirs = COCOeval(*sets, "bbox")
    theirs.params.useCats, theirs.params.maxDets = use_classes, [1000]
    theirs.params.areaRng, theirs.params.areaRngLbl = [[0, 1e10]], ["all"]
    theirs.evaluate(), theirs.accumulate()
    expected = theirs.eval["precision"][..., 0, -1].mean(axis=1)  # (10 IoU, K)
    ours = average_precision(found, truth)
    ours = ours[(ours["class"] != IGNORED) == use_classes][["AP", "AP50", "AP75"]].to_numpy()
    assert np.allclose(ours, np.transpose([expected.mean(axis=0), expected[0], expected[5]]), atol=1e-12)
    assert ((ours[:, :2] > 0) & (ours[:, :2] < 1)).all()


def test_average_precision_by_hand():
    # Two truths; the better score is false, the next right: precision 1/2 up to recall 1/2, which are 51 of 101 points.
    truth = truths((0, 0, 0, 10, 10, 1), (0, 30, 30, 40, 40, 1))
    found = predictions((0, 50, 50, 60, 60, 0.9, 1), (0, 0, 0, 10, 10, 0.8, 1))
    table = average_precision(found, truth_table(truth, 1, 1)).set_index("class")
    assert table.loc["class 1", "AP50"] == pytest.approx(0.5 * 51 / 101)
    both = pd.concat([table.reset_index().assign(seed=k, AP50=[value, 0.9]) for k, value in enumerate((0.2, 0.4))])
    assert mean_precision(both)[["seed", "map50", "ap50_1"]].to_numpy().tolist() == [[0, 0.2, 0.2], [1, 0.4, 0.4]]
