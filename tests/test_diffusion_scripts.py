"""Pretraining sees no test micrograph, no mask and no label; converted weights give the same network."""

import re

import numpy as np
import pretrain_autoencoder as pretrain
import pytest
import torch
import yaml
from convert_vqgan import convert
from diffusers import VQModel
from safetensors.torch import save_file

from companion.config import load_profile
from companion.config.phantom import Phantom
from companion.diffusion.autoencoder import load_autoencoder, save_autoencoder
from companion.errors import CompanionError
from companion.micrographs.dataset import load_dataset
from companion.phantom.render import render_dataset

SMALL = {"channels": [8], "codes": 16, "steps": 4, "batch_size": 2, "crop_px": 32}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def test_pretraining_pairs_differ_by_noise_alone_and_any_size_can_use_the_file(tmp_path, monkeypatch):
    recorded, clean = pretrain.micrographs(size_px=96).swapaxes(0, 1)
    difference = recorded.astype(float) - clean
    assert recorded.shape == (len(pretrain.PRESETS) * pretrain.IMAGES_PER_PRESET, 96, 96)
    assert np.abs(difference.mean()) < 3 and (difference.std(axis=(1, 2)) > 3).all()
    monkeypatch.setattr(pretrain, "micrographs", lambda _: np.stack([recorded, clean], axis=1))
    pretrain.pretrain(tmp_path / "a.safetensors", pretrain.SETTINGS.model_copy(update=SMALL), size_px=96)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    made, about = load_autoencoder(tmp_path / "a.safetensors")
    assert about["origin"]["data"].startswith("phantom") and made.encode(torch.zeros(1, 64, 64)).shape == (1, 4, 16, 16)


def test_no_tested_micrograph_is_trained_on(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    render_dataset(Phantom(size_px=128, n_images=6, frames_per_grain=1), 5, folder)
    data = load_dataset(folder)
    for name, test in (("a", data.files[:2]), ("b", data.files[2:4])):
        split = {"dataset": data.name, "train": sorted({*data.files} - {*test}), "test": list(test)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(split))
    changes = {"sizes": [4], "studies.bias_n_train": 4, "controls": {}, "patches.size": 64, "patches.train_stride": 64}
    monkeypatch.setattr(pretrain, "SETTINGS", pretrain.SETTINGS.model_copy(update=SMALL))
    splits = [str(tmp_path / f"{name}.yaml") for name in "ab"]
    P = load_profile("smoke", dataset=str(folder), splits=splits, changes=changes)
    pretrain.pretrain_on(tmp_path / "w.safetensors", P)
    trained_on = load_autoencoder(tmp_path / "w.safetensors")[1]["origin"]["micrographs"]
    assert set(trained_on) == set(data.files[4:])


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
    state = {"loss.discriminator.weight": torch.ones(1)}
    for name, value in network.state_dict().items():
        theirs = prefix + compvis_name(name, levels=2)
        is_matrix = ".attn" in theirs and value.ndim == 2  # theirs are convolutions of one pixel
        state[theirs] = value[:, :, None, None].clone() if is_matrix else value.clone()
    save_file(state, tmp_path / "theirs.safetensors")
    converted = convert(tmp_path / "theirs.safetensors")
    images = torch.randint(0, 256, (2, 32, 32))
    colours = (images / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        latents = network.encode(colours).latents
        wanted = network.decode(latents).sample.mean(dim=1) * 127.5 + 127.5
        assert torch.allclose(converted.encode(images), latents, atol=1e-5)
        assert torch.allclose(converted.decode(converted.encode(images)), wanted.clamp(0, 255), atol=1e-3)
    save_autoencoder(converted, tmp_path / "ours.safetensors")
    loaded, _ = load_autoencoder(tmp_path / "ours.safetensors")
    loaded.fit_grey(images.to(torch.uint8).numpy())  # photographs come in every contrast: the scale stays
    assert loaded.config["grey"] == [127.5, 127.5] and loaded.downsampling == 2


def test_pickles_are_refused_and_foreign_weights_named(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "model.ckpt")
    with pytest.raises(CompanionError, match=r"not a safetensors file.*weights_only=True"):
        convert(tmp_path / "model.ckpt")
    save_file({"encoder.down.0.w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CompanionError, match="does not hold a VQGAN"):
        convert(tmp_path / "other.safetensors")
