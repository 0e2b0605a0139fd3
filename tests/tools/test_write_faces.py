"""The stubs of the faces say what their table says."""

import ast

from tests.scripts import load_script


def test_stubs__are_those_of_the_table():
    script = load_script("tools/write_faces.py")
    stubs = script.stubs()
    assert stubs.keys() == set(script.PACKAGE.rglob("*.pyi"))
    for path, text in stubs.items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path} is out of date; run python tools/write_faces.py."
        )
    root = stubs[script.PACKAGE / "__init__.pyi"]
    assert "from avalanche_clip.models.stored import (" in root
    assert "    create_dual_encoder as create_dual_encoder," in root


def test_distributed__names_of_others_are_shown_to_type_checkers():
    path = load_script("tools/write_faces.py").PACKAGE / "distributed.py"
    shown = {
        alias.asname
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {"RankError", "agree", "is_distributed", "rank", "world_size"} <= shown
