# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.models.encoders.blocks import (
    BlockView as BlockView,
)
from avalanche_clip.models.encoders.dual_encoder import (
    DualEncoder as DualEncoder,
)
from avalanche_clip.models.encoders.mixture_of_features import (
    MixtureOfFeatures as MixtureOfFeatures,
)
from avalanche_clip.models.encoders.output import (
    CLIPOutput as CLIPOutput,
)
from avalanche_clip.models.encoders.positions import (
    load_tower as load_tower,
    resize_dual_encoder as resize_dual_encoder,
)
from avalanche_clip.models.encoders.presets import (
    PRESETS as PRESETS,
)
from avalanche_clip.models.encoders.rewriting import (
    rewrite_file as rewrite_file,
)
from avalanche_clip.models.encoders.weights import (
    save_weights as save_weights,
)
from avalanche_clip.models.export.export import (
    export_model as export_model,
)
from avalanche_clip.models.images.augmentation import (
    TinyAugmentation as TinyAugmentation,
)
from avalanche_clip.models.images.drawing_features import (
    drawing_features as drawing_features,
)
from avalanche_clip.models.images.transforms import (
    ImageTransform as ImageTransform,
    Preprocessing as Preprocessing,
    TinyTransform as TinyTransform,
)
from avalanche_clip.models.moe.adapters import (
    MoEAdapterSet as MoEAdapterSet,
    attach_moe_adapters as attach_moe_adapters,
    load_moe_adapters as load_moe_adapters,
)
from avalanche_clip.models.moe.gating import (
    noisy_top_k_gates as noisy_top_k_gates,
)
from avalanche_clip.models.moe.mixture import (
    MoEAdapter as MoEAdapter,
)
from avalanche_clip.models.peft.adapter import (
    attach_adapters as attach_adapters,
)
from avalanche_clip.models.peft.attached import (
    BranchSet as BranchSet,
)
from avalanche_clip.models.peft.language import (
    LanguageAdapterSet as LanguageAdapterSet,
    attach_language_adapters as attach_language_adapters,
)
from avalanche_clip.models.peft.lora import (
    attach_lora as attach_lora,
)
from avalanche_clip.models.peft.merge import (
    merge_adapters as merge_adapters,
)
from avalanche_clip.models.peft.prompt import (
    PromptSet as PromptSet,
    attach_prompts as attach_prompts,
)
from avalanche_clip.models.selector.alexnet import (
    AlexNetFeatures as AlexNetFeatures,
)
from avalanche_clip.models.selector.features import (
    ModelFeatures as ModelFeatures,
    SelectorFeatures as SelectorFeatures,
)
from avalanche_clip.models.selector.selector import (
    AutoSelector as AutoSelector,
)
from avalanche_clip.models.selector.training import (
    SelectorTraining as SelectorTraining,
)
from avalanche_clip.models.stored import (
    create_dual_encoder as create_dual_encoder,
)
from avalanche_clip.models.text.growing import (
    GrowingTokenizer as GrowingTokenizer,
)
from avalanche_clip.models.text.hf_tokenizers import (
    HFCaptionTokenizer as HFCaptionTokenizer,
)
from avalanche_clip.models.text.learning import (
    LearntVocabulary as LearntVocabulary,
)
from avalanche_clip.models.text.teir import (
    teir_init_ as teir_init_,
    teir_scale as teir_scale,
)
from avalanche_clip.models.text.token_table import (
    ExpandableTokenEmbedding as ExpandableTokenEmbedding,
    attach_token_embedding as attach_token_embedding,
    find_token_embedding as find_token_embedding,
    load_vocabulary as load_vocabulary,
    save_vocabulary as save_vocabulary,
    train_tokens_only as train_tokens_only,
)
from avalanche_clip.models.text.tokenizers import (
    CaptionTokenizer as CaptionTokenizer,
    JSONTokenizer as JSONTokenizer,
    OpenCLIPTokenizer as OpenCLIPTokenizer,
)
from avalanche_clip.models.text.vocabulary import (
    VocabularyGrowth as VocabularyGrowth,
    count_tokens as count_tokens,
)
