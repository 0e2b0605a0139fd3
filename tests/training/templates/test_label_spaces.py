"""Label spaces of data that do not name their classes, and prompts in use."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets

from avalanche_clip.benchmarks import (
    ClassPrompts,
    make_image_text_dataset,
    prepare_benchmark,
)
from tests.helpers import At, Recorder, stub_model
from tests.training.classes import Labelled, class_strategy, domain_benchmark

pytestmark = pytest.mark.filterwarnings("ignore")


def plain_set(targets, seed, first):
    pairs = [(image, "a") for image in Labelled(targets, seed=seed).images]
    return make_image_text_dataset(
        pairs, targets=np.array(targets), sample_ids=np.arange(len(targets)) + first
    )


def own_benchmark(model):
    """Classes 0-2 and 3-5; class 1 and 5 have no test image."""
    return prepare_benchmark(
        benchmark_from_datasets(
            train=[plain_set([0, 1, 2] * 3, 0, 0), plain_set([3, 4, 5] * 3, 1, 100)],
            test=[plain_set([0, 2] * 2, 2, 200), plain_set([3, 4] * 2, 3, 300)],
        ),
        model,
    )


@pytest.mark.parametrize(
    ("named", "space", "expected"),
    [
        (True, "own", [(0, 1, 2), (3, 4, 5)]),
        (True, "current", [(0, 1, 2), (3, 4, 5)]),
        (True, "seen", [(0, 1, 2), (0, 1, 2, 3, 4, 5)]),
        (False, "own", [tuple(range(6))] * 2),
        (False, "seen", [(0, 1, 2), (0, 1, 2, 3, 4)]),
    ],
)
def test_evaluation__undeclared_classes_are_those_of_their_domains(
    named, space, expected
):
    model, watch = stub_model(), At("before_eval_exp", lambda s: s.label_ids)
    benchmark = own_benchmark(model)
    prompts = ClassPrompts(
        list("abcdef"), domains=["x"] * 3 + ["y"] * 3 if named else None
    )
    strategy = class_strategy(
        model, class_prompts=prompts, eval_label_space=space, plugins=[watch]
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    assert watch.seen == expected


class Prompts(Recorder):
    def __init__(self):
        self.used = []

    def before_training_iteration(self, strategy, **kwargs):
        self.used.append(strategy.class_prompts)

    before_eval_iteration = before_training_iteration


def test_class_prompts__those_of_the_benchmark_win():
    model, watch = stub_model(), Prompts()
    benchmark = domain_benchmark(model)
    new = ClassPrompts(benchmark.class_prompts.names, "zzz {}")
    benchmark.class_prompts = new
    strategy = class_strategy(model, plugins=[watch], budget_iterations=1)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    assert watch.used and all(prompts is new for prompts in watch.used)
    tokens = model.tokenizer(["zzz " + new.name(0)])
    expected = model.encode_text(tokens).detach()
    torch.testing.assert_close(strategy.class_matrix([0]), expected)
    # Set anew between two evaluations.
    benchmark.class_prompts = ClassPrompts(new.names, "yy {}")
    strategy.eval(benchmark.test_stream[:1])
    assert watch.used[-1] is benchmark.class_prompts


def test_class_prompts__of_the_experience_where_the_benchmark_lacks_classes():
    model, watch = stub_model(), Prompts()
    benchmark = domain_benchmark(model)
    own = benchmark.class_prompts
    benchmark.class_prompts = own.for_ids(range(3))
    strategy = class_strategy(model, plugins=[watch])
    strategy.eval(benchmark.test_stream[1:2])
    assert watch.used[-1] == own


def test_class_matrix__another_precision_encodes_anew():
    model = stub_model()
    strategy = class_strategy(
        model, class_prompts=ClassPrompts(["ab", "c"], "the {}"), precision="fp32"
    )
    full = strategy.class_matrix([0, 1])
    strategy.precision = "bf16"
    half = strategy.class_matrix([0, 1])
    strategy.scorer.matrices.forget()
    assert torch.equal(half, strategy.class_matrix([0, 1]))
    assert not torch.equal(half, full)
    strategy.precision = "fp32"
    assert torch.equal(full, strategy.class_matrix([0, 1]))
    with pytest.raises(ValueError, match="integer"):
        strategy.class_matrix([0.7])
