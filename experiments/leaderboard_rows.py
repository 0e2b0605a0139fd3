"""The rows of the leaderboard: of which plugins a method is made, and their settings.

A method of your own is one line of :data:`METHODS`::

    Row("Mine", {"my_module:MyPlugin": {"strength": 0.5}}),

or, as a strategy, ``Row("Mine", strategy="my_module:MyStrategy", streams=("time",))``,
then ``python experiments/leaderboard.py --methods Mine,Sequential``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

STREAMS = ("time", "domain", "language")
Plugins = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One method. Everything in it is plain data, so that a result knows its settings.

    :param name: what the table calls it.
    :param plugins: name of a plugin of this package, or ``"module:Class"``, -> its
        arguments. ``"@images"`` and ``"@texts"`` stand for the drawings and names of
        2010 as reference data, ``"@selector"`` for DDAS, ``"@factors"`` for budgets
        that grow at the end of the stream as in TiC-CLIP.
    :param settings: further arguments of the strategy; ``lr`` among them.
    :param candidates: what ``--search`` tries, each changes of ``settings`` or, as
        ``"Plugin.argument"``, of the plugins.
    :param like: names of rows whose chosen settings it has, in place of own candidates.
    :param streams: those that it is for; on others it has no result.
    :param why: the reason, for the table.
    :param strategy: ``"module:Class"`` in place of the plain training of the stream.
    :param trained: False for the model as it is.
    :param joint: one training on all steps at once.
    """

    name: str
    plugins: Plugins = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[Mapping[str, Any]] = ()
    like: Sequence[str] = ()
    streams: Sequence[str] = STREAMS
    why: str = ""
    strategy: str | None = None
    trained: bool = True
    joint: bool = False

    def changed(self, candidate: Mapping[str, Any]) -> Row:
        """The same method with other settings.

        :raises ValueError: for a plugin that it has not.
        """
        settings = dict(self.settings)
        plugins = {name: dict(given) for name, given in self.plugins.items()}
        for key, value in candidate.items():
            plugin, dot, argument = key.rpartition(".")
            if dot and plugin not in plugins:
                raise ValueError(
                    f"{key!r} is no setting of {self.name!r}, which has the plugins "
                    f"{', '.join(plugins) or 'none'}."
                )
            (plugins[plugin] if dot else settings)[argument] = value
        return replace(self, settings=settings, plugins=plugins)


def tries(key: str, *values: Any) -> tuple[dict[str, Any], ...]:
    """Candidates that differ in one setting, or in several with one value."""
    return tuple(dict.fromkeys(key.split(), value) for value in values)


ALL: Plugins = {"BudgetedReplayPlugin": {"kind": "all"}}
REPLAY: Plugins = {"BudgetedReplayPlugin": {"kind": "exp", "buffer_size": 300}}
EQUAL: Plugins = {"BudgetedReplayPlugin": {"kind": "equal", "buffer_size": 300}}
FACTORS: Plugins = {"BudgetFactorPlugin": {"factors": "@factors"}}
RESTART: Plugins = {"RestartPlugin": {"restart_from": "initial"}}
ORACLE: Plugins = {**RESTART, "BudgetFactorPlugin": {"factors": "step"}}
PATCHING: Plugins = {"PatchingPlugin": {}}
LWF: Plugins = {
    "ContrastiveLwFPlugin": {"lwf_weight": 1.0, "teach_first_experience": True}
}
EWC: Plugins = {"ContrastiveEWCPlugin": {"ewc_lambda": 100.0}}
MOD_X: Plugins = {"OffDiagonalAlignmentPlugin": {"alpha": 44.0}}
VR_LWF: Plugins = {"VocabularyReplayPlugin": {"image_weight": 3.0, "text_weight": 3.0}}
AVERAGING: Plugins = {"WeightAveragingPlugin": {"mode": "we", "interval": 10}}
ZSCL: Plugins = {
    "ReferenceDistillationPlugin": {
        "reference_images": "@images",
        "reference_texts": "@texts",
    },
    "WeightConsolidationPlugin": {"weight": 0.01},
    **AVERAGING,
    "FrozenLogitScalePlugin": {},
}
MOE: Plugins = {
    "MoEAdaptersPlugin": {
        "adapters": {"num_experts": 18, "top_k": 2, "bottleneck": 64, "scale": 1.0},
        "selector": "@selector",
        "reference_images": "@images",
        "selector_transform": "eval",
    }
}
LORA: Plugins = {"LoRAPlugin": {"rank": 4, "alpha": 32.0}}
MERGED: Plugins = {"LoRAPlugin": {"merge": True, "rank": 4, "alpha": 32.0}}
C_CLIP: Plugins = {
    "ContrastiveKnowledgeConsolidationPlugin": {"weight": 1.0},
    "LoRAPlugin": {
        "merge": True,
        "share": 0.5,
        "rank": 16,
        "alpha": 32.0,
        "targets": ["out", "mlp"],
    },
}
MLA: Plugins = {"LanguageAdapterPlugin": {"kind": "mla"}}
TEIR = {"init": "teir", "regularize": "gd"}

