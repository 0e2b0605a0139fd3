"""The held-out icons: what is shipped, and what nothing may have taught."""

from importlib import resources

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    attribute_array,
    emoji_dataset,
    held_out_icons,
    make_experience,
    make_scenario,
    prepare_benchmark,
    tic_emoji,
)
from avalanche_clip.benchmarks.datasets import (
    EMOJI_LANGUAGES,
    FIRST_ICON_ID,
    HeldOutIcons,
    icons,
    load_emoji_table,
)
from avalanche_clip.evaluation.loop import evaluate_retrieval
from avalanche_clip.models import create_dual_encoder
from tests.scripts import loaded_after

DATA = resources.files("avalanche_clip.benchmarks.datasets") / "data"


def test_icons__one_drawing_per_name():
    held = HeldOutIcons()
    assert len(held) == len(held.names) == len(held.sets) == len(set(held.names))
    assert list(held.names) == sorted(held.names) and 900 < len(held) <= 1500
    tiles = np.stack([np.asarray(held[i][0]) for i in range(len(held))])
    assert tiles.shape == (len(held), 48, 48, 3)
    assert (tiles.reshape(len(held), -1).std(axis=1) > 2).all(), "empty drawing"
    assert len(np.unique(tiles.reshape(len(held), -1), axis=0)) == len(held)
    with pytest.raises(IndexError):
        held[len(held)]


def test_icons__changing_an_item_leaves_the_data_intact():
    held = HeldOutIcons()
    before = held[0][0].tobytes()
    held[0][0].paste("black", (0, 0, 48, 48))
    assert held[0][0].tobytes() == before


def test_icons__no_name_has_the_words_of_what_a_stream_of_emoji_teaches():
    table = load_emoji_table()
    taught = {
        tuple(sorted(text.lower().split()))
        for name, keywords in zip(table.names, table.keywords())
        for text in (name, *keywords)
    }
    words = [tuple(sorted(name.split())) for name in HeldOutIcons().names]
    assert len(set(words)) == len(words)
    assert not taught & set(words)


def test_icons__files_are_small_and_name_the_artists():
    assert len(DATA.joinpath("icons_held_out.webp").read_bytes()) <= 1_500_000
    notice = DATA.joinpath("NOTICE_icons").read_text(encoding="utf-8")
    for prefix in set(HeldOutIcons().sets):
        assert f"({prefix}), by " in notice
    for line in notice.splitlines():
        if ": LICENSES/" in line:
            assert DATA.joinpath(line.split(": ")[1]).is_file()


def test_dataset__has_the_facts_of_emoji_and_ids_of_its_own():
    held, emoji = held_out_icons(), emoji_dataset(["twemoji"], [0])
    assert [field.name for field in held._data_attributes.values()] == [
        field.name for field in emoji._data_attributes.values()
    ]
    ids = attribute_array(held, "sample_id")
    assert np.array_equal(ids, FIRST_ICON_ID + np.arange(len(held)))
    assert np.array_equal(ids, attribute_array(held, "targets"))
    assert 3 * len(load_emoji_table()) * len(EMOJI_LANGUAGES) < ids.min()
    assert np.isnan(attribute_array(held, "timestamp")).all()


def test_dataset__is_evaluated_beside_a_stream():
    stream = tic_emoji(gallery=False)
    held = make_experience(held_out_icons(), time_label="icons")
    stream = make_scenario({**stream.streams, "icons": [held]}, stream)
    model = create_dual_encoder("tiny-emoji", "emoji-2010")
    prepared = prepare_benchmark(stream, model).streams["icons"][0]
    found = evaluate_retrieval(model, prepared.dataset, batch_size=256)
    # Chance is 0.1 %.
    assert 0 < found["image_to_text_R@1"] < 0.1
    assert prepared.time_label == "icons"


def test_reader__needs_neither_torch_nor_avalanche():
    statement = f"import tests.scripts; tests.scripts.load_script({icons.__file__!r})"
    assert loaded_after(statement, ("torch", "avalanche")) == []
