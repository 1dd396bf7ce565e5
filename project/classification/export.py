"""From a model to ONNX files that are accepted or refused, with figures of what each of them costs."""

import hashlib
import logging
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from project import UserError, num_cores
from project.answers import check_finite
from project.classification.certificate import (
    MAX_DIFFERENCE,
    MIN_AGREEMENT,
    SURE_AGREEMENT,
    comparison,
    hash_of,
    metrics_of,
    reason_against,
)
from project.classification.data import ImageData
from project.classification.graph import write_onnx
from project.classification.model import ResNetClassifier
from project.exported import Exported
from project.files import whole
from project.fresh import answers
from project.images import load_for_evaluation
from project.insight.calibration import fitted_temperature
from project.onnx_export import set_metadata
from project.progress import shown
from project.quantization import RECIPES, Recipe, quantize
from project.splits import Samples
from project.timing import in_turns

log = logging.getLogger(__name__)

BATCH = 32
SAME_ANSWERS = 32  # images that a process without torch reads and classifies
FEW = 500  # images on which recipes are compared
Model = Callable[[np.ndarray], np.ndarray]


class Images(NamedTuple):
    """Images of a split, as the network sees them.

    Attributes:
        split: Its name.
        samples: Path and class of each.
        pixels: uint8 `(N, S, S, 3)`.
    """

    split: str
    samples: Samples
    pixels: np.ndarray


def read_images(data: ImageData, split: str, limit: int, seed: int = 0) -> Images:
    """Read the images of a split, at most `limit` of them, which are drawn. Raises `BadImage`."""
    data.choose_test_split(split)
    samples = data.samples[data.test_split]
    if len(samples) > limit:
        samples = [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), limit))]
    size = data.preprocessing["crop_size"]
    pixels = np.empty((len(samples), size, size, 3), np.uint8)

    def read(i: int) -> None:
        pixels[i] = load_for_evaluation(samples[i][0], data.preprocessing)

    with ThreadPoolExecutor(num_cores()) as pool:
        for _ in shown(pool.map(read, range(len(samples))), f"{data.test_split} images", len(samples)):
            pass
    return Images(data.test_split, samples, pixels)


def without(images: Images, others: Images) -> Images:
    """Those of the images that are not among others, not even as copies. Raises `UserError` if none is left."""
    seen = {sha256_of(pixels) for pixels in others.pixels}
    left = [i for i, pixels in enumerate(images.pixels) if sha256_of(pixels) not in seen]
    if not left:
        raise UserError(f"all images that int8 would be fitted to are copies of {others.split} images")
    if copies := len(images.samples) - len(left):
        log.warning(f"{copies} {images.split} images are copies of {others.split} images, and not used for int8")
    return Images(images.split, [images.samples[i] for i in left], images.pixels[left])


def sha256_of(pixels: np.ndarray) -> bytes:
    """A hash of an image."""
    return hashlib.sha256(pixels.tobytes()).digest()


def probabilities_of(model: Model, images: Images, what: str) -> np.ndarray:
    """What a model answers, float32 `(N, C)`."""
    starts = range(0, len(images.pixels), BATCH)
    parts = (model(images.pixels[i : i + BATCH]) for i in starts)
    return np.concatenate(list(shown(parts, what, len(starts))))


def in_pytorch(model: ResNetClassifier, temperature: float) -> Model:
    """The network in PyTorch, in fp32, called as an exported model is."""

    @torch.inference_mode()
    def call(images: np.ndarray) -> np.ndarray:
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        return (logits / temperature).softmax(dim=1).numpy()

    return call


def temperature_of(model: ResNetClassifier, data: ImageData) -> float:
    """The temperature that suits the validation images best, see `fitted_temperature`."""
    images = read_images(data, "val", 4 * FEW)
    labels = data.labels(images.samples).numpy()
    found = fitted_temperature(probabilities_of(in_pytorch(model, 1.0), images, "PyTorch, fp32"), labels)
    log.info(f"Temperature fitted on {len(labels)} val images: {found:.3f}")
    return found


