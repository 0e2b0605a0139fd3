"""Members of archives, sound and hostile: found as tarfile finds them, or told."""

import io
import os
import random
import tarfile

import pytest

from avalanche_clip import file_limits
from avalanche_clip.benchmarks import SKIP_CAUSES, SampleFault
from avalanche_clip.benchmarks.datasets.web.tars import (
    read_member,
    scan,
    split_name,
)
from tests.tar_files import sample, samples, write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "/".join(["folder" * 9] * 4) + "/s1"


def found_in(path):
    """Samples with the bytes of their members, and faults by cause."""
    faults = []
    found = scan(path, faults.append, checksums=True)
    content = {
        f"{key}.{ending}": read_member(path, place, "x")
        for key, own in found.items()
        for ending, place in own.items()
    }
    assert all(isinstance(f, SampleFault) and f.cause in SKIP_CAUSES for f in faults)
    assert all(str(path) in str(fault) for fault in faults)
    return content, [fault.cause for fault in faults]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("key", ["s1", "a/b.c/s1", "été/ς1", LONG])
def test_members__are_those_that_tarfile_finds(tmp_path, format, key):
    entries = [*sample(3, key), *sample(4), ("empty.txt", b"")]
    if format == tarfile.USTAR_FORMAT and key == LONG:
        key = LONG[-200:].lstrip("/")
        entries = [*sample(3, key), *sample(4), ("empty.txt", b"")]
    path = write_tar(tmp_path / "a.tar", entries, format=format)
    with tarfile.open(path) as tar:
        wanted = {m.name: tar.extractfile(m).read() for m in tar}
    assert found_in(path) == (wanted, [])
    assert wanted == dict(entries)


def test_members__of_a_shard_that_webdataset_wrote(tmp_path):
    wds = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path)) as writer:
        for n in range(3):
            writer.write({"__key__": f"k{n}", "TXT": f"text {n}", "cls": n})
    content, faults = found_in(path)
    assert not faults and content["k2.txt"] == b"text 2" and content["k1.cls"] == b"1"


def test_members__that_are_no_plain_files_or_no_samples__are_passed_over(tmp_path):
    kinds = {
        "link.txt": tarfile.SYMTYPE, "hard.txt": tarfile.LNKTYPE,
        "folder.txt": tarfile.DIRTYPE, "pipe.txt": tarfile.FIFOTYPE,
        "device.txt": tarfile.CHRTYPE,
    }  # fmt: skip
    entries = []
    for name, kind in kinds.items():
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        entries.append((member, b""))
    entries += [("README", b"x"), (".rc.txt", b"x"), ("__meta__", b"x")]
    entries += [("__info__/1.txt", b"x")]
    path = write_tar(tmp_path / "a.tar", [*entries, *sample(1)])
    assert found_in(path) == (dict(sample(1)), [])


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd.txt", "../up.txt", "a/../../up.txt", "..\\up.txt", "\\x.txt"),
        *("a\nb.txt", "\x1b[31m.txt", "\x7f.txt", "\x9b1.txt"),
    ],
)
def test_names__that_leave_their_folder_or_steer_terminals__are_refused(tmp_path, name):
    path = write_tar(tmp_path / "a.tar", [(name, b"evil"), *sample(1)])
    assert found_in(path) == (dict(sample(1)), ["member refused"])


def test_names__that_are_no_utf8__are_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("\xe9t\xe9.txt"))
        for name, content in sample(1):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert found_in(path) == (dict(sample(1)), ["member refused"])


def test_names__with_a_dot_before__are_the_same(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"./{n}", c) for n, c in sample(1)])
    assert found_in(path) == (dict(sample(1)), [])


def test_members__that_occur_twice__leave_their_sample_out(tmp_path):
    again = [("00000001.txt", b"another")]
    path = write_tar(tmp_path / "a.tar", [*samples([1, 2]), *again])
    assert found_in(path) == (dict(sample(2)), ["member twice"])


def changed_header(path, place, raw, at=0):
    """Write into the header of a member, with a right checksum."""
    content = bytearray(path.read_bytes())
    content[at + place : at + place + len(raw)] = raw
    head = content[at : at + 512]
    total = sum(head) - sum(head[148:156]) + 256
    content[at + 148 : at + 156] = b"%06o\0 " % total
    path.write_bytes(content)


