"""Every number of the studies beyond the paper, which the phantom's exact truth makes possible."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from companion.config.base import Count, Positive, Section, Share, Whole
from companion.config.phantom import Phantom

Study = Literal["bias", "feedback", "shift"]


class Annotation(Section):
    """An annotator of the bias study: what is overlooked and confused at random, the rest is drawn exactly."""

    miss: Share = Field(0.0, description="share of all defects that are overlooked")
    confusion: Share = Field(0.0, description="share of defects that get the class most easily confused with theirs")


class Shift(Section):
    """How the micrographs of a test domain differ from those trained on; None: not at all."""

    pixel_size_nm: Positive | None = Field(None, description="another magnification, nm per px")
    beam: Literal["001", "110", "111"] | None = Field(None, description="another zone axis along the beam")
    dose_electrons: Positive | None = Field(None, description="another dose, mean electrons per px")

    def changes(self) -> dict[str, Any]:
        """Entries of `Phantom` that differ."""
        given = self.model_dump(exclude_none=True)
        if "pixel_size_nm" in given:
            given["magnifications"] = {"shifted": (given.pop("pixel_size_nm"), 1.0)}
        return given


class Extensions(Section):
    """Studies on phantoms of their own: small fields of view, each a crystal of its own, with exact truth."""

    studies: list[Study] = Field([], description="which run (on the phantom only); empty: none")
    phantom: Phantom = Field(
        Phantom(preset="easy"), description="what the micrographs show; their number and size follow from what is below"
    )
    seeds: list[Whole] = Field([1, 2], min_length=1, description="detector seeds, the pairs of every comparison")
    image_px: Annotated[int, Field(ge=64, le=4096, strict=True)] = Field(192, description="side of a micrograph, px")
    n_train: Count = Field(8, description="training micrographs")
    n_val: Count = Field(2, description="micrographs that choose thresholds and steer masks")
    n_test: Count = Field(5, description="test micrographs")
    patch_px: Count = Field(64, description="side of a patch and distance of patches, px; a multiple of 32")
    n_generated: Count = Field(32, description="generated patches of a pool; a second round adds as many")
    denoiser_steps: Count = Field(25, description="optimiser steps of each denoiser")
    denoiser_batch: Count = Field(8, description="patches per denoiser step")
    sampling_steps: Count = Field(8, description="denoising steps of a generated patch")
    detector_steps: Count = Field(40, description="optimiser steps of each detector, equal in every arm and round")
    detector_batch: Count = Field(4, description="patches per detector step")
    max_detections: Count = Field(25, description="predictions per patch at most")
    annotators: list[Annotation] = Field(
        [Annotation(miss=0.4, confusion=0.4)], min_length=1, description="compared with an annotator without errors"
    )
    size_groups: Count = Field(2, description="groups of defect size, with class, by whose errors masks are steered")
    shifts: dict[str, Shift] = Field(
        {
            "magnification": Shift(pixel_size_nm=0.6), "beam [110]": Shift(beam="110"),
            "a quarter of the dose": Shift(dose_electrons=50.0),
        },
        min_length=1, description="test domains by name",
    )  # fmt: skip

    @model_validator(mode="after")
    def _usable(self) -> Extensions:
        if self.patch_px % 32 or self.patch_px > self.image_px:
            raise ValueError(
                f"patch_px {self.patch_px} should be a multiple of 32 and at most image_px {self.image_px}"
            )
        for name in ("seeds", "studies"):
            if len(set(values := getattr(self, name))) != len(values):
                raise ValueError(f"{name} {values} names a value twice")
        if Annotation() in self.annotators:
            raise ValueError("annotators lists one without errors, who is compared with anyway")
        if blank := [name for name, shift in self.shifts.items() if not shift.changes()]:
            raise ValueError(f"shifts {blank} change nothing")
        return self
