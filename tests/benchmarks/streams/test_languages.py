"""Streams of languages: cutting, names and codes, ids, what reaches the tokenizer."""

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    attribute_array,
    joint_languages,
    make_image_text_dataset,
    multilingual_benchmark,
    prepare_benchmark,
)
from tests.benchmarks.small_streams import CharModel, CountedPairs, ids_of
from tests.refused import refused


def tagged(codes, first_id=0, captions=1, **options):
    """A data set whose sample i has language ``codes[i]``."""
    return make_image_text_dataset(
        CountedPairs(len(codes), captions),
        sample_ids=np.arange(first_id, first_id + len(codes)),
        languages=codes,
        **options,
    )


def plain(size, **options):
    """A data set without languages and with ids from 0."""
    return make_image_text_dataset(CountedPairs(size), **options)


MIXED = [2, 0, 1, 0, 2, 2]


def test_stream__holds_each_sample_once_in_order():
    benchmark = multilingual_benchmark(
        tagged(MIXED),
        languages=["en", "de", "fil"],
        order=["fil", "en", "de"],
        test=tagged([0, 1, 2, 0], 100),
    )
    assert [ids_of(e.dataset) for e in benchmark.train_stream] == [
        [0, 4, 5],
        [1, 3],
        [2],
    ]
    assert [ids_of(e.dataset) for e in benchmark.test_stream] == [
        [102],
        [100, 103],
        [101],
    ]
    assert [e.language for e in benchmark.train_stream] == ["fil", "en", "de"]
    assert [e.language_code for e in benchmark.test_stream] == [2, 0, 1]
    assert [e.languages for e in benchmark.test_stream] == [("fil",), ("en",), ("de",)]
    assert benchmark.languages == ("fil", "en", "de")
    assert benchmark.language_codes == {"en": 0, "de": 1, "fil": 2}
    assert benchmark.protocol == "multilingual"


def test_stream__order_by_code_and_default_names():
    benchmark = multilingual_benchmark(tagged([7, 3, 7]), order=None)
    assert benchmark.languages == ("3", "7")
    assert benchmark.language_codes == {"3": 3, "7": 7}
    named = multilingual_benchmark(tagged([7, 3, 7]), order=[7, np.int64(3)])
    assert named.languages == ("7", "3")


@pytest.mark.parametrize("in_item", [("sample_id", "language"), ("sample_id",)])
@pytest.mark.parametrize("captions", [1, 3])
def test_language_code__reaches_the_tokenizer_per_caption(in_item, captions):
    model = CharModel()
    benchmark = multilingual_benchmark(
        tagged(MIXED, captions=captions, in_item=in_item), languages=["a", "b", "c"]
    )
    prepared = prepare_benchmark(
        benchmark, model, train_text_transform=lambda captions: captions
    )
    dataset = prepared.train_stream[2].dataset
    batch, _, task = dataset.collate_fn([dataset[k] for k in range(3)])
    texts, codes = model.tokenizer.calls[-1]
    assert len(texts) == 3 * captions
    assert codes == [2] * (3 * captions)
    assert batch["language"].tolist() == [2, 2, 2]
    assert task.tolist() == [0, 0, 0]


def test_mapping__tells_translations_of_the_same_ids_apart():
    train = {"en": plain(3), "de": plain(3), "it": plain(2)}
    test = {"it": plain(1), "en": plain(1), "de": plain(1)}
    benchmark = multilingual_benchmark(train, test=test, order=["de", "en", "it"])
    assert benchmark.language_codes == {"en": 0, "de": 1, "it": 2}
    ids = [ids_of(e.dataset) for e in benchmark.train_stream]
    assert ids == [[10, 11, 12], [0, 1, 2], [20, 21]]
    # What train and test share is still shared.
    assert [ids_of(e.dataset) for e in benchmark.test_stream] == [[10], [0], [20]]
    first = benchmark.train_stream[0].dataset
    assert attribute_array(first, "source_id").tolist() == [0, 1, 2]
    assert first.subset([2]).sample_id[0] == 12
    assert [int(v) for v in first.concat(first).sample_id] == [10, 11, 12] * 2


