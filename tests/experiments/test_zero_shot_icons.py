"""The zero-shot table on hand-made answers, and once on shipped weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

STUDY = "zero_shot_icons"


def answers(*shares):
    return [np.arange(10) < 10 * share for share in shares]


@pytest.fixture
def todo(study):
    kinds = [("step", "2010"), ("group", "Food"), ("group", "Flags")]
    kinds.append(("icons", "held-out icons"))
    return [study.Task(kind, name, "", np.arange(10)) for kind, name in kinds]


def found(ours, base):
    kinds = ("names", "templates")
    return {
        "emoji-2010": {kind: answers(*base) for kind in kinds},
        "icons": {kind: answers(*ours) for kind in kinds},
    }


def test_rows__share_interval_and_chance_by_hand(study, todo):
    lines = study.rows(todo, found((0.5, 0.2, 0.1, 0.0), (0.6, 0.0, 0.5, 0.0)))
    names = ["2010", "Food", "Flags", "mean over groups", "held-out icons"]
    assert [line.name for line in lines] == names
    assert [line.classes for line in lines] == [10, 10, 10, None, 10]
    assert all(line.chance == pytest.approx(0.1) for line in lines)
    share, interval = lines[0].cells["icons", "names"]
    assert share == 0.5 and interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    share, (low, high) = lines[3].cells["icons", "names"]
    assert share == pytest.approx(0.15) and 0 <= low < share < high < 0.4
    assert lines[3].cells["emoji-2010", "templates"][0] == 0.25


@pytest.mark.parametrize(
    "ours, base, expected",
    [
        ((0.5, 0.2, 0.1, 0), (0.6, 0.0, 0.9, 0), [True, True, True]),  # flags are free
        ((0.5, 0.1, 0.9, 0), (0.5, 0.9, 0.0, 0), [True, False, True]),
        ((0.5, 0.1, 0.3, 0), (0.5, 0.2, 0.0, 0), [True, True, True]),  # within spread
        ((0.4, 0.1, 0.1, 0), (0.6, 0.0, 0.0, 0), [False, True, False]),
    ],
)
def test_verdicts__what_must_be_reached(study, todo, ours, base, expected):
    judged = study.verdicts("tiny-emoji", "icons", todo, found(ours, base))
    assert [ok for _, ok in judged] == expected
    if not expected[1]:
        assert judged[1][0].endswith("emoji-2010: Food")


def test_pages__text_and_documentation_say_the_same(study, todo):
    lines = study.rows(todo, found((0.5, 0.2, 0.1, 0), (0.6, 0, 0.9, 0)))
    judged = [("goal", True), ("other", False)]
    text = study.text_of(lines, judged)
    assert "50.0 (23.7-76.3)" in text
    assert text.endswith("reached: goal\nnot reached: other")
    page = study.rst_of("tiny-emoji", lines, judged)
    assert "     - 50.0 (23.7-76.3)" in page and "- not reached: other" in page
    columns = 3 + len(lines[0].cells)
    assert page.count("   * -") == 6 and page.count("     -") == 6 * (columns - 1)


class Model:
    """Sees the grey of a drawing; reads the number that is a name, if it is bare."""

    def transform(self, train):
        return lambda image: torch.tensor([float(image.getpixel((0, 0)))])

    def tokenizer(self, texts):
        return torch.tensor([[float(t) if t.isdigit() else 90.0] for t in texts])

    def encode_image(self, images):
        angle = torch.deg2rad(images[:, 0])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    encode_text = encode_image


def test_hits__by_hand(study):
    drawings = [Image.new("L", (2, 2), grey) for grey in (0, 40, 5, 83)]
    images = study.encode_drawings(Model(), drawings)

    def found(*templates):
        names = study.encode_names(Model(), ("0", "30", "60", "80"), templates)
        return study.hits(images, names).tolist()

    assert found("{}") == [True, True, False, True]
    # All names are the same in this template: ties are misses.
    assert found("a {}") == [False] * 4
    # Means of unit vectors of both: names at half their way to 90.
    assert found("{}", "a {}") == [True, False, False, True]


@pytest.mark.slow
def test_main__writes_table_plot_and_page(study, monkeypatch, tmp_path):
    small = [t for t in study.tasks() if t.name in ("2010", "Food & Drink", "Flags")]
    assert [len(task.rows) for task in small] == [719, 73, 257]
    monkeypatch.setattr(study, "tasks", lambda: small[:2])
    arguments = ["--models", "tiny-emoji", "--pretrained", "emoji-2010", "--out"]
    study.main([*arguments, str(tmp_path)])
    stored = json.loads((tmp_path / "zero_shot.json").read_text())["tiny-emoji"]
    share = stored["rows"][0]["cells"][0][2]
    # The figure of the documentation's page on emoji.
    assert share == pytest.approx(0.385, abs=0.005)
    assert stored["verdicts"] == []
    for name in ("tiny-emoji.txt", "tiny-emoji.png", "zero_shot_figures.inc"):
        assert (tmp_path / name).stat().st_size > 100
