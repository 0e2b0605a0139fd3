"""Every method on small models of each library, saved and loaded."""

import copy
import math
from functools import cache

import pytest
import torch
import transformers

from avalanche_clip.models import create_dual_encoder
from tests.helpers import (
    StubTokenizer,
    assert_same_weights,
    train_stream,
    weights,
)
from tests.methods.rows import ROWS
from tests.methods.worlds import build
from tests.models.conftest import VOCAB, hf_towers, save_hf_tokenizer, word_tokenizer
from tests.training import languages, moe_runs

LIBRARIES = ("open_clip", "transformers", "siglip")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A function that makes a fresh model of a library for a world."""

    @cache
    def made(library, words):
        folder = tmp_path_factory.mktemp(library)
        torch.manual_seed(0)
        if library == "open_clip":
            own = {"type": "json", "file": str(word_tokenizer(folder))}
            config = copy.deepcopy({**moe_runs.CONFIG, "tokenizer": own})
            config["model_cfg"]["text_cfg"]["vocab_size"] = VOCAB
            return languages.tiny_model() if words else create_dual_encoder(config)
        sizes = hf_towers()
        if words:  # the width of SigLIP's features, and the stored ones
            sizes["text_config"].update(vocab_size=3584, hidden_size=languages.DIM)
            sizes["vision_config"].update(hidden_size=languages.DIM)
        name, width = "Siglip", {}
        if library == "transformers":
            name, width = "CLIP", {"projection_dim": languages.DIM}
        config = getattr(transformers, f"{name}Config")(**sizes, **width)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        save_hf_tokenizer(word_tokenizer(folder), folder)
        return create_dual_encoder(f"hf:{folder}")

    def fresh(library, world):
        model = copy.deepcopy(made(library, world == "languages"))
        own = model.tokenizer
        model.pretrained = "random"
        if world == "languages":
            model.tokenizer = languages.tiny_model().tokenizer
        else:
            model.tokenizer = StubTokenizer()
        return model, own

    return fresh


def _cases():
    """Rows take turns among the libraries; the other pairs are for slow runs."""
    for number, name in enumerate(ROWS):
        for place, library in enumerate(LIBRARIES):
            marks = [] if number % len(LIBRARIES) == place else [pytest.mark.slow]
            yield pytest.param(library, name, marks=marks)


@pytest.mark.parametrize(("library", "name"), _cases())
def test_model__of_each_library_trains_and_is_saved(library, name, model_of, tmp_path):
    row = ROWS[name]
    if library in row.cannot:
        pytest.skip(row.cannot[library])
    model, own_tokenizer = model_of(library, row.world)
    start = weights(model)
    strategy, benchmark = build(row, model=model, budget_iterations=2)
    train_stream(strategy, benchmark, 2)
    found = strategy.eval(benchmark.test_stream[:2])
    assert all(math.isfinite(v) for k, v in found.items() if "Top1" in k or "Loss" in k)
    after = weights(model)
    assert all(torch.isfinite(v).all() for v in after.values())
    changed = start.keys() != after.keys() or any(
        start[k].shape != v.shape or not torch.equal(start[k], v)
        for k, v in after.items()
    )
    assert changed != row.idle
    if row.world != "languages":
        model.tokenizer = own_tokenizer
    if "saved" in row.cannot:
        with pytest.raises(ValueError, match="plain architecture"):
            model.save(tmp_path)
        return
    model.save(tmp_path)
    loaded = create_dual_encoder(tmp_path)
    assert_same_weights(loaded, model)
    tokens = model.tokenizer(["red dog", "cat"])
    assert torch.equal(loaded.tokenizer(["red dog", "cat"]), tokens)
    for one in (model, loaded):
        one.eval()
    with torch.no_grad():
        found = loaded.encode_text(tokens)
        torch.testing.assert_close(found, model.encode_text(tokens))
