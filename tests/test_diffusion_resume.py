"""What a later process finds again: the autoencoder of the file, checkpoints, drawn batches; and what is compiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ellipse_patches

from companion import machine, params, provenance, stages, training
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import train, train_autoencoder
from companion.diffusion.sample import sample, sample_few

MACHINE = training.Compute(torch.device("cpu"), torch.float32, 7)
AUTOENCODER = params.Autoencoder(channels=[8, 8], codes=16, steps=4, batch_size=2, crop_px=32)
DENOISER = params.Denoiser(stem=1, channels=[16, 16], attention_factors=[], steps=8, batch_size=4)
SAMPLING = params.Sampling(steps=2, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def setting(folder, used=MACHINE):
    return {"machine": used, "name": "test", "folder": folder, "every": 2}


def test_a_finished_stage_keeps_nothing_to_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    stage = stages.begin("micrographs", {"profile": "smoke", "dataset": "phantom", "split": 1})
    part = stage.folder / training.CHECKPOINT / "images-0123-0.npy"
    provenance.write_array(part, np.zeros(3))
    provenance.write_json(stage.folder / "a.json", 1)
    assert part.exists()
    stage.finish()
    assert [path.name for path in stage.folder.iterdir() if path.is_dir()] == []
    assert list(provenance.read_stamp(stage.folder)["outputs"]) == ["a.json"] and stage.staleness() == []


def test_a_denoiser_goes_on_whatever_the_last_bits_of_the_latents(tmp_path, monkeypatch):
    patches = ellipse_patches(8)
    autoencoder, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path))
    done, update = [], train.update

    def cut(*given):
        done.append(1)
        if len(done) == 6:
            raise KeyboardInterrupt
        update(*given)

    monkeypatch.setattr(train, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path))
    encode = autoencoders.encode_all
    monkeypatch.setattr(autoencoders, "encode_all", lambda *given: encode(*given) * (1 + 1e-6))
    again, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path))
    train.get_denoiser(patches, again, DENOISER, **setting(tmp_path))
    assert len(done) == 6 + 4  # from the checkpoint of step 4, not from the start
    with torch.no_grad():
        next(again.parameters()).add_(1e-3)
    train.get_denoiser(patches, again, DENOISER, **setting(tmp_path))
    assert len(done) == 10 + 8  # another autoencoder: another training


def test_pictures_are_of_the_training_that_made_the_weights(tmp_path, monkeypatch):
    patches = ellipse_patches(8)
    autoencoder, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path))
    folder, killed = tmp_path / train.PICTURES, []

    def draw(step, network):
        if step == 4 and not killed:  # after the checkpoint, before its picture
            killed.append(step)
            raise KeyboardInterrupt
        provenance.write_array(folder / f"{step}.npy", next(network.parameters()).detach().numpy())

    def drawn():
        return {path.stem: np.load(path) for path in folder.glob("*.npy")}

    provenance.write_array(folder / "3.npy", np.zeros(1))  # of a training with other parameters
    assert not (folder / ".training").exists()
    with pytest.raises(KeyboardInterrupt):
        train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path), watch=draw)
    assert drawn().keys() == {"2"}
    train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path), watch=draw)
    found = drawn()
    with monkeypatch.context() as patch:
        patch.setattr(train, "update", lambda *_: pytest.fail("trained again"))
        train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path), watch=draw)
        assert found.keys() == drawn().keys() == {"2", "4", "6", "8"}
        (folder / ".training").write_text("another")  # begun in between, and given up
        train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path), watch=draw)
        assert not drawn(), "pictures of another training"
    calm = {**setting(tmp_path), "folder": tmp_path / "calm"}
    folder = tmp_path / "calm" / train.PICTURES
    train.get_denoiser(patches, autoencoder, DENOISER, **calm, watch=draw)
    assert all(np.array_equal(found[name], picture) for name, picture in drawn().items())


def test_the_average_of_weights_forgets_the_first_ones():
    slow = DENOISER.model_copy(update={"ema_decay": 0.9999})
    left = 1.0  # of the weights after the first step, which the average starts from
    for step in range(1, 2000):
        left *= train.ema_decay(slow, step)
    assert left < 1e-20 and 0.9999**2000 > 0.8
    assert train.ema_decay(slow, 10**6) == 0.9999 and train.ema_decay(DENOISER, 0) == pytest.approx(0.1)
    assert train.ema_decay(DENOISER.model_copy(update={"ema_decay": 0.0}), 100) == 0.0


@pytest.mark.parametrize("given", [False, True])
def test_the_autoencoder_that_was_made_is_the_one_of_the_file(tmp_path, monkeypatch, given):
    patches, parameters = ellipse_patches(8), AUTOENCODER
    if given:
        train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path / "first"))
        parameters = params.Autoencoder(weights=str(tmp_path / "first" / "autoencoder.safetensors"))
        patches = replace(patches, images=(patches.images // 2 + 60).astype(np.uint8))
    seen, load = [], autoencoders.load
    monkeypatch.setattr(autoencoders, "load", lambda path, *more: (seen.append(path), load(path, *more))[1])
    first, _ = train_autoencoder.get_autoencoder(patches, parameters, **setting(tmp_path / "stage"))
    assert seen[-1] == tmp_path / "stage" / "autoencoder.safetensors"
    monkeypatch.setattr(autoencoders.Autoencoder, "fit_scaling", lambda *_: pytest.fail("scaled again"))
    again, _ = train_autoencoder.get_autoencoder(patches, parameters, **setting(tmp_path / "stage"))
    assert training.digest(first) == training.digest(again) and first.config == again.config
    monkeypatch.undo()
    if given:  # other patches: scaled anew
        other = replace(patches, images=(patches.images // 2).astype(np.uint8))
        scaled, _ = train_autoencoder.get_autoencoder(other, parameters, **setting(tmp_path / "stage"))
        assert training.digest(scaled) != training.digest(first)


def test_digest_is_of_values_names_and_configuration_not_of_layout():
    network = torch.nn.Conv2d(3, 4, 3)
    known = training.digest(network)
    assert training.digest(network.to(memory_format=torch.channels_last)) == known
    with torch.no_grad():
        network.weight.copy_(network.weight.flip(0))  # equal sums
    assert training.digest(network) != known
    changed = training.digest(network)
    network.config = {"grey": [1.0, 2.0]}
    assert training.digest(network) != changed


def test_weights_and_their_average_lie_alike_in_memory(tmp_path, monkeypatch):
    patches, seen = ellipse_patches(4), []
    autoencoder, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path))
    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda step, parts, **more: (seen.append(parts), fit(step, parts, **more))[1])
    used = replace(MACHINE, channels_last=True)
    train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path, used))
    pairs = zip(seen[0]["denoiser"].parameters(), seen[0]["average"].module.parameters(), strict=True)
    assert all(own.stride() == averaged.stride() for own, averaged in pairs)
    assert any(not own.is_contiguous() for own in seen[0]["denoiser"].parameters())


def test_only_full_batches_are_compiled(tmp_path, monkeypatch):
    patches = ellipse_patches(8)
    autoencoder, _ = train_autoencoder.get_autoencoder(patches, AUTOENCODER, **setting(tmp_path))
    denoiser, _ = train.get_denoiser(patches, autoencoder, DENOISER, **setting(tmp_path))
    graphs = []

    def backend(graph, _):
        graphs.append("compiled")
        return graph.forward

    def compile_counted(network, **more):
        network._compiled_call_impl = torch.compile(network._call_impl, backend=backend, **more)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_counted)
    monkeypatch.setattr(machine.shutil, "which", lambda _: "g++")
    torch._dynamo.reset()
    used, labels = replace(MACHINE, compile=True), patches.label_maps()
    few = {"machine": used, "name": "few"}
    shown = sample_few(autoencoder, denoiser, labels[:2], [0, 1], SAMPLING, **few)
    assert graphs == []  # before the networks are compiled for full batches
    whole = sample(autoencoder, denoiser, labels[:6], range(6), SAMPLING, **few)
    assert graphs == ["compiled"] * 2  # U-Net and decoder, once each: the second batch is padded
    assert np.array_equal(sample_few(autoencoder, denoiser, labels[:2], [0, 1], SAMPLING, **few), shown)
    autoencoders.reconstruct(autoencoder, patches.images[:3])
    autoencoders.encode_all(autoencoder, patches.images[:3], 2)
    autoencoder.features(patches.images[:3])
    train.noised(autoencoder, patches.images[0], [0, 5], DENOISER, MACHINE)
    assert len(graphs) == 2
    assert np.abs(whole[:2].astype(int) - shown).max() <= 1
    torch._dynamo.reset()


def test_state_with_shared_memory_is_written_whole(tmp_path):
    base = torch.arange(6.0)
    state = {"whole": base, "again": base, "part": base[2:4], "turned": base.view(2, 3).T, "empty": torch.empty(0)}
    training.save_state(state, tmp_path / "s.safetensors", {})
    loaded, _ = training.load_state(tmp_path / "s.safetensors")
    assert all(torch.equal(loaded[name], state[name]) for name in state)
