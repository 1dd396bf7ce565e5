"""How unlike the training images an image is: the distance of its features from the nearest class.

It is a Mahalanobis distance whose covariance, that within the classes, is shrunk by a tenth towards a sphere (Lee et
al. 2018, arXiv 1807.03888). Features are projected onto their principal components, so that what is stored stays small;
what these leave out counts, too, as one sphere: foreign images differ most where the known ones hardly vary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SHRINKAGE = 0.1
MAX_COMPONENTS = 128
MAX_FITTED = 20_000  # images: more tell nothing new, and take memory
BLOCK = 4096  # images at a time, of which the distances from all classes are computed


class Familiarity(NamedTuple):
    """What is known of the training images' features; F of them, D principal components, K classes with images.

    Attributes:
        mean: float32 `(F,)`.
        basis: Orthonormal, float32 `(F, D)`.
        rest: What a squared distance outside the basis is divided by.
        whitening: After it, distances within the basis are Euclidean: float32 `(D, D)`.
        centres: The classes' means after it, float32 `(K, D)`.
    """

    mean: Tensor
    basis: Tensor
    rest: float
    whitening: Tensor
    centres: Tensor

    @classmethod
    def fit(cls, features: Any, labels: Any, num_classes: int) -> "Familiarity":
        """Fit it to training images.

        Args:
            features: `(N, F)`, of any float type, as a tensor or an array; N at least 1.
            labels: int64 `(N,)`.
            num_classes: Number of classes, also of those without images.

        Raises:
            ValueError: There are no images, or the features are not finite.
        """
        x, labels = torch.as_tensor(features).detach().cpu(), torch.as_tensor(labels).cpu()
        if len(x) > MAX_FITTED:
            some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MAX_FITTED]
            x, labels = x[some], labels[some]
        if len(x) == 0 or not bool(x.isfinite().all()):
            raise ValueError("no features, or not finite")
        x = x.double()
        counts = torch.bincount(labels, minlength=num_classes)
        sums = torch.zeros(num_classes, x.shape[1], dtype=x.dtype).index_add_(0, labels, x)
        means = sums / counts.clamp(min=1)[:, None]
        mean = x.mean(dim=0)
        freedom = len(x) - int((counts > 0).sum())
        # With one image a class, nothing is known of the spread within classes; that of all images has to do
        within = (x - means[labels]) if freedom > 0 else x - mean
        covariance = within.T @ within / max(freedom, 1)
        total = (x - mean).T @ (x - mean)
        _, vectors = torch.linalg.eigh(total)  # in ascending order
        basis = vectors[:, -min(MAX_COMPONENTS, x.shape[1]) :]
        average = covariance.trace().item() / x.shape[1]
        if not average > 1e-12 * (1 + mean.square().mean().item()):  # all alike: any distance is as good as another
            covariance, average = torch.zeros_like(covariance), 1.0
        inside = basis.T @ covariance @ basis
        number = x.shape[1] - basis.shape[1]
        outside = max(covariance.trace().item() - inside.trace().item(), 0.0) / max(number, 1)
        sphere = SHRINKAGE * average * torch.eye(basis.shape[1], dtype=x.dtype)
        values, axes = torch.linalg.eigh((1 - SHRINKAGE) * inside + sphere)
        whitening = axes / values.clamp(min=SHRINKAGE * average / 2).sqrt()
        return cls(
            mean=mean.float(),
            basis=basis.float().contiguous(),
            rest=(1 - SHRINKAGE) * outside + SHRINKAGE * average,
            whitening=whitening.float().contiguous(),
            centres=((means - mean) @ basis @ whitening)[counts > 0].float().contiguous(),
        )

    def distance(self, features: Any) -> Tensor:
        """Distances from the nearest class, float32 `(N,)` on the CPU, infinite where features are not finite.

        Args:
            features: `(N, F)`, of any float type.
        """
        x = torch.as_tensor(features).detach().cpu().float() - self.mean
        inside = x @ self.basis
        outside = (x - inside @ self.basis.T).square().sum(dim=1) / self.rest
        rows = [torch.cdist(some, self.centres).amin(dim=1) for some in (inside @ self.whitening).split(BLOCK)]
        nearest = torch.cat(rows) if rows else torch.zeros(0)
        return (nearest.square() + outside).sqrt().nan_to_num(nan=torch.inf)

    def as_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for a checkpoint."""
        return self._asdict()

    @classmethod
    def from_dict(cls, stored: Any) -> "Familiarity":
        """What `as_dict` returned, checked. Raises `ValueError`, which says what is wrong with it."""
        if not isinstance(stored, dict) or {*stored} != {*cls._fields}:
            raise ValueError("not the values of a Familiarity")
        found = cls(**stored)
        sizes = {"mean": 1, "basis": 2, "whitening": 2, "centres": 2}
        for name, dimensions in sizes.items():
            tensor = stored[name]
            plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
            if not plain or tensor.dtype != torch.float32 or tensor.ndim != dimensions:
                raise ValueError(f"{name}: no matrix or row of float32")
            if tensor.numel() * 4 > tensor.untyped_storage().nbytes() or not tensor.isfinite().all():
                raise ValueError(f"{name}: without ordinary, finite values")
        (num_features,), components = found.mean.shape, found.basis.shape[1]
        square = tuple(found.whitening.shape) == (components, components)
        fits = found.basis.shape[0] == num_features and found.centres.shape[1] == components and len(found.centres) > 0
        if not square or not fits or components > MAX_COMPONENTS:
            raise ValueError("its parts have other sizes than each other")
        if not isinstance(found.rest, float) or not 0 < found.rest < torch.inf:
            raise ValueError(f"rest: {found.rest!r}")
        return found
