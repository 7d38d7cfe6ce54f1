"""A small copy of the project: the real Snakefile over notebooks that only write small files, for tests of the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from companion.config import load_profile
from companion.layout import Layout

ROOT = Path(__file__).resolve().parents[1]
PROFILE = """
splits: [1]
sizes: [2]
arms: [EXP, EXP+GEN]
seeds: [1, 2]
n_test: 2
n_val: 1
phantom: {n_images: 5}
detection: {steps: 7}
evaluation: {confidence: 0.5}
"""
# What each notebook reads of the profile, and its parameters beside profile and dataset.
READS = {
    "01_micrographs": ("split", "P.phantom, P.sizes, P.split_source(split)"),
    "02_mask_statistics": ("split n_train", "1"),
    "03_mask_simulation": ("split n_train masks", "P.masks"),
    "04_latent_diffusion": ("split n_train model", "P.diffusion, P.device"),
    "05_generated_images": ("split n_train model masks", "P.sampling, P.device"),
    "06_mask_rcnn": ("split n_train arm seed", "P.detection, P.device, ARMS[arm].model"),
    "07_thresholds": ("", "P.evaluation.iou, P.detectors()"),
    "08_sizes_and_splits": ("", "P.evaluation.confidence_level"),
    "09_significance": ("", "P.evaluation.bootstrap"),
    "10_class_imbalance": ("", "P.evaluation.equivalence_margin"),
    "11_claims": ("", "1"),
    "12_errors": ("", "P.evaluation.iou"),
    "13_mask_faithfulness": ("split n_train", "P.faithfulness, P.device"),
}
FOLDERS = {
    "01_micrographs": "runs.micrographs(split)", "02_mask_statistics": "runs.statistics(split, n_train)",
    "03_mask_simulation": "runs.masks(split, n_train, masks)",
    "04_latent_diffusion": "runs.diffusion(split, n_train, model)",
    "05_generated_images": "runs.generated(split, n_train, model, masks)",
    "06_mask_rcnn": "runs.detector(split, n_train, arm, seed)",
    "13_mask_faithfulness": "runs.faithfulness(split, n_train)",
    **{name: f"runs.page('{page}')" for name, page in (
        ("07_thresholds", "thresholds"), ("08_sizes_and_splits", "sizes"), ("09_significance", "significance"),
        ("10_class_imbalance", "imbalance"), ("11_claims", "claims"), ("12_errors", "errors"))},
}  # fmt: skip
BELOW = {
    "01_micrographs": ["test", "val", "train-n2"],
    "03_mask_simulation": ["patches"], "05_generated_images": ["patches"],
    "06_mask_rcnn": ["predictions"], "13_mask_faithfulness": ["kept"],
}  # fmt: skip


def notebook(name: str, more: str = "") -> nbformat.NotebookNode:
    """A notebook that writes what it read of the profile to each of its folders."""
    keys, reads = READS[name]
    given = "".join(f"{key} = {'0' if key in ('n_train', 'seed') else repr('')}\n" for key in keys.split())
    below = ["", *BELOW.get(name, [])]
    work = (
        "from companion.config import ARMS, load_profile\nfrom companion.layout import Layout, check_parameters\n"
        "from companion.provenance import write_json\ncheck_parameters()\n"
        f"P = load_profile(profile, dataset=dataset)\nruns = Layout(P)\nout = runs.output({FOLDERS[name]})\n"
        f"read = [str(each) for each in [{reads}]]\n"
        f"for part in {below}:\n    told = read if not part else read[:1]\n"
        f"    write_json(out / part / 'result.json', [part, *told])\n{more}"
    )
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(f'profile = "tiny"\ndataset = "phantom"\n{given}', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(work),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


class Project:
    """A project folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "profiles").mkdir(parents=True)
        (root / "notebooks").mkdir()
        (root / "profiles" / "tiny.yaml").write_text(PROFILE)
        shutil.copy(ROOT / "Snakefile", root / "Snakefile")
        for name in READS:
            self.write(name)

    def write(self, name: str, more: str = "") -> None:
        """Write a notebook, with `more` at the end of its code."""
        nbformat.write(notebook(name, more), self.root / "notebooks" / f"{name}.ipynb")

    def edit(self, **entries: object) -> None:
        """Change entries of the profile."""
        path = self.root / "profiles" / "tiny.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("COMPANION_")}
        return {**kept, "COMPANION_ROOT": str(self.root)}

    def companion(self, *words: str, code: int = 0, **more: str) -> str:
        """What a command prints, with more in its environment; it must end with exit code `code`."""
        command = [sys.executable, "-m", "companion.cli", *words]
        place = {**self.environment, **more}
        done = subprocess.run(command, env=place, capture_output=True, text=True, cwd=self.root, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def tree(self, folder: str = "tiny") -> Path:
        return self.root / "runs" / folder / "phantom"

    def stamps(self, folder: str = "tiny") -> dict[str, dict]:
        """Every stamp of a run by the folder of its stage."""
        tree = self.tree(folder)
        return {p.parent.relative_to(tree).as_posix(): json.loads(p.read_text()) for p in tree.rglob("stamp.json")}

    def ran(self, before: dict[str, dict], folder: str = "tiny") -> set[str]:
        """Stages that have been run since `before`."""
        when = ("started", "wall_s")
        return {
            name for name, stamp in self.stamps(folder).items()
            if [before.get(name, {}).get(key) for key in when] != [stamp[key] for key in when]
        }  # fmt: skip

    def layout(self) -> Layout:
        return Layout(load_profile(self.root / "profiles" / "tiny.yaml"), Path())
