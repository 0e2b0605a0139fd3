"""Figures of several commands as one table."""

import pytest

from avalanche_clip.common.files import write_json
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("tools/figure_table.py")


def write(folder, name, seeds, methods, **facts):
    content = {"facts": {"pretrained": "icons", "seeds": seeds, **facts}}
    content["methods"] = {"base": {"last": [1.0]}, **methods}
    write_json(folder / name, content, checksum=True)


def test_table__joins_seeds_and_methods_of_several_commands(script, tmp_path, capsys):
    some = {"a": {"last": [1.0], "kept": [5.0]}, "b": {"last": [4.0], "kept": [None]}}
    write(tmp_path, "figures.json", [0], some)
    more = {"a": {"last": [2.0, 3.0], "kept": [5.0, 8.0]}, "c": {"last": [7.0, 9.0]}}
    write(tmp_path, "figures_more.json", [1, 2], more)
    script.main([str(tmp_path), "--figures", "kept,last"])
    assert capsys.readouterr().out.splitlines() == [
        ".. csv-table::",
        '   :header: "", "kept", "last"',
        "",
        '   "a", "6.0 ± 1.7", "2.0 ± 1.0"',
        '   "b", "–", "4.0"',
        '   "c", "–", "8.0 ± 1.4"',
    ]


def test_figures__of_two_studies_are_refused(script, tmp_path):
    write(tmp_path, "figures.json", [0, 1], {"a": {"last": [1.0, 2.0]}})
    write(tmp_path, "figures_2.json", [1, 2], {"a": {"last": [2.0, 5.0]}})
    methods, starts = script.read_figures(sorted(tmp_path.iterdir()))
    assert methods == {"a": {"last": {0: 1.0, 1: 2.0, 2: 5.0}}}
    assert starts == {"icons"}
    write(tmp_path, "figures_3.json", [0], {"a": {"last": [9.0]}})
    with pytest.raises(ValueError, match=r"figures_3.json has 9.0 .* before 1.0"):
        script.read_figures(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("arguments", [["missing"], [".", "--figures", "x"]])
def test_wrong_arguments__are_told(script, tmp_path, monkeypatch, arguments, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "figures.json", [0], {"a": {"last": [1.0]}})
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert "no figure" in capsys.readouterr().err
