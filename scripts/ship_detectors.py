"""Write a small detector that comes with the companion, and the card that says what it is good for.

    python scripts/ship_detectors.py phantom
    python scripts/ship_detectors.py loops_316L

The first is an EXP detector of the reference run's longest list, as it was trained there. The second is trained here,
on all real micrographs with the settings of profile `real` (about five minutes on one core; interrupted, it continues).
Both are measured by detectors of the run on micrographs that they were not trained on. The run must be in runs/.
"""

import shutil
import sys

import pandas as pd

from companion.config import Profile, load_profile
from companion.detection.data import recipe_of
from companion.detection.train import train_detector
from companion.device import open_device
from companion.evaluation.scores import evaluate_files
from companion.layout import Layout, root
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.registry import obtain
from companion.provenance import write_text
from companion.seeds import Seeds
from companion.workflow.pages import markdown_table

CONFIDENCE = 0.5  # as `companion predict` has it
PROFILE = {"phantom": "reference", "loops_316L": "real"}
NOT_FOR = {
    "phantom": "real micrographs: it has never seen one. It shows what the commands do",
    "loops_316L": "other materials, other defects than dislocation loops, other magnifications, or counts that a "
    "result rests on without labels of your own to check them",
}


def held_out(P: Profile) -> pd.DataFrame:
    """Scores of the EXP detectors of the longest list on their test patches: a row per split and seed."""
    runs, longest = Layout(P), [k for k in P.detectors() if k["arm"] == "EXP" and k["n_train"] == max(P.sizes)]
    files = [(runs.detector(**k) / "predictions" / "test.parquet", runs.patches(k["split"], "test")) for k in longest]
    return pd.concat(evaluate_files(found, truth, [0.5], [CONFIDENCE]) for found, truth in files)


def main(name: str) -> None:
    """Write weights and card of the detector of a data set."""
    P, folder = load_profile(PROFILE[name]), root() / "weights" / f".{name}"
    scores = held_out(P)[["f1_detect", "precision", "recall", "f1_class"]].dropna(axis=1)
    if name == "phantom":
        trained_on = f"the {max(P.sizes)} simulated micrographs of split {P.split_names[0]} of profile `{P.name}`"
        made = Layout(P).detector(P.split_names[0], max(P.sizes), "EXP", P.seeds[0])
    else:
        dataset, cut, made = load_dataset(obtain(P.dataset, P.phantom, P.root_seed)), P.patches, folder
        patches, _ = cut_patches(dataset, dataset.files, cut.size, cut.train_stride, cut.min_visible, cut.symmetries)
        trained_on = f"all {len(dataset.files)} micrographs of `{name}` with the settings of profile `{P.name}`"
        recipe = recipe_of("EXP", patches, None, P.detection, Seeds(P.root_seed, "detector", "all micrographs"))
        train_detector(recipe, P.detection, open_device(P.device), folder)
    rows = [(s, f"{scores[s].mean():.3f}", f"{scores[s].min():.3f} to {scores[s].max():.3f}") for s in scores]
    shutil.copyfile(made / "weights.safetensors", root() / "weights" / f"detector_{name}.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    write_text(root() / "weights" / f"detector_{name}.md", "\n".join([
        f"# detector_{name}.safetensors\n", f"Trained on {trained_on}; `companion predict {name} IMAGE` uses it.\n",
        f"What {len(scores)} detectors of the same settings scored on micrographs that they were not trained on, at "
        f"confidence {CONFIDENCE} and box IoU 0.5:\n", markdown_table(("score", "mean", "range"), rows),
        f"Not for {NOT_FOR[name]}.\n",
    ]))  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PROFILE:
        sys.exit(f"one of {', '.join(PROFILE)} should be given\n{__doc__}")
    main(sys.argv[1])
