"""Checkpoints that a run resumes from exactly, between and inside experiences."""

from avalanche_clip.training.plugin_state import register_plugin_state
from avalanche_clip.training.resume import capture_state, load_state, save_state
from avalanche_clip.training.runs.files import (
    CheckpointError,
    read_state,
    require_finite,
    write_state,
)

__all__ = [
    "CheckpointError",
    "capture_state",
    "load_state",
    "read_state",
    "register_plugin_state",
    "require_finite",
    "save_state",
    "write_state",
]
