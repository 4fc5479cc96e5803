"""Maps from a new to a known subject without training: the baselines that a MindAligner has to be compared with.

    new = Side(responses, embeddings, image_ids)    # single trials
    known = Side(responses, embeddings, image_ids)  # repeats averaged, other images
    aligned = encode_align(new, known).transform(test_responses)  # (m, n) to (m, k)

| map | what it is |
|---|---|
| `mean_map` | the known subject's mean response |
| `class_mean_ridge` | ridge to the known subject's mean response to images of the class |
| `encode_align` | ridge to the responses that the known subject's encoder predicts for the same image |
| `encode_invert_encode` | posterior mean of the embedding under the new subject's encoder, then the known subject's |
| `cross_ridge` | ridge to the known subject's responses to other images, beside the difference of embeddings |
| `shared_ridge`, `procrustes` | ridge, or a scaled rotation, on images that both subjects saw |
| `no_alignment` | ridge to the embedding, without the known subject |
| `posterior_mean_map` | the best linear map if weights and noise are known: an oracle for simulated subjects |

Penalties are chosen by 5-fold cross-validation over the new subject's images; those of an encoder over its subject's.
Shapes: t trials of the new subject, j images of the known one, n and k their voxels, E embedding width.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ...baselines import GaussianInversion, Ridge, VoxelModel, heldout_variance
from ...data.moments import column_moments
from ...errors import AxisError, BrainDataError
from .pairing import Partners

__all__ = [
    "AffineMap",
    "Side",
    "class_mean_ridge",
    "cross_ridge",
    "encode_align",
    "encode_invert_encode",
    "encoder_of",
    "fit_closed_forms",
    "mean_map",
    "no_alignment",
    "posterior_mean_map",
    "procrustes",
    "shared_ridge",
]

FOLDS = 5
PAIRS = 4096  # number of pairs of `cross_ridge`
LIGHTER = 100  # how much less than responses `cross_ridge` penalises differences of embeddings


@dataclass(frozen=True)
class AffineMap:
    """The map y matrix + intercept.

    Attributes:
        matrix: fp32 (n, k).
        intercept: fp32 (k,).
    """

    matrix: np.ndarray
    intercept: np.ndarray

    def transform(self, responses: np.ndarray) -> np.ndarray:
        """Responses fp32 (m, k) from responses (m, n) of the new subject.

        Raises:
            AxisError: Responses have another shape.
        """
        if responses.ndim != 2 or responses.shape[1] != len(self.matrix):
            raise AxisError(f"expected responses (m, {len(self.matrix)}), got {responses.shape}")
        return responses.astype(np.float32, copy=False) @ self.matrix + self.intercept


@dataclass(frozen=True)
class Side:
    """What one subject saw, and its responses.

    Attributes:
        responses: (m, V) Responses, z-scored.
        embeddings: (m, E) Embeddings of the images.
        image_ids: (m,) Images; trials of one image stay in one fold.
        classes: (m,) Classes of the images; None where they have none.

    Raises:
        AxisError: The numbers of rows differ.
    """

    responses: np.ndarray
    embeddings: np.ndarray
    image_ids: np.ndarray
    classes: np.ndarray | None = None

    def __post_init__(self):
        for name in ("embeddings", "image_ids", "classes"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.responses):
                raise AxisError(f"expected {len(self.responses)} {name}, one for each response, got {len(values)}")


def fit_closed_forms(new: Side, known: Side, partners: Partners, seed: int = 0) -> dict[str, AffineMap]:
    """All maps from the new to the known subject that these data allow, by name.

    Without classes there is no `class_mean_ridge`, and without five common images no `shared_ridge` and `procrustes`.

    Args:
        new: Single trials of the new subject.
        known: Averaged responses of the known subject.
        partners: Pairs of `cross_ridge`.
        seed: Seed of those pairs.
    """
    found = {"mean_map": mean_map(new, known)}
    if new.classes is not None and known.classes is not None:
        found["class_mean_ridge"] = class_mean_ridge(new, known)
    found["encode_align"] = encode_align(new, known)
    found["encode_invert_encode"] = encode_invert_encode(new, known)
    found["cross_ridge"] = cross_ridge(new, known, partners, seed)
    if len(np.intersect1d(new.image_ids, known.image_ids)) >= FOLDS:
        found |= {"shared_ridge": shared_ridge(new, known), "procrustes": procrustes(new, known)}
    return found


def mean_map(new: Side, known: Side) -> AffineMap:
    """The known subject's mean response, whatever the new subject's is."""
    matrix = np.zeros((new.responses.shape[1], known.responses.shape[1]), np.float32)
    return AffineMap(matrix, known.responses.mean(0, dtype=np.float64).astype(np.float32))


def class_mean_ridge(new: Side, known: Side) -> AffineMap:
    """Ridge from responses of the new subject to the known subject's mean response to images of the same class.

    Trials of classes that the known subject did not see are left out.

    Raises:
        BrainDataError: A side has no classes, or there is no class in common.
    """
    if new.classes is None or known.classes is None:
        raise BrainDataError("expected the classes of the images of both subjects, got none")
    means = {name: known.responses[known.classes == name].mean(0) for name in np.unique(known.classes)}
    rows = np.flatnonzero(np.isin(new.classes, list(means)))
    if not len(rows):
        raise BrainDataError("expected a class that both subjects saw, got none")
    return _ridge(new, np.stack([means[name] for name in new.classes[rows]]), rows)


def encode_align(new: Side, known: Side) -> AffineMap:
    """Ridge from responses of the new subject to those that the known subject's encoder predicts for the same image."""
    return _ridge(new, encoder_of(known).predict(new.embeddings))


