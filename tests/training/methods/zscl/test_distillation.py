import pytest
import torch

from avalanche_clip.losses import temperature_distillation_loss
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    FrozenLogitScalePlugin,
    ReferenceDistillationPlugin,
)
from avalanche_clip.training.templates.reference_data import (
    ReferenceImages,
)
from tests.benchmarks.small_streams import Noise
from tests.helpers import (
    At,
    build,
    fit,
    stub_benchmark,
    stub_model,
    train_stream,
)

TEXTS = ["ab", "cde", "f", "ghij", "kl", "xyz", "abc"]


def reference_images(size=10):
    generator = torch.Generator().manual_seed(5)
    return [image for image in torch.randn(size, 3, 8, 8, generator=generator)]


def plugin(images=None, texts=TEXTS, **options):
    images = reference_images() if images is None else images
    defaults = {"batch_size": 4, "teach_first_experience": True}
    return ReferenceDistillationPlugin(images, texts, **{**defaults, **options})


class Note:
    """Reported terms per step, and gradients if asked for."""

    stateless = True

    def __init__(self, only=False):
        self.only, self.terms, self.gradients = only, [], []

    def before_backward(self, strategy, **kwargs):
        if self.only:  # takes away the criterion; comes before the method
            strategy.loss = strategy.loss * 0

    def after_backward(self, strategy, **kwargs):
        self.terms.append({k: float(v) for k, v in strategy.loss_terms.items()})
        self.gradients.append(
            {
                n: None if p.grad is None else p.grad.clone()
                for n, p in strategy.model.named_parameters()
            }
        )


class Slow:
    """The terms by loops, everything encoded anew at every step."""

    stateless = True

    def __init__(self, method, images=None, texts=TEXTS, weights=(1.0, 1.0)):
        self.method, self.values, self.weights = method, [], weights
        self.images = torch.stack(reference_images() if images is None else images)
        self.texts = texts

    def before_backward(self, strategy, **kwargs):
        order = self.method._sampler.order.indices
        rows = next(order(strategy.clock.train_exp_iterations, 1))
        teacher, student = strategy.teachers.get("initial").model, strategy.model
        tokens = student.tokenizer(self.texts)
        with torch.no_grad():
            sentences = teacher.encode_text(tokens)
            old = teacher.encode_image(self.images[rows])
            new = student.encode_image(self.images[rows])
            scale = student.logit_scale.exp()
        p = [[float(scale * x @ y) / 2 for y in sentences] for x in old]
        q = [[float(scale * x @ y) / 2 for y in sentences] for x in new]
        value = self.weights[0] * slow_loss(p, q)
        value += self.weights[1] * slow_loss(list(zip(*p)), list(zip(*q)))
        self.values.append(value)


def slow_loss(p, q):
    import math

    total = 0.0
    for a, b in zip(p, q):
        za, zb = sum(map(math.exp, a)), sum(map(math.exp, b))
        total -= sum(
            math.exp(x) / za * math.log(math.exp(y) / zb) for x, y in zip(a, b)
        )
    return 4 * total / len(p)


@pytest.mark.parametrize("weight", [(1.0, 1.0), (0.5, 3.0), (0.0, 1.0), (2.0, 0.0)])
def test_terms__equal_the_slow_form_with_everything_encoded_anew(weight):
    method = plugin(image_weight=weight[0], text_weight=weight[1])
    slow, note = Slow(method, weights=weight), Note()
    fit(Sequential, steps=2, plugins=[slow, method, note])
    ours = [
        row.get("reference_image", 0) + row.get("reference_text", 0)
        for row in note.terms
    ]
    assert len(ours) == 10
    torch.testing.assert_close(ours, slow.values, rtol=1e-4, atol=1e-5)
    assert ("reference_image" in note.terms[0]) == (weight[0] > 0)
    assert ("reference_text" in note.terms[0]) == (weight[1] > 0)


