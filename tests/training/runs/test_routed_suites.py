"""Suites in runs whose plugins choose what images and texts pass."""

import copy
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from PIL import Image

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.evaluation.suites.suite import Suite
from avalanche_clip.evaluation.suites.tasks import ZeroShotTask
from avalanche_clip.evaluation.suites.zero_shot import ZeroShotSuite
from avalanche_clip.training import CoLeCLIP, MoEAdapters, run_stream
from avalanche_clip.training.plugins import LanguageAdapterPlugin
from avalanche_clip.training.runs.suites import RunSuites, _routing
from avalanche_clip.training.templates import ContrastiveTemplate
from tests.helpers import assert_same_weights
from tests.processes import run_in_processes
from tests.training import languages, moe_runs
from tests.training.classes import class_strategy
from tests.training.small_runs import Interrupted, StopPlugin, evaluator

NAMES = moe_runs.NAMES
TEMPLATES = ["a {}", "b {}"]


def eighths(images):
    """Values that a picture of 8 bits has, too."""
    return ((2 * images).sigmoid() * 255).round() / 255


def picture(image):
    return Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy())


def benchmark_for(model):
    raw = moe_runs.raw_domains(3, change=eighths)
    return prepare_benchmark(raw, model, train_transform=model.transform(False))


def items(domain, first=0):
    data = moe_runs.labelled(3 * domain, 3, 2, 20 + domain, eighths)
    return [(picture(image), first + int(label)) for image, label in data]


def tasks(own=False):
    """Test sets of the domains, among their own names or all."""
    names = [NAMES[3 * k : 3 * k + 3] if own else NAMES[:9] for k in range(3)]
    sets = [items(k, 0 if own else 3 * k) for k in range(3)]
    return [
        ZeroShotTask.classification(f"domain {k}", sets[k], names[k], TEMPLATES)
        for k in range(3)
    ]


def captions():
    """All pictures, each with a caption of its own."""
    shown = [
        (p, [f"{NAMES[k]}{NAMES[i]}"])
        for k in range(3)
        for i, (p, _) in enumerate(items(k))
    ]
    return ZeroShotTask.retrieval("pairs", shown)


class Shakes(SupervisedPlugin, supports_distributed=True):
    """Moves experts and routers far at each end, so that routers differ much."""

    stateless = True

    def after_training_exp(self, strategy, **kwargs):
        source = torch.Generator().manual_seed(strategy.clock.train_exp_counter)
        for branch in strategy.model.moe_adapters.branches():
            for parameter in branch.parameters():
                parameter.data += torch.randn(parameter.shape, generator=source)


def experts(cls=MoEAdapters, plugins=(), granularity="sample", **options):
    chosen = moe_runs.selector(60, granularity=granularity)
    settings = {
        **moe_runs.ADAPTERS,
        "selector": chosen,
        "reference_images": moe_runs.reference(),
        "eval_label_space": "all",
        "warmup_iterations": 0,
        "plugins": [Shakes(), *plugins],
        **options,
    }
    model = moe_runs.vit()
    return class_strategy(model, cls, **settings), benchmark_for(model)


def go(strategy, benchmark, out, suites, **options):
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        return run_stream(
            strategy, benchmark, out, streams=("test",), suites=suites, **options
        )


def text(found):
    """Values that can be compared where some are NaN."""
    return str({t: {k: float(v) for k, v in own.items()} for t, own in found.items()})


def accuracies(result):
    """Of the domains, a row per evaluation, the one before the stream first."""
    found = result.matrices["test"]["Top1_Acc_Exp"]
    return np.array([found["before"], *found["E"]])


def routing_of(strategy):
    return next(c for c in strategy.contracts if c.routes_batches)


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    strategy, benchmark = experts()
    suites = [ZeroShotSuite([*tasks(), captions()], batch_size=4)]
    result = go(strategy, benchmark, tmp_path_factory.mktemp("moe"), suites)
    return strategy, result, suites


def test_moe__accuracies_are_those_of_the_strategy(routed):
    strategy, result, _ = routed
    own = accuracies(result)
    assert len(np.unique(own)) > 2
    rows = result.results["suites"]["zero-shot"].values()
    found = [[row[f"domain {k}"]["acc1"] for k in range(3)] for row in rows]
    np.testing.assert_allclose(found, own)
    met = [r for table in routing_of(strategy).routing["test"].values() for r in table]
    assert len(set(met)) > 2  # else this test would say little


STILL = partial(torch.optim.SGD, lr=1e-12)


