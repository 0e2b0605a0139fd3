"""Templates, names and orders of the published benchmarks."""

import hashlib
import json

import numpy as np
import pytest

from avalanche_clip.benchmarks.datasets.mtil import (
    CIL_TEMPLATES,
    DATASETS,
    MTIL_NAMES,
    MTIL_ORDERS,
    MTIL_TEMPLATES,
    ORDER_CHECKSUMS,
    X_TAIL_NAMES,
    X_TAIL_TEMPLATES,
    class_order,
    dataset_name,
    given_names,
    order_checksum,
    prompt_names,
    random_80_20,
)
from tests.refused import refused

# name: classes, train, test, templates
TABLE = {
    "Aircraft": (100, 3334, 3333, 2),
    "Caltech101": (101, 6941, 1736, 34),
    "CIFAR100": (100, 50000, 10000, 18),
    "DTD": (47, 1880, 1880, 8),
    "EuroSAT": (10, 21600, 5400, 3),
    "Flowers": (102, 1020, 6149, 1),
    "Food": (101, 75750, 25250, 1),
    "MNIST": (10, 60000, 10000, 1),
    "OxfordPet": (37, 3680, 3669, 1),
    "StanfordCars": (196, 8144, 8041, 9),
    "SUN397": (397, 87003, 21751, 2),
}


def test_table__is_the_published_one():
    assert MTIL_NAMES == tuple(TABLE)
    for name, row in TABLE.items():
        facts = DATASETS[name]
        found = facts.sizes
        assert (*found, len(MTIL_TEMPLATES[name])) == row
    assert sum(DATASETS[n].sizes[0] for n in MTIL_NAMES) == 1201
    assert sum(DATASETS[n].sizes[2] for n in MTIL_NAMES) == 97209
    prompts = sum(DATASETS[n].sizes[0] * len(MTIL_TEMPLATES[n]) for n in MTIL_NAMES)
    assert prompts == 8648


@pytest.mark.parametrize("name", [*MTIL_TEMPLATES])
def test_templates__are_distinct_and_take_one_name(name):
    templates = MTIL_TEMPLATES[name]
    assert len(set(templates)) == len(templates)
    for template in templates:
        assert template.count("{}") == 1 and "*" not in template
        assert template.format("x").count("{") == 0


def test_templates__spelling():
    caltech, cars = MTIL_TEMPLATES["Caltech101"], MTIL_TEMPLATES["StanfordCars"]
    assert caltech[8] == "a embroidered {}." and caltech[12] == "a origami {}."
    assert caltech[17] == "a photo of the {}." and cars[4] == "i love my {}!"
    # Of the lists as they were copied one by one from the released code.
    text = json.dumps([MTIL_TEMPLATES[name] for name in MTIL_NAMES])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "13d1895d26c15489"
    assert MTIL_TEMPLATES["CIFAR10"] == MTIL_TEMPLATES["CIFAR100"]
    assert CIL_TEMPLATES["CIFAR100"] == ("a bad photo of a {}.",)
    assert CIL_TEMPLATES["ImageNet1K"] == ("a good photo of a {}.",)


def test_open_domain_orders_and_first_templates__are_those_of_coleclip():
    """CoLeCLIP (arXiv 2403.10245) uses the same data sets, orders and templates."""
    assert " ".join(MTIL_NAMES) == (
        "Aircraft Caltech101 CIFAR100 DTD EuroSAT Flowers Food MNIST OxfordPet "
        "StanfordCars SUN397"
    )
    assert " ".join(MTIL_NAMES[k] for k in MTIL_ORDERS["II"]) == (
        "StanfordCars Food MNIST OxfordPet Flowers SUN397 Aircraft Caltech101 DTD "
        "EuroSAT CIFAR100"
    )
    firsts = {name: MTIL_TEMPLATES[name][0] for name in MTIL_NAMES}
    plain = "a photo of a {}."
    assert firsts == {
        **dict.fromkeys(("Caltech101", "CIFAR100", "SUN397"), plain),
        "Aircraft": "a photo of a {}, a type of aircraft.",
        "DTD": "a photo of a {} texture.",
        "EuroSAT": "a centered satellite photo of {}.",
        "Flowers": "a photo of a {}, a type of flower.",
        "Food": "a photo of a {}, a type of food.",
        "MNIST": 'a photo of the number: "{}".',
        "OxfordPet": "a photo of a {}, a type of pet.",
        "StanfordCars": "a photo of a {}, a type of car.",
    }


