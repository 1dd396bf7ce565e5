"""Image classification data: images with one class each, their splits, and the loaders for training and evaluation."""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from project import INFINITY, shortest
from project.cache import lasting_fingerprints
from project.checks import drop_bad_images
from project.classification.datasets import ImageDataset, eval_reader
from project.classification.transforms import fit_preprocessing, is_plain, mix_transform, train_transform
from project.features import FeatureDataset
from project.insight.issues import Excluded, still_excluded
from project.listing import expanded, folder_of
from project.preprocessing import Preprocessing
from project.results import is_same
from project.samples import class_list, find_samples, say_what_is_lost, with_classes
from project.split_data import ClassData, reopened
from project.splits import Samples, complete_splits, what_is_drawn

log = logging.getLogger(__name__)


class ImageData(ClassData):
    """Images with one class each, split into train, val and, if there are enough, test.

    The class list comes from the training split, in natural order (`2` before `10`), and applies to every split.
    Loaders yield `(images, labels)`: uint8 `(B, 3, H, W)` and int64 `(B,)`; the model normalizes. With MixUp or CutMix,
    the training batches are float32, still 0 to 255, and the labels float32 `(B, num_classes)`.

    The arguments before the `*` are set by the program; those after it are the options `--data.NAME`.

    Args:
        preprocessing: Preprocessing that the pretrained weights expect in evaluation, see `project.weights`.
        keep_decoded: Whether images that are decoded to be checked are kept in memory until training starts, up to
            1 GiB: for a first pass over them without augmentation.
        class_names: The classes of a model that is to be evaluated: the data may lack some of them, and need no train
            split; missing splits are drawn when `choose_test_split` asks for one.
        root: A folder `train|val|test/<class>/*` or `<class>/*`, or a CSV file with `path,label[,split]`. Missing
            splits are drawn: val from train, or val and test if there are no splits. Images with the same value in a
            column `group` (a patient, a video, a day) stay in one split.
        path_column: The column of the CSV file with the paths, if it is not called `path`.
        label_column: The column of the CSV file with the classes, if it is not called `label`.
        image_size: Side of the square that the model sees, in pixels. By default the size that the weights expect, or
            less if this would only magnify small images: twice their median side, in steps of 32 from 64.
        fit: How an image becomes a square in evaluation: `crop` scales its shorter side and takes the centre, `pad`
            shows all of it on a square of the mean colour, `squash` all of it without its proportions; training takes
            parts in the same way. By default as the weights were evaluated: `crop`, but for a few networks of timm.
        batch_size: Images per step and device.
        num_workers: Decoding processes per device. By default the cores divided by the devices, but at most 8.
        val_fraction: Fraction of each class drawn for validation if there is no val split.
        test_fraction: Fraction of each class drawn for testing if there are no splits.
        split_seed: Seed of the drawn splits. It is not `--seed`, so that runs with different seeds share a test split.
        check: Decode every new or changed file once, before training, to find the broken ones. By default only if there
            are at most 100,000 of them, which takes minutes.
        bad_images: What to do with broken files that `check` finds: stop and list them, or leave them out. A file that
            breaks later stops the run with its name, or is logged, replaced by the next one in training, and left out
            in evaluation.
        crop_scale: Smallest fraction of a training image's area that RandomResizedCrop keeps.
        flip: Probability of a horizontal flip. Use 0 if left and right differ in meaning.
        auto_augment: `trivial` is TrivialAugmentWide (arXiv 2103.10158), `rand` is RandAugment (arXiv 1909.13719).
        random_erasing: Probability of erasing a rectangle (RandomErasing, arXiv 1708.04896).
        mixup: Beta parameter of MixUp (arXiv 1710.09412); typically 0.2, 0 is off.
        cutmix: Beta parameter of CutMix (arXiv 1905.04899); typically 1, 0 is off. With both, each batch gets one.
        cache_features: If the backbone is frozen (`--model.fine_tune head`), compute its features of all images once,
            without augmentation, train on these, and keep them for later runs, see `project/cache.py`. By default if
            there is no augmentation beyond crops and flips.
        balance: For classes of unequal size: `sampler` draws every class equally often, `loss` weights the loss by
            inverse class frequency.
        doctor: Look for copies, wrong labels and the like before training. By default only in at most 100,000 images.
        exclude: The doctor's `data_issues.csv`: its images with `leave_out` yes are left out of the splits.

    Raises:
        UserError: The data cannot be used; the message says what is wrong and where.
    """

    WHAT = "a folder of images or a CSV manifest"
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
    MAIN_OPTIONS: ClassVar = {  # those that `--help` shows
        "root": "DIR/<class>/*.jpg, DIR/train|val|test/<class>/*.jpg, or a CSV file [a sample]",
        "image_size": "side of the square that is seen, in pixels [suits weights and images]",
        "batch_size": "images per step and device",
        "balance": "for classes of unequal size: sampler or loss",
        "bad_images": "what to do with broken files: error or skip",
    }
    RENAMED: ClassVar[dict[str, dict[str, str]]] = {}
    ORDER = ("balance",)
    REMOVED = ("pin_memory", "persistent_workers")  # options of older versions, which their configs contain

    def __init__(
        self,
        preprocessing: Preprocessing,
        keep_decoded: bool = True,
        class_names: list[str] | None = None,
        *,
        root: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        image_size: int | None = None,
        fit: Literal["crop", "pad", "squash"] | None = None,
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
        doctor: bool | None = None,
        exclude: str | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(batch_size, num_workers)
        self.check_options(**options)
        self.root, self.balance, self.bad_images, self.doctor = expanded(root or ""), balance, bad_images, doctor
        self.fractions = (val_fraction, test_fraction)
        self.folder = folder_of(self.root)
        self.features: dict[str, Tensor] = {}  # by split, see `use_features`
        self.excluded = Excluded(exclude and expanded(exclude), self.folder)
        listed, self.complete = self.find(class_names, path_column, label_column, split_seed)
        drawn = listed if class_names else self.draw(listed)
        self.preprocessing = fit_preprocessing(preprocessing, image_size, drawn.get("train", []), fit)
        self.take(listed, drawn, class_names, check, keep_decoded)
        self.train_transform = train_transform(self.preprocessing, crop_scale, flip, auto_augment, random_erasing)
        self.mix = mix_transform(mixup, cutmix, len(self.class_names))
        plain = self.mix is None and is_plain(self.train_transform)
        self.cache_features = plain if cache_features is None else cache_features

    def find(
        self, class_names: list[str] | None, path_column: str | None, label_column: str | None, seed: int
    ) -> tuple[dict[str, Samples], Callable[[dict[str, Samples]], dict[str, Samples]]]:
        """List the samples, with the names that a model has for their classes, and prepare the draw of splits."""
        listed, groups = find_samples(self.root, path_column, label_column)
        listed = listed if class_names is None else with_classes(listed, class_names)
        val, test = self.fractions
        return listed, partial(complete_splits, val_fraction=val, test_fraction=test, seed=seed, groups=groups)

    def draw(self, listed: dict[str, Samples]) -> dict[str, Samples]:
        """All splits, of which those that are missing are drawn first, so that `exclude` changes no draw."""
        return self.excluded.of(self.complete(listed))

    def take(
        self,
        listed: dict[str, Samples],
        drawn: dict[str, Samples],
        class_names: list[str] | None,
        check: bool | None,
        keep_decoded: bool,
    ) -> None:
        """Leave out broken images, and settle the splits and the classes."""
        # New images are decoded to be checked; those that are kept until training starts: (3, size, size) by path
        pixels = 3 * self.preprocessing["crop_size"] ** 2 if keep_decoded else None
        good, self.decoded = drop_bad_images(listed, self.bad_images, check, eval_reader(self.preprocessing), pixels)
        say_what_is_lost(listed, good)
        self.samples = good if class_names else drawn if good is listed else self.draw(good)
        self.drawn = "" if class_names else what_is_drawn(good, self.samples, *self.fractions)
        self.class_names = class_names or class_list(self.samples, self.root)
        self.test_split = "test" if "test" in self.samples else "val"

    @cached_property
    def fingerprints(self) -> dict[str, Tensor]:
        return {split: lasting_fingerprints(self.samples[split], self.folder) for split in ("train", "val")}

    def describe(self) -> str:
        """One line for the log on what was found."""
        if self.test_split == "all":
            no_splits = self.drawn or self.samples.keys() == {"all"}
            images = f"all {len(self.samples['all']):,} images, {'no splits given' if no_splits else 'of every split'}"
        else:
            images = ", ".join(f"{len(samples):,} {split}" for split, samples in self.samples.items()) + " images"
            images += f" ({self.drawn})" if self.drawn else ""
        size = self.preprocessing["crop_size"]
        return f"{shortest(self.root)}: {len(self.class_names)} classes; {images}; seen at {size} x {size} pixels"

    def choose_test_split(self, split: str) -> None:
        super().choose_test_split(split)
        chosen = {self.test_split: self.samples[self.test_split]}
        self.samples = {**self.samples, **self.excluded.of(chosen, whole=False)}

    def train_dataloader(self) -> DataLoader:
        samples = self.samples["train"]
        if self.trainer is None or self.trainer.max_epochs != 0:
            self.decoded = {}  # training uses other crops, and workers would hold these, too
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
        """A loader of a split's images as in evaluation, or of its features if `use_features` has set them."""
        if split in self.features:
            dataset = FeatureDataset(self.features[split], self.labels(self.samples[split]))
            return self.eval_loader(dataset, in_memory=True, collate_fn=default_convert)
        return self.image_loader(self.samples[split])

    def image_loader(self, samples: Samples) -> DataLoader:
        """A loader of images as in evaluation, in the given order, divided among the processes."""
        in_memory = all(path in self.decoded for path, _ in samples)
        read = self.decoded.__getitem__ if in_memory else eval_reader(self.preprocessing)
        dataset = ImageDataset(samples, self.class_names, read, self.bad_images == "skip")
        return self.eval_loader(dataset, in_memory=in_memory)

    def files_of_batch(self, batch_idx: int) -> list[str]:
        """Paths of the training images that this process sees as a batch of the current epoch."""
        return [self.samples["train"][i][0] for i in self.indices_of_batch(batch_idx)]

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Seed each training step, and mix its batch on the device."""
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.mix is not None and self.trainer is not None and self.trainer.training:
            images, labels = self.mix(images.float(), labels)
        return images, labels


def data_of(
    path: str, config: dict[str, Any], given: dict[str, Any], preprocessing: Preprocessing, class_names: list[str]
) -> ImageData:
    """The data that a model was trained on, with the same splits, or other data with its classes.

    Args:
        path: Its file, for messages.
        config: The options of the data in training.
        given: Those that replace them; None is left out.
        preprocessing, class_names: The model's.

    Raises:
        UserError: The data cannot be used, or is not where it was in training.
    """
    given = {name: value for name, value in given.items() if value is not None}
    kept = {name: value for name, value in config.items() if name not in ImageData.REMOVED}
    same = is_same(str(given.get("root", kept.get("root"))), kept.get("root"))
    kept["exclude"] = still_excluded(kept.get("exclude"), not same)
    options = {**kept, "num_workers": None, **given, "image_size": preprocessing["crop_size"]}
    return reopened(partial(ImageData, preprocessing, class_names=class_names), path, options, "root" in given)
