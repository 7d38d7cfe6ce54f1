"""Every number of the phantom: what is in a simulated micrograph, how it looks, is recorded and is labelled.

`PRESETS` are starting points by name; a profile names one and changes what it likes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from companion.config.base import Count, Degrees, NotNegative, Positive, Range, Section, Share, Span

# The paper's data as far as they are known: 122 micrographs of 1024 px, three magnification groups, an annotator who
# misses what is faint or crowded.
_FECRAL: dict[str, Any] = {
    "n_images": 122, "size_px": 1024, "defects_per_megapixel": 60.0, "density_spread": 0.45,
    "magnifications": {"70kx": (0.8805, 0.13), "300kx": (0.4785, 0.33), "500kx": (0.2832, 0.54)},
    "contrast": (0.12, 0.45), "frames_per_grain": 3, "dose_electrons": 100.0,
    "contrast_spread": 0.25, "dose_spread": 0.5, "defocus_nm": 0.8,
    "annotator": {"miss": 0.03, "miss_contrast": 0.08, "miss_crowded": 0.15, "outline_jitter": 0.05,
                  "confusion": 0.06},
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    # One magnification, perfect labels: learnable in minutes on two cores.
    "plain": {
        "contrast": (0.25, 0.5), "depth_fade": 0.25, "texture": 0.008, "dislocations_per_megapixel": 3.0,
        "large_loops_per_megapixel": 0.5,
    },
    # For a first lesson: strong contrast and nothing but defects.
    "easy": {
        "contrast": (0.3, 0.5), "depth_fade": 0.0, "dislocations_per_megapixel": 0.0, "large_loops_per_megapixel": 0.0,
        "wedge": 0.0, "bend_contours": 0.0, "texture": 0.0,
    },
    "fecral": _FECRAL,
    # fecral binned by two, for two cores: 512 px micrographs, so that patches of 128 px show what 256 px do there.
    # Every micrograph is of a grain and a session of its own, so that no split by image leaks.
    "binned": {
        **_FECRAL, "size_px": 512, "defects_per_megapixel": 240.0, "frames_per_grain": 1, "row_jitter_px": 0.2,
        "dose_electrons": 400.0,
        "magnifications": {"70kx": (1.761, 0.13), "300kx": (0.957, 0.33), "500kx": (0.5664, 0.54)},
    },
    # Fainter and more crowded than fecral.
    "hard": {
        **_FECRAL, "defects_per_megapixel": 90.0, "density_spread": 0.6, "contrast": (0.06, 0.35),
        "min_visibility": 3.0, "dose_electrons": 80.0, "dose_spread": 0.0,
        "crowding": 0.5, "contrast_spread": 0.0, "defocus_nm": 0.0,
        "annotator": {"miss": 0.05, "miss_contrast": 0.1, "miss_crowded": 0.3, "outline_jitter": 0.08,
                      "confusion": 0.12},
    },
}  # fmt: skip


class Annotator(Section):
    """What stands between truth and labels; all zero is a perfect annotator."""

    miss: Share = Field(0.0, description="share of all defects that are overlooked")
    miss_contrast: Share = Field(0.0, description="amplitude at which half of the defects are overlooked; 0: none")
    miss_crowded: Share = Field(0.0, description="probability of overlooking a defect, for each one that touches it")
    outline_jitter: Share = Field(0.0, description="standard deviation of a drawn outline, share of the radius")
    confusion: Share = Field(0.0, description="share of defects that get the class most easily confused with theirs")


class Phantom(Section):
    """Simulated STEM micrographs with exact truth. Pairs are (low, high), drawn uniformly unless said."""

    preset: Literal["plain", "easy", "binned", "fecral", "hard"] = Field(
        "plain", description="where unnamed values come from"
    )

    # What is there: crystal and defects
    n_images: Count = Field(24, description="micrographs in the data set")
    size_px: Annotated[int, Field(ge=64, le=4096, strict=True)] = Field(512, description="side of the micrograph, px")
    magnifications: dict[str, tuple[Positive, Share]] = Field(
        {"70kx": (0.8805, 1.0)}, description="by name: nm per px, and share of the images; shares sum to 1"
    )
    beam: Literal["001", "110", "111"] = Field("001", description="zone axis along the beam")
    frames_per_grain: Count = Field(1, description="consecutive images that share a grain, so azimuth and tilt")
    defects_per_megapixel: Positive = Field(250.0, description="mean areal density, per 1024 x 1024 px")
    density_spread: Share = Field(0.35, description="standard deviation of the logarithm of an image's density")
    class_shares: tuple[Share, Share, Share] = Field(
        (0.225, 0.340, 0.435), description="shares of <100> loops, <111> loops and black dots; sum 1"
    )
    loop100_nm: Span = Field((8.0, 19.0, 60.0), description="<100> diameter, log-normal: low, median, high (2 sigma)")
    loop111_nm: Span = Field((8.0, 18.0, 45.0), description="<111> diameter, the same way")
    black_dot_nm: Span = Field((4.0, 8.0, 14.0), description="black dot diameter, the same way")
    large_loop_nm: Range = Field((90.0, 220.0), description="diameter of loops too large to be labelled")
    tilt_jitter_deg: Degrees = Field(4.0, description="standard deviation of a loop normal's tilt about its variant")
    zone_error_deg: Degrees = Field(2.0, description="standard deviation of the beam's tilt off the zone axis")
    crowding: Share = Field(0.25, description="how far two defects may overlap, share of the sum of their radii")

    # How it looks
    contrast: Range = Field((0.15, 0.50), description="amplitude of a defect at the top face, share of the local mean")
    depth_fade: Share = Field(0.35, description="share of the amplitude that a defect at the bottom face has lost")
    min_visibility: NotNegative = Field(5.0, description="least contrast-to-noise ratio of a defect; 0: no limit")
    depth_blur_nm: Range = Field((0.3, 0.9), description="blur of a defect at the top and at the bottom face, nm")
    rim_nm: Range = Field((1.5, 4.0), description="width of a loop's dark rim, nm")
    edge_on_nm: Range = Field((3.0, 5.5), description="width of a loop seen edge-on, nm")
    inner_contrast: Range = Field((0.15, 0.5), description="inside of a rimmed loop, share of its rim's amplitude")
    filled_share: Share = Field(0.25, description="share of large loops that are filled instead of rimmed")
    filled_contrast: Range = Field((0.4, 0.8), description="inside of a filled one, the same way")
    no_contrast: Share = Field(0.8, description="share of its contrast that a loop with g.b = 0 loses across g")
    black_white: Share = Field(1.0, description="white lobe of a small loop at a surface, share of the dark one")
    one_sided: Share = Field(0.5, description="by how much one half of a rim at a surface is darker, share")
    line_nm: Range = Field((1.2, 2.6), description="width at half maximum of a dislocation's dark line, nm")
    line_fringes: NotNegative = Field(7.0, description="most extinction distances that a dislocation descends")
    dislocations_per_megapixel: NotNegative = Field(6.0, description="unlabelled curved dislocation lines")
    large_loops_per_megapixel: NotNegative = Field(1.0, description="unlabelled loops too large to be counted")
    wedge: Share = Field(0.25, description="largest loss of signal across the image by a thickness wedge")
    bend_contours: NotNegative = Field(0.4, description="mean number of dark bend contours in an image")
    unevenness: Share = Field(0.05, description="slow variation of the grey level, share of the mean")
    texture: Share = Field(0.015, description="fine mottle of the surfaces, standard deviation, share of the mean")
    texture_nm: Positive = Field(2.5, description="size of the mottle, nm")

    # How it is recorded
    dose_electrons: Positive = Field(200.0, description="mean electrons per px (Poisson noise)")
    detector_noise: Share = Field(0.01, description="standard deviation of the detector's noise, share of full scale")
    afterglow: Share = Field(0.2, description="share of a pixel's signal that reaches the next one of its scan line")
    stripes: Share = Field(0.015, description="standard deviation of the gain of scan lines")
    row_jitter_px: NotNegative = Field(0.3, description="standard deviation of the shift of scan lines, px")
    grey_level: Share = Field(0.66, description="mean grey level, share of full scale")
    gain_drift: Share = Field(0.08, description="standard deviation of an image's mean grey level, share")
    gamma_drift: Share = Field(0.1, description="standard deviation of the logarithm of an image's gamma")

    # How conditions differ between sessions: the frames of one grain are recorded in one session
    contrast_spread: Share = Field(0.0, description="standard deviation of the logarithm of a session's contrast")
    dose_spread: Share = Field(0.0, description="standard deviation of the logarithm of a session's dose")
    defocus_nm: NotNegative = Field(0.0, description="largest blur of a session, nm; drawn uniformly from 0")

    annotator: Annotator = Annotator()

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or str(given.get("preset", "plain")) not in PRESETS:
            return given
        preset = PRESETS[given.get("preset", "plain")]
        merged = {**preset, **given}
        if isinstance(given.get("annotator"), dict):
            merged["annotator"] = {**preset.get("annotator", {}), **given["annotator"]}
        return merged

    @model_validator(mode="after")
    def _shares_sum_to_one_and_ranges_rise(self) -> Phantom:
        shares = {"magnifications": [share for _, share in self.magnifications.values()],
                  "class_shares": self.class_shares}  # fmt: skip
        for name, given in shares.items():
            if abs(sum(given) - 1) > 1e-6 or not all(given):
                raise ValueError(f"{name} sum to {sum(given):g}, should be 1, and none of them 0")
        for name in type(self).model_fields:
            values = getattr(self, name)
            if isinstance(values, tuple) and name not in shares and list(values) != sorted(values):
                raise ValueError(f"{name} {values} should rise from low to high")
        return self
