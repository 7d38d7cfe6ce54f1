"""A small copy of the project: the real Snakefile over notebooks that only write small files, for tests of the run."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import nbformat
import yaml

from companion import cli
from companion.workflow import freshness

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))  # of the real notebooks
PROFILE = """
splits: [1]
sizes: [2]
arms: [EXP, EXP+GEN]
seeds: [1]
n_test: 2
n_val: 1
phantom: {n_images: 5}
detection: {steps: 7}
evaluation: {confidence: 0.5}
"""
# Of each notebook: its folder (and so its parameters), what it reads of the profile, folders below its own.
NOTEBOOKS = {
    "01_micrographs": ("micrographs(split)", "P.phantom, P.sizes, P.split_source(split)", "test val train-n2"),
    "02_mask_statistics": ("statistics(split, n_train)", "1", ""),
    "03_mask_simulation": ("masks(split, n_train, masks)", "P.masks", "patches"),
    "04_latent_diffusion": ("diffusion(split, n_train, model)", "P.diffusion, P.device", ""),
    "05_generated_images": ("generated(split, n_train, model, masks)", "P.sampling, P.device", "patches"),
    "06_mask_rcnn": ("detector(split, n_train, arm, seed)", "P.detection, P.device, ARMS[arm].model", "predictions"),
    "07_thresholds": ("page('thresholds')", "P.evaluation.iou, P.detectors()", ""),
    "08_sizes_and_splits": ("page('sizes')", "P.evaluation.confidence_level", ""),
    "09_significance": ("page('significance')", "P.evaluation.bootstrap", ""),
    "10_class_imbalance": ("page('imbalance')", "P.evaluation.equivalence_margin", ""),
    "11_claims": ("page('claims')", "1", ""),
    "12_errors": ("page('errors')", "P.evaluation.iou", ""),
    "13_mask_faithfulness": ("faithfulness(split, n_train)", "P.faithfulness, P.device", "kept"),
}


def notebook(name: str, more: str = "") -> nbformat.NotebookNode:
    """A notebook that writes what it read of the profile to each of its folders."""
    folder, reads, below = NOTEBOOKS[name]
    keys = [] if folder.startswith("page") else folder[folder.index("(") + 1 : -1].split(", ")
    given = "".join(f"{key}: {'int = 0' if key in ('n_train', 'seed') else 'str = None'}\n" for key in keys)
    work = (
        "from companion.config import ARMS, load_profile\nfrom companion.layout import Layout, check_parameters\n"
        "from companion.provenance import write_json\ncheck_parameters()\n"
        f"P = load_profile(profile, dataset=dataset)\nruns = Layout(P)\nout = runs.output(runs.{folder})\n"
        f"read = [str(each) for each in [{reads}]]\n"
        f"for part in {['', *below.split()]}:\n    told = read if not part else read[:1]\n"
        f"    write_json(out / part / 'result.json', [part, *told])\n{more}"
    )
    given = f'profile: str = "tiny"\ndataset: str = "phantom"\n{given}'
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(given, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(work),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


class Project:
    """A project folder of its own: new, a copy of another without Snakemake's records, or one that is there."""

    def __init__(self, root: Path, of: Project | None = None) -> None:
        self.root = root
        if of is not None:
            shutil.copytree(of.root, root, ignore=shutil.ignore_patterns(".snakemake"))
        if root.exists():
            return
        (root / "profiles").mkdir(parents=True)
        (root / "notebooks").mkdir()
        (root / "profiles" / "tiny.yaml").write_text(PROFILE)
        shutil.copy(ROOT / "Snakefile", root / "Snakefile")
        for name in NOTEBOOKS:
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
        """What a command prints, with more in its environment; it must end with exit code `code`.

        It runs in this process: one of its own would spend most of its time on importing the same packages again.
        """
        said, ended = io.StringIO(), 0
        freshness.code.cache_clear()  # of notebooks as they were before the last command
        around = mock.patch.dict(os.environ, self.environment | more, clear=True)
        asked = mock.patch.object(sys, "argv", ["companion", *words])
        with around, asked, chdir(self.root), redirect_stdout(said), redirect_stderr(said):
            try:
                cli.main()
            except SystemExit as end:
                ended = end.code or 0
        freshness.code.cache_clear()
        assert ended == code, said.getvalue()
        return said.getvalue()

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