class Export:
    """The files that are made of one model, and what is known about them.

    Args:
        model: In eval mode, on the CPU.
        data: Its data, with a train and a val split.
        folder: Where files are made; what is accepted is moved from it.
        metadata: What all files say about themselves, as JSON types.
        temperature: See `project.classification.graph.Graph`.
        max_drop: How much of the top-1 a file may lose.
        limits: Number of images for calibration, and for the certificate, at most.
    """

    BOUNDS: ClassVar = {"min_agreement": MIN_AGREEMENT, "max_difference_fp32": MAX_DIFFERENCE}

    def __init__(
        self,
        model: ResNetClassifier,
        data: ImageData,
        folder: Path,
        metadata: dict[str, Any],
        temperature: float,
        max_drop: float,
        limits: tuple[int, int],
    ) -> None:
        self.model, self.folder, self.metadata, self.max_drop = model, folder, metadata, max_drop
        self.temperature, self.limit = temperature, limits[0]
        self.data = data
        self.test = read_images(data, "test", limits[1])
        self.network = in_pytorch(model, temperature)
        self.before = probabilities_of(self.network, self.test, "PyTorch, fp32")
        check_finite(self.before)
        self.parts: list[Images] = [self.test]
        self.exported: dict[str, Exported] = {}  # by file name
        self.figures: dict[str, dict[str, Any]] = {}  # likewise

    def describe(self) -> dict[str, Any]:
        """The images that were used, for the certificate: no calibration image is among the others."""
        purposes = ("certified_on", "calibrated_on", "recipe_chosen_on")
        found: dict[str, Any] = {"root": os.path.abspath(self.data.root)}
        for purpose, images in zip(purposes, self.parts, strict=False):
            found[purpose] = {"split": images.split, "images": len(images.samples), "sha256": hash_of(images.samples)}
        return found

    def compare(self, name: str) -> dict[str, Any]:
        """Compare a file with the network on the images of the certificate."""
        after = probabilities_of(self.exported[name], self.test, name)
        names = self.model.class_names
        self.figures[name] = comparison(self.before, after, self.test.samples, names, self.test.split)
        return self.figures[name]

    def fp32(self) -> None:
        """Make `model.onnx`. Raises `UserError` if its answers are not those of the network."""
        path = self.folder / "model.onnx"
        write_onnx(self.model, path, {**self.metadata, "temperature": self.temperature}, self.temperature)
        self.exported[path.name] = Exported(path)
        found = self.compare(path.name)
        if not (largest := found["difference"]["max"]) <= MAX_DIFFERENCE:
            raise UserError(
                f"refused: the probabilities of the ONNX file differ from PyTorch's by {largest:.1e}, above "
                f"{MAX_DIFFERENCE:.0e}: ONNX Runtime computes an operation of {self.model.hparams['arch']} "
                "differently; nothing is written"
            )

    def int8(self, reduce_range: bool = False) -> str | None:
        """Make `model.int8.onnx` by the fastest recipe that agrees.

        Returns:
            Why there is none, if none is good enough.
        """
        calibration = without(read_images(self.data, "train", self.limit), self.test)
        chosen = read_images(self.data, "val", FEW)
        if self.test.split == "val":
            log.warning("There is no test split: how int8 is made is chosen on the images that certify it")
        self.parts += [calibration, chosen]
        before = probabilities_of(self.exported["model.onnx"], chosen, "model.onnx")
        tried: list[tuple[float, str, Exported]] = []
        refused = None
        for recipe in RECIPES:  # the fastest first
            exported, number = self.quantized(recipe, calibration, reduce_range)
            if number < 2:
                log.warning("No model.int8.onnx: only convolutions are computed in int8, which this network hardly has")
                return None
            after = probabilities_of(exported, chosen, recipe.name)
            agreement = float((before.argmax(axis=1) == after.argmax(axis=1)).mean())
            tried.append((agreement, recipe.name, exported))
            log.info(f"int8, {recipe.name}: agrees with fp32 on {agreement:.3f} of {len(chosen.samples)} val images")
            if agreement >= SURE_AGREEMENT:
                refused = self.accepted(tried[-1], tried, reduce_range)
                if refused is None:
                    return None
        unsure = [one for one in tried if one[0] < SURE_AGREEMENT]
        return self.accepted(max(unsure, key=lambda one: one[0]), tried, reduce_range) if unsure else refused

    def accepted(
        self, one: tuple[float, str, Exported], tried: list[tuple[float, str, Exported]], reduce_range: bool
    ) -> str | None:
        """Certify an int8 file, made by one of the recipes that were tried. Returns why it is refused, if it is."""
        _, name, self.exported["model.int8.onnx"] = one
        earlier = self.figures.get("model.int8.onnx", {}).get("recipe", {}).get("refused_on_certificate", [])
        found = self.compare("model.int8.onnx")
        refused = reason_against(found, self.max_drop)
        found["recipe"] = {
            "in_int8": name,
            "reduce_range": reduce_range,
            "agreement_when_chosen": {other: agreement for agreement, other, _ in tried},
            "refused_on_certificate": sorted({*earlier, *([name] if refused else [])}),
        }
        if refused:
            log.info(f"int8, {name}: {refused}")
        elif found["top1_drop_at_most"] > self.max_drop:
            log.info(
                f"int8 may have lost up to {found['top1_drop_at_most']:.3f} of the top-1 (95 %), above --max_drop "
                f"{self.max_drop}: {found['num_samples']:,} images cannot show that it has lost less"
            )
        return refused

    def quantized(self, recipe: Recipe, calibration: Images, reduce_range: bool) -> tuple[Exported, int]:
        """Quantize by a recipe. Returns the model, and how many convolutions are in int8."""
        import onnx

        path = self.folder / f"int8-{RECIPES.index(recipe)}.onnx"
        number = quantize(self.folder / "model.onnx", path, calibration.pixels, recipe, reduce_range)
        proto = onnx.load(path)
        kept = {"temperature": self.temperature, "precision": "int8", "recipe": recipe.name}
        set_metadata(proto, {**self.exported["model.onnx"].metadata, **kept})
        with whole(path) as file:
            file.write(proto.SerializeToString())
        return Exported(path), number

    def measure(self) -> dict[str, float]:
        """Time the network and all files in turns, and let a process without torch use each of them.

        Returns:
            How many times as fast as PyTorch each file is: the mean of the two batch sizes.

        Raises:
            UserError: The process reads other pixels, or answers differently.
        """
        times = in_turns({"pytorch": self.network, **self.exported}, self.test.pixels[:BATCH])
        some = self.test.samples[:SAME_ANSWERS]
        for name, exported in self.exported.items():
            found = answers(Path(exported.path), [path for path, _ in some])
            expected = exported(self.test.pixels[: len(some)])
            if (found.pixels != self.test.pixels[: len(some)]).any():
                raise UserError(f"refused: a process without torch reads other pixels for {name}; nothing is written")
            if not np.abs(found.probabilities - expected).max() <= MAX_DIFFERENCE:
                raise UserError(f"refused: a process without torch answers differently for {name}; nothing is written")
            ratios = {
                f"times_pytorch_{size}": times[name][f"images_per_s_{size}"] / times["pytorch"][f"images_per_s_{size}"]
                for size in (1, BATCH)
            }
            self.figures[name] |= {
                "runtime": exported.runtime,
                "precision": exported.precision,
                "file_mb": Path(exported.path).stat().st_size / 1e6,
                "sha256": exported.sha256,
                "load_s": found.load_seconds,
                "memory_mb": found.memory_mb,
                **times[name],
                **ratios,
            }
        self.figures["pytorch"] = {**self.metrics_before(), "precision": "fp32", **times["pytorch"]}
        return {
            name: float(np.mean([self.figures[name][f"times_pytorch_{size}"] for size in (1, BATCH)]))
            for name in self.exported
        }

    def metrics_before(self) -> dict[str, Any]:
        """The metrics of the network in PyTorch, at temperature 1, on the images of the certificate."""
        labels = self.data.labels(self.test.samples).numpy()
        before = self.before
        if self.temperature != 1:
            before = probabilities_of(in_pytorch(self.model, 1.0), self.test, "PyTorch, fp32")
        return metrics_of(before, labels, self.model.class_names, self.test.split)
