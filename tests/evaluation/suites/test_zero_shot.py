"""The zero-shot suite: any tasks, each picture and text once, nothing ignored."""

import csv
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from avalanche_clip.benchmarks import ClassPrompts, emoji_dataset
from avalanche_clip.evaluation import ZeroShotSuite, ZeroShotTask
from avalanche_clip.evaluation.functional import retrieval_metrics
from avalanche_clip.evaluation.suites import datacomp_tasks, embedded_tasks
from avalanche_clip.models import create_dual_encoder
from tests.helpers import IMAGE_SIZE, stub_model
from tests.web_folders import npy, picture, write_web_folder

NAMES = ["ab", "bc", "cd", "de", "ef", "fg"]


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def labelled(count=30, seed=0):
    labels = np.arange(count) % len(NAMES)
    return list(zip(pictures(count, seed), labels.tolist(), strict=True))


def captioned(count=20, seed=1):
    words = [
        [NAMES[i % 6] + "xyz"[i % 3], "m" + NAMES[i % 5]][: 1 + i % 2]
        for i in range(count)
    ]
    return list(zip(pictures(count, seed), words, strict=True))


def classes(name="classes", data=None, names=NAMES, templates=("a {}", "{}"), **more):
    return ZeroShotTask.classification(
        name, data or labelled(), names, templates, **more
    )


def same(one, other):
    return one.keys() == other.keys() and all(
        one[task].keys() == other[task].keys()
        and all(
            one[task][m] == v or (math.isnan(one[task][m]) and math.isnan(v))
            for m, v in other[task].items()
        )
        for task in one
    )


# ------------------------------------------------------------------------- costs
def test_suite__encodes_each_picture_and_each_text_once_per_state():
    tasks = [
        classes(),
        classes("again", templates="a {c}", names=NAMES[::-1]),
        ZeroShotTask.retrieval("texts", captioned()),
    ]
    model, suite = stub_model(), ZeroShotSuite(tasks, batch_size=7)
    first = suite.evaluate(model)
    prompts = {f"a {n}" for n in NAMES} | set(NAMES)
    captions = {t for _, texts in captioned() for t in texts}
    assert suite.features.encoded == {
        "images": 30 + 30 + 20,
        "texts": len(prompts | captions),
    }
    assert same(suite.evaluate(model), first)
    assert suite.features.encoded["images"] == 80
    model.reinitialize(1)
    assert not same(suite.evaluate(model), first)
    assert suite.features.encoded["images"] == 160


def test_suite__tasks_on_the_same_drawings_share_them():
    suite = ZeroShotSuite(["emoji-2014", "emoji-later", "emoji-Flags", "emoji-2014"])
    assert [task.name for task in suite.tasks] == [
        *("emoji-2014", "emoji-later", "emoji-Flags"),
    ]
    model = create_dual_encoder("tiny-emoji", "emoji-2010")
    found = suite.evaluate(model)
    assert suite.features.encoded == {"images": 1192, "texts": 1192}
    # alone, a task reads its own drawings only, and finds the same
    alone = ZeroShotSuite("emoji-2014")
    assert same(alone.evaluate(model), {"emoji-2014": found["emoji-2014"]})
    assert alone.features.encoded == {"images": 139, "texts": 139}


def test_suite__encodes_again_what_the_changed_tower_makes():
    tasks = [ZeroShotTask.retrieval("t", emoji_dataset(["noto"], range(12)))]
    model, suite = create_dual_encoder("tiny-emoji", "emoji-2010"), ZeroShotSuite(tasks)

    def encoded():
        before = dict(suite.features.encoded)
        suite.evaluate(model)
        return [n - before[kind] for kind, n in suite.features.encoded.items()]

    assert encoded() == [12, 12] and encoded() == [0, 0]
    named = dict(model.named_parameters())
    first = {model.tower_of(name): name for name in reversed(named)}
    named[first["text"]].data.view(-1)[0] += 1
    assert encoded() == [0, 12]
    named[first["image"]].data.view(-1)[0] += 1
    assert encoded() == [12, 0]
    model.logit_scale.data += 1
    assert encoded() == [0, 0]


def test_suite__parts_of_it_may_share_its_features():
    model = create_dual_encoder("tiny-emoji", "emoji-2010")
    suite = ZeroShotSuite(["emoji-Flags", "emoji-Activities", "emoji-2014"])
    found = suite.evaluate(model)
    texts = suite.features.encoded["texts"]
    suite.features.results.clear()
    for (
        task
    ) in suite.tasks:  # their drawings are others: one of them has the first name
        part = ZeroShotSuite([task])
        part.features = suite.features
        assert same(part.evaluate(model), {task.name: found[task.name]})
    assert suite.features.encoded["texts"] == texts