def shared_run(folder, processes):
    """Rows of the suite of a run on some processes, which share batches and sets."""
    # the noise of gates differs between a batch and its halves: only Shakes moves
    strategy, benchmark = experts(train_mb_size=6 // processes, optimizer=STILL)
    suites = [ZeroShotSuite(tasks(), batch_size=4)]
    out = go(strategy, benchmark, folder, suites).results["suites"]["zero-shot"]
    return text({f"{step} {k}": v for step, row in out.items() for k, v in row.items()})


@pytest.mark.slow
def test_moe__two_processes_find_what_one_finds(tmp_path):
    (tmp_path / "pool").mkdir()
    job = partial(shared_run, tmp_path / "two", 2)
    found = run_in_processes({"run": job}, tmp_path / "pool")["run"]
    assert found == [shared_run(tmp_path / "one", 1)] * 2


def test_moe__retrieval_is_that_of_pairs_under_the_router_of_the_image(routed):
    strategy, result, _ = routed
    model, plugin = strategy.model.eval(), routing_of(strategy)
    moe, task = model.moe_adapters, captions()
    shown = torch.stack(
        [model.transform(False)(p) for k in range(3) for p, _ in items(k)]
    )
    tokens = model.tokenizer([one for (one,) in task.texts])
    scores = torch.empty(len(shown), len(tokens))
    with torch.no_grad():
        routes = plugin.auto_selector.route(shown)
        for row, router in enumerate(routes.tolist()):
            with moe.using_router(router):
                scores[row] = (
                    model.encode_image(shown[row : row + 1])
                    @ model.encode_text(tokens).T
                )
    suite = ZeroShotSuite(captions(), batch_size=5)
    with _routing(strategy, suite), suite.features.of(model) as encoded:
        shown = [p for k in range(3) for p, _ in items(k)]
        images, encode, _ = encoded.matched("shown", shown)
        found = images @ encode([one for (one,) in task.texts]).T
    torch.testing.assert_close(found, scores, atol=1e-5, rtol=0)
    own = scores.diag()[:, None]
    assert len(set(routes.tolist())) > 2
    last = result.results["suites"]["zero-shot"]["2"]["pairs"]
    assert last["image_to_text_R@1"] == pytest.approx(
        float(((scores >= own).sum(1) == 1).float().mean())
    )
    assert last["text_to_image_R@1"] == pytest.approx(
        float(((scores.T >= own).sum(1) == 1).float().mean())
    )


def alone(model):
    """Values of the model in its present state."""
    return text(ZeroShotSuite(tasks()).evaluate(model))


def row_of(strategy, suite):
    """Values of a suite between experiences, and how many were encoded for it."""
    before = dict(suite.features.encoded)
    run = RunSuites([suite])
    run.evaluate(strategy, 1)
    after = suite.features.encoded
    return text(run.rows[suite.name]["0"]), [
        after[k] - before[k] for k in ("images", "texts")
    ]


def test_moe__only_what_has_changed_is_encoded_again(routed):
    strategy, _, _ = routed
    suite, plugin = ZeroShotSuite(tasks()), routing_of(strategy)
    with torch.random.fork_rng():
        first, (images, texts) = row_of(strategy, suite)
        facts = strategy.experience, strategy.is_training, strategy.mbatch
        assert images == 18 and texts % 18 == 0 and texts > 18
        assert row_of(strategy, suite) == (first, [0, 0])
        assert (strategy.experience, strategy.is_training, strategy.mbatch) == facts
        assert suite.features.routing is None
        chosen = plugin.auto_selector
        kept = copy.deepcopy(chosen.state_dict())
        # nothing is familiar: the model before the stream
        chosen.given_threshold, chosen.threshold_kind = 0.0, "given"
        base, (images, _) = row_of(strategy, suite)
        assert images == 18 and base != first
        with strategy.model.moe_adapters.using_router(-1):
            assert alone(strategy.model) == base
        chosen.load_state_dict(kept)
        chosen.encoder_weight += 0.01
        assert row_of(strategy, suite)[1][0] == 18
        chosen.load_state_dict(kept)
        assert row_of(strategy, suite)[0] == first
        plugin.router_for_eval = "last"
        last, (images, _) = row_of(strategy, suite)
        assert images == 18
        with strategy.model.moe_adapters.using_router(2):
            assert alone(strategy.model) == last
        plugin.router_for_eval = "own"
        assert row_of(strategy, suite)[0] == base
        plugin.router_for_eval = "auto"
        name = next(n for n, _ in strategy.model.named_parameters() if "routers.1" in n)
        weight = strategy.model.get_parameter(name)
        before = weight.detach().clone()
        with torch.no_grad():
            weight += 1.0
        assert row_of(strategy, suite)[1] != [0, 0]
        with torch.no_grad():
            weight.copy_(before)


def test_moe__each_image_decides_for_itself_in_any_batches(routed, tmp_path):
    strategy, result, _ = routed
    chosen = routing_of(strategy).auto_selector
    first = row_of(strategy, ZeroShotSuite(tasks(), batch_size=5))[0]
    chosen.granularity = "batch"
    assert row_of(strategy, ZeroShotSuite(tasks(), batch_size=3))[0] == first
    chosen.granularity = "sample"


def test_moe__resumed_inside_is_uninterrupted(routed, tmp_path):
    _, result, _ = routed
    build = lambda *plugins: experts(plugins=plugins)  # noqa: E731
    suites = lambda: [ZeroShotSuite([*tasks(), captions()], batch_size=4)]  # noqa: E731
    with pytest.raises(Interrupted):
        go(*build(StopPlugin(train=8)), tmp_path, suites(), checkpoint_iterations=2)
    strategy, benchmark = build(StopPlugin())
    again = go(
        strategy, benchmark, tmp_path, suites(), resume=True, checkpoint_iterations=2
    )
    assert str(again.results["suites"]) == str(result.results["suites"])


def test_moe__suites_leave_the_run_alone(routed, tmp_path):
    strategy, result, _ = routed
    plain, benchmark = experts()
    other = go(plain, benchmark, tmp_path, ())
    assert_same_weights(plain.model, strategy.model)
    assert str(other.matrices) == str(result.matrices)


class Alone(Suite):
    """Encodes images by itself, or compares them with plain texts."""

    def __init__(self, asks=False):
        super().__init__("alone")
        self.asks = asks

    def identity(self):
        return {}

    def evaluate(self, model, *, device="cpu", autocast=None):
        if self.asks:
            with self.features.of(model) as encoded:
                encoded.texts(["ab"])
        return {}


def test_moe__refusals(routed, tmp_path):
    strategy, _, _ = routed
    with pytest.raises(ValueError, match="does not ask its features for images"):
        row_of(strategy, Alone())
    with pytest.raises(ValueError, match="compare features of Encoded.matched"):
        row_of(strategy, Alone(asks=True))
    own, benchmark = experts(plugin_options={"router_for_eval": lambda strategy: 0})
    with pytest.raises(ValueError, match="a rule for batches of a stream"):
        go(own, benchmark, tmp_path / "run", [Alone()])
    assert not (tmp_path / "run").exists()


def test_coleclip__is_the_frozen_model_on_names_never_learned(tmp_path):
    model = moe_runs.vit()
    suite = ZeroShotSuite([*tasks(own=True), captions()])
    base = suite.evaluate(model)
    strategy = class_strategy(model, CoLeCLIP, eval_label_space="own")
    result = go(strategy, benchmark_for(model), tmp_path, [suite])
    rows = list(result.results["suites"]["zero-shot"].values())
    assert [text(row) for row in rows] == [text(base)] * 4
    own = accuracies(result)
    for step in range(4):  # the data sets that it has not seen
        for k in range(step, 3):
            assert own[step][k] == pytest.approx(rows[step][f"domain {k}"]["acc1"])


@pytest.mark.parametrize("order", [("en", "de"), ("de", "en"), ("de", "el")])
def test_language_adapters__texts_of_suites_are_english(order, tmp_path):
    torch.manual_seed(0)
    model = languages.tiny_model()
    strategy = ContrastiveTemplate(
        model=model,
        plugins=[LanguageAdapterPlugin("mla")],
        optimizer=languages.adamw,
        train_mb_size=4,
        budget_iterations=4,
        evaluator=evaluator(),
    )
    benchmark = languages.language_stream(model, order, features=False)
    suite = ZeroShotSuite(
        [ZeroShotTask.classification("t", items(0), languages.WORDS["en"][:3], ["{}"])]
    )
    seen = []

    class Watch(SupervisedPlugin):
        stateless = True

        def before_eval(self, strategy, **kwargs):
            adapters = strategy.model.language_adapters
            with adapters.languages(languages.CODES["en"]):
                seen.append(text(ZeroShotSuite(suite.tasks).evaluate(strategy.model)))

    strategy.plugins.append(Watch())
    result = go(strategy, benchmark, tmp_path, [suite])
    rows = result.results["suites"]["zero-shot"].values()
    assert [text(row) for row in rows] == seen
    with _routing(strategy, suite), suite.features.of(model) as encoded:
        base = encoded.texts(["red cat"], -1)
        given = encoded.texts(["red cat"], languages.CODES["en"])
        assert torch.equal(base, given) == ("en" not in order)


def test_image_context__of_a_plain_plugin_is_for_suites_too(tmp_path):
    """A plugin under the former name, which lets images pass another LoRA."""
    from avalanche_clip.models.peft.lora import attach_lora

    model = moe_runs.vit()
    torch.manual_seed(0)
    lora = attach_lora(model, "image", rank=2)
    for branch in lora.branches():
        for parameter in branch.parameters():
            torch.nn.init.normal_(parameter)

    class Skips(SupervisedPlugin):
        stateless = True

        def image_context(self, strategy):
            return lora.using_ids(image=-1)

    from avalanche_clip.training.templates.class_name import ClassNameTemplate

    strategy = class_strategy(model, ClassNameTemplate, plugins=[Skips()])
    suite = ZeroShotSuite(tasks())
    found = row_of(strategy, suite)[0]
    with lora.using_ids(-1):
        assert alone(model) == found
    assert alone(model) != found
