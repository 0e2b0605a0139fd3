"""The table of methods: one row each, which inherits every behaviour.

A row says how a method is built on a small model and stream, what it may train, and
what it cannot do, with the reason. ``docs/compatibility.rst`` is made from it by
``tools/compatibility_table.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from avalanche_clip.models import attach_adapters, attach_lora, attach_prompts
from avalanche_clip.training import plugins as p
from avalanche_clip.training import supervised
from avalanche_clip.training.templates import ClassNameTemplate, ContrastiveTemplate

BEHAVIOURS = {
    "neutral": "its neutral setting is plain training, bit for bit",
    "resume": "resumes anywhere, in any order of steps and with repeats, bit for bit",
    "reload": "its state is loaded over a later one",
    "processes": "two processes with half batches equal one process",
    "accumulation": "accumulated parts of a batch equal the batch",
    "sharded": "two processes that share out the weights (FSDP2) equal two with DDP",
    "bf16": "trains in bfloat16",
    "fp16": "trains in float16 with a gradient scaler",
    "checkpointed": "computing activations again changes nothing",
    "compiled": "trains a model that torch.compile has compiled, to the same numbers",
    "open_clip": "trains a model of open_clip",
    "transformers": "trains a CLIP model of transformers",
    "siglip": "trains a SigLIP model of transformers",
    "saved": "the trained model is saved as a folder, and loaded from it",
}
"""Columns of the table. What every method can do has none: it trains what it says and
nothing else, evaluation leaves no trace, idle plugins change nothing."""

ITERATIONS = 3
BATCH = 12
"""Of the runs that are compared in several processes: some experiences of each world
have fewer samples, and an odd number of them."""
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(5))

Plugins = tuple[Callable[[], Any], ...]


@dataclass(frozen=True)
class Row:
    """One method.

    :param strategy: name of a strategy, or a template.
    :param settings: of the strategy.
    :param plugins: functions that make its plugins.
    :param world: model and stream: ``pairs``, ``classes``, ``languages``,
        ``experts``, ``expert pairs``, ``branches``, ``branches on classes``,
        ``untrained``.
    :param neutral: settings that switch the method off; with it, ``without`` are the
        plugins.
    :param plain: the row that it then equals.
    :param moves: parts of the names of all parameters that are trained.
    :param some: whether only some of them move in a short run.
    :param once: whether it trains once, on all that it is given.
    :param idle: whether it trains nothing.
    :param cannot: behaviour -> the reason why not, a sentence.
    """

    strategy: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    plugins: Plugins = ()
    world: str = "pairs"
    neutral: Mapping[str, Any] | None = None
    without: Plugins = ()
    plain: str = "Sequential"
    moves: tuple[str, ...] = ("",)
    still: tuple[str, ...] = ()
    some: bool = False
    once: bool = False
    idle: bool = False
    cannot: Mapping[str, str] = field(default_factory=dict)


REFERENCE = {
    "reference_images": IMAGES,
    "reference_texts": ["ab", "cd", "e"],
    "plugin_options": {"batch_size": 4, "teach_first_experience": True},
    "averaging_interval": 2,
    "warmup_iterations": 0,
}
NO_TERMS = {
    "distillation_weight": 0.0,
    "consolidation_weight": 0.0,
    "averaging_interval": None,
}
ITSELF = {"neutral": "It is plain training itself."}
NO_OFF = {"neutral": "It has no setting that switches it off."}
FROZEN_BASE = {"neutral": "It freezes the model and trains its own parameters only."}
SCALE = ("logit_scale",)
MTIL = {"settings": {"warmup_iterations": 0}, "still": SCALE, "cannot": ITSELF}
BESIDE = {"saved": "Its adapters are saved by themselves, beside a plain model."}
EXPERTS = {
    "world": "experts",
    "moves": (".moe.",),
    "some": True,
    "cannot": {**FROZEN_BASE, **BESIDE},
}
TABLE = {
    "world": "languages",
    "moves": ("token_embedding", "cross_modal"),
    "cannot": FROZEN_BASE,
}
LORA = {
    "world": "branches",
    "moves": (".lora.",),
    "cannot": {**FROZEN_BASE, **BESIDE},
}
MERGED = {
    "world": "branches",
    "moves": ("in_proj_weight",),
    "cannot": FROZEN_BASE,
}
UNTRAINED = dict.fromkeys(
    ("neutral", "accumulation", "sharded", "bf16", "fp16", "checkpointed"),
    "It trains nothing: there are no batches.",
)
ADAPTERS = {
    "world": "languages",
    "moves": ("token_embedding", "cross_modal", "language_adapter."),
    "some": True,
    "cannot": {
        **FROZEN_BASE,
        **BESIDE,
        "reload": "Adapters of later languages stay: load into a fresh model.",
    },
}
DER = partial(p.ReservoirReplayPlugin, 9, target="student")
PROJECTED = (*MERGED["moves"], "feature_projector")
CONSOLIDATION = partial(p.ContrastiveKnowledgeConsolidationPlugin, weight=3.0)
VOCABULARY = {"text_length": 3, "teach_first_experience": True}


def adds(make: Any, off: Mapping[str, Any] | None = None, **row: Any) -> Row:
    """A row of a plugin on plain training.

    :param make: a function that makes the plugin.
    :param off: its options that switch it off.
    :param row: see :class:`Row`.
    """
    neutral: dict[str, Any] = {"cannot": NO_OFF}
    if off is not None:
        neutral = {"neutral": {}, "without": (partial(make, **off),), "cannot": {}}
    return Row(**{"strategy": "Sequential", "plugins": (make,), **row, **neutral})


def beside(part: str, attach: Callable[[Any], Any]) -> Row:
    """A row of plain training of what is attached to a model.

    :param part: of the names of its parameters.
    :param attach: to a model.
    """
    cannot = {**FROZEN_BASE, **BESIDE}
    settings = {"attach": attach}
    return Row("Sequential", settings, world="branches", moves=(part,), cannot=cannot)


ROWS: dict[str, Row] = {
    "Sequential": Row("Sequential", cannot=ITSELF),
    "Joint": Row("Joint", once=True, cannot=ITSELF),
    "ClassNameJoint": Row("ClassNameJoint", world="classes", once=True, **MTIL),
    "CumulativeAll": Row("CumulativeAll", cannot=NO_OFF),
    "CumulativeAllStar": Row(
        "CumulativeAllStar",
        {"budget_factors": [1, 1.5, 1]},
        neutral={"budget_factors": [1, 1, 1]},
        plain="CumulativeAll",
    ),
    "CumulativeEqual": Row(
        "CumulativeEqual", {"buffer_size": 10}, neutral={"buffer_size": 0}
    ),
    "CumulativeExp": Row(
        "CumulativeExp", {"buffer_size": 10}, neutral={"buffer_size": 0}
    ),
    "Restart": Row("Restart", cannot=NO_OFF),
    "Oracle": Row("Oracle", {"restart_from": "initial"}, cannot=NO_OFF),
    "Patching": Row("Patching", {"grid": (0.0, 0.5, 0.9)}, neutral={"grid": (1.0,)}),
    "ContrastiveLwF": Row(
        "ContrastiveLwF", {"lwf_weight": 5.0}, neutral={"lwf_weight": 0.0}
    ),
    "ContrastiveEWC": Row(
        "ContrastiveEWC",
        {"ewc_lambda": 100.0, "fisher_batch_size": 8},
        neutral={"ewc_lambda": 0.0},
    ),
    "ModX": Row(
        "ModX",
        {"alpha": 50.0, "plugin_options": {"row_filter": "none"}},
        neutral={"alpha": 0.0},
    ),
    "VRLwF": Row(
        "VRLwF",
        {"num_texts": 20, "plugin_options": VOCABULARY},
        neutral={"image_weight": 0.0, "text_weight": 0.0},
        plain="frozen scale",
        still=SCALE,
    ),
    "ZSCL": Row("ZSCL", REFERENCE, neutral=NO_TERMS, plain="FineTuning", still=SCALE),
    "FineTuning": Row("FineTuning", plugins=(p.FrozenLogitScalePlugin,), **MTIL),
    "ClassNameFineTuning": Row("ClassNameFineTuning", world="classes", **MTIL),
    "ClassNameZSCL": Row(
        "ClassNameZSCL",
        REFERENCE,
        world="classes",
        neutral=NO_TERMS,
        plain="ClassNameFineTuning",
        still=SCALE,
    ),
    "MoEAdapters": Row(
        "MoEAdapters", {"warmup_iterations": 1, "selector": True}, **EXPERTS
    ),
    "MoEAdapters, class-incremental": Row(
        "MoEAdapters",
        {
            "warmup_iterations": 1,
            "num_experts": 2,
            "plugin_options": {"shared_router": True, "freeze": False},
        },
        **EXPERTS,
    ),
    "CoLeCLIP": Row(
        "CoLeCLIP",
        world="branches on classes",
        moves=(".prompt.",),
        cannot={**FROZEN_BASE, **BESIDE},
    ),
    "LoRA": Row("LoRA", {"rank": 2}, **LORA),
    "LoRA, merged": Row("LoRA", {"rank": 2, "merge": True}, **MERGED),
    "ClassNameLoRA": Row(
        "ClassNameLoRA",
        {"rank": 2, "merge": True, "share": 0.5},
        **{**MERGED, "world": "branches on classes"},
    ),
    "CCLIP": Row(
        "CCLIP",
        {"rank": 2, "alpha": 16.0, "targets": ("q", "v")},
        **{**MERGED, "moves": PROJECTED, "cannot": {}},
        neutral={"weight": 0.0},
        plain="LoRA, half merged",
    ),
    "CLLCLIP": Row("CLLCLIP", **TABLE),
    "SIT": Row("SIT", {"repeats": 2}, **{**LORA, "world": "branches on classes"}),
    "SIT, asymmetric": Row(
        "SIT",
        {
            "visible": "all",
            "tower": "image",
            "lora_init": "xavier",
            "double_softmax": True,
            "reset_optimizer": True,
        },
        **{**LORA, "world": "branches on classes"},
    ),
    "ContinualCLIP": Row(
        "ContinualCLIP", world="untrained", moves=(), idle=True, cannot=UNTRAINED
    ),
    # ------------------------------------------------- plugins on plain training
    "ConstantCosine": adds(
        p.ConstantCosinePlugin,
        settings={"schedule": "const-cosine", "reset_optimizer_state": False},
    ),
    "BestEpoch": Row(
        "Sequential",
        {"train_epochs": 2, "budget_iterations": 4},
        (p.BestEpochPlugin,),
        neutral={"train_epochs": 1, "budget_iterations": ITERATIONS},
        without=(p.BestEpochPlugin,),
    ),
    "EarlyStopping": Row(
        "Sequential",
        {"train_epochs": 3, "budget_iterations": 6},
        (partial(p.EarlyStopping, "mean_R@1", 1),),
        neutral={"train_epochs": 1, "budget_iterations": ITERATIONS},
        without=(),
    ),
    "WiSE-FT": adds(
        partial(p.WeightAveragingPlugin, "wise", alpha=0.8), {"alpha": 1.0}
    ),
    "WeightEnsemble": adds(partial(p.WeightAveragingPlugin, "we", interval=2)),
    "WeightEnsemble and WiSE-FT": adds(
        partial(p.WeightAveragingPlugin, "we+wise", interval=1, anchor="initial")
    ),
    "WeightConsolidation": adds(
        partial(p.WeightConsolidationPlugin, weight=3.0), {"weight": 0.0}
    ),
    "C-CLIP's loss": adds(CONSOLIDATION, {"weight": 0.0}),
    "C-CLIP's loss on class names": Row(
        "ClassNameLoRA",
        {"rank": 2, "alpha": 2.0, "merge": True},
        (CONSOLIDATION,),
        **{**MERGED, "moves": PROJECTED, "world": "branches on classes"},
    ),
    "OnlineEWC": adds(
        partial(p.OnlineEWCPlugin, ewc_lambda=100.0, gamma=0.5, fisher_batch_size=8),
        {"ewc_lambda": 0.0},
    ),
    "Mod-X, initial teacher": adds(
        partial(p.OffDiagonalAlignmentPlugin, alpha=50.0, teacher="initial"),
        {"alpha": 0.0},
    ),
    "LwF-VR": adds(
        partial(
            p.VocabularyReplayPlugin,
            num_texts=20,
            distill_batch="separate",
            student_text=True,
            **VOCABULARY,
        ),
        {"image_weight": 0, "text_weight": 0},
        plain="frozen scale",
        still=SCALE,
    ),
    "LwF on the current batch": adds(
        partial(
            p.ReferenceDistillationPlugin, "current", "current", teacher="previous"
        ),
        {"image_weight": 0, "text_weight": 0},
        still=SCALE,
    ),
    "ER": adds(partial(p.ReservoirReplayPlugin, 9)),
    "DER": adds(DER),
    "DER on class names": adds(DER, strategy=ClassNameTemplate, world="classes"),
    "Replay on class names": adds(
        partial(p.BudgetedReplayPlugin, "equal", buffer_size=8),
        {"buffer_size": 0},
        strategy=ClassNameTemplate,
        world="classes",
        plain="class names",
    ),
    "MoEAdapters on pairs": Row(
        "Sequential",
        {"experts": {"selector": None}},
        **{**EXPERTS, "world": "expert pairs"},
    ),
    "attach_lora": beside(".lora.", partial(attach_lora, rank=2)),
    "attach_adapters": beside(
        ".adapter.", partial(attach_adapters, bottleneck=4, dropout=0.0)
    ),
    "attach_prompts": beside(".prefix.", partial(attach_prompts, length=2, scale=0.1)),
    "TokenEmbeddingExpansion": Row(
        ContrastiveTemplate,
        {"train_mb_size": 4},
        (partial(p.TokenEmbeddingExpansionPlugin, vocab_size=300),),
        **{**TABLE, "moves": ("token_embedding",)},
    ),
    "DER on languages": Row("CLLCLIP", plugins=(DER,), **TABLE),
    "OnlineEWC on languages": adds(
        partial(p.OnlineEWCPlugin, ewc_lambda=100.0, fisher_batch_size=8),
        {"ewc_lambda": 0.0},
        **{**TABLE, "strategy": "CLLCLIP", "plain": "CLLCLIP"},
    ),
    "MLA": Row(
        "CLLCLIP", plugins=(partial(p.LanguageAdapterPlugin, "mla"),), **ADAPTERS
    ),
    "LoRA per language": Row(
        "CLLCLIP",
        plugins=(partial(p.LanguageAdapterPlugin, "lora", rank=2),),
        **ADAPTERS,
    ),
}
"""Every method, by its name in the table."""

UNTRIED = (
    *("MoEAdapters, class-incremental", "MoEAdapters on pairs"),
    *("CoLeCLIP", "ClassNameLoRA", "SIT", "SIT, asymmetric"),
    "C-CLIP's loss on class names",
)
for _name in UNTRIED:
    _why = {"compiled": "Not compared yet: branches take minutes to trace."}
    ROWS[_name] = replace(ROWS[_name], cannot={**ROWS[_name].cannot, **_why})

IN_STEPS = (
    *("ContrastiveEWC", "OnlineEWC", "OnlineEWC on languages", "ConstantCosine"),
    *("ZSCL", "ClassNameZSCL", "WeightConsolidation"),
    *("WiSE-FT", "WeightEnsemble", "WeightEnsemble and WiSE-FT"),
)
for _name in IN_STEPS:
    _why = {"sharded": "It reads the whole weights in each step, and is refused."}
    ROWS[_name] = replace(ROWS[_name], cannot={**ROWS[_name].cannot, **_why})

NO_BRANCH = "Nothing is attached to blocks whose activations are computed again."
_names = list(ROWS)
for _place, _name in enumerate(_names):
    _row, _why = ROWS[_name], {}
    if _place >= _names.index("CCLIP"):
        _why = dict.fromkeys(("fp16", "checkpointed"), "Not compared yet.")
    if _row.world.startswith(("branch", "expert")) or _row.moves == ADAPTERS["moves"]:
        _why["checkpointed"] = NO_BRANCH
    ROWS[_name] = replace(_row, cannot={**_why, **_row.cannot})

PLAIN = {
    **ROWS,
    "frozen scale": Row("Sequential", plugins=(p.FrozenLogitScalePlugin,)),
    "class names": Row(ClassNameTemplate, world="classes"),
    "LoRA, half merged": Row(
        "LoRA",
        {"rank": 2, "alpha": 16.0, "merge": True, "share": 0.5},
        world="branches",
    ),
}


def strategies() -> dict[str, type]:
    """All named strategies, by name."""
    found = {name: getattr(supervised, name) for name in dir(supervised)}
    base = ContrastiveTemplate.__mro__[1]
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, base)
    }
