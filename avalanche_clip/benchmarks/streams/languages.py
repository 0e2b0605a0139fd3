"""Streams of languages from any image-text data whose language is known."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence

from avalanche_clip.benchmarks.items.facts import with_facts
from avalanche_clip.benchmarks.items.items import attribute_array, repeated
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.streams.merged import merge_experiences
from avalanche_clip.common.checks import (
    as_integer,
    as_size,
    require_choice,
    require_distinct,
    require_known,
    require_some,
    require_type,
)

logger = logging.getLogger(__name__)

MULTILINGUAL = "multilingual"
OTHERS = ("raise", "drop", "test")

Source: TypeAlias = "AvalancheDataset | Mapping[str, AvalancheDataset]"
# Names and codes of languages, as far as a source has them, and their data.
Cut: TypeAlias = "list[tuple[str | None, int | None, AvalancheDataset]]"


def multilingual_benchmark(
    train: Source,
    *,
    order: Sequence[str | int] | None = None,
    languages: Sequence[str] | Mapping[str, int] | None = None,
    others: str = "raise",
    **streams: Source,
) -> CLScenario:
    """Cut image-text data into a stream with one language per experience.

    Each source is one data set with an integer attribute ``language``, or a
    mapping of language names to data sets. Every sample of a learned language
    lands in exactly one experience; inside it samples keep their order.
    Experiences carry ``language`` (name), ``language_code`` (integer),
    ``languages`` (a tuple of the name) and ``label``; the scenario ``languages``
    (names in the order of the stream), ``language_codes`` (name -> integer) and
    ``protocol = "multilingual"``.
    ``language`` becomes a part of every item, so that the collate passes each
    caption's code to the tokenizer.

    In mappings, data sets may share sample ids (a corpus and its translations).
    Since ids must be unique in a training stream, they are then raised by a
    multiple of a common power of ten per language, in all streams alike, and
    the old ids are kept as the fact ``source_id``.

    :param train: training data.
    :param order: languages in the order of learning, names or codes; default
        the order of the mapping, or ascending codes.
    :param languages: names by code: a sequence (position = code) or a mapping
        of names to codes. Default: the code as a string for data with an
        attribute, the position in ``train`` for mappings. Data sets in a mapping
        that have the attribute must hold a single code, which is then used.
    :param others: what to do with languages that are not in ``order``:
        ``"raise"``, ``"drop"`` them and log how many samples, or ``"test"``: drop
        them from ``train`` and append them to the other streams, where they show
        zero-shot transfer.
    :param streams: further data (``test=...``, ``valid=...``); each must have
        every learned language.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: if a language is unknown, repeated, missing in a stream
        or without samples, codes clash, or ``others`` is unknown.
    :raises TypeError: if a source is neither an Avalanche data set nor a mapping
        of them.
    """
    require_choice("others", others, OTHERS)
    sources: dict[str, Source] = {"train": train, **streams}
    cuts = {name: _cut(name, source) for name, source in sources.items()}
    codes = _codes(cuts, languages)
    parts = {name: _named(name, cut, codes) for name, cut in cuts.items()}
    learned = _order(order, codes, parts["train"])
    for name, found in parts.items():
        _check_languages(name, found, learned, others)
    if any(isinstance(source, Mapping) for source in sources.values()):
        parts = _unique_ids(parts, codes)
    built = {}
    for name, found in parts.items():
        extra: list[str] = []
        if others == "test" and name != "train":
            extra = sorted(set(found) - set(learned), key=codes.__getitem__)
        built[name] = [
            make_experience(
                found[language],
                language=language,
                language_code=codes[language],
                languages=(language,),
                label=language,
            )
            for language in [*learned, *extra]
        ]
    return make_scenario(
        built,
        languages=tuple(learned),
        language_codes=dict(codes),
        protocol=MULTILINGUAL,
    )


def joint_languages(benchmark: CLScenario, *, train_name: str = "train") -> CLScenario:
    """Put all languages of a stream into one training experience.

    :param benchmark: made by :func:`multilingual_benchmark`, prepared or not.
    :param train_name: name of its training stream.
    :return: the benchmark of :func:`merge_experiences`.
    :raises ValueError: if there is no such stream of languages.
    """
    experiences = list(benchmark.streams.get(train_name, ()))
    if not experiences or not all(hasattr(e, "languages") for e in experiences):
        raise ValueError(
            f"The benchmark has no stream {train_name!r} of languages; it has "
            f"{list(benchmark.streams)}. Use multilingual_benchmark to make one."
        )
    made: CLScenario = merge_experiences(experiences).benchmark
    return made


# ------------------------------------------------------------- names and codes
def _cut(stream: str, source: Source) -> Cut:
    """Cut a source by language."""
    if isinstance(source, Mapping):
        return [(name, _own_code(stream, name, d), d) for name, d in source.items()]
    made = "a data set with languages=, or a mapping of names to data sets"
    require_type(source, AvalancheDataset, f"Stream {stream!r}", made)
    column = attribute_array(source, "language")
    order = np.argsort(column, kind="stable")
    codes, starts = np.unique(column[order], return_index=True)
    whole = _with_language(source)
    return [
        (None, int(code), whole.subset(rows.tolist()))
        for code, rows in zip(codes, np.split(order, starts[1:]))
    ]


def _codes(
    cuts: Mapping[str, Cut], languages: Sequence[str] | Mapping[str, int] | None
) -> dict[str, int]:
    """Map the names of all languages to their codes."""
    if isinstance(languages, str):
        raise ValueError(
            f"languages={languages!r} is one string; give a list of names."
        )
    if isinstance(languages, Mapping):
        return _checked_codes(languages.items())
    if languages is not None:
        return _checked_codes((name, code) for code, name in enumerate(languages))
    codes: dict[str, int] = {}
    for name, code, _ in (part for cut in cuts.values() for part in cut):
        if name is not None:
            free = max(codes.values(), default=-1) + 1
            codes.setdefault(name, free if code is None else code)
        elif code is not None and code not in codes.values():
            codes[str(code)] = code
    return _checked_codes(codes.items())


def _checked_codes(pairs: Iterable[tuple[Any, Any]]) -> dict[str, int]:
    names, codes = [], []
    for name, code in pairs:
        if not isinstance(name, str) or not name:
            raise ValueError(f"Language name {name!r} must be a non-empty string.")
        names.append(name)
        codes.append(as_size(code, f"Code of language {name!r}", least=0))
    require_distinct(names, "language names")
    require_distinct(codes, "language codes")
    return dict(zip(names, codes))


def _own_code(stream: str, language: str, dataset: Any) -> int | None:
    """The code that a data set of a mapping has, None without the attribute."""
    what = f"Language {language!r} of stream {stream!r}"
    made = "a data set made by make_image_text_dataset"
    require_type(dataset, AvalancheDataset, what, made)
    if "language" not in dataset._data_attributes:
        return None
    found = np.unique(attribute_array(dataset, "language"))
    if len(found) > 1:
        raise ValueError(
            f"The data set of language {language!r} in stream {stream!r} has the "
            f"language codes {found[:5].tolist()}; it must hold one language."
        )
    return int(found[0]) if len(found) else None


def _named(
    stream: str, cut: Cut, codes: Mapping[str, int]
) -> dict[str, AvalancheDataset]:
    """Data sets by the name of their language; those without samples are left out."""
    names: dict[int | None, str] = {code: name for name, code in codes.items()}
    of_data = [code for name, code, _ in cut if name is None]
    require_known(of_data, names, f"language codes in stream {stream!r}")
    listed = [name for name, *_ in cut if name is not None]
    require_known(listed, codes, f"languages in stream {stream!r}")
    found: dict[str, AvalancheDataset] = {}
    for name, code, dataset in cut:
        if name is None:
            found[names[code]] = dataset
            continue
        if code not in (None, codes[name]):
            raise ValueError(
                f"The data set of language {name!r} in stream {stream!r} has the code "
                f"{code}, but {name!r} is {codes[name]}; give languages= that agrees "
                "with the data, or other data."
            )
        if len(dataset):
            found[name] = _with_language(dataset, codes[name])
    return found


def _with_language(
    dataset: AvalancheDataset, code: int | None = None
) -> AvalancheDataset:
    """Return the data set with the language in its items.

    :param code: of data without that fact.
    """
    known = dataset._data_attributes.get("language")
    if known is not None and known.use_in_getitem:
        return dataset
    # One number for the whole data set, however large it is.
    column: Any = ConstantSequence(code, len(dataset))
    if known is not None:
        column = attribute_array(dataset, "language")
    return with_facts(dataset, {"language": column})


# --------------------------------------------------------------- order, ids
def _order(
    order: Sequence[str | int] | None,
    codes: Mapping[str, int],
    train: Mapping[str, AvalancheDataset],
) -> list[str]:
    if order is None:
        return list(train)
    if isinstance(order, str):
        raise ValueError(f"order={order!r} is one string; give a list of languages.")
    names = {code: name for name, code in codes.items()}
    chosen = [
        e if isinstance(e, str) else names.get(as_integer(e, "A code in order"), e)
        for e in order
    ]
    require_some(chosen, "languages in order")
    require_known(chosen, codes, "languages in order")
    require_distinct(chosen, "languages in order")
    return [str(name) for name in chosen]


def _check_languages(
    stream: str, found: Mapping[str, Any], learned: Sequence[str], others: str
) -> None:
    absent = [language for language in learned if language not in found]
    if absent:
        raise ValueError(
            f"Stream {stream!r} has no sample in {absent}; every learned language "
            "needs some in each stream. Leave these languages out of order (with "
            "others='drop'), or add data."
        )
    left = {name: len(found[name]) for name in found if name not in learned}
    if left and others == "raise":
        raise ValueError(
            f"Stream {stream!r} has {sum(left.values())} samples in languages that are "
            f"not in order: {sorted(left)}. Add them to it, or pass others='drop' or "
            "others='test'."
        )
    if left and (others == "drop" or stream == "train"):
        logger.info(
            "Stream %r: %d samples in %s left out.",
            stream,
            sum(left.values()),
            sorted(left),
        )


def _unique_ids(
    parts: dict[str, dict[str, AvalancheDataset]], codes: Mapping[str, int]
) -> dict[str, dict[str, AvalancheDataset]]:
    """Tell samples of different languages apart if training ids repeat."""
    ids = {
        stream: {name: attribute_array(d, "sample_id") for name, d in found.items()}
        for stream, found in parts.items()
    }
    if not _repeat(list(ids["train"].values())):
        return parts
    columns = [column for found in ids.values() for column in found.values()]
    largest = max(int(np.abs(column).max()) for column in columns)
    step = 10 ** len(str(largest))
    if step * (max(codes.values()) + 1) > np.iinfo(np.int64).max:
        raise ValueError(
            f"Sample ids repeat between languages and go up to {largest}, too large to "
            "be told apart by language; give ids that are unique in the benchmark."
        )

    def renewed(stream: str, name: str, dataset: AvalancheDataset) -> AvalancheDataset:
        old = ids[stream][name]
        new = with_facts(dataset, {"sample_id": old + codes[name] * step})
        if "source_id" in dataset._data_attributes:
            return new
        return with_facts(new, {"source_id": old}, in_item=False)

    return {
        stream: {name: renewed(stream, name, d) for name, d in found.items()}
        for stream, found in parts.items()
    }


def _repeat(columns: Sequence[np.ndarray]) -> bool:
    """Tell whether numbers occur in several columns; those of one are distinct."""
    ranges = sorted((int(c.min()), int(c.max())) for c in columns)
    if all(a[1] < b[0] for a, b in zip(ranges[:-1], ranges[1:], strict=True)):
        return False  # no need to sort millions of ids
    return bool(repeated(*columns).size)
