"""Distribution shift: trained on one kind of micrograph, tested on another; do generated patches help or bind?"""

from __future__ import annotations

import pandas as pd

from companion.studies.study import MEASURES, Study, draw_fields, draw_pool, paired, score_arm, train_generator

ARMS = ("EXP", "EXP+GEN")
SOURCE = "as trained"


def run(study: Study) -> pd.DataFrame:
    """Detectors of both arms, trained on the profile's phantom, tested on it and on every shifted one.

    The confidence is chosen on validation patches of the trained kind: nothing of the other kinds is seen.

    Returns
    -------
    The rows of `study.score_arm`; tested is "as trained" or the name of a shift.
    """
    own, fields = study.profile.extensions, draw_fields(study)
    tests = {SOURCE: fields["test"].truth}
    tests |= {name: draw_fields(study, **shift.changes())["test"].truth for name, shift in own.shifts.items()}
    train, val = fields["train"].labels, fields["val"].labels
    pools = {"real": train, "generated": draw_pool(study, train_generator(study, train, "generator"), "plain")}
    rows = []
    for seed in own.seeds:
        for arm in ARMS:
            rows += score_arm(study, arm, seed, pools, val, tests, "detectors")[0]
    return pd.DataFrame(rows)


def effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """Gain of EXP+GEN over EXP on every test set, and how much of it is lost by the shift.

    Returns
    -------
    tested, measure, quantity ("loss of EXP": as trained minus shifted; "gain": EXP+GEN minus EXP; "binding": gain as
    trained minus gain on the shifted set, positive where generated patches bind the detector to the look that it was
    trained on), mean, low, high, n, p
    """
    wide = scores.pivot(index="seed", columns=["tested", "arm"], values=list(MEASURES))
    rows = []
    for tested in dict.fromkeys(scores["tested"]):
        for measure in MEASURES:
            own, keys = wide[measure], {"tested": tested, "measure": measure}
            gain = {name: own[name, ARMS[1]] - own[name, ARMS[0]] for name in (SOURCE, tested)}
            rows.append(paired(gain[tested], level, **keys, quantity="gain"))
            if tested != SOURCE:
                lost = own[SOURCE, ARMS[0]] - own[tested, ARMS[0]]
                rows.append(paired(lost, level, **keys, quantity="loss of EXP"))
                rows.append(paired(gain[SOURCE] - gain[tested], level, **keys, quantity="binding"))
    return pd.DataFrame(rows)
