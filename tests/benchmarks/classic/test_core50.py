"""CORe50: reader of its folders, and the domain-incremental stream."""

import numpy as np
import pytest

from avalanche_clip.benchmarks.classic.core50 import core50
from avalanche_clip.benchmarks.datasets import CORE50_NAMES, read_core50
from tests.benchmarks.datasets.mtil.disk import save
from tests.benchmarks.small_streams import check_ids_differ, column
from tests.refused import refused


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two frames per object and session, one in session 11."""
    folder = tmp_path_factory.mktemp("core50_128x128")
    for session in range(1, 12):
        for number in range(1, 51):
            for frame in (10, 2)[: 1 if session == 11 else 2]:
                name = f"C_{session:02}_{number:02}_{frame:03}.png"
                path = folder / f"s{session}" / f"o{number}" / name
                save(path, session * 10 + (number - 1) // 5, frame)
    (folder / "s1" / "o1" / "Thumbs.db").write_text("x")
    return folder


def test_reader__sessions_objects_and_frames_in_order(root):
    data = read_core50(root, check="ignore")
    assert data.class_names == CORE50_NAMES and len(CORE50_NAMES) == 10
    assert CORE50_NAMES[::9] == ("plug adapters", "remote controls")
    assert list(data.sessions) == list(range(1, 12))
    third = data.sessions[3]
    assert third.targets.tolist() == np.repeat(np.arange(10), 10).tolist()
    source = third.source
    names = [source.path(i).rpartition("/s")[2] for i in third.indices[[0, 1, 2, -1]]]
    assert names == [
        *("3/o1/C_03_01_002.png", "3/o1/C_03_01_010.png"),
        *("3/o2/C_03_02_002.png", "3/o50/C_03_50_010.png"),
    ]
    image, label = third[27]
    assert label == 2 and image.mode == "RGB"
    assert abs(image.getpixel((3, 3))[0] - 2 * 32) < 3


def test_benchmark__eight_sessions_are_learned_and_three_tested(root):
    found = core50(root, check="ignore")
    assert found.protocol == "domain_incremental"
    sessions = [1, 2, 4, 5, 6, 8, 9, 11]
    assert [e.dataset_index for e in found.train_stream] == sessions
    assert [e.label for e in found.train_stream][:3] == [
        *("session 1", "session 2", "session 4"),
    ]
    assert [len(e.dataset) for e in found.train_stream] == [100] * 7 + [50]
    assert [len(e.dataset) for e in found.test_stream] == [300]
    parts = found.streams["test_sessions"]
    assert [(e.dataset_index, len(e.dataset)) for e in parts] == [
        *((3, 100), (7, 100), (10, 100)),
    ]
    whole = found.test_stream[0]
    assert column(whole).tolist() == sum((column(e).tolist() for e in parts), [])
    for stream in found.streams.values():
        for experience in stream:
            assert list(experience.class_ids) == list(range(10))
            assert set(column(experience).tolist()) == set(range(10))
    assert found.class_prompts.prompts([0]) == ["a good photo of a plug adapters."]
    check_ids_differ(found)
    image, text, *_ = whole.dataset[0]
    assert image.size == (8, 8) and text == "a good photo of a plug adapters."


def test_reader__what_is_not_core50_is_refused(root, tmp_path):
    refused("check='no' is unknown", read_core50, root, check="no")
    with pytest.warns(UserWarning, match="750 training images instead of 119,894"):
        core50(root)
    refused("300 test images instead of 44,972", core50, root, check="raise")
    missing = refused("s1/o1", read_core50, tmp_path, error=FileNotFoundError)
    assert (
        "550 folders of CORe50 are missing" in missing and "core50_128x128" in missing
    )
    for name in ("C_01_02_000.png", "C_1_1_0.png", "C_02_01_000.png"):
        wrong = tmp_path / name
        save(wrong / "s1" / "o1" / name, 0, 0)
        refused("must be named C_01_01_ and three digits", read_core50, wrong)