def test_order_two__is_a_permutation_with_an_inverse():
    order = MTIL_ORDERS["II"]
    assert sorted(order) == list(range(11)) and MTIL_ORDERS["I"] == tuple(range(11))
    names = [MTIL_NAMES[k] for k in order]
    assert names == [
        *("StanfordCars", "Food", "MNIST", "OxfordPet", "Flowers", "SUN397"),
        *("Aircraft", "Caltech101", "DTD", "EuroSAT", "CIFAR100"),
    ]


def test_x_tail__has_ten_domains_in_order():
    assert X_TAIL_NAMES == (
        *("Aircraft", "Caltech101", "DTD", "EuroSAT", "Flowers", "Food", "MNIST"),
        *("OxfordPet", "StanfordCars", "SUN397"),
    )
    assert tuple(X_TAIL_TEMPLATES) == X_TAIL_NAMES


def test_imagenet__has_the_eighty_templates_of_clip():
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    found = MTIL_TEMPLATES["ImageNet"]
    published = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert len(found) == 80 and sorted(found) == sorted(published)
    # ZSCL's training prompt first, the others in the published order.
    assert found[0] == "a photo of a {}."
    assert list(found[1:]) == [t for t in published if t != found[0]]
    assert dict(MTIL_TEMPLATES)["ImageNet"] == MTIL_TEMPLATES.get("ImageNet") == found
    assert "ImageNet" in MTIL_TEMPLATES and "sound" not in MTIL_TEMPLATES


@pytest.mark.parametrize(
    ("name", "size", "checksum"),
    [
        ("CIFAR100", 100, "62e36f48cf4f51c7"),
        ("ImageNet100", 100, "997a048a5344d216"),
        ("ImageNet1K", 1000, "305571fb8fde3e0f"),
        ("TinyImageNet", 200, "b0c978e9a0ad7a3c"),
    ],
)
def test_class_order__is_a_permutation_with_the_published_checksum(
    name, size, checksum
):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    order = class_order(name)
    assert sorted(order) == list(range(size))
    assert order_checksum(order) == checksum == ORDER_CHECKSUMS[name]
    assert (np.random.get_state()[1] == before).all()


def test_class_order__unknown_name_is_refused():
    refused("ImageNet100", class_order, "SUN397")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cars", "StanfordCars"),
        ("FGVCAircraft", "Aircraft"),
        ("oxford-pet", "OxfordPet"),
        ("DescribableTextures", "DTD"),
    ],
)
def test_dataset_name__understands_other_spellings(given, name):
    assert dataset_name(given, MTIL_NAMES) == name


def test_dataset_name__unknown_one_is_refused():
    refused(r"CIFAR10'.*Aircraft, ", dataset_name, "CIFAR10", MTIL_NAMES)


def test_prompt_names__caltech_quirks():
    raw = {
        "Faces": "off-center face",
        "Leopards": "leopard",
        "crocodile_head": "head of a  crocodile",
        "sea_horse": "sea horse",
    }
    assert prompt_names("Caltech101", list(raw)) == tuple(raw.values())
    # The changes belong to one data set.
    assert prompt_names("CIFAR100", ["Faces", "aquarium_fish"]) == (
        "Faces",
        "aquarium fish",
    )


def test_given_names__from_a_list_and_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("Egyptian Mau\nreel\n\n", encoding="utf-8")
    assert given_names(path, 2) == given_names(["Egyptian Mau", "reel"], 2)
    refused("2 names in .* 3 are needed", given_names, str(path), 3)
    path.write_text("a\n\nb\n")
    refused("no name for class 1", given_names, path, 3)
    with pytest.raises(FileNotFoundError, match="one name per line"):
        given_names(tmp_path / "none.txt", 3)


@pytest.mark.filterwarnings("ignore:Length of split")
@pytest.mark.parametrize("size", [0, 1, 4, 5, 27000, 8677, 108754])
def test_random_80_20__equals_torch_and_leaves_the_global_seed(size):
    import torch

    torch.manual_seed(size)
    state = torch.get_rng_state()
    train, test = random_80_20(size)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(train) == int(0.8 * size) and len(train) + len(test) == size
    order = torch.randperm(size, generator=torch.Generator().manual_seed(42)).numpy()
    assert (np.concatenate([train, test]) == order).all()


