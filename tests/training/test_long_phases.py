"""What takes long beside the steps: it is seen, booked, and announced."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import make_image_text_dataset
from avalanche_clip.benchmarks.teacher.precompute import precompute_teacher_features
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.common import progress as module
from avalanche_clip.common.arrays import read_npy, seal_npy
from avalanche_clip.common.progress import silenced
from avalanche_clip.evaluation import ZeroShotSuite, ZeroShotTask
from avalanche_clip.evaluation.loop import evaluate_retrieval
from avalanche_clip.models.text.learning import count_words, train_bpe
from avalanche_clip.training import ContrastiveEWC, Patching
from avalanche_clip.training.supervised import ZSCL
from avalanche_clip.training.templates.clip_template import CLIPTemplate
from tests.evaluation.suites.test_zero_shot import captioned, classes
from tests.helpers import fit, stub_benchmark, stub_model, train_stream
from tests.models.selectors import domain, learned
from tests.training import small_runs
from tests.training.classes import class_benchmark, class_strategy
from tests.web_folders import write_web_folder


@pytest.fixture
def bars(monkeypatch):
    """All bars that are opened; short ones, too."""
    found = []

    class Seen(module.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            found.append(self)

    monkeypatch.setattr(module, "tqdm", Seen)
    return found


def full(bars, name):
    """Totals of the bars of a name, which all went to their end."""
    totals = [b.total for b in bars if b.desc == name and b.n == b.total]
    assert len(totals) == sum(b.desc == name for b in bars) > 0
    return totals


def test_fisher_pass(bars):
    fit(ContrastiveEWC, stub_benchmark((9, 14)), fisher_batch_size=4)
    assert full(bars, "Fisher pass") == [2, 3]
    bars.clear()
    plan = {"fisher_batch_size": 4, "fisher_batches": 7}
    fit(ContrastiveEWC, stub_benchmark((9, 14)), **plan)
    assert full(bars, "Fisher pass") == [7, 7]


def test_patching_search(bars):
    fit(Patching, stub_benchmark((8, 8, 8)), steps=2)
    assert full(bars, "patching search") == [11]
    assert len(full(bars, "encoding")) == 22
    assert "ranking" in {b.desc for b in bars}


def test_selector(bars):
    selector = learned(2)
    assert full(bars, "selector, reference") == [40]
    assert full(bars, "selector, task 0") == full(bars, "selector, task 1") == [30]
    selector.calibrate({1: domain(1)})
    assert full(bars, "selector, threshold of task 1") == [3]


def test_selector__statistics_of_loaders_and_tensors(bars):
    from tests.models.selectors import SHORT, Pixels

    for images in (domain(1, 20), list(domain(1, 20).split(8))):
        selector = module_selector(Pixels(standardize=True), SHORT)
        selector.fit_reference(images, deterministic=True)
    assert full(bars, "selector, statistics") == [3, 3]


def module_selector(extractor, training):
    from avalanche_clip.models import AutoSelector

    return AutoSelector(extractor, training=training, hidden=5)


def test_texts_of_a_teacher_and_class_vectors(bars):
    texts = [f"text {number}" for number in range(600)]
    benchmark = stub_benchmark((8, 8))
    model = stub_model()
    model.pretrained = "stub"
    options = {"reference_images": benchmark.test_stream, "reference_texts": texts}
    fit(ZSCL, benchmark, 1, model=model, warmup_iterations=0, **options)
    assert full(bars, "teacher's texts") == [3]
    model = stub_model()
    data = class_benchmark(model)
    strategy = class_strategy(model)
    strategy.eval([data.test_stream[0]])
    assert full(bars, "class vectors")


def test_evaluation_of_a_data_set_and_of_suites(bars):
    model = stub_model()
    data = stub_benchmark((8,), model=model).test_stream[0].dataset
    evaluate_retrieval(model, data, batch_size=4)
    assert full(bars, "encoding") == [2] and full(bars, "ranking")[-1:] == [1]
    tasks = [classes(), ZeroShotTask.retrieval("texts", captioned())]
    suite = ZeroShotSuite(tasks, batch_size=8)
    suite.evaluate_many({"a": model, "b": model})
    assert full(bars, "zero-shot") == [2, 2, 2]
    assert full(bars, "encoding images") == [4, 3]
    assert full(bars, "encoding texts")


def test_index_of_shards(bars, tmp_path):
    from tests.web_folders import picture

    samples = [{"png": picture(i), "cls": b"0"} for i in range(3)]
    folder = tmp_path / "web"
    write_web_folder(folder, samples, classes=["a", "b"], templates=["{}"])
    ZeroShotTask.web(folder, "web")
    assert full(bars, "reading archives") == [2]


def test_vocabulary_of_a_language(bars):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = count_words(["a cat sat", "a mat", "a mat"], tokenizer)
    assert full(bars, "words") == [2]
    assert train_bpe(words, 9, alphabet="acmst").merges
    assert full(bars, "tokens") == [9]
    # where the words give no more, the bar just ends
    train_bpe(words, 90, alphabet="acmst")
    assert bars[-1].n < bars[-1].total == 90


def test_files_that_are_checked(bars, tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6))
    seal_npy(tmp_path / "rows.npy", {"a": 1})
    assert full(bars, f"checking {tmp_path / 'rows.npy'}") == [48]
    read_npy(tmp_path / "rows.npy")


# ----------------------------------------------------------------- feature stores
def words(count=10):
    pictures = torch.rand(count, 3, 8, 8)
    captions = [f"w{number}" for number in range(count)]
    return make_image_text_dataset(list(zip(pictures, captions, strict=True)))


def test_feature_store__is_seen_and_booked_once(bars, tmp_path):
    from tests.benchmarks.teacher.test_precompute import Teacher

    budget = ComputeBudget()
    model, data = Teacher(), words()
    options = {"batch_size": 4, "budget": budget}
    precompute_teacher_features(model, data, tmp_path / "store", **options)
    assert full(bars, "teacher's images") == full(bars, "teacher's texts") == [10]
    booked = {"images": 10, "texts": 10, "steps": 0}
    assert budget.experiences == [{"teacher": booked}]
    # a finished store costs nothing, and what came before belongs to the first step
    precompute_teacher_features(model, data, tmp_path / "store", **options)
    budget = ComputeBudget()
    budget.load_state_dict(budget.state_dict())
    budget.spend("teacher", images=1, texts=2)
    again = ComputeBudget()
    again.load_state_dict(budget.state_dict())
    for account in (budget, again):
        account.start_experience()
        account.spend("train", images=4, texts=4, steps=1)
        account.start_experience()
        assert [sorted(e) for e in account.experiences] == [["teacher", "train"], []]


def test_feature_store__what_was_there_is_not_booked_again(tmp_path):
    from tests.benchmarks.teacher.test_precompute import Teacher

    class Stopped(Teacher):
        def encode_image(self, image, normalize=True):
            if self.encoded["image"] >= 6:
                raise InterruptedError
            return super().encode_image(image, normalize)

    data, budget = words(), ComputeBudget()
    with pytest.raises(InterruptedError):
        precompute_teacher_features(Stopped(), data, tmp_path / "s", batch_size=2)
    whole = Teacher()
    options = {"batch_size": 2, "budget": budget}
    precompute_teacher_features(whole, data, tmp_path / "s", **options)
    (account,) = budget.experiences
    assert account["teacher"]["images"] == whole.encoded["image"] <= 10
    assert account["teacher"]["texts"] == whole.encoded["text"] < 10


# -------------------------------------------------------------------- evaluations
def test_evaluations_are_booked_beside_the_budget(tmp_path):
    strategy, result = small_runs.go(tmp_path / "run")
    booked = result.results["evaluation_cost"]
    rows, images = 4, 2 * 3 * 6  # evaluations; streams, steps, pairs
    assert booked == {"images": rows * images, "texts": rows * images}
    plain = fit(small_runs.supervised.Sequential, stub_benchmark((16, 20, 24)))
    keys = ("total_macs", "full_macs")
    macs = strategy.model.macs()
    for key in keys:
        mean = strategy.compute.report(macs)[key]
        assert mean == 2 * plain.compute.report(plain.model.macs())[key]
    with pytest.raises(small_runs.Interrupted):
        small_runs.go(tmp_path / "cut", stop={"train": 9})
    _, resumed = small_runs.go(tmp_path / "cut", resume=True)
    assert resumed.results["evaluation_cost"] == booked


def test_evaluations_of_class_names_count_prompts_that_are_encoded():
    model = stub_model()
    data = class_benchmark(model)
    strategy = class_strategy(model)
    strategy.eval(data.test_stream)
    found = dict(strategy.compute.evaluation)
    assert found["images"] == sum(len(e.dataset) for e in data.test_stream)
    prompts = data.class_prompts
    ids = range(len(prompts))
    assert 0 < found["texts"] <= sum(len(prompts.templates(i)) for i in ids)
    strategy.eval(data.test_stream)  # class vectors of equal weights are kept
    assert strategy.compute.evaluation["texts"] == found["texts"]
    assert strategy.compute.evaluation["images"] == 2 * found["images"]
    assert strategy.compute.experiences == []


def test_evaluations_of_suites_are_booked(tmp_path):
    suite = ZeroShotSuite([classes()], batch_size=8)
    strategy, result = small_runs.go(tmp_path, run={"suites": [suite]})
    streams = 4 * 2 * 3 * 6
    booked = result.results["evaluation_cost"]
    assert booked["images"] == streams + suite.features.encoded["images"]
    assert booked["texts"] == streams + suite.features.encoded["texts"]


def test_evaluations_with_stored_features_encode_no_image():

    from avalanche_clip.training.methods.cll_clip.strategy import CLLCLIP

    strategy = fit(small_runs.supervised.Sequential, steps=1)
    batch = {"text": torch.zeros(3, 2), "teacher_image": torch.zeros(2, 4)}
    CLLCLIP._count_evaluated(strategy, _Batch(batch))
    assert strategy.compute.evaluation == {"images": 0, "texts": 3}
    CLIPTemplate._count_evaluated(strategy, _Batch(batch))
    assert strategy.compute.evaluation == {"images": 2, "texts": 6}


class _Batch(dict):
    def __len__(self):
        return 2


# ------------------------------------------------------------------ announcements
def test_announced__once_and_only_what_takes_much(capsys):
    data = (40, 40, 40)
    long = fit(ContrastiveEWC, stub_benchmark(data), budget_iterations=4)
    said = capsys.readouterr().err
    assert said.count("Fisher pass: 40 samples, 2.5 times what step 1") == 1
    assert said.count("Fisher pass") == 1 and "fisher_batches" in said
    short = fit(ContrastiveEWC, stub_benchmark(data), 1, budget_iterations=40)
    with silenced():
        fit(ContrastiveEWC, stub_benchmark(data), 1, budget_iterations=4)
    assert capsys.readouterr().err == ""
    assert long.compute.report()["steps"] == [4, 4, 4]
    assert short.compute.report()["steps"] == [40]


def test_announced__the_search_and_the_selector(capsys):
    fit(Patching, stub_benchmark((8, 8, 8)), steps=2)
    said = capsys.readouterr().err
    assert "Patching search: 132 samples, 6.6 times what step 2" in said
    from tests.training.methods.moe_adapters.test_runs import moe_runs

    strategy, benchmark = moe_selector(moe_runs)
    train_stream(strategy, benchmark)
    said = capsys.readouterr().err
    assert said.count("Selector: 12 steps of 4 reference images, then 9 for") == 1


def moe_selector(moe_runs):
    from avalanche_clip.models import AutoSelector, SelectorTraining
    from avalanche_clip.training.plugins import MoEAdaptersPlugin
    from avalanche_clip.training.templates import ClassNameTemplate

    plan = SelectorTraining(reference_iterations=12, task_iterations=9, batch_size=4)
    plugin = MoEAdaptersPlugin(
        moe_runs.ADAPTERS,
        selector=AutoSelector("model", training=plan, hidden=5),
        reference_images=moe_runs.reference(),
    )
    model = moe_runs.vit()
    strategy = ClassNameTemplate(model=model, plugins=[plugin], **moe_runs.options())
    return strategy, moe_runs.domains(model)


def test_values__do_not_depend_on_what_is_shown():
    shown = fit(ContrastiveEWC, stub_benchmark((9, 14)))
    with silenced():
        quiet = fit(ContrastiveEWC, stub_benchmark((9, 14)))
    for one, other in zip(
        shown.model.parameters(), quiet.model.parameters(), strict=True
    ):
        np.testing.assert_array_equal(one.detach(), other.detach())
