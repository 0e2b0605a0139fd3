import pytest
import torch

from avalanche_clip.checkpointing import CheckpointError, load_state
from avalanche_clip.losses import temperature_distillation_loss
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    CheckpointPlugin,
    FrozenLogitScalePlugin,
    ReferenceDistillationPlugin,
)
from avalanche_clip.training.reference_data import RandomTexts, ReferenceImages
from tests.helpers import (
    assert_other_weights,
    assert_same_weights,
    build,
    fit,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.training import runs

pytestmark = pytest.mark.slow

TEXTS = ["ab", "cde", "f", "ghij", "kl", "xyz", "abc"]


def reference_images(size=10):
    generator = torch.Generator().manual_seed(5)
    return [image for image in torch.randn(size, 3, 8, 8, generator=generator)]


def plugin(images=None, texts=TEXTS, **options):
    images = reference_images() if images is None else images
    defaults = {"batch_size": 4, "teach_first_experience": True}
    return ReferenceDistillationPlugin(images, texts, **{**defaults, **options})


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


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


def method_only(method, steps=1, **options):
    note = Note(only=True)
    strategy = build(Sequential, plugins=[note, method], optimizer=sgd, **options)
    train_stream(strategy, stub_benchmark(), steps)
    return strategy, note


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


def test_kernel__published_numbers():
    p = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 3.0]])
    q = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    rows = [
        (p, q, 2.0, 4.311152),
        (p, q, 1.0, 1.101774),
        (p.T, q.T, 2.0, 2.403538),
        (p, p, 2.0, 3.751335),
    ]
    for teacher, student, temperature, expected in rows:
        value = temperature_distillation_loss(teacher, student, temperature=temperature)
        assert value.item() == pytest.approx(expected, abs=2e-6)
    half = slow_loss((p / 2).tolist(), (q / 2).tolist())
    assert half == pytest.approx(4.311152, abs=2e-6)


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


def test_gradient__is_zero_where_student_and_teacher_agree():
    _, note = method_only(plugin(teacher="previous"), 2, budget_iterations=2)
    for step in (0, 2):
        found = [g for g in note.gradients[step].values() if g is not None]
        assert max(float(g.abs().max()) for g in found) < 1e-5
        assert note.terms[step]["reference_image"] > 1
    plain = Note()
    fit(Sequential, steps=1, plugins=[plain], budget_iterations=1)
    assert float(plain.gradients[0]["image_proj.weight"].abs().max()) > 1e-2


def moved(text_side, **options):
    """Gradients of the method alone, at a student that is not the teacher."""

    class Move:
        stateless = True

        def before_training_iteration(self, strategy, **kwargs):
            with torch.no_grad():
                for parameter in strategy.model.parameters():
                    if parameter.dim() > 1:
                        parameter += 0.1 * torch.randn_like(parameter)

    note = Note(only=True)
    method = plugin(text_side=text_side, sentence_batch=3, **options)
    strategy = build(Sequential, plugins=[Move(), note, method], budget_iterations=1)
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
    method = plugin(text_side="student", sentence_batch=3, image_weight=0.0)
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
    assert all(len(set(rows)) == 3 for rows in seen) and seen[0] != seen[1]
    spent = strategy.compute.experiences[0]["reference"]
    assert spent["texts"] == 15 and spent["images"] == 0  # no term needs them


def test_current_data__are_the_training_batch():
    class Look:
        stateless = True

        def __init__(self):
            self.values = []

        def before_backward(self, strategy, **kwargs):
            teacher = strategy.teachers.get("previous").model
            batch, output = strategy.mb_x, strategy.global_features
            with torch.no_grad():
                known = teacher(batch)
                texts = output.logit_scale * known.text_features.T
                p, q = known.image_features @ texts, output.image_features @ texts
                self.values.append(
                    float(temperature_distillation_loss(p, q))
                    + float(temperature_distillation_loss(p.T, q.T))
                )

    look, note = Look(), Note()
    method = plugin("current", "current", teacher="previous")
    strategy = fit(Sequential, steps=2, plugins=[look, method, note])
    ours = [r["reference_image"] + r["reference_text"] for r in note.terms]
    torch.testing.assert_close(ours, look.values, rtol=1e-5, atol=1e-5)
    assert "reference" not in strategy.compute.experiences[1]


@pytest.mark.parametrize("texts", [TEXTS, RandomTexts(9, length=3), "ids"], ids=str)
@pytest.mark.parametrize("text_side", ["teacher", "student"])
def test_mixed_sources__run(texts, text_side):
    if texts == "ids":
        texts = stub_model().tokenizer(TEXTS)
    options = {"teacher": "previous", "text_side": text_side, "sentence_batch": 3}
    for images in ("current", None):
        note = Note()
        fit(Sequential, steps=2, plugins=[plugin(images, texts, **options), note])
        assert all(row["reference_text"] > 0 for row in note.terms)
    note = Note()
    strategy = fit(
        Sequential, steps=1, plugins=[plugin(None, "current", **options), note]
    )
    assert all(row["reference_text"] > 0 for row in note.terms)
    assert_other_weights(strategy.model, fit(Sequential, steps=1).model)


