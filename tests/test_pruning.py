"""The surgery on networks: what is cut, what it saves, and that what is left computes what it did."""

import copy
import functools

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from project.backbones import replace_head
from project.pruning import (
    BLOCK,
    Costs,
    channel_groups,
    channel_scores,
    cheapest_cut,
    cut,
    fit_widths,
    layer_costs,
    multiply_adds,
)


@functools.cache
def made(arch: str) -> nn.Module:
    """A ResNet in eval mode, none of whose BatchNorms is the identity."""
    torch.manual_seed(0)
    net = get_model(arch, weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def network(arch: str, with_head: bool = True) -> nn.Module:
    """A copy of it, with a head for five classes unless `with_head` is false."""
    net = copy.deepcopy(made(arch))
    if with_head:
        replace_head(net, arch, 0.0, 5)
    return net


def random_cut(net: nn.Module, keep: float, image_size: int = 32) -> list[torch.Tensor]:
    """Cut a network by random scores, and return what is kept of each group."""
    groups = channel_groups(net)
    scores = [torch.rand(group.size) for group in groups]
    kept = cheapest_cut(groups, scores, Costs(net, groups, image_size), keep)
    for group, channels in zip(groups, kept, strict=True):
        cut(net, group, channels)
    return kept


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_half_the_multiply_adds_are_left_in_blocks_of_channels(arch):
    net = network(arch)
    for size in (32, 224) if arch == "resnet18" else (32,):
        pruned = copy.deepcopy(net)
        random_cut(pruned, 0.5, size)
        assert 0.97 * 0.5 <= multiply_adds(pruned, size) / multiply_adds(net, size) <= 0.5
        for before, after in zip(channel_groups(net), channel_groups(pruned), strict=True):
            assert after.size % BLOCK == 0 and max(BLOCK, before.size / 8) <= after.size <= before.size


@pytest.mark.parametrize("keep", [0.9, 0.3, 0.1, 0.05])
def test_any_share_is_met(keep):
    net = network("resnet18")
    before = multiply_adds(net, 32)
    random_cut(net, keep)
    assert 0.97 * keep <= multiply_adds(net, 32) / before <= keep


def test_what_cannot_be_met_is_said():
    net = network("resnet18")
    with pytest.raises(ValueError, match=r"cannot be cut to 0.001 of its multiply-adds, only to 0.0[2-4]"):
        random_cut(net, 0.001)
    assert all(a.shape == b.shape for a, b in zip(net.parameters(), network("resnet18").parameters(), strict=True))


def test_all_of_it_is_the_identity():
    net = network("resnet50")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random_cut(net, 1.0)
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_the_pruned_network_computes_what_the_full_one_does_with_these_channels_at_zero(arch):
    net = network(arch)
    pruned = copy.deepcopy(net)
    kept = random_cut(pruned, 0.5)
    for group, channels in zip(channel_groups(net), kept, strict=True):
        for norm in map(net.get_submodule, group.norms):  # then their outputs are 0, in the residual sums, too
            mask = torch.zeros(group.size).index_fill_(0, channels, 1)
            norm.weight.mul_(mask)
            norm.bias.mul_(mask)
    images = torch.randn(3, 3, 32, 32)
    assert pruned(images).shape == (3, 5)
    torch.testing.assert_close(pruned.double()(images.double()), net.double()(images.double()), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_channels_of_no_effect_are_the_first_to_go():
    """Cutting what the full network multiplies by zero changes nothing, whatever the images."""
    net = network("resnet18").double()
    generator = torch.Generator().manual_seed(0)
    for group in channel_groups(net):
        dead = torch.randperm(group.size, generator=generator)[: group.size // 4]
        for norm in map(net.get_submodule, group.norms):
            norm.weight[dead] = norm.bias[dead] = 0
    images, groups = torch.randn(4, 3, 32, 32, dtype=torch.float64), channel_groups(net)
    before = net(images)
    with torch.enable_grad():
        scores = channel_scores(net, groups, [lambda part=part: net(part).square().sum() for part in images.split(2)])
    for group, channels in zip(groups, cheapest_cut(groups, scores, Costs(net, groups, 32), 0.8), strict=True):
        cut(net, group, channels)
    torch.testing.assert_close(net(images), before, rtol=1e-9, atol=1e-9)


def test_a_score_is_the_squared_change_to_first_order_summed_over_the_images():
    """By finite differences: each channel, in all layers of its group, is made a little smaller."""
    net = network("resnet18").double()
    images, step = torch.randn(3, 3, 32, 32, dtype=torch.float64), 1e-6
    groups = channel_groups(net)

    def losses() -> torch.Tensor:
        return net(images).square().sum(dim=1)

    scores = channel_scores(net, groups, [lambda: losses().sum()])
    assert not net.bn1._forward_hooks
    with torch.no_grad():
        before = losses()
        for group, score in ((groups[i], scores[i]) for i in (0, 1, len(groups) - 1)):
            for channel in (0, group.size - 1):
                norms = [net.get_submodule(norm) for norm in group.norms]
                for norm in norms:
                    norm.weight[channel] *= 1 - step
                    norm.bias[channel] *= 1 - step
                change = (before - losses()) / step
                assert score[channel].item() == pytest.approx(change.square().sum().item(), rel=1e-3)
                for norm in norms:
                    norm.weight[channel] /= 1 - step
                    norm.bias[channel] /= 1 - step


def test_multiply_adds_are_those_that_papers_count():
    net = network("resnet18", with_head=False)
    assert multiply_adds(net, 224) == 1_814_073_344  # 1.8 billion (He et al. 2015, table 1)
    assert layer_costs(net, 224)["conv1"] == 3 * 64 * 7 * 7 * 112 * 112 and layer_costs(net, 224)["fc"] == 512_000
    assert not net.training and net.train() is net and multiply_adds(net, 64) and net.training


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_shapes_are_the_architecture(arch):
    pruned, net = network(arch), network(arch)
    random_cut(pruned, 0.3)
    state = pruned.state_dict()
    assert fit_widths(net, state)
    net.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), pruned(images))
    assert str(net) == str(pruned)  # the sizes that the layers know, too
    assert not fit_widths(net, state)


def test_a_state_dict_without_a_head_tells_the_widths_as_well():
    pruned, net = network("resnet18"), network("resnet18", with_head=False)
    random_cut(pruned, 0.3)
    assert fit_widths(net, {name: tensor for name, tensor in pruned.state_dict().items() if name[:2] != "fc"})
    assert net.fc.in_features == pruned.fc[1].in_features and net.fc.weight.shape == (1000, net.fc.in_features)


BAD_SHAPES = {
    "larger": ("conv1.weight", lambda w: w[:1].expand(65, 3, 7, 7), "makes 65 channels, not 1 to 64"),
    "vast": ("layer4.0.downsample.0.weight", lambda w: w[:1, :1].expand(10**9, 512, 1, 1), r"makes 1,000,000,000 chan"),
    "other": ("layer3.1.conv1.weight", lambda w: w[:, :-16], "the shape of 'layer3.1.conv1.weight' is"),
    "kernel": ("conv1.weight", lambda w: w[..., :3, :3], r"'conv1.weight' is \((\d+), 3, 3, 3\), not \(\1, 3, 7, 7\)"),
    "flat": ("conv1.weight", lambda w: w.flatten(), "the shape of 'conv1.weight' is"),
    "none": ("conv1.weight", lambda w: w[:0], "makes 0 channels"),
    "norm": ("layer2.0.bn1.running_var", lambda w: w[:-1], "the shape of 'layer2.0.bn1.running_var' is"),
    "head": ("fc.1.weight", lambda w: w[:, :-1], "the shape of 'fc.1.weight' is"),
    "classes": ("fc.1.bias", lambda w: w[:-1], "the shape of 'fc.1.bias' is"),
}


@pytest.mark.parametrize("kind", BAD_SHAPES)
def test_shapes_that_no_cut_explains_change_nothing(kind):
    pruned, net = network("resnet18"), network("resnet18")
    random_cut(pruned, 0.3)
    name, damage, reason = BAD_SHAPES[kind]
    shapes = [parameter.shape for parameter in net.parameters()]
    with pytest.raises(ValueError, match=reason):
        fit_widths(net, {**pruned.state_dict(), name: damage(pruned.state_dict()[name])})
    assert [parameter.shape for parameter in net.parameters()] == shapes


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("resnext50_32x4d", "grouped convolutions"), ("mobilenet_v3_small", "none of torchvision's ResNets")],
)
def test_other_networks_keep_their_widths(arch, reason):
    net = get_model(arch, weights=None)
    with pytest.raises(ValueError, match=reason):
        channel_groups(net)
    state = net.state_dict()
    name = next(iter(state))
    with pytest.raises(ValueError, match=f"the shape of '{name}' is"):
        fit_widths(net, {**state, name: state[name][:-1]})
    assert not fit_widths(net, state)


@torch.no_grad()
def test_a_layout_and_what_is_trained_survive_the_cut():
    net = network("resnet18").to(memory_format=torch.channels_last)
    net.requires_grad_(False)
    random_cut(net, 0.5)
    assert net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in net.parameters())
