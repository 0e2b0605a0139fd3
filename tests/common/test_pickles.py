import io
import pickle
import resource

import pytest

from avalanche_clip.common.pickles import BoundedUnpickler

HUGE = (2**31).to_bytes(8, "little")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data__come_back(protocol):
    content = {"a": [1, 2.5, None, True], "b": (b"x" * 300, "y" * 70000), "c": 2**90}
    if protocol == 5:
        content["d"] = bytearray(b"abc")
    text = pickle.dumps(content, protocol)
    if protocol < 3:  # bytes are made by a function in those
        text = pickle.dumps(content := {**content, "b": ("y",)}, protocol)
    assert BoundedUnpickler(io.BytesIO(text)).load() == content


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x05\x96" + HUGE + b"x.",
        b"\x80\x05\x8e" + HUGE + b"x.",
        b"\x80\x05\x8d" + HUGE + b"x.",
        b"\x80\x02Nr" + HUGE[:3] + b"\x0f0.",
    ],
    ids=["bytearray", "bytes", "text", "number of an entry"],
)
def test_what_is_declared__takes_no_memory(text):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((pickle.UnpicklingError, EOFError, IndexError)):
        BoundedUnpickler(io.BytesIO(text)).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**17  # kB


def test_names__are_refused():
    with pytest.raises(pickle.UnpicklingError, match="posix.system|nt.system"):
        BoundedUnpickler(io.BytesIO(b"cposix\nsystem\n(S'ls'\ntR.")).load()
