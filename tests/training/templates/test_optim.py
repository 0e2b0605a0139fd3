from functools import partial

import pytest
import torch
from torch import nn

from avalanche_clip import MethodPlugin, create_dual_encoder
from avalanche_clip.models.encoders.parameters import depths
from avalanche_clip.training import Sequential, layer_wise_rates
from avalanche_clip.training.supervised import (
    CCLIP,
    SIT,
    CoLeCLIP,
    FineTuning,
    LoRA,
    ModX,
    VRLwF,
)
from avalanche_clip.training.templates.optim import (
    assign_names,
    clip_param_groups,
    home_of,
    rebuild,
)
from tests.helpers import (
    At,
    StubDualEncoder,
    adamw,
    build,
    stub_benchmark,
    stub_model,
    train_stream,
)


def names_in(strategy):
    named = {id(p): n for n, p in strategy.model.named_parameters()}
    return [
        [named[id(p)] for p in g["params"]] for g in strategy.optimizer.param_groups
    ]


def test_clip_groups__decay_matrices_only():
    groups = clip_param_groups(stub_model().named_parameters())
    assert groups[0]["names"] == [
        "image_proj.weight",
        "token.weight",
        "text_proj.weight",
    ]
    assert "logit_scale" in groups[1]["names"]
    assert [g["weight_decay"] for g in groups] == [0.2, 0.0]


def test_default__is_adamw_with_open_clip_values():
    optimizer = build(Sequential, optimizer=None).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (5e-4, (0.9, 0.98), 1e-6)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.2, 0.0]


STRATEGIES = [Sequential, ModX, LoRA, VRLwF, CoLeCLIP, SIT, FineTuning, CCLIP]


