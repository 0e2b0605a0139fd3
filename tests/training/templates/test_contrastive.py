import pytest
import torch

from avalanche_clip.losses import contrastive_loss, siglip_loss
from avalanche_clip.training import Sequential
from avalanche_clip.training.templates import ContrastiveCriterion
from tests.helpers import At, build, stub_benchmark, stub_model


def output_and_ids(bias=False):
    model = stub_model(bias=bias)
    dataset = stub_benchmark(model=model).train_stream[0].dataset
    batch, ids, _ = dataset.collate_fn([dataset[i] for i in range(5)])
    return model(batch), ids


def test_criterion__takes_bare_output_and_raw_ids():
    output, ids = output_and_ids()
    expected = contrastive_loss(*output[:3])
    assert torch.equal(ContrastiveCriterion()(output, ids), expected)


def test_criterion__targets_are_positives_of_each_other():
    output, _ = output_and_ids()
    ids = torch.tensor([0, 0, 1, 1, 2])
    expected = contrastive_loss(*output[:3], targets=ids)
    assert torch.equal(ContrastiveCriterion("targets")(output, ids), expected)


def test_criterion__model_with_a_bias_uses_the_sigmoid_loss():
    output, ids = output_and_ids(bias=True)
    expected = siglip_loss(*output[:3], output.aux["logit_bias"])
    assert torch.equal(ContrastiveCriterion()(output, ids), expected)


def test_output__holds_the_logits_with_the_bias():
    model = stub_model(bias=True)
    data = stub_benchmark(model=model)

    def both(strategy):
        images, texts, scale, aux = strategy.mb_features
        return strategy.mb_output, scale * (images @ texts.T) + aux["logit_bias"]

    look = At("after_forward", both)
    strategy = build(Sequential, model, plugins=[look])
    strategy.train(data.train_stream[0], eval_streams=[])
    for ours, expected in look.seen:
        torch.testing.assert_close(ours, expected)


def test_criterion__own_one_is_used():
    class Mine(torch.nn.Module):
        calls = 0

        def forward(self, output, targets):
            Mine.calls += 1
            return contrastive_loss(*output[:3])

    strategy = build(Sequential, criterion=Mine())
    strategy.train(stub_benchmark().train_stream[0], eval_streams=[])
    assert Mine.calls == 5
    with pytest.raises(ValueError, match="positives='targets'.*leave it out"):
        build(Sequential, criterion=Mine(), positives="targets")
    with pytest.raises(ValueError, match="positives='some'"):
        build(Sequential, criterion=Mine(), positives="some")
