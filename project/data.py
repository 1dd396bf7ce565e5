"""From samples to batches: transforms, loaders, and the order in which processes and epochs see the images."""

import gc
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.environments import SLURMEnvironment
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_convert
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from project import UserError, check_range, shortest
from project.images import BadImage, load_crop, load_image, read_size
from project.samples import Samples, class_list, complete_splits, find_samples, without_bad_images

log = logging.getLogger(__name__)

IGNORE = -100  # the label of padding; cross_entropy's default ignore_index, and that of every metric here


class ImageData(LightningDataModule):
    """Images with one class each, split into train, val and, where there are enough, test.

    The class list comes from the training split, in natural order (`2` before `10`), and serves every split. Loaders
    yield `(images, labels)`: uint8 `(B, 3, H, W)` and int64 `(B,)`; the model normalizes. With MixUp or CutMix the
    training batches are float32, still 0 to 255, and the labels float32 `(B, num_classes)`.

    Args:
        root: A folder `train|val|test/<class>/*` or `<class>/*`, or a CSV file with `path,label[,split]`. A split that
            is missing is drawn from the others: val from train; val and test if nothing is split.
        preprocessing: What the pretrained weights expect of an evaluated image, as `project.model.preprocessing_for`
            gives it: `resize_size` (shorter side) and `crop_size` in pixels, `interpolation`, `mean` and `std`.
        image_size: Side of the square the model sees, in pixels. By default what the weights were made for, or less
            where the images are so small that it would only magnify them: twice their median side.
        batch_size: Images a step, on each device.
        num_workers: Processes that decode, on each device. By default one a core, 8 at most.
        pin_memory: Page-locked batches, for faster copies to a GPU. By default where there is a GPU.
        persistent_workers: Keep the workers from epoch to epoch. By default where there are workers.
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
        random_erasing: Probability that a rectangle is blanked (RandomErasing, arXiv 1708.04896).
        mixup: Beta parameter of MixUp (arXiv 1710.09412); 0.2 is usual, 0 is off.
        cutmix: Beta parameter of CutMix (arXiv 1905.04899); 1 is usual, 0 is off. With both, each batch gets one.
        cache_features: Where the backbone is frozen (`--model.fine_tune head`), compute its features of all images
            once, without augmentation, and train on those. By default where nothing beyond crops and flips is asked
            of the augmentation. They are kept for later runs, see `project/cache.py`.
        balance: Against unequal classes: `sampler` draws every class equally often, `loss` weights the loss by
            inverse class frequency.

    Raises:
        UserError: The data cannot be used; the text says what is wrong and where.
    """

    def __init__(
        self,
        root: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
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
        super().__init__()
        if root is None or preprocessing is None:
            raise UserError("no data: name a folder of images or a CSV manifest with --data.root")
        check_range("data.batch_size", batch_size, 1)
        check_range("data.num_workers", num_workers or 0, 0)
        check_range("data.crop_scale", crop_scale, 0.01, 1)
        check_range("data.flip", flip, 0, 1)
        check_range("data.random_erasing", random_erasing, 0, 1)
        check_range("data.mixup", mixup, 0)
        check_range("data.cutmix", cutmix, 0)
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise UserError(
                f"--data.val_fraction {val_fraction} and --data.test_fraction {test_fraction} "
                "must be above 0, and below 1 together"
            )
        self.root = root
        self.batch_size = batch_size  # by this name Lightning's batch-size finder looks for it
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.balance = balance
        self.bad_images = bad_images
        self.resumed = {"epoch": 0, "batches_done": 0, "images_a_step": 0}
        augmented = auto_augment != "none" or random_erasing or mixup or cutmix
        self.cache_features = not augmented if cache_features is None else cache_features
        self.features: dict[str, Tensor] = {}  # by split, if they are to be read in place of images

        samples = without_bad_images(find_samples(root), bad_images, check)
        self.samples = complete_splits(samples, val_fraction, test_fraction, split_seed)
        self.class_names = class_list(self.samples)
        self.test_split = "test" if "test" in self.samples else "val"

        self.preprocessing = fit_preprocessing(preprocessing, image_size, self.samples["train"])
        size = self.preprocessing["crop_size"]
        resample = Image.Resampling[self.preprocessing["interpolation"].upper()]
        choose = partial(random_crop, scale=(crop_scale, 1.0))
        self.train_transform = v2.Compose(
            [
                partial(load_crop, size=size, choose=choose, resample=resample),
                v2.RandomHorizontalFlip(flip),
                *{"none": [], "trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}[auto_augment],
                v2.PILToTensor(),
                # Blanks are the mean colour: what the network sees as zero after normalization.
                v2.RandomErasing(random_erasing, value=[255 * mean for mean in self.preprocessing["mean"]]),
            ]
        )
        num_classes = len(self.class_names)
        mixes: list[v2.Transform] = []
        if mixup:
            mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix:
            mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self.mix = v2.RandomChoice(mixes) if mixes else None

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class, in the order of `class_names`."""
        counts = Counter(label for _, label in self.samples["train"])
        return [counts[name] for name in self.class_names]

    @property
    def class_weights(self) -> list[float] | None:
        """Weights of the loss, 1 on average over the training images; None unless `balance` is `loss`."""
        if self.balance != "loss":
            return None
        total, num_classes = sum(self.class_counts), len(self.class_names)
        return [total / (num_classes * count) for count in self.class_counts]

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
                "There is no test split: the figures will be of the validation split, which chose the checkpoint"
            )
            split = "val"
        self.test_split = split

    def labels(self, samples: Samples) -> Tensor:
        """Indices of classes, int64 `(N,)`."""
        index = {name: i for i, name in enumerate(self.class_names)}
        return torch.tensor([index[label] for _, label in samples])

    def dataset(self, split: str, train: bool | None = None) -> "ImageDataset | FeatureDataset":
        """A split's images, augmented if it is for training, or in place of them what `features` holds."""
        samples = self.samples[split]
        if split in self.features:
            return FeatureDataset(self.features[split], self.labels(samples))
        train = split == "train" if train is None else train
        transform = self.train_transform if train else eval_reader(self.preprocessing)
        return ImageDataset(samples, self.class_names, transform, self.bad_images == "skip", replace_bad=train)

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train")
        labels = np.asarray(dataset.labels)
        weights = 1 / np.bincount(labels)[labels] if self.balance == "sampler" else None
        sampler = EpochSampler(len(dataset), shuffle=True, weights=weights, **self._position())
        # BatchNorm cannot train on a single image, which is what one sample too many leaves for the last batch.
        loader = self._loader(dataset, sampler, drop_last=self.batch_size > 1 and len(sampler) % self.batch_size == 1)
        batches = self.resumed["batches_done"]
        if batches and self.resumed["images_a_step"] != self.images_a_step:
            raise UserError(
                f"the checkpoint is from the middle of an epoch with {self.resumed['images_a_step']} images a step (on "
                f"all devices together), which goes on with as many, not {self.images_a_step}: --data.batch_size"
            )
        sampler.resume(self.resumed["epoch"], batches * self.batch_size)
        return loader

    @property
    def images_a_step(self) -> int:
        """On all devices together."""
        return self.batch_size * (1 if self.trainer is None else self.trainer.world_size)

    def state_dict(self) -> dict[str, int]:
        """How far training has come, for the checkpoint."""
        if self.trainer is None:
            return self.resumed
        epoch, batches_done = self._progress()
        progress = self.trainer.fit_loop.epoch_progress.current
        ended = progress.processed > progress.completed  # type: ignore[attr-defined]  # at its last batch, or before
        if ended or self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            epoch, batches_done = epoch + 1, 0
        return {"epoch": epoch, "batches_done": batches_done, "images_a_step": self.images_a_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning restores its own progress only after it has started the loader, so the loader needs to know it."""
        self.resumed = state_dict

    def files_of_batch(self, batch_idx: int) -> list[str]:
        """The training images that this process sees as a batch of the current epoch."""
        assert self.trainer is not None and self.trainer.train_dataloader is not None
        sampler = self.trainer.train_dataloader.sampler
        indices, _ = sampler.share(self.trainer.current_epoch)
        return [self.samples["train"][i][0] for i in indices[batch_idx * self.batch_size :][: self.batch_size].tolist()]

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self.test_split)

    def plain_loader(self, samples: Samples) -> DataLoader:
        """Images as in evaluation, in the order given, shared out among the processes."""
        dataset = ImageDataset(samples, self.class_names, eval_reader(self.preprocessing), self.bad_images == "skip")
        return self._loader(dataset, EpochSampler(len(dataset), shuffle=False, **self._position()))

    def _eval_loader(self, split: str) -> DataLoader:
        dataset = self.dataset(split, train=False)
        return self._loader(dataset, EpochSampler(len(dataset), shuffle=False, **self._position()))

    def _progress(self) -> tuple[int, int]:
        """The epoch, and how many batches of it are done."""
        assert self.trainer is not None
        # Not `completed`, which Lightning counts up only after the hook in which a step is saved
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return self.trainer.current_epoch, done

    def _position(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1, "seed": 0}
        # seed_everything leaves the seed where processes that Lightning starts find it, too
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size, "seed": seed}

    def _loader(
        self, dataset: "ImageDataset | FeatureDataset", sampler: "EpochSampler", drop_last: bool = False
    ) -> DataLoader:
        on_gpu = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        processes = self.trainer.num_devices if self.trainer is not None else 1
        if isinstance(getattr(self.trainer and self.trainer.strategy, "cluster_environment", None), SLURMEnvironment):
            processes = 1  # srun has given each process cores of its own
        workers = default_workers(processes) if self.num_workers is None else self.num_workers
        if isinstance(dataset, FeatureDataset):
            workers = 0  # there is nothing to decode
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=default_convert if isinstance(dataset, FeatureDataset) else None,
            num_workers=workers,
            pin_memory=on_gpu if self.pin_memory is None else self.pin_memory,
            persistent_workers=workers > 0 and self.persistent_workers is not False,
            drop_last=drop_last,
            worker_init_fn=set_up_worker,
        )

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Mix training batches on the device."""
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            # What is random in a step, from here to dropout, depends on nothing before it: a run that is resumed goes
            # on as one that never stopped.
            position = (*self._position().values(), *self._progress())
            torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))
            if self.mix is not None:
                images, labels = self.mix(images.float(), labels)
        return images, labels


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Decoded, transformed images: uint8 `(3, H, W)`, with the index of their class.

    It is asked for what `EpochSampler` gives: an index, and the seed of all that is random in the transform (which has
    to use torch for it). So an image's augmentation depends on neither the worker nor what was seen before.
    The index `EpochSampler.PADDING` gives an image with the label `IGNORE`.
    The file list lives in two arrays, which worker processes share, not in Python objects, which each would copy.

    Args:
        samples: Paths and class names.
        class_names: Names in the order of their indices.
        transform: From a path to a tensor.
        skip_bad: Name a file that broke after it was checked, and go on without it; else it is an error.
        replace_bad: Give the next image in its place; else it counts as padding.

    Raises:
        BadImage: A file broke after it was checked; the text names it.
    """

    def __init__(
        self,
        samples: Samples,
        class_names: list[str],
        transform: v2.Transform,
        skip_bad: bool = False,
        replace_bad: bool = False,
    ) -> None:
        index = {name: i for i, name in enumerate(class_names)}
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = np.array([index[label] for _, label in samples], dtype=np.int64)
        self.transform = transform
        self.skip_bad = skip_bad
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        i, seed = item
        if i == EpochSampler.PADDING:
            return self._readable(0)[0], IGNORE
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(os.fsdecode(self.paths[i])), int(self.labels[i])
        except BadImage as error:
            if not self.skip_bad:
                raise
            log.warning(f"{error}: left out")
        image, label = self._readable(i + 1)
        return image, label if self.replace_bad else IGNORE

    def _readable(self, start: int) -> tuple[Tensor, int]:
        """The first image from there on that can be read."""
        for i in (k % len(self) for k in range(start, start + len(self))):
            with suppress(BadImage):
                return self.transform(os.fsdecode(self.paths[i])), int(self.labels[i])
        raise BadImage(f"none of {len(self)} images can be read any more, such as {os.fsdecode(self.paths[0])}")

    def __getstate__(self) -> dict[str, Any]:
        """Where workers are not forked but started anew, they get a pickle: in it torch shares tensors, not arrays."""
        shared = torch.from_numpy(self.paths.view(np.uint8))
        return {**vars(self), "paths": (shared, self.paths.dtype)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shared, dtype = state["paths"]
        vars(self).update(state, paths=shared.numpy().view(dtype))


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Features of images in place of them, `(F,)`, with the index of their class; whole batches are read at once."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor([i for i, _ in items])
        labels = torch.where(chosen == EpochSampler.PADDING, IGNORE, self.labels[chosen])
        return self.features[chosen], labels


class FileDataset(Dataset[tuple[Tensor, str]]):
    """Images without classes, for prediction: uint8 `(3, H, W)`, with an empty string or, for a file that cannot be
    read, a black image with the reason."""

    def __init__(self, paths: list[str], preprocessing: dict[str, Any]) -> None:
        self.paths = paths
        self.size = preprocessing["crop_size"]
        self.transform = eval_reader(preprocessing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        try:
            return self.transform(self.paths[i]), ""
        except BadImage as error:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), str(error).removeprefix(
                f"{self.paths[i]}: "
            )


class EpochSampler(Sampler[tuple[int, int]]):
    """One process's share of each epoch, as indices, each with a seed for what is random in the image's transform.

    Both depend on the seed and the epoch, and on nothing else.

    Every process gets equally many, so that none waits for another at the end. What that takes beyond the data repeats
    images when shuffling; otherwise it is `PADDING`, which the metrics ignore: evaluation counts each image once.

    Args:
        num_samples: Size of the data set.
        shuffle: A new order every epoch, else the data's own.
        weights: If given, draw with replacement, with these relative probabilities, shape `(num_samples,)`.
    """

    PADDING = -1

    def __init__(
        self,
        num_samples: int,
        *,
        shuffle: bool,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.num_samples = num_samples
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights)
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0
        self.resumed: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def resume(self, epoch: int, num_done: int) -> None:
        """Start in `epoch` after the `num_done` samples that this process saw of it before it was stopped."""
        self.epoch = epoch
        self.resumed = (epoch, num_done)

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, num_done = self.resumed or (0, 0)
        start = num_done if epoch == self.epoch else 0
        items = torch.stack(self.share(self.epoch), dim=1)[start:]
        for some in items.split(4096):  # objects for all would take memory that workers hold, too
            yield from map(tuple, some.tolist())

    def share(self, epoch: int) -> tuple[Tensor, Tensor]:
        """All of an epoch for this process: indices and seeds, int64 `(len(self),)` each."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.weights is not None:
            order = torch.multinomial(self.weights, self.num_samples, replacement=True, generator=generator)
        elif self.shuffle:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.arange(self.num_samples)
        missing = len(self) * self.world_size - self.num_samples
        again = order.repeat(self.world_size)[:missing]  # of few images for many processes, each several times
        fill = again if self.shuffle else torch.full((missing,), self.PADDING)
        seeds = torch.randint(2**62, (self.num_samples + missing,), generator=generator)
        mine = slice(self.rank, None, self.world_size)
        return torch.cat([order, fill])[mine], seeds[mine]


def fit_preprocessing(preprocessing: dict[str, Any], image_size: int | None, samples: Samples) -> dict[str, Any]:
    """Scale the weights' own preprocessing to another image size: the one asked for, or one for small images."""
    crop, resize = preprocessing["crop_size"], preprocessing["resize_size"]
    if image_size is None:
        # Twice their side keeps what small images show, at a fraction of the price of 224 pixels. 32 is the stride of
        # a ResNet: a smaller step would not change the size of its last feature map.
        some = samples[:: max(1, len(samples) // 64)]
        side = median(min(read_size(path)) for path, _ in some)
        image_size = min(crop, max(64, 32 * round(2 * side / 32)))
    check_range("data.image_size", image_size, 32, 2048)
    return {**preprocessing, "crop_size": image_size, "resize_size": round(resize * image_size / crop)}


def eval_transform(preprocessing: dict[str, Any]) -> v2.Transform:
    """From a Pillow image to uint8 `(3, crop_size, crop_size)`, as the pretrained weights want it for evaluation."""
    interpolation = InterpolationMode(preprocessing["interpolation"])
    return v2.Compose(
        [
            v2.Resize(preprocessing["resize_size"], interpolation=interpolation, antialias=True),
            v2.CenterCrop(preprocessing["crop_size"]),
            v2.PILToTensor(),
        ]
    )


def eval_reader(preprocessing: dict[str, Any]) -> v2.Transform:
    """From a path to uint8 `(3, crop_size, crop_size)`; a JPEG is decoded no larger than that takes."""
    return v2.Compose([partial(load_image, size=preprocessing["resize_size"]), eval_transform(preprocessing)])


def random_crop(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """A box as torchvision's RandomResizedCrop draws it: top, left, height, width.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        scale: Smallest and largest share of the area. The aspect ratio is from 3:4 to 4:3.
    """
    image = torch.empty(1, height, width, device="meta")  # get_params asks for nothing but its size
    return RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])


def set_up_worker(worker: int) -> None:
    """In a data worker, at its start: leave what it shares with the main process, memory and signals, to that."""
    gc.freeze()  # the garbage collector writes to what it looks at, and what is written to is copied
    # Ctrl-C, and what is sent to all of a job, must not end what the last step still needs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def default_workers(processes: int = 1) -> int:
    """Decoding processes for each of so many training processes: one for each core that we may use, 8 at most."""
    # A container or a scheduler may allow fewer cores than there are.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // processes)
