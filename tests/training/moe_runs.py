"""A very small transformer CLIP and streams for the tests of expert adapters."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.benchmarks.streams.classes import (
    class_incremental_benchmark,
    multi_domain_benchmark,
)
from avalanche_clip.models import create_dual_encoder
from tests.helpers import StubTokenizer, StubTransform, quiet_evaluator

CONFIG = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {
            "layers": 2,
            "width": 64,
            "head_width": 32,
            "patch_size": 8,
            "image_size": 32,
        },
        "text_cfg": {
            "context_length": 6,
            "vocab_size": 32,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    },
}
ADAPTERS = {"num_experts": 6, "top_k": 2, "bottleneck": 4}
NAMES = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st", "uv", "wx")


def vit(seed=0, **options):
    """A transformer CLIP of two blocks per tower, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_dual_encoder(CONFIG, **options)
    model.tokenizer = StubTokenizer()
    model.pretrained = "random"
    return model


def pictures(targets, seed, spread=0.3):
    """Images around a random centre per class, float ``(N, 3, 32, 32)``."""
    centres = torch.Generator().manual_seed(123)
    means = torch.randn(64, 3, 4, 4, generator=centres)
    own = torch.Generator().manual_seed(seed)
    rows = means[torch.as_tensor(targets)]
    rows = torch.nn.functional.interpolate(rows, size=32)
    return rows + spread * torch.randn(rows.shape, generator=own)


def labelled(first, classes, per_class, seed, change=None):
    """A labelled data set of ``classes`` classes, labels from 0."""
    targets = torch.arange(classes).repeat(per_class)
    images = pictures(targets + first, seed)
    data = TensorDataset(images if change is None else change(images), targets)
    data.targets = targets
    return data


def raw_domains(count=3, *, classes=3, per_class=4, names=None, change=None, **options):
    """``count`` domains of a few classes each, not prepared.

    :param change: applied to all images; real transforms take [0, 1] only.
    """
    parts = []
    for k in range(count):
        first = k * classes
        parts.append(
            (
                labelled(first, classes, per_class, 10 + k, change),
                labelled(first, classes, 2, 20 + k, change),
                NAMES[first : first + classes],
                ["a {}", "b {}"],
                names[k] if names else f"domain {k}",
            )
        )
    valid = [labelled(k * classes, classes, 2, 30 + k, change) for k in range(count)]
    return multi_domain_benchmark(parts, valid=valid, **options)


def domains(model, count=3, *, noise=0.0, **options):
    """The same, prepared for a model."""
    return prepared(raw_domains(count, **options), model, noise)


def domains_with_reference(model):
    """Three domains, and a fourth one as streams ``reference`` and ``..._test``."""
    whole = raw_domains(4)
    parts = {
        "train": ("train", slice(3)),
        "test": ("test", slice(3)),
        "valid": ("valid", slice(3)),
        "reference": ("train", slice(3, 4)),
        "reference_test": ("test", slice(3, 4)),
    }
    streams = {
        name: list(whole.streams[source])[rows]
        for name, (source, rows) in parts.items()
    }
    return prepared(make_scenario(streams, whole), model)


def classes_over_time(model, steps=3, *, noise=0.0):
    """Two new classes per step, prepared for a model."""
    count = 2 * steps
    benchmark = class_incremental_benchmark(
        labelled(0, count, 4, 10),
        labelled(0, count, 2, 20),
        NAMES[:count],
        "a {}",
        increment=2,
    )
    return prepared(benchmark, model, noise)


class Captioned:
    """Pairs of an image and the name of its group."""

    def __init__(self, groups, seed):
        self.groups, self.images = groups, pictures(groups, seed)

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        return self.images[index], NAMES[self.groups[index]]


def pairs(model, steps=3, *, per_step=12, noise=0.0):
    """Time steps of image-text pairs, four groups each, prepared for a model."""
    built, first = {}, 0
    sizes = {"train": per_step, "test": 8, "valid": 8}
    for number, (name, size) in enumerate(sizes.items()):
        groups = [4 * s + i % 4 for s in range(steps) for i in range(size)]
        times = [float(s) for s in range(steps) for _ in range(size)]
        built[name] = make_image_text_dataset(
            Captioned(groups, number),
            sample_ids=np.arange(first, first + len(groups)),
            targets=np.asarray(groups),
            timestamps=np.asarray(times),
        )
        first += len(groups)
    cuts = [float(s) for s in range(1, steps)]
    return prepared(
        time_stamped_benchmark(built.pop("train"), boundaries=cuts, **built),
        model,
        noise,
    )


def prepared(benchmark, model, noise=0.0):
    """Tensors go to the model as they are, in training with noise."""
    return prepare_benchmark(
        benchmark,
        model,
        train_transform=StubTransform(noise),
        eval_transform=StubTransform(),
    )


def reference(count=12, seed=99):
    """Images unlike those of any class, ready for the model."""
    from avalanche_clip.training.templates.reference_data import ReferenceImages

    images = torch.randn(
        count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)
    )
    return ReferenceImages(images, transform=None, fixed=True)


def selector(iterations=150, **options):
    """A selector that learns in a few steps."""
    from avalanche_clip.models.selector.selector import AutoSelector
    from avalanche_clip.models.selector.training import SelectorTraining

    training = SelectorTraining(
        reference_iterations=iterations, task_iterations=iterations, batch_size=8
    )
    return AutoSelector(
        "model", options.pop("model", None), hidden=16, training=training, **options
    )


def options(**given):
    """Arguments of a short run: 5 steps of 6 images per experience."""
    defaults = {
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        "train_mb_size": 6,
        "budget_iterations": 5,
        "evaluator": quiet_evaluator,
    }
    return {**defaults, **given}
