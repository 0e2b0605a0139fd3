"""Steps that processes cannot share evenly: several equal one, loss and weights."""

from functools import partial

import pytest
import torch

from avalanche_clip import distributed
from avalanche_clip.benchmarks import (
    multi_domain_benchmark,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.training import supervised
from avalanche_clip.training.plugins import (
    BudgetedReplayPlugin,
    LanguageAdapterPlugin,
    ReferenceDistillationPlugin,
    ReservoirReplayPlugin,
    VocabularyReplayPlugin,
)
from tests.helpers import (
    Recorder,
    assert_same_weights,
    build,
    sgd,
    stub_benchmark,
    stub_dataset,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import run_in_processes
from tests.training import small_runs as runs
from tests.training.classes import class_strategy, domain
from tests.training.languages import language_strategy, language_stream, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")

BATCH = 12
"""Pairs of a step over all processes: more than any experience has."""

VOCABULARY = {"num_texts": 5, "text_length": 2, "teach_first_experience": True}


def own(plugin, *args, **options):
    """A plugin to be made in each run."""
    return partial(plugin, *args, **options)


CASES = {
    "plain": {},
    "epochs": {"train_epochs": 2, "budget_iterations": None},
    "tail": {"train_epochs": 2, "budget_iterations": None, "sizes": (15, 16)},
    "accumulation": {"accumulation_steps": 2},
    "clipping": {"clip_grad_norm": 0.1},
    "targets": {"positives": "targets"},
    "bias": {"model": {"bias": True}},
    "replay": {"method": "CumulativeExp", "buffer_size": 2},
    "LwF": {"method": "ContrastiveLwF"},
    "Mod-X": {"method": "ModX", "alpha": 50.0, "alignment": {"row_filter": "soft"}},
    "EWC": {"method": "ContrastiveEWC", "ewc_lambda": 10.0, "fisher_batch_size": 4},
    "vocabulary": {"plugins": [own(VocabularyReplayPlugin, **VOCABULARY)]},
    "second batch": {
        "plugins": [
            own(
                VocabularyReplayPlugin,
                **VOCABULARY,
                distill_batch="separate",
                student_text=True,
            )
        ]
    },
    "reference": {
        "plugins": [
            own(ReferenceDistillationPlugin, "current", "current", teacher="previous")
        ]
    },
    "reservoir": {"plugins": [own(ReservoirReplayPlugin, 7, target="student")]},
    "few old": {
        "plugins": [own(ReservoirReplayPlugin, 1, target="student", duplicates=True)]
    },
    "class names": {"kind": "classes", "label_smoothing": 0.1},
    "class names, accumulation": {"kind": "classes", "accumulation_steps": 2},
    "class names, replay": {
        "kind": "classes",
        "plugins": [own(BudgetedReplayPlugin, "exp", 2)],
    },
    "languages": {"kind": "languages", "plugins": [own(ReservoirReplayPlugin, 9)]},
    "adapters": {
        "kind": "languages",
        "plugins": [own(LanguageAdapterPlugin, "lora", rank=2)],
    },
}


class Note(Recorder):
    """Keep the samples and losses of each step."""

    def __init__(self):
        self.ids, self.losses = [], []

    def after_update(self, strategy, **kwargs):
        ids = distributed.gather_rows(strategy.mb_x["sample_id"])
        self.ids.append(sorted(ids.tolist()))
        terms = {k: float(v) for k, v in strategy.loss_terms.items()}
        self.losses.append({**terms, "all": float(strategy.loss)})


def setting(case, processes):
    """Strategy and benchmark of a case, and how it is trained."""
    options = dict(CASES[case])
    plugins = [make() for make in options.pop("plugins", ())] + [Note()]
    kind = options.pop("kind", "pairs")
    shared = {
        "train_mb_size": BATCH // processes,
        "budget_iterations": 3,
        "optimizer": sgd,
        "plugins": plugins,
    }
    if kind == "languages":
        model = tiny_model()
        options = {"warmup_fraction": 0.0, **shared, **options}
        benchmark = language_stream(model, size=7)
        return language_strategy(model, **options), benchmark, {}
    sizes = options.pop("sizes", (5, 7))
    model = stub_model(**options.pop("model", {}))
    if kind == "classes":
        parts = [domain(5, 0, 0, train=1), domain(7, 5, 1, train=1)]
        benchmark = prepare_benchmark(multi_domain_benchmark(parts), model)
        return class_strategy(model, **{**shared, **options}), benchmark, {}
    cls = getattr(supervised, options.pop("method", "Sequential"))
    benchmark = stub_benchmark(sizes, model=model, targets=True, groups=4)
    more = {"drop_last": False} if case == "tail" else {}
    return build(cls, model, **{**shared, **options}), benchmark, more


def small_run(case, processes):
    strategy, benchmark, options = setting(case, processes)
    train_stream(strategy, benchmark, **options)
    note = next(p for p in strategy.plugins if isinstance(p, Note))
    return {
        "weights": weights(strategy.model),
        "ids": note.ids,
        "losses": note.losses,
        "compute": strategy.compute.report(),
    }


def tiny_test_set():
    """Results on test sets of one and two pairs, on untrained weights."""
    found = []
    for count in (1, 2):
        model = stub_model()
        test = stub_dataset(range(count), [0.0] * count, seed=1, first_id=50)
        train = stub_dataset(range(4), [0.0] * 4)
        benchmark = time_stamped_benchmark(train, boundaries=[], test=test)
        benchmark = prepare_benchmark(benchmark, model)
        strategy = build(supervised.Sequential, model, evaluator=runs.evaluator())
        found.append(strategy.eval(benchmark.test_stream))
    return found


@pytest.fixture(scope="module", params=[2, 3])
def pool(request, tmp_path_factory):
    """Results of two and of three processes."""
    jobs = {case: partial(small_run, case, request.param) for case in CASES}
    jobs["tiny test set"] = tiny_test_set
    folder = tmp_path_factory.mktemp("pool")
    return run_in_processes(jobs, folder, count=request.param, seconds=250)


@pytest.mark.parametrize("case", CASES)
def test_processes__equal_one_when_a_step_is_smaller_than_the_batch(case, pool):
    first, *others = pool[case]
    whole = small_run(case, 1)
    for other in others:
        assert_same_weights(first["weights"], other["weights"])
        assert first["losses"] == other["losses"]
    assert first["ids"] == whole["ids"]
    assert first["compute"]["samples"] == whole["compute"]["samples"]
    for ours, expected in zip(first["losses"], whole["losses"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, value in whole["weights"].items():
        torch.testing.assert_close(
            first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
        )


def test_evaluation__is_exact_on_fewer_pairs_than_processes(pool):
    whole = tiny_test_set()
    assert len(whole[0]) > 1
    for found in pool["tiny test set"]:
        assert repr(found) == repr(whole)
