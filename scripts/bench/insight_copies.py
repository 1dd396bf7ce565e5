"""How many planted copies and give-away properties are found, and what else is reported, beside cleanvision and pHash.

python scripts/bench/insight_copies.py --data shared/data --weights resnet18-tiny-imagenet.safetensors
"""

import argparse
import random
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from project.classification.datasets import eval_reader
from project.classification.model import ResNetClassifier
from project.images import load_image
from project.insight.copies import find_copies
from project.insight.cues import find_cues
from project.insight.glances import glance, hashes_of
from project.preprocessing import Preprocessing
from project.weights import preprocessing_for


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after it was saved as a JPEG."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    """Twice this share of the sides is cut off, at random more on one side than on the other."""
    width, height = image.size
    x, y = round(2 * share * width), round(2 * share * height)
    left, top = rng.randint(0, x), rng.randint(0, y)
    return image.crop((left, top, left + width - x, top + height - y))


def burst(image: Image.Image, rng: random.Random) -> Image.Image:
    """The same scene a moment later: turned, shifted and darker, saved as JPEG."""
    width, height = image.size
    angle, x, y = rng.choice((-2, 2)), rng.choice((-1, 1)) * 0.03 * width, rng.choice((-1, 1)) * 0.03 * height
    corner = image.getpixel((0, 0))
    turned = image.rotate(angle, Image.Resampling.BICUBIC, translate=(round(x), round(y)), fillcolor=corner)
    return jpeg(ImageEnhance.Brightness(turned).enhance(0.9), 75)


KINDS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "exact": lambda image, rng: image,
    "JPEG 40": lambda image, rng: jpeg(image, 40),
    "resize 0.8": lambda image, rng: image.resize(
        (max(round(image.width * 0.8), 1), max(round(image.height * 0.8), 1))
    ),
    "crop 5 %": lambda image, rng: cropped(image, 0.05, rng),
    "crop 10 %": lambda image, rng: cropped(image, 0.1, rng),
    "mirror": lambda image, rng: ImageOps.mirror(image),
    "brightness 1.3": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "burst": burst,
    "mirror, crop 8 %, JPEG 50": lambda image, rng: jpeg(cropped(ImageOps.mirror(image), 0.08, rng), 50),
}


def plant(paths: Sequence[str], each: int, folder: Path, seed: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Write copies of every kind of some images: paths, whose copy each is (index into `paths`), and its kind."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names, origin, kinds = [], [], []
    chosen = rng.sample(range(len(paths)), each * len(KINDS))
    for number, i in enumerate(chosen):
        kind = list(KINDS)[number % len(KINDS)]
        path = folder / f"copy-{number:04d}.png"
        if kind == "exact":
            path = path.with_suffix(Path(paths[i]).suffix)
            path.write_bytes(Path(paths[i]).read_bytes())
        else:
            KINDS[kind](load_image(paths[i]), rng).save(path)
        names.append(str(path))
        origin.append(i)
        kinds.append(kind)
    return names, np.array(origin), kinds


@torch.no_grad()
def features_of(paths: Sequence[str], weights: str, size: int) -> np.ndarray:
    """Features of a frozen resnet18 at this image size, float32 `(N, 512)`."""
    torch.set_num_threads(1)
    preprocessing: Preprocessing = {
        **preprocessing_for("resnet18", weights),
        "resize_size": size,
        "crop_size": size,
    }
    model = ResNetClassifier(["a", "b"], preprocessing, arch="resnet18", weights=weights).eval()
    read = eval_reader(preprocessing)
    blocks = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    return np.concatenate([model.features(torch.stack([read(p) for p in block])).float().numpy() for block in blocks])


def cells(folder: Path, target: Path) -> list[str]:
    """Cut blood cells out of their boxes: three classes, `target/<class>/*.png`."""
    paths = []
    for xml in sorted((folder / "Annotations").glob("*.xml")):
        image = load_image(folder / "JPEGImages" / f"{xml.stem}.jpg")
        for i, box in enumerate(ET.parse(xml).getroot().iter("object")):
            left, top, right, bottom = (
                int(float(box.findtext(f"bndbox/{side}", "0"))) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if min(right - left, bottom - top) < 20:
                continue
            path = target / box.findtext("name", "") / f"{xml.stem}-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((left, top, right, bottom)).save(path)
            paths.append(str(path))
    return paths


def at_most(pairs: np.ndarray, level: np.ndarray, truth: set[tuple[int, int]], false: int) -> float:
    """Recall of a ranking of pairs before it holds more than so many false ones."""
    right = np.array([tuple(pair) in truth for pair in pairs[np.argsort(-level, kind="stable")].tolist()])
    return right[np.cumsum(~right) <= false].sum() / len(truth)


def by_hash(paths: list[str], truth: set[tuple[int, int]], false: int) -> tuple[float, float]:
    """Recall of pHash at so many false pairs: the package imagehash, and our own with the mirrored hash."""
    import imagehash

    theirs = np.array([imagehash.phash(load_image(path)).hash.ravel() for path in paths]).astype(np.int8) * 2 - 1
    ours, mirrored = hashes_of(glance(paths).grey)
    i, j = np.triu_indices(len(paths), 1)
    pairs = np.stack([i, j], axis=1)
    plain = (theirs.astype(np.float32) @ theirs.T.astype(np.float32))[i, j]
    both = np.maximum(*(ours.astype(np.float32) @ other.T.astype(np.float32) for other in (ours, mirrored)))[i, j]
    # Pairs at the same distance are reported together, so the false ones come first
    order = np.lexsort((np.array([(a, b) in truth for a, b in pairs.tolist()]),))
    return tuple(at_most(pairs[order], level[order], truth, false) for level in (plain, both))  # type: ignore[return-value]


def by_cleanvision(paths: list[str], truth: set[tuple[int, int]]) -> tuple[float, int]:
    """Recall and false pairs of cleanvision's exact and near duplicates."""
    from cleanvision import Imagelab

    lab = Imagelab(filepaths=paths)
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
    place = {path: i for i, path in enumerate(paths)}
    found = set()
    for kind in ("exact_duplicates", "near_duplicates"):
        for group in lab.info[kind]["sets"]:
            members = sorted(place[path] for path in group)
            found |= {(a, b) for a in members for b in members if a < b}
    return len(found & truth) / len(truth), len(found - truth)


