"""The Si-Blurry streams of SIT's data sets and of emoji."""

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    class_targets,
    si_blurry_emoji,
    si_blurry_indices,
)
from avalanche_clip.benchmarks.classic.si_blurry import SIT_ZERO_SHOT, si_blurry
from avalanche_clip.benchmarks.datasets import (
    EMOJI_STYLES,
    EmojiPairs,
    load_emoji_table,
)
from avalanche_clip.benchmarks.datasets.mtil import MTIL_NAMES
from avalanche_clip.models.encoders.imagenet_names import (
    imagenet_class_names,
    imagenet_wnids,
)
from tests.benchmarks.datasets.mtil import disk
from tests.benchmarks.small_streams import check_ids_differ, column
from tests.refused import refused

pytestmark = [
    pytest.mark.usefixtures("any_checksum"),
    pytest.mark.filterwarnings("ignore:Si-Blurry"),
]


# ---------------------------------------------------------------- published sets
def test_si_blurry__cifar100(tmp_path):
    train, test = disk.cifar100(tmp_path)
    disk.eurosat(tmp_path)
    found = si_blurry(
        "CIFAR100",
        tmp_path,
        zero_shot=["EuroSAT"],
        zero_shot_root=tmp_path,
        check="ignore",
        num_tasks=2,
        seed=3,
    )
    wanted = si_blurry_indices(
        [label for label, _ in train],
        num_tasks=2,
        disjoint_percent=50,
        blurry_percent=10,
        seed=3,
        num_classes=100,
    )
    ids = [column(e, "sample_id").tolist() for e in found.train_stream]
    assert ids == [part for part in wanted if part]
    assert sum(len(e.dataset) for e in found.test_stream) == len(test)
    assert found.class_prompts.prompts()[0].startswith("a bad photo of a ")
    # torchvision's names as they are, with underscores.
    assert any("_" in name for name in found.class_prompts.names)
    (held,) = found.streams["zero_shot"]
    assert held.label == "EuroSAT" and held.templates == ("a bad photo of a {}.",)
    assert held.class_names[0] == "annual crop land"
    check_ids_differ(found)
    assert set(SIT_ZERO_SHOT) < set(MTIL_NAMES)


def test_si_blurry__folders(tmp_path):
    wnids = list(imagenet_wnids()[:6])
    for label, wnid in enumerate(wnids):
        for number in range(5):
            disk.save(tmp_path / wnid / f"art_{number}.jpg", label, number)
    found = si_blurry("ImageNetR", tmp_path, check="ignore", num_tasks=2)
    assert found.class_prompts.names == imagenet_class_names()[:6]
    assert sum(found.task_sizes) == 24
    disk.tiny_imagenet(tmp_path / "tiny", wnids[::-1], {})
    found = si_blurry("TinyImageNet", tmp_path / "tiny", check="ignore", num_tasks=2)
    assert found.class_prompts.names == imagenet_class_names()[:6][::-1]


def test_si_blurry__nonsense_is_refused(tmp_path):
    refused("dataset='CIFAR10' is unknown", si_blurry, "CIFAR10", tmp_path)
    (tmp_path / "cifar").mkdir()
    disk.cifar100(tmp_path / "cifar")
    both = ("CIFAR100", tmp_path / "cifar")
    words = r"zero_shot=\['Food'\] are to be read; give zero_shot_root"
    refused(words, si_blurry, *both, check="ignore", zero_shot=["Food"])
    missing = {"zero_shot": ["Food"], "zero_shot_root": tmp_path, "check": "ignore"}
    refused("Food is not in", si_blurry, *both, error=FileNotFoundError, **missing)
    refused(r"options \['tasks'\] are unknown", si_blurry, *both, tasks=1)


# ------------------------------------------------------------------------ emoji
def test_emoji__subgroups_are_classes():
    table = load_emoji_table()
    found = si_blurry_emoji()
    prompts = found.class_prompts
    assert len(found.test_stream) == len(prompts) == 95  # 99, by 5 tasks
    assert "face smiling" in prompts.names and "sky and weather" in prompts.names
    assert not [n for n in prompts.names if set(n) & set("-&_")]
    assert len(set(prompts.names)) == 95 and prompts.prompts([0]) == ["face smiling"]
    for experience in found.train_stream:
        style, row = np.divmod(column(experience, "sample_id"), len(table))
        assert set(style.tolist()) <= {0, 1}
        words = [table.subgroups[k].replace("-", " ") for k in table.subgroup[row]]
        names = [prompts.name(c) for c in column(experience)]
        assert [word.replace("&", "and") for word in words] == names
    drawing = EmojiPairs("twemoji", np.flatnonzero(table.subgroup == 0))[3][0]
    image, text, *_ = found.test_stream[0].dataset[3]
    assert text == "face smiling" and image.tobytes() == drawing.tobytes()
    assert EMOJI_STYLES == ("noto", "openmoji", "twemoji")
    train = sum(len(e.dataset) for e in found.train_stream)
    test = sum(len(e.dataset) for e in found.test_stream)
    assert train == 2 * test == sum(found.task_sizes)
    check_ids_differ(found)


def test_emoji__seeds_and_options_are_those_of_the_sampler():
    sizes = [si_blurry_emoji(seed=seed).task_sizes for seed in (1, 1, 2)]
    assert sizes[0] == sizes[1] != sizes[2] and len(sizes[0]) == 5
    found = si_blurry_emoji(num_tasks=3, disjoint_percent=100, stochastic=False)
    tasks = [set(column(e).tolist()) for e in found.train_stream]
    assert [len(task) for task in tasks] == [33, 33, 33]
    assert not tasks[0] & tasks[1] and not tasks[1] & tasks[2]


def test_emoji__held_out_groups_and_icons_are_zero_shot():
    found = si_blurry_emoji(held_out=["Food & Drink", "Activities"])
    food, activities, icons = found.streams["zero_shot"]
    assert (food.label, activities.label, icons.label) == (
        *("Food & Drink", "Activities", "icons"),
    )
    assert food.class_names[:2] == ("food fruit", "food vegetable")
    assert len(food.class_ids) == 7 and len(food.dataset) == 131
    assert len(icons.class_ids) == len(icons.dataset) == 968
    assert "food fruit" not in found.class_prompts.names
    assert len(found.class_prompts) == 85  # 87, by 5 tasks
    image, text, *_ = icons.dataset[3]
    assert image.size == (48, 48) and text == icons.class_names[3]
    check_ids_differ(found)


def test_emoji__validation_drawings_are_kept_out():
    plain, found = si_blurry_emoji(), si_blurry_emoji(validation=True)
    held = sum(len(e.dataset) for e in found.streams["valid"])
    counts = [sum(len(e.dataset) for e in b.train_stream) for b in (plain, found)]
    assert held > 300 and counts[0] == counts[1] + held
    assert {e.class_ids[0] for e in found.streams["valid"]} <= set(
        found.class_prompts.ids
    )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"held_out": ["Food"]}, "held_out .*'Food'.* are unknown"),
        ({"held_out": ["Flags", "Flags"]}, "'Flags' occurs more than once"),
        ({"styles": ["noto", "twemoji"]}, "'twemoji' is also trained on"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"blury_percent": 5}, "unknown.* Did you mean 'blurry_percent'"),
    ],
    ids=str,
)
def test_emoji__nonsense_is_refused(options, words):
    refused(words, si_blurry_emoji, **options)


def test_emoji__labels_of_drawings_are_known_without_decoding():
    found = si_blurry_emoji()
    first = found.train_stream[0].dataset
    assert len(class_targets(first)) == found.task_sizes[0]
