import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.evaluation.functional import retrieval_metrics
from avalanche_clip.evaluation.metrics import RetrievalMetric, retrieval_plugin_metrics
from tests.evaluation.helpers import FakeStrategy, Silent, experience_batches, unit


def make_strategy(**kwargs):
    logger = Silent()
    metrics = retrieval_plugin_metrics(**kwargs)
    return FakeStrategy(EvaluationPlugin(metrics, loggers=[logger])), logger


def test_retrieval_metric__one_value_per_name_and_experience_as_float():
    strategy, logger = make_strategy(ks=(1, 5))
    strategy.clock.train_iterations = 7
    last = strategy.eval()
    names = [name for name, _, _ in logger.values]
    assert len(names) == len(set(names))
    assert all(type(value) is float for _, value, _ in logger.values)
    assert {step for _, _, step in logger.values} == {7}
    for index in range(3):
        assert f"mean_R@5/eval_phase/test_stream/Task000/Exp00{index}" in last


def test_retrieval_metric__equals_the_function_on_all_batches_together():
    strategy, _ = make_strategy()
    last = strategy.eval()
    for index in range(3):
        parts = experience_batches(index)
        images = torch.cat([features.image_features for features, _ in parts])
        texts = torch.cat([features.text_features for features, _ in parts])
        owner = torch.cat(
            [batch["owner"] + 6 * i for i, (_, batch) in enumerate(parts)]
        )
        for name, value in retrieval_metrics(images, texts, owner).items():
            full = f"{name}/eval_phase/test_stream/Task000/Exp00{index}"
            assert last[full] == value


def test_retrieval_metric__stream_values_are_means_over_experiences():
    strategy, _ = make_strategy()
    last = strategy.eval()
    for name in ("mean_R@1", "image_to_text_mean_rank", "text_to_image_tie_share"):
        single = [v for n, v in last.items() if n.startswith(f"{name}/") and "Exp" in n]
        mean = last[f"{name}/eval_phase/test_stream"]
        assert len(single) == 3 and mean == pytest.approx(sum(single) / 3)
    # a second evaluation starts from nothing
    again = strategy.eval(strategy.test_stream[:1])
    assert (
        again["mean_R@1/eval_phase/test_stream"]
        == (again["mean_R@1/eval_phase/test_stream/Task000/Exp000"])
    )


def test_retrieval_metric__equal_captions_of_different_lengths_are_one():
    metric = RetrievalMetric(ks=(1,))
    images = unit(3, 8)
    # image 0 and 2 share the caption (5, 9); the second batch is padded wider
    metric.update(images[:2], images[:2], None, torch.tensor([[5, 9], [6, 9]]))
    metric.update(images[2:], images[:1], None, torch.tensor([[5, 9, 0]]))
    result = metric.result()
    expected = retrieval_metrics(images, images[:2], [(0, 0), (1, 1), (0, 2)], ks=(1,))
    assert result == expected
    assert result["image_to_text_tie_share"] == 0
    apart = RetrievalMetric(ks=(1,), deduplicate=False)
    apart.update(images[:2], images[:2], None, torch.tensor([[5, 9], [6, 9]]))
    apart.update(images[2:], images[:1], None, torch.tensor([[5, 9, 0]]))
    assert apart.result()["image_to_text_tie_share"] > 0


def test_retrieval_metric__padding_comes_from_the_tokenizer():
    strategy, _ = make_strategy(ks=(1,))
    metric = strategy.evaluator.metrics[0]
    strategy.model.tokenizer.pad_id = 9
    strategy.mb_features, strategy.mb_x = experience_batches(0)[0]
    strategy.mb_x["text"] = torch.arange(10, 22)[:, None]
    metric.after_eval_iteration(strategy)
    strategy.mb_x = dict(strategy.mb_x)
    strategy.mb_x["text"] = torch.tensor([[i, 9, 9] for i in range(10, 22)])
    metric.after_eval_iteration(strategy)
    # the same twelve captions in both batches
    assert metric.result()["text_to_image_mean_rank"] == pytest.approx(
        retrieval_metrics(
            torch.cat(metric._kept["images"]),
            metric._kept["texts"][0],
            [(i % 12, i % 6 + 6 * (i // 12)) for i in range(24)],
        )["text_to_image_mean_rank"]
    )


def test_retrieval_metric__features_are_copied_as_float32_to_the_cpu():
    metric = RetrievalMetric()
    buffer = unit(4, 8).to(torch.bfloat16)
    metric.update(buffer, buffer)
    buffer.zero_()
    assert metric._kept["images"][0].dtype == torch.float32
    assert metric.result()["mean_R@1"] == 1


def test_retrieval_metric__nothing_collected_gives_nothing():
    metric = RetrievalMetric()
    assert metric.result() == {}
    metric.update(torch.eye(2), torch.eye(2))
    metric.reset()
    assert metric.result() == {}


def test_retrieval_metric__state_is_plain_and_restores():
    strategy, _ = make_strategy()
    strategy.eval()
    metric = strategy.evaluator.metrics[0]
    state = metric.state_dict()
    other = RetrievalMetric()
    other.load_state_dict(state)
    assert other.stream_results == metric.stream_results
    metric.stream_results["test"].clear()
    assert other.stream_results["test"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.eye(2), torch.eye(2), torch.zeros(3).long()), r"\(3,\)"),
        ((torch.eye(2), torch.eye(2), torch.tensor([0, 2])), r"0\.\.1"),
    ],
)
def test_retrieval_metric__refuses_owners_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        RetrievalMetric().update(*arguments)


def test_retrieval_metric__refuses_tokens_for_some_batches_only():
    metric = RetrievalMetric()
    metric.update(torch.eye(2), torch.eye(2), None, torch.tensor([[1], [2]]))
    with pytest.raises(ValueError, match="some batches"):
        metric.update(torch.eye(2), torch.eye(2))
    with pytest.raises(ValueError, match="3 languages given, 2 are needed"):
        RetrievalMetric().update(torch.eye(2), torch.eye(2), languages=torch.zeros(3))


def test_retrieval_metric__options_are_checked_at_construction():
    with pytest.raises(ValueError, match="ties"):
        retrieval_plugin_metrics(ties="optimistic")
    with pytest.raises(ValueError, match="ks"):
        RetrievalMetric(ks=(0,))
