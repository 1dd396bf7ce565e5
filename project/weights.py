"""Pretrained ResNets: their architectures, their preprocessing, and their weights from the hub, its cache or a file."""

import pickle
from pathlib import Path
from typing import Literal, get_args
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from project import UserError
from project.files import read_tensors
from project.images import Preprocessing

# Every ResNet that torchvision builds
Arch = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


def make_resnet(arch: Arch, weights: str) -> nn.Module:
    """Build a torchvision ResNet and load all its weights except the head, `fc`.

    Args:
        arch: The architecture.
        weights: `DEFAULT` or a torchvision name such as `IMAGENET1K_V1`; the path of a `.pth` or `.safetensors` state
            dict, or of a checkpoint of this project; or `none` for random weights.

    Raises:
        UserError: The weights cannot be downloaded and are not cached; the file is unreadable or unsafe; or the weights
            belong to another architecture.
    """
    net = torchvision.models.get_model(arch, weights=None)
    if weights == "none":
        return net
    body = {name: tensor for name, tensor in read_weights(arch, weights).items() if not name.startswith("fc.")}
    if shapes(body) != body_shapes(net):
        fitting = next((other for other in get_args(Arch) if shapes(body) == shapes_of_arch(other)), None)
        hint = f"they are those of {fitting}: use --model.arch {fitting}" if fitting else "they are of no ResNet"
        raise UserError(f"--model.weights {weights} does not fit --model.arch {arch}; {hint}")
    net.load_state_dict(body, strict=False)
    return net


def preprocessing_for(arch: Arch, weights: str) -> Preprocessing:
    """The evaluation preprocessing of a set of weights; for a file or `none`, that of torchvision's V1 weights.

    Raises:
        UserError: There are no such weights.
    """
    preset = (named_weights(arch, weights) or torchvision.models.ResNet50_Weights.IMAGENET1K_V1).transforms()
    return {
        "resize_size": preset.resize_size[0],
        "crop_size": preset.crop_size[0],
        "interpolation": preset.interpolation.value,
        "mean": list(preset.mean),
        "std": list(preset.std),
    }


def named_weights(arch: Arch, weights: str) -> torchvision.models.WeightsEnum | None:
    """Look up `DEFAULT` or a torchvision weights name; None for `none` and for a path.

    Raises:
        UserError: It is neither a torchvision name for this architecture nor a file.
    """
    if weights == "none" or Path(weights).is_file():
        return None
    known = torchvision.models.get_model_weights(arch)
    names = known.__members__
    prefix, _, name = weights.rpartition(".")  # torchvision prints them as ResNet50_Weights.IMAGENET1K_V2
    if name not in names or prefix not in ("", known.__name__):
        raise UserError(
            f"--model.weights {weights}: no such file, and no torchvision weights of {arch}; "
            f"use a file, {', '.join(names)} (the newest), or none"
        )
    return names[name]


def read_weights(arch: Arch, weights: str) -> dict[str, Tensor]:
    """A torchvision ResNet's state dict, from the cache, the network or a file. Pickled code is refused.

    Raises:
        UserError: It cannot be obtained, or is not a state dict.
    """
    named = named_weights(arch, weights)
    if named is not None:
        try:
            return dict(named.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu"))
        except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints" / named.url.rpartition("/")[2]
            raise UserError(
                f"cannot get the {named.name} weights of {arch} ({error}). Three ways out: connect to the network, or "
                f"save {named.url} as {cache}; name a .pth or .safetensors file with --model.weights; "
                "or train from scratch with --model.weights none"
            ) from error
    state = read_tensors(weights, "--model.weights")
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"--model.weights {weights}: not a state dict (tensors by name)")
    # "net." is the prefix of the ResNet in a checkpoint of this project, "module." that of DistributedDataParallel
    return {str(name).removeprefix("module.").removeprefix("net."): tensor for name, tensor in state.items()}


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor, by name."""
    return {name: tensor.shape for name, tensor in state.items()}


def body_shapes(net: nn.Module) -> dict[str, torch.Size]:
    """The shapes in a ResNet's state dict, without those of its head."""
    return shapes({name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")})


def shapes_of_arch(arch: str) -> dict[str, torch.Size]:
    """`body_shapes` of an architecture, without allocating its weights."""
    with torch.device("meta"):
        return body_shapes(torchvision.models.get_model(arch, weights=None))
