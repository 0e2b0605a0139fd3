"""TiC-DataComp: steps, evaluation sets, and no pair of one in the other."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    attribute_array,
    pair_to_uid,
    prepare_benchmark,
    write_uid_list,
)
from avalanche_clip.benchmarks.classic import TIC_DATACOMP_STEPS, tic_datacomp
from avalanche_clip.benchmarks.items.flat import raw_items
from avalanche_clip.evaluation.suites import ZeroShotTask
from avalanche_clip.training import Sequential
from tests.helpers import StubDualEncoder
from tests.refused import refused
from tests.tic_files import YEARS, entries, uid, write_datacomp
from tests.web_folders import to_pixels

STEPS = {label: tuple(map(str, years)) for label, years in YEARS.items()}
COUNT = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_datacomp(tmp_path_factory.mktemp("tic"), count=COUNT)


@pytest.fixture(scope="module")
def scenario(folders):
    return tic_datacomp(*folders, steps=STEPS)


def ids(experience):
    sources = [item.pairs for item in raw_items(experience.dataset)]
    return [pair_to_uid(u) for pairs in sources for u in pairs.uids()]


def test_steps__are_those_of_the_paper():
    assert list(TIC_DATACOMP_STEPS) == [str(y) for y in range(2016, 2023)]
    assert TIC_DATACOMP_STEPS["2016"] == ("2014", "2015", "2016")
    assert TIC_DATACOMP_STEPS["2022"] == ("2022",)  # not 2023


def test_streams__have_their_pairs_and_times(scenario):
    train, test = scenario.train_stream, scenario.test_stream
    assert scenario.time_labels == [e.time_label for e in train] == ["2016", "2017"]
    assert [e.time_label for e in test] == ["2014", "2015", "2016", "2017"]
    assert [e.step for e in test] == [0, 0, 0, 1] and [e.step for e in train] == [0, 1]
    # 0-2 have classes, 2-4 are retrieved: three of eight are left.
    assert [len(e.dataset) for e in train] == [9, 3]
    assert [len(e.dataset) for e in test] == [3] * 4
    assert sorted(ids(train[1])) == sorted(uid(2017, n) for n in (5, 6, 7))
    assert train[0].time_start == np.datetime64("2014-01-01", "s").astype(float)
    assert train[0].time_end == train[1].time_start
    assert train[1].time_end == np.datetime64("2018-01-01", "s").astype(float)
    assert train[1].counts["2017"]["in evaluation sets"] == 5
    assert list(train[0].counts) == ["2014", "2015", "2016"]
    image, text, number, task = test[0].dataset[1]
    assert text == "two\nlines" and task == 0 and image.mode == "RGB"


def test_streams__share_no_pair_and_no_sample_id(scenario):
    assert list(scenario.streams) == ["train", "test"]
    evaluated = [u for e in scenario.test_stream for u in ids(e)]
    # Those of the sets with classes, 0 to 2, are not trained on either.
    evaluated += [
        uid(year, n) for year in YEARS["2016"] + YEARS["2017"] for n in range(3)
    ]
    trained = [u for e in scenario.train_stream for u in ids(e)]
    assert len(set(trained)) == len(trained) == 12
    assert not {*trained} & {*evaluated}
    numbers = [
        attribute_array(e.dataset, "sample_id")
        for stream in scenario.streams.values()
        for e in stream
    ]
    whole = np.concatenate(numbers)
    assert len(np.unique(whole)) == len(whole) == 12 + 12


def test_classes__are_a_task_of_their_own(folders):
    task = ZeroShotTask.web(folders[1] / "datacompnet" / "2016", split="")
    assert task.labels.tolist() == [0, 1, 2]
    assert task.prompts[2] == ("a class 2.", "the class 2.")


def test_scenario__trains_and_is_prepared(scenario):
    model = StubDualEncoder()
    prepared = prepare_benchmark(scenario, model, train_transform=to_pixels)
    strategy = Sequential(model=model, train_mb_size=5, budget_iterations=2)
    strategy.train(prepared.train_stream)
    assert strategy.clock.train_iterations == 4


def test_evaluation_uids__are_subtracted_from_every_form(folders, tmp_path):
    train, evaluation = folders
    pairs = {2014: [uid(2014, 7)], "2017": [uid(2017, 6), uid(9, 9)]}
    (tmp_path / "evals.json").write_text(json.dumps(pairs))
    write_uid_list(tmp_path / "all.npy", [u for own in pairs.values() for u in own])
    for given in (tmp_path / "evals.json", str(tmp_path / "all.npy"), pairs):
        built = tic_datacomp(train, steps=STEPS, evaluation_uids=given)
        assert list(built.streams) == ["train"]
        assert [len(e.dataset) for e in built.train_stream] == [23, 7]
        assert uid(2017, 6) not in ids(built.train_stream[1])
    both = tic_datacomp(train, evaluation, steps=STEPS, evaluation_uids=pairs)
    assert [len(e.dataset) for e in both.train_stream] == [8, 2]


def test_steps__may_be_given_as_numbers(folders):
    built = tic_datacomp(*folders, steps={2016: (2014, 2015, 2016), 2017: "2017"})
    assert built.time_labels == ["2016", "2017"]
    assert [len(e.dataset) for e in built.train_stream] == [9, 3]


def test_evaluation__must_be_known(folders):
    refused("evaluation_uids", tic_datacomp, folders[0], steps=STEPS)
    refused(
        "evaluation_uids", tic_datacomp, folders[0], steps=STEPS, evaluation_uids=[]
    )
    given = {"steps": STEPS, "evaluation_uids": ["0" * 32]}
    refused("give evaluation=", tic_datacomp, folders[0], **given, gallery_size=2)
    refused("give evaluation=", tic_datacomp, folders[0], **given, seed=2)


def test_keep__filters_and_weights(folders, tmp_path):
    basic = [uid(y, n) for y in (2014, 2016, 2017) for n in (4, 5, 6)]
    write_uid_list(tmp_path / "basic.npy", basic)
    given = {"steps": STEPS, "weights": {"2016": 2}}
    refused("2015", tic_datacomp, *folders, keep=tmp_path / "basic.npy", **given)
    basic += [uid(2015, 7)]
    for form in (tmp_path / "basic.npy", sorted(basic)):
        write_uid_list(tmp_path / "basic.npy", basic)
        built = tic_datacomp(*folders, keep=form, **given)
        wanted = [(2014, 5), (2014, 6), (2015, 7), *[(2016, 5), (2016, 6)] * 2]
        assert sorted(ids(built.train_stream[0])) == sorted(uid(*w) for w in wanted)
        assert [len(e.dataset) for e in built.test_stream] == [3] * 4
    refused("ascend", tic_datacomp, *folders, keep=basic[::-1], steps=STEPS)
    refused("2018", tic_datacomp, *folders, steps=STEPS, weights={"2018": 2})
    refused("weight", tic_datacomp, *folders, steps=STEPS, weights={"2017": 1.5})


def test_months__restrict_years(folders):
    months = {
        "201703": [uid(2017, n) for n in (2, 3, 5)],
        "201711": [uid(2017, 1), uid(2017, 4), uid(2017, 6), uid(2017, 7)],
    }
    keep = {label: sorted(own) for label, own in months.items()}
    steps = dict.fromkeys(months, ("2017",))
    built = tic_datacomp(folders[0], folders[1], steps=steps, keep=keep)
    assert [e.time_label for e in built.train_stream] == list(months)
    assert [ids(e) for e in built.train_stream] == [
        [uid(2017, 5)],
        [uid(2017, 6), uid(2017, 7)],
    ]
    assert [sorted(ids(e)) for e in built.test_stream] == [
        sorted(uid(2017, n) for n in (2, 3)),
        [uid(2017, 4)],
    ]
    assert [e.time_label for e in built.test_stream] == list(months)
    start, end = built.train_stream[1].time_start, built.train_stream[1].time_end
    assert end - start == 30 * 86400
    refused("201711", tic_datacomp, *folders, steps=steps, keep={"201703": []})
    refused("2020", tic_datacomp, *folders, steps=steps, keep={**keep, "2020": []})


def test_gallery__is_chosen_by_ids(folders, scenario):
    small = tic_datacomp(*folders, steps=STEPS, gallery_size=1)
    middle = tic_datacomp(*folders, steps=STEPS, gallery_size=2)
    for one, two, whole in zip(
        small.test_stream, middle.test_stream, scenario.test_stream
    ):
        assert (len(one.dataset), len(two.dataset)) == (1, 2)
        assert {*ids(one)} < {*ids(two)} < {*ids(whole)}
        assert [pair_to_uid(u) for u in two.uids] == ids(two)
    assert small.gallery_size == 1 and scenario.gallery_size is None
    others = [
        tic_datacomp(*folders, steps=STEPS, gallery_size=1, seed=s) for s in (1, 2)
    ]
    chosen = {tuple(ids(e)[0] for e in b.test_stream) for b in (small, *others)}
    assert len(chosen) > 1
    # What a smaller pool lost is not trained on: the whole sets are subtracted.
    assert [len(e.dataset) for e in small.train_stream] == [9, 3]
    refused("4", tic_datacomp, *folders, steps=STEPS, gallery_size=4)
    refused("gallery_size", tic_datacomp, *folders, steps=STEPS, gallery_size=0)


def test_folders__that_are_missing_are_named(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="2018"):
        tic_datacomp(*folders, steps={**STEPS, "2018": ("2018",)})
    with pytest.raises(FileNotFoundError, match="absent"):
        tic_datacomp(tmp_path / "absent", folders[1], steps=STEPS)
    refused("more than once", tic_datacomp, *folders, steps={"2017": ("2017",) * 2})
    refused("May", tic_datacomp, *folders, steps={"May": ("2017",)})
    refused("steps", tic_datacomp, *folders, steps={})
    refused("sources", tic_datacomp, *folders, steps={"2017": ()})


def test_index__may_lie_elsewhere(folders, tmp_path, scenario):
    shutil.copytree(folders[0], tmp_path / "train")
    for old in [*(tmp_path / "train").rglob("tar_index")]:
        shutil.rmtree(old)
    built = tic_datacomp(
        tmp_path / "train", folders[1], steps=STEPS, index=tmp_path / "index"
    )
    assert [ids(e) for e in built.train_stream] == [
        ids(e) for e in scenario.train_stream
    ]
    assert not [*(tmp_path / "train").rglob("tar_index")]


def test_shards__that_are_cut_are_told_or_counted(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "train", ignore=lambda *_: ["tar_index"])
    shard = tmp_path / "train/2015/00000001.tar"
    shard.write_bytes(shard.read_bytes()[:4000])
    refused("00000001.tar", tic_datacomp, tmp_path / "train", folders[1], steps=STEPS)
    with pytest.warns(UserWarning, match="00000001.tar"):
        built = tic_datacomp(
            tmp_path / "train", folders[1], steps=STEPS, on_error="skip"
        )
    counts = [skipped.counts() for skipped in built.train_stream[0].skipped]
    assert counts == [{}, {"archive cut off": 1, "archive damaged": 1}, {}]


def test_evaluation__pairs_without_json_are_no_training_pairs_either(tmp_path):
    train, evaluation = write_datacomp(tmp_path, count=COUNT)
    name = f"{uid(2017, 7)}-0"
    more = entries(name, 7, json=None, cls=b"1")
    with tarfile.open(evaluation / "datacompnet" / "2017" / "0.tar", "a") as tar:
        for member, content in more:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (evaluation / "datacompnet" / "2017" / "0.json").write_text('{"successes": 4}')
    built = tic_datacomp(train, evaluation, steps=STEPS)
    assert uid(2017, 7) not in ids(built.train_stream[1])