def test_initial_teacher__is_the_model_before_the_first_task_for_ever():
    start = weights(stub_model())
    method = plugin()
    strategy = build(Sequential, plugins=[method])
    for number, experience in enumerate(stub_benchmark((8,) * 5).train_stream):
        strategy.train(experience, eval_streams=[])
        teacher = strategy.teachers.get("initial").model
        assert_same_weights(teacher, start)
        assert not any(
            p.requires_grad or p.grad is not None for p in teacher.parameters()
        )
        if number == 0:
            features = method.text_features
        assert method.text_features is features
    expected = teacher.encode_text(teacher.tokenizer(TEXTS))
    assert torch.equal(features, expected)


def test_previous_teacher__text_features_are_renewed():
    seen = []

    class Look:
        stateless = True

        def after_update(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 0:
                seen.append(method.text_features)

    method = plugin(teacher="previous")
    strategy = build(Sequential, plugins=[method, Look()])
    before = []
    for experience in list(stub_benchmark().train_stream)[:2]:
        with torch.no_grad():
            tokens = strategy.model.tokenizer(TEXTS)
            before.append(strategy.model.encode_text(tokens))
        strategy.train(experience, eval_streams=[])
    assert torch.equal(seen[0], before[0]) and torch.equal(seen[1], before[1])
    assert method.text_features is None and method.store is None


def test_first_experience__is_taught_by_pretrained_weights_only():
    def terms(**options):
        note = Note()
        model = stub_model()
        model.pretrained = options.pop("pretrained", None)
        fit(Sequential, model=model, steps=2, plugins=[plugin(**options), note])
        return ["reference_image" in row for row in note.terms]

    lwf = {"teacher": "previous", "teach_first_experience": None}
    assert terms(**lwf) == [False] * 5 + [True] * 5
    assert terms(**lwf, pretrained="weights") == [True] * 10
    assert terms(teach_first_experience=None, pretrained="weights") == [True] * 10
    assert terms(teach_first_experience=False) == [False] * 5 + [True] * 5


def test_initial_teacher__with_random_weights_raises():
    with pytest.raises(ValueError, match="pretrained is None"):
        build(Sequential, plugins=[plugin(teach_first_experience=None)])
    neutral = {"image_weight": 0.0, "text_weight": 0.0}
    build(Sequential, plugins=[plugin(teach_first_experience=None, **neutral)])


@pytest.mark.parametrize("kind", ["initial", "previous"])
def test_cache__gives_the_same_losses_as_recomputation(kind):
    found = []
    for size in (2**20, 5 * 8 * 4, 0):
        images = ReferenceImages(reference_images(), cache_bytes=size)
        note = Note()
        method = plugin(images, teacher=kind)
        strategy = fit(Sequential, steps=2, plugins=[method, note], optimizer=sgd)
        accounts = strategy.compute.experiences
        spent = [e.get("teacher", {"images": 0})["images"] for e in accounts]
        found.append(([r["reference_image"] for r in note.terms], spent))
    torch.testing.assert_close(found[0][0], found[2][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][0], found[2][0], rtol=1e-6, atol=1e-6)
    assert found[0][1] == ([10, 0] if kind == "initial" else [10, 10])
    assert found[2][1] == [20, 20]
    assert found[0][1] < found[1][1] < found[2][1]


def test_cache__random_transforms_are_not_kept():
    class Noise:
        def __call__(self, image):
            return image + torch.randn(image.shape)

    images = ReferenceImages(reference_images(), transform=Noise())
    strategy = fit(Sequential, steps=2, plugins=[plugin(images)])
    assert strategy.compute.experiences[1]["teacher"]["images"] == 20


def test_cost__sentences_are_encoded_once():
    strategy = fit(Sequential, steps=2, plugins=[plugin()])
    first, second = strategy.compute.experiences
    assert first["teacher"] == {"images": 10, "texts": 7, "steps": 0}
    assert "teacher" not in second
    assert first["reference"] == {"images": 20, "texts": 0, "steps": 0}
    macs = strategy.compute.report({"image": 10.0, "text": 1.0})
    train = 2 * 20 * 11.0
    assert macs["total_macs"] == train + 107 + 400
    assert macs["full_macs"] == 3 * train + 107 + 3 * 400


def test_neutral__weights_zero_are_plain_training_bit_for_bit():
    options = {"dropout": 0.2, "noise": 0.1}

    def once(plugins):
        model = stub_model(**options)
        return fit(
            Sequential, stub_benchmark(model=model), model=model, plugins=plugins
        ).model

    off = plugin(image_weight=0.0, text_weight=0.0)
    assert_same_weights(once([off]), once([]))


def test_random_numbers__are_those_of_plain_training():
    """Data with draws of their own do not move the global generators."""

    class Noise:
        def __call__(self, image):
            return image + torch.randn(image.shape)

    states = []

    class Look:
        stateless = True

        def after_training_iteration(self, strategy, **kwargs):
            states[-1].append(torch.get_rng_state())

    images = ReferenceImages(reference_images(), transform=Noise())
    for extra in ([], [plugin(images)]):
        states.append([])
        fit(Sequential, steps=2, plugins=[*extra, Look()])
    assert all(torch.equal(a, b) for a, b in zip(*states))


def test_logit_scale__is_frozen_bit_for_bit_unless_asked_for():
    start = stub_model().logit_scale
    for method in (plugin(), FrozenLogitScalePlugin()):
        strategy = fit(Sequential, plugins=[method])
        assert torch.equal(strategy.model.logit_scale, start)
        held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
        assert id(strategy.model.logit_scale) not in held
    strategy = fit(Sequential, plugins=[plugin(train_logit_scale=True)])
    assert not torch.equal(strategy.model.logit_scale, start)


@pytest.mark.parametrize("text_side", ["teacher", "student"])
def test_accumulation__equals_the_big_batch(text_side):
    def once(chunks):
        method = plugin(text_side=text_side, sentence_batch=4)
        options = {"optimizer": sgd, "accumulation_steps": chunks}
        return fit(Sequential, steps=2, plugins=[method], **options).model.state_dict()

    ours, expected = once(3), once(1)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision__stays_close(precision):
    note, exact = Note(), Note()
    fit(Sequential, plugins=[plugin(), note], precision=precision, accumulation_steps=2)
    fit(Sequential, plugins=[plugin(), exact])
    # Later steps differ: the scaler of fp16 may skip the first update.
    for name, value in exact.terms[0].items():
        assert note.terms[0][name] == pytest.approx(value, rel=0.05)
    assert len(note.terms) == 15
    assert all(v < 100 for row in note.terms for v in row.values())


RESUMED = {
    "zscl": {},
    "student": {"text_side": "student", "sentence_batch": 3},
    "small cache": {"cache_bytes": 5 * 8 * 4},
    "previous": {"teacher": "previous"},
    "current": {"images": "current", "texts": "current", "teacher": "previous"},
    "workers": {"num_workers": 1},
}


def resumable(case, extra=(), texts=None, size=11):
    options = dict(RESUMED[case])
    reading = {
        k: options.pop(k) for k in ("cache_bytes", "num_workers") if k in options
    }
    images = options.pop("images", None)
    images = images or ReferenceImages(reference_images(size), **reading)
    texts = texts or options.pop("texts", TEXTS)
    return runs.build(extra=[plugin(images, texts, **options), *extra])


@pytest.mark.parametrize("case", RESUMED)
def test_resume__inside_an_experience_ends_the_same(case, tmp_path):
    every = CheckpointPlugin(tmp_path, every_iterations=3, keep=9)
    full, benchmark = resumable(case, [every])
    train_stream(full, benchmark, 2)
    for name, index in (("003", 0), ("005_end", 1), ("008", 1)):
        later, benchmark = resumable(case)
        path = tmp_path / f"state_000000{name}.pt"
        assert load_state(later, path, benchmark) == index
        for experience in list(benchmark.train_stream)[index:2]:
            later.train(experience, eval_streams=[])
        assert_same_weights(full.model, later.model)
        assert later.compute.experiences == full.compute.experiences


def test_resume__with_other_reference_data_raises(tmp_path):
    every = CheckpointPlugin(tmp_path, every_iterations=3, keep=9)
    full, benchmark = resumable("zscl", [every])
    train_stream(full, benchmark, 1)
    path = tmp_path / "state_000000005_end.pt"
    later, benchmark = resumable("zscl", size=12)
    with pytest.raises(CheckpointError, match="11 reference images"):
        load_state(later, path, benchmark)
    later, benchmark = resumable("zscl", texts=["ab", "cd"])
    load_state(later, path, benchmark)
    with pytest.raises(ValueError, match="other reference texts"):
        later.train(benchmark.train_stream[1], eval_streams=[])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_weight": -1}, "image_weight=-1"),
        ({"text_weight": -1}, "text_weight=-1"),
        ({"temperature": 0}, "temperature=0"),
        ({"text_side": "both"}, "text_side='both'"),
        ({"teacher": "ema"}, "teacher='ema'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"sentence_batch": 2.5}, "sentence_batch=2.5"),
    ],
    ids=str,
)
def test_wrong_settings__raise(options, message):
    with pytest.raises(ValueError, match=message):
        plugin(**options)
