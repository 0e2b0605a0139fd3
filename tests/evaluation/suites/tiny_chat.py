"""A LLaVA of 25 thousand parameters with a processor that knows 60 words."""

from functools import cache

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

WORDS = (
    *("<pad>", "<s>", "</s>", "<unk>", "A", "B", "C", "D", "E", "USER:", "ASSISTANT:"),
    *("yes", "no", "how", "many", "cats", "are", "there", "a", "photo", "of", "which"),
    *(str(n) for n in range(21)),
    *("Answer", "with", "the", "option", "symbol.", "single", "word.", "number."),
)
TEMPLATE = (
    "{% for m in messages %}USER: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(**options):
    from transformers import PreTrainedTokenizerFast

    filler = [f"w{n}" for n in range(63 - len(WORDS))]
    words = {w: n for n, w in enumerate((*WORDS, *filler, "<image>"))}
    assert words["<image>"] == 63
    raw = Tokenizer(WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    special = {
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<image>"],
        **options,
    }
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def processor(**options):
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = {"height": 32, "width": 32}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size=size, crop_size=size, do_center_crop=False
        ),
        tokenizer=tokenizer(**options),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


@cache
def model(seed=0, context=256):
    from transformers import (
        AutoModelForImageTextToText,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
    )

    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=16, **small),
        text_config=LlamaConfig(
            vocab_size=64,
            num_key_value_heads=2,
            max_position_embeddings=context,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **small,
        ),
        image_token_id=63,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForImageTextToText.from_config(config)
        for weight in made.parameters():  # so that what is seen and read tells
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return made.eval()


SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def _other(config, made):
    """A model with random weights that tell apart what they see and read."""
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval(), made


def qwen2_vl():
    """A model whose images have as many tokens as they have patches."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    kinds = ("image_pad", "video_pad", "vision_start", "vision_end")
    marks = [f"<|{kind}|>" for kind in kinds]
    words = tokenizer(additional_special_tokens=marks)
    ids = words.convert_tokens_to_ids(marks)
    shown = "<|vision_start|> <|image_pad|> <|vision_end|>"
    made = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28**2, max_pixels=16 * 28**2),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=words,
        chat_template=TEMPLATE.replace("<image>", shown),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    names = ("image_token_id", "video_token_id", "vision_start_token_id")
    config = Qwen2VLConfig(
        text_config={**SMALL_TEXT, "vocab_size": len(words), "rope_parameters": rope},
        vision_config={
            **{"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
            "mlp_ratio": 2,
        },
        vision_end_token_id=ids[3],
        **dict(zip(names, ids[:3], strict=True)),
    )
    return _other(config, made)


def idefics3():
    """A model whose processor wants the images of each prompt in a list."""
    from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor

    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    words = tokenizer(additional_special_tokens=["<image>", *marks])
    side = {"longest_edge": 32}
    made = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size=side, max_image_size=side, do_image_splitting=False
        ),
        tokenizer=words,
        image_seq_len=4,
        chat_template=TEMPLATE,
    )
    config = Idefics3Config(
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        text_config={
            **SMALL_TEXT,
            **{"model_type": "llama", "vocab_size": len(words), "pad_token_id": 0},
        },
        vision_config={
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        },
    )
    return _other(config, made)
