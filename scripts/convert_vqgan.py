"""CompVis' pretrained VQGANs (VQ-f8 is the paper's) as weights of this package's autoencoder.

    python scripts/convert_vqgan.py vq-f8.safetensors weights/vq_f8.safetensors

Only safetensors are read: a .ckpt is a pickle, which can run any code when it is opened.
"""

import math
import re
import sys
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, update_vae_attentions_ldm_to_diffusers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from companion.diffusion.autoencoder import Autoencoder, save_autoencoder
from companion.errors import CompanionError

PREFIX = "first_stage_model."  # of the autoencoder in a checkpoint of a whole latent diffusion model


def convert(path: Path) -> Autoencoder:
    """The autoencoder of a checkpoint with CompVis' names.

    Grey levels enter as CompVis scales them, 0-255 to -1...1 in three equal channels; of the colours that come out the
    mean is taken. A `CompanionError` says that the file is no safetensors, or does not hold a VQGAN.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        how = "turn a .ckpt into one where nothing can be lost if it is malicious, by the command of book/run.md, with "
        raise CompanionError(f"{path} is not a safetensors file ({error}); {how}weights_only=True") from None
    if any(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}
    found = {name: value.float() for name, value in found.items() if not name.startswith("loss.")}
    try:
        config = _configuration(found)
        levels = len(config["vq"]["block_out_channels"])
        state = convert_ldm_vae_checkpoint(found, config["vq"])
        # diffusers' converter knows attention in the middle only.
        state = {name: value for name, value in state.items() if not re.search(r"\.(down|up)\.\d+\.attn\.", name)}
        for k in range(levels):
            for side, other in (("down", k), ("up", levels - 1 - k)):
                names = [name for name in found if f".{side}.{k}.attn." in name]
                mapping = {"old": f"{side}.{k}.attn", "new": f"{side}_blocks.{other}.attentions"}
                update_vae_attentions_ldm_to_diffusers(names, state, found, mapping)
        state["quantize.embedding.weight"] = found["quantize.embedding.weight"]
        autoencoder = Autoencoder(config)
        autoencoder.vq.load_state_dict(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CompanionError(f"{path} does not hold a VQGAN with CompVis' names: {error!r}") from None
    return autoencoder.eval().requires_grad_(False)


def _configuration(found: dict[str, Tensor]) -> dict[str, Any]:
    # The shape of the network, read from the shapes of its weights.
    levels = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("encoder.down."))
    channels = [len(found[f"encoder.down.{k}.block.0.conv2.weight"]) for k in range(levels)]
    attends = [f"encoder.down.{k}.attn.0.q.weight" in found for k in range(levels)]
    embedding = found["quantize.embedding.weight"]  # (codes, D)
    blocks = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in found)
    vq = {
        "in_channels": found["encoder.conv_in.weight"].shape[1],
        "out_channels": len(found["decoder.conv_out.weight"]),
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "block_out_channels": channels, "layers_per_block": blocks, "norm_num_groups": math.gcd(32, *channels),
        "latent_channels": len(found["encoder.conv_out.weight"]), "vq_embed_dim": embedding.shape[1],
        "num_vq_embeddings": len(embedding), "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in found,
    }  # fmt: skip
    # spread None: patches keep their contrast, as in the paper's code base
    return {"vq": vq, "stem": 1, "grey": [127.5, 127.5], "spread": None}


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].endswith(".safetensors"):
        sys.exit("usage: python scripts/convert_vqgan.py COMPVIS.safetensors FILE.safetensors")
    try:
        save_autoencoder(convert(Path(sys.argv[1])), Path(sys.argv[2]), origin={"data": "CompVis, converted"})
    except CompanionError as error:
        sys.exit(f"Error: {error}")
