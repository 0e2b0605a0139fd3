"""Methods of the table on a small model and a stream of three steps."""

from __future__ import annotations

from typing import Any

import torch

from avalanche_clip.benchmarks import multi_domain_benchmark, prepare_benchmark
from avalanche_clip.training import plugins as p
from avalanche_clip.training import supervised
from tests.helpers import stub_benchmark, stub_model
from tests.methods.rows import ITERATIONS, Row
from tests.training import classes, languages, moe_runs
from tests.training.small_runs import evaluator

RATES = ((1e-2, 0.2), (1e-3, 0.0), (3e-2, 0.05))
"""Learning rate and weight decay of three groups."""


def three_groups(named_parameters: Any) -> list[dict[str, Any]]:
    """Deal the parameters out to three groups of different options."""
    names = [name for name, _ in named_parameters]
    return [
        {"names": names[k::3], "lr": lr, "weight_decay": decay}
        for k, (lr, decay) in enumerate(RATES)
    ]


def adamw(groups: Any) -> torch.optim.Optimizer:
    """An optimiser whose own rate is that of no group."""
    return torch.optim.AdamW(groups, lr=0.5)


def build(row: Row, *extra: Any, neutral: bool = False, model=None, noise=0.1, **given):
    """Make a method and its benchmark of three steps.

    :param row: the method.
    :param extra: further plugins.
    :param neutral: whether it is switched off.
    :param model: instead of the world's.
    :param noise: of training images; twice that is the stub's dropout.
    :param given: further settings.
    """
    settings = {
        "param_groups": three_groups,
        "optimizer": adamw,
        "budget_iterations": ITERATIONS,
        "eval_mb_size": 6,
        "seed": 3,
        **row.settings,
        **((row.neutral or {}) if neutral else {}),
        **given,
    }
    made = [make() for make in (row.without if neutral else row.plugins)]
    cls = row.strategy
    cls = getattr(supervised, cls) if isinstance(cls, str) else cls
    return WORLDS[row.world](cls, model, noise, plugins=[*made, *extra], **settings)


def pretrained(noise=0.0):
    """A stub that says that its weights are worth keeping."""
    model = stub_model(dropout=2 * noise, noise=noise)
    model.pretrained = "stub"
    return model


def _pairs(cls, model, noise, **settings):
    model = model or pretrained(noise)
    settings = {"train_mb_size": 8, "evaluator": evaluator(), **settings}
    if _is_stub(model):
        benchmark = stub_benchmark((13, 11, 10), model=model)
    else:
        benchmark = moe_runs.pairs(model, noise=noise, per_step=9)
        settings = _fitting(settings)
    return cls(model=model, **settings), benchmark


def _classes(cls, model, noise, **settings):
    model = model or pretrained(noise)
    if _is_stub(model):
        benchmark = multi_domain_benchmark(classes.domains((5, 3, 4), train=3))
        benchmark = prepare_benchmark(benchmark, model)
    else:
        benchmark = moe_runs.domains(model, noise=noise)
        settings = _fitting(settings)
    return classes.class_strategy(model, cls, **settings), benchmark


def _fitting(settings):
    """Settings with reference images of the size of moe_runs' models."""
    if "reference_images" in settings:
        settings = {**settings, "reference_images": moe_runs.reference()}
    return settings


def _experts(cls, model, noise, *, selector=None, **settings):
    model = model or moe_runs.vit()
    settings = {**moe_runs.ADAPTERS, "adapter_options": {"dropout": noise}, **settings}
    if selector:
        settings["reference_images"] = moe_runs.reference()
    settings["selector"] = moe_runs.selector(20) if selector else None
    benchmark = moe_runs.domains(model, noise=noise, per_class=3)
    return classes.class_strategy(model, cls, **settings), benchmark


def _expert_pairs(cls, model, noise, *, experts, plugins, **settings):
    model = model or moe_runs.vit()
    adapters = {**moe_runs.ADAPTERS, "dropout": noise}
    plugins = [*plugins, p.MoEAdaptersPlugin(adapters, **experts)]
    settings = {"train_mb_size": 8, "evaluator": evaluator(), **settings}
    benchmark = moe_runs.pairs(model, noise=noise, per_step=9)
    return cls(model=model, plugins=plugins, **settings), benchmark


def _branches(cls, model, noise, *, attach=None, **settings):
    model = model or moe_runs.vit()
    if attach:
        with torch.random.fork_rng(devices=[]):  # updates start with random numbers
            torch.manual_seed(0)
            attach(model)
    return _pairs(cls, model, noise, **settings)


def _branches_on_classes(cls, model, noise, **settings):
    return _classes(cls, model or moe_runs.vit(), noise, **settings)


def _untrained(cls, model, noise, **settings):
    model = model or moe_runs.vit()
    kept = {k: settings[k] for k in ("plugins", "eval_mb_size", "seed")}
    strategy = cls(model=model, evaluator=classes.accuracy_evaluator(), **kept)
    return strategy, moe_runs.domains(model)


def _languages(cls, model, noise, **settings):
    model = model or languages.tiny_model()
    settings = {"evaluator": evaluator(), **settings}
    ours = cls is supervised.CLLCLIP
    benchmark = languages.language_stream(model, features=ours, size=11)
    if ours:
        return languages.language_strategy(model, **settings), benchmark
    return cls(model=model, **settings), benchmark


def _is_stub(model):
    return not hasattr(model, "clip")


WORLDS = {
    "pairs": _pairs,
    "classes": _classes,
    "experts": _experts,
    "expert pairs": _expert_pairs,
    "languages": _languages,
    "branches": _branches,
    "branches on classes": _branches_on_classes,
    "untrained": _untrained,
}
"""Strategies on a model and a stream for it."""
