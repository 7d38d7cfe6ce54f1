"""Annotation bias: how much of an annotator's errors detectors learn, and whether generation amplifies it."""

from __future__ import annotations

import pandas as pd

from companion.studies.study import MEASURES, Study, draw_fields, draw_pool, paired, score_arm, train_generator
from companion.config.studies import Annotation
from companion.config.phantom import Annotator

ARMS = ("EXP", "EXP+GEN")
EXACT = "without errors"


def run(study: Study) -> pd.DataFrame:
    """Every annotator's labels through the whole chain.

    Training, validation and test labels are the annotator's; the test patches are scored against the labels, as
    anyone without the truth has to, and against the truth.

    Returns
    -------
    annotator, then the rows of `study.score_arm`, with tested "test:labels" or "test:truth"
    """
    own, rows = study.profile.extensions, []
    for annotation in (Annotation(), *own.annotators):
        name = f"miss {annotation.miss:.0%}, confuse {annotation.confusion:.0%}"
        name = EXACT if annotation == Annotation() else name
        fields = draw_fields(study, Annotator(miss=annotation.miss, confusion=annotation.confusion))
        train, val, test = (fields[part].labels for part in ("train", "val", "test"))
        # The generator learns the annotator's labels too; its draws are the same for every annotator.
        pools = {"real": train, "generated": draw_pool(study, train_generator(study, train, name), "plain")}
        tests = {"test:labels": test, "test:truth": fields["test"].truth}
        for seed in own.seeds:
            for arm in ARMS:
                scored, _ = score_arm(study, arm, seed, pools, val, tests, name)
                rows += [{"annotator": name, **row} for row in scored]
    return pd.DataFrame(rows)


def effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """What the annotator's errors cost, by arm, and the difference of the two costs.

    The cost is the score of a detector that learnt from exact labels minus that of one that learnt from the
    annotator's, same arm, same seed, both against the truth. Generation amplifies the bias where EXP+GEN pays more.

    Returns
    -------
    annotator, measure, quantity ("cost, EXP", "cost, EXP+GEN", "amplification"), mean, low, high, n, p
    """
    true = scores[scores["tested"] == "test:truth"].set_index(["annotator", "arm", "seed"])[list(MEASURES)]
    rows = []
    for annotator in dict.fromkeys(scores["annotator"]):
        if annotator == EXACT:
            continue
        costs = true.loc[EXACT] - true.loc[annotator]
        for measure in MEASURES:
            own = {arm: costs.loc[arm][measure] for arm in ARMS}
            keys = {"annotator": annotator, "measure": measure}
            rows += [paired(cost, level, **keys, quantity=f"cost, {arm}") for arm, cost in own.items()]
            rows.append(paired(own[ARMS[1]] - own[ARMS[0]], level, **keys, quantity="amplification"))
    return pd.DataFrame(rows)
