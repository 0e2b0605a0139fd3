"""Every named strategy in its smallest form, for tests that go over all of them."""

from __future__ import annotations

import torch

from avalanche_clip.training import supervised
from avalanche_clip.training.plugins import FrozenLogitScalePlugin
from tests.helpers import stub_benchmark, stub_model
from tests.training import classes, languages, moe_runs
from tests.training.small_runs import evaluator

SIZES = (16, 12, 10)
ITERATIONS = 4
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(5))
REFERENCE = {
    "reference_images": IMAGES,
    "reference_texts": ["ab", "cd", "e"],
    "reference_options": {"batch_size": 4, "teach_first_experience": True},
    "averaging_interval": 2,
    "warmup_iterations": 0,
}
OPTIONS = {
    "CumulativeAllStar": {"budget_factors": [1, 1.5, 1]},
    "CumulativeEqual": {"buffer_size": 10},
    "CumulativeExp": {"buffer_size": 10},
    "ContrastiveEWC": {"ewc_lambda": 100.0, "fisher_batch_size": 8},
    "ContrastiveLwF": {"lwf_weight": 5.0},
    "FineTuning": {"warmup_iterations": 1, "plugins": [FrozenLogitScalePlugin()]},
    "ModX": {"alpha": 50.0, "alignment": {"row_filter": "none"}},
    "Patching": {"grid": (0.0, 0.5, 0.9)},
    "VRLwF": {
        "num_texts": 20,
        "replay": {"text_length": 3, "teach_first_experience": True},
    },
    "ZSCL": REFERENCE,
    "ClassNameFineTuning": {"warmup_iterations": 1},
    "ClassNameZSCL": REFERENCE,
}
RATES = ((1e-2, 0.2), (1e-3, 0.0), (3e-2, 0.05))
"""Learning rate and weight decay of three groups."""


def three_groups(named_parameters):
    """Deal the parameters out to three groups of different options."""
    names = [name for name, _ in named_parameters]
    return [
        {"names": names[k::3], "lr": lr, "weight_decay": decay}
        for k, (lr, decay) in enumerate(RATES)
    ]


def adamw(groups):
    """An optimiser whose own rate is that of no group."""
    return torch.optim.AdamW(groups, lr=0.5)


def strategies():
    """All named strategies, by name."""
    found = {name: getattr(supervised, name) for name in supervised.__all__}
    return {name: cls for name, cls in found.items() if isinstance(cls, type)}


def make(name, *plugins, steps=2, **given):
    """A strategy of three groups with the benchmark it is for, of 2 or 3 steps."""
    cls = strategies()[name]
    options = {**OPTIONS.get(name, {}), **given}
    own = options.pop("plugins", [])
    common = {
        "param_groups": three_groups,
        "optimizer": adamw,
        "budget_iterations": ITERATIONS,
        "eval_mb_size": 6,
        "seed": 3,
        "plugins": [*own, *plugins],
    }
    options = {**common, **options}
    if name == "MoEAdapters":
        return _experts(cls, options, steps)
    if name == "CLLCLIP":
        model = languages.tiny_model()
        benchmark = languages.language_stream(model, ("en", "de", "el")[:steps])
        options["evaluator"] = evaluator()
        return languages.language_strategy(model, **options), benchmark
    model = stub_model(dropout=0.2, noise=0.1)
    model.pretrained = "stub"
    if name.startswith("ClassName"):
        benchmark = classes.domain_benchmark(model, (3, 4, 2)[:steps])
        return classes.class_strategy(model, cls, **options), benchmark
    options = {"train_mb_size": 8, "evaluator": evaluator(), **options}
    return cls(model=model, **options), stub_benchmark(SIZES[:steps], model=model)


def _experts(cls, options, steps):
    model = moe_runs.vit()
    benchmark = moe_runs.domains(model, steps, noise=0.1)
    strategy = cls(
        model=model,
        selector=moe_runs.selector(),
        reference_images=moe_runs.reference(),
        **moe_runs.ADAPTERS,
        **{
            "train_mb_size": 6,
            "warmup_iterations": 1,
            "evaluator": classes.accuracy_evaluator(),
            **options,
        },
    )
    return strategy, benchmark
