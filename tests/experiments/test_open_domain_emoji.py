"""The study of emoji domains without the identity of the data set."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from avalanche_clip.training.methods.coleclip.plugin import CoLeCLIPPlugin
from tests.experiments.test_multi_domain_emoji import shorten
from tests.training import moe_runs

STUDY = "open_domain_emoji"


@pytest.fixture
def short(study, monkeypatch):
    """Three domains of a few images in place of the emoji, and a tiny model."""
    shorten(study.study, monkeypatch)
    monkeypatch.setattr(study, "chosen", lambda name, method: {"lr": 1e-2})
    return study


def config_of(study, **options):
    return study.Config(**{"iterations": 4, "warmup": 0, **options})


def by_hand(model, seen, tested, images):
    """Accuracy of zero-shot on classes of some domains, without the package's scores.

    :param seen: numbers of the classes that compete.
    :param tested: class of each image.
    """
    with torch.no_grad():
        image = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
        rows = []
        for number in seen:
            texts = [f"{t} {moe_runs.NAMES[number]}" for t in ("a", "b")]
            one = model.encode_text(model.tokenizer(texts))
            one = torch.nn.functional.normalize(one, dim=-1).mean(0)
            rows.append(torch.nn.functional.normalize(one, dim=-1))
        guess = (image @ torch.stack(rows).T).argmax(1)
    return float(np.mean([seen[g] == t for g, t in zip(guess.tolist(), tested)]))


def test_zero_shot__with_and_without_identity(short, tmp_path):
    found = short.run(config_of(short), "zero-shot", tmp_path)["zero-shot"]
    model = short.study.build_model(None).eval()
    tests = short.build_benchmark(config_of(short), model).streams["test"]
    for i in range(3):
        for j, experience in enumerate(tests):
            items = [(item[0], int(item[2])) for item in experience.dataset.eval()]
            targets = experience.dataset.targets
            images = torch.stack([image for image, _ in items])
            own = list(range(3 * j, 3 * j + 3))
            learned = list(range(3 * i + 3)) if j <= i else own
            for name, seen in (("matrix", own), ("open", learned)):
                wanted = by_hand(model, seen, [int(t) for t in targets], images)
                assert found[name][i, j] == pytest.approx(wanted)
    assert found["trainable"] == 0
    assert (found["open"] < found["matrix"]).any()


def test_coleclip__two_matrices_and_unseen_sets(short, tmp_path, monkeypatch):
    found = short.run(config_of(short), "coleclip:0.01", tmp_path)["coleclip:0.01"]
    upper = np.triu_indices(3, k=1)
    np.testing.assert_array_equal(found["matrix"][upper], found["open"][upper])
    assert (found["open"] <= found["matrix"]).all()
    assert found["open"][0, 0] == found["matrix"][0, 0]
    assert 0 <= found["icons"] <= 1 and found["base"] == found["icons"]
    assert found["trainable"] > 0
    line = short.line(found)
    assert line["2010"] == 100 * found["base"]
    monkeypatch.setattr(CoLeCLIPPlugin, "after_forward", None)  # no step is made again
    again = short.run(config_of(short), "coleclip:0.01", tmp_path)["coleclip:0.01"]
    np.testing.assert_array_equal(again["open"], found["open"])


def test_ablations__change_what_they_name(short):
    config = config_of(short)
    plain = {"alpha": 0.1, "stage_boundary": 0.5, "num_prompts": 1}
    for method, changes in short.ABLATIONS.items():
        model = short.study.build_model(config)
        strategy = short.build_strategy(config, method, model, None)
        found = {name: getattr(strategy.coleclip, name) for name in plain}
        assert found == {**plain, **changes}
        assert strategy.eval_label_space == "own"
        (group,) = strategy.optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (1e-2, 0)
        assert type(strategy.optimizer) is torch.optim.Adam


def test_settings__named_chosen_or_those_of_the_other_study(short, monkeypatch):
    monkeypatch.setattr(short, "chosen", lambda name, method: {"of": (name, method)})
    for method in short.ABLATIONS:
        assert short.settings_of(method) == {"of": (STUDY, "coleclip")}
        assert short.settings_of(f"{method}:0.5") == {"lr": 0.5}
    first = short.study.GRID["zscl"][0]
    assert short.settings_of("zscl") == first
    with pytest.raises(ValueError, match="must be coleclip:LR with numbers"):
        short.settings_of("coleclip:fast")


def test_line_and_tables__hand_computed(study, tmp_path):
    found = {
        "matrix": np.array([[0.5, 0.3], [0.4, 0.6]]),
        "open": np.array([[0.5, 0.3], [0.2, 0.4]]),
        **{"icons": 0.5, "base": None, "trainable": 7000, "routing": None},
        "labels": ["a", "b"],
    }
    line = study.line(found)
    assert np.isnan(line.pop("2010"))
    wanted = {"transfer": 30, "average": 45, "last": 50, "open average": 35}
    wanted |= {"open last": 30, "learned": 55, "icons": 50, "thousands": 7}
    assert line == pytest.approx(wanted)
    text = study.write_tables({"coleclip": [found]}, tmp_path, {"study": STUDY})
    rows = [row.split() for row in text.splitlines()]
    assert ["coleclip", "last", "40.0", "60.0"] in rows
    assert ["coleclip", "open", "last", "20.0", "40.0"] in rows
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["methods"]["coleclip"]["open last"] == pytest.approx([30])


def test_search__mean_of_both_averages(short, monkeypatch, tmp_path):
    rows = {"coleclip:0.1": (0.2, 0.4), "coleclip:0.2": (0.25, 0.25)}

    def run(config, method, out_dir):
        matrices = [np.full((2, 2), value) for value in rows[method]]
        row = {"icons": None, "base": None, "trainable": 0, "routing": None}
        return {method: {**row, "labels": ["a", "b"], **dict(zip(NAMES, matrices))}}

    import domain_study

    NAMES = ("matrix", "open")
    monkeypatch.setattr(short, "run", run)
    for module, name in ((domain_study, "search"), (short, "search_table")):
        changed = partial(getattr(module, name), folder=tmp_path)
        monkeypatch.setattr(module, name, changed)
    monkeypatch.setattr(short, "GRID", {"coleclip": [{"lr": 0.1}, {"lr": 0.2}]})
    text = short.choose(config_of(short), tmp_path / "runs")
    assert text.splitlines()[0].startswith("* coleclip")
    kept = json.loads((tmp_path / f"{STUDY}.json").read_text())["methods"]["coleclip"]
    assert [score for _, score in kept["tried"]] == pytest.approx([30, 25])


@pytest.mark.slow
def test_main__all_methods_and_resume(short, tmp_path, capsys):
    arguments = ["--iterations", "2", "--out", str(tmp_path)]
    short.main(arguments)
    first = capsys.readouterr().out
    for method in short.METHODS:
        assert f"\n{method} " in first
    short.main(arguments)
    assert capsys.readouterr().out == first
