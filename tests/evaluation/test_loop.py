import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.budget import ComputeBudget
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.evaluation.loop import embed, evaluate_retrieval
from tests.helpers import stub_benchmark, stub_model


def test_embed__equals_one_forward_pass_and_restores_modes():
    model = stub_model(dropout=0.5)
    model.text_proj.eval()
    dataset = stub_benchmark(model=model, groups=6).test_stream[0].dataset
    bank = embed(model, dataset, batch_size=4)
    assert model.training and not model.text_proj.training and model.dropout.training
    with evaluating(model), torch.no_grad():
        batch = dataset.collate_fn([dataset[i] for i in range(6)])[0]
        output = model(batch)
    torch.testing.assert_close(bank.image_features, output.image_features)
    torch.testing.assert_close(bank.text_features, output.text_features)
    assert bank.owner.tolist() == [[i, i] for i in range(6)]


def test_embed__merges_equal_captions_and_books_the_passes():
    model, budget = stub_model(), ComputeBudget()
    dataset = (
        stub_benchmark(model=model, groups=2, test_captions=2).test_stream[0].dataset
    )
    bank = embed(model, dataset, batch_size=4, budget=budget)
    assert len(bank.image_features) == 6 and len(bank.text_features) == 4
    assert len(bank.owner) == 12
    assert budget.experiences[0]["search"] == {"images": 6, "texts": 12, "steps": 0}


def test_retrieval__of_a_perfect_encoder_is_one():
    model = stub_model()
    dataset = stub_benchmark(model=model, groups=6).test_stream[0].dataset
    labels = iter(F.one_hot(torch.arange(6)).float().split(2))

    class Perfect(torch.nn.Module):
        tokenizer = model.tokenizer

        def forward(self, batch):
            rows = next(labels)
            return type("O", (), {"image_features": rows, "text_features": rows})

    assert evaluate_retrieval(Perfect(), dataset, batch_size=2)["mean_R@1"] == 1.0


def test_evaluating__restores_modes_after_an_error():
    model = stub_model()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        raise RuntimeError
    assert model.training
