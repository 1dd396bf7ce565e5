"""The contract of a network, which any architecture by name fulfils: a backbone that ends in one linear layer.

That layer, the head, is replaced by dropout and a linear layer for the classes of the data (`replace_head`), under the
same name: `fc` in a ResNet, `classifier.3` in a MobileNet, `heads.head` in a ViT. Called, the network returns logits;
while its head is bypassed, features `(B, F)`: what the head would get. All else is the backbone, whatever is in it.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from project import UserError, first_few
from project.preprocessing import SMALLEST_CHOICE, Preprocessing
from project.weights import NUM_OUTPUTS, find_architecture, load_weights


class Head(nn.Sequential):
    """Dropout and a linear layer.

    Args:
        dropout: Probability of dropping a feature.
        in_features: Number of features, F.
        num_classes: Number of outputs.
    """

    def __init__(self, dropout: float, in_features: int, num_classes: int) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(in_features, num_classes))
        self._is_bypassed = False

    @property
    def linear(self) -> nn.Linear:
        """The last layer."""
        return cast(nn.Linear, self[1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(B, num_classes)` from features `(B, F)`; while bypassed, the features."""
        return features if self._is_bypassed else super().forward(features)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Let the network return features in the `with` block."""
        self._is_bypassed = True
        try:
            yield
        finally:
            self._is_bypassed = False


def make_net(arch: str, weights: str, image_size: int) -> nn.Module:
    """Build a network, and load all its weights except those of the head.

    Args:
        arch: A classification network of torchvision, or `timm/NAME`.
        weights: `DEFAULT` or a torchvision name such as `IMAGENET1K_V1`; the path of a `.pth` or `.safetensors` state
            dict, or of a checkpoint of this project; or `none` for random weights.
        image_size: Side of the images in pixels, by the preprocessing of these weights; a ViT is built for it.

    Raises:
        UserError: There is no such network, or it does not end in one linear layer; the weights cannot be downloaded
            and are not cached; the file is unreadable or unsafe; or the weights belong to another network.
    """
    architecture = find_architecture(arch)
    try:
        net = architecture.build(image_size)
    except AssertionError as error:  # a size that is no multiple of the patches'
        raise UserError(f"--model.arch {arch}: {error}") from error
    head = find_head(net, arch)
    if weights != "none":
        load_weights(net, head, architecture, weights)
    return net


def find_head(net: nn.Module, arch: str) -> str:
    """The name of a network's last layer, before it is replaced.

    Raises:
        UserError: It has none that is linear, or several, such as those that some networks have for training.
    """
    linear = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    heads = [name for name, module in linear if module.out_features == NUM_OUTPUTS]
    if len(heads) != 1:
        what = f"ends in several linear layers ({first_few(heads)})" if heads else "does not end in a linear layer"
        raise UserError(
            f"--model.arch {arch}: it {what}, so that it cannot get a head for other classes; choose another"
        )
    return heads[0]


def replace_head(net: nn.Module, arch: str, dropout: float, num_classes: int) -> str:
    """Replace the last layer of a network by a new `Head`, and return its name. Raises `UserError` as `find_head`."""
    name = find_head(net, arch)
    old = cast(nn.Linear, net.get_submodule(name))
    net.set_submodule(name, Head(dropout, old.in_features, num_classes))
    return name


def fit_image_size(
    net: nn.Module, arch: str, preprocessing: Preprocessing, image_size: int | None, single: bool = False
) -> int | None:
    """Check that a network takes images of this size.

    Args:
        net: The network.
        arch: Its name.
        preprocessing: That of its weights.
        image_size: Side of the images in pixels, or None to choose it from the images.
        single: Whether it is to be trained on batches of one image.

    Returns:
        `image_size`; for None, the network's own size if it does not take smaller images.

    Raises:
        UserError: It does not take them, or not one by one.
    """
    own = preprocessing["crop_size"]
    if single:
        check_single_images(net, arch, image_size or SMALLEST_CHOICE)
    if image_size == own or takes(net, image_size or SMALLEST_CHOICE):
        return image_size
    if image_size is None and takes(net, own):
        return own
    size = image_size or own
    raise UserError(f"--data.image_size {size}: {arch} takes no images of this size; its own is {own} x {own} pixels")


@torch.no_grad()
def check_single_images(net: nn.Module, arch: str, image_size: int) -> None:
    """Check that all layers of a network can be trained on batches of one image.

    Args:
        net: The network, which stays as it is.
        arch: Its name.
        image_size: Side of the images in pixels.

    Raises:
        UserError: BatchNorm, which needs more than one value, gets one per channel.
    """
    try:
        copy.deepcopy(net).train()(torch.zeros(1, 3, image_size, image_size))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--data.batch_size 1: {arch} has BatchNorm, which cannot train on one image of {image_size} x "
            f"{image_size} pixels: use at least 2, or a larger --data.image_size"
        ) from error


@torch.no_grad()
def takes(net: nn.Module, image_size: int) -> bool:
    """Whether a network can be run on images of this size, in pixels: networks do not tell, so it is tried."""
    net.eval()  # which changes nothing in BatchNorm, and draws no random numbers
    try:
        net(torch.zeros(1, 3, image_size, image_size))
    except Exception:  # of many types: AssertionError, RuntimeError, …
        return False
    finally:
        net.train()
    return True


def normalization(preprocessing: Preprocessing) -> dict[str, Tensor]:
    """The mean and standard deviation of channels from 0 to 255, each float32 `(1, 3, 1, 1)`."""
    values = {"mean": preprocessing["mean"], "std": preprocessing["std"]}
    return {name: 255 * torch.tensor(value).view(1, 3, 1, 1) for name, value in values.items()}
