"""Object detection data: images with boxes, their splits, and the loaders for training and evaluation."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from project import INFINITY, UserError, first_few, num_cores, quoted, shortest
from project.cache import lasting_fingerprints
from project.checks import MAX_KEPT_BYTES, decode, drop_bad_images
from project.checks import tell as tell_images
from project.detection.annotations import read_annotations
from project.detection.boxes import Header, is_of_stored, judge, read_header, tell, without_unknown
from project.detection.checks import examine
from project.detection.datasets import Album, BoxDataset, Pixels, Target, collate, scaled
from project.detection.drawing import draw_splits
from project.detection.records import Annotations, Stated
from project.detection.transforms import train_transform
from project.images import try_out
from project.listing import expanded, folder_of
from project.progress import shown
from project.split_data import SplitData
from project.splits import Samples, what_is_drawn

log = logging.getLogger(__name__)


class BoxData(SplitData):
    """Images with boxes around objects, each of one class, split into train, val and, if there are enough, test.

    Loaders yield `(images, targets)`, a list each: uint8 `(3, H, W)` of any sizes, and dictionaries with `boxes`,
    float32 `(n, 4)`, the left, top, right and bottom edges in pixels of that image; `labels`, int64 `(n,)`, indices in
    `class_names`, in which there is no background; and `image_id`, int64, the index of the image in its split. In
    evaluation with several processes the lists may be empty.

    The arguments before the `*` are set by the program; those after it are the options `--data.NAME`.

    Args:
        class_names: The classes of a model that is to be evaluated: the data may lack some of them, and need no train
            split; missing splits are drawn when `choose_test_split` asks for one.
        root: A folder, or its file: COCO (`instances_train.json` and the like, or a single JSON file), YOLO
            (`data.yaml`, or `classes.txt` beside `images` and `labels`) or Pascal VOC (`Annotations`, `JPEGImages` and
            `ImageSets/Main`). Missing splits are drawn: val from train, or val and test if there are no splits. An
            image without boxes is a negative.
        batch_size: Images per step and device.
        num_workers: Processes per device that read and change images. By default the cores divided by the devices, but
            at most 8.
        val_fraction: Fraction of the images drawn for validation if there is no val split.
        test_fraction: Fraction of the images drawn for testing if there are no splits.
        split_seed: Seed of the drawn splits. It is not `--seed`, so that runs with different seeds share a test split.
        check: Decode every new or changed file once, before training, to find the broken ones. By default only if there
            are at most 100,000 of them, which takes minutes.
        bad_images: What to do with images that are missing or broken: stop and list them, or leave them out.
        bad_boxes: What to do with boxes that are empty, reversed, outside the image, of an unknown class, listed twice
            or no numbers: stop and list them, or leave them out and clip those that reach out of the image.
        max_size: Longer side that larger images are scaled down to when they are read, in pixels. Training and
            validation images are kept in memory if they fit into 1 GiB.
        scale_jitter: The sides of what is seen, relative to those of the image: 0.2 is from 0.8 to 1.2 times.
        crop: Probability of training on a part of an image, of 0.3 to 1 of its area. Boxes are clipped, and left out if
            less than 0.3 of them is left.
        flip: Probability of a horizontal flip. Use 0 if left and right differ in meaning.
        colour: Strength of random changes of brightness, contrast and saturation.

    Raises:
        UserError: The data cannot be used; the message says what is wrong and where.
    """

    WHAT = "a folder of images with boxes, or its .json or .yaml file,"
    RANGES: ClassVar = {
        "batch_size": (1, INFINITY),
        "num_workers": (0, INFINITY),
        "max_size": (32, 8192),
        "scale_jitter": (0, 0.9),
        "crop": (0, 1),
        "flip": (0, 1),
        "colour": (0, 1),
    }
    MAIN_OPTIONS: ClassVar = {  # those that `--help` shows
        "root": "a folder in COCO, YOLO or Pascal VOC layout, or its .json or .yaml file [a sample]",
        "batch_size": "images per step and device",
        "bad_images": "what to do with missing or broken files: error or skip",
        "bad_boxes": "what to do with boxes that cannot be right: error or skip",
    }
    RENAMED: ClassVar[dict[str, dict[str, str]]] = {}
    REMOVED = ()

    def __init__(
        self,
        class_names: list[str] | None = None,
        *,
        root: str | None = None,
        batch_size: int = 4,
        num_workers: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        check: bool | None = None,
        bad_images: Literal["error", "skip"] = "error",
        bad_boxes: Literal["error", "skip"] = "error",
        max_size: int = 1333,
        scale_jitter: float = 0.2,
        crop: float = 0.5,
        flip: float = 0.5,
        colour: float = 0.2,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(batch_size, num_workers)
        self.check_options(**options)
        self.root, self.max_size = expanded(root or ""), max_size
        self.bad_images, self.bad_boxes = bad_images, bad_boxes
        self.fractions, self.split_seed = (val_fraction, test_fraction), split_seed
        self.folder = os.path.abspath(folder_of(self.root))
        self.train_transform = train_transform(scale_jitter, crop, flip, colour)
        found = read_annotations(self.root)
        self.format = found.format
        self.listed, self.boxes, self.headers = self.read(found, check)
        self.samples = self.listed if class_names else self.draw(self.listed)
        self.drawn = "" if class_names else what_is_drawn(self.listed, self.samples, *self.fractions)
        self.class_names = class_names or self.choose_classes(found.class_names)
        number = sum(map(len, self.boxes.values()))
        lacking = "the model" if class_names else "the training split"
        self.boxes, unknown = without_unknown(self.boxes, self.class_names, lacking)
        tell(unknown, number, bad_boxes)
        self.samples = {split: self.described(samples) for split, samples in self.samples.items()}
        self.test_split = "test" if "test" in self.samples else "val"

    def draw(self, listed: dict[str, Samples]) -> dict[str, Samples]:
        """All splits, of which those that are missing are drawn, with every class in each."""
        return draw_splits(listed, self.boxes, *self.fractions, self.split_seed)

    def read(
        self, found: Annotations, check: bool | None
    ) -> tuple[dict[str, Samples], dict[str, list[Stated]], dict[str, Header]]:
        """The images that can be used, by split, and their boxes and headers, by path. Raises `UserError`."""
        records = {record.path: record for of_split in found.splits.values() for record in of_split}
        listed: dict[str, Samples] = {s: [(r.path, "") for r in of_split] for s, of_split in found.splits.items()}
        headers, broken = decode(records, read_header)
        if broken:
            named = {path: f"{reason} (named in {records[path].where})" for path, reason in broken.items()}
            tell_images(named, len(records), self.bad_images)
            listed = only(headers, listed)
        good, _ = drop_bad_images(listed, self.bad_images, check, try_out, None)
        boxes: dict[str, list[Stated]] = {}
        problems = list(found.problems)
        for path in (path for samples in good.values() for path, _ in samples):
            if path not in boxes:
                usable, wrong = judge(records[path], headers[path])
                problems += wrong
                if usable is not None:
                    boxes[path] = usable
        stated = sum(len(record.boxes) for record in records.values()) + len(found.problems)
        tell(problems, stated, self.bad_boxes)
        if turned := [path for path in boxes if is_of_stored(records[path], headers[path])]:
            log.warning(
                f"{len(turned)} photos are turned by Exif, but not in their annotations, by the size that these state: "
                f"the boxes are turned, too: {first_few(turned, 3)}"
            )
        return only(boxes, good), boxes, headers

    def choose_classes(self, class_names: list[str]) -> list[str]:
        """Those classes of the data that have boxes in the training split. Raises `UserError` if there are none."""
        if not self.samples.get("train"):
            raise UserError(f"{self.root}: no training images, only {quoted(self.samples) or 'none at all'}")
        train = {box.label for path, _ in self.samples["train"] for box in self.boxes[path]}
        if not train:
            raise UserError(f"{self.root}: no usable box in its {len(self.samples['train'])} training images")
        val = self.samples["val"]
        if not any(self.boxes[path] for path, _ in val):
            raise UserError(
                f"{self.root}: no usable box in its {len(val)} validation images, which choose the best epoch"
            )
        everywhere = {box.label for boxes in self.boxes.values() for box in boxes}
        if unused := [name for name in class_names if name not in everywhere]:
            log.warning(f"{self.root}: no boxes of {quoted(unused)}, which is not counted as a class")
        return [name for name in class_names if name in train]

    def described(self, samples: Samples) -> Samples:
        """The same images, each with its number of boxes of each class in words, as `2 RBC, 1 WBC`."""
        counts = ((path, Counter(box.label for box in self.boxes[path])) for path, _ in samples)
        return [(path, ", ".join(f"{n[name]} {name}" for name in self.class_names if n[name])) for path, n in counts]

    @cached_property
    def fingerprints(self) -> dict[str, Tensor]:
        def stated(path: str) -> str:
            return repr([(box.label, box.corners) for box in self.boxes[path]])

        paths = {split: [path for path, _ in self.samples[split]] for split in ("train", "val")}
        return {
            split: lasting_fingerprints(((os.path.abspath(path), stated(path)) for path in of_split), self.folder)
            for split, of_split in paths.items()
        }

    def target(self, path: str) -> Target:
        """The `boxes` of an image, float32 `(n, 4)` in pixels of the upright image, and `labels`, int64 `(n,)`."""
        boxes = self.boxes[path]
        corners = torch.tensor([box.corners for box in boxes], dtype=torch.float32).reshape(-1, 4)
        labels = [self.class_names.index(box.label) for box in boxes]
        return {"boxes": corners, "labels": torch.tensor(labels, dtype=torch.int64)}

    def describe(self) -> str:
        """One line for the log on what was found."""
        splits = ["all"] if self.test_split == "all" else list(self.samples)
        parts = []
        for split in splits:
            counts = [len(self.boxes[path]) for path, _ in self.samples[split]]
            negatives = f", {counts.count(0):,} without any" if 0 in counts else ""
            parts.append(f"{len(counts):,} {split} images with {sum(counts):,} boxes{negatives}")
        drawn = f" ({self.drawn})" if self.drawn else ""
        classes = f"{len(self.class_names)} class{'es' * (len(self.class_names) > 1)}"
        return f"{shortest(self.root)}: {self.format}; {classes}; {'; '.join(parts)}{drawn}"

    def choose_test_split(self, split: str) -> None:
        super().choose_test_split(split)
        self.samples = {name: self.described(samples) for name, samples in self.samples.items()}

    def setup(self, stage: str) -> None:
        """Before training, say what looks wrong with the boxes; a resumed run has said it."""
        trainer = self.trainer
        if stage == "fit" and trainer is not None and trainer.is_global_zero and not trainer.ckpt_path:
            sizes = {path: header.size for path, header in self.headers.items()}
            for line in examine(self.samples, self.boxes, sizes, self.class_names):
                log.info(f"Data:  {line}")

    @cached_property
    def album(self) -> Album:
        """The images of train and val, read once, if they fit into memory; otherwise none."""
        paths = dict.fromkeys(path for split in ("train", "val") for path, _ in self.samples.get(split, []))
        sizes = {path: self.headers[path].size for path in paths}
        scaled_sizes = (scaled(*size, self.max_size) for size in sizes.values())
        if sum(3 * width * height for width, height in scaled_sizes) > MAX_KEPT_BYTES // self.rank_and_seed.world_size:
            sizes = {}
        album = Album(sizes, self.max_size)
        with ThreadPoolExecutor(num_cores()) as pool:
            for _ in shown(pool.map(album.read, sizes), "Reading images", len(sizes)):
                pass
        return album

    def dataset(self, split: str, kept: Mapping[str, Pixels], augment: bool = False) -> BoxDataset:
        """The images of a split with their targets."""
        paths = [path for path, _ in self.samples[split]]
        targets = [self.target(path) for path in paths]
        boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
        transform = self.train_transform if augment else None
        return BoxDataset(paths, boxes, labels, self.max_size, kept, transform, self.bad_images == "skip")

    def train_dataloader(self) -> DataLoader:
        return self.train_loader(self.dataset("train", self.album, augment=True), collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        return self.eval_loader(self.dataset("val", self.album), collate_fn=collate)

    def test_dataloader(self) -> DataLoader:
        return self.eval_loader(self.dataset(self.test_split, {}), collate_fn=collate)

    def files_of_batch(self, batch_idx: int) -> list[str]:
        """Paths of the training images that this process sees as a batch of the current epoch."""
        return [self.samples["train"][i][0] for i in self.indices_of_batch(batch_idx)]


def only(paths: Iterable[str], listed: dict[str, Samples]) -> dict[str, Samples]:
    """The samples of which the path is among these."""
    kept = set(paths)
    return {split: [sample for sample in samples if sample[0] in kept] for split, samples in listed.items()}
