"""Torchvision's detectors on a ResNet with a feature pyramid, for any trunk and for any number of classes."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchvision.models import ResNet, get_model_builder, list_models
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from project import UserError
from project.backbones import make_net
from project.preprocessing import Preprocessing
from project.state_dicts import match_names, resnet_of
from project.weights import (
    OfTorchvision,
    find_architecture,
    is_none_or_file,
    load_body,
    preprocessing_for,
    read_weights,
)

Arch = Literal["fasterrcnn", "retinanet", "fcos"]

STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")  # of a ResNet, the last one first
ASPECT = 5 / 3  # longest side by shortest that an image may have at full size, as torchvision's 1333 by 800
MIN_SCORE = 0.05  # detections below it are dropped: in the mean average precision they hardly count
TRUNK = "backbone.body."  # how the names of the trunk's tensors begin
WHOLE = "COCO_V1"  # torchvision's name of weights of whole detectors
# The layers whose size depends on the number of classes
CLASS_LAYERS: dict[Arch, str] = {
    "fasterrcnn": "roi_heads.box_predictor",
    "retinanet": "head.classification_head.cls_logits",
    "fcos": "head.classification_head.cls_logits",
}


def first_class(arch: Arch) -> int:
    """The number of the first class in a detector: in Faster R-CNN, 0 is the background; the others have none."""
    return 1 if arch == "fasterrcnn" else 0


def check_backbone(backbone: str) -> None:
    """Refuse what is no ResNet of torchvision. Raises `UserError`."""
    try:
        find_architecture(backbone)
        known = not backbone.startswith("timm/") and get_model_builder(backbone).__module__.endswith(".resnet")
    except UserError:
        known = False
    if not known:
        names = [name for name in list_models() if name.startswith("res") and "_v" not in name and "/" not in name]
        resnets = [name for name in names if get_model_builder(name).__module__.endswith(".resnet")]
        raise UserError(f"--model.backbone {backbone}: must be a ResNet of torchvision: {', '.join(resnets)}, …")


def make_detector(
    arch: Arch, backbone: str, weights: str, num_classes: int, image_size: int, channels: int
) -> nn.Module:
    """Build a detector, and load the weights of its trunk, or all but those of its classes.

    Args:
        arch: The detector.
        backbone: A ResNet of torchvision.
        weights: Those of the trunk, as for `project.backbones.make_net`; or those of a whole detector: `COCO_V1`, or a
            file of its state dict, such as a checkpoint of this project.
        num_classes: Number of classes, without the background.
        image_size: What the shorter side of images is resized to, in pixels.
        channels: Of each level of the feature pyramid, a multiple of 32.

    Raises:
        UserError: There is no such ResNet; or the weights cannot be obtained, or belong to another network.
    """
    check_backbone(backbone)
    whole = whole_weights(arch, backbone, weights)
    try:
        trunk = make_net(backbone, "none" if whole is not None else weights, 224)
    except UserError as error:  # in the words of the classifier
        raise UserError(str(error).replace("--model.arch", "--model.backbone")) from error
    check_widths(backbone, trunk, weights)
    net = on_trunk(arch, cast(ResNet, trunk), num_classes, image_size, channels, preprocessing_for(backbone, "none"))
    if whole is not None:
        load_whole(net, arch, backbone, whole, weights)
    return net


def check_widths(backbone: str, trunk: nn.Module, weights: str) -> None:
    """Refuse the trunk of a pruned network, which a checkpoint of a detector could not be loaded into.

    Raises:
        UserError: It is narrower than its architecture.
    """
    with torch.device("meta"):
        plain = get_model_builder(backbone)(weights=None).state_dict()
    if any(tensor.shape != plain[name].shape for name, tensor in trunk.state_dict().items()):
        raise UserError(
            f"--model.weights {weights}: those of a pruned network, on which no detector is built: use those of the "
            "network before it was pruned"
        )


def whole_weights(arch: Arch, backbone: str, weights: str) -> dict[str, Tensor] | None:
    """The state dict of a whole detector, if `weights` name one; None otherwise. Raises `UserError`."""
    if weights.rpartition(".")[2] == WHOLE:
        if backbone != "resnet50":
            raise UserError(f"--model.weights {weights}: torchvision has them for --model.backbone resnet50 alone")
        return read_weights(OfTorchvision(f"{arch}_resnet50_fpn"), weights)
    if weights == "none" or not is_none_or_file(weights):
        return None
    state = read_weights(OfTorchvision(backbone), weights)
    return state if any("backbone.fpn." in name for name in state) else None


def load_whole(net: nn.Module, arch: Arch, backbone: str, state: dict[str, Tensor], weights: str) -> None:
    """Load a detector's weights but for the layers of the classes. Raises `UserError` if they do not fit."""
    state = match_names(state, net.state_dict(), f"--model.weights {weights}")
    trunk = {f"trunk.{name.removeprefix(TRUNK)}": tensor for name, tensor in state.items() if name.startswith(TRUNK)}
    if (other := resnet_of(trunk)) not in (None, backbone):
        raise UserError(
            f"--model.weights {weights} does not fit --model.backbone {backbone}; they are those of a detector on "
            f"{other}: use --model.backbone {other}"
        )
    layers = CLASS_LAYERS[arch]
    state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{layers}.")}
    if reason := load_body(net, layers, state):
        raise UserError(f"--model.weights {weights} does not fit --model.arch {arch} on {backbone}; {reason}")


