"""CoLeCLIP against loops over names and tasks, and what stays as it was."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from avalanche_clip.benchmarks import (
    ClassPrompts,
    attribute_array,
    multi_domain_benchmark,
)
from avalanche_clip.checkpointing import read_state, save_state
from avalanche_clip.models import attach_lora
from avalanche_clip.training import CoLeCLIP, Sequential
from avalanche_clip.training import plugins as p
from avalanche_clip.training.methods.coleclip import losses
from avalanche_clip.training.methods.coleclip.vocabulary import (
    Vocabulary,
    class_keys,
    distinct,
)
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import Recorder, weights
from tests.training import moe_runs
from tests.training.classes import accuracy_evaluator

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = (("ab", "cd", "ef"), ("gh", "ab", "kl"), ("cd", "gh", "mn"), ("op", "ab"))
"""Three tasks and an unseen domain; equal names have ids of their own."""


def benchmark_for(model, tasks=3):
    parts, first = [], 0
    for k, names in enumerate(NAMES):
        data = [
            moe_runs.labelled(first, len(names), n, 10 * k + n, None) for n in (4, 2)
        ]
        parts.append((*data, names, [f"{'abcd'[k]} {{}}", "b {}"], f"domain {k}"))
        first += len(names)
    whole = multi_domain_benchmark(parts)
    return moe_runs.prepared(whole, model)


def make(model=None, **options):
    defaults = {
        "train_mb_size": 7,
        "budget_iterations": 6,
        "eval_mb_size": 5,
        "evaluator": accuracy_evaluator(),
    }
    return CoLeCLIP(model=model or moe_runs.vit(), **{**defaults, **options})


def run(tasks=3, *further, **options):
    strategy = make(plugins=list(further), **options)
    benchmark = benchmark_for(strategy.model)
    for experience in benchmark.train_stream[:tasks]:
        strategy.train(experience)
    return strategy, benchmark


# -------------------------------------------------------------- formulas
def test_momentum__of_a_constant_text():
    start = kept = torch.tensor([[1.0, 0.0]])
    text, angles, distances = torch.tensor([[0.0, 1.0]]), [], []
    for _ in range(50):
        fused = losses.fused_embeddings(kept, text)
        distances.append(float(losses.stability_loss(fused, start)))
        kept = losses.moved_embeddings(kept, fused, 0.1)
        angles.append(math.degrees(math.atan2(kept[0, 1], kept[0, 0])))
    assert distances[:3] == pytest.approx([0.765367, 0.798829, 0.830725], abs=1e-6)
    expected = [4.1663, 8.1686, 12.0094, 15.6918, 19.2195]
    assert angles[:5] == pytest.approx(expected, abs=1e-4)
    assert angles[-1] == pytest.approx(82.783, abs=1e-3)


def at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], -1)


def test_negatives__of_the_worked_example():
    tens = [(10, 20, 5, 0), (40, 50, 45, 42), (80, 70, 60, 65)]
    tens += [(100, 110, 30, 20), (0, 10, 80, 85)]
    features, targets = at(*tens), torch.tensor([0, 1, 2, 1, 0])
    names, owned = at(0, 30, 60, 90, 120, 45), [[2, 3], [4, 5], [0, 1, 2]]
    score = lambda images, texts: 10.0 * images @ texts.T  # noqa: E731
    prompted = losses.owner_logits(
        features[:, :3], names, [torch.tensor(own) for own in owned], score
    )
    close = partial(torch.testing.assert_close, rtol=0, atol=5e-5)
    expected = [5.0, 8.6603, 10.0, 9.8481, 6.4279, 9.0631]
    close(prompted[2], torch.tensor(expected, dtype=torch.float64))
    expected = [9.9619, 9.0631, 6.4279, 1.7365, -1.7365, 9.0631]
    close(prompted[0], torch.tensor(expected, dtype=torch.float64))
    plain, scale = score(features[:, 3], names), torch.tensor(10.0)
    tasks = torch.tensor([[True, False, False], [False, True, True]])
    blocked = losses.blocked_negatives(prompted, 3, tasks, scale, 0.7)
    assert blocked.all(1).tolist() == [False, True, True, True, False]
    loss = partial(
        losses.negatives_loss, targets=targets, count=3, tasks=tasks, scale=scale
    )
    assert loss([plain, prompted], quantile=0.7).item() == pytest.approx(2.090579)
    assert loss([plain], quantile=0.7).item() == pytest.approx(1.960720)
    first = [plain[:, :3], score(features[:, 2], names[:3])]
    found = losses.mean_cross_entropy(first, targets).item()
    assert found == pytest.approx(1.925559)


def slow_negatives(logits, targets, count, sets, scale, share):
    """Image by image, task by task, in double precision."""
    deciding, size = logits[-1].double(), len(targets)
    ahead = []
    for names in sets:
        rows = deciding[:, names].logsumexp(1) if names else None
        ours = deciding[:, :count].logsumexp(1)
        ahead.append(None if rows is None else ((ours - rows) / scale).tolist())
    allowed = [[True] * size for _ in sets]
    for k, values in enumerate(ahead):
        if values is not None:
            rank = share * (size - 1)
            ranked, low = sorted(values), int(rank)
            high = min(low + 1, size - 1)
            gamma = ranked[low] + (rank - low) * (ranked[high] - ranked[low])
            allowed[k] = [value > max(0.0, gamma) for value in values]
    total = 0.0
    for i, target in enumerate(targets.tolist()):
        columns = list(range(count))
        if deciding[i, target] < deciding[i].max():
            for name in range(count, logits[0].shape[1]):
                if all(allowed[k][i] for k, own in enumerate(sets) if name in own):
                    columns.append(name)
        for each in logits:
            row = each[i, columns].double()
            total += float(row.logsumexp(0) - row[target]) / len(logits)
    return total / size


@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_negatives__equal_a_slow_loop_and_do_not_overflow(size, scale):
    generator = torch.Generator().manual_seed(size)
    draw = partial(torch.randn, generator=generator)
    logits = [scale * draw(size, 8), scale * draw(size, 8)]
    logits = [each.requires_grad_() for each in logits]
    targets = torch.arange(size) % 3
    sets = [[3, 4], [], [4, 5, 6, 7]]  # the second has no name of its own
    tasks = torch.tensor([[c in own for c in range(3, 8)] for own in sets])
    for share in (0.0, 0.7, 1.0):
        arguments = targets, 3, tasks, torch.tensor(scale), share
        found = losses.negatives_loss(logits, *arguments)
        expected = slow_negatives(logits, targets, 3, sets, scale, share)
        assert float(found) == pytest.approx(expected, rel=1e-5)
        found.backward()
        assert all(torch.isfinite(each.grad).all() for each in logits)


def test_templates__of_names_that_several_domains_have():
    names = ["forest", "rose", "forest", "sea", "rose"]
    domains = ["A", "A", "EuroSAT", "EuroSAT", "B"]
    templates = {"A": ["a {}", "{}"], "EuroSAT": ["e {}"], "B": ["b {}", "{}"]}
    prompts = ClassPrompts(names, templates, domains=domains)
    joint = dict(class_keys(prompts, prompts.ids, "joint"))
    assert joint["forest"] == ("e {}",) and joint["sea"] == ("e {}",)
    assert joint["rose"] == ("a {}", "{}", "b {}", "{}")
    first = class_keys(prompts, [0, 4], "first_seen")
    assert first == [("forest", ("a {}", "{}")), ("rose", ("b {}", "{}"))]


def test_distinct__first_places_and_a_place_for_each():
    names = [str(number % 7) for number in range(3, 20)]
    first, inverse = distinct(names, "cpu")
    different = list(dict.fromkeys(names))
    assert first.tolist() == [names.index(name) for name in different]
    assert inverse.tolist() == [different.index(name) for name in names]


def test_negatives__are_found_once_for_each_task():
    words = Vocabulary()
    words.begin(["a", "b"], lambda names: torch.eye(5)[: len(names)])
    words.begin(["b", "c"], lambda names: torch.eye(5)[: len(names)])
    told, stored = words.negatives(), words.state_dict()
    assert words.negatives() is told and told[0] == [0]
    words.begin(["d"], lambda names: torch.eye(5)[: len(names)])
    assert words.negatives()[0] == [0, 1, 2]
    words.load_state_dict(stored, 5)
    assert words.negatives()[0] == [0]


# -------------------------------------------------------------- training
class Reference(Recorder):
    """Computes each step again, by name, from what the model gave."""

    def __init__(self, plugin_of):
        self.plugin_of, self.checked, self.second = plugin_of, 0, 0

    def before_forward(self, strategy, **kwargs):
        words = self.plugin_of(strategy).vocabulary
        self.before = {n: words.vectors[r].clone() for n, r in words.places.items()}
        if strategy.clock.train_exp_iterations == 0:
            self.start = dict(self.before)

    def before_update(self, strategy, **kwargs):
        plugin = self.plugin_of(strategy)
        words, out = plugin.vocabulary, strategy.global_features
        tasks = [[words.names[r] for r in task] for task in words.tasks]
        current, earlier, ids = tasks[-1], tasks[:-1], strategy.label_ids
        assert [strategy.class_prompts.name(i) for i in ids] == current
        memory = plugin.alpha is not None
        unit = partial(torch.nn.functional.normalize, dim=-1)
        kept = self.before if memory else self.start
        fused = {
            name: unit((kept[name] + out.text_features[k]) / 2)
            for k, name in enumerate(current)
        }
        plain = out.image_features * out.aux["image_norm"]
        read = out.aux.get("prompt_features")
        if read is not None:
            v = [unit((read[:, k] + plain) / 2) for k in range(len(tasks))]
        names = list(current)
        step, total = strategy.clock.train_exp_iterations, strategy.planned_iterations
        boundary = plugin.stage_boundary
        second = bool(earlier) and boundary is not None
        second = second and step > math.floor(boundary * total)
        for task in earlier if second else ():
            names += [name for name in task if name not in names]
        embedding = {**self.before, **fused}
        scale = float(out.logit_scale)

        def by(feature, name):
            return scale * (feature * embedding[name]).sum(-1)

        logits = [torch.stack([by(out.image_features, n) for n in names], 1)]
        if read is not None:
            owners = enumerate(tasks) if second else [(len(tasks) - 1, current)]
            owners = list(owners)
            columns = [
                torch.stack([by(v[k], n) for k, own in owners if n in own]).amax(0)
                for n in names
            ]
            logits.append(torch.stack(columns, 1))
        targets = strategy.mb_y
        if second:
            places = [[names.index(n) for n in t if n not in current] for t in earlier]
            expected = slow_negatives(
                logits, targets, len(current), places, scale, plugin.quantile
            )
        else:
            expected = sum(float(cross_entropy(x, targets)) for x in logits)
            expected /= len(logits)
        terms = strategy.loss_terms
        assert float(terms["criterion"]) == pytest.approx(expected, rel=2e-5)
        if memory:
            far = [(fused[n] - self.start[n]).norm().item() for n in current]
            mean = sum(far) / len(far)
            assert float(terms["stability"]) == pytest.approx(mean, rel=1e-5)
        for name, row in words.places.items():
            moved = self.before[name]
            if memory and name in current:
                moved = unit(plugin.alpha * fused[name] + (1 - plugin.alpha) * moved)
                torch.testing.assert_close(words.vectors[row], moved)
            else:
                assert torch.equal(words.vectors[row], moved)
        self.checked += 1
        self.second += second


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_prompts": 2, "peft": "adapter", "quantile": 0.2, "alpha": 0.5},
        {"num_prompts": 0, "peft": "prefix", "stage_boundary": 0.0},
        {"alpha": None, "template_policy": "first_seen"},
        {"stage_boundary": None},
    ],
    ids=str,
)
def test_steps__equal_the_method_written_by_names(options):
    reference = Reference(lambda strategy: strategy.coleclip)
    strategy, benchmark = run(3, reference, **options)
    assert reference.checked == 18
    boundary = options.get("stage_boundary", 0.5)
    wanted = {0.5: 2 * 2, 0.0: 2 * 5, None: 0}  # steps 4 and 5 of 6; 1 to 5
    assert reference.second == wanted[boundary]
    words = strategy.coleclip.vocabulary
    assert words.names == ["ab", "cd", "ef", "gh", "kl", "mn"]
    assert words.tasks == [[0, 1, 2], [3, 0, 4], [1, 3, 5]]
    length = words.vectors.norm(dim=1)
    torch.testing.assert_close(length, torch.ones(6), rtol=0, atol=1e-6)
    check_evaluation(strategy, benchmark)


def test_momentum__once_per_step_whatever_the_parts():
    found = [run(2, accumulation_steps=k)[0].coleclip.vocabulary for k in (1, 3)]
    torch.testing.assert_close(found[0].vectors, found[1].vectors, rtol=0, atol=2e-4)


def test_task__leaves_clip_and_earlier_prompts_and_names_as_they_were(tmp_path):
    strategy = make()
    model = strategy.model
    benchmark = benchmark_for(model)
    batch = {"image": torch.randn(3, 3, 32, 32), "text": model.tokenizer(["ab", "x"])}
    plain = {k: v for k, v in weights(model).items() if ".entries." not in k}
    with torch.no_grad():
        before = model.eval()(batch)
    strategy.train(benchmark.train_stream[0])
    words = strategy.coleclip.vocabulary
    first, prompts = words.vectors.clone(), weights(model.prompts.branches()[0])
    strategy.train(benchmark.train_stream[1])
    after = weights(model)
    assert all(torch.equal(after[k], v) for k, v in plain.items())
    assert not any("lora" in name for name in after)
    with torch.no_grad():
        found = model.eval()(batch)
    torch.testing.assert_close(
        found.image_features, before.image_features, rtol=0, atol=1e-6
    )
    assert torch.equal(found.text_features, before.text_features)
    assert found.aux["prompt_features"].shape == (3, 2, model.embed_dim)
    same = [torch.equal(words.vectors[row], first[row]) for row in range(3)]
    assert same == [False, True, True]  # "ab" is in both
    name = "entries.0.tokens"
    assert torch.equal(model.prompts.branches()[0].state_dict()[name], prompts[name])
    state = read_state(save_state(strategy, tmp_path / "between.pt"))
    names = [n for n in state["model"] if n not in model.clip.state_dict()]
    assert sorted(n.split("prompt.")[-1] for n in names if "entries" in n) == [
        "entries.0.tokens",
        "entries.1.tokens",
    ]
    assert "lora" not in str([*state["model"], *state["optimizer"]["state"]])
    kept = sum(t.numel() for t in state["model"].values())
    assert kept == 2 * 64  # two prompts; CLIP is known by its hash


def test_names__cost_the_same_whether_they_were_evaluated_before_or_not():
    """An evaluation may have been made before a run was resumed, or extended."""
    booked = []
    for evaluated in (False, True):
        strategy = make()
        benchmark = benchmark_for(strategy.model)
        if evaluated:
            strategy.eval(benchmark.test_stream)
        strategy.train(benchmark.train_stream[0])
        booked.append(strategy.compute.experiences)
    assert booked[0] == booked[1]
    assert strategy.compute.experiences[0]["teacher"]["texts"] == 12


def test_peft__has_the_published_number_of_weights():
    """10,242 per block of width 512; here two blocks of width 64."""
    model = make().model
    assert model.lora.num_trainable == 2 * (4 * 5 * 64 + 2)
    assert all(float(p) == 1 for n, p in model.lora.trainable_parameters() if "sc" in n)
    per_block = 4 * 5 * 512 + 2
    assert (per_block, 12 * per_block) == (10_242, 122_904)


# ------------------------------------------------------------ evaluation
@torch.no_grad()
def slow_accuracy(strategy, experience, space):
    """Right by name among the candidates, each scored by its owners one by one."""
    model, plugin = strategy.model.eval(), strategy.coleclip
    words, prompts = plugin.vocabulary, strategy.class_prompts
    own = [prompts.name(i) for i in experience.class_ids]
    tasks = [[words.names[r] for r in task] for task in words.tasks]
    seen = list(dict.fromkeys(n for task in tasks for n in task))
    trained = set(experience.class_ids) <= set(strategy.seen_classes)
    everything = list(dict.fromkeys(prompts.names))
    names = {"own": own, "open": seen if trained else own, "all": everything}[space]
    right, data = 0, experience.dataset.eval()
    for item, target in zip(data, attribute_array(data, "targets").tolist()):
        image = item[0]
        plain = model.encode_image(image[None], normalize=False)[0]
        read = model.prompts and model.prompts.read()
        scores = {}
        for name in dict.fromkeys(names):
            if name in words.places:
                e = words.vectors[words.places[name]]
                tasked = [k for k, task in enumerate(tasks) if name in task]
                features = [
                    plain if read is None else read[0, k] + plain for k in tasked
                ]
            else:
                number = prompts.ids[prompts.names.index(name)]
                if plugin.template_policy == "first_seen" and name in own:
                    number = experience.class_ids[own.index(name)]
                ((_, templates),) = class_keys(
                    prompts, [number], plugin.template_policy
                )
                texts = [t.replace("{}", name) for t in templates]
                e = model.encode_text(model.tokenizer(texts)).mean(0)
                features = [plain]
            scores[name] = max(float(cosine_similarity(f, e, 0)) for f in features)
        right += max(scores, key=scores.get) == prompts.name(target)
    return right / len(data)


def check_evaluation(strategy, benchmark):
    found = {}
    for space in ("own", "open", "all"):
        strategy.eval_label_space = space
        results = strategy.eval(benchmark.test_stream)
        values = [v for k, v in sorted(results.items()) if k.startswith("Top1_Acc_Exp")]
        found[space] = values
        expected = [slow_accuracy(strategy, e, space) for e in benchmark.test_stream]
        assert values == pytest.approx(expected), space
    assert len(found["own"]) == 4
    # The last domain is unseen, so that it is told apart among its own names.
    assert found["own"][3] == found["open"][3]
    assert all(a >= b for a, b in zip(found["own"], found["open"]))


def test_evaluation__before_and_inside_the_stream_is_by_name():
    strategy, benchmark = run(0)
    check_evaluation(strategy, benchmark)
    strategy.train(benchmark.train_stream[0])
    check_evaluation(strategy, benchmark)


# -------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"quantile": -0.1}, "quantile=-0.1"),
        ({"stage_boundary": 1.0}, "stage_boundary=1.0"),
        ({"stage_boundary": None, "quantile": 0.5}, "leave one of them out"),
        ({"num_prompts": -1}, "num_prompts=-1"),
        ({"peft": "loar"}, "Did you mean 'lora'"),
        ({"peft_options": {"rank": "x"}}, "rank='x'"),
        ({"peft_options": {"init": "xavier"}}, "'qkv'.*leave it out"),
        ({"template_policy": "all"}, "first_seen"),
        ({"label_space": "seen"}, "use 'own'"),
        ({"label_space": "open"}, "label_space"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1.*leave it out"),
        ({"criterion": torch.nn.CrossEntropyLoss()}, "criterion.*leave it out"),
        ({"plugins": [p.BudgetedReplayPlugin("exp", 4)]}, "BudgetedReplay.*use one"),
        ({"plugins": [p.RestartPlugin()]}, "RestartPlugin.*use one"),
        ({"plugins": [p.WeightAveragingPlugin("wise", alpha=0.5)]}, "use one"),
        ({"plugins": [p.CoLeCLIPPlugin()]}, "use one"),
    ],
    ids=range(17),
)
def test_settings__that_cannot_work_are_refused(options, message):
    model = moe_runs.vit()
    with pytest.raises(ValueError, match=message):
        make(model, **options)
    assert model.prompts is None and model.lora is None


def test_models__and_strategies_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="captions; use ClassNameTemplate"):
        Sequential(model=moe_runs.vit(), plugins=[p.CoLeCLIPPlugin()])
    model = moe_runs.vit()
    attach_lora(model)
    with pytest.raises(ValueError, match="lora.*detach"):
        make(model)
    plain = ClassNameTemplate(model=moe_runs.vit(), plugins=[p.CoLeCLIPPlugin()])
    assert plain.model.prompts is not None


def test_vocabulary__of_another_width_or_damaged_is_refused():
    words = Vocabulary()
    words.begin(["a", "b"], lambda new: torch.eye(2))
    words.begin(["b", "c"], lambda new: torch.ones(1, 2))
    state = words.state_dict()
    Vocabulary().load_state_dict(state, 2)
    damages = {
        "width": {},
        "vectors": {"vectors": state["vectors"][:2]},
        "names": {"names": ["a", "a", "c"]},
        "tasks": {"tasks": [[0, 1], [1]]},
        "start": {"start": state["start"][:1]},
    }
    for what, damage in damages.items():
        with pytest.raises(ValueError, match="damaged or of another model"):
            Vocabulary().load_state_dict({**state, **damage}, 2 + (what == "width"))
