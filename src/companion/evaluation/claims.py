"""The claims table: what the paper says, what this run says, and the verdict that follows.

Each verdict is computed by its rule (`rules`) at the tolerance and at half and twice of it. What this run did not
try is "not attempted"; what it tried but cannot decide (too few runs, an undefined score, another device) is
"cannot be compared"; both say why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from companion import provenance
from companion.evaluation import gain_rules, rules
from companion.evaluation.rules import Evidence, Finding
from companion.evaluation.significance import best_confidence, headline_measure, operating_points, paired_scores
from companion.places import dataset_name, split_name, tree
from companion.stages import Stage

DATASETS = ("phantom", "loops_316L", "fecral")  # each a column of the verdicts, run or not
QUALITY_COLUMNS = ["measure", "value", "low", "high", "n", "yardstick"]
GENERATOR_KEYS = ["split", "n_train", "generator"]


@dataclass(frozen=True)
class Claim:
    """One row of the table: what the paper says, where, and the rule that judges it."""

    id: str
    claim: str
    paper: str
    where: str
    stage: str
    rule: Callable[[Evidence, float], Finding]


CLAIMS = (
    Claim("C1", "a mask-conditioned LDM makes realistic STEM images from simulated masks, without manual labels",
          "shown in pictures", "Figs 1, 2", "generated", rules.judge_image_quality),
    Claim("C2", "generated data raise F1HM over EXP", "by up to 0.02", "Figs 3, 5",
          "sizes", gain_rules.judge_largest_gain),
    Claim("C3", "the gain at N=50 is significant", "p = 0.0008 (paired t-test, split 1, 4 runs)", "text",
          "significance", gain_rules.judge_significance(50, True)),
    Claim("C4", "the gain at N=100 is significant", "p = 0.0013 (same test)", "text",
          "significance", gain_rules.judge_significance(100, True)),
    Claim("C5", "the gain at N=10 is not conclusive", "p = 0.069 (same test)", "text",
          "significance", gain_rules.judge_significance(10, False)),
    Claim("C6", "the gain comes mostly from classification on split 1 and from detection on split 2",
          "read from bars", "Fig 4", "sizes", gain_rules.judge_origin_of_gain),
    Claim("C7", "image quality rises with the number of real training images", "N = 10, 50, 100, shown in pictures",
          "Fig 2", "generated", rules.judge_quality_with_n),
    Claim("C8", "oversampling the rare class with generated data gives no measurable gain", "no gain", "text",
          "imbalance", gain_rules.judge_oversampling),
    Claim("C9", "the best confidence threshold falls when generated data are added",
          "about 0.8 for EXP, 0.6 to 0.7 for EXP+GEN", "Fig 3", "thresholds", gain_rules.judge_best_thresholds),
    Claim("C10", "EXP at N=50 leaves room, of which generated data take a little",
          "F1HM about 0.70 to 0.75; gains are 3 to 8 % of what is left", "Fig 5",
          "sizes", gain_rules.judge_level_at_50),
    Claim("C11", "patches per condition, real and generated alike", "about 10,000", "text",
          "generated", rules.judge_patches),
    Claim("C12", "training one LDM and generating 10,000 images", "about 7 and 15 V100 GPU hours", "text",
          "diffusion", rules.judge_hours),
)  # fmt: skip


def gather(stage: Stage) -> Evidence:
    """Everything the rules need, from the artifacts that the claims stage reads."""
    evaluation, read = stage.profile.evaluation, {name: s.folder for name, (s, _) in stage.upstream.items()}
    scores = pd.read_parquet(read["thresholds"] / "scores.parquet")
    tests = pd.DataFrame(_json(read["significance"] / "significance.json")["tests"])
    if len(tests):
        tests = tests[tests["operating_point"] == "best on test"]
    rare = _json(read["imbalance"] / "imbalance.json")
    swept, (measure, _) = sorted(evaluation.confidence_sweep), headline_measure(scores)
    chosen = operating_points(scores, evaluation.iou, measure, evaluation.confidence)
    return Evidence(
        gains=pd.read_parquet(read["sizes"] / "sizes.parquet"),
        pairs=paired_scores(scores, evaluation.iou, gain_rules.ARMS, chosen), tests=tests,
        best=best_of_each_run(scores, evaluation.iou),
        rare=pd.DataFrame(rare["differences"], columns=["split", "n_train", "seed", "difference"]),
        rare_status=rare["status"],
        quality=_quality(stage), patches=_patches(stage), hours=_hours(stage),
        step=max((b - a for a, b in pairwise(swept)), default=1.0),
        margin=evaluation.equivalence_margin, level=evaluation.confidence_level,
        generator_per_seed=stage.profile.generator_per_seed,
    )  # fmt: skip


def best_of_each_run(scores: pd.DataFrame, iou: float) -> pd.DataFrame:
    """Best confidence of every single run: split, n_train, arm, seed, confidence (see `best_confidence`)."""
    measure = "f1_hm" if scores["f1_hm"].notna().any() else "f1_detect"
    found = [best_confidence(run, iou, measure).assign(seed=seed) for seed, run in scores.groupby("seed")]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["arm", "confidence"])


def claims_table(evidence: Evidence, stage: Stage) -> list[dict[str, Any]]:
    """One row per claim, C1 to C12.

    Returns
    -------
    id, claim, paper, where (in the paper), ours (in words), value, low, high, n, tolerance, tolerance_from, verdict,
    verdict_at_half, verdict_at_twice, reason, dataset, profile, notebook, stamp (path in the run tree, of the stage
    that the value comes from), commit
    """
    rows = []
    for claim in CLAIMS:
        finding, half, twice = (claim.rule(evidence, factor) for factor in (1.0, 0.5, 2.0))
        found = asdict(finding)
        source = next(s for s, _ in stage.upstream.values() if s.kind.name == claim.stage)
        stamp = provenance.read_stamp(source.folder) or {}
        rows.append({
            "id": claim.id, "claim": claim.claim, "paper": claim.paper, "where": claim.where,
            "ours": found.pop("shown") or "–", **found,
            "verdict_at_half": half.verdict, "verdict_at_twice": twice.verdict,
            "dataset": dataset_name(stage.profile.dataset), "profile": stage.profile.name,
            "notebook": source.kind.notebook, "stamp": f"{source.address}/{provenance.STAMP}",
            "commit": stamp.get("commit"),
        })  # fmt: skip
    return rows


def verdicts_beside(stage: Stage, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Verdicts of this data set and of every other, a column each: `DATASETS`, and what else this profile was run on.

    Data sets are never pooled; one that was not run is "not attempted". The other columns are read as they lie in
    the run tree; they are not inputs of this stage, so each names the commit that it was made from.

    Parameters
    ----------
    rows : the table of `claims_table`

    Returns
    -------
    Index: claim ids; columns "<data set>", for others that were run "<data set> (<commit>)"
    """
    here = dataset_name(stage.profile.dataset)
    folders = {
        path.parent.parent.name: path for path in tree(stage.profile).parent.glob(f"*/{stage.kind.folder}/claims.json")
    }
    columns = {}
    for name in dict.fromkeys((*DATASETS, here, *sorted(folders))):
        if name == here:
            columns[here] = {row["id"]: row["verdict"] for row in rows}
        elif name in folders:
            commit = (provenance.read_stamp(folders[name].parent) or {}).get("commit")
            columns[f"{name} ({commit})"] = {row["id"]: row["verdict"] for row in _json(folders[name])["claims"]}
        else:
            columns[name] = {row["id"]: "not attempted" for row in rows}
    return pd.DataFrame(columns).rename_axis("id")


