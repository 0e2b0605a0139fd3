"""The statements of papers that the studies put to the test, and how.

A check compares one figure of two methods of a study, seed by seed. Statements are
those of the papers in our words, with what they reported where that is known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """Where a study leaves its figures, and how it is run.

    :param folder: below the folder of all runs.
    :param command: what makes them.
    :param pretrained: weights that it has to start from.
    """

    folder: str
    command: str
    pretrained: str = "icons"


@dataclass(frozen=True)
class Check:
    """A figure of a method against that of another one, or against zero.

    :param study: key of :data:`STUDIES`.
    :param figure: its name in the study, of both.
    :param method: the one that the statement is about.
    :param other: the one it is compared with; empty for the figure itself.
    :param wanted: ``"above"`` (the difference is above ``-margin``), ``"below"`` (it
        is below ``margin``).
    :param margin: how much worse still counts, in the unit of the figure.
    """

    study: str
    figure: str
    method: str
    other: str = ""
    wanted: str = "above"
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A statement of a paper.

    :param paper: key of :data:`PAPERS`.
    :param statement: in a sentence.
    :param source: where the paper has it, and what it reported.
    :param measure: what stands for it here.
    :param checks: all have to come out.
    :param why: said where it does not hold: what decides that, as far as it is known.
    """

    paper: str
    statement: str
    source: str
    measure: str
    checks: tuple[Check, ...]
    why: str = ""


PAPERS = {
    "TiC-CLIP": "Garg et al., ICLR 2024 (arXiv 2310.16226)",
    "Mod-X": "Ni et al., ICML 2023 (arXiv 2305.07437)",
    "VR-LwF": "Ding et al., 2022 (arXiv 2207.09248)",
    "ZSCL": "Zheng et al., ICCV 2023 (arXiv 2303.06628)",
    "MoE-Adapters": "Yu et al., CVPR 2024 (arXiv 2403.11549)",
    "Patching": "Ilharco et al., NeurIPS 2022 (arXiv 2208.05592)",
    "CLL-CLIP": "Yang et al., AAAI 2024 (arXiv 2401.17186)",
    "SIT": "Wang et al., 2024 (arXiv 2405.15155)",
    "CoLeCLIP": "Li et al., 2024 (arXiv 2403.10245)",
}

_DOMAINS = (
    "python experiments/multi_domain_emoji.py --seeds 0,1,2 --methods zero-shot,"
    "fine-tuning,fine-tuning:1e-4,fine-tuning:3e-4,fine-tuning:1e-3,fine-tuning:2e-3,"
    "patching,vr-lwf,zscl,lora,lora-merged,moe-adapters,moe-no-freeze,joint"
)
STUDIES = {
    "time": Study(
        "tic_emoji_full_icons",
        "python experiments/tic_emoji.py --preset full --pretrained icons "
        "--seeds 0,1,2",
    ),
    "alignment": Study(
        "alignment_time", "python experiments/alignment.py --seeds 0,1,2"
    ),
    "domains": Study("multi_domain_emoji", _DOMAINS),
    "domains II": Study("multi_domain_emoji_II", f"{_DOMAINS} --order II"),
    "curve": Study(
        "multi_domain_emoji_curve",
        "python experiments/multi_domain_emoji.py --curve --seeds 0,1,2",
    ),
    "languages": Study(
        "languages_emoji",
        "python experiments/languages_emoji.py --seeds 0,1,2 --methods cll-clip,teir,"
        "init-only,regularize-only,teir-snapshots,fine-tune,fine-tune+teir,er,er+teir,"
        "der,der+teir,oewc,oewc+teir,mla,mla+teir,lora,lora+teir,frozen,joint",
    ),
    "online": Study("online_emoji", "python experiments/online_emoji.py --seeds 0,1,2"),
    "open": Study(
        "open_domain_emoji", "python experiments/open_domain_emoji.py --seeds 0,1,2"
    ),
}

LEARNING = 1.0
"""Points that count as equal: learning that is comparable, transfer that is kept."""
STATIC_GAP = 4.7
"""Largest gap between Cumulative-All and Oracle that TiC-CLIP reports (L, static)."""
BUFFER_GAP = 2.0
"""How near buffers come to all data in TiC-CLIP."""


def _each(study: str, figure: str, pairs: str, **options: object) -> tuple[Check, ...]:
    """Checks of several pairs of methods, ``"a b, c d"``."""
    named = (pair.strip().partition("|") for pair in pairs.split(","))
    return tuple(
        Check(study, figure, left.strip(), right.strip(), **options)  # type: ignore[arg-type]
        for left, _, right in named
    )


