"""Where an answer changes most: found where only one place can matter, in networks of many kinds."""

import numpy as np
import pytest
import torch
from helpers import PREPROCESSING, make

from project.classification.attention import attention, map_layer, tinted
from project.classification.model import ResNetClassifier


def built(arch, size):
    torch.manual_seed(0)
    return ResNetClassifier(["a", "b"], {**PREPROCESSING, "crop_size": size}, arch=arch, weights="none").eval()


@pytest.mark.parametrize(
    ("arch", "size", "layer"),
    [
        ("resnet18", 224, "layer4"),
        ("resnet18", 64, "layer3"),
        ("resnet18", 32, "layer2"),
        ("mobilenet_v3_small", 128, "features.8"),
        ("efficientnet_b0", 64, "features.5"),
        ("alexnet", 128, "features.11"),
        ("shufflenet_v2_x0_5", 64, "stage3"),
        ("densenet121", 64, "features.denseblock3"),
        ("timm/resnet18", 64, "layer3"),
        ("timm/mobilenetv3_small_050", 64, "blocks.3"),
        ("vit_b_32", 64, None),
        ("timm/vit_tiny_patch16_224", 224, None),
    ],
)
def test_the_right_layer_is_found(arch, size, layer):
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    model = built(arch, size)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert map_layer(model.net, model.normalized(images[:1])) == layer
    maps = attention(model.net, model.normalized(images), torch.tensor([0, 1]))
    if layer is None:
        assert maps is None
    else:
        assert maps.shape == (2, size, size) and maps.dtype == np.float32
        assert maps.min() >= 0 and all(m.max() in (0, pytest.approx(1)) for m in maps)


def test_it_is_bright_where_the_answer_comes_from():
    """A network that sees brightness only, and of which class 1 means bright: the bright corner is what counts."""
    model = make(2)
    for name, parameter in model.net.named_parameters():
        if "conv" in name or "downsample.0" in name:
            torch.nn.init.constant_(parameter, 1 / parameter[0].numel())
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 512))
    model.eval()
    image = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    image[..., :40, 88:] = 255
    (bright,) = attention(model.net, model.normalized(image), torch.tensor([1]))
    assert bright[:48, 80:].sum() > 0.5 * bright.sum() > 0
    (dark,) = attention(model.net, model.normalized(image), torch.tensor([0]))
    assert dark[:40, 88:].mean() < bright[:40, 88:].mean() / 2


@pytest.mark.parametrize("fine_tune", ["full", "head"])
def test_the_model_stays_as_it_is(fine_tune):
    model = make(2, fine_tune=fine_tune).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = model(images)
        assert attention(model.net, model.normalized(images), torch.tensor([0, 1])) is not None
        assert torch.equal(model(images), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training and not any(m._forward_hooks for m in model.net.modules())


def test_a_tint_is_only_where_the_map_is():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    shares = np.zeros((4, 4), np.float32)
    shares[0, 0] = 1
    shown = tinted(pixels, shares)
    assert shown.dtype == np.uint8 and (shown[1:] == 100).all() and shown[0, 0, 0] > 180