# ----------------------------------------------------------------------- equality
@pytest.mark.parametrize("size", [1, 8, 100])
def test_suite__gives_the_same_in_any_batches_and_row_order(size):
    model, order = stub_model(), np.random.default_rng(0).permutation(30)
    data, texts = labelled(), captioned()
    tasks = [classes(data=data), ZeroShotTask.retrieval("texts", texts)]
    wanted = ZeroShotSuite(tasks).evaluate(model)
    tasks = [
        classes(data=[data[i] for i in order]),
        ZeroShotTask.retrieval("texts", texts[::-1]),
    ]
    found = ZeroShotSuite(tasks, batch_size=size).evaluate(model)
    for task in wanted:
        for metric, value in wanted[task].items():
            if metric.endswith(("_low", "_high")) and "recall" in metric:
                continue  # a bootstrap draws rows by their place
            assert found[task][metric] == pytest.approx(value, nan_ok=True), metric


def test_values__are_those_of_the_functional_metrics():
    model = stub_model().eval()
    task, texts = classes(), captioned()
    suite = ZeroShotSuite([task, ZeroShotTask.retrieval("texts", texts)])
    found = suite.evaluate(model)
    with torch.no_grad():
        images = model.encode_image(torch.stack([p for p, _ in labelled()]))
        prompts = model.tokenizer([f"a {n}" for n in NAMES]), model.tokenizer(NAMES)
        vectors = sum(model.encode_text(tokens) for tokens in prompts)
    best = (images @ torch.nn.functional.normalize(vectors, dim=1).T).argmax(dim=1)
    hits = (best.numpy() == np.arange(30) % 6).mean()
    assert found["classes"]["acc1"] == pytest.approx(hits)
    with torch.no_grad():
        images = model.encode_image(torch.stack([p for p, _ in texts]))
        flat = list(dict.fromkeys(t for _, own in texts for t in own))
        words = model.encode_text(model.tokenizer(flat))
    pairs = [(flat.index(t), i) for i, (_, own) in enumerate(texts) for t in own]
    wanted = retrieval_metrics(images, words, np.array(pairs))
    for metric, value in wanted.items():
        assert found["texts"][metric] == pytest.approx(value), metric


def values_and_encoded(seed):
    """What a suite finds, twice, and how much it encoded."""
    suite = ZeroShotSuite(
        [classes(), ZeroShotTask.retrieval("t", captioned())], batch_size=8
    )
    found = suite.evaluate(stub_model(seed))
    return found, suite.evaluate(stub_model(seed)), suite.features.encoded


def test_suite__reads_with_workers_too():
    tasks = [classes(), ZeroShotTask.retrieval("t", captioned())]
    found = ZeroShotSuite(tasks, batch_size=8, num_workers=2).evaluate(stub_model())
    assert same(found, ZeroShotSuite(tasks, batch_size=8).evaluate(stub_model()))


# -------------------------------------------------------------------------- tasks
def write(folder, name, count=12, **options):
    facts = datacomp_tasks()["tasks"][name]
    samples = [
        {"png": picture(n, size=16), "cls": str(n % 6), "npy": npy([n % 3 * 5, n])}
        for n in range(count)
    ]
    names = {"classes": NAMES, "templates": ["a {c}", "{c}"]}
    if facts["metric"] == "mean_R@1":
        samples = [
            {"png": s["png"], "txt": f"{n}\n{n} b"} for n, s in enumerate(samples)
        ]
        options["kind"], names = "retrieval", {}
    write_web_folder(folder / facts["folder"], samples, **names, **options)


def test_named_tasks__are_read_where_they_are_and_reported_where_not(tmp_path):
    facts = datacomp_tasks()
    shifts = facts["aggregates"]["ImageNet dist. shifts"]
    for name in ("fmow", "iwildcam", "flickr30k", "pets", *shifts):
        write(tmp_path, name)
    suite = ZeroShotSuite("tic-clip", data=tmp_path)
    assert {t.name for t in suite.tasks} == {
        *("fmow", "iwildcam", "flickr30k", "pets", *shifts),
    }
    assert len(suite.missing) == 18 and "cars" in suite.missing
    assert str(tmp_path / "wds_cars_test/test/nshards.txt") in suite.missing["cars"]
    found = suite.evaluate(create_dual_encoder("tiny-emoji", "emoji-2010"))
    main = {task: next(iter(values)) for task, values in found.items()}
    assert main["fmow"] == "worst_group_acc1" and main["iwildcam"] == "macro_f1"
    assert main["pets"] == "mean_per_class_recall" and main["flickr30k"] == "mean_R@1"
    # region 5 is no region: groups are 0 of samples 0, 3, .. and 10 of 2, 5, ..
    fmow = next(task for task in suite.tasks if task.name == "fmow")
    assert set(fmow.groups) == {-1, 0, 10}
    mean = np.mean([found[name]["acc1"] for name in shifts])
    assert found["ImageNet dist. shifts"] == {"mean": pytest.approx(mean), "count": 6}
    names = [name for name in found if " of " in name]
    assert names == ["average over 28 (10 of 28)", "ImageNet and its shifts (6 of 7)"]
    assert found["ImageNet and its shifts (6 of 7)"]["mean"] == pytest.approx(mean)
    mean = np.mean([next(iter(found[t.name].values())) for t in suite.tasks])
    assert found[names[0]] == {"mean": pytest.approx(mean), "count": 10}