@pytest.mark.parametrize("cls", STRATEGIES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_decay_and_rate__are_those_of_the_callable_whatever_the_strategy(cls, decay):
    optimizer = partial(torch.optim.SGD, lr=0.25, weight_decay=decay)
    model = create_dual_encoder("tiny-emoji-vit")
    strategy = cls(model=model, optimizer=optimizer, evaluator=None)
    assert isinstance(strategy.optimizer, torch.optim.SGD)
    for group, own in zip(strategy.optimizer.param_groups, (decay, 0.0), strict=True):
        assert (group["lr"], group["weight_decay"]) == (0.25, own)


def test_decay_of_a_rule__wins_over_that_of_the_callable():
    optimizer = partial(torch.optim.SGD, lr=0.25, weight_decay=0.3)
    strategy = build(Sequential, optimizer=optimizer, param_groups=clip_param_groups)
    decays = [g["weight_decay"] for g in strategy.optimizer.param_groups]
    assert decays == [0.2, 0.0]


@pytest.mark.parametrize(
    "rule, message",
    [
        (lambda named: [["image_proj.weight"]], "missing"),
        (lambda named: [[n for n, _ in named]] * 2, "repeated"),
        (lambda named: [{"lr": 1.0}], "dicts with 'names'"),
    ],
)
def test_rule__that_does_not_cover_each_parameter_once_raises(rule, message):
    with pytest.raises(ValueError, match=message):
        assign_names(rule, dict(stub_model().named_parameters()))


def test_frozen_tower__is_never_in_the_optimizer():
    model = stub_model()
    user = adamw(list(model.parameters()))
    model.image_proj.requires_grad_(False)
    before = model.image_proj.weight.clone()
    for optimizer in (user, adamw, None):
        strategy = build(Sequential, model, optimizer=optimizer)
        assert not any("image" in n for g in names_in(strategy) for n in g)
        train_stream(strategy, stub_benchmark(), 2)
        assert not any("image" in n for g in names_in(strategy) for n in g)
    assert torch.equal(model.image_proj.weight, before)


def test_user_optimizer__left_out_parameters_stay_out():
    model = stub_model()
    strategy = build(Sequential, model, optimizer=adamw(model.text_proj.parameters()))
    before = model.token.weight.clone()
    train_stream(strategy, stub_benchmark(), 2)
    assert names_in(strategy) == [["text_proj.weight", "text_proj.bias"]]
    assert torch.equal(model.token.weight, before)


def test_user_optimizer__of_another_model_raises():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build(Sequential, optimizer=adamw(stub_model().parameters()))


def test_user_optimizer__of_a_wrong_type_raises():
    with pytest.raises(TypeError, match="give an Optimizer"):
        build(Sequential, optimizer="adam")


def test_user_optimizer__takes_the_options_of_the_rule():
    def rule(named):
        names = [n for n, _ in named]
        images = [n for n in names if "image" in n]
        rest = [n for n in names if "image" not in n]
        return [{"names": images, "lr": 0.5}, {"names": rest, "lr": 0.1}]

    found = []
    for optimizer in (None, adamw):
        model = stub_model()
        if optimizer is not None:
            optimizer = optimizer(model.parameters())
        strategy = build(Sequential, model, optimizer=optimizer, param_groups=rule)
        train_stream(strategy, stub_benchmark(), 2)
        groups = strategy.optimizer.param_groups
        found.append([g["initial_lr"] for g in groups])
        assert all("image" in n for n in names_in(strategy)[0])
    assert found == [[0.5, 0.1]] * 2


def test_constant_schedule__keeps_a_rate_that_the_user_sets():
    strategy = build(Sequential, schedule="constant")
    benchmark = stub_benchmark()
    train_stream(strategy, benchmark, 1)
    strategy.optimizer.param_groups[0]["lr"] = 0.123
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert strategy.optimizer.param_groups[0]["lr"] == 0.123


def test_rule__that_adds_a_group_after_growth_leaves_the_plugins_groups_alone():
    class Grown(StubDualEncoder):
        def adaptation(self, experience):
            if experience.current_experience == 1:
                self.extra = nn.Parameter(torch.zeros(3))

    def rule(named):
        names = [n for n, _ in named if n != "extra"]
        late = [n for n, _ in named if n == "extra"]
        groups = [{"names": names, "lr": 0.01}]
        return groups + ([{"names": late, "lr": 0.9}] if late else [])

    strategy = build(
        Sequential,
        Grown(),
        plugins=[_Claims("text_proj.weight")],
        param_groups=rule,
        optimizer=adamw,
        schedule="constant",
    )
    train_stream(strategy, stub_benchmark(), 2)
    found = {
        g["lr"]: names
        for g, names in zip(
            strategy.optimizer.param_groups, names_in(strategy), strict=True
        )
    }
    assert found[0.5] == ["text_proj.weight"] and found[0.9] == ["extra"]


def test_unfrozen_parameters__join_the_group_with_their_decay():
    model = stub_model()
    model.image_proj.requires_grad_(False)
    strategy = build(Sequential, model, optimizer=None)
    train_stream(strategy, stub_benchmark(), 1)
    model.image_proj.requires_grad_(True)
    strategy.train(stub_benchmark().train_stream[1], eval_streams=[])
    decayed, plain = names_in(strategy)
    assert "image_proj.weight" in decayed and "image_proj.bias" in plain


def test_home__falls_back_to_the_first_group():
    groups = [{"weight_decay": 0.1}, {"weight_decay": 0.0}]
    assert [home_of(p, groups) for p in (False, True)] == [0, 1]
    assert home_of(True, groups[:1]) == 0


@pytest.mark.parametrize("rule", [None, lambda named: [[n for n, _ in named]]])
def test_plugin_groups__are_claimed_once_and_stay(rule):
    strategy = build(
        Sequential,
        plugins=[_Claims("text_proj.weight")],
        param_groups=rule,
        schedule="constant",
    )
    train_stream(strategy, stub_benchmark())
    groups = strategy.optimizer.param_groups
    assert len(groups) == (3 if rule is None else 2)
    assert names_in(strategy)[-1] == ["text_proj.weight"]
    assert groups[-1]["lr"] == 0.5 and groups[0]["lr"] == 1e-2
    assert "text_proj.weight" not in sum(names_in(strategy)[:-1], [])


def test_plugin_groups__unknown_name_raises():
    plugins = [_Claims("head.weight")]
    with pytest.raises(ValueError, match="unknown parameters"):
        train_stream(build(Sequential, plugins=plugins), stub_benchmark(), 1)


class _Claims(MethodPlugin):
    def __init__(self, *names):
        super().__init__()
        self.names = names

    def param_groups(self, strategy):
        return [{"names": [name], "lr": 0.5} for name in self.names]


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([["token.weight"]] * 2, "_Claims 1 claims 'token.weight'.*which _Claims 0"),
        ([["token.weight"] * 2], "_Claims 0 claims 'token.weight'.*one plugin"),
    ],
    ids=["two plugins", "two groups of one"],
)
def test_plugin_groups__a_parameter_has_one(claims, message):
    claiming = [_Claims(*names) for names in claims]
    with pytest.raises(ValueError, match=message):
        train_stream(build(Sequential, plugins=claiming), stub_benchmark(), 1)


class GrowingEncoder(StubDualEncoder):
    """Adds two rows to its token table in each training experience."""

    def __init__(self):
        super().__init__()
        self.adapted = []

    def adaptation(self, experience):
        self.adapted.append(experience.current_experience)
        old = self.token
        self.token = nn.Embedding(old.num_embeddings + 2, old.embedding_dim)
        with torch.no_grad():
            self.token.weight[: old.num_embeddings] = old.weight


