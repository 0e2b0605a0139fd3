"""Settings of methods that matter to several processes, beside those of the rows."""

from dataclasses import replace
from functools import partial

from avalanche_clip.training import plugins as p
from avalanche_clip.training.templates import ClassNameTemplate
from avalanche_clip.training.templates.reference_data import ReferenceImages
from tests.methods.rows import IMAGES, ROWS, Row

TEXTS = ["ab", "cde", "f", "ghij", "kl", "xyz"]


def reference(images=None, texts=None, *, cache_bytes=2**20, **options):
    """Plain training with a reference of eleven images."""

    def plugin():
        given = ReferenceImages(list(IMAGES[:11]), cache_bytes=cache_bytes)
        settings = {"batch_size": 4, "teach_first_experience": True, **options}
        return p.ReferenceDistillationPlugin(
            images or given, texts or TEXTS, **settings
        )

    return Row("Sequential", plugins=(plugin,))


def vocabulary(**options):
    """Plain training with pseudo texts."""
    settings = {"num_texts": 20, "text_length": 3, **options}
    return Row("Sequential", plugins=(partial(p.VocabularyReplayPlugin, **settings),))


def with_settings(name, **settings):
    """A row with further settings."""
    return replace(ROWS[name], settings={**ROWS[name].settings, **settings})


def reservoir(name, *further, **options):
    """A row with a reservoir of seven samples."""
    make = partial(p.ReservoirReplayPlugin, 7, **options)
    return replace(ROWS[name], plugins=(make, *further))


VARIANTS = {
    "one epoch after the other": with_settings(
        "Sequential", train_epochs=2, budget_iterations=None
    ),
    "clipping": with_settings("Sequential", clip_grad_norm=0.1),
    "targets": with_settings("Sequential", positives="targets"),
    "soft rows": with_settings("ModX", plugin_options={"row_filter": "soft"}),
    "small buffer": with_settings("CumulativeExp", buffer_size=2),
    "accumulated LwF": with_settings("ContrastiveLwF", accumulation_steps=2),
    "several together": replace(
        ROWS["Patching"],
        plugins=(
            partial(p.ContrastiveLwFPlugin, 5.0),
            partial(p.ContrastiveEWCPlugin, 1.0, fisher_batch_size=4),
            partial(p.BudgetedReplayPlugin, "exp", 8),
        ),
    ),
    "not divisible": reference(batch_size=5),
    "student": reference(text_side="student"),
    "previous": reference(teacher="previous"),
    "small cache": reference(cache_bytes=5 * 8 * 4),
    "trained scale": reference(train_logit_scale=True),
    "separate": vocabulary(distill_batch="separate"),
    "texts": vocabulary(student_text=True, num_texts=21),
    "redraw": vocabulary(redraw="iteration", text_weight=0.0),
    "few old": Row(
        "Sequential",
        plugins=(
            partial(p.ReservoirReplayPlugin, 1, target="student", duplicates=True),
        ),
    ),
    "samples kept twice": reservoir(
        "DER on languages", target="student", duplicates=True
    ),
    "ER and MLA": reservoir("MLA", partial(p.LanguageAdapterPlugin, "mla")),
    "class names": Row(ClassNameTemplate, world="classes"),
    "smoothing": Row(
        ClassNameTemplate,
        {"label_smoothing": 0.2, "label_space": "seen"},
        world="classes",
    ),
    "filler prompts": Row(
        ClassNameTemplate, {"accumulation_steps": 3}, world="classes"
    ),
    "classes of the batch": Row(
        ClassNameTemplate,
        {"label_space": "batch", "accumulation_steps": 2},
        world="classes",
    ),
    "classes of the batch and of its memory": replace(
        ROWS["DER on class names"], settings={"label_space": "batch"}
    ),
    "LwF of prompts": Row(
        ClassNameTemplate,
        plugins=(
            partial(
                p.ReferenceDistillationPlugin,
                "current",
                "current",
                teacher="previous",
                text_side="student",
            ),
        ),
        world="classes",
    ),
    "accumulated experts": with_settings(
        "MoEAdapters", selector=False, accumulation_steps=2
    ),
    "CoLeCLIP without memory": with_settings(
        "CoLeCLIP", alpha=None, num_prompts=2, peft="prefix"
    ),
    "balance": with_settings(
        "MoEAdapters", selector=False, plugin_options={"balance_weight": 1.0}
    ),
}
