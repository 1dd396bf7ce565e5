"""A head fitted to features predicts other samples of the same classes."""

import torch
from torch.nn import functional as F

from project.linear_head import L2_STRENGTHS, fit_head


def clouds(num: int, seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes in 20 dimensions of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    features = torch.randn(num, 20, generator=generator) + 2.5 * F.one_hot(labels, 20)
    return features * torch.logspace(-1, 1, 20) * scale + 7, labels


def test_the_head_is_a_good_classifier_whatever_the_scale_of_the_features():
    (x, y), (val_x, val_y) = clouds(600, 0), clouds(600, 1)
    weight, bias, l2 = fit_head(x, y, val_x, val_y, 3)
    assert weight.shape == (3, 20) and bias.shape == (3,) and l2 in L2_STRENGTHS
    top1 = (F.linear(val_x, weight, bias).argmax(dim=1) == val_y).float().mean()
    assert top1 > 0.85  # the best possible is 0.92 or so, chance 0.33


def test_the_l2_strength_follows_the_validation_loss():
    few, many, val = clouds(12, 0), clouds(3000, 2), clouds(600, 1)
    assert fit_head(*few, *val, 3)[2] > fit_head(*many, *val, 3)[2]


def test_class_weights_favour_the_rare_class():
    x, y = clouds(600, 0)
    keep = (y != 2) | (torch.arange(600) % 10 == 2)
    x, y, val = x[keep], y[keep], clouds(300, 1)
    shares = []
    for weights in (None, len(y) / (3 * y.bincount())):
        weight, bias, _ = fit_head(x, y, *val, 3, weights)
        shares.append((F.linear(val[0], weight, bias).argmax(dim=1) == 2).float().mean())
    assert shares[1] > shares[0] + 0.05


def test_a_class_without_images_has_a_place_in_the_head():
    x, y = clouds(90, 0)
    weight, _, _ = fit_head(x, y, x, y, 4)
    assert weight.shape == (4, 20) and weight.isfinite().all()
