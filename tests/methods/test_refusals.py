"""What methods refuse before anything is trained: combinations, settings, models."""

from functools import partial

import pytest
import torch
from avalanche.training.plugins import (
    BiCPlugin,
    EarlyStoppingPlugin,
    FeatureDistillationPlugin,
    GEMPlugin,
    GSS_greedyPlugin,
    LFLPlugin,
    LwFPlugin,
    MASPlugin,
    MIRPlugin,
    ReplayPlugin,
)

from avalanche_clip.training import MethodPlugin, Sequential
from avalanche_clip.training import plugins as p
from tests.helpers import stub_model, train_stream
from tests.methods.rows import ROWS
from tests.methods.worlds import build
from tests.training import moe_runs


class MyGEM(GEMPlugin):
    """A class of a user's that derives from one that is refused."""

    def __init__(self):
        pass


early_stop = partial(EarlyStoppingPlugin, patience=1, val_stream_name="valid_stream")
trunk = {"schedule": "const-cosine"}
# A row, further plugins, further settings, words of the message.
REFUSED = [
    # Two that set the weights at the end or the start of a step.
    ("Restart", [p.PatchingPlugin], {}, "use one"),
    ("Restart", [p.WeightConsolidationPlugin], {}, "use one"),
    ("Restart", [p.WeightAveragingPlugin], {}, "use one"),
    ("Restart", [p.ConstantCosinePlugin], trunk, "use one"),
    ("Patching", [p.ConstantCosinePlugin], trunk, "use one"),
    ("Patching", [p.WeightAveragingPlugin], {}, "use one"),
    ("ConstantCosine", [p.WeightAveragingPlugin], {}, "use one"),
    ("WiSE-FT", [p.WeightAveragingPlugin], {}, "use one"),
    ("WeightEnsemble", [early_stop], {}, "leave one out, or use mode='wise'"),
    ("MoEAdapters", [p.RestartPlugin], {}, "RestartPlugin"),
    ("MLA", [p.RestartPlugin], {}, "RestartPlugin begins.*use one"),
    ("CLLCLIP", [p.RestartPlugin], {}, "first token table.*use one"),
    ("CLLCLIP", [partial(p.RestartPlugin, "initial")], {}, "first token table"),
    ("attach_lora", [p.RestartPlugin], {}, "plain architecture.*detach"),
    ("MoEAdapters", [partial(p.PatchingPlugin, [0.5])], {}, "PatchingPlugin.*use one"),
    ("MLA", [partial(p.PatchingPlugin, [0.5])], {}, "PatchingPlugin.*use one"),
    # Two of a kind.
    ("CumulativeAll", [partial(p.BudgetedReplayPlugin, "exp", 4)], {}, "than once"),
    ("ER", [p.ReservoirReplayPlugin], {}, "use one"),
    ("ER", [p.BudgetedReplayPlugin], {}, "twice; use one"),
    ("ER", [ReplayPlugin], {}, "twice; use one"),
    ("Patching", [p.PatchingPlugin], {}, "use one"),
    ("CLLCLIP", [p.TokenEmbeddingExpansionPlugin], {}, "token table; use one"),
    ("VRLwF", [partial(p.VocabularyReplayPlugin, text_length=3)], {}, "use one"),
    ("BestEpoch", [p.BestEpochPlugin], {}, "use one"),
    (
        "MoEAdapters",
        [partial(p.MoEAdaptersPlugin, moe_runs.ADAPTERS)],
        {},
        "use one",
    ),
    # Settings that a method needs, or cannot have.
    ("Sequential", [p.ConstantCosinePlugin], {}, "const-cosine"),
    ("Oracle", [], {"budget_iterations": None}, "multiplies a compute budget"),
    (
        "CumulativeAllStar",
        [],
        {"budget_iterations": None},
        "multiplies a compute budget",
    ),
    (
        "DER on class names",
        [],
        {"label_space": "own"},
        "label_space='own'.*'current' or 'seen'",
    ),
    ("MoEAdapters", [], {"lr": 1e-3}, "not both"),
    # Models that a method cannot work with.
    ("MoEAdapters", [], {"model": stub_model}, "residual blocks"),
    (
        "ModX",
        [],
        {"model": stub_model, "plugin_options": {"teacher": "initial"}},
        "pretrained is None",
    ),
    (
        "ZSCL",
        [],
        {"model": stub_model, "plugin_options": {"batch_size": 4}},
        "pretrained is None",
    ),
    # Plugins of Avalanche that need a classifier, with what to use instead.
    ("Sequential", [LwFPlugin], {}, "ContrastiveLwFPlugin"),
    ("Sequential", [MASPlugin], {}, "ContrastiveEWCPlugin"),
    ("Sequential", [GSS_greedyPlugin], {}, "BudgetedReplayPlugin"),
    ("Sequential", [partial(BiCPlugin, mem_size=10)], {}, "BudgetedReplayPlugin"),
    ("Sequential", [partial(LFLPlugin, 0.1)], {}, "FeatureDistillationPlugin"),
    (
        "Sequential",
        [partial(MIRPlugin, batch_size_mem=4, mem_size=10)],
        {},
        "BudgetedReplayPlugin",
    ),
    ("Sequential", [MyGEM], {}, "MyGEM cannot be used .*AGEMPlugin"),
    (
        "Sequential",
        [FeatureDistillationPlugin],
        {"accumulation_steps": 2},
        "one chunk only",
    ),
]


