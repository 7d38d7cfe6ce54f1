"""The table of notebooks: what each is called, where its results go, and what it reads of the profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter
from typing import Any, Literal

from companion.config.profile import Arm, Count, Whole
from companion.places import split_name

Masks = Literal["plain", "rare", "resynth", "render"]
# The pool of generated patches that each arm reads: the `masks` of its stage, or "filtered", which is part of
# `plain`. resynth: from real training masks; render: simulated masks painted by the phantom, without a network.
POOLS = {
    "EXP+GEN": "plain", "GEN": "plain", "EXP+RARE": "rare",
    "EXP+RESYNTH": "resynth", "EXP+RENDER": "render", "EXP+FILTERED": "filtered",
}  # fmt: skip
KEYS: dict[str, Any] = {
    "split": Whole | str, "n_train": Count, "generator": Whole, "arm": Arm, "seed": Whole, "masks": Masks,
}  # fmt: skip
COMPUTE = ("threads", "device", "precision")
COMPILED = (*COMPUTE, "compile", "channels_last")


@dataclass(frozen=True)
class Kind:
    """One notebook of the paper."""

    name: str
    notebook: str
    folder: str  # below runs/<profile>/<dataset>/; its fields are the keys that tell its stages apart
    sections: tuple[str, ...]  # what it reads of the profile
    knobs: Mapping[str, str] = field(default_factory=dict)  # notebook parameters that override the profile
    study: bool = False  # beyond the paper: on phantoms of its own, reading no other stage, if the profile names it

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(name for _, name, _, _ in Formatter().parse(self.folder) if name)

    def address(self, keys: Mapping[str, Any]) -> str:
        """Folder of the stage with these keys, below runs/<profile>/<dataset>/."""
        return self.folder.format(**{**keys, "split": split_name(keys.get("split", ""))})

    @property
    def trained(self) -> bool:
        """Whether it trains a network or samples from one; the others are analysis, run on any CPU in seconds."""
        return "device" in self.sections


_CONDITION = "split-{split}/n-{n_train}"
_GENERATOR = _CONDITION + "/generator-{generator}"
_CHAIN = ("patches", "masks", "diffusion", "sampling", "detection", "evaluation", "extensions", *COMPILED)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("micrographs", "01_micrographs", "split-{split}/micrographs",
             ("dataset", "sizes", "n_test", "n_val", "group_by", "phantom", "patches")),
        Kind("statistics", "02_mask_statistics", _CONDITION + "/statistics", ()),
        Kind("masks", "03_mask_simulation", _CONDITION + "/simulated-{masks}", ("masks", "patches"),
             {"n_patches": "masks.n_patches"}),
        Kind("diffusion", "04_latent_diffusion", _GENERATOR + "/diffusion", ("diffusion", *COMPILED),
             {"autoencoder_steps": "diffusion.autoencoder.steps", "denoiser_steps": "diffusion.denoiser.steps"}),
        Kind("generated", "05_generated_images", _GENERATOR + "/generated-{masks}", ("sampling", "phantom", *COMPILED),
             {"sampling_steps": "sampling.steps"}),
        Kind("detector", "06_mask_rcnn", _CONDITION + "/{arm}/seed-{seed}", ("detection", *COMPUTE),
             {"steps": "detection.steps"}),
        Kind("thresholds", "07_thresholds", "thresholds", ("evaluation",), {"iou": "evaluation.iou"}),
        Kind("sizes", "08_sizes_and_splits", "sizes", ("evaluation",)),
        Kind("significance", "09_significance", "significance", ("evaluation", "generator_per_seed")),
        Kind("imbalance", "10_class_imbalance", "imbalance",
             ("evaluation", "masks", "generator_per_seed")),
        Kind("claims", "11_claims", "claims", ("evaluation", "generator_per_seed")),
        Kind("errors", "12_errors", "errors", ("evaluation",)),
        Kind("faithfulness", "13_mask_faithfulness", _GENERATOR + "/faithfulness",
             ("arms", "evaluation", "faithfulness", "phantom", "sampling", *COMPUTE)),
        Kind("bias", "14_annotation_bias", "annotation-bias", _CHAIN, study=True),
        Kind("feedback", "15_feedback_loop", "feedback-loop", _CHAIN, study=True),
        Kind("shift", "16_distribution_shift", "distribution-shift", _CHAIN, study=True),
    )
}  # fmt: skip