def no_alignment(new: Side) -> AffineMap:
    """Ridge from responses of the new subject straight to embeddings (n to E)."""
    return _ridge(new, new.embeddings)


def shared_ridge(new: Side, known: Side) -> AffineMap:
    """Ridge from responses of the new subject to the known subject's mean responses to the same images.

    Raises:
        BrainDataError: There are fewer than five images in common.
    """
    rows, targets = _shared(new, known)
    return _ridge(new, targets, rows)


def procrustes(new: Side, known: Side) -> AffineMap:
    """The rotation and scale that bring the new subject's responses closest to the known subject's on common images.

        M = s U V',  U S V' = svd(X' Y),  s = sum(S) / |X U|^2

    X and Y are the centred mean responses to each common image. The numbers of voxels may differ, and directions in
    which there are no data are left out (Schoenemann, 1966).

    Raises:
        BrainDataError: There are fewer than five images in common.
    """
    rows, targets = _shared(new, known)
    names, first, place = np.unique(new.image_ids[rows], return_index=True, return_inverse=True)
    X = np.stack([new.responses[rows[place == i]].mean(0, dtype=np.float64) for i in range(len(names))])
    Y = targets[first].astype(np.float64)
    X_mean, Y_mean = X.mean(0), Y.mean(0)
    basis_x, basis_y = (_row_basis(values) for values in (X - X_mean, Y - Y_mean))  # so that nothing is (n, k) yet
    scores_x, scores_y = (X - X_mean) @ basis_x, (Y - Y_mean) @ basis_y
    left, sizes, right = np.linalg.svd(scores_x.T @ scores_y, full_matrices=False)
    scale = sizes.sum() / np.square(scores_x @ left).sum()
    matrix = (scale * basis_x @ left) @ (right @ basis_y.T)
    return _affine(matrix, Y_mean - X_mean @ matrix)


def cross_ridge(new: Side, known: Side, partners: Partners, seed: int = 0, pairs: int = PAIRS) -> AffineMap:
    """Ridge of the known subject's responses on responses of the new subject and differences of embeddings.

        argmin_(M, D, b) sum over pairs |F_K(j) - F_N(i) M - d_ij D - b|^2 + alpha |M|^2 + alpha s |D|^2

    The map is M and b. In a linear world this is what the training of a MindAligner estimates. Differences are
    smaller than responses, so that a common penalty would shrink D most. Its share s of the penalty is therefore only
    1 / 100 of the ratio of their variances.

    Args:
        new, known: Both sides.
        partners: Images j that may be paired with each trial i.
        seed: Seed of the pairs.
        pairs: Number of pairs, or one of each trial if these are more.
    """
    rows, images = cross_pairs(partners, seed, pairs)
    responses = new.responses[rows].astype(np.float32, copy=False)
    difference = known.embeddings[images] - new.embeddings[rows]
    spread = [float(np.square(column_moments(x)[1]).mean()) for x in (responses, difference)]
    scaled = (difference * (LIGHTER * spread[0] / spread[1]) ** 0.5).astype(np.float32)
    fitted = Ridge(cv=FOLDS).fit(np.hstack([responses, scaled]), known.responses[images], groups=new.image_ids[rows])
    slopes, intercept = fitted.affine()
    return AffineMap(slopes[: responses.shape[1]], intercept)


