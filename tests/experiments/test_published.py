"""Published settings on small files of the exact formats."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.encoders.imagenet_names import imagenet_wnids
from tests.benchmarks.datasets.mtil import disk

STUDY = "published"


@pytest.fixture
def small(study, monkeypatch):
    """A tiny model in place of ViT-B/16."""
    disk.accept_any_checksum(monkeypatch)

    def model(config):
        return create_dual_encoder("tiny-emoji-vit", "emoji-2010")

    monkeypatch.setattr(study.mtil, "build_model", model)
    monkeypatch.setattr(study, "Config", lambda **given: config_of(study, **given))
    return study


def config_of(study, **options):
    return study.mtil.Config(**{"num_workers": 0, "eval_mb_size": 64, **options})


def figures(folder):
    return json.loads((folder / "figures.json").read_text())["methods"]


@pytest.mark.parametrize(
    "steps",
    [pytest.param(n, marks=pytest.mark.slow) for n in ((10,), (10, 20))],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_cifar100__last_does_not_depend_on_steps(steps, small, tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "runs"
    root.mkdir()
    disk.cifar100(root)
    given = ["--root", str(root), "--out", str(out), "--methods", "continual-clip"]
    small.main([*(f"cifar100-{n}" for n in steps), *given])
    text = capsys.readouterr().out
    assert "published: average 75.17, last 66.72 (Continual-CLIP, the auth" in text
    rows = [figures(out / f"cifar100-{n}")["continual-clip"] for n in steps]
    assert len({row["last"][0] for row in rows} | {rows[0]["all last"][0]}) == 1
    assert len({row["average"][0] for row in rows}) == len(steps)
    assert rows[0]["average"] > rows[0]["all average"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cifar100__sit_learns_batches_once(small, tmp_path):
    disk.cifar100(tmp_path)
    setting, config = small.SETTINGS["cifar100-10"], config_of(small, root=tmp_path)
    method = "sit-lora-both"
    found = small.run(setting, config, method, tmp_path / "run", True)[method]
    assert set(found) == {"average", "last", "all average", "all last"}
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["compute"]["steps"] == [3] * 10
    assert results["config"]["double_softmax"] is True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_si_blurry__with_zero_shot_tests(small, tmp_path, monkeypatch):
    for write in (disk.cifar100, disk.food, disk.caltech, disk.eurosat):
        write(tmp_path)
    for write in (disk.flowers, disk.pets):
        write(tmp_path)
    setting = small.SETTINGS["si-blurry-cifar100"]
    setting = setting._replace(options={**setting.options, "num_tasks": 2})
    config = config_of(small, root=tmp_path, seed=1)
    method = "ait-adapters-image"
    found = small.run(setting, config, method, tmp_path / "run", False)[method]
    names = {"Food", "Caltech101", "EuroSAT", "Flowers", "OxfordPet", "zero-shot"}
    assert {*names, "A_AUC", "A_Last", "F_Last"} <= set(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_core50__other_conditions(small, tmp_path, capsys):
    for session in range(1, 12):
        for number in range(1, 51):
            name = f"s{session}/o{number}/C_{session:02}_{number:02}_000.png"
            path = tmp_path / "core50_128x128" / name
            disk.save(path, session * 10 + (number - 1) // 5, 0)
    small.main(["core50", "--root", str(tmp_path), "--out", str(tmp_path / "runs")])
    assert "published: no figures that we know of" in capsys.readouterr().out
    found = figures(tmp_path / "runs/core50")["continual-clip"]
    assert found["average"] == found["last"]


def test_odcl__figures_of_both_forms_beside_the_paper(small, tmp_path, monkeypatch):
    given = []

    def run(config, out_dir):
        given.append(config)
        return {
            "coleclip": {"matrix": np.array([[0.5, 0.3], [0.4, 0.6]])},
            "coleclip open": {"matrix": np.array([[0.5, 0.3], [0.2, 0.4]])},
        }

    monkeypatch.setattr(small.mtil, "run", run)
    lines = {}
    for name in ("odcl-I", "odcl-II"):
        config = config_of(small, root="data", seed=42)
        found = small.run(small.SETTINGS[name], config, "coleclip", tmp_path, False)
        lines = {row: [line] for row, line in found.items()}
    assert [(c.method, c.order) for c in given] == [
        ("coleclip", "I"),
        ("coleclip", "II"),
    ]
    assert lines["coleclip open"][0] == pytest.approx(
        {"transfer": 30, "average": 35, "last": 30}
    )
    text = small.table(small.SETTINGS["odcl-I"], lines, tmp_path, {})
    assert "published: transfer 68.80, average 73.70, last 79.70 (CoLeCLIP" in text


@pytest.mark.parametrize("released", [False, True])
def test_transforms__of_sit(study, released):
    model = create_dual_encoder("tiny-emoji-vit")
    found = study.transforms("cifar100", model, released)
    image = Image.new("RGB", (60, 30), (255, 0, 0))
    torch.manual_seed(0)
    first, second = (found["train_transform"](image) for _ in range(2))
    tested = found["eval_transform"](image)
    size = (3, model.image_size, model.image_size)
    assert first.shape == second.shape == tested.shape == size
    if released:  # scaled, not cut, and with the values of the data set
        wanted = [(1 - 0.5071) / 0.2675, -0.4867 / 0.2565, -0.4408 / 0.2761]
        assert tested.mean((1, 2)).tolist() == pytest.approx(wanted, abs=1e-4)
    else:
        assert torch.equal(tested, model.transform(False)(image))


def test_settings__each_builds_what_it_names(study):
    from avalanche_clip.benchmarks import classic

    assert len(study.SETTINGS) == 15
    for name, setting in study.SETTINGS.items():
        assert study.default_methods(setting)
        if setting.kind != "odcl":
            assert callable(getattr(classic, setting.build)), name
            assert setting.data in study.FOLDERS
    assert study.SETTINGS["imagenet100-50"].options == {"base": 50}
    assert study.SETTINGS["tiny-20"].quoted == {"average": 70.51, "last": 66.43}
    assert not study.SETTINGS["imagenet100-50"].quoted


def test_imagenet100__base_of_its_name(study, tmp_path):
    disk.imagenet(tmp_path / "imagenet", list(imagenet_wnids()[:100]))
    for name, sizes in (
        ("imagenet100-10", [10] * 10),
        ("imagenet100-50", [50] + [5] * 10),
    ):
        setting, config = study.SETTINGS[name], study.mtil.Config(root=str(tmp_path))
        with pytest.warns(UserWarning):
            found = study.build_scenario(setting, config)
        assert [len(e.class_ids) for e in found.train_stream] == sizes
