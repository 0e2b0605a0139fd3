"""The MTIL experiment on tiny data in place of the real ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.training.supervised import MTIL_RATES
from tests.training import moe_runs

STUDY = "mtil"


@pytest.fixture
def tiny(study, monkeypatch, tmp_path):
    """Three domains, a tiny model and three steps per domain."""
    root = tmp_path / "data"
    for place in study.REFERENCE.values():
        folder = root / place / "n01"
        folder.mkdir(parents=True)
        for k in range(4):
            pixels = np.random.default_rng(k).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
    (root / "captions.txt").write_text("ab\n\ncd\n ef \n")

    def scenario(config):
        names = ("Aircraft", "MNIST", "StanfordCars")
        return moe_runs.raw_domains(names=names, change=torch.sigmoid)

    monkeypatch.setattr(study, "build_scenario", scenario)
    monkeypatch.setattr(study, "build_model", lambda config: moe_runs.vit())
    monkeypatch.setattr(
        study,
        "published",
        lambda config: study.replace(
            config,
            iterations=2,
            warmup=1,
            train_mb_size=6,
            averaging_interval=1,
            num_experts=4,
            bottleneck=4,
            num_workers=0,
        ),
    )
    monkeypatch.setattr(study, "build_selector", lambda config: moe_runs.selector())
    return root


def test_published__iterations_and_rates(study):
    config = study.Config(root="data")
    assert study.published(config).iterations == 1000
    assert study.published(study.replace(config, shots=5)).iterations == 500
    names = ("StanfordCars", "Food", "MNIST", "Aircraft")
    full = study.learning_rates(config, names)
    assert full == [1e-3, 1e-3, 1e-4, 5e-3]
    few = study.learning_rates(study.replace(config, shots=5), names)
    assert few == [1e-2, 1e-2, 1e-4, 8e-3]
    for method in ("zscl", "fine-tuning"):
        other = study.replace(config, method=method)
        assert study.learning_rates(other, names) == [1e-5, 1e-5, 5e-5, 5e-5]
    assert [len(rates) for rates in MTIL_RATES.values()] == [11, 11]


@pytest.mark.slow
def test_main__all_methods_then_again(study, tiny, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["--root", str(tiny), "--out", str(out), "--seeds", "1"]
    study.main(arguments)
    first = capsys.readouterr().out
    for method in study.METHODS:
        assert f"\n{method} " in first
    assert "routes of test images at the end" in first
    assert (out / "tables.txt").is_file() and (out / "domains.png").is_file()
    assert (out / "moe-adapters" / "seed_1" / "routing.json").is_file()
    study.main(arguments)
    assert capsys.readouterr().out == first


def test_coleclip__with_and_without_the_identity_of_the_data_set(study, tiny, tmp_path):
    config = study.published(study.Config(root=str(tiny), method="coleclip"))
    rows = study.run(config, tmp_path / "run")
    assert list(rows) == ["coleclip", "coleclip open"]
    known, without = (row["matrix"] for row in rows.values())
    upper = np.triu_indices(3, k=1)
    np.testing.assert_array_equal(known[upper], without[upper])
    assert (without <= known).all()
    results = json.loads((tmp_path / "run/results.json").read_text())
    # 12 images are one batch: epochs of Aircraft, MNIST and StanfordCars
    assert results["compute"]["steps"] == [20, 2, 8]


def test_coleclip__learns_the_small_rest_of_each_epoch(
    study, tiny, tmp_path, monkeypatch
):
    build = study.build_strategy

    def in_fives(*arguments):
        strategy = build(*arguments)
        strategy.train_mb_size = 5
        return strategy

    monkeypatch.setattr(study, "build_strategy", in_fives)
    config = study.published(study.Config(root=str(tiny), method="coleclip"))
    study.run(config, tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["compute"]["steps"] == [3 * 20, 3 * 2, 3 * 8]  # of 5, 5 and 2


@pytest.mark.slow
def test_main__views_of_the_selector(study, tiny, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["--root", str(tiny), "--out", str(out), "--methods", "moe-adapters"]
    views = tuple(study.VIEWS)
    study.main([*arguments, "--views", ",".join(views)])
    text = capsys.readouterr().out
    for label in ("", " per batch", " no-ddas", " calibrated"):
        assert f"\nmoe-adapters{label} " in text
    assert "given inf" in text and "calibrated 0." in text
    routing = json.loads((out / "moe-adapters/seed_42/routing.json").read_text())
    assert set(routing) == {"test", "test_batch", "test_newest", "test_calibrated"}
    assert set(routing["test_newest"]["3,1"]) == {"2"}
    for step in routing["test"]:
        # a threshold only sends more images to zero-shot
        given, limited = routing["test"][step], routing["test_calibrated"][step]
        assert limited.get("-1", 0) >= given.get("-1", 0)
        assert all(limited[r] <= given[r] for r in limited if r != "-1")
        assert sum(limited.values()) == sum(given.values())


def test_build_benchmark__calibration_keeps_images_back(study, tiny):
    config = study.Config(root=str(tiny), views=("image", "calibrated"), held_out=0.25)
    scenario, model = study.build_scenario(config), study.build_model(config)
    whole = study.build_benchmark(study.Config(root=str(tiny)), scenario, model)
    parts = study.build_benchmark(config, scenario, model)
    assert set(parts.streams) == {*whole.streams, "held_out", "test_calibrated"}
    for index, experience in enumerate(whole.train_stream):
        pictures = [
            {image.numpy().tobytes() for image, *_ in dataset.eval()}
            for dataset in (
                experience.dataset,
                parts.train_stream[index].dataset,
                parts.streams["held_out"][index].dataset,
            )
        ]
        everything, trained, held_out = pictures
        assert len(held_out) == 3 and not trained & held_out
        assert trained | held_out == everything


def test_main__missing_data_are_named(study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main(["--root", str(tmp_path), "--out", str(tmp_path / "runs")])
    message = capsys.readouterr().err
    assert "Aircraft" in message and "SUN397" in message and str(tmp_path) in message


def test_main__missing_reference_data_are_named(study, tiny, tmp_path, capsys):
    out = ["--out", str(tmp_path / "runs"), "--root", str(tiny)]
    with pytest.raises(SystemExit):
        study.main([*out, "--methods", "zscl", "--captions", str(tiny / "none.txt")])
    assert "--captions" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit):
        study.main([*out, "--methods", "moe-adapters", "--reference", str(empty)])
    assert "--reference" in capsys.readouterr().err