@pytest.mark.parametrize(
    "place, raw, cause",
    [
        (124, b"77777777777\0", "archive cut off"),
        (124, b"\x80" + b"\xff" * 11, "archive cut off"),
        (124, b"\xff" * 12, "archive damaged"),  # a negative size
        (124, b"-0000000001\0", "archive damaged"),
        (124, b"0000000009x\0", "archive damaged"),
        (156, b"S", "member refused"),  # sparse
        (156, b"x", None),  # a picture in place of records
        (156, b"L", None),
    ],
)
def test_headers__that_lie__are_told(tmp_path, place, raw, cause):
    path = write_tar(tmp_path / "a.tar", samples([1, 2]))
    changed_header(path, place, raw)
    content, faults = found_in(path)
    assert cause is None or faults[0] == cause
    assert "00000001.png" not in content


def test_sparse_files_of_pax__are_told(tmp_path):
    member = tarfile.TarInfo("1.txt")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**60)}
    path = write_tar(tmp_path / "a.tar", [(member, b"x")], format=tarfile.PAX_FORMAT)
    assert found_in(path) == ({}, ["archive cut off"])


@pytest.mark.parametrize("raw", [b"", b"<html>", b"\0" * 100, b"x" * 600, b"\x1f\x8b"])
def test_other_files__are_told(tmp_path, raw):
    path = tmp_path / "a.tar"
    path.write_bytes(raw)
    assert found_in(path) == ({}, ["archive damaged"])


def test_compressed_archives__are_told(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.txt"))
    assert found_in(path) == ({}, ["archive damaged"])
    with pytest.raises(SampleFault, match="gzipped data"):
        raise_first(path)


def raise_first(path):
    def tell(fault):
        raise fault

    scan(path, tell)


def test_archives__cut_anywhere__give_whole_samples_and_say_so(tmp_path):
    whole = samples(range(4))
    content = write_tar(tmp_path / "a.tar", whole).read_bytes()
    wanted, last = dict(whole), max(i for i, b in enumerate(content) if b)
    path = tmp_path / "cut.tar"
    for size in [*range(0, last, 97), last]:
        path.write_bytes(content[:size])
        got, faults = found_in(path)
        assert faults == ["archive cut off" if size >= 512 else "archive damaged"]
        assert got.items() <= wanted.items() and len(got) % 3 == 0


def test_archives__with_random_damage__raise_nothing_else(tmp_path):
    whole = samples(range(3))
    content = write_tar(tmp_path / "a.tar", whole, format=tarfile.PAX_FORMAT)
    content = content.read_bytes()
    path, draw = tmp_path / "b.tar", random.Random(1)
    for _ in range(150):
        raw = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        path.write_bytes(raw[: draw.choice([len(raw), draw.randrange(len(raw))])])
        found_in(path)


def test_archives__with_a_hole_of_zeros_or_more_behind_their_end__are_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples([1, 2]))
    whole = path.read_bytes()
    second = whole.index(b"00000002.png")
    hole = whole[:second] + bytes(512) + whole[second + 512 :]
    for content, wanted in ((hole, []), (whole + whole, sample(1))):
        path.write_bytes(content)
        assert found_in(path) == (dict(wanted), ["archive damaged"])
    path.write_bytes(whole + bytes(5000))
    assert found_in(path) == (dict(samples([1, 2])), [])


def test_large_members__are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [("1.txt", b"x" * 2000)])
    found = scan(path, pytest.fail)
    monkeypatch.setattr(file_limits, "member_bytes", 1000)
    with pytest.raises(SampleFault, match="limit of 1000"):
        read_member(path, found["1"]["txt"], "1.txt")


def test_files__do_not_stay_open_and_all_are_read_right(tmp_path):
    paths = [write_tar(tmp_path / f"{n}.tar", sample(n)) for n in range(100)]
    places = [
        scan(path, pytest.fail)[f"{n:08d}"]["txt"] for n, path in enumerate(paths)
    ]
    before = len(os.listdir("/proc/self/fd"))
    for n in [
        *range(100),
        *range(99, -1, -1),
        *random.Random(0).sample(range(100), 90),
    ]:
        assert read_member(paths[n], places[n], "x") == f"caption {n}".encode()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_names__with_underscores_are_samples_where_webdataset_has_such(tmp_path):
    wds = pytest.importorskip("webdataset")
    names = ("__a", "__b__", "__c/1", "__d__/1", "e/__f__/1", "__")
    path = write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"x") for n in names])
    found = wds.WebDataset(str(path), shardshuffle=False)
    keys = [f"{sample['__key__']}.txt" for sample in found]
    assert [*found_in(path)[0]] == keys and len(keys) == 5


def test_split_name__agrees_with_webdataset():
    tars = pytest.importorskip("webdataset.tariterators")
    for name in ("a.txt", "a/b.c/d.e.f", "a.b/c.PNG", "x/y.tar.gz"):
        key, ending = tars.base_plus_ext(name)
        assert split_name(name) == (key, ending.lower())
