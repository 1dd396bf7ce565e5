"""Cut channels out of a torchvision ResNet: which belong together, what each is worth, and the surgery itself.

A channel is cut from every layer that makes it and from every layer that reads it. Inside a block these are one layer
each; in a stage, all blocks add to the same channels, so these go together. The network that remains is an ordinary one
of smaller layers, and the shapes of its weights are all that is needed to build it again (`fit_widths`).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

BLOCK = 16  # channels are cut by so many: kernels work on blocks, and other widths make a network slower
SMALLEST_SHARE = 8  # of a layer's channels, one in so many stays
TOLERANCE = 0.03  # of the multiply-adds that are to be kept: the result may have this much less, but not more


@dataclass
class Group:
    """Channels that can only be cut together, with the names of the layers that hold them.

    Attributes:
        convs: Convolutions of which they are outputs.
        norms: BatchNorms behind these.
        readers: Convolutions, or the last linear layer, of which they are inputs.
        size: Number of channels.
    """

    convs: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    size: int = 0


def reason_against(net: nn.Module) -> str | None:
    """Why channels cannot be cut out of a network, or None."""
    if type(net) is not ResNet:
        return "it is none of torchvision's ResNets"
    if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in net.modules()):
        return "it has grouped convolutions, whose channels cannot be cut one by one"
    return None


def channel_groups(net: nn.Module) -> list[Group]:
    """The groups of a ResNet: the stem's and each stage's channels, and those between the layers of each block.

    Raises:
        ValueError: Channels cannot be cut out of this network.
    """
    if reason := reason_against(net):
        raise ValueError(reason)
    stream = Group(["conv1"], ["bn1"])  # what the blocks add to
    groups = [stream]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for number, block in cast(nn.Sequential, net.get_submodule(stage)).named_children():
            name = f"{stage}.{number}"
            layers = [i for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
            for i in layers[:-1]:
                groups.append(Group([f"{name}.conv{i}"], [f"{name}.bn{i}"], [f"{name}.conv{i + 1}"]))
            stream.readers.append(f"{name}.conv1")
            if block.downsample is not None:
                stream.readers.append(f"{name}.downsample.0")
                stream = Group([f"{name}.downsample.0"], [f"{name}.downsample.1"])
                groups.append(stream)
            stream.convs.append(f"{name}.conv{layers[-1]}")
            stream.norms.append(f"{name}.bn{layers[-1]}")
    stream.readers.append("fc" if isinstance(net.fc, nn.Linear) else "fc.1")  # the latter once the head is replaced
    for group in groups:
        group.size = cast(nn.Conv2d, net.get_submodule(group.convs[0])).out_channels
    return groups


def cut(net: nn.Module, group: Group, kept: Tensor) -> None:
    """Cut a group down to some of its channels, in place.

    Args:
        net: The network.
        group: One of its groups, whose `size` is updated.
        kept: Indices of the channels that stay, int64, in the order that they get.
    """

    def take(module: nn.Module, name: str, dim: int) -> None:
        old = getattr(module, name)
        new = old.detach().index_select(dim, kept.to(old.device))
        if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
            new = new.contiguous(memory_format=torch.channels_last)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)

    layers: dict[str, Any] = dict(net.named_modules())
    for conv in group.convs:
        take(layers[conv], "weight", 0)
        layers[conv].out_channels = len(kept)
    for norm in group.norms:
        for name in ("weight", "bias", "running_mean", "running_var"):
            take(layers[norm], name, 0)
        layers[norm].num_features = len(kept)
    for reader in group.readers:
        take(layers[reader], "weight", 1)
        width = "in_features" if isinstance(layers[reader], nn.Linear) else "in_channels"
        setattr(layers[reader], width, len(kept))
    group.size = len(kept)


def fit_widths(net: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Cut a network to the widths that a state dict has, whatever the values, which are then to be loaded.

    Nothing is allocated that is larger than the network. What the state dict lacks, such as a head, is not compared.

    Args:
        net: The network, as it is built by name.
        state: Its state dict, or that of the same network with fewer channels.

    Returns:
        Whether its widths are others.

    Raises:
        ValueError: The shapes are others in a way that no cut explains; nothing has been changed.
    """
    known = {name: tensor.shape for name, tensor in net.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in state.items() if name in known and isinstance(tensor, Tensor)}
    if all(shape == known[name] for name, shape in shapes.items()):
        return False
    groups = channel_groups(net) if reason_against(net) is None else []
    expected = {name: list(shape) for name, shape in known.items()}
    widths = []
    for group in groups:
        first = f"{group.convs[0]}.weight"
        width = shapes[first][0] if len(shapes.get(first, ())) == 4 else group.size
        if not 0 < width <= group.size:
            raise ValueError(f"{first!r} makes {width:,} channels, not 1 to {group.size:,}")
        widths.append(width)
        for name in group.convs:
            expected[f"{name}.weight"][0] = width
        for name in group.norms:
            for part in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{name}.{part}"][0] = width
        for name in group.readers:
            expected[f"{name}.weight"][1] = width
    for name, shape in shapes.items():
        if list(shape) != expected[name]:
            raise ValueError(f"the shape of {name!r} is {tuple(shape)}, not {tuple(expected[name])}")
    for group, width in zip(groups, widths, strict=True):
        if width < group.size:
            cut(net, group, torch.arange(width))
    return True


