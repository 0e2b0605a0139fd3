"""Every method on small models of each library, saved and loaded."""

import copy
from functools import cache

import pytest
import torch

from avalanche_clip.models import create_dual_encoder
from tests.helpers import StubTokenizer, train_stream
from tests.methods.rows import ROWS, build
from tests.models.conftest import hf_towers, save_hf_tokenizer, word_tokenizer
from tests.training import languages, moe_runs

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A function that makes a fresh model of a library, with the world's tokenizer."""

    @cache
    def made(library, words):
        if library == "open_clip":
            return languages.tiny_model() if words else moe_runs.vit()
        import transformers

        sizes = hf_towers()
        sizes["text_config"]["vocab_size"] = 3584 if words else 40
        name = "CLIP" if library == "transformers" else "Siglip"
        width = {"projection_dim": languages.DIM} if name == "CLIP" else {}
        config = getattr(transformers, f"{name}Config")(**sizes, **width)
        folder = tmp_path_factory.mktemp(library)
        torch.manual_seed(0)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        save_hf_tokenizer(word_tokenizer(folder), folder)
        return create_dual_encoder(f"hf:{folder}")

    def fresh(library, world):
        words = world == "languages"
        model = copy.deepcopy(made(library, words))
        model.tokenizer = languages.tiny_model().tokenizer if words else StubTokenizer()
        return model

    return fresh


@pytest.mark.parametrize("library", ["open_clip", "transformers", "siglip"])
@pytest.mark.parametrize("name", ROWS)
def test_tower__trains_and_comes_back(library, name, tower, tmp_path):
    if library in ROWS[name].cannot:
        pytest.skip(ROWS[name].cannot[library])
    model = tower(library, ROWS[name].world)
    strategy, benchmark = build(ROWS[name], model=model, budget_iterations=2)
    train_stream(strategy, benchmark, 2)
    found = strategy.eval(benchmark.test_stream)
    assert all(v == v for v in found.values() if isinstance(v, float))