def on_trunk(
    arch: Arch, trunk: ResNet, num_classes: int, image_size: int, channels: int, preprocessing: Preprocessing
) -> nn.Module:
    """A detector with a feature pyramid on a ResNet, as torchvision builds it; arguments as for `make_detector`."""
    two_stages = arch == "fasterrcnn"
    stages = STAGES[3::-1] if two_stages else STAGES[2::-1]
    last: ExtraFPNBlock = LastLevelMaxPool() if two_stages else LastLevelP6P7(channels, channels)
    widths = [width_of(getattr(trunk, stage)[-1]) for stage in stages]
    layers = {stage: str(i) for i, stage in enumerate(stages)}
    pyramid = BackboneWithFPN(trunk, layers, widths, channels, extra_blocks=last)
    options: dict[str, Any] = {
        "min_size": image_size,
        "max_size": round(ASPECT * image_size),
        "image_mean": [255 * value for value in preprocessing["mean"]],  # images come with values from 0 to 255
        "image_std": [255 * value for value in preprocessing["std"]],
    }
    if two_stages:
        net = FasterRCNN(pyramid, num_classes + first_class(arch), box_score_thresh=MIN_SCORE, **options)
        return exact(net, net.backbone, net.rpn.head, net.roi_heads.box_predictor)
    if arch == "retinanet":
        sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        net = RetinaNet(
            pyramid, num_classes, anchor_generator=anchors, score_thresh=MIN_SCORE, detections_per_img=100, **options
        )
    else:
        net = FCOS(pyramid, num_classes, score_thresh=MIN_SCORE, **options)
    return exact(net, net.backbone, net.head)


def width_of(block: nn.Module) -> int:
    """The number of channels that a block of a ResNet returns."""
    last = getattr(block, "bn3", None) or block.bn2
    return cast(nn.BatchNorm2d, last).num_features


def exact(net: nn.Module, *modules: nn.Module) -> nn.Module:
    """Let these modules return float32 in mixed precision, too, and return the network.

    Torchvision computes anchors and boxes in the type of their outputs, and in bf16, pixels above 256 are even numbers.
    """

    def as_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        return apply_to_collection(outputs, Tensor, Tensor.float)

    hook: Callable[..., Any] = as_float32
    for module in modules:
        module.register_forward_hook(hook)
    return net


def freeze(net: nn.Module, trainable_layers: int) -> None:
    """Train only the last stages of the trunk, from 0 to 5, and all beside the trunk."""
    trained = (*STAGES[:trainable_layers], *(["bn1"] if trainable_layers == len(STAGES) else []))
    for name, parameter in net.get_submodule(TRUNK.removesuffix(".")).named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def norms(net: nn.Module) -> list[nn.Module]:
    """All layers of BatchNorm."""
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def as_images(images: list[Tensor]) -> list[Tensor]:
    """What a detector takes: float32 `(3, H, W)` with the values from 0 to 255; it resizes and normalizes itself."""
    return [image.to(torch.float32) for image in images]
