import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.training.templates.class_matrix import (
    ClassMatrices,
    distinct_rows,
    prompt_key,
)

A, B, C = (prompt_key(n, ("{} x", "the {}")) for n in "abc")


class Encoder:
    """Features from the letters of a text; notes what it is given."""

    def __init__(self, factor=1.0):
        self.calls, self.factor = [], factor

    def __call__(self, texts):
        self.calls.append(list(texts))
        rows = [[ord(t[0]) % 7, len(t) + 1, ord(t[-1]) % 5 + 1] for t in texts]
        return self.factor * torch.tensor(rows, dtype=torch.float32)


def slow(key, encode):
    name, templates = key
    features = [encode([t.replace("{}", name)])[0] for t in templates]
    return F.normalize(sum(F.normalize(f, dim=0) for f in features), dim=0)


def test_get__is_the_normalised_mean_of_normalised_features():
    encode = Encoder()
    found = ClassMatrices().get([[A, B], [C]], encode)
    expected = torch.stack([slow(k, Encoder()) for k in (A, B, C)])
    torch.testing.assert_close(found, expected)
    assert encode.calls == [
        ["a x", "the a", "b x", "the b"],
        ["c x", "the c"],
    ]


def test_get__encodes_in_batches_and_only_new_groups():
    encode, cache = Encoder(), ClassMatrices(batch_size=3)
    first = cache.get([[A, B]], encode)
    assert [len(c) for c in encode.calls] == [3, 1]
    again = cache.get([[B, A]], encode)
    assert len(encode.calls) == 2 and torch.equal(again, first.flip(0))
    cache.get([[A, B], [C, A]], encode)
    assert encode.calls[2:] == [["c x", "the c"]]
    # A group that is known in part only is encoded as a whole.
    cache.get([[C, A]], encode)
    assert encode.calls[3:] == [["a x", "the a", "c x"], ["the c"]]
    cache.get([[A, B], [C, A]], encode)
    assert len(encode.calls) == 5


def test_get__reuse_encodes_only_new_classes():
    encode, cache = Encoder(), ClassMatrices()
    cache.get([[A]], encode, reuse=True)
    found = cache.get([[B, A, B]], encode, reuse=True)
    assert encode.calls == [["a x", "the a"], ["b x", "the b"]]
    torch.testing.assert_close(
        found, torch.stack([slow(k, Encoder()) for k in (B, A, B)])
    )
    assert torch.equal(cache.get([[A, B]], encode, reuse=True), found[1:])
    assert len(encode.calls) == 2


def test_get__bits_do_not_depend_on_what_was_kept():
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))

    def encode(texts):  # features that depend on the batch, as last bits do
        rows = [
            [(ord(c) * (k + 3)) % 17 for k, c in enumerate(t * 40)][:40] for t in texts
        ]
        return torch.tensor(rows).float() @ weight + 1e-3 * len(texts)

    history = ClassMatrices()
    for groups in ([[A]], [[B, C]], [[A, C]], [[A], [B, C]]):
        kept = history.get(groups, encode)
        assert torch.equal(kept, ClassMatrices().get(groups, encode))
    history.get([[C]], encode, reuse=True)
    assert torch.equal(
        history.get([[C, A]], encode), ClassMatrices().get([[C, A]], encode)
    )


def test_get__equal_keys_are_encoded_once():
    encode = Encoder()
    found = ClassMatrices().get([[A, B, A], [B]], encode)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert sum(map(len, encode.calls)) == 4


def test_get__new_fingerprints_and_variants_encode_anew():
    encode, cache = Encoder(), ClassMatrices()
    cache.get([[A]], encode, fingerprint="1")
    cache.get([[A]], encode, fingerprint="1", variant=3)
    cache.get([[A]], encode, fingerprint="1", variant=-1)
    assert len(encode.calls) == 3
    for variant in (None, 3, -1):
        cache.get([[A]], encode, fingerprint="1", variant=variant)
    assert len(encode.calls) == 3
    cache.get([[A]], encode, fingerprint="2", variant=3)
    cache.get([[A]], encode, fingerprint="1")
    assert len(encode.calls) == 4
    # A new fingerprint drops the old vectors.
    cache.get([[A]], encode, fingerprint="1", variant=3)
    assert len(encode.calls) == 5
    cache.forget()
    cache.get([[A]], encode, fingerprint="1")
    assert len(encode.calls) == 6


def test_get__no_classes_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        ClassMatrices().get([[]], Encoder())


def test_distinct_rows():
    assert distinct_rows(["a", "b"]) is None
    assert distinct_rows([]) is None
    assert distinct_rows(["a", "b", "a", "c", "b"]) == ([0, 1, 3], [0, 1, 0, 2, 1])
