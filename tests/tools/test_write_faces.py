"""The stubs of the faces say what their table says."""

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
    assert "from avalanche_clip.models.encoders.factory import (" in root
    assert "    create_dual_encoder as create_dual_encoder," in root
