from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.benchmarks import (
    ClassPrompts,
    class_incremental_benchmark,
    multi_domain_benchmark,
    prepare_benchmark,
)
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.encoders.output import CLIPOutput
from tests.helpers import (
    Recorder,
    stub_model,
    train_stream,
)
from tests.training.classes import (
    Labelled,
    class_benchmark,
    class_strategy,
    domain_benchmark,
    domains,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def counted(model):
    """Count the prompts that a model encodes."""
    encode, counts = model.encode_text, []

    def encode_text(text, normalize=True):
        counts.append(len(text))
        return encode(text, normalize)

    model.encode_text = encode_text
    return counts


class Outputs(Recorder):
    """Keep the logits of each evaluated experience."""

    def __init__(self):
        self.logits, self.features, self.y = {}, {}, {}

    def before_eval_exp(self, strategy, **kwargs):
        index = strategy.experience.current_experience
        self.logits[index], self.features[index], self.y[index] = [], [], []

    def after_eval_iteration(self, strategy, **kwargs):
        index = strategy.experience.current_experience
        self.logits[index].append(strategy.mb_output)
        self.features[index].append(strategy.mb_features)
        self.y[index].append(strategy.mb_y)


def accuracies(found):
    return [v for k, v in found.items() if k.startswith("Top1_Acc_Exp")]


# --------------------------------------------------------------------- class matrix
def test_evaluation__uses_the_mean_of_all_templates():
    model, watch = stub_model(), Outputs()
    benchmark = domain_benchmark(model)
    strategy = class_strategy(model, plugins=[watch])
    found = strategy.eval(benchmark.test_stream)
    dataset = benchmark.test_stream[1].dataset
    batch, targets, _ = dataset.collate_fn([dataset[k] for k in range(len(dataset))])
    rows = []
    for prompts in benchmark.class_prompts.prompts([3, 4, 5, 6], which="all"):
        parts = [model.encode_text(model.tokenizer([p]))[0] for p in prompts]
        rows.append(F.normalize(sum(parts) / len(parts), dim=0))
    logits = model.logit_scale.exp() * model.encode_image(batch["image"])
    logits = logits @ torch.stack(rows).T
    torch.testing.assert_close(torch.cat(watch.logits[1]), logits.detach())
    expected = (logits.argmax(1) + 3 == targets).float().mean()
    assert accuracies(found)[1] == pytest.approx(float(expected))
    text = watch.features[1][0].text_features
    torch.testing.assert_close(text, torch.stack(rows).detach())
    assert watch.features[1][0].aux["image_norm"].shape == (6, 1)


@pytest.mark.parametrize("tower", ["image_proj", "text_proj"])
def test_evaluation__changed_weights_are_seen(tower):
    model, watch = stub_model(), Outputs()
    benchmark = domain_benchmark(model)
    strategy = class_strategy(model, plugins=[watch])
    strategy.eval(benchmark.test_stream[:1])
    before = torch.cat(watch.logits[0])
    with torch.no_grad():
        getattr(model, tower).weight.data.mul_(-1.0)  # leaves no version behind
    strategy.eval(benchmark.test_stream[:1])
    assert not torch.allclose(before, torch.cat(watch.logits[0]))


def test_evaluation__changed_templates_and_tokenizer_are_seen():
    model, watch = stub_model(), Outputs()
    counts = counted(model)
    strategy = class_strategy(model, plugins=[watch])
    given = domains((3, 2))
    one = prepare_benchmark(multi_domain_benchmark(given), model)
    two = prepare_benchmark(
        multi_domain_benchmark([(*d[:3], "x {}", d[4]) for d in given]), model
    )
    strategy.eval(one.test_stream)
    before = torch.cat(watch.logits[0])
    strategy.eval(two.test_stream)
    assert sum(counts) == 10 + 5
    assert not torch.allclose(before, torch.cat(watch.logits[0]))
    strategy.eval(one.test_stream)
    assert sum(counts) == 15 and torch.equal(before, torch.cat(watch.logits[0]))

    class Other(type(model.tokenizer)):
        def __call__(self, texts, languages=None):
            return super().__call__([t[::-1] for t in texts])

    model.tokenizer = Other()
    strategy.eval(one.test_stream)
    assert sum(counts) == 25
    assert not torch.allclose(before, torch.cat(watch.logits[0]))


def test_seen__only_new_names_are_encoded_by_a_frozen_model():
    model = stub_model().requires_grad_(False)
    model.logit_scale.requires_grad_(True)  # something to optimise
    fingerprint = "frozen"
    model.state_fingerprint = lambda tower=None: fingerprint
    counts = counted(model)
    benchmark = class_benchmark(model)
    strategy = class_strategy(model, eval_label_space="seen")
    sums = []
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        del counts[:]
        strategy.eval(benchmark.test_stream[: len(sums) + 1])
        sums.append(sum(counts))
    assert sums == [4, 4, 4]


def test_class_matrix__of_any_classes_and_outside_of_runs():
    model = stub_model()
    benchmark = domain_benchmark(model)
    strategy = class_strategy(model)
    with pytest.raises(ValueError, match="no label space"):
        strategy.class_matrix()
    with pytest.raises(ValueError, match="There are no class prompts"):
        strategy.class_matrix([0])
    strategy.eval(benchmark.test_stream)
    matrix = strategy.class_matrix([5, 0])
    assert matrix.shape == (2, 8) and model.training
    model.eval()
    assert torch.equal(matrix, strategy.class_matrix([5, 0])) and not model.training
    torch.testing.assert_close(matrix.norm(dim=1), torch.ones(2))


# -------------------------------------------------------------------------- ties
@pytest.mark.parametrize("space", ["all", "seen"])
def test_equal_names__only_the_right_domain_counts_and_ties_go_to_the_lowest(space):
    model, watch = stub_model(), Outputs()
    left, right = domains((3, 3))
    # The images of both domains are of the same classes.
    right = (
        Labelled([0, 1, 2] * 3),
        Labelled([0, 1, 2] * 3),
        left[2],
        "a {}.",
        "right",
    )
    left = (*left[:3], "a {}.", "left")
    benchmark = prepare_benchmark(multi_domain_benchmark([left, right]), model)
    strategy = class_strategy(
        model, plugins=[watch], eval_label_space=space, budget_iterations=40
    )
    train_stream(strategy, benchmark)
    found = strategy.eval(benchmark.test_stream)
    assert accuracies(found) == [1.0, 0.0]
    for parts in watch.logits.values():
        logits = torch.cat(parts)
        assert torch.equal(logits[:, :3], logits[:, 3:])
    assert torch.cat(watch.y[1]).tolist() == [3, 4, 5] * 3


# ----------------------------------------------------------- Continual-CLIP's facts
class Plane(torch.nn.Module):
    """Features are the first two pixels, or those of the letters a, b, c."""

    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    max_log_scale = None

    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.tokenizer = stub_model().tokenizer

    def transform(self, train):
        return stub_model().transform(train)

    def encode_image(self, image, normalize=True):
        raw = image[:, 0, 0, :2]
        return F.normalize(raw, dim=-1) if normalize else raw

    def encode_text(self, text, normalize=True):
        return self.directions[text[:, 1] - 3]

    def forward(self, batch):
        image, text = (
            self.encode_image(batch["image"]),
            self.encode_text(batch["text"]),
        )
        return CLIPOutput(image, text, self.logit_scale.exp())


class Points:
    targets = [0, 1, 2, 1]
    places = [(1.0, 0.2), (0.1, 1.0), (-1.0, 0.1), (0.9, 0.8)]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = torch.zeros(3, 8, 8)
        image[0, 0, :2] = torch.tensor(self.places[index])
        return image, self.targets[index]


def test_frozen_model__worked_example_of_growing_candidates():
    from avalanche_clip.evaluation.functional import incremental_accuracy

    model = Plane()
    benchmark = prepare_benchmark(
        class_incremental_benchmark(
            Points(), Points(), ["a", "b", "c"], "{}", sizes=[2, 1]
        ),
        model,
    )
    strategy = class_strategy(
        model, eval_label_space="seen", train_mb_size=1, budget_iterations=1
    )
    rows = []
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        rows.append(accuracies(strategy.eval(benchmark.test_stream)))
    assert rows[0][0] == rows[1][0] == pytest.approx(2 / 3)
    found = incremental_accuracy(rows, [3, 1])
    assert found["last"] == pytest.approx(0.75)
    assert found["average"] == pytest.approx((2 / 3 + 0.75) / 2)


# -------------------------------------------------------------- routers of a method
class Routers(Recorder):
    """Each image is met by the text tower in one of three moods."""

    def __init__(self, choose, own_marks=True):
        self.choose, self.own_marks = choose, own_marks
        self.used, self.inside, self.images = [], None, 0

    @contextmanager
    def mood(self, variant):
        self.used.append(variant)
        self.inside = variant
        yield
        self.inside = None

    @contextmanager
    def around(self):
        self.images += 1
        yield

    def image_context(self, strategy):
        return self.around()

    def class_logits(self, strategy, image_features):
        variants = self.choose(strategy)
        if variants is None:
            return None
        return strategy.variant_logits(
            image_features,
            variants,
            context=self.mood,
            fingerprint=(lambda v: f"mood {v}") if self.own_marks else None,
        )


class MoodyModel(type(stub_model())):
    plugin = None

    def encode_text(self, text, normalize=True):
        features = super().encode_text(text, normalize)
        mood = None if self.plugin is None else self.plugin.inside
        return features if mood is None else features.roll(mood, dims=-1)


def routed(choose, **options):
    model, watch = MoodyModel(), Outputs()
    plugin = Routers(choose, **options)
    model.__dict__["plugin"] = plugin
    benchmark = domain_benchmark(model, sizes=(3, 2))
    strategy = class_strategy(model, plugins=[plugin, watch], eval_mb_size=9)
    return strategy, benchmark, plugin, watch


def test_routers__mixed_batch_equals_each_router_alone():
    alone = {}
    for number in (-1, 0, 2):
        pick = lambda s, n=number: torch.full((len(s.mb_x),), n)  # noqa: E731
        strategy, benchmark, plugin, watch = routed(pick)
        strategy.eval(benchmark.test_stream)
        alone[number] = torch.cat(watch.logits[0])
        assert plugin.images == 2 and set(plugin.used) == {number}
    mixed = torch.tensor([0, -1, 2, 2, 0, -1, -1, 0, 2])
    strategy, benchmark, plugin, watch = routed(lambda s: mixed[: len(s.mb_x)])
    strategy.eval(benchmark.test_stream)
    logits = torch.cat(watch.logits[0])
    for row, number in enumerate(mixed.tolist()):
        torch.testing.assert_close(logits[row], alone[number][row])
    assert not torch.allclose(alone[0], alone[2])


@pytest.mark.parametrize("own_marks", [True, False])
def test_routers__only_those_that_occur_are_built_and_then_kept(own_marks):
    strategy, benchmark, plugin, _ = routed(
        lambda s: torch.zeros(len(s.mb_x), dtype=int), own_marks=own_marks
    )
    counts = counted(strategy.model)
    strategy.eval(benchmark.test_stream)
    assert sum(counts) == 10 and plugin.used == [0, 0]
    strategy.eval(benchmark.test_stream)
    assert sum(counts) == 10
    # A fingerprint of its own outlives training of other parts.
    train_stream(strategy, benchmark, 1)
    strategy.eval(benchmark.test_stream)
    assert sum(counts) == (10 if own_marks else 20)


def test_routers__none_means_the_standard_path():
    strategy, benchmark, plugin, watch = routed(lambda s: None)
    strategy.eval(benchmark.test_stream)
    plain, other = Outputs(), MoodyModel()
    class_strategy(other, plugins=[plain], eval_mb_size=9).eval(
        domain_benchmark(other, sizes=(3, 2)).test_stream
    )
    assert torch.equal(torch.cat(watch.logits[0]), torch.cat(plain.logits[0]))
    assert plugin.used == []


# ---------------------------------------------------------------------- real model
def pictures(targets):
    """Random images with labels, in the range that a real transform accepts."""
    data = Labelled(targets)
    data.images = data.images.sigmoid()
    return data


def test_dual_encoder__trains_evaluates_and_keeps_its_class_vectors():
    model = create_dual_encoder("tiny-emoji", pretrained="emoji-2010")
    counts = counted(model)
    benchmark = prepare_benchmark(
        multi_domain_benchmark(
            [
                (
                    pictures([0, 1] * 4),
                    pictures([0, 1]),
                    ["red car", "dog"],
                    ["{}", "a {}"],
                ),
                (pictures([0, 1] * 4), pictures([0, 1]), ["sun", "a/b  c"], ["{}"]),
            ]
        ),
        model,
    )
    strategy = class_strategy(model, budget_iterations=2, precision="bf16")
    found = strategy.eval(benchmark.test_stream)
    assert sum(counts) == 6 and len(accuracies(found)) == 2
    strategy.eval(benchmark.test_stream)
    assert sum(counts) == 6
    train_stream(strategy, benchmark)
    strategy.eval(benchmark.test_stream)
    assert sum(counts) == 12
    model.freeze("text")
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    assert sum(counts) == 12
    assert isinstance(strategy.class_prompts, ClassPrompts)
