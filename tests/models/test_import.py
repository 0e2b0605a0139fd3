import subprocess
import sys

HEAVY = ["avalanche", "open_clip", "transformers", "timm", "torchvision", "tokenizers"]


def test_import__loads_no_model_library():
    code = (
        "import sys, avalanche_clip.models;"
        f"found = [m for m in {HEAVY!r} if m in sys.modules];"
        "sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
