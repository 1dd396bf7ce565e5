"""What an answer changes with: Grad-CAM (arXiv 1610.02391) at the right layer. It is no explanation of the answer."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = 7  # a side: coarser maps show little (of 2 x 2 cells, 14 % of the energy on what mattered; of 4 x 4, 53 %)


@torch.no_grad()
def map_layer(net: nn.Module, images: Tensor) -> str | None:
    """The layer whose map tells most about an answer: the last with `CELLS` cells a side, else the one before the last.

    Args:
        net: The network.
        images: As it wants them, `(B, 3, S, S)`.

    Returns:
        Its name; None if the network has no convolutional map near its end, as with a ViT.
    """
    # The name of a layer, and the cells a side of the map that it returns, 0 if it is none
    calls: list[tuple[str, int]] = []

    def note(name: str, layer: nn.Module, output: object) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1
        pools = "Pool" in type(layer).__name__  # to a fixed size, perhaps, larger than what comes in
        inner = name.count(".") > 1  # where there are branches, and maps of attention among patches
        calls.append((name, cast(Tensor, output).shape[2] if is_map and not pools and not inner else 0))

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
        for name, layer in net.named_modules()
        if name
    ]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    sides = list(dict.fromkeys(side for _, side in reversed(calls) if side))  # that of the last map first
    if not sides:
        return None
    ends = {side: max((-name.count("."), i) for i, (name, s) in enumerate(calls) if s == side)[1] for side in sides[:2]}
    if ends[sides[0]] < len(calls) / 2:  # a ViT cuts the image into patches by a convolution, at its start
        return None
    coarse = len(sides) > 1 and sides[0] < CELLS and sides[0] < sides[1] <= 3 * sides[0]
    return calls[ends[sides[1 if coarse else 0]]][0]


def attention(net: nn.Module, images: Tensor, classes: Tensor) -> np.ndarray | None:
    """Where in each image the score of a class, beside the others', changes most with what the network sees there.

    The network, its gradients and its mode stay as they are.

    Args:
        net: The network, in evaluation mode.
        images: As it wants them, `(B, 3, S, S)`, on its device.
        classes: The class for each, int64 `(B,)`.

    Returns:
        float32 `(B, S, S)`, from 0 to 1, which is the largest of each image, unless nothing speaks for its class; None
        if the network has no convolutional map.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        pixels = images.clone()  # of inference mode, perhaps
        name = map_layer(net, pixels[:1])
        if name is None:
            return None
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_())  # gradients end here: the layers before need none
            return kept[-1].clone()  # which the next layer may change in place

        hook = net.get_submodule(name).register_forward_hook(keep)
        try:
            logits = net(pixels)
        finally:
            hook.remove()
        scores = logits.gather(1, classes.clone().to(images.device)[:, None])
        scores = scores.sum() - logits.mean(dim=1).sum()  # what all scores have in common changes no answer
        (gradient,) = torch.autograd.grad(scores, kept[-1])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = (weights * kept[-1].detach()).sum(dim=1, keepdim=True).relu().float()
    maps = F.interpolate(maps, size=images.shape[-2:], mode="bilinear")[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)).cpu().numpy()


def tinted(pixels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """An image with a map over it, in orange.

    Args:
        pixels: uint8 `(S, S, 3)`.
        shares: `(S, S)`, from 0 to 1.
    """
    opacity = 0.65 * shares[..., None]
    return (pixels * (1 - opacity) + np.array([255, 96, 0]) * opacity).round().astype(np.uint8)
