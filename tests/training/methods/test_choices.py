"""Settings that no method takes: refused in words when it is made.

Numbers out of range are in ``tests/training/test_option_values.py``.
"""

import pytest

from avalanche_clip.training import plugins as p
from tests.training import languages, moe_runs


def language_strategy(**options):
    return languages.language_strategy(languages.tiny_model(), **options)


REFERENCE = {"reference_images": moe_runs.reference(), "reference_texts": ["a"]}
SEPARATE = {"distill_batch": "separate", "distill_batch_size": True}
UNSCALED = {"scale_target": "update", "regularize": "d"}
REFUSED = {
    p.BudgetedReplayPlugin: [
        ({"kind": "some"}, "kind='some'"),
        ({"kind": "exp"}, "buffer_size"),
        ({"kind": "exp", "buffer_size": "all"}, "'current'"),
        ({"kind": "all", "buffer_size": 3}, "leave buffer_size out"),
    ],
    p.BudgetFactorPlugin: [
        ({"factors": factors}, "factors=") for factors in ("steps", [], [1, 0], [-1.0])
    ],
    p.ConstantCosinePlugin: [
        ({"decay_fraction": 0.0}, "decay_fraction"),
        ({"decay_fraction": 1.0}, "decay_fraction"),
    ],
    p.ContrastiveEWCPlugin: [
        ({"fisher_batch_size": 1}, "fisher_batch_size=1"),
        ({"decay": 2.0}, "decay=2.0"),
    ],
    p.MoEAdaptersPlugin: [
        ({"rank_over": "some"}, "rank_over"),
        ({"router_for_eval": "best"}, "router_for_eval"),
        ({"selector_transform": "none"}, "selector_transform"),
        ({"selector": "model"}, "reference_images"),
        ({"selector": "resnet", "reference_images": []}, "unknown"),
        ({"selector": "alexnet", "reference_images": []}, "weights"),
        ({"reference_images": []}, "selector=None"),
        ({"calibration": "valid"}, "selector=None"),
        ({"selector_transform": "eval"}, "selector_transform.*selector=None"),
    ],
    p.OffDiagonalAlignmentPlugin: [
        ({"temperature": 0}, "temperature=0"),
        ({"logit_scale_mode": "mine"}, "logit_scale_mode='mine'"),
        ({"reduction": "mean"}, "batchmean"),
        ({"row_filter": "hard"}, "soft"),
        ({"teacher": "last"}, "previous"),
    ],
    p.OnlineEWCPlugin: [({"gamma": 1.5}, "gamma=1.5")],
    p.PatchingPlugin: [({"select_on": "current"}, "select_on='current'")],
    p.ReferenceDistillationPlugin: [
        ({**REFERENCE, **wrong}, next(iter(wrong)))
        for wrong in (
            {"image_weight": -1},
            {"text_weight": -1},
            {"temperature": 0},
            {"text_side": "both"},
            {"teacher": "ema"},
            {"batch_size": 0},
        )
    ],
    p.ReservoirReplayPlugin: [({"target": "self"}, "target='self'")],
    p.TokenEmbeddingExpansionPlugin: [
        *(({name: "x"}, f"{name}='x'") for name in ("init", "regularize")),
        *(({name: "x"}, f"{name}='x'") for name in ("scale_target", "active_rows")),
        (UNSCALED, "scale_target='update'"),
    ],
    p.VocabularyReplayPlugin: [
        ({"temperature": 0}, "temperature=0 must be positive"),
        ({"distill_batch": "other"}, "distill_batch='other' is unknown"),
        ({"redraw": "never"}, "redraw='never'"),
        ({"distill_batch_size": 3}, "distill_batch='separate'"),
        (SEPARATE, "integer >= 1"),
        ({"texts": []}, "list of sentences"),
        ({"texts": "abc"}, "list of sentences"),
        ({"texts": ["a", 3]}, "holds 3"),
        ({"texts": ["a"], "allow_special": True}, "allow_special=True"),
        ({"texts": ["a"], "redraw": "iteration"}, "smaller num_texts"),
        ({"number": 3}, "number"),
    ],
    p.WeightAveragingPlugin: [
        ({"mode": "swa"}, "mode='swa'"),
        ({"anchor": "end"}, "anchor='end'"),
        ({"score": "best"}, "score='best'"),
        ({"mode": "wise", "interval": 5}, "interval is not used"),
        ({"alpha": 0.5}, "alpha is not used"),
        ({"anchor": "initial"}, "anchor is not used"),
        ({"mode": "wise", "alpha": 1.5}, "alpha=1.5"),
    ],
    language_strategy: [
        ({"trainable": "x"}, "trainable"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"cross_modal_weight": -1.0}, "negative"),
        ({"cross_modal_weight": 0.0, "cross_lingual_weight": 0.0}, "both be 0"),
        ({"length_groups": 0}, "length_groups=0"),
    ],
}
CASES = [
    pytest.param(call, *row, id=f"{call.__name__}-{row[1]}")
    for call, rows in REFUSED.items()
    for row in rows
]


@pytest.mark.parametrize("call, options, message", CASES)
def test_setting__is_refused_in_words(call, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(**options)