def _at_equal_learning(paper: str, method: str) -> tuple[Claim, ...]:
    """Whether a method keeps more than fine-tuning that learns as much."""
    return (
        Claim(
            paper,
            "So it is at comparable learning.",
            "implied by the comparison",
            "transfer, and accuracy on held-out icons, above those of fine-tuning that "
            "learns as much (transfer+, icons+)",
            (
                *_each("domains", "transfer+", method),
                *_each("domains", "icons+", method),
            ),
        ),
        Claim(
            paper,
            "So it is on a stream of image-text pairs.",
            "not in the paper, which has classes",
            "accuracy on held-out icons, recall of steps not learned yet, above those "
            "of fine-tuning that learns as much (icons+, later+)",
            (
                *_each("alignment", "icons+", method),
                *_each("alignment", "later+", method),
            ),
        ),
    )


_BATCH, _IMAGE, _NEWEST = (
    "moe-adapters per batch",
    "moe-adapters",
    "moe-adapters no-ddas",
)

_SIT_PAIRS = ", ".join(
    f"sit-{tuning}-{tower}|ait-{tuning}-{tower}"
    for tuning in ("lora", "adapters")
    for tower in ("both", "image", "text")
)
_TOWERS = "sit-lora-image|sit-lora-text, sit-adapters-image|sit-adapters-text"
_TEXT_TOWERS = "sit-lora-text|sit-lora-image, sit-adapters-text|sit-adapters-image"

