"""Both networks of a diffusion stage trained by several processes, one per GPU; notebook 4 then finds them finished.

    accelerate launch --num_processes 4 -m companion.multi_gpu course --split 1 --n-train 100

Every process draws the same batch and takes its share of it, so the weights are those of one process but for the last
bits (and for an autoencoder's spectral or adversarial loss, which judges the share). Run it after notebook 1, then run
the profile as always.
"""

from __future__ import annotations

import argparse
import sys

from companion.data.patches import load_patches
from companion.diffusion.train import get_denoiser
from companion.diffusion.train_autoencoder import get_autoencoder
from companion.errors import CompanionError
from companion.params import load_profile
from companion.stages import begin
from companion.training import compute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--dataset", help="the profile's by default")
    parser.add_argument("--split", default="1", help="number or split file")
    parser.add_argument("--n-train", type=int, default=10, help="N, training micrographs")
    parser.add_argument("--generator", type=int, help="its number, with generator_per_seed; the first by default")
    given = vars(parser.parse_args())
    profile = load_profile(given["profile"], **({"dataset": given["dataset"]} if given["dataset"] else {}))
    given["dataset"] = profile.dataset
    if given["generator"] is None:
        given["generator"] = profile.generators[0]
    given["split"] = int(given["split"]) if given["split"].isdigit() else given["split"]
    stage = begin("diffusion", given)
    patches, parameters = load_patches(stage.inputs["train"]), stage.profile.diffusion
    setting = {"machine": compute(stage.profile), "name": stage.address, "folder": stage.folder,
               "every": parameters.checkpoint_every}  # fmt: skip
    autoencoder, _ = get_autoencoder(patches, parameters.autoencoder, **setting)
    get_denoiser(patches, autoencoder, parameters.denoiser, **setting)


if __name__ == "__main__":
    try:
        main()
    except CompanionError as error:
        sys.exit(f"Error: {error}")
