"""One arm of a study: patches, simulated masks, generator, generated patches, detector, scores against the truth.

Networks and checkpoints lie in the stage's ``checkpoint/`` until the study is done, each found again by the identity
of its training: a study that was interrupted continues with the first training that is not finished.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion import seeds
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.detection.predict import predict
from companion.detection.recipes import recipe
from companion.detection.train import train_detector
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.denoiser import Denoiser
from companion.diffusion.noise import NoiseModel
from companion.diffusion.sample import generate, noise_of
from companion.diffusion.train import get_denoiser
from companion.diffusion.train_autoencoder import get_autoencoder
from companion.evaluation.scores import Counts, count, pooled
from companion.evaluation.significance import paired_t
from companion.masks import statistics
from companion.masks.simulate import simulate
from companion.config.profile import Profile, validate
from companion.config.phantom import Annotator, Phantom
from companion.phantom.render import TRUTH, render_dataset
from companion.provenance import write_table
from companion.stages import Stage
from companion.training import CHECKPOINT, Compute, compute

MEASURES = ("f1_detect", "f1_class", "f1_hm", "precision", "recall")


@dataclass(frozen=True)
class Field:
    """Micrographs as patches, with what an annotator labelled and with the exact truth of the same pixels."""

    labels: Patches
    truth: Patches


@dataclass(frozen=True)
class Generator:
    """A mask-conditioned latent diffusion model and the patches that it was trained on."""

    train: Patches
    autoencoder: Autoencoder
    denoiser: Denoiser
    noise: NoiseModel | None


@dataclass(frozen=True)
class Study:
    """A stage with the numbers of its section applied to the others.

    Attributes
    ----------
    stage : the notebook's stage
    profile : the stage's, with sizes, steps and batches of section extensions
    machine : device, precision and root seed
    """

    stage: Stage
    profile: Profile
    machine: Compute

    def folder(self, *names: str | int) -> Path:
        """Where networks and checkpoints of a part of the study are kept until `close`."""
        return self.stage.folder.joinpath(CHECKPOINT, *map(str, names))

    def close(self, **tables: pd.DataFrame) -> None:
        """Write tables as parquet and remove networks and checkpoints."""
        for name, table in tables.items():
            write_table(self.stage.folder / f"{name}.parquet", table)
        shutil.rmtree(self.folder(), ignore_errors=True)


def open_study(stage: Stage) -> Study:
    """The study of a stage, its section of the profile applied to the sections of networks and masks."""
    own, values = stage.profile.extensions, stage.profile.model_dump()
    values["patches"]["size"] = own.patch_px
    values["masks"]["n_patches"] = own.n_generated
    values["diffusion"]["denoiser"] |= {"steps": own.denoiser_steps, "batch_size": own.denoiser_batch}
    values["sampling"]["steps"] = own.sampling_steps
    values["detection"] |= {"steps": own.detector_steps, "batch_size": own.detector_batch,
                            "max_detections": own.max_detections}  # fmt: skip
    profile = validate(Profile, values, f"extensions of profile '{stage.profile.name}'")
    return Study(stage, profile, compute(stage.profile))


def draw_fields(study: Study, annotator: Annotator | None = None, **changes: Any) -> dict[str, Field]:
    """Micrographs drawn for the studies, cut into patches.

    Equal numbers of micrographs have equal scenes whatever the annotator or the dose, so conditions are compared on
    the same defects. Neighbouring micrographs share no crystal, and none shows a field again.

    Parameters
    ----------
    annotator : who labels; None: without errors
    changes : entries of ``extensions.phantom`` that differ

    Returns
    -------
    "train", "val" and "test"
    """
    own, cut = study.profile.extensions, study.profile.patches
    given = {
        **own.phantom.model_dump(), "size_px": own.image_px, "n_images": own.n_train + own.n_val + own.n_test,
        "frames_per_grain": 1, "duplicate_share": 0.0, **changes,
        "annotator": (annotator or Annotator()).model_dump(),
    }  # fmt: skip
    phantom = validate(Phantom, given, "phantom of a study")
    with tempfile.TemporaryDirectory() as scratch:
        render_dataset(phantom, seeds.integer(study.profile.root_seed, "extensions"), Path(scratch))
        labelled, exact = load_dataset(scratch), load_dataset(scratch, TRUTH)
        files = np.split(np.array(labelled.files), [own.n_train, own.n_train + own.n_val])
        fields = {}
        for name, chosen in zip(("train", "val", "test"), files, strict=True):
            turns = cut.symmetries if name == "train" else (0,)
            both = [
                cut_patches(d, list(chosen), cut.size, cut.size, cut.min_visible, turns)[0] for d in (labelled, exact)
            ]
            fields[name] = Field(*both)
    return fields


def train_generator(study: Study, train: Patches, name: str) -> Generator:
    """Latent diffusion on training patches; `name` is its folder, the random draws are the same for every name."""
    diffusion = study.profile.diffusion
    setting = {"machine": study.machine, "name": study.stage.address, "folder": study.folder(name),
               "every": diffusion.checkpoint_every}  # fmt: skip
    autoencoder, _ = get_autoencoder(train, diffusion.autoencoder, **setting)
    denoiser, _ = get_denoiser(train, autoencoder, diffusion.denoiser, **setting)
    return Generator(train, autoencoder, denoiser, noise_of(train, autoencoder, study.profile.sampling))


def draw_pool(
    study: Study,
    generator: Generator,
    *names: str | int,
    tables: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> Patches:
    """Generated patches of simulated masks.

    Parameters
    ----------
    names : path of names that masks and noise descend from
    tables : statistics and counts that the masks are drawn from; those of the generator's training patches unless
        given
    """
    train, profile = generator.train, study.profile
    measured, numbers = tables or (statistics.measure(train), statistics.counts(train))
    drawn = simulate(
        measured, numbers, train, profile.masks, study.stage.rng("masks", *names), study.stage.address,
        min_visible=profile.patches.min_visible,
    )  # fmt: skip
    return generate(
        generator.autoencoder, generator.denoiser, drawn.patches, profile.sampling, machine=study.machine,
        name="/".join(map(str, (study.stage.address, *names))), folder=study.folder("pool", *names),
        noise=generator.noise,
    )  # fmt: skip


def detect(
    study: Study, arm: str, seed: int, pools: Mapping[str, Patches], images: Mapping[str, Patches], *names: str
) -> dict[str, pd.DataFrame]:
    """Train the detector of an arm and predict.

    Detectors of one seed start alike and draw their batches alike, whatever the arm and the labels.

    Parameters
    ----------
    pools : patches "real" and, where the arm has them, "generated"
    images : sets of patches to predict, by name
    names : its folder

    Returns
    -------
    Predictions by name of the set.
    """
    profile, settings = study.profile, study.profile.detection
    made = recipe(
        arm, pools, batch_size=settings.batch_size, generated_share=settings.generated_share,
        root_seed=profile.root_seed, names=(study.stage.address, seed),
    )  # fmt: skip
    inputs = {name: _digest(patches) for name, patches in made.pools.items()}
    folder = study.folder(*names, arm, f"seed-{seed}")
    detector, _ = train_detector(made, settings, study.machine, folder, inputs=inputs)
    return {name: predict(detector, np.asarray(patches.images), study.machine) for name, patches in images.items()}


def score_arm(
    study: Study,
    arm: str,
    seed: int,
    pools: Mapping[str, Patches],
    val: Patches,
    tests: Mapping[str, Patches],
    *names: str,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """One arm of a study: train, choose the confidence on validation patches, score on every test set.

    Parameters
    ----------
    pools : see `detect`
    val : validation patches as their annotator labelled them, the only images that choose the confidence (highest
        F1_detect, of equal ones the lowest)
    tests : labelled test patches by name; sets of one name before the colon share their images and predictions

    Returns
    -------
    rows : one per test set: arm, seed, tested, real, generated, steps, confidence, tp, fp, fn, the `MEASURES`, and
        best_on_test (F1_detect at the confidence that is best on the test set itself)
    found : predictions on `val` that reach the confidence
    """
    evaluation = study.profile.evaluation
    images = {name.split(":")[0]: patches for name, patches in tests.items()}
    predictions = detect(study, arm, seed, pools, {"val": val, **images}, *names)

    def sweep(found: pd.DataFrame, patches: Patches) -> Counts:
        codes = range(1, len(patches.classes) + 1)
        return count(
            found, patches.table, range(len(patches)), codes, [evaluation.iou], evaluation.confidence_sweep,
            evaluation.matching,
        )  # fmt: skip

    chosen = _best(pooled(sweep(predictions["val"], val))["f1_detect"][0])
    confidence = evaluation.confidence_sweep[chosen]
    rows = []
    for name, patches in tests.items():
        scores = pooled(sweep(predictions[name.split(":")[0]], patches))
        rows.append({
            "arm": arm, "seed": seed, "tested": name, "real": len(pools["real"]),
            "generated": len(pools["generated"]) if arm != "EXP" else 0, "steps": study.profile.detection.steps,
            "confidence": confidence, **{key: int(scores[key][0, chosen]) for key in ("tp", "fp", "fn")},
            **{key: float(scores[key][0, chosen]) for key in MEASURES},
            "best_on_test": float(scores["f1_detect"][0, _best(scores["f1_detect"][0])]),
        })  # fmt: skip
    kept = predictions["val"]
    return rows, kept[kept["score"] >= confidence].reset_index(drop=True)


def paired(differences: pd.Series, level: float, **keys: Any) -> dict[str, Any]:
    """A row of an effect table: `keys`, then mean, low, high, n and p of a paired difference over seeds."""
    test = paired_t(differences.to_numpy(dtype=float), level)
    return {**keys, **{name: test[name] for name in ("mean", "low", "high", "n", "p")}}


def _best(curve: np.ndarray) -> int:
    return int(np.nanargmax(curve)) if np.isfinite(curve).any() else len(curve) // 2


def _digest(patches: Patches) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(patches.images))
    digest.update(np.ascontiguousarray(patches.instances))
    digest.update(patches.table.to_csv(index=False).encode())
    return digest.hexdigest() + str(patches.symmetries)
