"""MoEAdaptersPlugin on class names: what trains, what stays, which router answers."""

import copy

import pytest
import torch

from avalanche_clip.models.moe.adapters import attach_moe_adapters
from avalanche_clip.training.plugins import ContrastiveEWCPlugin, MoEAdaptersPlugin
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import At, train_stream, weights
from tests.training import moe_runs
from tests.training.moe_runs import ADAPTERS


def build(model=None, plugins=(), options=None, **given):
    """A strategy with the plugin on a fresh model."""
    given = {"adapters": ADAPTERS, **given}
    plugin = MoEAdaptersPlugin(**given)
    strategy = ClassNameTemplate(
        model=model or moe_runs.vit(),
        plugins=[*plugins, plugin],
        **moe_runs.options(**(options or {})),
    )
    return strategy, plugin


def fit(steps=None, benchmark=None, **given):
    strategy, plugin = build(**given)
    benchmark = benchmark or moe_runs.domains(strategy.model)
    return train_stream(strategy, benchmark, steps), plugin, benchmark


def logits(strategy, experience):
    """Logits of an evaluated experience, all batches joined."""
    keep = At("after_eval_forward", lambda strategy: strategy.mb_output.clone())
    strategy.plugins.append(keep)
    try:
        strategy.eval([experience])
    finally:
        strategy.plugins.remove(keep)
    return torch.cat(keep.seen)


# ------------------------------------------------------------------ the base model
def test_attached__equals_the_base_model_before_training():
    plain = ClassNameTemplate(model=moe_runs.vit(), **moe_runs.options())
    benchmark = moe_runs.domains(plain.model)
    for setting in ("auto", "own", "last", "zero-shot", lambda strategy: 0):
        strategy, _ = build(router_for_eval=setting)
        for experience in benchmark.test_stream:
            expected = logits(plain, experience)
            assert torch.equal(logits(strategy, experience), expected)


def test_zero_shot_router__never_changes_over_the_stream():
    strategy, _ = build(router_for_eval="zero-shot")
    benchmark = moe_runs.domains(strategy.model)
    before = [logits(strategy, e) for e in benchmark.test_stream]
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        for old, test in zip(before, benchmark.test_stream, strict=True):
            assert torch.equal(logits(strategy, test), old)


# ------------------------------------------------------------------- what is trained
def test_training__moves_active_experts_and_the_current_router_only():
    decay = lambda groups: torch.optim.AdamW(  # noqa: E731
        [{**g, "weight_decay": 0.1} for g in groups], lr=1e-2
    )
    strategy, _ = build(options={"optimizer": decay, "reset_optimizer_state": False})
    benchmark = moe_runs.domains(strategy.model)
    moe = strategy.model.moe_adapters
    for step, experience in enumerate(benchmark.train_stream):
        before = weights(strategy.model)
        masks = [a.frozen.clone() for a in moe.adapters()]
        strategy.train(experience, eval_streams=[])
        after = weights(strategy.model)
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        moved = {k for k in moved if not k.endswith(("counts", "frozen"))}
        assert moved and all(".moe." in name for name in moved)
        routers = {n.partition(".routers.")[2][:1] for n in moved if ".routers." in n}
        assert routers <= {str(step)}
        held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
        named = strategy.model.named_parameters()
        moving = {id(p) for name, p in named if name in moved}
        for adapter, mask in zip(moe.adapters(), masks, strict=True):
            for number, expert in enumerate(adapter.experts):
                frozen = bool(mask[number])
                inside = [id(p) in held for p in expert.parameters()]
                assert not any(inside) if frozen else all(inside)
                changed = [id(p) in moving for p in expert.parameters()]
                assert not (frozen and any(changed))
            assert not (mask & ~adapter.frozen).any()  # the set only grows
            assert adapter.frozen.sum() <= 2 * (step + 1)
            assert step or adapter.frozen.sum() == 2
        names = dict(strategy.model.named_parameters())
        assert not any(id(p) in held for n, p in names.items() if ".moe." not in n), (
            "the frozen base is in the optimiser"
        )


def test_freeze_rank_over_and_count__decide_how_many_experts_stop():
    def frozen(**given):
        strategy, _, _ = fit(2, **given)
        return [int(a.frozen.sum()) for a in strategy.model.moe_adapters.adapters()]

    assert frozen(freeze=False) == [0, 0, 0, 0]
    assert frozen(count=0) == [0, 0, 0, 0]
    assert frozen(count=1, rank_over="unfrozen") == [2, 2, 2, 2]
    assert frozen(count=3, rank_over="unfrozen") == [6, 6, 6, 6]
    assert all(1 <= n <= 2 for n in frozen(count=1))


