"""Si-Blurry: the sampler draw for draw, and benchmarks from labelled data."""

import warnings

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import (
    class_targets,
    prepare_benchmark,
    si_blurry_benchmark,
    si_blurry_indices,
    split_online,
)
from tests.benchmarks.small_streams import check_ids_differ, column
from tests.helpers import stub_model
from tests.refused import refused
from tests.training.classes import TEMPLATES, Labelled, cycle, domain, names_of

pytestmark = pytest.mark.filterwarnings("ignore:Si-Blurry")


def slow(targets, T, N, M, seed, stochastic, C):
    """The released form: membership tests in lists, over all samples and tasks."""
    generator = torch.Generator().manual_seed(seed)
    n_dis = C * N // 100 // T * T
    n_blur = (C - n_dis) // T * T
    perm = torch.randperm(C, generator=generator).tolist()
    kinds = [perm[:n_dis], perm[n_dis : n_dis + n_blur]]
    parts = []
    for classes in kinds:
        size = len(classes)
        cuts = [size // T * k for k in range(T + 1)]
        if stochastic and size:
            drawn = torch.randint(0, size, (T - 1,), generator=generator)
            cuts = [0, *sorted(drawn.tolist()), size]
        parts.append([classes[a:b] for a, b in zip(cuts, cuts[1:])])
    disjoint, blurry = (
        [[i for i, t in enumerate(targets) if t in classes] for classes in kind]
        for kind in parts
    )
    if stochastic:
        m = sum(map(len, blurry)) * M // 100
        lent = [0] * T
        if m > 0:
            drawn = torch.randint(0, m, (T - 1,), generator=generator)
            cuts = [0, *sorted(drawn.tolist()), m]
            lent = [b - a for a, b in zip(cuts, cuts[1:])]
    else:
        lent = [len(b) * M // 100 for b in blurry]
    pool = [i for b, k in zip(blurry, lent) for i in b[:k]]
    blurry = [b[k:] for b, k in zip(blurry, lent)]
    if pool:
        order = torch.randperm(len(pool), generator=generator).tolist()
        pool = [pool[k] for k in order]
        back = lent if stochastic else [len(pool) // T] * T
        for task, k in enumerate(back):
            blurry[task] = blurry[task] + pool[:k]
            pool = pool[k:]
    found = []
    for own, lending in zip(disjoint, blurry):
        both = own + lending
        order = torch.randperm(len(both), generator=generator).tolist()
        found.append([both[k] for k in order])
    return found


def draw(C, per, T, N, M, seed=1, stochastic=True):
    return si_blurry_indices(
        np.arange(C * per) % C,
        num_tasks=T,
        disjoint_percent=N,
        blurry_percent=M,
        seed=seed,
        stochastic=stochastic,
    )


GOLDEN = {
    # C, per class, T, N, M, stochastic: sizes, {task: how it begins}
    (10, 4, 2, 50, 50, False): (
        [20, 20],
        {
            0: [29, 17, 5, 15, 14, 30, 9, 36, 39, 20, 35, 28],
            1: [27, 21, 32, 37, 33, 23, 11, 8, 10, 1, 3, 24],
        },
    ),
    (10, 4, 2, 50, 50, True): (
        [9, 31],
        {
            0: [10, 3, 7, 38, 20, 0, 30, 18, 28],
            1: [35, 37, 39, 4, 26, 6, 22, 32, 15, 17, 16, 19],
        },
    ),
    (10, 10, 5, 50, 10, True): (
        [10, 30, 20, 11, 29],
        {3: [52, 32, 22, 14, 82, 62, 72, 92, 42, 2, 12]},
    ),
    (10, 10, 5, 50, 10, False): (
        [20] * 5,
        {0: [35, 18, 25, 68, 48, 75, 58, 38, 88, 65, 95, 85]},
    ),
    (10, 4, 2, 100, 50, True): ([8, 32], {0: [5, 36, 35, 15, 26, 25, 16, 6]}),
    (11, 4, 2, 50, 50, False): ([20, 20], {}),
    (100, 500, 5, 50, 10, True): ([6500, 3000, 10264, 22000, 8236], {}),
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_si_blurry_indices__golden(case):
    *arguments, stochastic = case
    sizes, begins = GOLDEN[case]
    found = draw(*arguments, stochastic=stochastic)
    assert [len(part) for part in found] == sizes
    for task, begin in begins.items():
        assert found[task][: len(begin)] == begin
    flat = [i for part in found for i in part]
    assert len(set(flat)) == len(flat) and all(type(i) is int for i in flat[:3])


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("N", [0, 30, 50, 100])
@pytest.mark.parametrize("M", [0, 10, 50, 100])
def test_si_blurry_indices__equals_the_released_form(N, M, stochastic):
    rng = np.random.default_rng(N + M)
    for seed, (C, T) in enumerate([(7, 3), (12, 4), (5, 1), (2, 3), (9, 9)]):
        for targets in (rng.integers(0, C, 60), np.sort(rng.integers(0, C, 31))):
            found = si_blurry_indices(
                targets,
                num_tasks=T,
                disjoint_percent=N,
                blurry_percent=M,
                seed=seed,
                stochastic=stochastic,
                num_classes=C,
            )
            assert found == slow(targets.tolist(), T, N, M, seed, stochastic, C)


def test_si_blurry_indices__complete_disjoint_and_repeatable():
    targets = np.repeat(np.arange(20), 7)  # sorted by class
    state = torch.random.get_rng_state()
    for seed in range(6):
        options = {"num_tasks": 5, "disjoint_percent": 50, "blurry_percent": 30}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*are lost")
            found = si_blurry_indices(targets, seed=seed, **options)
        assert sorted(sum(found, [])) == list(range(140))
        assert found == si_blurry_indices(torch.tensor(targets), seed=seed, **options)
        tasks = [set(targets[part].tolist()) for part in found]
        often = sum(np.isin(range(20), list(classes)).astype(int) for classes in tasks)
        assert (often == 1).sum() >= 10
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draw(8, 5, 2, 50, 50, seed=1) != draw(8, 5, 2, 50, 50, seed=2)


def test_si_blurry_indices__number_of_classes_decides_the_draws():
    options = {"num_tasks": 2, "disjoint_percent": 50, "blurry_percent": 0, "seed": 1}
    labels = [0, 1, 2, 3] * 3
    assert si_blurry_indices(labels, **options) == si_blurry_indices(
        labels, num_classes=4, **options
    )
    assert si_blurry_indices(labels, num_classes=8, **options) != si_blurry_indices(
        labels, num_classes=4, **options
    )


def test_si_blurry_indices__says_what_is_lost():
    with pytest.warns(UserWarning, match="1 classes are not used. Choose a number"):
        found = draw(11, 4, 2, 50, 50, stochastic=False)
    assert 5 not in {i % 11 for part in found for i in part}
    with pytest.warns(UserWarning, match="1 samples of the pool are lost") as seen:
        found = si_blurry_indices(
            [0, 0, 0, 1, 1],
            num_tasks=2,
            disjoint_percent=0,
            blurry_percent=100,
            seed=0,
            stochastic=False,
        )
    assert sum(map(len, found)) == 4 and seen[0].filename == __file__
    with pytest.warns(UserWarning, match=r"tasks \[\d\] are empty"):
        found = next(
            f for f in (draw(2, 3, 2, 100, 0, seed=s) for s in range(9)) if [] in f
        )
    assert sum(map(len, found)) == 6


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_tasks": 0}, "num_tasks=0 must be an integer >= 1"),
        ({"num_tasks": 2.0}, "num_tasks=2.0 must be an integer"),
        ({"disjoint_percent": 101}, "disjoint_percent=101 must lie in"),
        ({"disjoint_percent": 0.5}, "disjoint_percent=0.5 must be an integer"),
        ({"blurry_percent": -1}, "blurry_percent=-1 must lie in"),
        ({"blurry_percent": "10"}, "blurry_percent='10' must lie in"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"stochastic": None}, "stochastic=None is unknown"),
        ({"num_classes": 2}, "targets holds 0 to 2; indices must lie in 0..1"),
        ({"targets": []}, "targets of shape"),
        ({"targets": [0, -1]}, "targets holds -1 to 0"),
        ({"targets": [0.5]}, "give integers"),
        ({"targets": [[0, 1]]}, "targets of shape"),
    ],
    ids=str,
)
def test_si_blurry_indices__nonsense_is_refused(change, words):
    options = {
        "targets": [0, 1, 2],
        "num_tasks": 1,
        "disjoint_percent": 50,
        "blurry_percent": 10,
        "seed": 0,
    }
    refused(words, si_blurry_indices, **{**options, **change})


# ------------------------------------------------------------------- benchmark
def build(C=8, T=3, per=6, **options):
    return si_blurry_benchmark(
        Labelled(cycle(C, per)),
        Labelled(cycle(C, 3), seed=100),
        names_of(0, C),
        TEMPLATES,
        **{"num_tasks": T, "blurry_percent": 30, **options},
    )


def test_benchmark__train_follows_the_sampler_and_test_is_by_class():
    given = build()
    indices = si_blurry_indices(
        cycle(8, 6), num_tasks=3, disjoint_percent=50, blurry_percent=30, seed=1
    )
    assert given.protocol == "si_blurry"
    assert given.task_sizes == tuple(map(len, indices))
    for part, experience in zip(indices, given.train_stream, strict=True):
        assert column(experience, "sample_id").tolist() == part
        assert column(experience).tolist() == [i % 8 for i in part]
        assert not hasattr(experience, "class_ids")  # not known before they come
    used = sorted(sum(given.disjoint_classes + given.blurry_classes, ()))
    assert len(used) == 6 and given.class_prompts.ids == tuple(used)
    assert [e.class_ids for e in given.test_stream] == [(c,) for c in used]
    for experience in given.test_stream:
        assert experience.label == names_of(0, 8)[experience.class_ids[0]]
        assert column(experience).tolist() == [experience.class_ids[0]] * 3
    tasks = [set(column(e).tolist()) for e in given.train_stream]
    for kind, classes in enumerate(given.disjoint_classes):
        for number in classes:
            assert [number in task for task in tasks] == [k == kind for k in range(3)]
    check_ids_differ(given)


def test_benchmark__golden_classes():
    found = build(10, 2, 4, blurry_percent=50, stochastic=False)
    assert found.disjoint_classes == ((5, 6), (1, 2))
    assert found.blurry_classes == ((0, 8, 9), (3, 7, 4))
    found = build(10, 5, 10, blurry_percent=10)
    assert found.disjoint_classes == ((5,), (6,), (1,), (2,), (0,))
    assert found.blurry_classes == ((), (8, 9), (3,), (), (7, 4))


def test_benchmark__online_parts_keep_the_order_and_know_their_own_classes():
    given = prepare_benchmark(build(), stub_model())
    online = split_online(given, 4)
    ids = [column(e, "sample_id").tolist() for e in online.train_stream]
    whole = [column(e, "sample_id").tolist() for e in given.train_stream]
    assert sum(ids, []) == sum(whole, []) and max(map(len, ids)) == 4
    for part in online.train_stream:
        assert part.classes_in_this_experience == set(column(part).tolist())
    assert online.protocol == "si_blurry" and online.task_sizes == given.task_sizes


def test_benchmark__empty_tasks_are_left_out_of_the_stream():
    drawn = (build(2, 2, disjoint_percent=100, seed=seed) for seed in range(9))
    found = next(benchmark for benchmark in drawn if 0 in benchmark.task_sizes)
    assert sorted(found.task_sizes) == [0, 12] and len(found.train_stream) == 1
    assert len(split_online(found, 5).train_stream) == 3


def test_benchmark__other_streams_and_held_out_data():
    valid = Labelled([1, 5, 5])
    held = [domain(3, 20, 7, name="held"), domain(2, 30, 8, name="more")]
    found = build(T=2, valid=valid, zero_shot=held)
    assert [e.class_ids for e in found.streams["valid"]] == [(1,), (5,)]
    first, second = found.streams["zero_shot"]
    assert (first.label, second.label) == ("held", "more")
    assert first.eval_label_space == "own" and first.class_names == tuple(held[0][2])
    assert not set(first.class_ids) & set(found.class_prompts.ids)
    assert not set(first.class_ids) & set(second.class_ids)
    wanted = [first.class_ids[t] for t in class_targets(held[0][1])]
    assert column(first).tolist() == wanted
    assert all(c in first.class_prompts for c in found.class_prompts.ids)
    check_ids_differ(found)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"num_tasks": 9}, "num_tasks=9 leaves nothing to learn of 8 classes"),
        ({"zero_shot": [(1, 2)]}, "Domain 0 is 'tuple'; give"),
        ({"zero_shot": [domain(3, 20, 7)] * 2}, "occurs more than once"),
        ({"valid": Labelled([9])}, "valid set has labels 9..9, but 8 class names"),
        ({"valid": Labelled([])}, "valid set is empty"),
    ],
)
def test_benchmark__nonsense_is_refused(change, words):
    refused(words, build, **change)


def test_benchmark__labels_must_fit_the_names():
    data = Labelled([0, 1, 2])
    refused("train set has labels 0..2", si_blurry_benchmark, data, data, ["a", "b"])
    refused("no class names", si_blurry_benchmark, data, data, [])
