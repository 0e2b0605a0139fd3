"""Lets Avalanche's W&B logger run with current wandb releases.

Checked against avalanche-lib 0.6.0 and wandb 0.31.0: the logger asks the
module for ``wandb.util.generate_id`` and ``wandb.viz``, which wandb has
dropped, and so fails when it is made or at its first metric.
"""

from __future__ import annotations

import secrets
from typing import Any


def repair_wandb_logger() -> None:
    """Give wandb the two missing names once the logger imports it.

    ``wandb.viz`` becomes an alias of ``wandb.plot``, its successor, and
    ``wandb.util.generate_id`` returns eight random hexadecimal digits. Names
    that wandb has are left alone, and wandb is not imported here.
    """
    from avalanche.logging import WandBLogger

    stock: Any = WandBLogger
    load = stock.import_wandb
    if getattr(load, "repaired", False):
        return

    def import_wandb(self: Any) -> None:
        load(self)
        if not hasattr(self.wandb, "viz"):
            self.wandb.viz = self.wandb.plot
        if not hasattr(self.wandb.util, "generate_id"):
            self.wandb.util.generate_id = lambda: secrets.token_hex(4)

    import_wandb.repaired = True  # type: ignore[attr-defined]
    stock.import_wandb = import_wandb