NAMES_WITH_IDS = {
    "number and blank": ["0 tench", "1 goldfish", "2 great white shark"],
    "from one": ["1 tench", "2 goldfish", "3 shark"],
    "any order": ["2 tench", "0 goldfish", "1 shark"],
    "some of them": ["3 tench", "217 goldfish", "950 shark"],
    "dict": ["0: 'tench'", "1: 'goldfish'", "2: 'shark'"],
    "python": ["{0: 'tench',", " 1: 'goldfish',", " 2: 'shark'}"],
    "json": ['{"0": "tench",', '"1": "goldfish",', '"2": "shark"}'],
    "wordnet": ["n01440764 tench", "n01443537 goldfish", "n01484850 shark"],
    "wordnet, tab": ["n01440764\ttench", "n01443537\tgoldfish", "n01484850\tshark"],
    "wordnet, one": ["tench", "goldfish", "n01484850 shark"],
    "ids alone": ["n01440764", "n01443537", "n01484850"],
    "csv": ["0,tench", "1,goldfish", "2,shark"],
    "csv with a head": ["id,name", "0,tench", "1,goldfish"],
    "csv, id last": ["tench,0", "goldfish,1", "shark,2"],
    "csv, quoted": ['"0","tench"', '"1","goldfish"', '"2","shark"'],
    "csv, wordnet last": ["tench,n01440764", "goldfish,n01443537", "shark,n01484850"],
    "tabs": ["0\ttench", "1\tgoldfish", "2\tshark"],
    "dots": ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Auk"],
    "list": ["1. tench", "2. goldfish", "3. shark"],
    "underscores": ["0_tench", "1_goldfish", "2_shark"],
    "number signs": ["#0 tench", "#1 goldfish", "#2 shark"],
    "blank, id last": ["tench 0", "goldfish 1", "shark 2"],
    "brackets, id last": ["tench (0)", "goldfish (1)", "shark (2)"],
    "csv, any numbers": ["12,tench", "7,goldfish", "95,shark"],
    "colon, any numbers last": ["tench: 12", "goldfish: 7", "shark: 95"],
    "Open Images": ["/m/0b3fp,tench", "/m/03fj2,goldfish", "/m/0by6g,shark"],
    "brackets": ["0) tench", "1) goldfish", "2) shark"],
    "dashes": ["0 - tench", "1 - goldfish", "2 - shark"],
    "quotes": ["'tench',", "'goldfish',", "'shark'"],
    "json list": ['["tench",', '"goldfish",', '"shark"]'],
}


@pytest.mark.parametrize("kind", NAMES_WITH_IDS)
def test_given_names__ids_do_not_get_into_names(kind, tmp_path):
    names = NAMES_WITH_IDS[kind]
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names) + "\n", encoding="utf-8-sig")
    refused("names.txt holds .*bare names", given_names, path, 3)
    refused("class_names holds .*bare names", given_names, names, 3)


@pytest.mark.parametrize(
    "names",
    [
        ["tench, Tinca tinca", "goldfish", "8-ball, cue"],
        [f"{k} - {w}" for k, w in enumerate("zero one two three".split())][:1],
        [
            f"{k} - {word}"
            for k, word in enumerate(
                "zero one two three four five six seven eight nine".split()
            )
        ],
        [str(k) for k in range(10)],
        ["707-320", "727-200", "737-200", "A300B4"],
        ["2012 Ram C/V Cargo Van", "2012 smart fortwo", "2000 AM General Hummer"],
        ["Boeing 707", "Boeing 717", "Boeing 727"],
        ["5 o'clock shadow", "3 wise men"],
        ["3 of clubs", "4 of clubs", "5 of clubs"],
        ["1 cent", "2 cents", "5 cents", "10 cents"],
        ["1957 Chevrolet", "1965 Ford Mustang", "1998 Dodge Viper"],
        ["class 0", "class 1", "class 2"],
        ["speed limit 20", "speed limit 30", "end of limit 80"],
        ["0 - zero", "1 - one", "2 - two"],
        ["[REC] sign", "exit"],
        ["n-gram", "n1", '"quoted" name', "plain"],
        ["head of a  crocodile", "apartment building/outdoor"],
        ["zwölf", "日本", "naïve"],
    ],
)
def test_given_names__names_with_numbers_stay(names, tmp_path):
    path = tmp_path / "names.txt"
    for ending in ("\n", "\r\n"):
        path.write_bytes(ending.join([*names, ""]).encode("utf-8-sig"))
        assert given_names(path, len(names)) == tuple(names)
    assert given_names(names, len(names)) == tuple(names)


def test_given_names__values_are_texts():
    refused("is 3, a int", given_names, ["a", 3], 2)
    for given in ({"a": 0, "b": 1}, {"a", "b"}, frozenset("ab")):
        refused("class_names is a .*list of names", given_names, given, 2)
    assert given_names(iter(["a", "b"]), 2) == ("a", "b")
