"""The network as one ONNX file: images as Pillow gives them in, probabilities out."""

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from project import UserError, first_line
from project.classification.model import ResNetClassifier
from project.exported import INPUT, OUTPUT
from project.files import whole
from project.onnx_export import quiet, set_metadata
from project.preprocessing import Preprocessing

OPSET = 18  # of 2022: every runtime in use reads it


class Graph(nn.Module):
    """What is exported: a network with its normalization before it and softmax behind it.

    Args:
        model: The model, which is not changed.
        temperature: What the logits are divided by, so that the probabilities are honest (arXiv 1706.04599).
    """

    mean: Tensor

    def __init__(self, model: ResNetClassifier, temperature: float = 1.0) -> None:
        super().__init__()
        self.net = deepcopy(model.net).float().eval().to(memory_format=torch.contiguous_format)
        linear = cast(nn.Linear, self.net.get_submodule(f"{model.head_name}.1"))
        with torch.no_grad():
            linear.weight.div_(temperature)
            linear.bias.div_(temperature)
        self.net.set_submodule(model.head_name, linear)  # in evaluation, dropout does nothing
        if isinstance(self.net, ResNet):
            self.net.avgpool = Mean()  # followed by `flatten`, which in ONNX takes eight nodes
        self.register_buffer("mean", model.mean.clone())
        self.std: Tensor | None = model.std.clone()
        first = first_convolution(self.net)
        if first is not None:  # into its kernel, where the division costs nothing
            with torch.no_grad():
                first.weight.div_(self.std)
            self.std = None

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, float32 `(B, C)`, of images, uint8 `(B, S, S, 3)`."""
        centred = images.permute(0, 3, 1, 2).float() - self.mean
        return self.net(centred if self.std is None else centred / self.std).softmax(dim=1)


class Mean(nn.Module):
    """The mean of each channel, `(B, F)` from `(B, F, H, W)`."""

    def forward(self, maps: Tensor) -> Tensor:
        """The means."""
        return maps.mean((2, 3))


def first_convolution(net: nn.Module) -> nn.Conv2d | None:
    """The convolution of a ResNet that alone sees the image; None for other networks, which may do more with it."""
    first = getattr(net, "conv1", None)
    return first if isinstance(first, nn.Conv2d) and first.in_channels == 3 and first.bias is None else None


def write_onnx(model: ResNetClassifier, path: Path, metadata: dict[str, Any], temperature: float = 1.0) -> None:
    """Write a model as an ONNX file in fp32, of any batch size.

    Args:
        model: The model, in eval mode on the CPU.
        path: The file, written in full or not at all.
        metadata: More of it, as JSON types.
        temperature: See `Graph`.

    Raises:
        UserError: A package is missing, or the network has operations that ONNX has not.
        OSError: The file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs packages: pip install -e '.[export]' ({error})") from error

    preprocessing = cast(Preprocessing, model.hparams["preprocessing"])
    size = preprocessing["crop_size"]
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # a batch of 1 would become a constant
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with quiet():
            module = Graph(model, temperature).eval()
            names: Any = {"input_names": [INPUT], "output_names": [OUTPUT]}
            shapes: Any = {"dynamic_shapes": {"images": {0: batch}}}
            program = torch.onnx.export(module, (example,), dynamo=True, opset_version=OPSET, **names, **shapes)
    except Exception as error:  # of many types; the network comes from a library, and may do anything
        raise UserError(f"{model.hparams['arch']} cannot be exported to ONNX ({first_line(error)})") from error
    proto = cast(Any, program).model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]  # stack traces, with paths of the machine
    known = {"task": "classification", "threshold": None, "precision": "fp32", "class_names": model.class_names}
    set_metadata(proto, {**known, "preprocessing": preprocessing, **metadata})
    onnx.checker.check_model(proto)
    with whole(path) as file:
        file.write(proto.SerializeToString())
