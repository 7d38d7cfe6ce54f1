"""An autoencoder pretrained on the micrographs of a data set that no split tests on."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from companion.config import profile as params, training
from companion.micrographs.dataset import load_dataset
from companion.micrographs.splits import make_split
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import pretrain, train_autoencoder
from companion.errors import CompanionError
from companion.config.phantom import Phantom
from companion.phantom.render import render_dataset

NETWORK = {"channels": [8, 8], "codes": 16, "steps": 4, "batch_size": 2, "crop_px": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mine"
    render_dataset(Phantom(size_px=128, n_images=6, frames_per_grain=1, duplicate_share=0.0), 5, folder)
    return folder


def profile_of(folder, **more):
    given = {
        "sizes": [2],
        "imbalance_sizes": [],
        "n_test": 2,
        "n_val": 0,
        "splits": [1, 2],
        "patches": {"size": 64, "train_stride": 64},
        **more,
    }
    return params.load_profile("smoke", dataset=str(folder), diffusion={"autoencoder": NETWORK}, **given)


def test_no_micrograph_of_a_test_list_is_trained_on(folder, tmp_path, monkeypatch):
    profile, dataset = profile_of(folder), load_dataset(folder)
    tested = {f for s in (1, 2) for f in make_split(dataset, s, [2], 2, profile.root_seed).test}
    seen, cut = [], pretrain.cut_patches
    monkeypatch.setattr(pretrain, "cut_patches", lambda d, files, *more: (seen.extend(files), cut(d, files, *more))[1])
    path = tmp_path / "w.safetensors"
    files = pretrain.pretrain_on(path, profile)
    assert seen == files and set(files) == set(dataset.files) - tested and files
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    _, about = autoencoders.load(path)
    assert about["origin"]["micrographs"] == files and about["origin"]["losses"]["steps"] == NETWORK["steps"]
    patches, _ = cut(dataset, files, 64, 64, 0.5, (0,))
    machine = training.Compute(torch.device("cpu"), torch.float32, 1)
    frozen, log = train_autoencoder.get_autoencoder(
        patches, params.Autoencoder(weights=str(path)), machine=machine, name="x", folder=tmp_path / "s", every=1
    )
    latents = autoencoders.encode_all(frozen, patches.images, 4)
    assert log.empty and torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    assert frozen.scale(torch.from_numpy(patches.images)).std() == pytest.approx(1, abs=1e-3)


def test_a_micrograph_that_shows_a_test_field_again_is_left_out(folder, tmp_path):
    again = shutil.copytree(folder, tmp_path / "again")
    profile = profile_of(again, splits=[1])
    dataset = load_dataset(again)
    tested = make_split(dataset, 1, [2], 2, profile.root_seed).test
    known = pretrain.untested(dataset, profile)
    shutil.copy(again / "images" / tested[0], again / "images" / known[0])
    with pytest.warns(UserWarning, match="near-duplicates"):
        assert pretrain.untested(load_dataset(again), profile_of(again, splits=[1], sizes=[4])) == known[1:]


def test_messages_say_what_is_wrong(folder, tmp_path, monkeypatch, capsys):
    files = load_dataset(folder).files
    for k, tested in enumerate((files[:3], files[3:]), start=1):
        split = {"dataset": "mine", "train": [f for f in files if f not in tested], "test": tested}
        (tmp_path / f"{k}.yaml").write_text(yaml.safe_dump({**split, "dataset": load_dataset(folder).name}))
    every = profile_of(folder, splits=[str(tmp_path / "1.yaml"), str(tmp_path / "2.yaml")])
    with pytest.raises(CompanionError, match=r"of 6 micrographs, 6 are tested on.*none is left to pretrain on"):
        pretrain.pretrain_on(tmp_path / "w.safetensors", every)
    for given, said in (
        (["w.pt"], "should end in .safetensors"),
        (["w.safetensors", "--dataset", "x"], "needs --profile"),
    ):
        with pytest.raises(SystemExit):
            pretrain.main(given)
        assert said in capsys.readouterr().err
    called = []
    monkeypatch.setattr(pretrain, "pretrain_on", lambda path, profile: (called.append((path.name, profile)), ["a"])[1])
    pretrain.main([str(tmp_path / "w.safetensors"), "--profile", "smoke", "--dataset", str(folder)])
    assert called[0][0] == "w.safetensors" and called[0][1].dataset == str(folder)
    assert "trained on 1 micrographs" in capsys.readouterr().out
