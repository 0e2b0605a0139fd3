"""Files of checkpoints: what is in them, and what happens when they break."""

import zipfile
import zlib
from unittest import mock

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_clip import distributed
from avalanche_clip.common import state_files as files
from avalanche_clip.common.state_files import (
    FORMAT,
    CheckpointError,
    read_state,
    write_state,
)
from avalanche_clip.training.plugins import ContrastiveLwFPlugin
from avalanche_clip.training.runs.checkpoint_plugin import (
    CheckpointPlugin,
    checkpoints,
    latest_checkpoint,
)
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.supervised import CumulativeAll, Sequential
from tests.damage import not_refused
from tests.helpers import (
    At,
    assert_same_weights,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.refused import refused

OPTIONS = {"train_mb_size": 4, "train_epochs": 2, "schedule": "constant"}


def build(model=None, cls=Sequential, sizes=(12, 12, 12), **options):
    model = model or stub_model(dropout=0.1)
    benchmark = stub_benchmark(sizes, model=model)
    options = {"evaluator": quiet_evaluator(), **OPTIONS, **options}
    return cls(model=model, **options), benchmark


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    parts = parts if isinstance(value, (dict, list, tuple)) else []
    return [t for part in parts for t in tensors(part)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "state.pt"


def test_save_state__is_plain_data_with_a_checksum(path):
    strategy, benchmark = build(cls=CumulativeAll)
    train_stream(strategy, benchmark, 2)
    assert save_state(strategy, path) == path
    plain = torch.load(path, weights_only=True)
    assert {type(t) for t in tensors(plain)} == {torch.Tensor}
    state = read_state(path)
    assert state["experience"] == 2 and not state["inside"]
    # The checksum is the comment of the archive that torch wrote.
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    content = path.read_bytes().removesuffix(comment)[:-2] + b"\0\0"
    assert comment == b"avalanche_clip checkpoint, CRC-32 %08x" % zlib.crc32(content)
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]
    # No image is in it: those have 3 * 8 * 8 values, as has a row of the weights.
    assert not [t for t in tensors(state["plugins"]) if t.numel() >= 192]


def test_save_state__size_does_not_depend_on_the_data(tmp_path):
    sizes = []
    for number, count in enumerate((8, 200)):
        strategy, benchmark = build(
            cls=CumulativeAll, sizes=(count, count), budget_iterations=3, train_epochs=1
        )
        train_stream(strategy, benchmark)
        sizes.append(save_state(strategy, tmp_path / str(number)).stat().st_size)
    assert abs(sizes[0] - sizes[1]) <= 64


def test_save_state__during_an_evaluation_raises(path):
    saves = At("after_eval_iteration", lambda strategy: save_state(strategy, path))
    strategy, benchmark = build(plugins=[saves])
    with pytest.raises(RuntimeError, match="during an evaluation"):
        strategy.eval(benchmark.test_stream)


class Saver(SupervisedPlugin):
    """Saves from one hook of the seventh step."""

    stateless = True

    def __init__(self, hook, path):
        super().__init__()
        self.path = path
        setattr(self, hook, self.hook)

    def hook(self, strategy, **kwargs):
        if strategy.clock.train_iterations >= 6 and not self.path.exists():
            save_state(strategy, self.path)


@pytest.mark.parametrize(
    "hook", ["before_training_iteration", "after_training_iteration"]
)
def test_save_state__from_a_hook_around_a_step_resumes_exactly(hook, path):
    whole, benchmark = build(plugins=[Saver(hook, path)])
    train_stream(whole, benchmark)
    again, benchmark = build(stub_model(5, dropout=0.1))
    start = load_state(again, path, benchmark)
    for experience in list(benchmark.train_stream)[start:]:
        again.train(experience, eval_streams=[])
    assert again.clock.train_iterations == whole.clock.train_iterations
    assert_same_weights(again.model, whole.model)


@pytest.mark.parametrize(
    "hook, message",
    [
        ("before_backward", "middle of a step"),
        ("after_update", "middle of a step"),
        ("before_training_exp", "middle of a step"),
        ("after_training_exp", "Call it in experience_completed"),
    ],
)
def test_save_state__at_a_moment_that_cannot_be_resumed_raises(hook, message, path):
    strategy, benchmark = build(plugins=[Saver(hook, path)])
    with pytest.raises(RuntimeError, match=message):
        train_stream(strategy, benchmark)


def test_save_state__only_the_main_process_writes(path, monkeypatch):
    strategy, _ = build()
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert save_state(strategy, path) == path
    assert not path.exists()


def test_write_state__failure_leaves_the_old_file(path):
    write_state({"format": FORMAT, "n": 1}, path)
    with (
        mock.patch.object(files.torch, "save", side_effect=OSError("full")),
        pytest.raises(OSError, match="full"),
    ):
        write_state({"format": FORMAT, "n": 2}, path)
    assert read_state(path)["n"] == 1


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A checkpoint in the middle of an experience, and its bytes."""
    folder = tmp_path_factory.mktemp("stored")
    plugin = CheckpointPlugin(folder, every_iterations=3, keep=99)
    strategy, benchmark = build(cls=CumulativeAll, plugins=[plugin])
    train_stream(strategy, benchmark, 2)
    path = folder / "state_000000009.pt"
    return path, path.read_bytes()


def test_read_state__damage_of_any_kind_is_refused_by_name(stored, tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(stored[1])
    assert not_refused(path, lambda: read_state(path), count=400, folder=False) == []
    content, half, bits = stored[1], len(stored[1]) // 2, 8 * len(stored[1])
    for place in (*range(64), *range(bits - 8 * 64, bits)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused("is damaged|is no checkpoint", read_state, path, error=CheckpointError)
    for length in range(1, 60):
        path.write_bytes(content[:-length])
        refused("is damaged|is an archive", read_state, path, error=CheckpointError)
    path.write_bytes(content[:half] + b"x" + content[half:])
    refused("its content does not have its checksum", read_state, path)
    assert CheckpointError.__bases__ == (ValueError, RuntimeError)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "found an empty file"),
        (b"hello", "found bytes that begin with b'hello'"),
        (b"PK\x03\x04", "does not end as it was written"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_read_state__other_files_say_what_they_are(content, message, tmp_path):
    (tmp_path / "state.pt").write_bytes(content)
    refused(rf"state\.pt.*{message}", read_state, tmp_path / "state.pt")


def test_read_state__other_archives_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_state(tmp_path / "none.pt")
    # Nothing but plain data is ever executed, nor an older file taken.
    for content in (nn.Linear(1, 1), {"format": 1}, {"format": FORMAT, "tree": {}}):
        torch.save(content, tmp_path / "torch.pt")
        message = "without the checksum.*Go on with the version that wrote it"
        refused(message, read_state, tmp_path / "torch.pt", error=CheckpointError)
    write_state({"format": 1}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=f"format 1, .* reads format {FORMAT}"):
        read_state(tmp_path / "old.pt")


@pytest.mark.parametrize("mmap", [False, True])
def test_write_state__is_read_by_torch_alone(mmap, path):
    large, small = torch.arange(1e5), torch.arange(3)
    write_state({"format": FORMAT, "large": large, "small": {"a": small}}, path)
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert found["format"] == FORMAT and torch.equal(found["tree"]["large"], large)
    assert torch.equal(found["flat"]["torch.int64, cpu"], small)
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"avalanche_clip checkpoint")


def test_read_state__parts_that_unpack_to_more_than_the_file_are_refused(path):
    write_state({"format": FORMAT, "a": torch.zeros(40000)}, path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, bytes(2**20))
    whole = path.read_bytes()
    comment = files._comment(zlib.crc32(whole))
    path.write_bytes(whole[:-2] + len(comment).to_bytes(2, "little") + comment)
    with (
        mock.patch.object(torch, "load", side_effect=AssertionError),
        pytest.raises(CheckpointError, match="its parts declare"),
    ):
        read_state(path)


BROKEN = {
    "a weight": lambda model: model.image_proj.weight.data[0, 0].fill_(torch.nan),
    "infinity": lambda model: model.logit_scale.data.fill_(torch.inf),
    "a buffer": lambda model: model.register_buffer("mean", torch.tensor(torch.nan)),
    "frozen since": lambda model: model.text_proj.requires_grad_(False).bias.data.fill_(
        -torch.inf
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_save_state__weights_that_are_not_finite_are_not_written(kind, path):
    strategy, _ = build()
    save_state(strategy, path)
    before = path.read_bytes()
    BROKEN[kind](strategy.model)
    with pytest.raises(CheckpointError, match="not written: 1 weights are not finite"):
        save_state(strategy, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_save_state__masks_may_hold_infinity(path):
    strategy, benchmark = build()
    strategy.model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    save_state(strategy, path)
    assert load_state(strategy, path, benchmark) == 0


def test_checkpoint_plugin__stops_at_weights_that_are_not_finite(tmp_path):
    def breaks(strategy):
        if strategy.clock.train_iterations == 8:
            strategy.model.token.weight.data[3] = torch.nan

    plugin = CheckpointPlugin(tmp_path, every_iterations=1, keep=99)
    strategy, benchmark = build(plugins=[At("after_update", breaks), plugin])
    with pytest.raises(CheckpointError, match="state_000000009.pt is not written"):
        train_stream(strategy, benchmark)
    assert checkpoints(tmp_path)[-1].name == "state_000000008.pt"
    assert latest_checkpoint(tmp_path) == checkpoints(tmp_path)[-1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_newest_state__passes_over_weights_that_are_not_finite(
    value, stored, tmp_path, caplog
):
    whole = tmp_path / "state_000000003.pt"
    whole.write_bytes(stored[1])
    state = read_state(whole)
    state["model"]["text_proj.bias"][1] = value
    write_state(state, tmp_path / "state_000000004.pt")
    assert latest_checkpoint(tmp_path) == whole
    assert "state_000000004.pt holds 1 weights that are not finite" in caplog.text
    strategy, benchmark = build(cls=CumulativeAll)
    with pytest.raises(CheckpointError, match="_000000004.pt holds 1 weights"):
        load_state(strategy, tmp_path / "state_000000004.pt", benchmark)
    whole.unlink()
    assert latest_checkpoint(tmp_path) is None


def test_newest_state__passes_over_a_dead_link(stored, tmp_path, caplog):
    whole = tmp_path / "state_000000003.pt"
    whole.write_bytes(stored[1])
    (tmp_path / "state_000000004.pt").symlink_to(tmp_path / "gone")
    assert latest_checkpoint(tmp_path) == whole
    assert "There is no checkpoint" in caplog.text


def test_write_state__reserved_key_raises(path):
    with pytest.raises(ValueError, match="'__packed__' of a state is reserved"):
        write_state({"format": FORMAT, "a": [{"__packed__": 1}]}, path)
    assert not path.exists()


def test_checkpoint_plugin__later_files_do_not_cost_the_new_one(tmp_path):
    later = tmp_path / "state_000000099_end.pt"
    later.write_bytes(b"damaged")
    for keep in (1, 2):
        plugin = CheckpointPlugin(tmp_path, keep=keep)
        strategy, benchmark = build(plugins=[plugin])
        train_stream(strategy, benchmark)
        newest = latest_checkpoint(tmp_path)
        assert newest.name == "state_000000018_end.pt"
        assert checkpoints(tmp_path)[-1] == later
        assert len(checkpoints(tmp_path)) == keep + 1


def test_checkpoint_plugin__keeps_the_newest(tmp_path):
    plugin = CheckpointPlugin(tmp_path, every_iterations=2, keep=3)
    strategy, benchmark = build(plugins=[plugin])
    train_stream(strategy, benchmark, 2)
    names = [p.name for p in checkpoints(tmp_path)]
    assert names == [
        "state_000000010.pt",
        "state_000000012.pt",
        "state_000000012_end.pt",
    ]
    assert len(list(tmp_path.iterdir())) == 3
    assert latest_checkpoint(tmp_path).name == names[-1]
    assert latest_checkpoint(tmp_path / "none") is None


def test_checkpoint_plugin__saves_by_time(tmp_path):
    plugin = CheckpointPlugin(tmp_path, every_seconds=1e-9, keep=99)
    strategy, benchmark = build(plugins=[plugin])
    train_stream(strategy, benchmark, 1)
    assert len(checkpoints(tmp_path)) == 7


def frozen_model(seed=0):
    model = stub_model(seed)
    model.image_proj.requires_grad_(False)
    return model


def test_frozen_base__is_stored_as_a_hash(tmp_path):
    def make(*plugins):
        return build(frozen_model(), plugins=[ContrastiveLwFPlugin(), *plugins])

    full, benchmark = make()
    train_stream(full, benchmark)
    part, benchmark = make(CheckpointPlugin(tmp_path))
    train_stream(part, benchmark, 2)
    newest = latest_checkpoint(tmp_path)
    state = read_state(newest)
    assert state["base"]["names"] == ["image_proj.weight", "image_proj.bias"]
    assert not [t for t in tensors(state) if t.shape == (8, 192)]
    later, benchmark = make()
    load_state(later, newest, benchmark)
    later.train(benchmark.train_stream[2], eval_streams=[])
    assert_same_weights(full.model, later.model)
    other, benchmark = build(frozen_model(1), plugins=[ContrastiveLwFPlugin()])
    with pytest.raises(CheckpointError, match="same pretrained weights"):
        load_state(other, newest, benchmark)


def test_frozen_base__what_was_written_to_is_stored(tmp_path, path):
    strategy, benchmark = build(frozen_model(), plugins=[CheckpointPlugin(tmp_path)])
    train_stream(strategy, benchmark, 1)
    strategy.model.image_proj.weight.data.add_(1.0)
    save_state(strategy, path)
    assert read_state(path)["base"]["names"] == ["image_proj.bias"]
    other, benchmark = build(frozen_model())
    load_state(other, path, benchmark)
    assert_same_weights(strategy.model, other.model)


def test_load_state__frozen_flags_come_back(path):
    strategy, benchmark = build()
    train_stream(strategy, benchmark, 1)
    strategy.model.text_proj.requires_grad_(False)
    save_state(strategy, path)
    other, benchmark = build()
    load_state(other, path, benchmark)
    assert not other.model.text_proj.weight.requires_grad
    assert other.model.image_proj.weight.requires_grad
    assert_same_weights(strategy.model, other.model)