@pytest.mark.parametrize(
    "name, plugins, settings, message",
    REFUSED,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(REFUSED)],
)
def test_method__refuses_in_words(name, plugins, settings, message):
    settings = dict(settings)
    model = settings.pop("model", lambda: None)()
    with pytest.raises(ValueError, match=message):
        further = [make() for make in plugins]
        strategy, benchmark = build(ROWS[name], *further, model=model, **settings)
        train_stream(strategy, benchmark, 2)


def test_not_refused__the_nearest_that_may_be():
    build(ROWS["WiSE-FT"], early_stop())
    build(
        ROWS["ModX"],
        model=stub_model(),
        alpha=0.0,
        plugin_options={"teacher": "initial"},
    )
    adam = partial(torch.optim.Adam, lr=1e-2)
    strategy, _ = build(ROWS["MoEAdapters"], optimizer=adam)
    assert isinstance(strategy.optimizer, torch.optim.Adam)


def parts_of(model):
    """What decides a model's training and features."""
    flags = {name: q.requires_grad for name, q in model.named_parameters()}
    return flags, set(model.state_dict()), {name for name, _ in model.named_children()}


class Refuses(MethodPlugin):
    """Has no strategy that it can work with."""

    def check_compatible(self, strategy):
        raise ValueError("no model will do")


@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        [partial(p.LoRAPlugin, merge=True)],
        [p.ContrastiveKnowledgeConsolidationPlugin],
        [p.ContrastiveKnowledgeConsolidationPlugin, p.LoRAPlugin],
        [partial(p.MoEAdaptersPlugin, moe_runs.ADAPTERS)],
        [partial(p.LanguageAdapterPlugin, "lora")],
    ],
)
def test_refused__model_has_nothing_attached(parts, appended):
    """And is as good as new for another strategy, and for the same one."""
    model = moe_runs.vit()
    before, stream = parts_of(model), moe_runs.pairs(model).train_stream
    for wrong in (Refuses, LwFPlugin):
        made = [*(make() for make in parts), wrong()]
        with pytest.raises(ValueError, match="no model will do|ContrastiveLwFPlugin"):
            first = [] if appended else made
            strategy = Sequential(model=model, plugins=first, **moe_runs.options())
            strategy.plugins += made
            strategy.train(stream[0])
        assert parts_of(model) == before
    if appended and not isinstance(made[0], p.LanguageAdapterPlugin):
        strategy.plugins.remove(made[-1])
        strategy.train(stream[0])
        assert parts_of(model) != before
