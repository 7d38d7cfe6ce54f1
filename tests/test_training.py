"""The training loop: interrupted and continued equals uninterrupted."""

import resource

import pytest
import torch

from companion import training
from companion.config import sections
from companion.device import open_device
from companion.errors import CompanionError
from companion.seeds import Seeds
from companion.weights import load_state, save_state


def small_training(folder, steps=12, stop_at=None, identity="a"):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(i):
        if i == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=Seeds(1, "batch").torch(i))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    parts = {"model": model, "optimizer": optimizer}
    log = training.fit(step, parts, steps=steps, folder=folder, identity=identity, every=5)
    return model.state_dict(), log


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"not safetensors", lambda good: good[:200], None])
def test_a_broken_checkpoint_or_one_of_another_training_is_not_used(tmp_path, damage):
    weights, _ = small_training(tmp_path / "fresh")
    with pytest.raises(KeyboardInterrupt):
        small_training(tmp_path / "x", stop_at=7, identity="a" if damage else "other")
    path = tmp_path / "x" / "checkpoint" / "training.safetensors"
    path.write_bytes(damage(path.read_bytes()) if damage else path.read_bytes())
    again, _ = small_training(tmp_path / "x")
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_spoilt_weights_are_not_saved_though_their_loss_was_finite(tmp_path):
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step(i):
        # The root's slope at 0 is infinite: at step 9, the last before the second checkpoint, 0 x infinity.
        loss = (0 * layer(torch.ones(1, 1)) + (i != 9)).sqrt().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    parts, kept = {"layer": layer, "optimizer": optimizer}, {"folder": tmp_path, "identity": "a", "every": 5}
    with pytest.raises(CompanionError, match=r"after step 9 layer\.weight, layer\.bias are not finite; last") as said:
        training.fit(step, parts, steps=20, explain=lambda i: f"Batch {i}.", **kept)
    assert str(said.value).endswith(f"last good checkpoint: step 5, {tmp_path / 'checkpoint'}. Batch 9.")
    state, about = load_state(tmp_path / "checkpoint" / "training.safetensors")
    assert about["step"] == 5 and state["layer"]["weight"].isfinite().all()


def test_random_numbers_follow_their_names_alone():
    a = Seeds(1, "masks").rng(10).random(3)
    assert (a == Seeds(1).rng("masks", "10").random(3)).all() and (a == Seeds(1).child("masks").rng(10).random(3)).all()
    assert (a != Seeds(1, "masks").rng(11).random(3)).all() and (a != Seeds(2, "masks").rng(10).random(3)).all()
    assert torch.equal(torch.rand(3, generator=Seeds(1).torch("x")), torch.rand(3, generator=Seeds(1).torch("x")))


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path):
    path = tmp_path / "s.safetensors"
    save_state({"w": torch.ones(3)}, path, {"step": 5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the next file cannot be written whole
    try:
        with pytest.raises(CompanionError, match=r"s\.safetensors could not be written"):
            save_state({"w": torch.ones(100_000)}, path, {"step": 10})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_state(path)[1] == {"step": 5}
    assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]


def test_too_little_memory_says_what_to_lower(tmp_path):
    def step(i):
        if i == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return {"loss": torch.tensor(1.0)}

    with pytest.raises(CompanionError, match=r"step 7: the device's memory is too small; lower its batch_size"):
        training.fit(step, {}, steps=9, folder=tmp_path, identity="a", every=5)
    assert load_state(tmp_path / "checkpoint" / "training.safetensors")[1]["step"] == 5


def test_a_device_that_is_not_there_is_one_message():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CompanionError, match="torch sees no GPU; use auto or cpu"):
        open_device(sections.Device(name="cuda"))
    device = open_device(sections.Device(threads=1))
    assert device.torch.type == "cpu" and device.send(torch.ones(2)).device.type == "cpu"
