import pytest
import torch

from avalanche_clip.common.fingerprint import tower_fingerprint
from avalanche_clip.training import Sequential
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.templates.frozen_texts import encode_texts
from avalanche_clip.training.templates.reference_data import ReferenceTexts
from tests.helpers import build, stub_benchmark, stub_model, train_stream

TEXTS = ReferenceTexts(["ab", "cde", "f", "ghij", "kl", "xyz", "abc"])


class Want:
    """Asks for text features of a teacher at the start of each experience."""

    stateless = True

    def __init__(self, kind, texts=TEXTS):
        self.kind, self.texts, self.found = kind, texts, []

    def teacher_kinds(self, strategy):
        return (self.kind,)

    def before_training_exp(self, strategy, **kwargs):
        found = strategy.teachers.text_features(self.kind, self.texts)
        self.found.append(found)


@pytest.fixture
def encoded(monkeypatch):
    """Count the lists of texts that are encoded."""
    import avalanche_clip.training.templates.frozen_texts as module

    calls = []

    def count(strategy, model, texts):
        calls.append(len(texts))
        return encode_texts(strategy, model, texts)

    monkeypatch.setattr(module, "encode_texts", count)
    return calls


def test_equal_weights_and_texts__are_encoded_once_whoever_asks(encoded):
    wants = [Want("initial"), Want("previous"), Want("initial")]
    wants.append(Want("previous", ReferenceTexts(list(TEXTS.texts))))
    strategy = build(Sequential, plugins=wants)
    train_stream(strategy, stub_benchmark(), 1)
    assert encoded == [7]
    assert all(want.found[0] is wants[0].found[0] for want in wants)
    expected = stub_model()
    expected = expected.encode_text(expected.tokenizer(TEXTS.texts))
    assert torch.equal(wants[0].found[0], expected)
    assert not wants[0].found[0].requires_grad


def test_later_experiences__renew_what_has_changed_only(encoded):
    first, last = Want("initial"), Want("previous")
    strategy = build(Sequential, plugins=[first, last])
    train_stream(strategy, stub_benchmark(), 3)
    assert encoded == [7, 7, 7]
    assert first.found[0] is first.found[1] is first.found[2]
    assert not torch.equal(last.found[0], last.found[1])
    assert len(strategy.teachers.frozen_texts.features) == 2


def test_frozen_text_tower__is_never_encoded_again(encoded):
    model = stub_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("text" not in name and "token" not in name)
    model.state_fingerprint = lambda tower: str(model.token.weight.sum())
    strategy = build(Sequential, model, plugins=[Want("previous")])
    train_stream(strategy, stub_benchmark(), 3)
    assert len(encoded) == 1


def test_other_texts_or_precision__are_other_features(encoded):
    other = Want("initial", ReferenceTexts(["ab", "cde"]))
    strategy = build(Sequential, plugins=[Want("initial"), other])
    train_stream(strategy, stub_benchmark(), 1)
    assert encoded == [7, 2] and other.found[0].shape[0] == 2
    strategy.precision = "bf16"
    strategy.teachers.text_features("initial", TEXTS)
    assert encoded == [7, 2, 7]


def test_what_nobody_asks_for__is_dropped():
    strategy = build(Sequential, plugins=[Want("previous")])
    train_stream(strategy, stub_benchmark(), 1)
    kept = strategy.teachers.frozen_texts
    strategy.teachers.text_features("previous", ReferenceTexts(["a"]))
    assert len(kept.features) == 2
    prints = [strategy.teachers.get("previous").fingerprint("text")]
    kept.start_experience(prints)
    assert len(kept.features) == 2
    strategy.teachers.text_features("previous", TEXTS)
    kept.start_experience(prints)
    assert list(kept.booked) == list(kept.features) and len(kept.features) == 1
    kept.start_experience(prints)
    assert not kept.features and not kept.booked


def test_cost__is_booked_once_and_not_again_after_a_stop(tmp_path):
    whole = build(Sequential, plugins=[Want("initial")])
    train_stream(whole, stub_benchmark(), 3)
    stopped = build(Sequential, plugins=[Want("initial")])
    train_stream(stopped, stub_benchmark(), 1)
    path = save_state(stopped, tmp_path / "state")
    benchmark = stub_benchmark()
    resumed = build(Sequential, plugins=[Want("initial")])
    load_state(resumed, path, benchmark)
    for experience in list(benchmark.train_stream)[1:3]:
        resumed.train(experience, eval_streams=[])
    assert resumed.compute.state_dict() == whole.compute.state_dict()


def test_ema__has_no_fixed_features():
    strategy = build(Sequential)
    with pytest.raises(ValueError, match="changes at each step"):
        strategy.teachers.text_features("ema", TEXTS)


def test_fingerprint__of_a_module_without_its_own_sees_weights_and_vocabulary():
    class Plain(torch.nn.Linear):
        tokenizer = stub_model().tokenizer

    torch.manual_seed(0)
    model = Plain(2, 2)
    before = tower_fingerprint(model, "text")
    assert before == tower_fingerprint(model, "text")
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert tower_fingerprint(model, "text") != before
