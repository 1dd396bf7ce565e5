"""The best linear head for fixed features: a multinomial logistic regression, fitted by L-BFGS."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

L2_STRENGTHS = [10 ** (-k / 2) for k in range(13)]  # 1 to 1e-6, strongest first


def fit_head(
    features: Tensor,
    labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Fit a multinomial logistic regression by L-BFGS, with the L2 strength that has the lowest validation loss.

    The strengths are tried from the strongest down, each fit starting from the last, until the loss stops falling.

    Args:
        features: `(N, F)`, of any float type.
        labels: int64 `(N,)`.
        val_features: `(M, F)`.
        val_labels: int64 `(M,)`.
        num_classes: Number of classes, including those without samples.
        class_weights: `(num_classes,)`, for classes of unequal size.

    Returns:
        Weight `(num_classes, F)` and bias `(num_classes,)`, float32, and the L2 strength.
    """
    x = features.float()
    mean, std = x.mean(dim=0), x.std(dim=0)
    std = std.clamp(min=0.01 * std.mean().item())  # do not amplify a feature that is almost always zero
    x, val_x = (x - mean) / std, (val_features.float() - mean) / std
    weight = torch.zeros(num_classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    best: tuple[float, Tensor, Tensor, float] | None = None
    for l2 in L2_STRENGTHS:
        minimize(x, labels, weight, bias, l2, class_weights)
        with torch.no_grad():
            val_loss = F.cross_entropy(F.linear(val_x, weight, bias), val_labels, class_weights).item()
        if best is not None and not val_loss < best[0]:
            break
        best = (val_loss, weight.detach().clone(), bias.detach().clone(), l2)
    assert best is not None
    _, weight, bias, l2 = best
    weight = weight / std  # for features that are not standardized
    return weight, bias - weight @ mean, l2


def minimize(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float, class_weights: Tensor | None) -> None:
    """Minimize the cross-entropy and L2 penalty of a linear head, starting from its current values.

    Args:
        x: Features, float32 `(N, F)`.
        labels: int64 `(N,)`.
        weight: `(num_classes, F)`, changed in place.
        bias: `(num_classes,)`, changed in place.
        l2: Strength of the penalty on the weight.
        class_weights: `(num_classes,)`, for classes of unequal size.
    """
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-4, tolerance_change=1e-5, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels, class_weights) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)  # type: ignore[arg-type]


@torch.no_grad()
def evaluate_head(trainer: Trainer, model: Any, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The validation metrics of the head, scalars by name as a validation epoch would log them.

    Args:
        trainer: Provides the precision.
        model: A classifier with `val_metrics`, which takes features.
        features: `(M, F)`.
        labels: int64 `(M,)`.
    """
    model.eval()
    with trainer.precision_plugin.forward_context():
        for batch, targets in zip(features.split(4096), labels.split(4096), strict=True):
            model.val_metrics.update(model(batch.to(model.device)), targets.to(model.device))
    metrics = model.val_metrics.compute()
    model.val_metrics.reset()
    model.train()
    return {f"val/{name}": value for name, value in metrics.items() if value.ndim == 0}