def test_growth__happens_once_per_training_experience_and_never_in_evaluation():
    model = GrowingEncoder()
    benchmark = stub_benchmark()
    strategy = build(Sequential, model, eval_every=1, train_epochs=2)
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.valid_stream])
        strategy.eval(benchmark.test_stream)
    assert model.adapted == [0, 1, 2]
    assert model.token.num_embeddings == 32 + 6


def test_growth__keeps_moments_padded_with_zeros():
    model = GrowingEncoder()
    strategy = build(Sequential, model, reset_optimizer_state=False)
    train_stream(strategy, stub_benchmark(), 1)
    before = strategy.optimizer_state()["state"]
    look = At("before_training_exp", lambda s: s.optimizer_state()["state"])
    strategy.plugins.append(look)
    strategy.train(stub_benchmark().train_stream[1], eval_streams=[])
    (seen,) = look.seen
    for key in ("exp_avg", "exp_avg_sq"):
        grown = seen["token.weight"][key]
        assert torch.equal(grown[:34], before["token.weight"][key])
        assert grown.shape == (36, 8) and not grown[34:].any()
    assert seen["token.weight"]["step"] == 5
    after = strategy.optimizer_state()["state"]
    assert after["token.weight"]["step"] == after["image_proj.weight"]["step"] == 10
    assert any("token.weight" in g for g in names_in(strategy))


@pytest.mark.parametrize(
    "options, expected", [({}, [0, 0]), ({"reset_optimizer_state": False}, [0, 6])]
)
def test_moments__are_reset_or_carried(options, expected):
    look = At("before_training_iteration", lambda s: len(s.optimizer.state))
    strategy = build(Sequential, plugins=[look], **options)
    train_stream(strategy, stub_benchmark(), 2)
    assert look.seen[::5] == expected


def test_rebuild__removed_parameters_leave_the_optimizer():
    model = stub_model()
    named = dict(model.named_parameters())
    optimizer = adamw([{"params": list(named.values())}])
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    names = {id(p): n for n, p in named.items()}
    kept = {"token.weight": named["token.weight"]}
    groups = [{"names": ["token.weight"]}]
    rebuild(optimizer, groups, kept, names, reset_state=False)
    assert list(optimizer.state) == [named["token.weight"]]
    assert len(optimizer.param_groups[0]["params"]) == 1


@pytest.mark.parametrize("rule", [[], [{"names": []}], "all"])
def test_rule__of_another_kind_is_refused(rule):
    with pytest.raises(TypeError, match=f"param_groups is a {type(rule).__name__}"):
        build(Sequential, param_groups=rule)


# ------------------------------------------------------------------- layer-wise rates
@pytest.fixture
def vit():
    return create_dual_encoder("tiny-emoji-vit")


def test_layer_wise_rates__shrink_towards_the_input(vit):
    groups = layer_wise_rates(vit, 0.1, 0.5)(list(vit.named_parameters()))
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    decays = {n: g["weight_decay"] for g in groups for n in g["names"]}
    assert rates.keys() == {name for name, _ in vit.named_parameters()}
    assert sum(len(g["names"]) for g in groups) == len(rates)
    for name, rate in rates.items():
        tower, below = vit.tower_of(name), 0
        if tower is not None:
            below = len(vit.blocks(tower)) + 1 - depths(vit, tower)[name]
        assert rate == pytest.approx(0.1 * 0.5**below)
    plain = clip_param_groups(vit.named_parameters())
    assert {n for n, decay in decays.items() if decay} == set(plain[0]["names"])


def test_layer_wise_rates__keep_their_ratio_under_a_schedule(vit):
    vit.unfreeze("image", last_blocks=1)
    rule = layer_wise_rates(vit, 1e-3, 0.5, weight_decay=None)
    strategy = Sequential(
        model=vit, optimizer=adamw, param_groups=rule, train_mb_size=4
    )
    for group in strategy.optimizer.param_groups:
        assert group["initial_lr"] == group["lr"]
    names = names_in(strategy)
    assert sum(map(len, names)) == sum(p.requires_grad for p in vit.parameters())
    rates = [group["lr"] for group in strategy.optimizer.param_groups]
    assert max(rates) == 1e-3 and min(rates) == pytest.approx(1e-3 / 2**3)


def test_layer_wise_rates__refuse_what_they_cannot_do(vit):
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match="decay"):
            layer_wise_rates(vit, 0.1, decay)
    with pytest.raises(ValueError, match="lr"):
        layer_wise_rates(vit, -1, 0.5)
    with pytest.raises(ValueError, match="residual"):
        layer_wise_rates(create_dual_encoder("tiny-emoji"), 0.1, 0.5)