def test_counts__are_those_of_the_step_alone():
    """Extra passes in training mode, teachers and evaluations do not count."""

    def extra(strategy):
        assert strategy.model.training
        strategy.model.encode_image(strategy.mb_x["image"])

    def counts(strategy):
        return [int(a.counts.sum()) for a in strategy.model.moe_adapters.adapters()]

    def counted(plugins=(), **options):
        note = At("after_training_epoch", counts)
        fit(1, plugins=[*plugins, note], options=options)
        (found,) = note.seen
        return found

    plain = counted()
    # 5 steps x 6 images (3 prompts) x 2 experts in each of 2 blocks per tower
    assert plain == [60, 60, 30, 30]
    assert counted([At("before_backward", extra)]) == plain
    assert counted(accumulation_steps=3) == plain
    assert counted(eval_every=1, peval_mode="iteration") == plain


def test_known_experience__goes_on_with_its_router():
    strategy, plugin, benchmark = fit(2)
    moe = strategy.model.moe_adapters
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert moe.num_routers == 2 and moe.active_router == 0
    assert list(plugin.routers.values()) == [0, 1] and moe.learned == [0, 1]


def test_balance_weight__adds_the_loss_of_all_blocks():
    def term_and_aux(strategy):
        return strategy.loss_terms.get("balance"), strategy.mb_features.aux or {}

    def terms(weight):
        note = At("after_backward", term_and_aux)
        strategy, _, _ = fit(
            1, balance_weight=weight, plugins=[note], options={"budget_iterations": 2}
        )
        return note.seen, strategy.model.state_dict()

    off, plain = terms(0.0)
    assert all(term is None and "balance_loss" not in aux for term, aux in off)
    on, balanced = terms(2.0)
    for term, aux in on:
        assert torch.isclose(term, 2.0 * aux["balance_loss"].detach())
    assert any(not torch.equal(plain[k], balanced[k]) for k in plain)


# ----------------------------------------------------------------------- evaluation
def test_router_for_eval__own_last_zero_shot_and_callable():
    strategy, plugin, benchmark = fit(2)
    moe = strategy.model.moe_adapters

    def routes(setting):
        plugin.router_for_eval = setting
        plugin.routing = {}
        strategy.eval(benchmark.test_stream)
        return [
            {int(r): n for r, n in plugin.routing["test"][f"2,{k}"].items()}
            for k in range(3)
        ]

    assert routes("own") == [{0: 6}, {1: 6}, {-1: 6}]
    assert routes("last") == routes("auto") == [{1: 6}] * 3
    assert routes("zero-shot") == [{-1: 6}] * 3
    mixed = lambda s: torch.arange(len(s.mb_x["image"])) % 3 - 1  # noqa: E731
    assert routes(mixed) == [{-1: 2, 0: 2, 1: 2}] * 3
    assert moe.routers == {"image": 1, "text": 1}  # as training left them


def test_mixed_routers__in_one_pass_equal_one_router_at_a_time():
    strategy, plugin, benchmark = fit(2)
    test = benchmark.test_stream[0]
    alone = {}
    for router in (-1, 0, 1):
        plugin.router_for_eval = lambda s, r=router: r
        alone[router] = logits(strategy, test)
    assert not torch.equal(alone[0], alone[1])
    passes = []
    handle = strategy.model.clip.visual.register_forward_hook(
        lambda module, args, output: passes.append(len(args[0]))
    )
    order = torch.tensor([-1, 0, 1, 1, 0, -1])
    plugin.router_for_eval = lambda s: order
    together = logits(strategy, test)
    handle.remove()
    assert passes == [6]
    expected = torch.stack([alone[int(r)][i] for i, r in enumerate(order)])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