RATES = tries("lr", 1e-3, 3e-3, 7e-3)
TOKENS_ONLY = "grows a vocabulary for new languages; the others are English"
IMAGES: dict[str, Any] = {
    "streams": ("time", "domain"),
    "why": "routes by images, in whose place the stream of languages stores features",
}

METHODS = (
    Row("Zero-shot", trained=False),
    Row("Sequential"),
    Row(
        "FineTuning",
        settings={"trainable": "text"},
        streams=("language",),
        why="trains all weights, which is the plain training here: see Sequential",
        candidates=tries("lr", 3e-4, 1e-3),
    ),
    Row("CumulativeAll", ALL),
    Row("CumulativeExp", REPLAY),
    Row("CumulativeEqual", EQUAL),
    Row("CumulativeAllStar", {**ALL, **FACTORS}),
    Row("Restart", {**ALL, **RESTART}),
    Row("Oracle", {**ALL, **ORACLE}),
    Row("Patching", PATCHING),
    Row(
        "ContrastiveLwF",
        LWF,
        candidates=tries("ContrastiveLwFPlugin.lwf_weight", 0.3, 1.0, 3.0),
    ),
    Row(
        "ContrastiveEWC",
        EWC,
        candidates=tries("ContrastiveEWCPlugin.ewc_lambda", 1.0, 100.0, 10000.0),
    ),
    Row(
        "ModX",
        MOD_X,
        candidates=tries("OffDiagonalAlignmentPlugin.alpha", 11.0, 44.0, 176.0),
    ),
    Row(
        "VRLwF",
        VR_LWF,
        candidates=tries(
            "VocabularyReplayPlugin.image_weight VocabularyReplayPlugin.text_weight",
            1.0,
            3.0,
            10.0,
        ),
    ),
    Row(
        "ZSCL",
        ZSCL,
        candidates=tries("WeightConsolidationPlugin.weight", 0.0, 0.01, 0.1),
    ),
    Row("Averaging", AVERAGING),
    Row("MoEAdapters", MOE, candidates=RATES, **IMAGES),
    Row("CLLCLIP", settings=TEIR, streams=("language",), why=TOKENS_ONLY),
    Row(
        "Language adapters",
        MLA,
        streams=("language",),
        why="has an adapter per language; the others are English",
    ),
    Row("LoRA", LORA, candidates=RATES),
    Row("CCLIP", C_CLIP, candidates=RATES),
    Row("Joint", joint=True),
    # combinations
    Row("LoRA merged", MERGED, like=("LoRA",)),
    Row("Patching of LoRA", {**PATCHING, **LORA}, like=("LoRA",)),
    Row("Mod-X + MoE", {**MOD_X, **MOE}, like=("ModX", "MoEAdapters"), **IMAGES),
    Row("Mod-X + replay", {**MOD_X, **REPLAY}, like=("ModX",)),
    Row("VR-LwF + Mod-X", {**VR_LWF, **MOD_X}, like=("VRLwF", "ModX")),
    Row("C-CLIP + replay", {**REPLAY, **C_CLIP}, like=("CCLIP",)),
    Row("ZSCL + replay", {**ZSCL, **REPLAY}, like=("ZSCL",)),
    Row("Averaging + replay", {**AVERAGING, **REPLAY}),
    Row("Patching of MoE", {**PATCHING, **MOE}, like=("MoEAdapters",), **IMAGES),
    Row(
        "TEIR + replay",
        REPLAY,
        settings=TEIR,
        streams=("language",),
        why=TOKENS_ONLY,
    ),
)

QUICK = (
    "Zero-shot",
    "Sequential",
    "CumulativeAll",
    "ModX",
    "ZSCL",
    "MoEAdapters",
    "CLLCLIP",
    "Mod-X + replay",
)