def cross_pairs(partners: Partners, seed: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Trials and rows of known images of the pairs of `cross_ridge`, equally many of each trial that has partners."""
    rows = partners.rows.repeat(max(1, pairs // len(partners.rows)))
    return rows.numpy(), partners.draw(rows, torch.Generator().manual_seed(seed)).numpy()


def encode_invert_encode(new: Side, known: Side) -> AffineMap:
    """Posterior mean of the embedding under the new subject's ridge encoder, then the known subject's encoder.

    The prior is that of `GaussianInversion` on the images of both subjects. The noise of each voxel is the error on
    held-out images. The rank is at most E.
    """
    encoder = VoxelModel.of(encoder_of(new), "ridge", new.image_ids)
    variance = heldout_variance(_fit_ridge, new.embeddings, new.responses, new.image_ids, FOLDS)
    first = np.unique(np.concatenate([new.image_ids, known.image_ids]), return_index=True)[1]
    bank = np.concatenate([new.embeddings, known.embeddings])[first]
    inversion = GaussianInversion().fit(bank)
    known_encoder = VoxelModel.of(encoder_of(known), "ridge", known.image_ids)
    return posterior_mean_map(
        replace(encoder, residual_var_=variance), known_encoder, inversion.mean_, inversion.covariance_
    )


def posterior_mean_map(new: VoxelModel, known: VoxelModel, mean: np.ndarray, covariance: np.ndarray) -> AffineMap:
    """The known subject's response to the posterior mean of the embedding, for normal embeddings and noise.

        e = mean + (S^-1 + W R^-1 W')^-1 W R^-1 (y - b - W' mean),    F_K = W_K' e + b_K

    With true weights and noise no affine map has a smaller expected error, whatever the distribution of the embeddings.

    Args:
        new: Weights W (E, n), intercept b and noise variances R of the new subject.
        known: Weights W_K (E, k) and intercept b_K of the known subject.
        mean, covariance: Moments of the embeddings, (E,) and S (E, E).

    Raises:
        BrainDataError: The new subject's noise variances are not known or not above 0.
    """
    noise = new.residual_var_
    if noise is None or not (noise > 0).all():
        raise BrainDataError("expected noise variances above 0 of all voxels of the new subject, got others or none")
    weights, target = new.coef_.astype(np.float64), known.coef_.astype(np.float64)
    scaled = weights / noise  # W R^-1
    posterior = np.linalg.solve(np.eye(len(mean)) + covariance @ (scaled @ weights.T), covariance)  # S is not inverted
    gain = scaled.T @ posterior  # (n, E)
    start = mean - (new.intercept_ + mean @ weights) @ gain
    return _affine(gain @ target, start @ target + known.intercept_)


def _fit_ridge(X: np.ndarray, Y: np.ndarray) -> VoxelModel:
    return VoxelModel.of(Ridge(cv=FOLDS).fit(X, Y), "ridge")


def encoder_of(side: Side) -> Ridge:
    """Ridge from embeddings to responses."""
    return Ridge(cv=FOLDS).fit(side.embeddings, side.responses, groups=side.image_ids)


def _ridge(new: Side, targets: np.ndarray, rows: np.ndarray | slice = slice(None)) -> AffineMap:
    """Ridge from some trials of the new subject to targets."""
    fitted = Ridge(cv=FOLDS).fit(new.responses[rows], targets, groups=new.image_ids[rows])
    return AffineMap(*fitted.affine())


def _affine(matrix: np.ndarray, intercept: np.ndarray) -> AffineMap:
    return AffineMap(matrix.astype(np.float32), intercept.astype(np.float32))


def _shared(new: Side, known: Side) -> tuple[np.ndarray, np.ndarray]:
    """Trials of the new subject that show common images, and the known subject's mean response to the image of each."""
    names = np.intersect1d(new.image_ids, known.image_ids)
    if len(names) < FOLDS:
        raise BrainDataError(f"expected at least {FOLDS} images that both subjects saw, got {len(names)}")
    means = {name: known.responses[known.image_ids == name].mean(0) for name in names}
    rows = np.flatnonzero(np.isin(new.image_ids, names))
    return rows, np.stack([means[name] for name in new.image_ids[rows]])


def _row_basis(values: np.ndarray) -> np.ndarray:
    """Orthonormal basis (V, r) of the rows of centred values (m, V)."""
    _, sizes, right = np.linalg.svd(values, full_matrices=False)
    return right[sizes > 1e-9 * sizes[0]].T
