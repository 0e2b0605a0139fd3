"""A stub dual encoder and a small synthetic time-stamped benchmark."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.models.encoders.output import CLIPOutput

IMAGE_SIZE = 8
VOCABULARY = 32
CONTEXT = 6
WORDS = tuple("abcdefghijklmnopqrstuvwxyz")


class StubTokenizer:
    """One token per letter: pad 0, start 1, end 2, letters from 3 on."""

    pad_id, sot_id, eot_id = 0, 1, 2
    vocab_size = VOCABULARY
    context_length = CONTEXT

    def __call__(self, texts, languages=None):
        rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
        for i, text in enumerate(texts):
            letters = [3 + WORDS.index(c) for c in text if c in WORDS]
            ids = [self.sot_id, *letters[: CONTEXT - 2], self.eot_id]
            rows[i, : len(ids)] = torch.tensor(ids)
        return rows


class StubTransform:
    """Identity on tensors; in training optional noise, drawn per sample."""

    def __init__(self, noise=0.0):
        self.noise = noise
        self.deterministic = noise == 0.0

    def __call__(self, image):
        image = image.float()
        if self.noise:
            image = image + self.noise * torch.randn(image.shape)
        return image


class StubDualEncoder(nn.Module):
    """Two linear towers over 8x8 images and a bag of 32 tokens.

    :param seed: of the weights.
    :param dropout: of both towers' features.
    :param noise: of the training transform (0: deterministic).
    :param bias: with a SigLIP-like logit bias (no clamp of the scale).
    """

    def __init__(
        self, seed=0, *, dim=8, channels=3, dropout=0.0, noise=0.0, bias=False
    ):
        super().__init__()
        self.image_proj = nn.Linear(3 * IMAGE_SIZE**2, dim)
        self.token = nn.Embedding(VOCABULARY, dim)
        self.text_proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-5.0)) if bias else None
        self.max_log_scale = None if bias else math.log(100.0)
        self.tokenizer = StubTokenizer()
        self.noise = noise
        self.embed_dim = dim
        self.image_size = IMAGE_SIZE
        self.context_length = CONTEXT
        self.is_causal_text = False
        self.pretrained = None
        self.features = None
        self.forwards = 0
        self.reinitialize(seed)

    def reinitialize(self, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() >= 2:
                    fan = 1 if name.startswith("token") else parameter.shape[1]
                    parameter.normal_(0, fan**-0.5, generator=generator)
                elif name.endswith("bias") and parameter.dim():
                    parameter.zero_()
            self.logit_scale.fill_(math.log(1 / 0.07))

    def transform(self, train):
        return StubTransform(self.noise if train else 0.0)

    def macs(self, text_length=None):
        return {"image": self.image_proj.weight.numel(), "text": 100}

    def _raw_image(self, image):
        return self.dropout(self.image_proj(image.flatten(1))).float()

    def _raw_text(self, text):
        keep = (text != self.tokenizer.pad_id).unsqueeze(-1)
        rows = (self.token(text) * keep).sum(1) / keep.sum(1).clamp(min=1)
        return self.dropout(self.text_proj(rows)).float()

    def encode_image(self, image, normalize=True):
        raw = self._raw_image(image)
        return F.normalize(raw, dim=-1) if normalize else raw

    def encode_text(self, text, normalize=True):
        raw = self._raw_text(text)
        return F.normalize(raw, dim=-1) if normalize else raw

    def forward(self, batch):
        self.forwards += 1
        image, text = self._raw_image(batch["image"]), self._raw_text(batch["text"])
        aux = {
            "image_norm": image.norm(dim=-1, keepdim=True),
            "text_norm": text.norm(dim=-1, keepdim=True),
        }
        if self.logit_bias is not None:
            aux["logit_bias"] = self.logit_bias.float()
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        both = (image, text) if len(image) == len(text) else (image,)
        self.features = torch.cat(both, dim=1)
        return CLIPOutput(image, text, self.logit_scale.float().exp(), aux)

    def __getstate__(self):
        # The features of the last batch are part of its graph.
        return {**super().__getstate__(), "features": None}


def stub_model(seed=0, **options):
    """A stub dual encoder with reproducible weights."""
    return StubDualEncoder(seed, **options)


class Pairs:
    """Random images whose caption says which of ``groups`` they belong to."""

    def __init__(self, groups, seed, captions):
        generator = torch.Generator().manual_seed(seed)
        self.groups = np.asarray(groups)
        shape = (3, IMAGE_SIZE, IMAGE_SIZE)
        centres = torch.Generator().manual_seed(123)
        means = torch.randn(VOCABULARY**2, *shape, generator=centres)
        noise = torch.randn(len(groups), *shape, generator=generator)
        self.images = means[torch.as_tensor(self.groups)] + 0.5 * noise
        self.captions = captions

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        group = int(self.groups[index])
        text = WORDS[group % 26] + WORDS[group // 26 % 26]
        if self.captions == 1:
            return self.images[index], text
        return self.images[index], [text + WORDS[k] for k in range(self.captions)]


def stub_dataset(groups, times, *, seed=0, first_id=0, targets=False, captions=1):
    """An unprepared image-text data set of random images."""
    return make_image_text_dataset(
        Pairs(groups, seed, captions),
        sample_ids=np.arange(first_id, first_id + len(groups)),
        targets=np.asarray(groups) if targets else None,
        timestamps=np.asarray(times, dtype=float),
    )


def stub_benchmark(
    sizes=(12, 12, 12),
    *,
    model=None,
    prepare=True,
    targets=False,
    captions=1,
    test_captions=1,
    valid=True,
    groups=10,
    **options,
):
    """A time-stamped benchmark with streams train, test and (on request) valid.

    :param sizes: training pairs of each step; test and valid have 6 per step.
    :param model: prepares the data; default a fresh stub.
    :param targets: whether the data have group ids (``groups`` per step).
    :param captions: captions per training image.
    :param options: of :func:`prepare_benchmark`.
    """
    built, first = {}, 0
    streams = {"train": sizes, "test": [6] * len(sizes)}
    if valid:
        streams["valid"] = [6] * len(sizes)
    for number, (name, counts) in enumerate(streams.items()):
        ids = [s * groups + k % groups for s, n in enumerate(counts) for k in range(n)]
        times = [float(s) for s, n in enumerate(counts) for _ in range(n)]
        built[name] = stub_dataset(
            ids,
            times,
            seed=number,
            first_id=first,
            targets=targets,
            captions=captions if name == "train" else test_captions,
        )
        first += len(ids)
    cuts = [float(s) for s in range(1, len(sizes))]
    labels = [f"step {s}" for s in range(len(sizes))]
    benchmark = time_stamped_benchmark(
        built.pop("train"), boundaries=cuts, labels=labels, **built
    )
    if not prepare:
        return benchmark
    return prepare_benchmark(benchmark, model or stub_model(), **options)


def quiet_evaluator(metrics=()):
    """An evaluation plugin that prints nothing."""
    from avalanche.training.plugins import EvaluationPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin(*metrics, loggers=[])


def train_stream(strategy, benchmark, steps=None, **options):
    """Train on the first ``steps`` experiences, without evaluation in between."""
    from avalanche_clip.training.methods.joint import JointTraining

    visits = list(benchmark.train_stream)[:steps]
    if isinstance(strategy, JointTraining):
        visits = [visits]
    for experience in visits:
        strategy.train(experience, **{"eval_streams": [], **options})
    return strategy


def weights(model):
    """A copy of all weights of a model."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def assert_same_weights(left, right):
    """Fail unless two models or state dicts agree bit for bit."""
    left = left if isinstance(left, dict) else left.state_dict()
    right = right if isinstance(right, dict) else right.state_dict()
    assert left.keys() == right.keys()
    different = [k for k in left if not torch.equal(left[k], right[k])]
    assert not different, f"weights differ: {different}"


