# The paper's experiments as a graph of notebooks: one rule per notebook, in the order of the paper.
#   snakemake --cores 2 --config profile=smoke [dataset=loops_316L]         `companion run` is a thin face over it
# All paths are relative to runs/<profile>/<data set>/. A notebook's folder holds a flag (.done) once it is made; if it
# is still fresh is told by the stamp beside it (companion.workflow.freshness): no clone or copy reruns anything.
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from companion.config import ARMS, load_profile
from companion.layout import Layout
from companion.workflow import freshness
from companion.workflow.freshness import DONE

given = {key: config.get(key) or os.environ.get(f"COMPANION_{key.upper()}") for key in ("profile", "dataset")}
P = load_profile(given["profile"] or "smoke", dataset=given["dataset"])
PROFILE = str(Path(given["profile"]).resolve()) if str(given["profile"]).endswith((".yaml", ".yml")) else P.name
TREE, L = Layout(P).tree, Layout(P, Path())
GPU = int(P.device.name == "cuda" or (P.device.name == "auto" and shutil.which("nvidia-smi") is not None))


def run(notebook, *keys):  # the shell command of a rule: its notebook through papermill, unless its stamp is fresh
    fixed = [sys.executable, "-m", "companion.workflow.job", notebook, "--profile", PROFILE, "--dataset", P.dataset]
    words = " ".join(shlex.quote(word) for word in fixed).replace("{", "{{").replace("}", "}}")
    return f"{words} {' '.join(f'{key}={{wildcards.{key}}}' for key in keys)} --inputs {{input}} --outputs {{output}}"


CONDITIONS = list(P.conditions())
DETECTORS = P.detectors()
ARMS_OF = [(s, n, ARMS[arm]) for s, n in CONDITIONS for arm in P.arms_at(s, n)]
MODELS = sorted({(s, n, arm.model) for s, n, arm in ARMS_OF} | {(s, n, "1") for s, n in CONDITIONS})
GENERATED = sorted(
    {(s, n, arm.model, arm.masks) for s, n, arm in ARMS_OF if arm.other == "generated"}
    | {(s, n, "1", "plain") for s, n in CONDITIONS}
)
TESTS = [L.patches(split, part) / DONE for split in P.split_names for part in ("test", "val")]
PREDICTIONS = [L.detector(**keys) / "predictions" / DONE for keys in DETECTORS]
FAITHFULNESS = [L.faithfulness(s, n) / DONE for s, n in CONDITIONS]
PARTS = ["test", "val", "fresh", *(f"train-n{n}" for n in P.sizes)]
STUDIED = P.dataset == "phantom"  # 14 and 15 need exact truth


def other(wildcards):  # what fills the other part of an arm's batches
    w, arm = wildcards, ARMS[wildcards.arm]
    return {
        "generated": [L.generated(w.split, w.n_train, arm.model, arm.masks) / "patches" / DONE],
        "kept": [L.faithfulness(w.split, w.n_train) / "kept" / DONE],
        "fresh": [L.patches(w.split, "fresh") / DONE],
    }.get(arm.other, [])


LOOK = "COMPANION_LOOK" in os.environ  # `companion status` changes nothing
if workflow.is_main_process and not LOOK:
    freshness.mark(P, TREE)


workdir: tempfile.gettempdir() if LOOK else str(TREE)


wildcard_constraints:
    split=r"[^/]+", n_train=r"\d+", masks="plain|rare", model="1|2|phantom", arm=r"[^/]+", seed=r"\d+",


rule all:
    input:
        [L.page(name) / DONE for name in ("thresholds", "sizes", "significance", "imbalance", "claims", "errors")],
        FAITHFULNESS,
        L.page("annotation-bias") / DONE if STUDIED and P.studies.bias_n_train else [],
        L.page("distribution-shift") / DONE if STUDIED and P.studies.shifts else [],
        [] if STUDIED else L.page("real-micrographs") / DONE,


rule micrographs:
    output: L.micrographs("{split}") / DONE, *(L.patches("{split}", part) / DONE for part in PARTS)
    shell: run("01_micrographs", "split")


rule statistics:
    input: L.patches("{split}", "train-n{n_train}") / DONE
    output: L.statistics("{split}", "{n_train}") / DONE
    shell: run("02_mask_statistics", "split", "n_train")


rule masks:
    input: L.patches("{split}", "train-n{n_train}") / DONE, L.statistics("{split}", "{n_train}") / DONE
    output: (masks := L.masks("{split}", "{n_train}", "{masks}")) / DONE, masks / "patches" / DONE
    shell: run("03_mask_simulation", "split", "n_train", "masks")


