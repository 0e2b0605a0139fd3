"""Models of the checkpoints that a run has kept."""

import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic import emoji_dataset
from avalanche_clip.common.state_files import CheckpointError, read_state
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import (
    attach_adapters,
    attach_language_adapters,
    attach_lora,
    attach_moe_adapters,
    attach_prompts,
    attach_token_embedding,
    create_dual_encoder,
    export_model,
    load_tower,
)
from avalanche_clip.models.stored import kept_steps, load_kept, save_whole
from avalanche_clip.training import Sequential, run_stream
from avalanche_clip.training.plugins import CheckpointPlugin
from tests.helpers import assert_same_weights, quiet_evaluator


def trained(folder, plugins=(), frozen=None, preset="tiny-emoji", inside=None):
    """A strategy that was trained for two steps, and kept all."""
    model = create_dual_encoder(preset, "emoji-2010")
    if frozen:
        model.freeze(frozen)
    parts = [emoji_dataset(("noto",), np.arange(n, n + 4)) for n in (0, 4)]
    benchmark = prepare_benchmark(benchmark_from_datasets(train=parts), model)
    keep = CheckpointPlugin(folder / "checkpoints", keep=9, every_iterations=inside)
    strategy = Sequential(
        model=model,
        train_mb_size=4,
        budget_iterations=2,
        plugins=[*plugins, keep],
        evaluator=quiet_evaluator(),
    )
    keep.save(strategy, "_eval")
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy


@pytest.mark.parametrize("frozen", [None, "image"])
def test_kept_steps__are_the_models_after_them(frozen, tmp_path):
    strategy = trained(tmp_path, frozen=frozen, inside=1)
    kept = kept_steps(tmp_path)
    assert list(kept) == ["before", "0", "1"]
    assert kept == kept_steps(tmp_path / "checkpoints")
    assert_same_weights(load_kept(kept["1"]), strategy.model)
    start = create_dual_encoder("tiny-emoji", "emoji-2010")
    assert_same_weights(load_kept(kept["before"]), start)
    middle = load_kept(kept["0"])
    states = {m.state_fingerprint() for m in (start, middle, strategy.model)}
    assert len(states) == 3
    image = torch.rand(2, 3, 48, 48)
    middle.eval(), start.eval()
    same = torch.equal(middle.encode_image(image), start.encode_image(image))
    assert same == (frozen == "image")


def test_kept_steps__of_other_folders(tmp_path):
    assert kept_steps(tmp_path) == {} == kept_steps(tmp_path / "none")
    trained(tmp_path, inside=1)
    for path in (tmp_path / "checkpoints").glob("*_e*.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint between steps"):
        kept_steps(tmp_path)


# ------------------------------------------------------------- folders of runs
ATTACH = {
    "nothing": lambda model: None,
    "lora": lambda model: attach_lora(model, "text", blocks=[1], rank=2),
    "adapters": lambda model: attach_adapters(model, bottleneck=4, dropout=0.0),
    "prefix": lambda model: attach_prompts(model, scale=0.5),
    "moe": lambda model: attach_moe_adapters(model, num_experts=3, bottleneck=4),
    "two": lambda model: (
        attach_lora(model, "text", rank=2).add(),
        attach_adapters(model, "image", bottleneck=4),
    ),
    "table": lambda model: attach_token_embedding(model),
}


def run(folder, attach, steps=2, **options):
    """A finished run of a model with something attached."""
    torch.manual_seed(0)
    model = create_dual_encoder("tiny-emoji-vit", "emoji-2010")
    attach(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.02)
    data = [
        emoji_dataset(("noto",), np.arange(n, n + 4)) for n in range(0, 4 * steps, 4)
    ]
    streams = {"train": data, "test": data[:1]}
    benchmark = prepare_benchmark(benchmark_from_datasets(**streams), model)
    strategy = Sequential(
        model=model,
        train_mb_size=4,
        budget_iterations=1,
        optimizer=partial(torch.optim.SGD, lr=0.01),
        evaluator=quiet_evaluator(retrieval_plugin_metrics(ks=(1,))),
    )
    settings = {"keep_steps": "all", "verbose": 0, **options}
    return strategy, run_stream(strategy, benchmark, folder, **settings)


