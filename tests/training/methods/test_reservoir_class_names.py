"""Replay from a reservoir on class names."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.training.plugins import ReservoirReplayPlugin
from tests.helpers import At, Recorder, stub_model
from tests.training.classes import class_benchmark, class_strategy, domain_benchmark


class Keep(Recorder):
    """Notes what each step saw, and the loss of its logits."""

    def __init__(self):
        self.spaces, self.targets, self.memory, self.losses = [], [], [], []

    def before_backward(self, strategy, **kwargs):
        batch = strategy.mb_x
        self.spaces.append(tuple(strategy.mb_classes.tolist()))
        self.targets.append(strategy.mb_targets.tolist())
        marks = batch.get("from_memory", torch.zeros(len(batch)))
        self.memory.append(marks.tolist())
        assert len(batch["text"]) == len(strategy.mb_classes)
        # The loss is that of each image among the prompts of the space.
        output = strategy.global_features
        logits = output.logit_scale * output.image_features @ output.text_features.T
        places = [self.spaces[-1].index(t) for t in self.targets[-1]]
        expected = F.cross_entropy(logits.detach(), torch.tensor(places))
        self.losses.append(float(strategy.loss_terms["criterion"]))
        assert self.losses[-1] == pytest.approx(float(expected), rel=1e-5)


STREAMS = {
    "classes": class_benchmark,
    "other ids": partial(
        class_benchmark, relabel="original", class_order=[5, 2, 0, 4, 1, 3]
    ),
    "domains": domain_benchmark,
}


def stored_classes(plugin, data):
    """Classes of the stored samples, read without the plugin's help."""
    found = set()
    for experience, position in plugin.stored.tolist():
        column = data.train_stream[experience].dataset.targets
        found.add(int(column[position]))
    return found


def run(plugin, stream="classes", steps=3, keep=None, **options):
    model = stub_model()
    data = STREAMS[stream](model)
    plugins = [plugin, *([keep] if keep else [])]
    strategy = class_strategy(model, plugins=plugins, **options)
    starts = []
    for experience in list(data.train_stream)[:steps]:
        starts.append(stored_classes(plugin, data))
        strategy.train(experience, eval_streams=[])
    return strategy, data, starts


@pytest.mark.parametrize(
    ("stream", "size", "space"),
    [
        ("classes", 4, "current"),
        ("other ids", 50, "current"),
        ("domains", 4, "current"),
        ("other ids", 4, "seen"),
        ("domains", 50, "all"),
    ],
)
def test_label_space__holds_the_classes_that_may_be_drawn(stream, size, space):
    keep = Keep()
    plugin = ReservoirReplayPlugin(size)
    strategy, data, starts = run(plugin, stream, keep=keep, label_space=space)
    own = [e.classes_in_this_experience for e in data.train_stream]
    for number, found in enumerate(keep.spaces):
        step = number // 5
        expected = {
            "current": own[step] | starts[step],
            "seen": set().union(*own[: step + 1]),
            "all": set().union(*own),
        }[space]
        assert set(found) == expected and list(found) == sorted(found)
        assert set(keep.targets[number]) <= set(found)
        old = sum(keep.memory[number])
        assert old == (0 if step == 0 else min(size, 6))


def test_der__pulls_the_prompts_of_old_classes_to_what_they_were():
    def term_and_gap(strategy):
        batch, output = strategy.mb_x, strategy.global_features
        if "from_memory" not in batch:
            return None
        old = batch["from_memory"].bool()
        raw = output.text_features * output.aux["text_norm"]
        gap = raw[strategy.mb_y][old] - batch["replay_target"][old]
        return float(strategy.loss_terms["replay"]), float(gap.square().mean())

    look = At("before_backward", term_and_gap)
    plugin = ReservoirReplayPlugin(50, target="student", weight=2.0)
    run(plugin, keep=look)
    found = [row for row in look.seen if row]
    assert len(found) == 10
    for term, gap in found:
        assert term == pytest.approx(2 * gap, rel=1e-5)
    assert max(found)[0] > 0
