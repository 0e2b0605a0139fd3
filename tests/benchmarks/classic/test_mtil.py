"""MTIL and X-TAIL from data sets on disk."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic.mtil import mtil, x_tail
from avalanche_clip.benchmarks.datasets.mtil import (
    MTIL_NAMES,
    MTIL_ORDERS,
    MTIL_TEMPLATES,
    X_TAIL_NAMES,
    X_TAIL_TEMPLATES,
    read_mtil_domain,
)
from tests.benchmarks.datasets.mtil import coop_files, disk
from tests.benchmarks.small_streams import CharModel, column, sizes_of
from tests.refused import refused
from tests.training.classes import domains as small

pytestmark = pytest.mark.usefixtures("any_checksum")

LOTUS = "lotus"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    for name in MTIL_NAMES:
        disk.WRITERS[name](folder)
    return folder


@pytest.fixture(scope="module")
def benchmarks(root, x_root):
    """Both orders and X-TAIL; building them decodes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        disk.accept_any_checksum(patch)
        return {
            "I": mtil(root, check="ignore"),
            "II": mtil(root, "II", check="ignore"),
            "x": x_tail(x_root, check="ignore"),
        }


def domains(benchmark):
    return [experience.domain for experience in benchmark.train_stream]


def test_mtil__orders(benchmarks):
    assert domains(benchmarks["I"]) == list(MTIL_NAMES)
    second = benchmarks["II"]
    assert domains(second) == [MTIL_NAMES[k] for k in MTIL_ORDERS["II"]]
    for stream in (second.train_stream, second.test_stream):
        found = [experience.dataset_index for experience in stream]
        assert tuple(found) == MTIL_ORDERS["II"]
        assert [experience.task_label for experience in stream] == list(range(11))


def test_mtil__names_templates_and_data_are_the_readers(benchmarks, root):
    stream = benchmarks["I"].test_stream
    for experience, name in zip(stream, MTIL_NAMES, strict=True):
        domain = read_mtil_domain(name, root, check="ignore")
        assert experience.class_names == domain.class_names
        assert experience.templates == MTIL_TEMPLATES[name]
        local = column(experience) - experience.class_ids[0]
        assert (local == domain.test.targets).all()
        image, text = experience.dataset[0][:2]
        assert image.tobytes() == domain.test[0][0].tobytes()
        wanted = MTIL_TEMPLATES[name][0].replace("{}", domain.class_names[local[0]])
        assert text == wanted and image.mode == "RGB"


def test_mtil__some_data_sets(root):
    names = ["cars", "DTD", "Food101"]
    built = mtil(root, datasets=names, check="ignore")
    assert domains(built) == ["DTD", "Food", "StanfordCars"]
    built = mtil(root, "II", datasets=names, check="ignore")
    assert domains(built) == ["StanfordCars", "Food", "DTD"]
    assert [e.dataset_index for e in built.train_stream] == [2, 1, 0]
    built = mtil(root, ["Food", "dtd", "cars"], datasets=names, check="ignore")
    assert domains(built) == ["Food", "DTD", "StanfordCars"]
    few = mtil(root, datasets=names, shots=1, check="ignore")
    assert sizes_of(few.train_stream) == [3, 3, 3]
    built = mtil(root, np.array([1, 2, 0]), datasets=names, check="ignore")
    assert domains(built) == ["Food", "StanfordCars", "DTD"]


def test_mtil__data_sets_as_objects(root):
    texture = read_mtil_domain("DTD", root, check="ignore")
    own = (texture.test, texture.test, texture.class_names, ["{}?"], "mine")
    built = mtil(root, datasets=[own, "Food", texture], check="ignore")
    assert domains(built) == ["mine", "Food", "DTD"]
    assert built.train_stream[0].templates == ("{}?",)
    assert mtil(None, datasets=[own]).class_prompts.domain_names == ("mine",)
    refused("'II' is defined for", mtil, None, "II", datasets=[own])
    refused("root is None", mtil, None, datasets=["DTD"])


def test_mtil__one_directory_per_data_set(root):
    roots = {"dtd": root, "Pets": str(root)}
    built = mtil(roots, datasets=["OxfordPet", "DTD"], check="ignore")
    assert domains(built) == ["DTD", "OxfordPet"]
    with pytest.raises(ValueError, match="no directory for Food.*leave the data set"):
        mtil(roots, datasets=["Food"], check="ignore")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("III", "use one of 'I', 'II'"),
        ([0], "each of 0..1"),
        ([0, 0], "each of 0..1"),
        ([0.5, 1], "order is 0.5"),
        ([1, 2], "each of 0..1"),
        (["DTD", "DTD"], "each of 0..1"),
        (["DTD", "MNIST"], "Unknown data set 'MNIST'"),
    ],
)
def test_mtil__orders_that_are_none_are_refused(root, order, message):
    refused(message, mtil, root, order, datasets=["DTD", "Food"], check="ignore")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["DTD", "dtd"], "'DTD'.*more than once"),
        (["ImageNet"], "Unknown data set 'ImageNet'"),
        ("DTD", "list of names"),
        ([], "no datasets"),
    ],
)
def test_mtil__data_sets_that_are_none_are_refused(root, names, message):
    refused(message, mtil, root, datasets=names, check="ignore")


