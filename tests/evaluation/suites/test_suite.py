"""Features of suites: made once per state of a tower, and nothing else changes."""

import copy
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.suites.suite import (
    Suite,
    SuiteFeatures,
    metrics_only,
)
from avalanche_clip.models import attach_lora, create_dual_encoder
from tests.helpers import IMAGE_SIZE, stub_model
from tests.models.conftest import (  # noqa: F401
    hf_clip_folder,
    hf_siglip_folder,
    native_cfg,
    tokenizer_file,
)

TEXTS = ["ab", "cd", "ab", "efg", "cd"]


def pictures(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator))


class Means(Suite):
    def identity(self):
        return {"texts": TEXTS}

    def evaluate(self, model, *, device="cpu", autocast=nullcontext):
        with self.features.of(model, device=device, autocast=autocast) as encoded:
            scores = encoded.images("seven", pictures()) @ encoded.texts(TEXTS).T
            return encoded.result("mean", lambda: {"all": {"mean": scores.mean()}})


def test_suite__encodes_once_per_state_of_each_tower():
    model, suite = stub_model(), Means("means", batch_size=3)
    seen = []

    def encoded():
        value = suite.evaluate(model)["all"]["mean"]
        seen.append(tuple(suite.features.encoded.values()))
        return float(value)

    first = encoded()
    assert encoded() == first and seen == [(7, 3)] * 2
    model.token.weight.data[5] += 1  # the stub's towers are told by all its weights
    assert encoded() != first and seen[-1] == (14, 6)


def tiny():
    torch.manual_seed(0)
    return create_dual_encoder("tiny-emoji-vit")


def states(model, features, autocast=nullcontext):
    with features.of(model, autocast=autocast) as encoded:
        return encoded.state("image"), encoded.state("text")


def test_state__is_that_of_each_tower():
    model, features = tiny(), SuiteFeatures()
    was = states(model, features)
    assert states(model, features) == was == states(copy.deepcopy(model), features)

    def changed(change):
        before, after = states(model, features), None
        change()
        after = states(model, features)
        return [a != b for a, b in zip(before, after, strict=True)]

    blocks = [model.blocks("image"), model.blocks("text")]
    assert changed(lambda: blocks[0][1].norm1.bias.data.add_(1e-3)) == [True, False]
    assert changed(lambda: blocks[1][0].norm2.weight.data.mul_(2)) == [False, True]
    assert changed(lambda: model.logit_scale.data.add_(1)) == [False, False]
    lora = []
    assert changed(lambda: lora.append(attach_lora(model, "image")))[0]
    for name, parameter in lora[0].trainable_parameters():
        assert changed(lambda p=parameter: p.data.add_(0.5)) == [True, False], name
    # no tensor says which branch serves: the towers' answers do
    assert changed(lambda: lora[0].set_ids(-1)) == [True, False]


def test_state__knows_precision_tokenizer_and_transform():
    model, features = tiny(), SuiteFeatures()
    was = states(model, features)
    low = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    assert all(a != b for a, b in zip(was, states(model, features, low), strict=True))
    inner = model.tokenizer

    class Backwards:
        vocab_size, pad_id, eot_id = inner.vocab_size, inner.pad_id, inner.eot_id

        def __call__(self, texts, languages=None):
            return inner([text[::-1] for text in texts])

    model.tokenizer = Backwards()
    found = states(model, features)
    assert found[0] == was[0] and found[1] != was[1]
    model._config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    assert states(model, features)[0] != was[0]


def test_features__are_those_of_one_pass_in_any_batches_and_order():
    model, shown = stub_model(dropout=0.5), pictures(9)
    plain = model.eval().encode_image(torch.stack(shown)).detach()
    model.train()
    for size in (1, 4, 100):
        with SuiteFeatures(batch_size=size).of(model) as encoded:
            torch.testing.assert_close(encoded.images("a", shown), plain)
            found = encoded.images("b", shown[::-1])
            torch.testing.assert_close(found, plain.flip(0))
            words = encoded.texts(TEXTS)
            assert torch.equal(words[0], words[2]) and torch.equal(words[1], words[4])
            torch.testing.assert_close(encoded.texts(["efg", "ab"]), words[[3, 0]])
    assert model.training and model.dropout.training


def test_features__memory_is_bounded_but_for_what_was_asked_last():
    model = stub_model()
    row = 4 * model.embed_dim
    features = SuiteFeatures(max_bytes=10 * row)
    with features.of(model) as encoded:
        for key, count in (("a", 4), ("b", 6), ("a", 4), ("c", 5)):
            encoded.images(key, pictures(count))
        assert list(features.images) == ["a", "c"]
        encoded.images("d", pictures(30))
        assert list(features.images) == ["d"]
        many = [a + b for a in "abcdef" for b in "gh"]
        assert len(encoded.texts(many)) == 12 and len(features.numbers) == 12
        again = encoded.texts(["zz", many[3]])
        assert len(features.numbers) == 2 and len(again) == 2
        torch.testing.assert_close(again[1], encoded.texts(many)[3])


