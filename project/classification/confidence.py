"""How far a trained model can be believed: its temperature, its promises, and which images are like those of training.

All of it is learned from the validation images once training has ended, and stored in `best.ckpt`; the weights stay as
they are.
"""

import logging
import os
import random
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from project import UserError, first_line
from project.answers import Promises, is_promises, promise_for
from project.checkpoint import Checkpoint, NotSaved, load_checkpoint, load_model
from project.classification.data import ImageData
from project.classification.features import cached_features, compute_features
from project.classification.model import ResNetClassifier
from project.failures import user_errors
from project.insight.calibration import MIN_ANSWERED, honest_temperature, promises_of
from project.insight.outliers import Familiarity
from project.splits import Samples
from project.trainer import best_of, is_limited

log = logging.getLogger(__name__)

MAX_IMAGES = {"train": 2000, "val": 5000}  # more are no more accurate
MAX_CACHED = 50_000  # training images of which the head start has all features
USUAL = 0.95  # the promise that the log tells about
QUANTILES = 101


class Confidence(NamedTuple):
    """What a checkpoint knows of a model's confidence.

    Attributes:
        promises: See `promises_of`.
        num_val: Number of validation images behind all of it.
        familiarity: Of the training images.
        distances: Quantiles 0, 0.01, … 1 of the distances of the validation images, float32 `(101,)`.
    """

    promises: Promises
    num_val: int
    familiarity: Familiarity
    distances: Tensor

    def unlike(self, features: Tensor) -> Tensor:
        """The share of the validation images that are more like the training images, float32 `(N,)`, given `(N, F)`."""
        distances = self.familiarity.distance(features)
        upper = torch.searchsorted(self.distances, distances).clamp(1, QUANTILES - 1)
        low, high = self.distances[upper - 1], self.distances[upper]
        part = ((distances - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return (upper - 1 + part) / (QUANTILES - 1)


def learn_confidence(trainer: Trainer, data: ImageData) -> Checkpoint | None:
    """Store a temperature, promises and the likeness to training images in `best.ckpt`, and log what they mean.

    Nothing is done if training was cut short or the number of batches is limited.

    Args:
        trainer: Provides `best.ckpt`, the device, the precision and the processes.
        data: Provides the training and the validation images.

    Returns:
        `best.ckpt` as it is then; None if nothing was done.

    Raises:
        UserError: The checkpoint or the images cannot be read.
    """
    best = best_of(trainer)
    if best is None or trainer.interrupted or is_limited(trainer) or not os.path.isfile(best.best_model_path):
        return None
    content = load_checkpoint(best.best_model_path).content
    trainer.strategy.barrier()  # all have read it before one of them writes
    if "confidence" not in content:  # else by this run, which then was killed
        try:
            with user_errors(data.batch_size):
                content = with_confidence(trainer, data, Checkpoint(best.best_model_path, content))
        except Exception as error:
            if trainer.world_size > 1:  # the others wait for this process
                raise
            log.warning(f"No temperature and promises: {type(error).__name__}: {first_line(error)}")
            return None
        saved = False
        if trainer.is_global_zero:
            try:
                trainer.strategy.checkpoint_io.save_checkpoint(content, best.best_model_path)
                saved = True
            except NotSaved as error:
                log.warning(f"{error}; it goes without a temperature and promises")
        if not trainer.strategy.broadcast(saved):
            return None
    say(content)
    return Checkpoint(best.best_model_path, content)


def with_confidence(trainer: Trainer, data: ImageData, checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint, and what has been learned about its model."""
    content = checkpoint.content
    model = load_model(checkpoint, ResNetClassifier)
    model = trainer.precision_plugin.convert_module(model).to(trainer.strategy.root_device)  # type: ignore[assignment]
    some = {split: choose(data.samples[split], number) for split, number in MAX_IMAGES.items()}
    cached = content["global_step"] == 0 and len(data.samples["train"]) <= MAX_CACHED
    if cached or data.features:  # those of the head start, which are in the cache, or at hand
        listed = data.samples["train"] + data.samples["val"]
        place = {path: i for i, (path, _) in enumerate(listed)}
        at_hand = [data.features[split] for split in MAX_IMAGES if split in data.features]
        known = torch.cat(at_hand) if len(at_hand) == 2 else cached_features(trainer, model, data, listed)
        features = {split: known[[place[path] for path, _ in samples]] for split, samples in some.items()}
    else:
        both = compute_features(trainer, model, data, some["train"] + some["val"])
        features = {"train": both[: len(some["train"])], "val": both[len(some["train"]) :]}
    labels = {split: data.labels(samples) for split, samples in some.items()}
    if not all(part.isfinite().all() for part in features.values()):
        raise ValueError("the features of some images are not finite")
    model.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        logits = torch.cat([model(part.to(model.device)).cpu() for part in features["val"].split(4096)])
    temperature = honest_temperature(logits.softmax(dim=1).numpy(), labels["val"].numpy())
    confidence, predicted = (logits / temperature).softmax(dim=1).max(dim=1)
    familiarity = Familiarity.fit(features["train"], labels["train"], len(data.class_names))
    quantiles = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    found = Confidence(
        promises=promises_of(confidence.numpy(), (predicted == labels["val"]).numpy()),
        num_val=len(some["val"]),
        familiarity=familiarity,
        distances=familiarity.distance(features["val"]).double().quantile(quantiles).float(),
    )
    parameters = {**content["hyper_parameters"], "temperature": temperature}
    stored = {**found._asdict(), "familiarity": familiarity.as_dict()}
    return {**content, "hyper_parameters": parameters, "confidence": stored}


def choose(samples: Samples, number: int) -> Samples:
    """At most so many of the samples, drawn always alike."""
    return samples if len(samples) <= number else random.Random(0).sample(samples, number)


def say(content: dict[str, Any]) -> None:
    """Log what the confidence in the content of a checkpoint means."""
    temperature, found = content["hyper_parameters"]["temperature"], content["confidence"]
    if temperature != 1:
        kind = "too sure" if temperature > 1 else "not sure enough"
        log.info(f"Temperature {temperature:.2f}: on the validation images, the model was {kind}; this makes it honest")
    if row := promise_for(found["promises"], USUAL):
        _, _, answered, right = row
        if answered < found["num_val"]:
            log.info(
                f"Unsure: to be right {USUAL:.0%} of the time, it answers {answered / found['num_val']:.0%} of the "
                f"validation images ({right:.0f} of {answered:.0f} right): predict.py --unsure {USUAL}"
            )
    elif found["num_val"] < MIN_ANSWERED:
        log.info(
            f"Unsure: {found['num_val']} validation images are too few to say when it is right {USUAL:.0%} of the time"
        )
    else:
        number = f"{found['num_val']:,} validation images"
        log.info(f"Unsure: on the {number}, not even the surest answers are right {USUAL:.0%} of the time")


def confidence_of(checkpoint: Checkpoint, num_features: int) -> Confidence | None:
    """What a checkpoint knows of its model's confidence; None if it was written before that was learned.

    Args:
        checkpoint: The checkpoint.
        num_features: Number of features of its model.

    Raises:
        UserError: It is not as `learn_confidence` has stored it.
    """
    stored = checkpoint.content.get("confidence")
    if stored is None:
        return None
    try:
        familiarity = Familiarity.from_dict(stored["familiarity"])
        found = Confidence(stored["promises"], stored["num_val"], familiarity, stored["distances"])
        distances = found.distances
        fits = distances.dtype == torch.float32 and distances.shape == (QUANTILES,) and bool(distances.isfinite().all())
        fits = fits and len(familiarity.mean) == num_features
        if not (is_promises(found.promises) and type(found.num_val) is int and fits):
            raise ValueError("not as it was stored")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"checkpoint {checkpoint.path}: its confidence is damaged ({error})") from error
    return found
