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
