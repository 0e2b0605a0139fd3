import pytest

from avalanche_clip.training.plugins import (
    WeightAveragingPlugin,
    WeightConsolidationPlugin,
)
from avalanche_clip.training.supervised import (
    ZSCL_CLASS_INCREMENTAL,
    ClassNameFineTuning,
    ClassNameZSCL,
)
from tests.helpers import stub_model
from tests.methods.rows import IMAGES
from tests.training.classes import (
    accuracy_evaluator,
    class_benchmark,
    domain_benchmark,
)

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = {"train_mb_size": 6, "budget_iterations": 3, "warmup_iterations": 1, "lr": 1e-2}


def test_fine_tuning__can_train_the_logit_scale():
    model = stub_model()
    scale = model.logit_scale.item()
    strategy = ClassNameFineTuning(
        model=model, train_logit_scale=True, evaluator=accuracy_evaluator(), **SHORT
    )
    strategy.train(domain_benchmark(model).train_stream[0])
    assert model.logit_scale.item() != scale
    with pytest.raises(TypeError, match="reference_options={'train_logit_scale': True"):
        ClassNameZSCL(
            model=model,
            reference_images=IMAGES,
            reference_texts=["ab"],
            train_logit_scale=True,
        )


def test_class_incremental_preset__builds_and_trains():
    model = stub_model()
    model.pretrained = "stub weights"
    strategy = ClassNameZSCL(
        model=model,
        reference_images=IMAGES,
        reference_texts=["ab", "cde", "f"],
        plugin_options={"batch_size": 4},
        evaluator=accuracy_evaluator(),
        **{**ZSCL_CLASS_INCREMENTAL, "train_mb_size": 6, "warmup_iterations": 1},
    )
    assert strategy.distillation.image_weight == 5.0
    assert strategy.distillation.text_weight == 5.0
    kinds = {type(plugin): plugin for plugin in strategy.plugins}
    assert kinds[WeightConsolidationPlugin].weight == 0.0
    assert kinds[WeightAveragingPlugin].interval == 10
    assert ZSCL_CLASS_INCREMENTAL["warmup_iterations"] == 30
    assert strategy.later_warmup_iterations == 1
    assert strategy.train_epochs == 1 and not strategy.compute.limited
    assert strategy.eval_label_space == "seen"
    strategy.train(class_benchmark(model).train_stream[:2], eval_streams=[])
    # 12 images of 2 classes: two updates in the one epoch of each step.
    assert strategy.compute.report()["steps"] == [2, 2]