def test_x_tail__domains_templates_and_names(benchmarks):
    built = benchmarks["x"]
    assert domains(built) == list(X_TAIL_NAMES) and len(built.train_stream) == 10
    for experience in built.test_stream:
        assert experience.templates == (X_TAIL_TEMPLATES[experience.domain],)
    prompts = [built.class_prompts.prompts(e.class_ids)[0] for e in built.test_stream]
    assert 'a photo of a number: "0 - zero".' in prompts
    assert (
        "a centered satellite photo of Annual Crop Land satellite location." in prompts
    )
    assert built.shots == 16 and built.protocol == "multi_domain"


def test_x_tail__one_template_for_all(x_root):
    built = x_tail(
        x_root, datasets=["DTD", "MNIST"], templates="a photo of a {}.", check="ignore"
    )
    assert built.class_prompts.prompts()[:3] == [
        "a photo of a banded.",
        "a photo of a polka-dotted.",
        'a photo of a number: "0 - zero".',
    ]


def test_x_tail__equal_names_stay_two_classes(benchmarks):
    prompts = benchmarks["x"].class_prompts
    lotus = [i for i in prompts.ids if prompts.name(i) == LOTUS]
    assert [prompts.domain(i) for i in lotus] == ["Caltech101", "Flowers"]
    experiences = {e.domain: e for e in benchmarks["x"].test_stream}
    assert lotus[0] in experiences["Caltech101"].class_ids
    assert lotus[1] in experiences["Flowers"].class_ids
    assert lotus[1] not in experiences["Caltech101"].class_ids


def pictures(experience):
    """Colours of all training pictures of an experience."""
    items = [experience.dataset[k][0] for k in range(len(experience.dataset))]
    return [item.getpixel((3, 3)) for item in items]


@pytest.mark.parametrize("shots", [1, 3, 16])
def test_x_tail__every_class_has_all_its_shots(x_root, shots):
    names = ["Caltech101", "Flowers", "Aircraft"]
    built = x_tail(x_root, shots=shots, datasets=names, check="ignore")
    for experience in built.train_stream:
        counts = np.unique(column(experience), return_counts=True)[1]
        assert counts.tolist() == [shots] * len(experience.class_ids)
        # Three images per class are there (one in Aircraft): more are repeats.
        there = 1 if experience.domain == "Aircraft" else 3
        distinct = len(set(pictures(experience))) / len(experience.class_ids)
        assert distinct <= min(there, shots)
        if shots <= there:
            assert distinct == shots
    prepared = prepare_benchmark(built, CharModel())  # ids are unique everywhere
    assert len(prepared.train_stream) == 3


def test_x_tail__draws_depend_on_the_seed_alone(x_root):
    def drawn(order="I", seed=42, names=("Flowers", "SUN397")):
        built = x_tail(x_root, order, seed=seed, datasets=names, check="ignore")
        return {e.domain: pictures(e) for e in built.train_stream}

    first = drawn()
    torch.manual_seed(3)
    np.random.seed(3)
    assert drawn("II") == first
    assert drawn(names=("Flowers",))["Flowers"] == first["Flowers"]
    assert drawn(seed=1) != first


def test_x_tail__enough_images_are_drawn_without_replacement(tmp_path):
    coop_files.write_list(tmp_path, "EuroSAT", train=17)
    built = x_tail(tmp_path, datasets=["EuroSAT"], check="ignore")
    assert len(built.train_stream[0].dataset) == 32
    assert len(set(pictures(built.train_stream[0]))) == 32
    whole = x_tail(tmp_path, shots=None, datasets=["EuroSAT"], check="ignore")
    assert len(whole.train_stream[0].dataset) == 34 and whole.shots is None


def test_x_tail__orders_and_subsets(x_root, root):
    built = x_tail(x_root, "II", datasets=["Food", "EuroSAT"], check="ignore")
    assert domains(built) == ["Food", "EuroSAT"]
    with pytest.raises(ValueError, match="Unknown data set 'CIFAR100'"):
        x_tail(x_root, datasets=["CIFAR100"], check="ignore")
    # MTIL's files are not X-TAIL's.
    with pytest.raises(FileNotFoundError, match="split_zhou_Caltech101.json"):
        x_tail(root, datasets=["Caltech101"], check="ignore")
    for wrong in (0, True, 2.0):
        refused("shots", x_tail, x_root, shots=wrong, datasets=["DTD"], check="ignore")


def made_up(count):
    return [domain[:4] for domain in small((2,) * count)]


def test_mtil__a_list_is_taken_for_the_data_sets():
    given = small((2, 3))
    for build in (mtil, x_tail):
        assert domains(build(given)) == ["domain-0", "domain-1"]
        assert domains(build(tuple(given), [1, 0])) == ["domain-1", "domain-0"]
        refused("datasets=", build, given, datasets=given)


def test_orders__of_unnamed_data_sets():
    def indices(benchmark):
        return [e.dataset_index for e in benchmark.train_stream]

    assert indices(mtil(None, "II", datasets=made_up(11))) == list(MTIL_ORDERS["II"])
    names = [MTIL_NAMES[i] for i in MTIL_ORDERS["II"] if MTIL_NAMES[i] != "CIFAR100"]
    found = indices(x_tail(None, "II", datasets=made_up(10)))
    assert [X_TAIL_NAMES[i] for i in found] == names
    for build, count in ((mtil, 10), (x_tail, 11)):
        refused("is defined for", build, None, "II", datasets=made_up(count))