def test_table_of_tasks__is_that_of_the_papers():
    facts = datacomp_tasks()
    tasks, averages = facts["tasks"], facts["aggregates"]
    assert (len(tasks), len(averages["average over 28"])) == (38, 28)
    assert set(averages["average over 28"]) < set(averages["average over 38"])
    assert len(averages["ImageNet and its shifts"]) == 7
    kinds = {name: fact["metric"] for name, fact in tasks.items()}
    recalls = {n for n, m in kinds.items() if m == "mean_per_class_recall"}
    assert recalls == {"caltech101", "fgvc_aircraft", "flowers", "pets"}
    assert sum(m == "acc1" for m in kinds.values()) == 27
    assert tasks["sun397"]["size"] == 108754 and tasks["objectnet"]["classes"] == 113


def test_tasks__without_data_are_missing_and_a_given_one_takes_their_place():
    suite = ZeroShotSuite(["datacomp", classes("cars")])
    assert len(suite.missing) == 37 and "cars" not in suite.missing
    assert "ZeroShotTask.association" in suite.missing["winogavil"]
    assert "wds_vtab-dtd_test" in suite.missing["dtd"]
    partly = ["average over 38 (1 of 38)", "average over 28 (1 of 28)"]
    assert list(suite.evaluate(stub_model())) == ["cars", *partly]


def test_tasks__of_every_form_of_data(tmp_path):
    model, wanted = stub_model(), None
    shown, labels = pictures(30), np.arange(30) % 6

    class Torchvision(list):
        classes, targets = NAMES, labels.tolist()

    prompts = {name: [f"a {name}", name] for name in NAMES}
    for task in (
        classes(),
        ZeroShotTask.classification(
            "classes", Torchvision(labelled()), templates=["a {c}", "{}"]
        ),
        classes(data=TensorDataset(shown, torch.from_numpy(labels))),
        classes(templates=[lambda name: f"a {name}", "{c}"]),
        classes(templates=prompts),
        classes(names=ClassPrompts(NAMES, ["a {}", "{}"]), templates=None),
    ):
        found = ZeroShotSuite(task).evaluate(model)
        assert wanted is None or same(found, wanted)
        wanted = found
    data = emoji_dataset(["noto"], range(5), captions="all")
    task = ZeroShotTask.retrieval("emoji", data)
    assert len(task.texts[0]) > 1 and task.pool[0].size == (48, 48)


def test_association__over_all_cues():
    shown = pictures(8)
    data = [(shown[:3], "ab", [1, 0, 1]), (list(shown[3:]), "cd", [0, 0, 1, 0, 0])]
    task = ZeroShotTask.association("cues", data)
    assert len(task.pool) == 8 and torch.equal(task.pool[4], shown[4])
    found = ZeroShotSuite(task).evaluate(stub_model())["cues"]
    assert found["count"] == 8 and 0 <= found["jaccard"] <= 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ZeroShotSuite("emoji-later2"), "Did you mean 'emoji-later'"),
        (lambda: ZeroShotSuite([]), "There are no tasks"),
        (lambda: ZeroShotSuite([classes(), classes()]), "'classes' occurs more than"),
        (lambda: classes(names=NAMES[:5]), "holds 0 to 5"),
        (lambda: classes(names=None), "has no 'classes'"),
        (lambda: classes(templates=[]), "no templates"),
        (lambda: classes(templates="a photo"), r"must hold \{\} exactly once"),
        (lambda: classes(templates={"ab": ["x"]}), r"class_names \['bc', 'cd'"),
        (
            lambda: classes(templates=dict.fromkeys([*NAMES, "x"], "y")),
            "names in templ",
        ),
        (
            lambda: classes(names=ClassPrompts(NAMES), templates="a {}"),
            "leave templates",
        ),
        (lambda: classes(groups=[0.5] * 30), "groups of 'classes' of shape"),
        (lambda: classes(metric="acc"), "use one of 'acc1', 'acc5'"),
        (lambda: classes(metric="worst_group_acc1"), "is unknown"),
        (lambda: classes(groups=[0, 1]), "groups of 'classes' of shape"),
        (lambda: ZeroShotTask.classification("t", [], ["a"]), "no pictures in the"),
        (
            lambda: classes(
                data=[(p, 0) for p in pictures(3)], names=list("abcd"), metric="acc5"
            ),
            "is unknown",
        ),
        (lambda: ZeroShotTask.retrieval("t", [(pictures(1)[0], [])]), "captions of"),
        (lambda: ZeroShotTask.association("t", [(pictures(2), "a", [0, 0])]), "right"),
        (lambda: ZeroShotTask.association("t", [(pictures(2), "a", [1])]), "1 marks"),
    ],
)
def test_tasks__that_cannot_be_scored_are_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_web_task__groups_need_facts(tmp_path):
    write(tmp_path, "fmow")
    folder = tmp_path / "wds_wilds-fmow_test"
    with pytest.raises(ValueError, match="0..1"):
        ZeroShotTask.web(folder, group_field=2)
    with pytest.raises(ValueError, match="groups need a group_field"):
        ZeroShotTask.web(folder, ignored_groups=[5])
    with pytest.raises(ValueError, match="metric of the task"):
        ZeroShotTask.web(folder, metric="jaccard")
    task = ZeroShotTask.web(folder, "mine")
    assert (task.name, task.metric, task.groups) == ("mine", "acc1", None)
    assert ZeroShotTask.web(folder).name == "wds_wilds-fmow_test"


