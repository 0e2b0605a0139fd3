"""Spatial disorder: how the embedding spaces of two snapshots differ in angle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.common.checks import require_alike
from avalanche_clip.evaluation.functional._angles import (
    bands,
    pair_angles,
    row_angles,
    unit_rows,
)
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_tensor

ROTATION_BINS = (0.0, 15.0, 20.0, 25.0, 30.0, 180.0)
"""Edges in degrees of the bins of rotation angles."""

TOPOLOGY_BINS = (0.0, 5.0, 10.0, 15.0, 20.0, 180.0)
"""Edges in degrees of the bins of absolute changes of self-angles."""

# Angles so close to an edge, in degrees, are on it: features in float32 give angles
# with errors of some 1e-5.
_ON_EDGE = 1e-4
# Largest condition number (Frobenius) of the features' Gram matrices and of the
# product of old and new ones. The first is a ratio of singular values of 1e-6, which
# lies between rounding in float32 (1e-7) and the features of models (1e-3 and more).
_MAX_CONDITION = 1e12
# The iteration for the orthogonal map doubles its digits per step once it is near.
_MAX_STEPS = 60
_SETTLED = 1e-12
_ALIKE = "pass the same pairs in the same order, all of shape (N, D), on one device"


def spatial_disorder(
    v_old: ArrayLike, t_old: ArrayLike, v_new: ArrayLike, t_new: ArrayLike
) -> dict[str, float]:
    """Compare the features of N image-text pairs at two points of a run.

    All angles are in degrees. They do not depend on the lengths of the vectors,
    which are normalised again in float64. With ``m`` for ``image`` and ``text``:

    - ``m_rotation_mean``, ``_median``, ``_std`` (over all N, not N - 1): of the
      angles between old and new vector of each sample; and
      ``m_rotation_share_0_15`` ... ``_30_180``: shares of them in
      :data:`ROTATION_BINS`. Rounding moves no angle across an edge of these bins
      or those below: angles within 1e-4 of an edge count as on it.
    - ``m_topology_change``: mean absolute change of the angle between two
      samples of one modality, over the N(N-1)/2 pairs (the paper's self-angle
      matrix); ``m_topology_signed_mean``: its mean with sign, positive when
      samples move apart; ``m_topology_p95``: 95th percentile of the absolute
      change, interpolated linearly; ``m_topology_share_0_5`` ... ``_20_180``:
      shares in :data:`TOPOLOGY_BINS`.
    - ``imd_mean``: inter-modal deviation, the mean of ``|image rotation - text
      rotation|`` per pair; ``imd_gap``: difference of the two means;
      ``imd_tv``: half the L1 distance of the two histograms, in [0, 1].
    - ``cross_modal_diagonal_change``: mean change of the angle between an image
      and its text, with sign; ``cross_modal_off_diagonal_change``: mean
      absolute change of the angles between image a and text b != a.
    - ``m_procrustes_residual``: root mean square distance that remains after
      the best orthogonal map of the old onto the new features, 0 for a pure
      rotation; ``desynchronisation``: mean angle between the images of an old
      image vector under the maps of the two modalities.

    Values that are not defined are NaN: those over pairs of samples for N = 1,
    and the last group where N < D or features have no full column rank, since
    the orthogonal map is not unique then.

    Memory: float64 copies of the inputs and ``4 * N**2`` bytes for the changes
    of one modality (100 MB for N = 5000); never N x N x D.

    :param v_old: image features before, ``(N, D)``, float32 or float64.
    :param t_old: text features before, row a belongs to image a.
    :param v_new: image features after, same samples in the same order.
    :param t_new: text features after.
    :return: the values above as Python floats.
    :raises ValueError: if shapes, types or devices do not fit, a value is not
        finite, or a vector is zero.

    Source: Ni et al., ICML 2023 (Mod-X, arXiv 2305.07437) for rotation and
    self-angles; the deviation scalars, the cross-modal and the Procrustes
    values are our choice.

    >>> def at(*degrees):
    ...     turns = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    ...     return torch.stack([turns.cos(), turns.sin()], dim=1)
    >>> found = spatial_disorder(at(0, 50), at(8, 44), at(30, 80), at(18, 54))
    >>> round(found["image_rotation_mean"], 6), round(found["imd_mean"], 6)
    (30.0, 20.0)
    """
    with torch.no_grad():
        old = {"image": unit_rows("v_old", v_old), "text": unit_rows("t_old", t_old)}
        new = {"image": unit_rows("v_new", v_new), "text": unit_rows("t_new", t_new)}
        features = {
            "v_old": old["image"],
            "t_old": old["text"],
            "v_new": new["image"],
            "t_new": new["text"],
        }
        require_alike(_ALIKE, ("shape", "device"), **features)
        turns = {name: row_angles(old[name], new[name]) for name in old}
        result = _deviation(turns["image"], turns["text"])
        for name in old:
            result |= _rotation(name, turns[name])
            result |= _topology(name, _self_angle_changes(old[name], new[name]))
        return result | _cross_modal(old, new) | _rotation_split(old, new)


def rotation_angles(old: ArrayLike, new: ArrayLike) -> Tensor:
    """Return the angle by which each vector turned.

    Identical vectors give exactly 0, opposite ones exactly 180.

    :param old: features before, ``(N, D)``, float32 or float64, any lengths.
    :param new: features after, same samples in the same order.
    :return: degrees in [0, 180], float64, ``(N,)``, on the device of ``old``.
    :raises ValueError: as in :func:`spatial_disorder`.

    >>> rotation_angles([[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [-1.0, 0.0]])
    tensor([ 90., 180.], dtype=torch.float64)
    """
    with torch.no_grad():
        return row_angles(*_checked(old, new))


def self_angles(features: ArrayLike) -> Tensor:
    """Return the angles between all vectors of one modality.

    :param features: ``(N, D)``, float32 or float64, any lengths.
    :return: degrees in [0, 180], float64, ``(N, N)``, the diagonal exactly 0:
        8 * N**2 bytes. :func:`topology_change` compares two of them with less.
    :raises ValueError: as in :func:`spatial_disorder`.
    """
    with torch.no_grad():
        rows = unit_rows("features", features)
        parts = [pair_angles(rows[a:b], rows, a) for a, b in bands(len(rows))]
        return torch.cat(parts).rad2deg_()


def topology_change(old: ArrayLike, new: ArrayLike) -> Tensor:
    """Return how the angle of each pair of samples of one modality changed.

    :param old: features before, ``(N, D)``, float32 or float64, any lengths.
    :param new: features after, same samples in the same order.
    :return: new minus old angle in degrees of the pairs (0, 1), (0, 2), ...,
        (N-2, N-1): float64, ``(N(N-1)/2,)``; empty for N = 1.
    :raises ValueError: as in :func:`spatial_disorder`.

    >>> topology_change([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])
    tensor([-90.], dtype=torch.float64)
    """
    with torch.no_grad():
        return _self_angle_changes(*_checked(old, new))


def angle_histogram(
    angles: ArrayLike, edges: Sequence[float] = ROTATION_BINS
) -> Tensor:
    """Return the share of values in each bin.

    A bin holds its left edge and not its right one, except the last, which
    holds both. Values outside the edges count in the total only.

    :param angles: values of any shape; pass absolute values for
        :data:`TOPOLOGY_BINS`.
    :param edges: increasing edges of the bins, at least two.
    :return: float64, one share per bin; all NaN without values.
    :raises ValueError: if the edges do not increase or a value is NaN.

    >>> angle_histogram([5.0, 17.0, 22.0, 28.0, 90.0]).tolist()
    [0.2, 0.2, 0.2, 0.2, 0.2]
    """
    bounds = torch.tensor(list(edges), dtype=torch.float64)
    if len(bounds) < 2 or not bool((bounds[1:] > bounds[:-1]).all()):
        raise ValueError(
            f"edges={tuple(edges)} given; pass at least two increasing numbers."
        )
    values = as_tensor("angles", angles).double().flatten()
    if bool(values.isnan().any()):
        raise ValueError(f"angles hold NaN in {int(values.isnan().sum())} places.")
    return _histogram(values, bounds.tolist())


def _histogram(values: Tensor, edges: Sequence[float], near: float = 0.0) -> Tensor:
    """Shares of bins; values less than ``near`` from an edge count as on it."""
    # counting below each edge is faster than finding the bin of each value
    below = [int((values < edge - near).sum()) for edge in edges[:-1]]
    below.append(int((values <= edges[-1] + near).sum()))
    counts = torch.tensor(below, dtype=torch.float64, device=values.device).diff()
    return counts / values.numel()


def _checked(old: ArrayLike, new: ArrayLike) -> tuple[Tensor, Tensor]:
    before, after = unit_rows("old", old), unit_rows("new", new)
    require_alike(_ALIKE, ("shape", "device"), old=before, new=after)
    return before, after


def _self_angle_changes(old: Tensor, new: Tensor) -> Tensor:
    """Changes of the pairs of the upper triangle, row by row."""
    size = len(old)
    changes = old.new_empty(size * (size - 1) // 2)
    position = 0
    for start, stop in bands(size):
        # Row start needs the columns from start on only.
        band = pair_angles(new[start:stop], new[start:], 0)
        band -= pair_angles(old[start:stop], old[start:], 0)
        # A copy per row is ten times faster than a mask of the triangle.
        for row, column in enumerate(range(1, stop - start + 1)):
            found = band[row, column:]
            changes[position : position + len(found)] = found
            position += len(found)
    return changes.rad2deg_()


def _rotation(modality: str, angles: Tensor) -> dict[str, float]:
    values = {
        "mean": angles.mean().item(),
        # torch.median would take the lower of two middle values
        "median": float(np.median(angles.cpu().numpy())),
        "std": angles.std(correction=0).item(),
    }
    named = {f"{modality}_rotation_{key}": value for key, value in values.items()}
    return named | _shares(f"{modality}_rotation", angles, ROTATION_BINS)


def _topology(modality: str, changes: Tensor) -> dict[str, float]:
    """Summarise the changes, which are overwritten by their absolute values."""
    signed = changes.mean().item()  # NaN without pairs
    size = changes.abs_()
    shares = _shares(f"{modality}_topology", size, TOPOLOGY_BINS)
    mean, percentile = size.mean().item(), math.nan
    if size.numel():
        values = size.cpu().numpy()
        percentile = float(np.percentile(values, 95, overwrite_input=True))
    return {
        f"{modality}_topology_change": mean,
        f"{modality}_topology_signed_mean": signed,
        f"{modality}_topology_p95": percentile,
        **shares,
    }


def _shares(prefix: str, angles: Tensor, edges: Sequence[float]) -> dict[str, float]:
    shares = _histogram(angles, edges, _ON_EDGE).tolist()
    return {
        f"{prefix}_share_{low:g}_{high:g}": share
        for low, high, share in zip(edges[:-1], edges[1:], shares)
    }


def _deviation(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Compare the rotation angles of the two modalities."""
    shares = [_histogram(angles, ROTATION_BINS, _ON_EDGE) for angles in (images, texts)]
    return {
        "imd_mean": (images - texts).abs().mean().item(),
        "imd_gap": abs((images.mean() - texts.mean()).item()),
        "imd_tv": (shares[0] - shares[1]).abs().sum().item() / 2,
    }


def _cross_modal(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, float]:
    own = row_angles(new["image"], new["text"]) - row_angles(old["image"], old["text"])
    size, total = len(own), 0.0
    for start, stop in bands(size):
        band = pair_angles(new["image"][start:stop], new["text"])
        band -= pair_angles(old["image"][start:stop], old["text"])
        band.diagonal(start).zero_()  # the own texts
        total += band.abs_().sum().rad2deg_().item()
    return {
        "cross_modal_diagonal_change": own.mean().item(),
        "cross_modal_off_diagonal_change": (
            total / (size * (size - 1)) if size > 1 else math.nan
        ),
    }


def _rotation_split(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, float]:
    """Split the change of each modality into a rotation and a rest."""
    maps = {name: _best_rotation(old[name], new[name]) for name in old}
    found = {}
    for name, turn in maps.items():
        residual = math.nan
        if turn is not None:
            rest = torch.linalg.matrix_norm(old[name] @ turn - new[name])
            residual = rest.item() / math.sqrt(len(old[name]))
        found[f"{name}_procrustes_residual"] = residual
    images, texts = maps["image"], maps["text"]
    found["desynchronisation"] = math.nan
    if images is not None and texts is not None:
        angles = row_angles(old["image"] @ images, old["image"] @ texts)
        found["desynchronisation"] = angles.mean().item()
    return found


def _best_rotation(old: Tensor, new: Tensor) -> Tensor | None:
    """Return the orthogonal map from old to new, None where it is not unique."""
    if len(old) < old.shape[1]:
        return None
    product = old.T @ new
    for matrix in (old.T @ old, new.T @ new, product):
        inverse, failed = torch.linalg.inv_ex(matrix)
        condition = _size(matrix) * _size(inverse)
        # written so that NaN counts as singular
        if bool(failed) or not condition < _MAX_CONDITION:
            return None
    return _orthogonal_factor(product)


def _orthogonal_factor(matrix: Tensor) -> Tensor:
    """Return U W^T for ``matrix = U diag W^T`` that can be inverted.

    Newton's iteration with scaling: several times faster than the SVD.
    """
    factor = matrix
    for _ in range(_MAX_STEPS):
        inverse = torch.linalg.inv(factor)
        scale = (_size(inverse) / _size(factor)).sqrt()
        previous, factor = factor, (scale * factor + inverse.T / scale) / 2
        if _size(factor - previous) <= _SETTLED * math.sqrt(len(factor)):
            break
    return factor


def _size(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)