def _of_kind(stage: Stage, kind: str) -> Iterator[tuple[dict[str, Any], Path]]:
    for source, _ in stage.upstream.values():
        if source.kind.name == kind:
            keys = dict(source.keys)
            yield {**keys, "split": split_name(keys["split"])}, source.folder


def _quality(stage: Stage) -> pd.DataFrame:
    tables = [
        pd.read_parquet(folder / "quality.parquet").assign(**{name: keys[name] for name in GENERATOR_KEYS})
        for keys, folder in _of_kind(stage, "generated")
        if keys["masks"] == "plain"
    ]
    columns = [*QUALITY_COLUMNS, *GENERATOR_KEYS]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _patches(stage: Stage) -> pd.DataFrame:
    """Training patches of each condition; real ones count once for every symmetry that training may apply."""
    rows = []
    for keys, folder in _of_kind(stage, "micrographs"):
        for n_train in stage.profile.sizes:
            part = folder / f"train-n{n_train}"
            symmetries = len(_json(part / "patches.json")["symmetries"])
            rows.append((keys["split"], n_train, "real", symmetries * len(pd.read_parquet(part / "index.parquet"))))
    for keys, folder in _of_kind(stage, "generated"):
        rows.append((keys["split"], keys["n_train"], "generated", len(pd.read_parquet(folder / "index.parquet"))))
    return pd.DataFrame(rows, columns=["split", "n_train", "source", "n"])


def _hours(stage: Stage) -> pd.DataFrame:
    """Wall time of training each LDM, and of that and generating the plain set with it."""
    stamps: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    for kind in ("diffusion", "generated"):
        for keys, folder in _of_kind(stage, kind):
            if keys.get("masks", "plain") == "plain":
                own = stamps.setdefault((keys["split"], keys["n_train"], keys["generator"]), {})
                own[kind] = provenance.read_stamp(folder) or {}
    rows = []
    for condition, made in stamps.items():
        hours = {kind: stamp.get("wall_s", 0) / 3600 for kind, stamp in made.items()}
        devices = ", ".join(sorted({str(stamp.get("device")) for stamp in made.values()}))
        rows.append((*condition, devices, hours["diffusion"], sum(hours.values())))
    return pd.DataFrame(rows, columns=[*GENERATOR_KEYS, "device", "training", "total"])


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
