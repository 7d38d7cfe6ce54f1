"""What a run has found, page by page: finding, number and caveat for the box at the top of each notebook's page.

All is read from the files of the run when the book is built; a word that depends on a sign follows from an interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from companion.evaluation.significance import paired_t, significant
from companion.evaluation.thresholds import FIXED, headline
from companion.evaluation.wording import NAMES, number, p_value, signed, with_interval
from companion.masks.compare import OTHER_HALF
from companion.plots import data_name
from companion.stats import ratio_interval
from companion.workflow.answer import Results, by_size, change, direction, sentence, tables
from companion.workflow.tables import said as spelt

Found = tuple[str, str, str]  # finding, its number, caveat


def _claim(r: Results, name: str) -> Found:
    """What a page found that is about one claim of the paper."""
    c = next(row for row in r.json("11_claims", "claims")["claims"] if row["id"] == name)
    said = f"“{c['claim'][0].upper()}{c['claim'][1:]}”: {c['verdict']}"
    return said, f"the paper: {c['paper']}; here: {c['ours']}", c["reason"]


def _micrographs(r: Results) -> Found:
    counts = r.json("01_micrographs", "counts")
    train, test = counts[f"train-n{r.P.sizes[-1]}"], counts["test"]
    said = f"{train['micrographs']} micrographs train and {test['micrographs']} others test"
    each = [f"{part['instances per patch']:.1f} defects in a" for part in (train, test)]
    cut = f"the border of a patch cuts {train['share cut by a border']:.0%} of the defects that are trained on"
    return said, f"{each[0]} training patch, {each[1]} test patch (counted; the paper has 5.1 and 3.4)", cut


def _statistics(r: Results) -> Found:
    total = r.table("02_mask_statistics", "counts").groupby(["image", "patch"])["count"].sum().reset_index()
    ones, rng, level = np.ones((len(total), 1)), np.random.default_rng(0), r.P.evaluation.confidence_level
    mean = [float(v[0]) for v in ratio_interval(total[["count"]], ones, total["image"], rng, 1000, level)]
    shares = r.table("02_mask_statistics", "border_bias").pivot(index="class", columns="way", values="share")
    off = 100 * (shares["pieces"] - shares["micrographs"]).dropna()
    most = off.abs().idxmax()
    said = f"counted in patches, the share of {most}s is {signed(off[most], 1)} points off that in whole micrographs"
    images = f"all rests on {total['image'].nunique()} micrographs, however many patches they give"
    return said, f"{with_interval(*mean, level=level)} defects in a patch", images


def _masks(r: Results) -> Found:
    auc = r.table("03_mask_simulation", "compared").set_index("sampler")["auc"]
    said = f"a classifier tells the paper's simulated masks from labelled ones with an AUC of {auc['authors']:.2f}"
    beside = f"0.5 would be chance; labelled masks from labelled masks {number(auc.get(OTHER_HALF))} (no intervals)"
    return said, beside, "every simulated shape is that of a labelled defect"


def _diffusion(r: Results) -> Found:
    log = r.table("04_latent_diffusion", "log").query("network == 'denoiser'").dropna(axis=1, how="all")
    loss = log[next(name for name in log if name not in ("network", "step"))].to_numpy()
    first, *_, last = (part.mean() for part in np.array_split(loss, 10))
    said = f"in {len(loss):,} steps the denoiser's loss comes to {last / first:.0%} of what it began with"
    return said, f"{first:.3f} at first, {last:.3f} at last", "no loss says whether images follow their masks"


def _generated(r: Results) -> Found:
    table = r.table("05_generated_images", "quality").set_index("measure")
    row, auc, copies = (table.loc[name] for name in ("contrast of defects", "c2st_auc", "memorisation"))
    found = f"a classifier tells generated images from labelled ones with an AUC of {auc['value']:.2f}"
    said = f"labelled from labelled {auc['yardstick']:.2f}; contrast of generated defects {r.said(row, 'value')},"
    more = f"labelled {row['yardstick']:.3f}: guidance was chosen for it"
    kept = f"{copies['value']:.0%} count as copies of training patches, by a test that calls"
    kept += f" {copies['labelled, encoded and decoded']:.0%} of encoded and decoded training patches so"
    return found, f"{said} {more}", f"{kept}; one model is judged"


def _detector(r: Results) -> Found:
    own = r.here(headline(r.table("07_thresholds", "chosen")))
    own = own[own["arm"] == "EXP+GEN"]
    first, over = own.iloc[0], paired_t(own["f1_detect"], r.P.evaluation.confidence_level)
    said = f"this detector finds {first['recall']:.0%} of the defects; {first['precision']:.0%} of its boxes lie on one"
    at = f"{first['arm']}, seed {first['seed']}, at confidence {first['confidence']:g}, {first['choice']}"
    return said, f"F1_detect {first['f1_detect']:.3f}; mean of the seeds {r.said(over)}", at


def _sizes(r: Results) -> Found:
    level = r.P.evaluation.confidence_level
    pairs, _, measure = tables(r)
    said, alone = sentence(pairs, measure, data_name(r.P.dataset), level)
    if not by_size(pairs, measure, level)[1]:
        alone = f"{change(pairs, measure, level).said(level)}. {alone}"
    return said[:-1], alone[:-1], "another split or another model would add to the interval"


def _significance(r: Results) -> Found:
    pairs, tests, measure = tables(r)
    chance = change(pairs, measure, r.P.evaluation.confidence_level).chance_of_one
    lines = significant(tests, r.P.evaluation.confidence_level)
    said, gains = lines[0].removesuffix("."), sum(" rises " in line for line in lines)
    if len(lines) > 1:
        said = f"after Holm's correction {gains} tests of the four scores show a gain, and {len(lines) - gains} a loss"
    seen = f"{chance:.0%}" if np.isfinite(chance) else "unknown"
    seen = f"chance that the paper's test would see a true change of 0.02 with {len(r.P.seeds)} pairs: {seen}"
    return said, seen, "runs of one split share training images, test images and model"


def _claims(r: Results) -> Found:
    counts = pd.Series([row["verdict"] for row in r.json("11_claims", "claims")["claims"]]).value_counts()
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    _, number, why = _claim(r, "C2")
    return f"of the paper's claims {said}", f"largest gain of F1HM: {number}", why


def _imbalance(r: Results) -> Found:
    said, number, why = _claim(r, "C8")
    tests = pd.DataFrame(r.json("10_class_imbalance", "imbalance")["tests"])
    moved = tests.query("p < 1 - @r.P.evaluation.confidence_level and measure != 'f1_hm'") if len(tests) else tests
    others = ", ".join(f"{spelt(row.measure)} {signed(row.gain)} ({p_value(row.p)})" for row in moved.itertuples())
    return said, number, f"F1HM hides what moved under it: {others}" if others else why


def _errors(r: Results) -> Found:
    counts, off = r.here(r.table("12_errors", "errors")), r.here(r.table("12_errors", "materials"))
    mean = counts[counts["against"] == "labels"].groupby(["arm", "error"])["per_truth"].mean()
    most = ", ".join(f"{mean[arm].max():.2f} {mean[arm].idxmax()} ({arm})" for arm in r.P.arms)
    off = off[(off["quantity"] == "density") & off["arm"].isin(r.P.arms)]
    rows = off[off["class"] == "all"].to_dict("records")
    density = "; ".join(f"{row['arm']} {r.said(row, 'error')}" for row in rows)
    bias = off[off["class"] != "all"].pivot(index="class", columns="arm", values="bias")
    if len(bias):
        worst = bias.abs().max(axis=1).idxmax()
        counted = ", ".join(f"{arm} {signed(100 * bias.loc[worst, arm], 0)} %" for arm in r.P.arms)
        density += f". Number of {worst}s: {counted}"
    return f"most frequent error, for each defect: {most}", f"relative error of density: {density}", thresholds_apart(r)


def thresholds_apart(r: Results) -> str:
    """At which confidence each arm is read, what it misses there, and what both miss at one: recall moves with it."""
    chosen = r.here(r.table("07_thresholds", "chosen")).query("against == 'labels'")
    own, fixed = headline(chosen), chosen[chosen["choice"] == FIXED]
    here, missed = (1 - table.groupby("arm")["recall"].mean() for table in (own, fixed))
    at, read = f"{fixed['confidence'].iloc[0]:g}", own.groupby("arm")["confidence"].first()
    each = ", ".join(f"{arm} at {read[arm]:g} misses {here[arm]:.2f}" for arm in r.P.arms)
    both = " and ".join(f"{arm} {missed[arm]:.2f}" for arm in r.P.arms)
    turned = ", the other way round" * bool(here.rank().ne(missed.rank()).any())
    return f"each arm is read at the confidence chosen for it: {each}; at {at} they miss {both}{turned}"


def _faithfulness(r: Results) -> Found:
    rows = r.table("13_mask_faithfulness", "faithfulness").query("by == 'class'")
    found = (rows["recall"] * rows["truths"]).groupby(rows["images"]).sum() / rows.groupby("images")["truths"].sum()
    said = f"a detector finds {found['generated']:.0%} of the defects that generated images should show"
    beside = f"in held-out labelled images {found['labelled, held out']:.0%}"
    if perfect := found.get("phantom, same masks"):
        beside += f", in perfect images of the same masks {perfect:.0%}"
    kept = r.table("13_mask_faithfulness", "edits").set_index("edit")
    beside += "".join(f"; {edit} defects keep {r.said(kept.loc[edit], 'kept')} of their contrast"
                      for edit in ("moved", "turned") if len(kept))  # fmt: skip
    return said, beside, "what is not found may be missing, or missed by the detector"


def _bias(r: Results) -> Found:
    effects, scores = (r.table("14_annotation_bias", name) for name in ("effects", "scores"))
    own = effects[effects["measure"] == "f1_hm"].set_index("quantity")
    means, more = scores.groupby(["labels", "arm"])[["f1_hm", "confidence"]].mean(), own.loc["amplification"]
    costs = " and ".join(f"{arm} {own.loc[f'cost, {arm}', 'mean']:.3f}" for arm in ("EXP", "EXP+GEN"))
    how = {"better": "amplify", "worse": "dampen"}.get(direction(more["low"], more["high"]), "may amplify or dampen")
    each = ", ".join(f"{arm}, {kind} labels {m.f1_hm:.3f} at {m.confidence:.2f}" for (kind, arm), m in means.iterrows())
    said = f"at N = {r.P.studies.bias_n_train} an annotator's errors cost {costs} of F1HM: generated images {how} this"
    return said, f"difference {r.said(more)}; F1HM at confidence: {each}", "one model of one split for each kind"


def _shift(r: Results) -> Found:
    table, said = r.table("15_distribution_shift", "effects").query("quantity == 'gain'"), []
    for measure, own in table[table["measure"].isin(["f1_detect", "f1_hm"])].dropna(subset="mean").groupby("measure"):
        gains, losses = (", ".join(own.loc[way, "tested"]) for way in (own["low"] > 0, own["high"] < 0))
        said.append(f"{NAMES[measure]} under {gains or 'none'}" + f", and lower it under {losses}" * bool(losses))
    rows = table[table["measure"] == "f1_detect"].to_dict("records")
    numbers = "; ".join(f"{row['tested']} {r.said(row)}" for row in rows)
    caveat = "one model of one split; each arm is read at the confidence that was chosen for micrographs as trained"
    return f"generated images raise {'; '.join(said)}", f"F1_detect: {numbers}", caveat


def _real(r: Results) -> Found:
    about = r.json("16_real_micrographs", "real")
    first, *others = about["gains"]
    does = {"better": "find loops better", "worse": "find loops worse"}
    does = does.get(direction(first["low"], first["high"]), "are not shown to find loops better")
    finding = f"on {about['images']} real micrographs detectors that also saw generated images {does}"
    number = f"F1_detect {first['base']:.3f} without them, {first['score']:.3f} with them"
    number += f", difference {r.said(first, 'gain')}"
    more = "".join(f"{arm['arm']}, which needs no model, changes it by {r.said(arm, 'gain')}; " for arm in others)
    few = f"{about['loops']} loops or parts of loops in one steel, {len(r.P.seeds)} seeds, one model per fold"
    return finding, number, more + few


PAGES: dict[str, tuple[str, Callable[[Results], Found]]] = {  # of each notebook: main figure, what was found
    "01_micrographs": ("micrographs", _micrographs), "02_mask_statistics": ("sizes", _statistics),
    "03_mask_simulation": ("label_maps", _masks), "04_latent_diffusion": ("grid", _diffusion),
    "05_generated_images": ("fig2", _generated), "06_mask_rcnn": ("detections", _detector),
    "07_thresholds": ("fig3", partial(_claim, name="C9")), "08_sizes_and_splits": ("fig5", _sizes),
    "09_significance": ("differences", _significance), "10_class_imbalance": ("differences", _imbalance),
    "11_claims": ("", _claims), "12_errors": ("error_kinds", _errors),
    "13_mask_faithfulness": ("faithfulness", _faithfulness), "14_annotation_bias": ("costs", _bias),
    "15_distribution_shift": ("effects", _shift), "16_real_micrographs": ("folds", _real),
}  # fmt: skip


def sentences(name: str, r: Results) -> list[str]:
    """What a notebook's page says first: finding, number, caveat, and of a smoke run that it means nothing."""
    said = [re.sub(r"(\d)%", r"\1 %", f"{text[0].upper()}{text[1:]}.") for text in PAGES[name][1](r)]
    return said + ["A smoke run: its numbers mean nothing."] * (r.P.name == "smoke")
