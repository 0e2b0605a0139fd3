"""Models of the checkpoints that a run has kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.factory import create_dual_encoder
from avalanche_clip.models.encoders.presets import PRESET_WEIGHTS, PRESETS
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from avalanche_clip.training.runs.files import (
    CheckpointError,
    read_state,
    require_finite,
)
from avalanche_clip.training.runs.resume import load_weights
from avalanche_clip.training.templates.frozen_base import base_weights
from avalanche_clip.training.templates.settings import as_stored

logger = logging.getLogger(__name__)


def kept_steps(folder: str | Path, *, skip_damaged: bool = False) -> dict[str, Path]:
    """Find the models that a run has kept between its steps.

    :param folder: of a run, or with its checkpoints.
    :param skip_damaged: leave out what cannot be read, with a warning.
    :return: ``"before"``, ``"0"``, ``"1"``, ... as in ``results.json`` -> the newest
        checkpoint after that step; empty for any other folder.
    :raises CheckpointError: if a checkpoint is damaged, or all lie inside a step.
    """
    folder = Path(folder).expanduser()
    known = checkpoints(folder / "checkpoints") or checkpoints(folder)
    found: dict[int, Path] = {}
    for path in known:
        try:
            state = read_state(path)
            require_finite(state, path)
        except CheckpointError as error:
            if not skip_damaged:
                raise
            logger.warning("%s", error)
            continue
        # A strategy may have been trained before the run.
        number = state["experience"] if state["run"] is None else state["run"]["next"]
        if not state["inside"]:
            found[int(number)] = path
    if known and not found and not skip_damaged:
        raise CheckpointError(
            f"{folder} holds no checkpoint between steps, only inside one; go on with "
            "the run (resume=True) until the step has ended."
        )
    steps = sorted(found.items())
    return {str(step - 1) if step else "before": path for step, path in steps}


def load_kept(path: str | Path) -> DualEncoder:
    """Build the model of a checkpoint.

    :param path: see :func:`kept_steps`.
    :return: on the CPU.
    :raises CheckpointError: if it is damaged, of another model than a
        :class:`DualEncoder`, or needs what plugins attach: adapters, a grown table.
    """
    path = Path(path)
    state = read_state(path)
    require_finite(state, path)
    settings = state["identity"]["settings"]
    config, parts = settings["model"], sorted(state["growth"])
    if not isinstance(config, dict) or parts:
        what = f"parts that grew ({parts[0]})" if parts else f"a {config}"
        raise CheckpointError(
            f"{path} holds {what}, which it does not tell how to build; build the "
            "strategy, use load_state, and save its model (model.save)."
        )
    base = state["base"]
    try:
        model = _with_base(config, settings["pretrained"]) if base["names"] else None
        model = model or create_dual_encoder(config)
        weights = {**state["model"], **base_weights(model, base)}
        load_weights(model, weights, set(state["trainable"]))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model


def _with_base(config: dict[str, Any], pretrained: str) -> DualEncoder:
    """Build a model with the frozen weights that a checkpoint knows by their hash."""
    if pretrained in PRESET_WEIGHTS:  # which a configuration alone does not name
        known = (create_dual_encoder(name, pretrained) for name in PRESETS)
        return next(model for model in known if as_stored(model.config) == config)
    return create_dual_encoder(config, pretrained)
