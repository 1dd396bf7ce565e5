"""How unlike the training images an image is: right, small, and defined for any features."""

import numpy as np
import pytest
import torch

from project.insight.outliers import MAX_COMPONENTS, SHRINKAGE, Familiarity


def blobs(seed=0, n=60, size=8, classes=3):
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(classes, size, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(n) % classes
    spread = torch.linspace(0.1, 2, size)
    return centres[labels] + spread * torch.randn(n, size, generator=generator), labels


def test_it_is_the_mahalanobis_distance_from_the_nearest_class():
    features, labels = blobs()
    new = blobs(1)[0].double()
    means = torch.stack([features[labels == k].double().mean(dim=0) for k in range(3)])
    within = features.double() - means[labels]
    covariance = within.T @ within / (len(features) - 3)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.trace() / 8 * torch.eye(8)
    apart = new[:, None] - means
    expected = torch.einsum("nkf,fg,nkg->nk", apart, shrunk.inverse(), apart).amin(dim=1).sqrt()
    found = Familiarity.fit(features, labels, 3).distance(new)
    assert torch.allclose(found.double(), expected, rtol=1e-4)
    assert torch.allclose(Familiarity.fit(features.numpy(), labels.numpy(), 3).distance(new.numpy()), found)


def test_what_the_components_leave_out_counts():
    features, labels = blobs(n=600, size=MAX_COMPONENTS + 40)
    features[:, -40:] *= 0.01
    known = Familiarity.fit(features, labels, 3)
    foreign = features.clone()
    foreign[:, -1] += 3  # little beside the variance of the rest, where the known images do not vary
    assert known.basis.shape == (MAX_COMPONENTS + 40, MAX_COMPONENTS)
    assert (known.distance(foreign) > known.distance(features)).all()


def test_foreign_images_are_farther_than_new_ones_of_the_classes():
    features, labels = blobs()
    known = Familiarity.fit(features, labels, 3)
    foreign = 20 + blobs(2)[0]
    assert known.distance(foreign).min() > known.distance(blobs(1)[0]).max()


def test_neither_the_order_of_the_classes_nor_of_the_images_matters():
    features, labels = blobs()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    renamed = torch.tensor([2, 0, 1])[labels]
    found = Familiarity.fit(features, labels, 3).distance(features)
    again = Familiarity.fit(features[order], renamed[order], 5).distance(features)
    assert torch.allclose(found, again, rtol=1e-3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type(kind):
    features, labels = blobs()
    found = Familiarity.fit(features.to(kind), labels, 3).distance(features.to(kind))
    assert found.dtype == torch.float32
    assert torch.allclose(found, Familiarity.fit(features, labels, 3).distance(features), rtol=0.2)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.randn(3, 600), torch.arange(3)),  # one image a class
        (torch.ones(20, 6), torch.arange(20) % 2),  # all equal
        (torch.zeros(20, 6), torch.arange(20) % 2),
        (torch.tensor([[1.0, 2.0]]), torch.tensor([0])),
        (torch.randn(40, 1), torch.arange(40) % 4),
        (1e6 + torch.randn(9, 3), torch.zeros(9, dtype=torch.long)),
    ],
)
def test_degenerate_features(features, labels):
    known = Familiarity.fit(features, labels, 200)
    near, far = known.distance(features), known.distance(features + 100)
    assert near.isfinite().all() and far.isfinite().all() and far.min() > near.max()


def test_features_that_are_not_finite():
    features, labels = blobs()
    known = Familiarity.fit(features, labels, 3)
    assert known.distance(torch.full((1, 8), torch.nan)).item() == torch.inf
    assert known.distance(torch.zeros(0, 8)).shape == (0,)
    for bad in (features * np.inf, features[:0]):
        with pytest.raises(ValueError, match="not finite"):
            Familiarity.fit(bad, labels[: len(bad)], 3)


def test_what_is_stored_is_checked():
    features, labels = blobs()
    known = Familiarity.fit(features, labels, 3)
    again = Familiarity.from_dict(known.as_dict())
    assert torch.equal(again.distance(features), known.distance(features))
    wrong = {
        "rest": [0.0, -1.0, float("nan"), float("inf"), "1", None, torch.tensor(1.0)],
        "mean": [torch.zeros(7), torch.zeros(8, dtype=torch.long), torch.full((8,), torch.nan), [0.0] * 8, None],
        "basis": [torch.zeros(8, 7), torch.zeros(9, 8), torch.zeros(1).expand(8, 8), torch.zeros(8, 8, device="meta")],
        "whitening": [torch.zeros(8, 7), torch.zeros(8).expand(4, 8)],
        "centres": [torch.zeros(3, 7), torch.zeros(0, 8), torch.zeros(8)],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError):
                Familiarity.from_dict({**known.as_dict(), name: value})
    for stored in (None, [], {}, {**known.as_dict(), "more": 1}):
        with pytest.raises(ValueError):
            Familiarity.from_dict(stored)
