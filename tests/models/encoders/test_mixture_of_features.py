import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_clip.models import MixtureOfFeatures

SAME = [nn.Identity(), nn.Identity()]


def tokens(*values):
    return torch.tensor([[[float(value)] for value in values]])


def test_mixture__interleaved_and_added_as_in_the_note():
    given = tokens(1, 2), tokens(10, 20)
    interleaved = MixtureOfFeatures(SAME)
    assert interleaved.mix(*given).flatten().tolist() == [1, 10, 2, 20]
    for share, wanted in [(0.25, [7.75, 15.5]), (1, [1, 2]), (0.0, [10, 20])]:
        added = MixtureOfFeatures(SAME, mode="add", share=share)
        assert added.mix(*given).flatten().tolist() == wanted


class Patches(nn.Module):
    """Tokens of the patches of an image."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images):
        return self.conv(images).flatten(2).transpose(1, 2)


def test_mixture__tokens_of_two_encoders_in_turns():
    parts = [Patches(0), Patches(1)]
    images = torch.rand(5, 3, 8, 8)
    mixed = MixtureOfFeatures(parts)(images)
    assert mixed.shape == (5, 8, 6)
    assert torch.equal(mixed[:, 0::2], parts[0](images))
    assert torch.equal(mixed[:, 1::2], parts[1](images))
    added = MixtureOfFeatures(parts, mode="add", share=0.75)(images)
    assert torch.allclose(added, 0.75 * mixed[:, 0::2] + 0.25 * mixed[:, 1::2])


def test_mixture__cosines_of_interleaved_features_are_means_of_both():
    banks = [
        F.normalize(torch.randn(7, 9, generator=torch.manual_seed(k))) for k in (1, 2)
    ]
    mixture = MixtureOfFeatures([banks[0].__getitem__, banks[1].__getitem__])
    found = mixture.encode_image(torch.arange(7))
    wanted = sum(bank @ bank.T for bank in banks) / 2
    assert found.shape == (7, 18)
    assert torch.allclose(found @ found.T, wanted, atol=1e-6)
    one = MixtureOfFeatures(
        [banks[0].__getitem__, banks[1].__getitem__], mode="add", share=1
    )
    assert torch.allclose(one.encode_image(torch.arange(7)), banks[0])


def test_mixture__registers_its_encoders():
    mixture = MixtureOfFeatures([Patches(0), Patches(1)])
    assert len(list(mixture.parameters())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean"}, "mode='mean'"),
        ({"mode": "add"}, "needs CLIP's share"),
        ({"share": 0.5}, "needs CLIP's share"),
        ({"mode": "add", "share": 1.5}, "share=1.5"),
    ],
)
def test_mixture__refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfFeatures(SAME, **options)


def test_mixture__refuses_other_numbers_of_encoders():
    with pytest.raises(ValueError, match="1 encoders given, 2 are needed"):
        MixtureOfFeatures([nn.Identity()])


def test_mixture__refuses_grids_that_differ():
    mixture = MixtureOfFeatures(SAME)
    with pytest.raises(ValueError, match="same grid"):
        mixture.mix(tokens(1, 2), tokens(1, 2, 3))


def test_encode_image__refuses_grids():
    same = MixtureOfFeatures([lambda x: x, lambda x: x], "add", share=0.5)
    with pytest.raises(ValueError, match="flatten grids"):
        same.encode_image(torch.rand(2, 3, 3, 5))
