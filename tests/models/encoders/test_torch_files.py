"""PyTorch's files are read, never run, and never believed about their sizes."""

import argparse
import contextlib
import io
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from avalanche_clip import file_limits
from avalanche_clip.models.encoders.torch_files import (
    Inert,
    ScriptedModule,
    read_torch_file,
)
from tests.refused import refused


class Shaped(torch.nn.Module):
    """The parts of OpenAI's model: half precision, nested, buffers, a batch norm."""

    def __init__(self):
        super().__init__()
        blocks = [torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)]
        self.visual = torch.nn.Sequential(*blocks).half()
        self.bn = torch.nn.BatchNorm1d(4)
        self.text_projection = torch.nn.Parameter(torch.randn(4, 2))
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x):
        x = self.bn(self.visual(x.half()).float())
        return self.logit_scale.exp() * (x @ self.text_projection)


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript__gives_what_running_it_gives(how, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, path = Shaped().eval(), tmp_path / "a.pt"
    if how == "script":
        script = torch.jit.script(model)
    else:
        script = torch.jit.trace(model, torch.zeros(2, 4))
    torch.jit.save(script, str(path))
    expected = dict(torch.jit.load(str(path)).state_dict())
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch, "load", None)
    content = read_torch_file(path)
    assert isinstance(content, ScriptedModule)
    same(dict(content.tensors()), expected)


def everything():
    model = Shaped()
    return {
        "state_dict": model.state_dict(),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "epoch": np.int64(3),
        "loss": np.float32(0.5),
        "done": np.bool_(True),
        "curve": np.arange(4.0),
        "random": np.random.get_state(),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "part": torch.arange(10)[2:8:2],
        "turned": torch.arange(6).view(2, 3).T,
        "short": torch.ones(3, dtype=torch.bfloat16),
        "small": torch.arange(3).to(torch.uint16),
        "eighth": torch.ones(2).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False]),
        "wide": torch.ones(1).expand(5),
        "none": torch.zeros(0, 3),
        "number": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "set": {1, 2},
        "args": argparse.Namespace(lr=0.1),
        "path": Path("a"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_torch_save__plain_data_come_back(zipped, tmp_path):
    content, path = everything(), tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    same(found["state_dict"], content["state_dict"])
    names = [k for k, v in content.items() if isinstance(v, torch.Tensor)]
    same({k: found[k].detach() for k in names}, {k: content[k].detach() for k in names})
    assert isinstance(found["state_dict"], OrderedDict)
    assert found["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert found["size"] == (1, 2) and found["set"] == {1, 2}
    assert found["dtype"] is torch.bfloat16
    assert all(isinstance(found[k], Inert) for k in ("epoch", "loss", "curve"))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def payloads(marker):
    text = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": (os.system, (f"touch {marker}",)),
        "exec": (exec, (text,)),
        "open": (open, (str(marker), "w")),
        "getattr": (getattr, ("text", "upper")),
        "load": (torch.load, (str(marker),)),
        "hub": (torch.hub.load_state_dict_from_url, ("http://localhost/",)),
    }


@pytest.mark.parametrize("name", list(payloads("")))
@pytest.mark.parametrize("form", ["zip", "stream", "pickle", "script"])
def test_payload__is_refused_by_name_and_not_run(name, form, tmp_path):
    marker, path = tmp_path / "was_run", tmp_path / "a.pt"
    content = {"state_dict": {"w": torch.ones(1), "x": Payload(payloads(marker)[name])}}
    if form == "pickle":
        content["state_dict"].pop("w")
        path.write_bytes(pickle.dumps(content))
    elif form == "script":
        torch.jit.save(torch.jit.script(Shaped()), str(path))
        replace(path, "data.pkl", pickle.dumps(content["state_dict"]["x"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"a\.pt") as info:
        read_torch_file(path)
    assert "refused" in str(info.value) and "state_dict" in str(info.value)
    assert not marker.exists()


def replace(path, name, data, **options):
    """Exchange one member of an archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for key, value in parts.items():
            archive.writestr(key, data if key.endswith("/" + name) else value)


def test_sizes__declared_ones_are_compared_with_the_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(4)}, path)
    replace(path, "data/0", b"\0" * 8)
    refused("8 bytes, 16 are declared", read_torch_file, path)
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        member = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        text = archive.read(member)
    assert b"K\x04" in text  # the number of elements
    replace(path, "data.pkl", text.replace(b"K\x04", b"J\xff\xff\xff\x7f", 1))
    refused("are declared", read_torch_file, path)
    torch.save({"w": torch.ones(1).expand(2**40)}, path)
    refused("4 stored bytes only", read_torch_file, path)


def test_sizes__archives_that_swell_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(2**16)}, path)
    replace(path, "none", b"", compression=zipfile.ZIP_DEFLATED)
    assert read_torch_file(path)["w"].shape == (2**16,)
    monkeypatch.setattr(file_limits, "gzip_bytes", 2**10)
    refused("gzip_ratio", read_torch_file, path)
    monkeypatch.setattr(file_limits, "gzip_ratio", 1e6)
    assert read_torch_file(path)["w"].shape == (2**16,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_damage__is_our_error_or_harmless(zipped, tmp_path):
    path, generator = tmp_path / "a.pt", random.Random(0)
    content = {"w": torch.arange(64.0), "v": {"a": torch.ones(3).half()}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for number in range(150):
        damaged = bytearray(whole)
        if number % 3:
            place = generator.randrange(len(whole))
            damaged[place] ^= 1 << generator.randrange(8)
        else:
            del damaged[generator.randrange(len(whole)) :]
        path.write_bytes(damaged)
        try:
            found = read_torch_file(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            if zipped and "w" in found:  # the archive's own check sums
                assert torch.equal(found["w"], content["w"])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\0" * 100, "only zero bytes"),
        (pickle.dumps({"a": 1}), "none that torch.save wrote"),
        (b"PK\x03\x04 cut", "zip archive"),
    ],
)
def test_other_files__are_told_what_they_are(content, match, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    refused(match, read_torch_file, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme", "text")
    refused(r"no data\.pkl", read_torch_file, path)


def test_unpickler__memory_of_a_hostile_pickle_is_bounded(tmp_path):
    path, buffer = tmp_path / "a.pt", io.BytesIO()
    torch.save({}, buffer)
    path.write_bytes(buffer.getvalue())
    huge = (2**31).to_bytes(8, "little")
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replace(path, "data.pkl", b"\x80\x02Nr" + huge[:3] + b"\x0f.")  # LONG_BINPUT
    with contextlib.suppress(ValueError):
        assert read_torch_file(path) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < start + 2**18  # kB
