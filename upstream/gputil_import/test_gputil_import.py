"""Without GPUtil everything but the GPU metrics works."""

import importlib.util
import sys
import unittest
from unittest import mock

from avalanche.evaluation.metrics import gpu_usage


class ImportTests(unittest.TestCase):
    def test_missing(self):
        spec = importlib.util.spec_from_file_location("again", gpu_usage.__file__)
        module = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, {"GPUtil": None}):
            spec.loader.exec_module(module)
        with self.assertRaisesRegex(ImportError, "GPUtil"):
            module.MaxGPU(0)
