"""A tokenizer that learns the words of new languages and never renumbers old ones.

Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186) and the released code
for the merged vocabulary; tokenizers kept per language, reachable tokens, pruning
and the wider word pattern are our choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from avalanche_clip.common.checks import as_size, require_choice, require_some
from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.models.text.learning import (
    LearntVocabulary,
    count_words,
    train_bpe,
    train_pieces,
)
from avalanche_clip.models.text.sources import (
    PRETOKENIZERS,
    SPECIAL_NAMES,
    Dress,
    clean_function,
    read_source,
    use_marks,
)
from avalanche_clip.models.text.tokenizers import (
    CaptionTokenizer,
    Codes,
    check_languages,
)
from avalanche_clip.models.text.vocabulary import (
    MERGE_ORDERS,
    Snapshot,
    Vocabulary,
    VocabularyGrowth,
    read_snapshots,
)
from avalanche_clip.models.text.vocabulary_storage import REWRITE, naming

SCOPES = ("latest", "language")
FILE_NAME = "growing_tokenizer.json"
# attributes that a stored state names as they are
_OPTIONS = ("scope", "pretokenizer", "prune_unreachable", "default_language")
_ROWS = ("context_length", "trim", "truncate")


class GrowingTokenizer(CaptionTokenizer):
    """A caption tokenizer whose vocabulary grows language by language.

    Before the first growth it gives the same ids as ``source``. Old ids keep
    their tokens for ever; new ones are appended. Later merges (or pieces) may
    still cut old captions in another way, which changes features of old
    languages although no weight has changed. ``scope="language"`` prevents that:
    a caption is cut with the vocabulary of the moment its language was added.

    Supported sources: open_clip's byte pairs, and JSON or fast transformers
    tokenizers with byte-level BPE (CLIP) or Unigram models (SentencePiece:
    XLM-R, T5, mT5, SigLIP), to whose pieces new ones with their own log
    probabilities are appended.

    :param source: tokenizer to start from; it is not changed.
    :param scope: ``"latest"``: one vocabulary for all captions, as published;
        ``"language"``: see above; needs a language per caption.
    :param pretokenizer: ``"clip"``: the word pattern of the source; ``"marks"``:
        letters keep their combining marks, without which words of Hindi,
        Bengali, Telugu or Thai fall apart (CLIP's pattern only).
    :param merge_order: ``"append"``, or ``"new-first"``: merges of the latest
        language act first (byte pairs only).
    :param base_languages: names or codes of languages that the source's own
        vocabulary was made for; with ``scope="language"`` their captions keep it.
    :param prune_unreachable: leave out tokens of a new vocabulary that older
        merges keep from ever forming.
    :raises ValueError: for a source that cannot grow, or an unknown option.
    """

    def __init__(
        self,
        source: CaptionTokenizer,
        *,
        scope: str = "latest",
        pretokenizer: str = "clip",
        merge_order: str = "append",
        base_languages: Sequence[int | str] = (),
        prune_unreachable: bool = False,
    ) -> None:
        require_choice("scope", scope, SCOPES)
        require_choice("pretokenizer", pretokenizer, PRETOKENIZERS)
        vocabulary, dress = read_source(source)
        if pretokenizer == "marks":
            vocabulary.pipeline = use_marks(vocabulary.pipeline)
        if merge_order != "append" and vocabulary.kind != "bpe":
            raise ValueError(
                f"merge_order={merge_order!r} needs merges, but this tokenizer has "
                "pieces; leave it out."
            )
        require_choice("merge_order", merge_order, MERGE_ORDERS)
        vocabulary.merge_order = merge_order
        given = {f.name: getattr(source, f.name) for f in fields(CaptionTokenizer)}
        super().__init__(**given)
        self.scope = scope
        self.pretokenizer = pretokenizer
        self.prune_unreachable = prune_unreachable
        #: language used by ``scope="language"`` for captions without one
        self.default_language: int | str | None = None
        self.vocabulary = vocabulary
        #: what was known when each language was added, by name
        self.snapshots: dict[str, Snapshot] = {}
        self._dress = dress
        self._codes: dict[int, str] = {}
        self._prepare()
        for language in base_languages:
            codes = (int(language),) if isinstance(language, int) else ()
            self._take_snapshot(str(language), codes)

    def _prepare(self) -> None:
        self._clean = clean_function(self._dress.clean)
        self._built: dict[int, Any] = {}
        self._cache = {}
        self.vocab_size = len(self.vocabulary.tokens)

    # ------------------------------------------------------------ description
    @property
    def base_vocab_size(self) -> int:
        """Number of ids before any growth."""
        return self.vocabulary.sizes[0]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of start, end, unknown and further special tokens.

        CLIP pads with the id of an ordinary token, which is none of them.
        """
        return tuple(self._dress.special_ids)

    @property
    def languages(self) -> tuple[str, ...]:
        """Names of the languages added so far, in their order."""
        return tuple(self.snapshots)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token string, or None."""
        return self.vocabulary.ids.get(token)

    # --------------------------------------------------------------- encoding
    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption under the latest vocabulary, uncut."""
        return self._encode_in(text, self.vocabulary.level)

    def encode_in(self, text: str, language: int | str | None = None) -> list[int]:
        """Return the uncut ids of one caption as :meth:`__call__` would cut it.

        :param text: the caption.
        :param language: its language's code or name; used with
            ``scope="language"`` only. Languages that were never added are cut with
            the latest vocabulary.
        :raises ValueError: if it is missing under ``scope="language"`` and there is
            no ``default_language``.
        """
        given = None if language is None else [language]
        return self._encode_in(text, self._ways(given, 1)[0])

    def _encode_in(self, text: str, way: Any) -> list[int]:
        if self._clean is not None:
            text = self._clean(text)
        for old, new in self._dress.renamed.items():
            text = text.replace(old, new)
        inner = self._built.get(way)
        if inner is None:
            inner = self._built[way] = self.vocabulary.build(way)
        # one caption per call: the batch call starts threads, which forked data
        # workers then warn about
        ids = inner.encode(text, add_special_tokens=self._dress.template).ids
        if not self._dress.template:
            start = [] if self.sot_id is None else [self.sot_id]
            return [*start, *ids, self.eot_id]
        if self._dress.zeroed is not None:
            ids = [0 if number == self._dress.zeroed else number for number in ids]
        return ids

    def _ways(self, languages: Codes | None, count: int) -> list[Any]:
        """Return the level of each caption, see ``scope``."""
        listed = check_languages(languages, count)
        latest = self.vocabulary.level
        if self.scope == "latest":
            return [latest] * count
        if listed is None:
            if self.default_language is None and self.snapshots:
                raise ValueError(
                    "scope='language' needs the language of each caption, but none was "
                    "given. Give languages to make_image_text_dataset (the collate "
                    "passes them on), or set default_language on the tokenizer."
                )
            default = self.default_language
            listed = ["" if default is None else default] * count
        return [self._level_of(language) for language in listed]

    def _level_of(self, language: int | str) -> int:
        if not isinstance(language, str):
            language = self._codes.get(int(language), "")
        snapshot = self.snapshots.get(language)
        return self.vocabulary.level if snapshot is None else snapshot.level

    # ---------------------------------------------------------------- growing
    def train_language(
        self, language: str, captions: Iterable[str], vocab_size: int = 10_000
    ) -> LearntVocabulary:
        """Learn the vocabulary of one language, without adding it.

        A fresh model of the same kind is trained: the same clean-up, word
        pattern, end-of-word suffix and special tokens.

        :param language: name, for messages.
        :param captions: plain captions.
        :param vocab_size: whole size, special tokens and bytes included.
        :return: what :meth:`add_language` takes.
        :raises ValueError: if there is no caption, or ``vocab_size`` is too
            small for the bytes.
        """
        texts = list(captions if self._clean is None else map(self._clean, captions))
        require_some(texts, f"captions of {language!r} to learn from")
        specials = [self.vocabulary.tokens[i] for i in self.special_ids]
        inner = self.vocabulary.build(0)
        if self.vocabulary.kind == "unigram":
            unknown = self.vocabulary.pipeline["model"].get("unk_id")
            name = None if unknown is None else self.vocabulary.tokens[unknown]
            return train_pieces(
                texts, inner, vocab_size, specials=specials, unknown=name
            )
        from tokenizers.pre_tokenizers import ByteLevel

        words = count_words(texts, inner)
        return train_bpe(
            words,
            vocab_size,
            alphabet=sorted(ByteLevel.alphabet()),
            specials=specials,
            suffix=self.vocabulary.pipeline["model"].get("end_of_word_suffix") or "",
        )

    def add_language(
        self,
        language: str,
        vocabulary: LearntVocabulary | Iterable[str] | None = None,
        *,
        codes: Sequence[int] = (),
        vocab_size: int = 10_000,
    ) -> VocabularyGrowth:
        """Add a language's vocabulary at the end of this one.

        Known token strings keep their ids, special tokens are never added
        again, and the language's tokenizer is remembered as it is then. A
        language that is added again moves its snapshot if that adds anything.

        :param language: name.
        :param vocabulary: from :meth:`train_language`, or captions to learn it
            from; None adds nothing and only remembers the language.
        :param codes: integer codes that stand for the language in batches.
        :param vocab_size: see :meth:`train_language`, for captions.
        :return: what has changed.
        :raises ValueError: if the vocabulary is of another kind, or a code
            belongs to another language.
        """
        if isinstance(vocabulary, str):
            raise ValueError("vocabulary is one string; give a list of captions.")
        codes = [as_size(code, "A code of a language", least=0) for code in codes]
        for code in codes:
            owner = self._codes.get(code, language)
            if owner != language:
                raise ValueError(
                    f"Code {code} stands for {owner!r} already and cannot stand for "
                    f"{language!r} too; give every language codes of its own."
                )
        if vocabulary is None:
            learnt = LearntVocabulary(())
        elif isinstance(vocabulary, LearntVocabulary):
            learnt = vocabulary
        else:
            learnt = self.train_language(language, vocabulary, vocab_size)
        known, old = self.vocabulary.ids, self.vocabulary
        overlap = sum(token in known for token in learnt.tokens)
        if vocabulary is not None:
            names = [self.vocabulary.tokens[i] for i in self.special_ids]
            grown = old.grown(
                learnt, ignored=(*SPECIAL_NAMES, *names), prune=self.prune_unreachable
            )
            if len(grown.tokens) > len(old.tokens) or grown.parts[-1]:
                self.vocabulary = grown
                self._cache = {}
                self.vocab_size = len(grown.tokens)
        moved = self.vocabulary is not old
        if moved or language not in self.snapshots:
            self._take_snapshot(language, codes)
        self._codes.update((code, language) for code in codes)
        size = len(old.tokens)
        return VocabularyGrowth(
            language=language,
            old_size=size,
            new_size=self.vocab_size,
            num_new_merges=len(self.vocabulary.parts[-1]) if moved else 0,
            overlap=overlap,
            overlap_ratio=100 * overlap / max(1, len(learnt.tokens)),
            reachable=len(self.vocabulary.reachable(size)) if moved else 0,
        )

    def _take_snapshot(self, language: str, codes: Sequence[int]) -> None:
        before = self.snapshots.get(language)
        kept = () if before is None else before.codes
        level = self.vocabulary.level
        self.snapshots[language] = Snapshot(
            language,
            tuple(dict.fromkeys([*kept, *map(int, codes)])),
            self.vocab_size,
            len(self.vocabulary.merges(level)),
            level,
        )
        self._codes.update((int(code), language) for code in codes)

    def reserve(self, size: int) -> None:
        """Give unused ids to the rows that a token table has beyond this vocabulary.

        :param size: rows of the table.
        :raises RuntimeError: if the vocabulary has grown already.
        """
        if size <= self.vocab_size:
            return
        if self.vocabulary.level:
            raise RuntimeError("Ids can be reserved before the first growth only.")
        self.vocabulary = self.vocabulary.padded(size)
        self._prepare()

    # ---------------------------------------------------------------- storage
    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`from_state_dict` needs, as plain data."""
        return {
            "format": 1,
            "vocabulary": self.vocabulary.state_dict(),
            "snapshots": [
                {**asdict(s), "codes": list(s.codes)} for s in self.snapshots.values()
            ],
            "codes": [[code, name] for code, name in self._codes.items()],
            "dress": asdict(self._dress),
            "ids": [self.sot_id, self.eot_id, self.pad_id],
            **{name: getattr(self, name) for name in (*_OPTIONS, *_ROWS)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the stored tokenizer, in place.

        :param state: from :meth:`state_dict`.
        :raises ValueError: if its base vocabulary is another one.
        """
        stored = Vocabulary.from_state_dict(state["vocabulary"])
        size = self.base_vocab_size
        same = stored.kind == self.vocabulary.kind and stored.sizes[0] == size
        if not same or stored.tokens[:size] != self.vocabulary.tokens[:size]:
            raise ValueError(
                f"The stored vocabulary began with {stored.sizes[0]} tokens of the "
                f"kind {stored.kind!r}, this one with {size} of the kind "
                f"{self.vocabulary.kind!r}, or their strings differ; build the model "
                "that was stored."
            )
        self._load(state, stored)

    def _load(self, state: dict[str, Any], vocabulary: Vocabulary) -> None:
        snapshots, codes = read_snapshots(state, vocabulary)
        dress = Dress(**state["dress"])
        require_choice("scope", state["scope"], SCOPES)
        require_choice("pretokenizer", state["pretokenizer"], PRETOKENIZERS)
        self.vocabulary = vocabulary
        self.snapshots, self._codes, self._dress = snapshots, codes, dress
        for name in _OPTIONS:
            setattr(self, name, state[name])
        self._prepare()

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> GrowingTokenizer:
        """Build the tokenizer that :meth:`state_dict` described."""
        self = cls.__new__(cls)
        start, end, pad = state["ids"]
        vocabulary = Vocabulary.from_state_dict(state["vocabulary"])
        CaptionTokenizer.__init__(
            self,
            sot_id=start,
            eot_id=end,
            pad_id=pad,
            vocab_size=len(vocabulary.tokens),
            **{name: state[name] for name in _ROWS},
        )
        self._load(state, vocabulary)
        return self

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write ``growing_tokenizer.json`` and describe it."""
        path = Path(folder) / FILE_NAME
        write_json(path, self.state_dict(), checksum=True, indent=None)
        return {"type": "growing", "file": FILE_NAME}

    @classmethod
    def load(cls, path: str | Path) -> GrowingTokenizer:
        """Read a file written by :meth:`save`, or the folder that holds it.

        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if it is damaged.
        """
        path = Path(path)
        if path.is_dir() and path.name != FILE_NAME:
            path = path / FILE_NAME
        state = read_json(path, checksum=True, rewrite=REWRITE)
        with naming(path, "a growing tokenizer"):
            return cls.from_state_dict(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> GrowingTokenizer:
        twin = super().__deepcopy__(memo)
        assert isinstance(twin, GrowingTokenizer)
        # vocabularies are replaced, never changed; these are changed in place
        twin.snapshots = dict(self.snapshots)
        twin._codes, twin._built = dict(self._codes), dict(self._built)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_built": {}, "_clean": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clean = clean_function(self._dress.clean)
