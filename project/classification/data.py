"""The data: images with one class each, their transforms, and the batches that training and evaluation read."""

import logging
from collections import Counter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from project import INFINITY, UserError, check_ranges, shortest
from project.checks import drop_bad_images
from project.classification.datasets import FeatureDataset, ImageDataset
from project.classification.transforms import fit_preprocessing, mix_transform, train_transform
from project.images import Preprocessing, eval_reader
from project.loading import ResumableData
from project.samples import Samples, class_list, complete_splits, find_samples

log = logging.getLogger(__name__)


class ImageData(ResumableData):
    """Images with one class each, split into train, val and, where there are enough, test.

    The class list comes from the training split, in natural order (`2` before `10`), and serves every split. Loaders
    yield `(images, labels)`: uint8 `(B, 3, H, W)` and int64 `(B,)`; the model normalizes. With MixUp or CutMix the
    training batches are float32, still 0 to 255, and the labels float32 `(B, num_classes)`.

    The argument before the star comes from the program; those after it are the options `--data.NAME`.

    Args:
        preprocessing: What the pretrained weights expect of an evaluated image, see `project.weights`.
        root: A folder `train|val|test/<class>/*` or `<class>/*`, or a CSV file with `path,label[,split]`. A split that
            is missing is drawn from the others: val from train; val and test if nothing is split.
        image_size: Side of the square the model sees, in pixels. By default what the weights were made for, or less
            where the images are so small that it would only magnify them: twice their median side.
        batch_size: Images a step, on each device.
        num_workers: Processes that decode, on each device. By default one a core, 8 at most.
        val_fraction: Share of each class drawn for validation where there is no val split.
        test_fraction: Share of each class drawn for testing where nothing is split.
        split_seed: Seed of the drawn splits. It is not `--seed`, so that runs with other seeds share one test split.
        check: Decode every new or changed file once, up front, to find the broken ones before training does. By
            default for up to 100,000 of them, which takes minutes.
        bad_images: What to do with broken files that `check` finds: stop with the list, or leave them out. A file that
            breaks after that stops the run by its name, or is named and replaced by the next one in training, and left
            out of an evaluation.
        crop_scale: Smallest share of a training image's area that RandomResizedCrop keeps.
        flip: Probability of a horizontal flip. Use 0 where left and right mean something.
        auto_augment: `trivial` is TrivialAugmentWide (arXiv 2103.10158), `rand` is RandAugment (arXiv 1909.13719).
        random_erasing: Probability that a rectangle is erased (RandomErasing, arXiv 1708.04896).
        mixup: Beta parameter of MixUp (arXiv 1710.09412); 0.2 is usual, 0 is off.
        cutmix: Beta parameter of CutMix (arXiv 1905.04899); 1 is usual, 0 is off. With both, each batch gets one.
        cache_features: Where the backbone is frozen (`--model.fine_tune head`), compute its features of all images
            once, without augmentation, and train on those. By default where no augmentation beyond crops and flips is
            asked for. They are kept for later runs, see `project/cache.py`.
        balance: Against unequal classes: `sampler` draws every class equally often, `loss` weights the loss by
            inverse class frequency.

    Raises:
        UserError: The data cannot be used; the text says what is wrong and where.
    """

    RANGES: ClassVar = {
        "image_size": (32, 2048),
        "batch_size": (1, INFINITY),
        "num_workers": (0, INFINITY),
        "crop_scale": (0.01, 1),
        "flip": (0, 1),
        "random_erasing": (0, 1),
        "mixup": (0, INFINITY),
        "cutmix": (0, INFINITY),
    }
    REMOVED = ("pin_memory", "persistent_workers")  # options of older versions, in their configs

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        root: str | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        check: bool | None = None,
        bad_images: Literal["error", "skip"] = "error",
        crop_scale: float = 0.35,
        flip: float = 0.5,
        auto_augment: Literal["none", "trivial", "rand"] = "none",
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cache_features: bool | None = None,
        balance: Literal["none", "sampler", "loss"] = "none",
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(batch_size, num_workers)
        self.check_options(**options)
        assert root is not None
        self.root, self.balance, self.bad_images = root, balance, bad_images
        augmented = auto_augment != "none" or random_erasing or mixup or cutmix
        self.cache_features = not augmented if cache_features is None else cache_features
        self.features: dict[str, Tensor] = {}  # by split, see `use_features`

        listed = find_samples(root)
        self.preprocessing = fit_preprocessing(preprocessing, image_size, listed)
        size = self.preprocessing["crop_size"]
        # Of new images, those that were decoded for the check: (3, size, size) by path, until training starts
        listed, self.decoded = drop_bad_images(
            listed, bad_images, check, eval_reader(self.preprocessing), image_bytes=3 * size**2
        )
        self.samples = complete_splits(listed, val_fraction, test_fraction, split_seed)
        self.class_names = class_list(self.samples)
        self.test_split = "test" if "test" in self.samples else "val"
        self.train_transform = train_transform(self.preprocessing, crop_scale, flip, auto_augment, random_erasing)
        self.mix = mix_transform(mixup, cutmix, len(self.class_names))

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Refuse what `__init__` would, as far as it can be told without a look at the data. Raises `UserError`."""
        if options["root"] is None:
            raise UserError("no data: name a folder of images or a CSV manifest with --data.root")
        check_ranges("data.", cls.RANGES, options)
        val, test = options["val_fraction"], options["test_fraction"]
        if min(val, test) <= 0 or val + test >= 1:
            raise UserError(
                f"--data.val_fraction {val} and --data.test_fraction {test} must be above 0, and below 1 together"
            )

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class, in the order of `class_names`."""
        counts = Counter(label for _, label in self.samples["train"])
        return [counts[name] for name in self.class_names]

    @property
    def inverse_frequencies(self) -> list[float]:
        """Of each class, such that the mean over the training images is 1."""
        total, num_classes = sum(self.class_counts), len(self.class_names)
        return [total / (num_classes * count) for count in self.class_counts]

    @property
    def class_weights(self) -> list[float] | None:
        """Weights of the loss; None unless `balance` is `loss`."""
        return self.inverse_frequencies if self.balance == "loss" else None

    def describe(self) -> str:
        """One line on what was found, for the log."""
        splits = ", ".join(f"{len(samples):,} {split}" for split, samples in self.samples.items())
        size = self.preprocessing["crop_size"]
        return (
            f"{shortest(self.root)}: {len(self.class_names)} classes; {splits} images; seen at {size} x {size} pixels"
        )

    def choose_test_split(self, split: str) -> None:
        """What `test_dataloader` gives: `train`, `val`, `test` or `all`; for `test`, if there is none, `val`."""
        if split == "all":
            self.samples["all"] = [sample for samples in self.samples.values() for sample in samples]
        elif split == "test" and "test" not in self.samples:
            log.warning(
                "There is no test split: the metrics will be of the validation split, which chose the checkpoint"
            )
            split = "val"
        self.test_split = split

    def labels(self, samples: Samples) -> Tensor:
        """Indices of the samples' classes, int64 `(N,)`."""
        index = {name: i for i, name in enumerate(self.class_names)}
        return torch.tensor([index[label] for _, label in samples])

    def use_features(self, features: dict[str, Tensor]) -> None:
        """From now on, in place of these splits' images, their loaders give the features of a frozen backbone.

        Args:
            features: `(N, F)` by split, in the order of its samples.
        """
        self.features = features

    def train_dataloader(self) -> DataLoader:
        samples = self.samples["train"]
        if self.trainer is None or self.trainer.max_epochs != 0:
            self.decoded = {}  # training takes other crops, and workers would hold them, too
        labels = self.labels(samples)
        weights = 1 / np.bincount(labels)[labels] if self.balance == "sampler" else None
        if "train" in self.features:
            dataset = FeatureDataset(self.features["train"], labels)
            return self.train_loader(dataset, weights, in_memory=True, collate_fn=default_convert)
        images = ImageDataset(samples, self.class_names, self.train_transform, self.bad_images == "skip", True)
        return self.train_loader(images, weights)

    def val_dataloader(self) -> DataLoader:
        return self.split_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.split_loader(self.test_split)

    def split_loader(self, split: str) -> DataLoader:
        """A split's images as in evaluation, or in place of them the features that `use_features` was given."""
        if split in self.features:
            dataset = FeatureDataset(self.features[split], self.labels(self.samples[split]))
            return self.eval_loader(dataset, in_memory=True, collate_fn=default_convert)
        return self.image_loader(self.samples[split])

    def image_loader(self, samples: Samples) -> DataLoader:
        """Images as in evaluation, in the order given, shared out among the processes."""
        in_memory = all(path in self.decoded for path, _ in samples)
        read = self.decoded.__getitem__ if in_memory else eval_reader(self.preprocessing)
        dataset = ImageDataset(samples, self.class_names, read, self.bad_images == "skip")
        return self.eval_loader(dataset, in_memory=in_memory)

    def files_of_batch(self, batch_idx: int) -> list[str]:
        """The training images that this process sees as a batch of the current epoch."""
        return [self.samples["train"][i][0] for i in self.indices_of_batch(batch_idx)]

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Mix training batches on the device."""
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            self.seed_step()
            if self.mix is not None:
                images, labels = self.mix(images.float(), labels)
        return images, labels
