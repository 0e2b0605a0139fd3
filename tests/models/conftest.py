"""Tiny models of every supported kind, written to disk without a network."""

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from avalanche_clip.models import create_dual_encoder

VOCAB = 40


@pytest.fixture
def native_cfg():
    """An open_clip configuration with a native transformer image tower."""
    return {
        "embed_dim": 24,
        "vision_cfg": {
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "image_size": 32,
        },
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """The word tokenizer in a file."""
    return word_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def word_tokenizer(folder):
    """Write a word tokenizer in JSON format whose last two ids are the special ones."""
    words = ["[UNK]", *"red green blue dog cat bird car house sun moon".split()]
    words += [f"w{i}" for i in range(VOCAB - len(words) - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tiny_cfg(native_cfg, tokenizer_file):
    """The native configuration over the word tokenizer."""
    native_cfg["text_cfg"]["vocab_size"] = VOCAB
    return {
        "model_cfg": native_cfg,
        "tokenizer": {"type": "json", "file": str(tokenizer_file)},
    }


@pytest.fixture
def trained(tiny_cfg):
    """A model whose weights are the ones to find again."""
    torch.manual_seed(3)
    return create_dual_encoder(tiny_cfg)


@pytest.fixture
def one(tiny_cfg):
    """A model in evaluation mode."""
    torch.manual_seed(0)
    return create_dual_encoder(tiny_cfg).eval()


@contextmanager
def edited(path):
    """The content of a JSON file, which is written back."""
    stored = json.loads(path.read_text()) if path.is_file() else {}
    yield stored
    path.write_text(json.dumps(stored))


def write_weights(model, path):
    """Write the tensors of the wrapped model alone, by torch or as safetensors."""
    state = {k: v.clone() for k, v in model.clip.state_dict().items()}
    write = save_file if path.suffix == ".safetensors" else torch.save
    write(state, path)


def open_clip_config(folder, model_cfg, **config):
    """Write an open_clip configuration into a folder."""
    content = json.dumps({"model_cfg": model_cfg, **config})
    (folder / "open_clip_config.json").write_text(content)


def same(model, other):
    return model.state_fingerprint() == other.state_fingerprint()


def unigram(scores, unknown, template):
    """A SentencePiece-like tokenizer of pieces with their scores, ids in this order."""
    inner = Tokenizer(models.Unigram(list(scores.items()), unk_id=unknown))
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [(t, n) for n, t in enumerate(scores) if t in template.split()]
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    return inner


def save_hf_tokenizer(tokenizer_file, folder, **special):
    """Store the word tokenizer as a transformers tokenizer."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_file(str(tokenizer_file))
    inner.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", VOCAB - 2), ("<|endoftext|>", VOCAB - 1)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        **special,
    ).save_pretrained(folder)


def hf_towers():
    """Configurations of two small towers, as transformers calls them."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return {
        "text_config": {
            **sizes,
            "vocab_size": VOCAB,
            "max_position_embeddings": 12,
            "bos_token_id": VOCAB - 2,
            "eos_token_id": VOCAB - 1,
            "pad_token_id": VOCAB - 1,
        },
        "vision_config": {**sizes, "image_size": 32, "patch_size": 8},
    }


@pytest.fixture
def hf_clip_folder(tmp_path, tokenizer_file):
    """A transformers CLIP folder with weights, tokenizer and preprocessing."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(projection_dim=24, **hf_towers())
    torch.manual_seed(0)
    folder = tmp_path / "hf_clip"
    CLIPModel(config).save_pretrained(folder)
    save_hf_tokenizer(tokenizer_file, folder)
    processor = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def hf_siglip_folder(tmp_path, tokenizer_file):
    """A transformers SigLIP folder with weights and tokenizer."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(**hf_towers())
    torch.manual_seed(0)
    folder = tmp_path / "hf_siglip"
    SiglipModel(config).save_pretrained(folder)
    save_hf_tokenizer(tokenizer_file, folder)
    return folder


@pytest.fixture
def text_tower(tmp_path, tokenizer_file):
    """A folder with the configuration of a RoBERTa text tower and its tokenizer."""
    from transformers import RobertaConfig

    folder = tmp_path / "roberta"
    RobertaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=60,
        pad_token_id=VOCAB - 1,
    ).save_pretrained(folder)
    save_hf_tokenizer(tokenizer_file, folder)
    return folder


def hf_text(native_cfg, folder):
    """The native configuration with a text tower of transformers."""
    text = {"context_length": 12, "hf_proj_type": "linear"}
    text |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    return {**native_cfg, "text_cfg": {**text, "hf_pooler_type": "mean_pooler"}}