def features(model):
    """What a model computes of a picture and a text, in evaluation mode."""
    image = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    training = model.training
    model.eval()
    with torch.no_grad():
        text = model.tokenizer(["red heart", "zyx of a cat"])
        found = [model.encode_image(image), model.encode_text(text)]
    model.train(training)
    return found


def assert_alike(left, right):
    for mine, other in zip(features(left), features(right), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("kind", ATTACH)
def test_create_dual_encoder__of_a_run_and_its_steps(kind, tmp_path):
    strategy, _ = run(tmp_path, ATTACH[kind])
    last = create_dual_encoder(tmp_path)
    assert_alike(last, strategy.model)
    assert_alike(create_dual_encoder(tmp_path / "model"), strategy.model)
    assert_alike(create_dual_encoder(tmp_path, step=1), strategy.model)
    assert_same_weights(create_dual_encoder(tmp_path, step=1), strategy.model)
    early = create_dual_encoder(str(tmp_path), step="before")
    middle = create_dual_encoder(tmp_path, step=0)
    texts = [features(model)[1] for model in (early, middle, last)]
    images = [features(model)[0] for model in (early, middle, last)]
    for before, now in ((0, 1), (1, 2)):
        same = [torch.equal(f[before], f[now]) for f in (texts, images)]
        assert not all(same)
    if kind != "nothing":
        again = tmp_path / "again"
        save_whole(create_dual_encoder(tmp_path, step=0), again)
        assert_alike(create_dual_encoder(again), middle)


# ---------------------------------------------------- what is known by its hash
def tower_of_another():
    model = create_dual_encoder("tiny-emoji-vit")
    return load_tower(model, "image", create_dual_encoder("tiny-emoji-vit", "icons"))


def with_other_weights():
    model = create_dual_encoder("tiny-emoji-vit", "icons")
    model.load_state_dict(create_dual_encoder("tiny-emoji-vit").state_dict())
    return model


PARTLY_FROZEN = {
    "loaded": (lambda: create_dual_encoder("tiny-emoji-vit", "icons"), True),
    "random": (lambda: create_dual_encoder("tiny-emoji-vit"), False),
    "a tower of another": (tower_of_another, False),
    "resized": (
        lambda: create_dual_encoder("tiny-emoji-vit", "icons", image_size=64),
        0,
    ),
    "others loaded by hand": (with_other_weights, False),
    "16 bits": (
        lambda: create_dual_encoder("tiny-emoji-vit", "icons", precision="bf16"),
        True,
    ),
}


def kept_at_once(model, folder):
    """The checkpoint of a run that has not begun."""
    strategy = Sequential(model=model, evaluator=quiet_evaluator())
    return CheckpointPlugin(folder / "checkpoints").save(strategy, "_eval")


@pytest.mark.parametrize("kind", PARTLY_FROZEN)
def test_load_kept__frozen_weights_are_found_by_name_or_in_the_last_model(
    kind, tmp_path
):
    make, known = PARTLY_FROZEN[kind]
    model = make()
    model.freeze("image")
    model.unfreeze("text")
    path = kept_at_once(model, tmp_path)
    assert "clip.visual.proj" in read_state(path)["base"]["names"]
    if not known:
        with pytest.raises(CheckpointError, match="finished run has them in .*model"):
            load_kept(path)
        save_whole(model, tmp_path / "model")
    found = load_kept(path)
    assert found.pretrained == model.pretrained
    assert all(p.dtype == torch.float32 for p in found.parameters())
    for (name, mine), other in zip(model.named_parameters(), found.parameters()):
        assert torch.equal(mine.float(), other), name
        assert mine.requires_grad == other.requires_grad, name


@pytest.mark.parametrize("preset", ["tiny-emoji", "hub"])
def test_load_kept__weights_that_only_a_name_gives(preset, tmp_path, monkeypatch):
    """Tags of open_clip and repositories are none of a configuration."""
    name, tag = preset, "icons"
    if preset == "hub":
        name, tag = "hf-hub:org/repo", None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export_model(create_dual_encoder("tiny-emoji-vit", "icons"), tmp_path / "a")
        monkeypatch.setattr(
            "open_clip.pretrained.download_pretrained_from_hf",
            lambda ident, filename="open_clip_model.safetensors", **options: str(
                tmp_path / "a" / filename
            ),
        )
    model = create_dual_encoder(name, tag)
    attach_lora(model, "text", rank=2)
    path = kept_at_once(model, tmp_path / "b")
    assert "clip.logit_scale" in read_state(path)["base"]["names"]
    assert_same_weights(load_kept(path), model)


def test_save_whole__keeps_ids_and_what_changes_no_plain_feature(tmp_path):
    model = create_dual_encoder("tiny-emoji-vit", "emoji-2010")
    attach_prompts(model, "image", kind="tokens")
    languages = attach_language_adapters(model, "lora")
    languages.add(3)
    lora = attach_lora(model, rank=2)
    lora.set_ids(lora.add())
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_whole(model, tmp_path / "model")
    found = create_dual_encoder(tmp_path / "model")
    assert found.lora.ids == {"image": 1, "text": 1}
    for code in (None, 3):
        with languages.languages(code), found.language_adapters.languages(code):
            assert_alike(found, model)
    image = torch.rand(1, 3, 48, 48)
    read = [m.eval().prompts.encode_image(image)[1] for m in (model, found)]
    assert torch.equal(*read)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_create_dual_encoder__of_a_step_that_is_gone(tmp_path):
    run(tmp_path, ATTACH["nothing"], keep_steps=1)
    with pytest.raises(ValueError, match="not keep the model of step 0; there are 1"):
        create_dual_encoder(tmp_path, step=0)
    for wrong in (-1, "last", 0.5, True):
        with pytest.raises(ValueError):
            create_dual_encoder(tmp_path, step=wrong)
    with pytest.raises(ValueError, match="step=0 is that of a run"):
        create_dual_encoder(tmp_path / "model", step=0)
    with pytest.raises(ValueError, match="step=0 is that of a run"):
        create_dual_encoder("tiny-emoji", step=0)
    with pytest.raises(ValueError, match="leave pretrained='icons' out"):
        create_dual_encoder(tmp_path, "icons")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has no model/.*\['1'\]"):
        create_dual_encoder(tmp_path)


def test_create_dual_encoder__in_16_bits(tmp_path):
    run(tmp_path, ATTACH["lora"])
    for step in (None, 1):
        model = create_dual_encoder(tmp_path, step=step, precision="bf16")
        assert model.clip.visual.proj.dtype == torch.bfloat16
        assert not any(p.requires_grad for p in model.parameters())


def test_model__is_replaced_with_what_lay_beside_it(tmp_path):
    run(tmp_path / "run", ATTACH["lora"])
    folder = tmp_path / "run" / "model"
    assert (folder / "lora.safetensors").exists()
    create_dual_encoder("tiny-emoji-vit", "emoji-2010").save(folder)
    assert create_dual_encoder(folder).lora is None


def test_load_kept__what_nothing_tells_how_to_build(tmp_path):
    class Grows(torch.nn.Module):
        def growth_state(self):
            return {"size": 1}

        def load_growth_state(self, state):
            pass

    run(tmp_path, lambda model: model.add_module("own", Grows()))
    with pytest.raises(CheckpointError, match="growing module 'own'"):
        create_dual_encoder(tmp_path, step=0)


def test_run__whose_model_cannot_be_written_tells_and_ends(tmp_path):
    def own(model):
        model.add_module("own", torch.nn.Linear(2, 2))

    (tmp_path / "model").mkdir()  # of a run that was shorter
    with pytest.warns(UserWarning, match="model is not written: .*own.weight"):
        run(tmp_path, own)
    assert (tmp_path / "results.json").exists()
    assert not list(tmp_path.glob("model*"))
