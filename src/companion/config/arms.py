"""The arms of the study: what the training batches of each are made of, what it is compared with, how it is drawn.

To add an arm: a row here, its files as an input in the Snakefile (rule detector) where it needs new ones, and its name
in a profile. Everything else (batches, tests, colours, tables) reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from companion.errors import CompanionError, nearest


@dataclass(frozen=True)
class Arm:
    """One way of making training batches.

    Attributes
    ----------
    meaning : what it is trained on, in words
    other : what fills the other part of each batch beside labelled patches; None: labelled patches alone.
        generated: images of simulated masks; kept: those of them that a detector confirms (notebook 13);
        fresh: patches of further labelled micrographs; pasted: defects copied onto other labelled patches
    masks, model : of generated images: which simulated masks, and which model draws them; model "phantom" is no
        network: the masks are painted with the phantom's own optics, as a perfect image model would
    labelled : whether labelled patches are in the batch at all
    equal_passes : trained longer than the other arms, until it has seen as many labelled patches as EXP
    baseline : the arm that this one is compared with
    colour, marker : in every figure
    """

    meaning: str
    other: Literal["generated", "kept", "fresh", "pasted"] | None
    colour: str
    marker: str
    baseline: str = "EXP"
    masks: Literal["plain", "rare"] = "plain"
    model: str = "1"
    labelled: bool = True
    equal_passes: bool = False


class _Arms(dict[str, Arm]):
    def __missing__(self, name: str) -> Arm:
        raise CompanionError(f"no arm '{name}': {nearest(name, self)}")


ARMS = _Arms({
    "EXP": Arm("labelled patches alone", None, "#0072B2", "o"),
    "EXP+GEN": Arm("labelled and generated patches, as in the paper", "generated", "#D55E00", "s"),
    "EXP+GEN2": Arm("as EXP+GEN, images by a second model: the luck of one", "generated", "#D55E00", "D", model="2"),
    "EXP+GEN-LONG": Arm("as EXP+GEN, longer: EXP's labelled passes", "generated", "#882255", "h", equal_passes=True),
    "EXP+RARE": Arm("as EXP+GEN, the rare class more frequent", "generated", "#009E73", "^", "EXP+GEN", "rare"),
    "EXP+FILTERED": Arm("as EXP+GEN, images that a detector confirms", "kept", "#F0E442", "<", "EXP+GEN"),
    "EXP+RENDER": Arm("labelled patches, the same masks drawn perfectly", "generated", "#7F7F7F", "*", model="phantom"),
    "EXP+FRESH": Arm("labelled patches and those of more micrographs: what labels give", "fresh", "#56B4E9", "v"),
    "EXP+PASTE": Arm("labelled patches and such with pasted defects", "pasted", "#CC79A7", "P"),
    "GEN": Arm("generated patches alone", "generated", "#E69F00", "X", labelled=False),
})  # fmt: skip
PHANTOM_ONLY = tuple(name for name, arm in ARMS.items() if arm.model == "phantom" or arm.other == "fresh")