CLAIMS = (
    # ------------------------------------------------------------------- TiC-CLIP
    Claim(
        "TiC-CLIP",
        "Training on from the last model with all old data comes near retraining from "
        "scratch, at 2.5 to 4 times less compute.",
        "abstract; main table (gap on static tasks 4.7 points at L scale, recalled)",
        f"in-domain and backward recall of cumulative-all not {STATIC_GAP} points or "
        "more below the oracle's, at lower cost",
        (
            *_each("time", "in_domain", "cumulative-all|oracle", margin=STATIC_GAP),
            *_each("time", "backward", "cumulative-all|oracle", margin=STATIC_GAP),
            *_each("time", "cost", "cumulative-all|oracle", wanted="below"),
        ),
        "At the updates of one step, batches hold ever less of the newest one: with "
        "growing budgets (cumulative-all*) it comes nearer at less than half the "
        "oracle's compute.",
    ),
    Claim(
        "TiC-CLIP",
        "Training on new data alone forgets; replay does not.",
        "main table (TiC-YFCC, backward, recalled: 42.2 against 66.4)",
        "backward recall of cumulative-all above sequential's",
        _each("time", "backward", "cumulative-all|sequential"),
    ),
    Claim(
        "TiC-CLIP",
        "Small buffers cost little against all old data.",
        "main table (Exp and Equal within about 2 points of All, recalled)",
        f"backward recall with a buffer not {BUFFER_GAP:g} points or more below "
        "cumulative-all's",
        _each(
            "time",
            "backward",
            "cumulative-exp|cumulative-all, cumulative-equal|cumulative-all",
            margin=BUFFER_GAP,
        ),
        "The buffer has 300 drawings of 3,822, the paper's as many as a step; larger "
        "ones were not measured.",
    ),
    Claim(
        "TiC-CLIP",
        "Interpolating with the previous weights forgets less than training on.",
        "main table (TiC-YFCC, backward, recalled: 44.7 against 42.2)",
        "backward recall of patching above sequential's",
        _each("time", "backward", "patching|sequential"),
    ),
    # ---------------------------------------------------------------------- Mod-X
    Claim(
        "Mod-X",
        "Image and text space turn against each other less than in fine-tuning.",
        "abstract; analysis of spatial disorder",
        "mean inter-modal deviation at the end, against the start",
        _each("alignment", "imd_mean", "mod-x|sequential", wanted="below"),
    ),
    Claim(
        "Mod-X",
        "What was learned before is kept better, and no less is learned.",
        "COCO after five phases of Flickr30K, image to text: 14.5 against 6.1",
        f"recall of old steps above, of new steps not {LEARNING:g} point or more below",
        (
            *_each("alignment", "old", "mod-x|sequential"),
            *_each("alignment", "new", "mod-x|sequential", margin=LEARNING),
        ),
    ),
    Claim(
        "Mod-X",
        "It is no slower learning that keeps more.",
        "implied by the comparison with other methods",
        "recall of old steps above that of fine-tuning that learns as much (old+)",
        _each("alignment", "old+", "mod-x"),
    ),
    # --------------------------------------------------------------------- VR-LwF
    Claim(
        "VR-LwF",
        "Zero-shot recognition is kept better than by fine-tuning.",
        "abstract; Transfer 57.2 against 44.6 in the tables of ZSCL (order I)",
        "transfer, and accuracy on held-out icons, above fine-tuning's; learned not "
        f"{LEARNING:g} point or more below",
        (
            *_each("domains", "transfer", "vr-lwf|fine-tuning"),
            *_each("domains", "icons", "vr-lwf|fine-tuning"),
            *_each("domains", "learned", "vr-lwf|fine-tuning", margin=LEARNING),
        ),
    ),
    *_at_equal_learning("VR-LwF", "vr-lwf"),
    # ----------------------------------------------------------------------- ZSCL
    Claim(
        "ZSCL",
        "Zero-shot transfer is kept better than by fine-tuning, and what was learned "
        "too.",
        "MTIL order I: Transfer 68.1 against 44.6, Last 83.6 against 77.3",
        "transfer and last above fine-tuning's; order I",
        (
            *_each("domains", "transfer", "zscl|fine-tuning"),
            *_each("domains", "last", "zscl|fine-tuning"),
        ),
    ),
    *_at_equal_learning("ZSCL", "zscl"),
    Claim(
        "ZSCL",
        "So it is in another order of the domains.",
        "MTIL order II: Transfer 64.2 against 46.6, Last 83.4 against 67.4",
        "transfer and last above fine-tuning's; order II",
        (
            *_each("domains II", "transfer", "zscl|fine-tuning"),
            *_each("domains II", "last", "zscl|fine-tuning"),
        ),
    ),
    Claim(
        "ZSCL",
        "Reference data keep more than random sentences.",
        "MTIL order I: Transfer 68.1 against 57.2 (LwF-VR)",
        "transfer of ZSCL above VR-LwF's",
        _each("domains", "transfer", "zscl|vr-lwf"),
    ),
    # --------------------------------------------------------------- MoE-Adapters
    Claim(
        "MoE-Adapters",
        "Zero-shot ability is kept where there is some.",
        "MTIL order I: Transfer 68.9, zero-shot 69.4",
        f"transfer to domains where zero-shot is far above chance not {LEARNING:g} "
        "point or more below zero-shot, routers chosen per image and per batch",
        _each(
            "domains",
            "known",
            f"{_IMAGE}|zero-shot, {_BATCH}|zero-shot",
            margin=LEARNING,
        ),
    ),
    Claim(
        "MoE-Adapters",
        "The last model knows more of all domains than a fine-tuned one.",
        "MTIL order I: Last 85.0 against 77.3",
        "last above fine-tuning's, routers chosen per image and per batch",
        _each("domains", "last", f"{_IMAGE}|fine-tuning, {_BATCH}|fine-tuning"),
    ),
    Claim(
        "MoE-Adapters",
        "Choosing routers by DDAS is needed.",
        "ablations",
        "last and transfer above those with the newest router",
        (
            *_each("domains", "last", f"{_IMAGE}|{_NEWEST}, {_BATCH}|{_NEWEST}"),
            *_each("domains", "known", f"{_IMAGE}|{_NEWEST}, {_BATCH}|{_NEWEST}"),
        ),
    ),
    Claim(
        "MoE-Adapters",
        "Freezing the experts that were used is needed.",
        "ablations",
        "last above that without freezing",
        _each(
            "domains",
            "last",
            f"{_IMAGE}|moe-no-freeze, {_BATCH}|moe-no-freeze per batch",
        ),
    ),
    Claim(
        "MoE-Adapters",
        "Fewer numbers are trained than in fine-tuning.",
        "abstract: 60 percent fewer",
        "thousands of numbers that train, below fine-tuning's",
        _each("domains", "thousands", f"{_IMAGE}|fine-tuning", wanted="below"),
    ),
    # ------------------------------------------------------------------- patching
    Claim(
        "Patching",
        "Interpolated weights keep more than early stopping does where it learns as "
        "much.",
        "figures of the trade-off",
        "accuracy on other domains and on held-out icons, mean over coefficients, "
        "above the line through early stopping (others+, icons+)",
        (
            *_each("curve", "others+", "patching"),
            *_each("curve", "icons+", "patching"),
        ),
    ),
    # ------------------------------------------------------------------- CLL-CLIP
    Claim(
        "CLL-CLIP",
        "TEIR raises average recall and lowers forgetting.",
        "XM3600, text to image: 24.3 against 17.6, forgetting 12.5 against 18.4",
        "average recall (AR), forgetting (F), that of English (F en)",
        (
            *_each("languages", "AR", "teir|cll-clip"),
            *_each("languages", "F", "teir|cll-clip", wanted="below"),
            *_each("languages", "F en", "teir|cll-clip", wanted="below"),
        ),
    ),
    Claim(
        "CLL-CLIP",
        "Each part of TEIR helps by itself, and both more than one.",
        "ablations: initialisation 20.5, regularisation 22.8, both 24.3, none 17.6",
        "average recall",
        _each(
            "languages",
            "AR",
            "init-only|cll-clip, regularize-only|cll-clip, teir|init-only, "
            "teir|regularize-only",
        ),
    ),
    Claim(
        "CLL-CLIP",
        "Regularisation is the larger part.",
        "ablations: 22.8 against 20.5",
        "average recall",
        _each("languages", "AR", "regularize-only|init-only"),
    ),
    Claim(
        "CLL-CLIP",
        "TEIR helps replay, too.",
        "XM3600, text to image: 24.7 against 19.4 (ER)",
        "average recall with TEIR above that without",
        _each("languages", "AR", "er+teir|er"),
    ),
    Claim(
        "CLL-CLIP",
        "TEIR helps other continual methods, too.",
        "main table: all of DER, oEWC, MLA, LoRA",
        "average recall with TEIR above that without",
        _each(
            "languages",
            "AR",
            "der+teir|der, oewc+teir|oewc, mla+teir|mla, lora+teir|lora",
        ),
    ),
    Claim(
        "CLL-CLIP",
        "Training the whole text tower forgets far more than training the token table.",
        "ablations: average recall 4.0 against 24.3",
        "average recall and forgetting, both with TEIR",
        (
            *_each("languages", "AR", "teir|fine-tune+teir"),
            *_each("languages", "F", "teir|fine-tune+teir", wanted="below"),
        ),
    ),
    # ------------------------------------------------------------------------- SIT
    Claim(
        "SIT",
        "Comparing a batch with the texts of its own classes learns a stream "
        "better than comparing it with all classes so far.",
        "conclusion (qualitative)",
        "A_AUC of SIT above that of its counterpart with equal settings",
        _each("online", "A_AUC", _SIT_PAIRS),
        why="Ahead by 1 to 3 points in every seed where the text tower is trained, "
        "behind where the image tower is trained alone.",
    ),
    Claim(
        "SIT",
        "The asymmetric comparison is what makes old classes forgotten.",
        "motivation (qualitative)",
        "F_Last of SIT below that of its counterpart",
        _each("online", "F_Last", _SIT_PAIRS, wanted="below"),
    ),
    Claim(
        "SIT",
        "Tuning the image tower is best for the stream.",
        "comparison of towers (qualitative)",
        "A_AUC with the image tower above that with the text tower",
        _each("online", "A_AUC", _TOWERS),
        why="The rates were chosen with both towers; adapters of the text tower "
        "alone are the best of all.",
    ),
    Claim(
        "SIT",
        "Tuning the text tower is best for zero-shot ability.",
        "comparison of towers (qualitative)",
        "zero-shot after the stream, text tower above image tower",
        _each("online", "zero-shot", _TEXT_TOWERS),
    ),
    # -------------------------------------------------------------------- CoLeCLIP
    Claim(
        "CoLeCLIP",
        "Learning domain after domain leaves zero-shot ability as it was.",
        "method: nothing of CLIP changes",
        "transfer, icons and emoji of 2010 at most 1 point below zero-shot",
        tuple(
            Check("open", figure, "coleclip", "zero-shot", margin=LEARNING)
            for figure in ("transfer", "icons", "2010")
        ),
    ),
    Claim(
        "CoLeCLIP",
        "It ends above ZSCL and MoE-Adapters without the identity of the data set.",
        "11 domains, order I, last: 79.7 against 77.6 and 66.9 (listed by Jang et al.)",
        "last among the names of all groups learned so far",
        _each("open", "open last", "coleclip|zscl, coleclip|moe-adapters"),
        why="3.5 points above ZSCL, with a spread of 2.7 over three seeds.",
    ),
    Claim(
        "CoLeCLIP",
        "Vocabulary, negative classes and prompts each help.",
        "ablations",
        "last without the identity above that without the part",
        _each(
            "open",
            "open last",
            "coleclip|coleclip-no-vocabulary, coleclip|coleclip-no-negatives, "
            "coleclip|coleclip-no-prompts",
        ),
        why="Prompts cost the first group here: drawings get another feature for the "
        "names of each group, whose scores are compared.",
    ),
)