def moved(text_side, **options):
    """Gradients of the method alone, at a student that is not the teacher."""

    @torch.no_grad()
    def move(strategy):
        for parameter in strategy.model.parameters():
            if parameter.dim() > 1:
                parameter += 0.1 * torch.randn_like(parameter)

    move, note = At("before_training_iteration", move), Note(only=True)
    method = plugin(text_side=text_side, **options)
    strategy = build(Sequential, plugins=[move, note, method], budget_iterations=1)
    # The criterion reaches both towers with gradient zero; leave it out here.
    criterion = strategy._criterion
    strategy._criterion = lambda *args: criterion(*args).detach()
    train_stream(strategy, stub_benchmark(), 1)
    return note.gradients[0]


def test_teacher_side__sends_no_gradient_to_the_text_tower():
    found = moved("teacher")
    for name in ("token.weight", "text_proj.weight", "text_proj.bias"):
        assert found[name] is None
    assert float(found["image_proj.weight"].abs().max()) > 1e-3
    assert found["logit_scale"] is None


def test_student_side__trains_both_towers():
    found = moved("student")
    assert float(found["image_proj.weight"].abs().max()) > 1e-3
    assert float(found["text_proj.weight"].abs().max()) > 1e-3
    # Without the image term only the text tower learns: Q' has the teacher's images.
    alone = moved("student", image_weight=0.0)
    assert alone["image_proj.weight"] is None
    assert float(alone["token.weight"].abs().max()) > 1e-3


def test_student_side__value_on_a_batch_of_sentences():
    method = plugin(text_side="student", image_weight=0.0)
    note, expected, seen = Note(), [], []

    class Look:
        stateless = True

        def before_backward(self, strategy, **kwargs):
            step = strategy.clock.train_exp_iterations
            images = next(method._sampler.order.indices(step, 1))
            rows = next(method._sentences.indices(step, 1))
            seen.append(rows.tolist())
            teacher = strategy.teachers.get("initial").model
            tokens = strategy.model.tokenizer([TEXTS[i] for i in rows])
            with torch.no_grad():
                scale = strategy.model.logit_scale.exp()
                old = teacher.encode_image(torch.stack(reference_images())[images])
                p = scale * old @ teacher.encode_text(tokens).T
                q = scale * old @ strategy.model.encode_text(tokens).T
                value = temperature_distillation_loss(p.T, q.T)
            expected.append(float(value))

    strategy = fit(Sequential, steps=1, plugins=[Look(), method, note])
    ours = [row["reference_text"] for row in note.terms]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert all(len(set(rows)) == 4 for rows in seen) and seen[0] != seen[1]
    spent = strategy.compute.experiences[0]["reference"]
    assert spent["texts"] == 20 and spent["images"] == 0  # no term needs them


def test_current_data__are_the_training_batch():
    @torch.no_grad()
    def value(strategy):
        teacher = strategy.teachers.get("previous").model
        batch, output = strategy.mb_x, strategy.global_features
        known = teacher(batch)
        texts = output.logit_scale * known.text_features.T
        p, q = known.image_features @ texts, output.image_features @ texts
        terms = (temperature_distillation_loss(*both) for both in ((p, q), (p.T, q.T)))
        return sum(map(float, terms))

    look, note = At("before_backward", value), Note()
    method = plugin("current", "current", teacher="previous")
    strategy = fit(Sequential, steps=2, plugins=[look, method, note])
    ours = [r["reference_image"] + r["reference_text"] for r in note.terms]
    torch.testing.assert_close(ours, look.seen, rtol=1e-5, atol=1e-5)
    assert "reference" not in strategy.compute.experiences[1]


def test_random_numbers__are_those_of_plain_training():
    """Data with draws of their own do not move the global generators."""
    images = ReferenceImages(reference_images(), transform=Noise())
    plain, other = (
        At("after_training_iteration", lambda _: torch.get_rng_state())
        for _ in range(2)
    )
    fit(Sequential, steps=2, plugins=[plain])
    fit(Sequential, steps=2, plugins=[plugin(images), other])
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, other.seen, strict=True))


def test_logit_scale__is_frozen_bit_for_bit_unless_asked_for():
    start = stub_model().logit_scale
    for method in (plugin(), FrozenLogitScalePlugin()):
        strategy = fit(Sequential, plugins=[method])
        assert torch.equal(strategy.model.logit_scale, start)
        held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
        assert id(strategy.model.logit_scale) not in held
    strategy = fit(Sequential, plugins=[plugin(train_logit_scale=True)])
    assert not torch.equal(strategy.model.logit_scale, start)
