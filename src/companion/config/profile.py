"""Every number of a run, in one tree of frozen, validated models.

A profile YAML (``profiles/smoke.yaml``) is validated against `Profile` whole: an unknown, misspelt or
ill-typed entry stops the run before any work. Each stage reads only its own section, so a changed
number reruns only what depends on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from companion import paths
from companion.errors import CompanionError, nearest, problems
from companion.config.base import Count, Positive, Section, Share, Whole
from companion.config.diffusion import Autoencoder, Denoiser, Diffusion, Sampling  # noqa: F401 (part of the tree)
from companion.config.studies import Extensions
from companion.config.phantom import Phantom

Arm = Literal["EXP", "EXP+GEN", "EXP+RARE", "GEN", "EXP+EXP", "EXP+PASTE", "EXP+RESYNTH", "EXP+RENDER", "EXP+FILTERED"]
Splits = Annotated[list[Whole | str], Field(min_length=1)]
Model = TypeVar("Model", bound=BaseModel)


class Patches(Section):
    """How micrographs are cut."""

    size: Count = Field(128, description="side of the square patch, px; a multiple of 32")
    train_stride: Count = Field(96, description="distance of training crops, px")
    test_stride: Count = Field(96, description="distance of test crops, px")
    symmetries: list[Annotated[int, Field(ge=0, le=7, strict=True)]] = Field(
        [0, 1, 2, 3], min_length=1, description="symmetries of the square that multiply the training patches"
    )
    min_visible: Share = Field(0.25, description="share of an instance that must lie in the patch to be labelled")

    @model_validator(mode="after")
    def _multiple(self) -> Patches:
        if self.size % 32:
            raise ValueError(f"size {self.size} is not a multiple of 32, which the networks need")
        return self


Repair = Literal[
    "empty-patches", "composition", "magnification", "azimuth", "overlap", "borders", "positions", "merging"
]


class Masks(Section):
    """Simulated masks."""

    sampler: Literal["authors", "companion", "learned"] = Field(
        "authors", description="authors: the paper's; companion: with every repair; learned: a generative model"
    )
    repairs: list[Repair] = Field([], description="simplifications of the paper's sampler that are put right")
    compare: list[Literal["companion", "learned"]] = Field(
        ["companion"], description="samplers judged beside the paper's; the learned one takes half a minute to train"
    )
    outlines: Literal["ellipse", "instance"] = Field("ellipse", description="filled: ellipses, or real outlines turned")
    n_patches: Count = Field(256, description="simulated masks per condition")
    overlap_buffer_px: Whole = Field(2, description="gap kept between defects (the paper's: axis-aligned boxes), px")
    overlap_tries: Count = Field(80, description="draws before an overlapping instance is placed anyway")
    candidates: Count = Field(16, description="places among which repair 'positions' chooses by real interaction")
    crystal_fold: Literal[2, 4, 6] = Field(4, description="symmetry of directions: 4 for beam [001], 2 [110], 6 [111]")
    learned_steps: Count = Field(400, description="optimiser steps of the learned sampler")
    rare_class_weight: Positive = Field(2.0, description="factor on the rarest class's frequency in the rare trial")

    @model_validator(mode="after")
    def _repairs_have_a_use(self) -> Masks:
        if self.repairs and self.sampler != "authors":
            raise ValueError(f"repairs {self.repairs} are for sampler 'authors'; '{self.sampler}' takes none")
        return self


class Detection(Section):
    """Mask R-CNN."""

    backend: Literal["batched", "torchvision", "detectron2"] = Field(
        "batched", description="batched: torchvision's network without its loops over images; detectron2: the authors'"
    )
    compile: bool = Field(False, description="torch.compile the batched backend (minutes, then faster on a GPU)")
    network: Literal["tiny", "compact", "r50-fpn"] = Field(
        "tiny", description="tiny: 0.9 M parameters; compact: 3.4 M; r50-fpn: the paper's, 44 M"
    )
    weights: str | None = Field(None, description="path of pretrained weights; none: from scratch")
    steps: Count = Field(120, description="optimiser steps, equal in every arm")
    batch_size: Count = Field(8, description="patches per step")
    learning_rate: Positive = Field(2e-3, description="peak learning rate")
    optimizer: Literal["adamw-one-cycle", "sgd"] = Field("adamw-one-cycle", description="sgd is the paper's")
    warmup_steps: Whole = Field(0, description="steps of a linear warm-up of SGD; detectron2's default is 1,000")
    generated_share: Share = Field(0.5, description="share of generated patches in a batch of EXP+GEN")
    anchor_sizes_px: list[Count | Annotated[list[Count], Field(min_length=1)]] = Field(
        [8, 16, 32], description="sides of anchors per feature level, one or a list; as many on every level"
    )
    resize_px: Count | None = Field(None, description="side at which the detector sees a patch; None: as it is")
    rois_per_image: Count = Field(64, description="regions sampled per patch in training")
    proposals: Count = Field(100, description="region proposals kept per patch")
    rpn_iou: tuple[Share, Share] = Field((0.3, 0.7), description="anchor IoU: background below, defect above")
    roi_iou: Share = Field(0.4, description="region IoU from which a region is a defect")
    score_floor: Share = Field(0.05, description="predictions below this score are not written")
    max_detections: Count = Field(100, description="predictions per patch at most")
    checkpoint_every: Count = Field(50, description="steps between checkpoints")

    @model_validator(mode="after")
    def _anchors_and_size_fit(self) -> Detection:
        if len({1 if isinstance(size, int) else len(size) for size in self.anchor_sizes_px}) > 1:
            raise ValueError(f"anchor_sizes_px {self.anchor_sizes_px} has more sizes on one level than on another")
        if self.resize_px is not None and self.resize_px % 32:
            raise ValueError(f"resize_px {self.resize_px} is not a multiple of 32, which the networks need")
        return self


class Faithfulness(Section):
    """What a detector trained on real images alone says of generated ones."""

    iou: Share = Field(0.5, description="box IoU from which a defect of the mask is found")
    confidence: Share = Field(0.5, description="score from which a prediction counts")
    least_confirmed: Share = Field(
        0.5,
        description="share of its defects that must be found, under their class, for a pair to stay in EXP+FILTERED",
    )


class Evaluation(Section):
    """Scores and tests."""

    matching: Literal["truth-greedy", "score-greedy", "optimal"] = Field("truth-greedy", description="the authors'")
    iou: Share = Field(0.5, description="box IoU of the headline figures (the paper does not say which it used)")
    iou_sweep: list[Share] = Field(
        [round(0.1 * k, 1) for k in range(1, 10)], min_length=1, description="box IoU thresholds swept"
    )
    confidence_sweep: list[Share] = Field(
        [round(0.05 * k, 2) for k in range(1, 20)], min_length=1, description="score thresholds swept"
    )
    confidence: Share = Field(0.5, description="score threshold where none is chosen from the curves")
    equivalence_margin: Positive = Field(0.01, description="differences of F1 within it count as none")
    bootstrap: Count = Field(1000, description="resamples behind each bootstrap interval")
    confidence_level: Share = Field(0.95, description="of every interval")

    @model_validator(mode="after")
    def _headline_is_swept(self) -> Evaluation:
        if self.iou not in self.iou_sweep:
            raise ValueError(f"iou {self.iou} is not in iou_sweep {self.iou_sweep}")
        if self.confidence not in self.confidence_sweep:
            raise ValueError(f"confidence {self.confidence} is not in confidence_sweep {self.confidence_sweep}")
        return self


class Profile(Section):
    """All parameters of a run."""

    name: str = Field(description="folder name in the run tree; the YAML file's stem unless given")
    description: str = Field("", description="for whom and how long, one line")
    root_seed: Whole = Field(20260602, description="every random draw descends from it")
    threads: Count = Field(1, description="CPU threads per job; results are equal to the bit for equal threads")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs_per_device: Count = Field(1, description="detectors trained side by side on one GPU of this machine")
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(False, description="compile the diffusion stage's networks (minutes, then faster on a GPU)")
    channels_last: bool = Field(False, description="memory layout of their weights; with compile, faster on a GPU")
    dataset: str = Field("phantom", description="registered name, or path of a data set folder")
    splits: Splits = Field([1], description="numbers (drawn by seed) or split files")
    sizes: list[Count] = Field([10], min_length=1, description="N: training micrographs, nested")
    n_test: Count = Field(6, description="test micrographs per split")
    n_val: Whole = Field(0, description="validation micrographs per split at most; they choose thresholds")
    group_by: dict[str, str] = Field(
        {}, description="data set -> entry of its images, or pattern in file names, that drawn splits keep on one side"
    )
    arms: list[Arm] = Field(["EXP", "EXP+GEN"], min_length=1)
    seeds: list[Whole] = Field([1, 2], min_length=1, description="detector seeds")
    generator_per_seed: bool = Field(
        False,
        description="each detector seed has a generator of its own, so that intervals hold its luck, too",
    )
    imbalance_sizes: list[Count] = Field([], description="N at which the rare class is oversampled; empty: not run")
    phantom: Phantom = Phantom()
    patches: Patches = Patches()
    masks: Masks = Masks()
    diffusion: Diffusion = Diffusion()
    sampling: Sampling = Sampling()
    detection: Detection = Detection()
    faithfulness: Faithfulness = Faithfulness()
    evaluation: Evaluation = Evaluation()
    extensions: Extensions = Extensions()

    @property
    def generators(self) -> list[int]:
        """Numbers of the generators that are trained in each condition."""
        return self.seeds if self.generator_per_seed else self.seeds[:1]

    def generator_of(self, seed: int) -> int:
        """Number of the generator whose images the detectors of a seed see."""
        return seed if self.generator_per_seed else self.seeds[0]

    @model_validator(mode="after")
    def _lists_are_consistent(self) -> Profile:
        for field in ("splits", "sizes", "arms", "seeds", "imbalance_sizes"):
            values = getattr(self, field)
            if len(set(map(str, values))) != len(values):
                raise ValueError(f"{field} {values} names a value twice")
        if missing := set(self.imbalance_sizes) - set(self.sizes):
            raise ValueError(f"imbalance_sizes {sorted(missing)} are not among sizes {self.sizes}")
        return self

    @model_validator(mode="after")
    def _arms_can_be_made(self) -> Profile:
        if "EXP+RENDER" in self.arms and self.dataset != "phantom":
            raise ValueError(
                f"arms: EXP+RENDER paints masks with the phantom's optics and is for dataset phantom, "
                f"not '{self.dataset}'"
            )
        if "EXP+FILTERED" in self.arms and "EXP" not in self.arms:
            raise ValueError("arms: EXP+FILTERED is filtered by an EXP detector; add EXP")
        return self


def profile_names() -> list[str]:
    """Names of the profiles in ``profiles/``."""
    return sorted(path.stem for path in paths.profiles().glob("*.yaml"))


def load_profile(name: str | Path, **overrides: Any) -> Profile:
    """Read and validate a profile.

    Parameters
    ----------
    name : a name in ``profiles/`` or the path of a YAML file
    overrides : top-level entries that replace those of the file, e.g. ``dataset="loops_316L"``

    Raises
    ------
    CompanionError
        Unknown profile, not YAML, or entries that are unknown, ill-typed or out of range (all listed).
    """
    named = str(name)
    path = Path(named) if named.endswith((".yaml", ".yml")) else paths.profiles() / f"{named}.yaml"
    if not path.is_file():
        raise CompanionError(f"no profile '{named}': {nearest(named, profile_names())} (or give a YAML file)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompanionError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise CompanionError(f"{path}: should be a mapping of parameter names to values, holds {content!r}")
    return validate(Profile, {"name": path.stem, **content, **overrides}, source=str(path))


def validate(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """`model` from `values`, or one `CompanionError` that lists every entry that cannot be used."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise problems(f"{source}: {error.error_count()} unusable parameter(s)", _explain(model, error)) from None


def _explain(model: type[BaseModel], error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "(the whole)"
        if item["type"] == "extra_forbidden":
            parent = _section(model, item["loc"][:-1])
            lines.append(f"{place}: no such parameter; {nearest(str(item['loc'][-1]), parent.model_fields)}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            shown = f" (given: {item['input']!r})" if item["type"] not in ("missing", "value_error") else ""
            lines.append(f"{place}: {reason}{shown}")
    return lines


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return model
        model = field.annotation
    return model