# ----------------------------------------------------------------------- identity
def test_identity__tells_data_prompts_and_settings():
    def identity(**options):
        return ZeroShotSuite([classes(**options)]).identity()

    was = identity()
    assert was == identity() and was["missing"] == []
    data = labelled()
    swapped = [(p, (k + 1) % 6) for p, k in data]
    for change in (
        {"data": data[::-1]},
        {"data": swapped},
        {"data": labelled(seed=9)},
        {"templates": "a {}"},
        {"names": NAMES[::-1]},
        {"metric": "acc5"},
        {"groups": [0] * 30},
    ):
        assert identity(**change) != was, change
    assert ZeroShotSuite(["cars", classes()]).identity()["missing"] == ["cars"]


def test_embedded_tasks__cover_the_emoji():
    makers = embedded_tasks()
    steps = [m for m in makers if m.startswith("emoji-20")]
    assert len(steps) == 6 and len(makers) == 6 + 1 + 9 + 1
    sizes = {name: len(make().rows) for name, make in makers.items()}
    assert sum(sizes[s] for s in steps) == 1911 and sizes["emoji-later"] == 1192
    assert sizes["held-out-icons"] == 968
    task = makers["emoji-Flags"]()
    assert task.prompts[task.labels[3]] == (task.prompts[3][0],)


# -------------------------------------------------------------------------- table
def test_table__has_a_row_per_metric(tmp_path):
    suite = ZeroShotSuite([classes(), ZeroShotTask.retrieval("t", captioned())])
    models = {"a": stub_model(0), "b": partial(stub_model, 1)}
    results = suite.evaluate_many(models)
    assert same(results["b"], suite.evaluate(stub_model(1)))
    rows = suite.table(results, tmp_path / "table.csv")
    assert [tuple(row) for row in rows[:1]] == [
        ("checkpoint", "task", "metric", "value", "count", "low", "high")
    ]
    by = {(r["checkpoint"], r["task"], r["metric"]): r for r in rows}
    row = by["b", "t", "text_to_image_R@1"]
    assert row["count"] == results["b"]["t"]["texts"] != 20
    assert by["a", "t", "image_to_text_R@5"]["count"] == 20
    assert by["a", "classes", "acc1"]["low"] == results["a"]["classes"]["acc1_low"]
    assert by["a", "t", "rsum"]["low"] is None
    assert not any(key[2].endswith(("_low", "_high", "count")) for key in by)
    with open(tmp_path / "table.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    assert len(stored) == len(rows) and stored[0]["value"] == str(rows[0]["value"])
    assert stored[[r["metric"] for r in rows].index("rsum")]["low"] == ""


def test_identity__knows_each_picture_of_tar_shards_by_its_size(tmp_path):
    names = {"classes": ["a", "b"], "templates": ["{c}"], "shards": 1}

    def identity(folder, changed=None):
        samples = [{"cls": "1", "png": picture(n)} for n in range(40)]
        if changed is not None:
            samples[changed]["png"] = picture(99, size=9)
        write_web_folder(tmp_path / folder, samples, **names)
        return ZeroShotTask.web(tmp_path / folder, "same").identity()

    assert identity("one") == identity("two") != identity("three", changed=1)


def test_suite__refuses_data_that_no_task_reads(tmp_path):
    for tasks in (["held-out-icons"], classes(), ["cifar10", classes("cifar10")]):
        with pytest.raises(ValueError, match="data=.* has no effect"):
            ZeroShotSuite(tasks, data=tmp_path)
    found = ZeroShotSuite(["held-out-icons", "cifar10"], data=tmp_path)
    assert list(found.missing) == ["cifar10"]