rule diffusion:
    input: L.patches("{split}", "train-n{n_train}") / DONE
    output: L.diffusion("{split}", "{n_train}", "{model}") / DONE
    threads: P.device.threads
    resources: gpu=GPU
    shell: run("04_latent_diffusion", "split", "n_train", "model")


rule generated:
    input:
        L.patches("{split}", "train-n{n_train}") / DONE,
        [L.patches("{split}", part) / DONE for part in ("test", "val")],
        L.masks("{split}", "{n_train}", "{masks}") / "patches" / DONE,
        lambda w: [] if w.model == "phantom" else L.diffusion(w.split, w.n_train, w.model) / DONE,
    output: (made := L.generated("{split}", "{n_train}", "{model}", "{masks}")) / DONE, made / "patches" / DONE
    threads: P.device.threads
    resources: gpu=GPU
    shell: run("05_generated_images", "split", "n_train", "model", "masks")


rule detector:
    input:
        [L.patches("{split}", part) / DONE for part in ("train-n{n_train}", "test", "val")],
        other,
    output: (made := L.detector("{split}", "{n_train}", "{arm}", "{seed}")) / DONE, made / "predictions" / DONE
    threads: P.device.threads
    resources: gpu=GPU
    shell: run("06_mask_rcnn", "split", "n_train", "arm", "seed")


rule thresholds:
    input: TESTS, PREDICTIONS
    output: L.page("thresholds") / DONE
    shell: run("07_thresholds")


rule sizes:
    input: L.page("thresholds") / DONE
    output: L.page("sizes") / DONE
    shell: run("08_sizes_and_splits")


rule significance:
    input: L.page("thresholds") / DONE
    output: L.page("significance") / DONE
    shell: run("09_significance")


rule imbalance:
    input:
        L.page("thresholds") / DONE,
        [L.patches(s, f"train-n{n}") / DONE for s, n in CONDITIONS],
        sorted({L.masks(s, n, masks) / "patches" / DONE for s, n, _, masks in GENERATED}),
    output: L.page("imbalance") / DONE
    shell: run("10_class_imbalance")


rule claims:
    input:
        L.page("thresholds") / DONE,
        [L.patches(split, f"train-n{n}") / DONE for split, n in CONDITIONS],
        [L.diffusion(s, n, model) / DONE for s, n, model in MODELS if model != "phantom"],
        [L.generated(*keys) / DONE for keys in GENERATED],
        TESTS, PREDICTIONS,
    output: L.page("claims") / DONE
    shell: run("11_claims")


rule errors:
    input: L.page("thresholds") / DONE, TESTS, PREDICTIONS
    output: L.page("errors") / DONE
    shell: run("12_errors")


rule faithfulness:
    input:
        [L.patches("{split}", part) / DONE for part in ("train-n{n_train}", "test")],
        L.diffusion("{split}", "{n_train}", "1") / DONE,
        L.generated("{split}", "{n_train}", "1", "plain") / DONE,
        L.detector("{split}", "{n_train}", "EXP", P.seeds[0]) / DONE,
    output: (made := L.faithfulness("{split}", "{n_train}")) / DONE, made / "kept" / DONE
    threads: P.device.threads
    resources: gpu=GPU
    shell: run("13_mask_faithfulness", "split", "n_train")


if STUDIED and (n := P.studies.bias_n_train):

    rule annotation_bias:
        input:
            [L.patches(P.split_names[0], part) / DONE for part in (f"train-n{n}", "test", "val")],
            [L.detector(P.split_names[0], n, arm, seed) / "predictions" / DONE
             for arm in ("EXP", "EXP+GEN") for seed in P.seeds],
        output: L.page("annotation-bias") / DONE
        priority: 1  # the longest of the last stages
        threads: P.device.threads
        resources: gpu=GPU
        shell: run("14_annotation_bias")


rule distribution_shift:
    input:
        L.page("thresholds") / DONE,
        [L.detector(P.split_names[0], P.sizes[-1], arm, seed) / DONE for arm in ("EXP", "EXP+GEN") for seed in P.seeds],
    output: L.page("distribution-shift") / DONE
    threads: P.device.threads
    resources: gpu=GPU
    shell: run("15_distribution_shift")


rule real_micrographs:
    input:
        L.page("thresholds") / DONE, TESTS, PREDICTIONS,
        L.generated(P.split_names[0], P.sizes[-1], "1", "plain") / DONE,
    output: L.page("real-micrographs") / DONE
    shell: run("16_real_micrographs")
