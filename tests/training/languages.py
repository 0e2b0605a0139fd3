"""A tiny dual encoder and a stream of three tiny languages, with teacher features."""

from __future__ import annotations

import numpy as np
import torch

from avalanche_clip.benchmarks import make_image_text_dataset, prepare_benchmark
from avalanche_clip.benchmarks.items.facts import with_facts
from avalanche_clip.benchmarks.streams.languages import multilingual_benchmark
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import CLLCLIP
from tests.helpers import quiet_evaluator

DIM = 8
WORDS = {
    "en": ["red cat", "blue dog", "green bird", "small house", "old car", "big sun"],
    "de": ["rote katze", "blauer hund", "grüner vogel", "kleines haus", "altes auto"],
    "el": ["κόκκινη γάτα", "μπλε σκύλος", "πράσινο πουλί", "σπίτι", "παλιό"],
}
CODES = {name: number for number, name in enumerate(WORDS)}


def tiny_model(seed=0, width=16):
    """A dual encoder over the tiny-emoji vocabulary, of one small block per tower."""
    torch.manual_seed(seed)
    return create_dual_encoder(
        {
            "model_cfg": {
                "embed_dim": DIM,
                "vision_cfg": {
                    "layers": 1,
                    "width": 16,
                    "head_width": 8,
                    "patch_size": 8,
                    "image_size": 16,
                },
                "text_cfg": {
                    "context_length": 12,
                    "vocab_size": 3584,
                    "width": width,
                    "heads": 2,
                    "layers": 1,
                },
            },
            "tokenizer": {"type": "json", "preset": "emoji_bpe.json"},
        }
    )


class Captions:
    """Random pictures; the caption says the language."""

    def __init__(self, language, size):
        self.texts = [WORDS[language][k % len(WORDS[language])] for k in range(size)]
        generator = torch.Generator().manual_seed(CODES[language])
        self.images = torch.rand(size, 3, 16, 16, generator=generator)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return self.images[index], self.texts[index]


def language_data(language, size=12, *, first=0, features=True):
    """Image-text data of one language; raw teacher features on request."""
    data = make_image_text_dataset(
        Captions(language, size),
        sample_ids=np.arange(first, first + size),
        targets=np.arange(size) % 5,
        languages=np.full(size, CODES[language]),
    )
    if not features:
        return data
    rng = np.random.default_rng(CODES[language])
    facts = {
        name: rng.normal(size=(size, DIM)).astype(np.float32)
        for name in ("teacher_text", "teacher_image")
    }
    return with_facts(data, facts)


def language_stream(model, languages=("en", "de", "el"), *, features=True, size=12):
    """A prepared benchmark with one language per experience."""

    def part(first, features):
        return {
            name: language_data(
                name, size, first=first + 100 * CODES[name], features=features
            )
            for name in languages
        }

    benchmark = multilingual_benchmark(
        part(0, features), test=part(1000, False), languages=CODES
    )
    return prepare_benchmark(benchmark, model)


def adamw(groups):
    """An optimiser that moves rows visibly in a few steps."""
    return torch.optim.AdamW(groups, lr=1e-2, eps=1e-6)


def language_strategy(model, **options):
    """A CLLCLIP strategy of four steps per language."""
    defaults = {
        "vocab_size": 300,
        "optimizer": adamw,
        "train_mb_size": 4,
        "budget_iterations": 4,
        "evaluator": quiet_evaluator(),
    }
    return CLLCLIP(model=model, **{**defaults, **options})
