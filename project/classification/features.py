"""A backbone's features of images as in evaluation: of the head start, the data set's doctor, and the confidence."""

import json
from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from project.cache import fingerprints
from project.features import cached
from project.loading import gather_in_order
from project.progress import shown
from project.splits import Samples
from project.weights import find_architecture


def cached_features(trainer: Trainer, model: Any, data: Any, samples: Samples) -> Tensor:
    """The backbone's features of images as in evaluation, `(N, F)` on the CPU: from the cache, or computed and cached.

    The cache key covers all that they depend on: files, weights, preprocessing, precision and the versions of the code.

    Args:
        trainer: Provides the device, the precision and the processes.
        model: A `ResNetClassifier`, on the device.
        data: An `ImageData`, which reads the images.
        samples: The images.
    """
    key = blake2b(digest_size=16)
    key.update(fingerprints(path for path, _ in samples).tobytes())
    for name, tensor in model.net.state_dict().items():
        if not name.startswith(f"{model.head_name}."):
            key.update(name.encode() + tensor.cpu().numpy().tobytes())
    arch = model.hparams["arch"]
    settings = [arch, data.preprocessing, trainer.precision, find_architecture(arch).version]
    key.update(json.dumps(settings).encode())
    shape = (len(samples), model.head.linear.in_features)
    return cached(trainer, key.hexdigest(), shape, lambda: compute_features(trainer, model, data, samples))


@torch.no_grad()
def compute_features(trainer: Trainer, model: Any, data: Any, samples: Samples) -> Tensor:
    """Run the backbone over images, divided among the processes; returns all features, `(N, F)` on the CPU.

    Arguments as for `cached_features`.
    """
    model.eval()
    mine = []
    batches = shown(data.image_loader(samples), "Computing features", here=trainer.is_global_zero)
    try:
        with trainer.precision_plugin.forward_context():
            for images, _ in batches:
                mine.append(model.features(images.to(model.device, non_blocking=True)).cpu())
    finally:
        model.train()
    features = torch.cat(mine)
    part = features if trainer.world_size == 1 else features.float().to(model.device)
    return gather_in_order(trainer, part, len(samples)).to(features.dtype)
