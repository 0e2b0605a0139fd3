# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.common.state_files import (
    CheckpointError as CheckpointError,
    read_state as read_state,
    require_finite as require_finite,
    write_state as write_state,
)
from avalanche_clip.training.runs.plugin_state import (
    register_plugin_state as register_plugin_state,
)
from avalanche_clip.training.runs.resume import (
    capture_state as capture_state,
    load_state as load_state,
    save_state as save_state,
)
