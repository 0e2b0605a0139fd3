"""The study at web scale: what is simulated, and the protocol from a folder."""

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from avalanche_clip.benchmarks import read_uid_list, uid_to_pair
from avalanche_clip.benchmarks.datasets import read_uid_lists
from avalanche_clip.benchmarks.datasets.web.tic_lists import all_uids
from avalanche_clip.evaluation.functional import fold_columns, time_transfer
from tests.refused import refused
from tests.scripts import load_script, run_python

STUDY = "tic_webscale"
SAMPLES, GALLERY, YEARS = 32, 4, ("2014", "2015", "2016", "2017")


@pytest.fixture(scope="module")
def simulation():
    return load_script("experiments/tic_simulation.py")


@pytest.fixture(scope="module")
def world(simulation):
    return simulation.World(SAMPLES, 2, GALLERY, 10, seed=3, classes=10)


@pytest.fixture(scope="module")
def folder(simulation, world, tmp_path_factory):
    place = tmp_path_factory.mktemp("simulated") / "data"
    simulation.write_simulation(place, world)
    return place


@pytest.fixture
def setup(study, folder):
    small = {"iterations": 1, "batch_size": 8, "warmup": 0}
    preset = replace(study.simulation_preset(), **small)
    return study.Setup(folder, preset, study.steps_in(folder), {})


def test_simulation__is_as_released(folder, world):
    assert [world.size(y) for y in YEARS] == [5, 5, 6, 16]
    lists = read_uid_lists(folder / "tic-datacomp_training_yearly_noeval")
    months = read_uid_lists(folder / "tic-datacomp_training_monthly")
    evaluated = all_uids([*folder.glob("*_year2uids.json")])
    assert len(evaluated) == 2 * GALLERY * len(YEARS)
    for year in YEARS:
        train = folder / "train" / year
        said = json.loads((train / "meta.json").read_text())["processed_count"]
        assert len(lists[year]) == said == world.size(year) + 2 * GALLERY
        assert np.array_equal(read_uid_list(train / "sample_ids.npy"), lists[year])
        own = [u for m, u in months.items() if m.startswith(year)]
        assert np.array_equal(np.sort(np.concatenate(own)), lists[year])
        # As in the release, lists "without evaluation" hold evaluation pairs.
        assert np.isin(lists[year], evaluated).sum() == 2 * GALLERY
        for kind in ("retrieval", "datacompnet"):
            with tarfile.open(folder / "eval" / kind / year / "0.tar") as tar:
                endings = [name.partition(".")[2] for name in tar.getnames()]
            more = ["cls"] if kind == "datacompnet" else []
            assert endings == ["jpg", "txt", "json", *more] * GALLERY
    deep = sorted(p.parent.name for p in (folder / "train" / "2017").rglob("*.tar"))
    assert deep == ["0", "0", "1"]


def test_simulation__follows_from_its_seed(simulation, world, folder, tmp_path):
    one, again = (simulation.pair(world, "train", "2017", 5) for _ in range(2))
    assert one == again
    other = replace(world, seed=4)
    assert simulation.pair(other, "train", "2017", 5)["uid"] != one["uid"]
    assert uid_to_pair(one["uid"]) in [
        tuple(u) for u in read_uid_list(folder / "train/2017/sample_ids.npy").tolist()
    ]
    refused("not empty", simulation.write_simulation, folder, world)
    few = replace(world, samples=4)
    refused("give more", simulation.write_simulation, tmp_path / "few", few)


def test_simulation__shows_what_is_new(simulation, world):
    first, names = simulation.first_steps(world), simulation.things()[0]
    found = [simulation.pair(world, "train", "2017", n)["caption"] for n in range(150)]
    new = [names[k] for k in np.flatnonzero(first == 1)]
    bare = {n for c in found for n in (c.partition(",")[0], *_middle(c))}
    share = sum(n in bare for n in new) / len(bare & {*names})
    assert 0.5 < share < 0.7
    plain = [simulation.pair(world, "train", "2016", n)["caption"] for n in range(150)]
    for word in ("upright", "white"):  # later steps turn and colour more
        counts = [sum(word in c for c in own) for own in (plain, found)]
        assert counts[0] > 1.5 * counts[1]


def test_study__runs_and_resumes(study, setup, tmp_path, without_report):
    stream = study.build_benchmark(setup, "oracle")
    assert [len(e.dataset) for e in stream.train_stream] == [16, 16]
    assert [len(e.dataset) for e in stream.test_stream] == [GALLERY] * 4
    result = study.run(setup, "oracle", tmp_path)
    columns = [e.step for e in stream.test_stream]
    row = study.levels(result, columns)
    expected = time_transfer(fold_columns(result.E, columns))
    assert row["in_domain"] == 100 * expected["in_domain"]
    assert row["cost"] == 1 + 2
    tasks = result.results["suites"]["zero-shot"]["1"]
    assert sorted(tasks) == [*YEARS]
    assert row["classes"] == 100 * np.mean([t["acc1"] for t in tasks.values()])
    again = study.run(setup, "oracle", tmp_path)
    assert np.array_equal(again.E, result.E)
    text = study.tables({"oracle": [result]}, columns, list(setup.steps))
    assert "in_domain" in text and text.count("\n") == 9


def test_steps__have_no_gap(study, folder, tmp_path):
    assert list(study.steps_in(folder)) == ["2016", "2017"]
    refused("none of the years", study.steps_in, tmp_path)
    for year in ("2014", "2015"):
        (tmp_path / "train" / year).mkdir(parents=True)
    refused("not 2016", study.steps_in, tmp_path)
    (tmp_path / "train" / "2016").mkdir()
    assert list(study.steps_in(tmp_path)) == ["2016"]
    (tmp_path / "train" / "2018").mkdir()
    refused("not 2017", study.steps_in, tmp_path)


def test_arguments__are_checked(study, folder, capsys):
    for wrong in (["--methods", "naive"], ["--preset", "yfcc"], ["--batch", "0"]):
        with pytest.raises(SystemExit):
            study.parse([str(folder), *wrong])
    assert "use sequential" in capsys.readouterr().err


def _middle(caption):
    """The name in ``{pose} {name} on {colour}``."""
    rest = caption.rpartition(" on ")[0]
    return [rest.removeprefix(p + " ") for p in POSES if rest.startswith(p + " ")]


POSES = ("upright", "tilted left", "tilted right", "lying", "upside down")


@pytest.mark.slow
def test_study__two_processes_equal_one(folder, tmp_path):
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}"
        words = ["torchrun", "--nproc-per-node", f"{count}", "--standalone"]
        words += ["experiments/tic_webscale.py", str(folder), "--out", str(out)]
        words += ["--iterations", "3", "--batch", "8", "--methods", "cumulative-all"]
        run_python(
            "import sys\nfrom torch.distributed.run import main\n"
            f"sys.argv = {words!r}\nmain()"
        )
        results = out / "cumulative-all/seed_0/results.json"
        metrics = json.loads(results.read_text())["matrices"]["test"]["mean_R@1"]
        found.append(np.array(metrics["E"], dtype=float))
    assert np.allclose(*found, atol=1e-6)