class Costs:
    """The multiply-adds of a ResNet, by the widths of its groups.

    Args:
        net: The network.
        groups: Its groups.
        image_size: Side of the images in pixels.
    """

    def __init__(self, net: nn.Module, groups: list[Group], image_size: int) -> None:
        made = {name: i for i, group in enumerate(groups) for name in group.convs}
        read = {name: i for i, group in enumerate(groups) for name in group.readers}
        # Of each layer: the groups that it reads or makes, at most two, and the multiply-adds for one channel of each
        self.layers: list[tuple[list[int], int]] = []
        for name, total in layer_costs(net, image_size).items():
            own = [groups_of[name] for groups_of in (read, made) if name in groups_of]
            self.layers.append((own, total // math.prod(groups[i].size for i in own)))

    def of(self, widths: list[int]) -> int:
        """All multiply-adds."""
        return sum(cost * math.prod(widths[i] for i in own) for own, cost in self.layers)

    def saved(self, widths: list[int], i: int, number: int) -> int:
        """How many are saved by cutting so many channels from a group: no layer both reads and makes the same."""
        of_one = sum(cost * math.prod(widths[k] for k in own if k != i) for own, cost in self.layers if i in own)
        return of_one * number


@torch.no_grad()
def layer_costs(net: nn.Module, image_size: int) -> dict[str, int]:
    """The multiply-adds of each convolution and linear layer for one image, by name, in the order of their calls.

    Args:
        net: The network, which stays as it is.
        image_size: Side of the image in pixels.
    """
    costs: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            costs[name] = cast(Tensor, module.weight).numel() * output[0, 0].numel()

        return hook

    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(count(name)) for name, module in layers]
    training, weight = net.training, next(net.parameters())
    try:
        net.eval()(weight.new_zeros(1, 3, image_size, image_size))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return costs


def multiply_adds(net: nn.Module, image_size: int) -> int:
    """The multiply-adds of a network's convolutions and linear layers for one image of this size, in pixels."""
    return sum(layer_costs(net, image_size).values())


def channel_scores(net: nn.Module, groups: list[Group], losses: Iterable[Callable[[], Tensor]]) -> list[Tensor]:
    """What each channel is worth: the squared change of the loss, to first order, without it (arXiv 1906.10771).

    Each channel is multiplied by a gate of 1 behind its BatchNorm; the gradient by the gate is, summed over the image,
    gamma dL/dgamma + beta dL/dbeta. The layers of a group share their gates, as their channels are cut together.

    Args:
        net: The network, in eval mode.
        groups: Its groups.
        losses: Functions that run it on a few images each, and return the sum of their losses, a scalar.

    Returns:
        For each group the scores, float32 `(size,)`: sums over all images.
    """
    layers = dict(net.named_modules())
    gates: dict[int, Tensor] = {}

    def gated(i: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if i not in gates:
                gates[i] = torch.ones(*output.shape[:2], 1, 1, device=output.device, requires_grad=True)
            return output * gates[i]

        return hook

    hooks = [layers[norm].register_forward_hook(gated(i)) for i, group in enumerate(groups) for norm in group.norms]
    scores = [torch.zeros(group.size) for group in groups]
    try:
        for loss in losses:
            gates.clear()
            total = loss()  # which makes the gates
            gradients = torch.autograd.grad(total, [gates[i] for i in range(len(groups))])
            for score, gradient in zip(scores, gradients, strict=True):
                score += gradient.flatten(1).square().sum(dim=0).cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return scores


def cheapest_cut(groups: list[Group], scores: list[Tensor], costs: Costs, keep: float) -> list[Tensor]:
    """Choose the channels to keep: cut blocks where they are worth least for each multiply-add that they save.

    Args:
        groups: The groups of a network.
        scores: What their channels are worth, see `channel_scores`.
        costs: The multiply-adds of this network.
        keep: Share of them to keep, above 0 and at most 1; what is kept is at most `TOLERANCE` of it less.

    Returns:
        For each group the indices of the channels that stay, int64, in order.

    Raises:
        ValueError: So much cannot be cut, since a share of each layer stays.
    """
    widths = [group.size for group in groups]
    lowest = [max(BLOCK, width / SMALLEST_SHARE) for width in widths]
    order = [score.argsort() for score in scores]  # the least worth first
    before = left = costs.of(widths)
    while left > keep * before:
        found: tuple[float, int, int, int] | None = None
        for i, width in enumerate(widths):
            number = width % BLOCK or BLOCK
            saved = costs.saved(widths, i, number)
            if width - number < lowest[i] or left - saved < (1 - TOLERANCE) * keep * before:
                continue
            done = groups[i].size - width
            price = scores[i][order[i][done : done + number]].sum().item() / saved
            found = min(found or (price, i, number, saved), (price, i, number, saved))
        if found is None:
            raise ValueError(f"it cannot be cut to {keep:g} of its multiply-adds, only to {left / before:.2f}")
        _, i, number, saved = found
        widths[i] -= number
        left -= saved
    return [
        order[i][group.size - width :].sort().values
        for i, (group, width) in enumerate(zip(groups, widths, strict=True))
    ]