def show_planted(name: str, paths: list[str], each: int, args: argparse.Namespace, size: int, folder: Path) -> None:
    """A row: copies of ten kinds among images."""
    copies, origin, kinds = plant(paths, each, folder / f"copies-{name}", args.seed)
    everything = paths + copies
    truth = {(int(a), len(paths) + i) for i, a in enumerate(origin)}
    start = time.perf_counter()
    glances = glance(everything)
    looked = time.perf_counter()
    features = features_of(everything, args.weights, size)
    computed = time.perf_counter()
    found = find_copies(glances, features)
    end = time.perf_counter()
    pairs = set(map(tuple, found.pairs.tolist()))
    without = set(map(tuple, find_copies(glances, None).pairs.tolist()))
    by_kind = {
        kind: sum((int(a), len(paths) + i) in pairs for i, a in enumerate(origin) if kinds[i] == kind) / each
        for kind in KINDS
    }
    less = ", ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items() if value < 1)
    cells = [
        f"{name}: {len(paths)} + {len(copies)}",
        f"recall {len(pairs & truth) / len(truth):.3f}, others {len(pairs - truth)}",
        f"hashes alone: {len(without & truth) / len(truth):.3f}, {len(without - truth)}",
        f"{looked - start:.1f} + {end - computed:.1f} s",
        less or "all kinds 1.00",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    if args.sheets:
        rest = [
            (pair, score)
            for pair, score in zip(found.pairs.tolist(), found.score, strict=True)
            if tuple(pair) not in truth
        ]
        sheet(
            [(everything[a], everything[b], f"{score:.3f}") for (a, b), score in sorted(rest, key=lambda r: r[1])],
            Path(args.sheets) / f"{name}-{args.seed}.png",
        )
    if args.peers and len(everything) < 5000:
        plain, both = by_hash(everything, truth, 2)
        recall, false = by_cleanvision(everything, truth)
        pair_of_hashes = f"pHash at 2 false {plain:.3f}, with mirrored {both:.3f}"
        print(f"| {name}, peers | {pair_of_hashes} | cleanvision {recall:.3f}, {false} false | | |", flush=True)


def sheet(rows: list[tuple[str, str, str]], target: Path, side: int = 64, columns: int = 10) -> None:
    """A contact sheet of pairs, to be judged by eye."""
    whole = Image.new("RGB", (columns * (2 * side + 12), max(-(-len(rows) // columns), 1) * (side + 14)), "white")
    for number, (a, b, text) in enumerate(rows):
        x, y = number % columns * (2 * side + 12), number // columns * (side + 14)
        for i, path in enumerate((a, b)):
            whole.paste(load_image(path).resize((side, side)), (x + i * (side + 1), y))
        ImageDraw.Draw(whole).text((x, y + side), text, fill="black")
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.save(target)


def framed(image: Image.Image) -> Image.Image:
    """With a red border of one pixel in 32."""
    result = ImageOps.expand(image.crop((0, 0, image.width, image.height)), 0)
    ImageDraw.Draw(result).rectangle(
        (0, 0, image.width - 1, image.height - 1), outline=(220, 20, 20), width=max(min(image.size) // 32, 1)
    )
    return result


CUES: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict]] = {
    "another format": ("WEBP", lambda image: image, {}),
    "red border": ("PNG", framed, {}),
    "half brightness": ("PNG", lambda image: ImageEnhance.Brightness(image).enhance(0.5), {}),
    "other size": ("PNG", lambda image: image.resize((image.width + 8, image.height + 8)), {}),
    "JPEG quality 30": ("JPEG", lambda image: image, {"quality": 30}),
}


def show_cues(name: str, paths: list[str], share: float, folder: Path) -> None:
    """A row: properties planted on a share of one class; the others are saved alike."""
    names = sorted({Path(path).parent.name for path in paths})
    labels = np.array([names.index(Path(path).parent.name) for path in paths])
    found = []
    rng = random.Random(0)
    for cue, (kind, change, options) in CUES.items():
        plain = "JPEG" if cue == "JPEG quality 30" else "PNG"
        target, changed = folder / f"cue-{name}-{cue}-{share}", []
        target.mkdir(parents=True)
        for i, path in enumerate(paths):
            planted = labels[i] == 1 and rng.random() < share
            image = load_image(path)
            image = change(image) if planted else image
            changed.append(str(target / f"{i}.img"))
            image.save(
                changed[-1],
                kind if planted else plain,
                **(options if planted else {"quality": 90} if plain == "JPEG" else {}),
            )
        cues = find_cues(glance(changed).properties, labels, names)
        right = [c for c in cues if c.label == 1 or len(names) == 2]
        found.append(
            f"{cue}: {right[0].sentence if right else 'MISSED'}"
            + (f" (+{len(cues) - len(right)})" if len(cues) > len(right) else "")
        )
    print(f"| cues, {name}, {share:.0%} | {'; '.join(found)} |", flush=True)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", help="a folder for contact sheets of the other pairs that were reported")
    parser.add_argument("--peers", action="store_true", help="cleanvision and imagehash, too")
    parser.add_argument("--rows", nargs="*", default=["photos", "sample", "cells", "cifar", "untouched", "cues"])
    args = parser.parse_args()

    def files(pattern: str) -> list[str]:
        return sorted(map(str, args.data.glob(pattern)))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = {
            "photos": (files("photos/*/*"), 12, 128),
            "sample": (files("fashion-mnist-sample/train/*/*"), 20, 64),
            "cells": (
                cells(args.data / "bccd", folder / "cells") if {"cells", "untouched"} & {*args.rows} else [],
                20,
                64,
            ),
            "cifar": (files("cifar10-jpeg/*/*/*"), 15, 64),
        }
        for which in [row for row in sets if row in args.rows]:
            paths, each, size = sets[which]
            show_planted(which, paths, each, args, size, folder)
        if "untouched" in args.rows:
            for which, (paths, *_) in sets.items():
                names = sorted({Path(path).parent.name for path in paths})
                cues = find_cues(
                    glance(paths).properties, np.array([names.index(Path(p).parent.name) for p in paths]), names
                )
                print(f"| untouched {which}: {len(paths)} | cues {[cue.sentence for cue in cues]} |", flush=True)
        if "cues" in args.rows:
            for share in (1.0, 0.8):
                for which in ("photos", "sample"):
                    show_cues(which, sets[which][0], share, folder)
                show_cues("cifar test", files("cifar10-jpeg/test/*/*"), share, folder)


if __name__ == "__main__":
    main()
