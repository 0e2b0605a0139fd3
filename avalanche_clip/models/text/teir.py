"""How new token rows begin, and how far each row may move (TEIR).

Source: Yang et al., AAAI 2024 (CLL-CLIP with TEIR, arXiv 2401.17186) and the
released code.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from avalanche_clip.common.checks import (
    require_alike,
    require_array,
    require_some,
    require_type,
)

_CHUNK = 16_384  # rows that are summed together
_BLOCK = 2**20  # entries from which two threads draw


def table_moments(table: Tensor) -> tuple[float, float]:
    """Mean and sample standard deviation over all entries of a table.

    :param table: float, ``(V, d)``, at least two entries.
    :return: mean, and standard deviation with divisor ``V * d - 1``.
    :raises ValueError: for another shape or type, fewer entries, or entries that
        are not finite.

    >>> table_moments(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    (1.5, 1.2909944487358056)
    """
    require_array(table, "The table", "V d", "float")
    require_some(table.reshape(-1), "entries in the table", least=2)
    table = table.detach()
    if table.dtype in (torch.float16, torch.bfloat16):
        table = table.float()
    count = table.numel()
    ones = torch.ones(table.shape[1], dtype=table.dtype, device=table.device)
    first, second = [], []
    for rows in table.split(_CHUNK):
        flat = rows.reshape(-1)
        first.append(torch.mv(rows, ones).sum(dtype=torch.float64))
        second.append(torch.dot(flat, flat).double())
    total = torch.stack(first).sum().item()
    squares = torch.stack(second).sum().item()
    mean = total / count
    rest = squares - count * mean * mean
    # Where the mean hides the spread, or squares leave float32: subtract it first.
    if not (rest > 0.01 * squares and 1e-30 < squares / count < 1e30):
        parts = table.split(_CHUNK)
        sums = torch.stack([rows.double().sum() for rows in parts])
        mean = sums.sum().item() / count
        rest = sum((rows.double() - mean).square().sum().item() for rows in parts)
    if not math.isfinite(rest):
        raise ValueError(
            f"The table {tuple(table.shape)} holds entries that are not finite; load "
            "its weights again, or look for the step that broke them."
        )
    return mean, math.sqrt(rest / (count - 1))


@torch.no_grad()
def teir_init_(
    new_rows: Tensor, old_table: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw new token rows like the rows that are there, in place.

    Every entry comes from one normal distribution whose mean and standard
    deviation are those of all entries of ``old_table`` (trained rows and special
    tokens included), so that new and old embeddings look alike to the frozen
    layers.

    :param new_rows: float, ``(n, d)``; overwritten.
    :param old_table: float, ``(V, d)``.
    :param generator: of the random numbers; they are drawn on its device.
    :return: ``new_rows``.
    :raises ValueError: if the widths differ, the table has fewer than two entries
        or some that are not finite, or one of both holds no floats.

    Source: see the module; section "TEIR initialisation".

    >>> table = torch.tensor([[5.0, 5.0], [5.0, 5.0]])
    >>> teir_init_(torch.empty(1, 2), table)
    tensor([[5., 5.]])
    """
    width = old_table.shape[-1]
    require_array(new_rows, "new_rows", f"* {width}", "float", give="as old_table")
    mean, std = table_moments(old_table)
    return draw_normal_(new_rows, mean, std, generator)


@torch.no_grad()
def draw_normal_(
    rows: Tensor, mean: float, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Fill rows with normal numbers drawn on the generator's device, in place.

    Large blocks on the CPU are drawn as two halves with seeds of their own, at the
    same time; the numbers do not depend on how many cores there are.
    """
    on_cpu = rows.device.type == "cpu"
    if on_cpu and rows.numel() >= _BLOCK and _is_cpu(generator):
        seeds = torch.randint(2**62, (2,), generator=generator).tolist()

        def fill(half: Tensor, seed: int) -> None:
            half.normal_(mean, std, generator=torch.Generator().manual_seed(seed))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, rows.tensor_split(2), seeds))
        return rows
    if generator is None or generator.device.type == rows.device.type:
        return rows.normal_(mean, std, generator=generator)
    drawn = torch.empty(rows.shape, dtype=rows.dtype, device=generator.device)
    return rows.copy_(drawn.normal_(mean, std, generator=generator))


def _is_cpu(generator: torch.Generator | None) -> bool:
    return generator is None or generator.device.type == "cpu"


def teir_scale(
    occurs: Tensor, is_clip_token: Tensor, earlier_tasks: Tensor, is_special: Tensor
) -> Tensor:
    """How strongly each token row takes part in the current task.

    ``s_k = occurs_k * (not special_k) / (1 + clip_k + n_k)``: rows that the
    task's captions do not use stay still, and rows that many tasks have used
    move less. CLIP's own training counts as one task.

    :param occurs: whether the row's token is in the task's captions, ``(V,)``.
    :param is_clip_token: whether it belongs to the original vocabulary.
    :param earlier_tasks: number ``n_k >= 0`` of earlier tasks that used it.
    :param is_special: whether it is a start, end, unknown or padding token.
    :return: factors in ``[0, 1]``, ``(V,)``, of the type of ``earlier_tasks``
        where that is floating point, else of torch's default type.
    :raises ValueError: for what is no tensor, if shapes differ, or a count is
        negative, NaN or infinite.

    Source: see the module; section "TEIR regularisation".

    >>> yes, no = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    >>> teir_scale(yes, yes, torch.tensor([1]), no)
    tensor([0.3333])
    """
    given = {
        "occurs": occurs,
        "is_clip_token": is_clip_token,
        "earlier_tasks": earlier_tasks,
        "is_special": is_special,
    }
    for name, value in given.items():
        require_type(value, Tensor, name, "a tensor (V,)", error=ValueError)
    require_alike("give vectors of one length", ("shape",), **given)
    require_array(occurs.float(), "occurs", "*", give="vectors of one length")
    for name, value in given.items():
        if not bool((value >= 0).all()) or not bool((value < math.inf).all()):
            raise ValueError(
                f"{name} holds {value.min().item()} to {value.max().item()}; "
                "counts and marks are finite numbers >= 0."
            )
    kind = torch.result_type(earlier_tasks, 1.0)
    uses = 1 + is_clip_token.bool().to(kind) + earlier_tasks.to(kind)
    return (occurs.bool() & ~is_special.bool()).to(kind) / uses
