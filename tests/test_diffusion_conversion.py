"""CompVis' names to diffusers': the same network must come out."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file

from companion.diffusion import autoencoder as autoencoders
from companion.diffusion.conversion import convert
from companion.errors import CompanionError

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def compvis_name(name: str, levels: int) -> str:
    """A name of diffusers' VQModel as CompVis' code writes it: levels of the decoder are counted from the coarsest."""
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = name.replace(".resnets.", ".block.").replace(".attentions.", ".attn.").replace("conv_norm_out", "norm_out")
    name = name.replace("samplers.0.", "sample.")
    for ours, theirs in ATTENTION.items() if ".attn" in name else ():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_converted_network_gives_the_same_images(tmp_path, prefix):
    torch.manual_seed(0)
    attends = {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
               "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}  # fmt: skip
    network = VQModel(in_channels=3, out_channels=3, block_out_channels=[8, 16], layers_per_block=2, latent_channels=4,
                      num_vq_embeddings=32, norm_num_groups=8, **attends).eval()  # fmt: skip
    torch.nn.init.normal_(network.quantize.embedding.weight)
    state = {}
    for name, value in network.state_dict().items():
        theirs = prefix + compvis_name(name, levels=2)
        is_matrix = ".attn" in theirs and value.ndim == 2  # theirs are convolutions of one pixel
        state[theirs] = value[:, :, None, None].clone() if is_matrix else value.clone()
    state |= {"loss.discriminator.weight": torch.ones(1), "model.diffusion_model.weight": torch.ones(1)}
    if not prefix:
        del state["model.diffusion_model.weight"]
    save_file(state, tmp_path / "theirs.safetensors")
    converted = convert(tmp_path / "theirs.safetensors")
    images = torch.randint(0, 256, (2, 32, 32))
    colours = (images / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        latents = network.encode(colours).latents
        wanted = network.decode(latents).sample.mean(dim=1) * 127.5 + 127.5
        assert torch.allclose(converted.encode(images), latents, atol=1e-5)
        assert torch.allclose(converted.decode(converted.encode(images)), wanted.clamp(0, 255), atol=1e-3)
    autoencoders.save(converted, tmp_path / "ours.safetensors")
    loaded, _ = autoencoders.load(tmp_path / "ours.safetensors")
    loaded.fit_grey(images.to(torch.uint8).numpy())  # photographs come in every contrast: the scale stays
    assert loaded.config["grey"] == [127.5, 127.5] and loaded.downsampling == 2


def test_pickles_are_refused_and_foreign_weights_named(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "model.ckpt")
    with pytest.raises(CompanionError, match=r"not a safetensors file.*weights_only=True"):
        convert(tmp_path / "model.ckpt")
    save_file({"encoder.down.0.w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CompanionError, match="does not hold a VQGAN"):
        convert(tmp_path / "other.safetensors")