def test_mapping__keeps_ids_that_are_unique():
    train = {"en": tagged([0, 0]), "de": tagged([1, 1], 50)}
    benchmark = multilingual_benchmark(train)
    assert [ids_of(e.dataset) for e in benchmark.train_stream] == [[0, 1], [50, 51]]
    assert not hasattr(benchmark.train_stream[0].dataset, "source_id")


def test_mapping__uses_the_codes_of_the_data():
    benchmark = multilingual_benchmark({"fi": tagged([9, 9]), "fil": tagged([4], 10)})
    assert benchmark.language_codes == {"fi": 9, "fil": 4}
    refused("must hold one language", multilingual_benchmark, {"fi": tagged([9, 8])})
    with pytest.raises(ValueError, match="has the code 9"):
        multilingual_benchmark({"fi": tagged([9])}, languages=["fi"])
    with pytest.raises(ValueError, match="more than once among the language codes"):
        multilingual_benchmark({"fi": tagged([4]), "fil": tagged([4], 10)})


def test_others__raise_drop_or_test():
    data = {"test": tagged([0, 1, 3, 2], 100), "languages": list("abcd")}
    with pytest.raises(ValueError, match="not in order.*'c'"):
        multilingual_benchmark(tagged(MIXED), order=["b", "a"], **data)
    dropped = multilingual_benchmark(
        tagged(MIXED), order=["b", "a"], others="drop", **data
    )
    assert [e.language for e in dropped.test_stream] == ["b", "a"]
    kept = multilingual_benchmark(
        tagged(MIXED), order=["b", "a"], others="test", **data
    )
    assert [e.language for e in kept.train_stream] == ["b", "a"]
    assert [e.language for e in kept.test_stream] == ["b", "a", "c", "d"]
    assert [e.current_experience for e in kept.test_stream] == [0, 1, 2, 3]
    refused("others=", multilingual_benchmark, tagged(MIXED), others="keep")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": ["a", "a", "b", "c"]}, "'a' occurs more than once"),
        ({"order": []}, "no languages in order"),
        ({"order": "abc"}, "one string"),
        ({"order": ["x"]}, "languages in order \\['x'\\] are unknown"),
        ({"languages": "abc"}, "one string"),
        ({"languages": ["a", "b"]}, r"codes in stream .*\[2\]"),
        ({"languages": ["a", "a", "c"]}, "more than once among the language names"),
        ({"languages": {"a": 0, "b": 1, "c": -2}}, ">= 0"),
        ({"languages": ["a", "", "c"]}, "non-empty"),
        ({"test": tagged([0, 1], 100)}, "no sample in"),
    ],
)
def test_arguments__are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        multilingual_benchmark(tagged(MIXED), **{"languages": list("abc"), **options})


def test_sources__must_be_data_sets():
    refused("Stream 'train'", multilingual_benchmark, CountedPairs(3), error=TypeError)
    with pytest.raises(TypeError, match="Language 'en'"):
        multilingual_benchmark({"en": CountedPairs(3)})
    refused("no attribute 'language'", multilingual_benchmark, plain(3))


def test_joint__has_everything_in_one_experience():
    benchmark = multilingual_benchmark(
        tagged(MIXED), languages=list("abc"), test=tagged([0, 1, 2], 100)
    )
    joint = joint_languages(benchmark)
    assert len(joint.train_stream) == 1
    whole = joint.train_stream[0]
    assert sorted(ids_of(whole.dataset)) == list(range(6))
    assert whole.languages == ("a", "b", "c")
    assert whole.language is None and whole.language_code is None
    assert [e.language for e in joint.test_stream] == ["a", "b", "c"]
    assert benchmark.train_stream[0].language == "a"
    with pytest.raises(ValueError, match="no stream 'valid' of languages"):
        joint_languages(benchmark, train_name="valid")
