"""Class-incremental streams on CIFAR-100, TinyImageNet and ImageNet."""

import numpy as np
import pytest

from avalanche_clip.benchmarks.classic.cil import (
    cil_cifar100,
    cil_imagenet1k,
    cil_imagenet100,
    cil_tiny_imagenet,
)
from avalanche_clip.benchmarks.datasets.mtil import class_order
from avalanche_clip.models.encoders.imagenet_names import (
    imagenet_class_names,
    imagenet_wnids,
)
from tests.benchmarks.datasets.mtil import disk
from tests.benchmarks.small_streams import column, sizes_of
from tests.refused import refused

pytestmark = pytest.mark.usefixtures("any_checksum")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    return folder, disk.cifar100(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """200 ids in an order that is not the sorted one."""
    folder = tmp_path_factory.mktemp("tiny")
    wnids = list(imagenet_wnids()[300:500][::-1])
    return folder, wnids, disk.tiny_imagenet(folder, wnids, {})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    disk.imagenet(folder, list(imagenet_wnids()))
    return folder


def check_stream(benchmark, sizes, order, names):
    """Tasks partition the classes, labels are contiguous, names follow them."""
    assert benchmark.protocol == "class_incremental"
    starts = np.cumsum([0, *sizes])
    for stream in (benchmark.train_stream, benchmark.test_stream):
        assert len(stream) == len(sizes)
        for k, experience in enumerate(stream):
            labels = list(range(starts[k], starts[k + 1]))
            assert list(experience.class_ids) == labels
            assert np.unique(column(experience)).tolist() == labels
            wanted = tuple(names[order[label]] for label in labels)
            assert experience.class_names == wanted
    assert benchmark.class_prompts.ids == tuple(range(len(order)))


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_cifar100__steps_labels_and_names(cifar, steps):
    folder, (train, test) = cifar
    built = cil_cifar100(folder, steps, check="ignore")
    names = ["apple", "aquarium_fish", *disk.FINE]
    order = class_order("CIFAR100")
    check_stream(built, [100 // steps] * steps, order, names)
    assert sum(sizes_of(built.train_stream)) == len(train)
    assert sum(sizes_of(built.test_stream)) == len(test)


def test_cifar100__names_and_templates_may_be_given(cifar):
    def first_names(**options):
        built = cil_cifar100(cifar[0], check="ignore", **options)
        # Class 1, the aquarium fish, has this label.
        label = class_order("CIFAR100").index(1)
        return built.class_prompts.name(label), built.class_prompts.templates(label)

    # As in the released codes of Continual-CLIP and ZSCL.
    assert first_names() == ("aquarium_fish", ("a bad photo of a {}.",))
    names = [f"name {k}" for k in range(100)]
    assert first_names(class_names=names)[0] == "name 1"
    assert first_names(templates=["a {}.", "the {}."])[1] == ("a {}.", "the {}.")
    assert first_names(templates="a {}.")[1] == ("a {}.",)
    refused("99 names in class_names", first_names, class_names=names[1:])


@pytest.mark.parametrize("steps", [0, 3, -10, 10.0, True, "10", None])
def test_cifar100__steps_that_leave_classes_over_are_refused(cifar, steps):
    refused("steps=", cil_cifar100, cifar[0], steps, check="ignore")


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_tiny_imagenet__a_hundred_classes_first(tiny, steps):
    folder, wnids, _ = tiny
    built = cil_tiny_imagenet(folder, steps, check="ignore")
    published = dict(zip(imagenet_wnids(), imagenet_class_names()))
    names = [published[wnid] for wnid in wnids]
    sizes = [100, *[100 // steps] * steps]
    check_stream(built, sizes, class_order("TinyImageNet"), names)
    assert built.class_prompts.templates(0) == ("a bad photo of a {}.",)


def test_tiny_imagenet__wrong_steps_and_too_few_classes(tiny, tmp_path):
    refused("after the first 100", cil_tiny_imagenet, tiny[0], 30)
    disk.tiny_imagenet(tmp_path, tiny[1][:3], {})
    with pytest.raises(ValueError, match="3 classes here, but its published order"):
        cil_tiny_imagenet(tmp_path, check="ignore")


@pytest.mark.parametrize(("base", "sizes"), [(10, [10] * 10), (50, [50] + [5] * 10)])
def test_imagenet100__two_settings(imagenet, base, sizes):
    built = cil_imagenet100(imagenet, base, check="ignore")
    names = imagenet_class_names()[:100]
    check_stream(built, sizes, class_order("ImageNet100"), names)
    assert built.class_prompts.templates(0) == ("a good photo of a {}.",)
    refused("use one of 10, 50", cil_imagenet100, imagenet, 20)


def test_imagenet1k__ten_steps(imagenet):
    built = cil_imagenet1k(imagenet, check="ignore")
    order = class_order("ImageNet1K")
    check_stream(built, [100] * 10, order, imagenet_class_names())
    # Two classes of equal name stay two.
    prompts = built.class_prompts
    assert sum(prompts.name(i) == "sunglasses" for i in prompts.ids) == 2
    names = [f"name {k}" for k in range(1000)]
    built = cil_imagenet1k(imagenet, 5, class_names=names, check="ignore")
    check_stream(built, [200] * 5, order, names)
    refused("divisor of 1000", cil_imagenet1k, imagenet, 3)
