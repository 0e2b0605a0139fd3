"""CLIP-like models behind one interface."""

from avalanche_clip.models.auto_selector import AutoSelector
from avalanche_clip.models.blocks import BlockView
from avalanche_clip.models.bpe_training import LearntVocabulary
from avalanche_clip.models.dual_encoder import DualEncoder
from avalanche_clip.models.factory import create_dual_encoder
from avalanche_clip.models.gating import noisy_top_k_gates
from avalanche_clip.models.growing_tokenizer import GrowingTokenizer
from avalanche_clip.models.hf_tokenizers import HFCaptionTokenizer
from avalanche_clip.models.language_adapters import (
    LanguageAdapterSet,
    attach_language_adapters,
)
from avalanche_clip.models.moe_adapter import MoEAdapter
from avalanche_clip.models.moe_attachment import (
    MoEAdapterSet,
    attach_moe_adapters,
    load_moe_adapters,
)
from avalanche_clip.models.output import CLIPOutput
from avalanche_clip.models.presets import PRESETS
from avalanche_clip.models.rewriting import rewrite_file
from avalanche_clip.models.selector_alexnet import AlexNetFeatures
from avalanche_clip.models.selector_features import ModelFeatures, SelectorFeatures
from avalanche_clip.models.selector_training import SelectorTraining
from avalanche_clip.models.teir import teir_init_, teir_scale
from avalanche_clip.models.token_embedding import (
    ExpandableTokenEmbedding,
    attach_token_embedding,
    find_token_embedding,
    load_vocabulary,
    save_vocabulary,
    train_tokens_only,
)
from avalanche_clip.models.tokenizers import (
    CaptionTokenizer,
    JSONTokenizer,
    OpenCLIPTokenizer,
)
from avalanche_clip.models.transforms import (
    ImageTransform,
    Preprocessing,
    TinyAugmentation,
    TinyTransform,
)
from avalanche_clip.models.vocabulary import VocabularyGrowth, count_tokens
from avalanche_clip.models.weights import save_weights

__all__ = [
    "PRESETS",
    "AlexNetFeatures",
    "AutoSelector",
    "BlockView",
    "CLIPOutput",
    "CaptionTokenizer",
    "DualEncoder",
    "ExpandableTokenEmbedding",
    "GrowingTokenizer",
    "HFCaptionTokenizer",
    "ImageTransform",
    "JSONTokenizer",
    "ModelFeatures",
    "MoEAdapter",
    "MoEAdapterSet",
    "LanguageAdapterSet",
    "LearntVocabulary",
    "OpenCLIPTokenizer",
    "Preprocessing",
    "SelectorFeatures",
    "SelectorTraining",
    "TinyAugmentation",
    "TinyTransform",
    "attach_moe_adapters",
    "create_dual_encoder",
    "load_moe_adapters",
    "noisy_top_k_gates",
    "rewrite_file",
    "VocabularyGrowth",
    "attach_language_adapters",
    "attach_token_embedding",
    "count_tokens",
    "create_dual_encoder",
    "find_token_embedding",
    "load_vocabulary",
    "save_vocabulary",
    "save_weights",
    "teir_init_",
    "teir_scale",
    "train_tokens_only",
]