def test_second_evaluation__encodes_no_text_and_later_ones_only_what_changed():
    strategy, plugin = build(router_for_eval="own")
    benchmark = moe_runs.domains(strategy.model)
    rows = []
    handle = strategy.model.clip.transformer.register_forward_hook(
        lambda module, args, output: rows.append(len(args[0]))
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    rows.clear()
    strategy.eval(benchmark.test_stream)
    # 3 classes x 2 templates: router 0 once, zero-shot for both other domains
    assert sum(rows) == 18
    rows.clear()
    strategy.eval(benchmark.test_stream)
    assert rows == []
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    rows.clear()
    strategy.eval(benchmark.test_stream)
    assert sum(rows) == 12  # routers 0 and 1; zero-shot is known for good
    handle.remove()


def test_interrupted_evaluation__restores_the_router_of_training():
    def stop(strategy):
        raise RuntimeError("stop")

    strategy, plugin, benchmark = fit(
        2, router_for_eval=lambda s: torch.zeros(6).long()
    )
    moe = strategy.model.moe_adapters
    strategy.plugins.append(At("after_eval_forward", stop))
    with pytest.raises(RuntimeError, match="stop"):
        strategy.eval(benchmark.test_stream)
    assert moe.routers == {"image": 1, "text": 1}
    strategy.plugins.pop()
    plugin.router_for_eval = lambda s: 1 / 0
    with pytest.raises(ZeroDivisionError):
        strategy.eval(benchmark.test_stream)
    assert moe.routers == {"image": 1, "text": 1}
    strategy.train(benchmark.train_stream[2], eval_streams=[])
    assert moe.learned == [0, 1, 2]


def test_wrong_routes__are_reported():
    strategy, plugin, benchmark = fit(1)
    for routes in (torch.zeros(4).long(), torch.zeros(6), torch.zeros(6, 1).long()):
        plugin.router_for_eval = lambda s, r=routes: r
        with pytest.raises(ValueError, match="one id per image"):
            strategy.eval(benchmark.test_stream[:1])
    plugin.router_for_eval = lambda s: 7
    with pytest.raises(ValueError, match="does not exist"):
        strategy.eval(benchmark.test_stream[:1])


# -------------------------------------------- other plugins, models and settings
def test_one_tower__works_alone():
    for tower in ("image", "text"):
        strategy, plugin, benchmark = fit(
            2, adapters={**ADAPTERS, "towers": tower}, router_for_eval="own"
        )
        assert strategy.model.moe_adapters.towers == (tower,)
        strategy.eval(benchmark.test_stream)
        assert set(plugin.routing["test"]["2,0"]) == {"0"}


def test_adapters_of_the_model__are_used():
    model = moe_runs.vit()
    moe = attach_moe_adapters(model, **ADAPTERS)
    strategy, _ = build(model, adapters=None)
    assert strategy.model.moe_adapters is moe
    with pytest.raises(ValueError, match="already has adapters"):
        build(model)


def test_second_stream__gets_routers_of_its_own():
    strategy, _, benchmark = fit(2)
    again, plugin = build(strategy.model, adapters=None)
    train_stream(again, benchmark, 1)
    assert plugin.routers == {"classes 0,1,2": 2}
    assert strategy.model.moe_adapters.learned == [0, 1, 2]


def test_reused_plugin__starts_anew():
    strategy, plugin, benchmark = fit(2)
    plugin.adapters = ADAPTERS
    model = moe_runs.vit()
    other = ClassNameTemplate(model=model, plugins=[plugin], **moe_runs.options())
    assert plugin.routers == {}
    train_stream(other, moe_runs.domains(model), 1)
    assert model.moe_adapters.learned == [0]


def test_deep_copy__goes_its_own_way():
    strategy, _, benchmark = fit(1)
    twin = copy.deepcopy(strategy.model)
    before = weights(twin)
    routers = dict(twin.moe_adapters.routers)
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert all(torch.equal(before[k], v) for k, v in twin.state_dict().items())
    assert twin.moe_adapters.routers == routers == {"image": 0, "text": 0}


def test_ewc__works_beside():
    strategy, _, _ = fit(2, plugins=[ContrastiveEWCPlugin(10.0, fisher_batch_size=6)])
    assert "fisher" in strategy.compute.experiences[0]


def test_appended_ewc__still_finds_what_was_trained():
    """Experts and routers freeze behind it, however late it came."""
    kept = []
    for late in (False, True):
        ewc = ContrastiveEWCPlugin(10.0, fisher_batch_size=6)
        strategy, _ = build(plugins=[] if late else [ewc])
        strategy.plugins += [ewc] if late else []
        train_stream(strategy, moe_runs.domains(strategy.model), 1)
        kept.append(set(ewc.fisher))
    assert kept[0] == kept[1]


def test_count_above_the_number_of_experts__is_refused_at_once():
    with pytest.raises(ValueError, match="exceeds num_experts=6"):
        build(count=7)
    build(count=7, freeze=False)
