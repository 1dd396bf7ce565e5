"""State dicts as they lie around: in wrappers, with prefixes, or with the names of another library."""

import logging
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models import get_model_builder, list_models

from project import UserError

log = logging.getLogger(__name__)

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_ema",
    "state_dict_ema",
    "ema",
    "teacher",
    "net",
    "network",
)
HUGGING_FACE = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|(shortcut))\.(convolution|normalization)\."
)


def unwrap(content: Any, what: str) -> dict[str, Tensor]:
    """The state dict in what a file of weights holds, which may be the checkpoint of a training program.

    Args:
        content: What was read.
        what: What error messages call the file.

    Raises:
        UserError: There is none, or its values cannot be used.
    """
    path = []
    while isinstance(content, dict) and not is_state_dict(content):
        known = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        others = [key for key, value in content.items() if is_state_dict(value)]
        if not known and len(others) != 1:
            break
        path.append((known or others)[0])
        content = content[path[-1]]
    if not is_state_dict(content):
        raise UserError(f"{what}: not a state dict (tensors by name)")
    if path:
        log.info(f"{what}: the weights under {'.'.join(map(repr, path))} are used")
    for name, tensor in content.items():
        if not has_values(tensor):
            raise UserError(f"{what}: the tensor {name!r} has no ordinary values")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{what}: the tensor {name!r} has values that are not finite")
    return content


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor that was read is a plain one with all its values: a small file can claim one of any size."""
    plain = not tensor.is_meta and tensor.layout == torch.strided and not tensor.is_quantized
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def is_state_dict(content: Any) -> bool:
    """Whether it is a dictionary of tensors by name, and not empty."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def match_names(state: dict[str, Tensor], names: Collection[str], what: str) -> dict[str, Tensor]:
    """Rename the tensors of a state dict as a network calls them, as far as they are those of this network.

    Prefixes are taken off, such as `module.` or `model.backbone.`; what is beside them is left out. What is done is
    logged. Hugging Face's names of ResNets become torchvision's.

    Args:
        state: The state dict, which may be changed.
        names: The names of the network's tensors.
        what: What messages call the file.
    """
    if any(HUGGING_FACE.search(name) for name in state) and "layer1.0.conv1.weight" in names:
        state = {of_torchvision(name): tensor for name, tensor in state.items()}
        log.info(f"{what}: Hugging Face's names of a ResNet are translated")
    known, found = set(names), Counter[str]()
    for name in state:
        ends = [match.end() for match in re.finditer(r"\.", name)]
        found.update({name[:end] for end in [0, *ends] if name[end:] in known})
    [(prefix, count)] = found.most_common(1) or [("", 0)]  # of several that fit alike, the first
    if not prefix or count < len(known) / 2:  # those of another network
        return state
    left_out = [name for name in state if not name.startswith(prefix)]
    for name in left_out:
        del state[name]
    consume_prefix_in_state_dict_if_present(state, prefix)  # and those of the versions that torch stores with them
    others = f"; {len(left_out)} tensors beside them are left out" if left_out else ""
    log.info(f"{what}: the weights named {prefix}… are used{others}")
    return state


def of_torchvision(name: str) -> str:
    """The name of a tensor in torchvision's ResNet, from its name in Hugging Face's."""

    def translated(match: re.Match[str]) -> str:
        stage, block, layer, shortcut, kind = match.groups()
        is_norm = kind == "normalization"
        inner = f"downsample.{int(is_norm)}" if shortcut else f"{'bn' if is_norm else 'conv'}{int(layer) + 1}"
        return f"layer{int(stage) + 1}.{block}.{inner}."

    name = HUGGING_FACE.sub(translated, name).replace("embedder.embedder.convolution.", "conv1.")
    name = name.replace("embedder.embedder.normalization.", "bn1.")
    return name.removeprefix("resnet.").replace("classifier.1.", "fc.")


def resnet_of(state: dict[str, Tensor]) -> str | None:
    """The torchvision ResNet with this state dict, whatever its head and prefix, or None."""
    first = [name for name in state if name == "conv1.weight" or name.endswith(".conv1.weight")]
    prefix = min(first, key=len).removesuffix("conv1.weight") if first else ""

    def shapes(state: dict[str, Tensor], prefix: str) -> dict[str, torch.Size]:
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        left_out = ("fc.", "num_batches_tracked")  # old weights lack the latter
        return {name: tensor.shape for name, tensor in own.items() if not any(part in name for part in left_out)}

    names = list_models(module=torchvision.models)
    for name in (name for name in names if get_model_builder(name).__module__.endswith(".resnet")):
        with torch.device("meta"):  # without allocating the weights
            net = torchvision.models.get_model(name, weights=None)
        if shapes(net.state_dict(), "") == shapes(state, prefix):
            return name
    return None