def test_evaluate__leaves_generators_and_modes_alone():
    model, suite = stub_model(dropout=0.5), Means("means")

    class Noisy(list):
        def __getitem__(self, index):
            random.random(), np.random.rand(), torch.rand(3)
            return super().__getitem__(index)

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    with suite.features.of(model) as encoded:
        encoded.images("noisy", Noisy(pictures()))
    suite.evaluate(model)
    drawn = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert drawn == (torch.rand(1), np.random.rand(), random.random())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_results__are_kept_for_both_states_and_given_as_copies():
    model, features, made = stub_model(), SuiteFeatures(), []

    def ask(key):
        with features.of(model) as encoded:
            return encoded.result(key, lambda: made.append(key) or {"n": len(made)})

    ask("a")["n"] = 99
    assert ask("a") == {"n": 1} and ask("b") == {"n": 2} and ask("a") == {"n": 1}
    before = copy.deepcopy(model.state_dict())
    model.reinitialize(1)
    assert ask("a") == {"n": 3}
    model.load_state_dict(before)
    assert ask("a") == {"n": 1} and made == ["a", "b", "a"]


def test_suite__refuses_other_models_and_foreign_state():
    suite = Means("means")
    suite.check(stub_model())
    with pytest.raises(TypeError, match="'means' got a Linear, which has no encode_"):
        suite.check(torch.nn.Linear(2, 2))
    assert suite.state_dict() == {} and suite.load_state_dict({}) is None
    with pytest.raises(ValueError, match=r"no state, but \['born'\]"):
        suite.load_state_dict({"born": 1})
    with pytest.raises(TypeError, match="name is 3"):
        Means(3)


def test_metrics_only__drops_counts_and_bounds():
    values = {"a": 0.5, "a_low": 0.4, "a_high": 0.6, "count": 3, "texts": 9}
    assert metrics_only({**values, "b_low": 0.1}) == {"a": 0.5, "b_low": 0.1}


@pytest.mark.parametrize("kind", ["native_cfg", "hf_clip_folder", "hf_siglip_folder"])
def test_features__of_towers_of_all_libraries_are_their_own(kind, request):
    given = request.getfixturevalue(kind)
    if kind == "native_cfg":
        given = {"model_cfg": given, "tokenizer": {"type": "open_clip"}}
    model, features = create_dual_encoder(given).eval(), SuiteFeatures(batch_size=2)
    transform, size = model.transform(False), model.image_size
    shown = list(
        torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    )
    words = ["red dog", "green car", "red dog"]
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(p) for p in shown]))
        texts = model.encode_text(model.tokenizer(words))
    with features.of(model) as encoded:
        torch.testing.assert_close(encoded.images("a", shown), images)
        torch.testing.assert_close(encoded.texts(words), texts, atol=2e-5, rtol=0)
        was = encoded.state("image"), encoded.state("text")
    for name, parameter in model.named_parameters():
        if model.tower_of(name) is None:
            continue
        kept = parameter.data.clone()
        parameter.data.view(-1)[-1:] += 0.5
        changed = [a != b for a, b in zip(was, states(model, features), strict=True)]
        tower = model.tower_of(name)
        assert changed == [tower == "image", tower == "text"], name
        parameter.data.copy_(kept)


def test_state__knows_a_tokenizer_that_differs_in_few_words_or_in_its_length():
    model, features = tiny(), SuiteFeatures()
    was, inner = states(model, features), model.tokenizer

    class Other:
        vocab_size, pad_id, eot_id = inner.vocab_size, inner.pad_id, inner.eot_id

        def __call__(self, texts, languages=None):
            return inner([text.replace("apple", "dog") for text in texts])

    for other in (Other(), copy.copy(inner)):
        model.tokenizer = other
        if not isinstance(other, Other):
            other.context_length -= 1
        found = states(model, features)
        assert found[0] == was[0] and found[1] != was[1]
    assert inner.num_truncated == 0


def test_table__counts_images_where_no_texts_are_counted():
    values = {"text_to_image_acc": 0.5, "count": 8.0}
    (row,) = Means.table({"x": {"all": values}})
    assert row["count"] == 8
    (row,) = Means.table({"x": {"all": {**values, "texts": 3.0}}})
    assert row["count"] == 3