def assert_other_weights(left, right):
    """Fail if two models or state dicts agree bit for bit."""
    left = left if isinstance(left, dict) else left.state_dict()
    right = right if isinstance(right, dict) else right.state_dict()
    assert any(not torch.equal(left[k], right[k]) for k in left)


def adamw(groups):
    """An optimiser that moves the stub visibly in a few iterations."""
    return torch.optim.AdamW(groups, lr=1e-2)


def sgd(groups):
    """An optimiser that, unlike AdamW, shows the size of gradients."""
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def build(cls, model=None, **options):
    """A strategy on the stub: 4 pairs per step, 5 steps per experience."""
    defaults = {
        "optimizer": adamw,
        "train_mb_size": 4,
        "budget_iterations": 5,
        "evaluator": quiet_evaluator,
    }
    model = model or stub_model()
    return cls(model=model, **{**defaults, **options})


def fit(cls, benchmark=None, steps=None, *, seed=0, model=None, **options):
    """Train a strategy on the stub benchmark and return it."""
    strategy = build(cls, model or stub_model(), seed=seed, **options)
    return train_stream(strategy, benchmark or stub_benchmark(), steps)


class Recorder:
    """Base of plugins that note what happens; stateless."""

    stateless = True
    supports_distributed = True


class At(Recorder):
    """Calls ``act(strategy)`` at a hook, and keeps what that returns in ``seen``."""

    def __init__(self, hook, act):
        self.seen = []
        setattr(self, hook, lambda strategy, **_: self.seen.append(act(strategy)))
