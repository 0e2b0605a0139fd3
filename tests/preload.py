"""What processes of tests start with: everything is imported, nothing has run."""

import gc
import os

import open_clip  # noqa: F401
import transformers  # noqa: F401

import tests.training.small_runs  # noqa: F401

os.fsync = lambda descriptor: None  # as in conftest.py
gc.freeze()
