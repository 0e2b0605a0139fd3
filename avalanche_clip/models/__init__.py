"""CLIP-like models behind one interface."""

from avalanche_clip.models.blocks import BlockView
from avalanche_clip.models.dual_encoder import DualEncoder
from avalanche_clip.models.factory import create_dual_encoder
from avalanche_clip.models.output import CLIPOutput
from avalanche_clip.models.presets import PRESETS
from avalanche_clip.models.tokenizers import (
    CaptionTokenizer,
    HFCaptionTokenizer,
    JSONTokenizer,
    OpenCLIPTokenizer,
)
from avalanche_clip.models.transforms import (
    ImageTransform,
    Preprocessing,
    TinyAugmentation,
    TinyTransform,
)
from avalanche_clip.models.weights import save_weights

__all__ = [
    "PRESETS",
    "BlockView",
    "CLIPOutput",
    "CaptionTokenizer",
    "DualEncoder",
    "HFCaptionTokenizer",
    "ImageTransform",
    "JSONTokenizer",
    "OpenCLIPTokenizer",
    "Preprocessing",
    "TinyAugmentation",
    "TinyTransform",
    "create_dual_encoder",
    "save_weights",
]
