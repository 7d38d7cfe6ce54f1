"""Numbers of each stage beside the diffusion's and the phantom's: patches, masks, detector, scores, studies, device."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from companion.config.base import Count, Positive, Section, Share, Whole


class Device(Section):
    """Where and how networks run; the same profile serves two cores and a GPU."""

    name: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where torch sees one")
    threads: Count = Field(1, description="CPU threads per job; results are equal to the bit for equal threads")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products and convolutions")
    compile: bool = Field(False, description="torch.compile networks (minutes, then faster on a GPU)")
    channels_last: bool = Field(False, description="memory layout of the diffusion's weights; faster compiled on a GPU")


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


Repair = Literal["empty-patches", "composition", "magnification", "azimuth", "overlap", "borders", "merging"]


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

    backend: Literal["torchvision", "detectron2"] = Field(
        "torchvision", description="whose Mask R-CNN; detectron2: the authors'"
    )
    network: Literal["tiny", "r50-fpn"] = Field(
        "tiny", description="tiny: 0.9 M parameters; r50-fpn: the paper's, 44 M"
    )
    weights: str | None = Field(None, description="path of pretrained weights; none: from scratch")
    steps: Count = Field(120, description="optimiser steps, equal in every arm")
    batch_size: Count = Field(8, description="patches per step")
    learning_rate: Positive = Field(2e-3, description="peak learning rate")
    optimizer: Literal["adamw-one-cycle", "sgd"] = Field("adamw-one-cycle", description="sgd is the paper's")
    warmup_steps: Whole = Field(0, description="steps of a linear warm-up of SGD; detectron2's default is 1,000")
    generated_share: Share = Field(0.5, description="share of a batch that an arm adds to labelled patches")
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
    suppression: Literal["per class", "across classes"] = Field(
        "per class", description="which predictions on one place a better one removes; per class: Mask R-CNN's"
    )
    checkpoint_every: Count = Field(50, description="steps between checkpoints")

    @model_validator(mode="after")
    def _anchors_and_size_fit(self) -> Detection:
        if len({1 if isinstance(size, int) else len(size) for size in self.anchor_sizes_px}) > 1:
            raise ValueError(f"anchor_sizes_px {self.anchor_sizes_px} has more sizes on one level than on another")
        if len(self.anchor_sizes_px) != (levels := {"tiny": 3, "r50-fpn": 5}[self.network]):
            raise ValueError(f"anchor_sizes_px {self.anchor_sizes_px}: network '{self.network}' has {levels} levels")
        if self.resize_px is not None and self.resize_px % 32:
            raise ValueError(f"resize_px {self.resize_px} is not a multiple of 32, which the networks need")
        if self.backend == "detectron2" and self.network != "r50-fpn":
            raise ValueError(f"network '{self.network}' is not built with detectron2; use r50-fpn")
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

    matching: Literal["truth-greedy", "score-greedy"] = Field(
        "truth-greedy", description="which prediction is which truth: the authors' rule, or COCO's"
    )
    iou: Share = Field(0.5, description="box IoU of the headline figures (the paper does not say which it used)")
    iou_sweep: list[Share] = Field(
        [round(0.1 * k, 1) for k in range(1, 10)], min_length=1, description="box IoU thresholds swept"
    )
    confidence_sweep: list[Share] = Field(
        [round(0.05 * k, 2) for k in range(1, 20)], min_length=1, description="score thresholds swept"
    )
    confidence: Share = Field(0.5, description="score threshold where none is chosen from the curves")
    equivalence_margin: Positive = Field(0.01, description="differences of F1 within it count as none")
    bootstrap: Count = Field(1000, description="resamples behind each bootstrap interval of scores")
    confidence_level: Share = Field(0.95, description="of every interval of scores")

    @model_validator(mode="after")
    def _headline_is_swept(self) -> Evaluation:
        if self.iou not in self.iou_sweep:
            raise ValueError(f"iou {self.iou} is not in iou_sweep {self.iou_sweep}")
        if self.confidence not in self.confidence_sweep:
            raise ValueError(f"confidence {self.confidence} is not in confidence_sweep {self.confidence_sweep}")
        return self


class Shift(Section):
    """How test micrographs differ from those trained on; None: not at all."""

    pixel_size_nm: Positive | None = Field(None, description="another magnification, nm per px")
    beam: Literal["001", "110", "111"] | None = Field(None, description="another zone axis along the beam")
    dose_electrons: Positive | None = Field(None, description="another dose, mean electrons per px")

    def changes(self) -> dict[str, Any]:
        """Entries of `Phantom` that differ."""
        given = self.model_dump(exclude_none=True)
        if "pixel_size_nm" in given:
            given["magnifications"] = {"shifted": (given.pop("pixel_size_nm"), 1.0)}
        return given


class Studies(Section):
    """Notebooks 14 and 15, beyond the paper, which the phantom's exact truth makes possible."""

    bias_n_train: Count | None = Field(
        None, description="N at which 14 trains a model and detectors on exact labels, beside the run's; None: not run"
    )
    shifts: dict[str, Shift] = Field(
        {}, description="test sets by name on which 15 tests the run's detectors; {}: not run"
    )
    n_test: Count = Field(6, description="micrographs of each shifted test set")

    @model_validator(mode="after")
    def _shifts_shift(self) -> Studies:
        if blank := [name for name, shift in self.shifts.items() if not shift.changes()]:
            raise ValueError(f"shifts {blank} change nothing")
        return self
