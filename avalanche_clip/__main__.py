"""``python -m avalanche_clip``, see :mod:`avalanche_clip.cli`."""

from __future__ import annotations

import sys

from avalanche_clip.cli import main

if __name__ == "__main__":
    sys.exit(main())
