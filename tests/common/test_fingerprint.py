import pytest
import torch

from avalanche_clip.common.fingerprint import _CHUNK, FingerprintCache, _bit_sum


def slow(tensor):
    """The weighted sum with Python's own integers."""
    size = tensor.element_size()
    kind = {1: torch.uint8, 2: torch.int16}.get(size, torch.int32)
    numbers = tensor.reshape(-1).view(kind).tolist()
    total = 0
    for position, number in enumerate(numbers):
        chunk, i = divmod(position, _CHUNK)
        weight = (i * i + 1_103_515_245 * i) % (2**31 - 1) + 1
        total += (chunk * chunk + 7 * chunk + 1) * weight * number
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8],
)
def test_bit_sum__equals_the_slow_one(dtype):
    values = torch.randn(_CHUNK + 77, generator=torch.Generator().manual_seed(0))
    tensor = (values * 50).abs().to(dtype) if dtype != torch.bool else values > 0
    assert int(_bit_sum(tensor)) == slow(tensor)
    assert int(_bit_sum(tensor[:0])) == 0


@pytest.mark.parametrize("rows", [3, 700])
def test_writes_through_data__of_the_same_values_elsewhere(rows):
    tensor = torch.randn(rows, 401)
    cache = FingerprintCache()
    known = {cache([("w", tensor)])}
    version = tensor._version
    tensor.data.copy_(tensor.data.flip(0).clone())
    known.add(cache([("w", tensor)]))
    tensor.data.copy_(tensor.data.flip(1).clone())
    known.add(cache([("w", tensor)]))
    tensor.data[[0, -1]] = tensor.data[[-1, 0]]
    known.add(cache([("w", tensor)]))
    tensor.data[0, [0, 2]] = -tensor.data[0, [0, 2]]  # two sign bits
    known.add(cache([("w", tensor)]))
    assert len(known) == 5 and tensor._version == version
    assert FingerprintCache()([("w", tensor)]) == cache([("w", tensor)])
