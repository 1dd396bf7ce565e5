"""Wrong labels: what is reported on clean and on spoiled labels, beside cleanlab; prints tables in Markdown.

    pip install -e '.[bench]'
    python scripts/bench/insight_labels.py sample=project/sample/fashion-mnist@64 photos=DIR@128 --cache FOLDER

The features are those of the head start, of the built-in weights; they are kept in the cache folder. cleanlab gets what
its tutorial computes: 5-fold out-of-fold probabilities of a logistic regression, here with the best of some strengths.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from project import PACKAGE, imports  # noqa: F401, as Lightning needs the latter
from project.insight.labels import REPORTED, doubtful_labels

WEIGHTS = str(PACKAGE / "sample/resnet18-tiny-imagenet.safetensors")
PAIRS = [("t-shirt", "shirt"), ("pullover", "coat"), ("sneaker", "ankle-boot"), ("dress", "trouser"), ("bag", "sandal")]
SETTINGS = {
    "prune_by_noise_rate": "self_confidence",
    "both": "normalized_margin",
    "confident_learning": "normalized_margin",
    "low_normalized_margin": "normalized_margin",
}
SEEDS = 3


def features_of(name: str, root: str, size: int, cache: Path) -> dict[str, np.ndarray]:
    """Features and labels of all splits, under `train`, `train-labels` and so on, and the classes."""
    path = cache / f"{name}.npz"
    if path.exists():
        return dict(np.load(path))
    from lightning.pytorch import Trainer

    from project.backbones import make_net
    from project.classification.data import ImageData
    from project.classification.features import compute_features
    from project.classification.head_start import adapt_norms, norm_samples
    from project.classification.model import ResNetClassifier
    from project.weights import preprocessing_for

    data = ImageData(preprocessing_for("resnet18", WEIGHTS), root=root, image_size=size, batch_size=64, num_workers=1)
    net = make_net("resnet18", WEIGHTS, size)
    model = ResNetClassifier(data.class_names, data.preprocessing, None, net, None, arch="resnet18", weights=WEIGHTS)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    adapt_norms(trainer, model, data, norm_samples(data.samples["train"], 64))
    found = {"classes": np.array(data.class_names)}
    for split, samples in data.samples.items():
        found[split] = compute_features(trainer, model, data, samples).float().numpy()
        found[f"{split}-labels"] = data.labels(samples).numpy()
    np.savez(path, allow_pickle=False, **found)
    return found


def flipped(labels: np.ndarray, share: float, seed: int, classes: list[str], confusable: bool = False) -> np.ndarray:
    """The labels, of which a share is replaced by any other class, or by the one that looks most alike."""
    generator = np.random.default_rng(seed)
    other = {classes.index(a): classes.index(b) for pair in PAIRS for a, b in (pair, pair[::-1]) if a in classes}
    some = generator.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    for i in some:
        step = generator.integers(1, len(classes))
        changed[i] = other[int(labels[i])] if confusable else (labels[i] + step) % len(classes)
    return changed


def average_precision(score: np.ndarray, wrong: np.ndarray) -> float:
    order = wrong[np.argsort(-score, kind="stable")]
    return float((np.cumsum(order) / np.arange(1, len(order) + 1))[order].mean()) if wrong.any() else np.nan


def out_of_fold(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities for cleanlab: of the strength with the least out-of-fold loss."""
    best = (np.inf, np.empty(0))
    for strength in (0.001, 0.003, 0.01, 0.03) if len(labels) < 3000 else (0.003,):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
        found = cross_val_predict(probe, features, labels, cv=5, method="predict_proba")
        loss = -np.log(found[np.arange(len(labels)), labels]).mean()
        best = min(best, (loss, found), key=lambda pair: pair[0])
    return best[1]


def test_loss(data: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """The test loss of a head that is fitted on these labels as the head start does it."""
    from project.linear_head import fit_head

    x, vx, tx = (torch.from_numpy(data[split]) for split in ("train", "val", "test"))
    vy, ty = (torch.from_numpy(data[f"{split}-labels"]) for split in ("val", "test"))
    weight, bias, _ = fit_head(x, torch.from_numpy(labels), vx, vy, len(data["classes"]))
    return torch.nn.functional.cross_entropy(tx @ weight.T + bias, ty).item()


def add_row(
    rows: dict[str, list[list[float]]],
    data: dict[str, np.ndarray],
    given: np.ndarray,
    name: str,
    reported: np.ndarray,
    rank: np.ndarray,
    expected: float,
    seconds: float,
) -> None:
    """Add what a method has found in the given labels, and the test loss once the wrong ones of these are corrected."""
    wrong = given != data["train-labels"]
    found = reported & wrong
    row = [reported.sum(), found.sum() / max(1, reported.sum()), found.sum() / max(1, wrong.sum())]
    loss = test_loss(data, np.where(found, data["train-labels"], given))
    row += [expected / max(1, found.sum()), average_precision(rank, wrong), loss, seconds]
    rows.setdefault(name, []).append([float(cell) for cell in row])


def compare(data: dict[str, np.ndarray], noise: list[tuple[str, float, bool]]) -> None:
    """Print a row for each kind of noise and each method: means over the seeds."""
    features, labels, classes = data["train"], data["train-labels"], list(data["classes"])
    print("| noise | method | reported | precision | recall | expected / true | AP | test loss | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for title, share, confusable in noise:
        rows: dict[str, list[list[float]]] = {}
        for seed in range(SEEDS if share else 1):
            given = flipped(labels, share, seed, classes, confusable)
            wrong = given != labels

            start = time.process_time()
            doubts = doubtful_labels(features, given, len(classes))
            reported = doubts.wrong > REPORTED
            expected = doubts.wrong[reported].sum()
            add = partial(add_row, rows, data, given)
            add("ours", reported, doubts.wrong, expected, time.process_time() - start)
            nothing = np.zeros(len(labels))
            add("(as it is)", nothing > 0, nothing, np.nan, 0)
            add("(all corrected)", wrong, nothing, np.nan, 0)
            start = time.process_time()
            chances = out_of_fold(features, given)
            seconds = time.process_time() - start
            for setting, rank in SETTINGS.items():
                issues = find_label_issues(given, chances, filter_by=setting)
                score = -get_label_quality_scores(given, chances, method=rank)
                add(f"cleanlab {setting}", issues, score, np.nan, seconds)
        for name, cells in rows.items():
            mean = np.mean(cells, axis=0)
            shown = [f"{mean[0]:.0f}", *(f"{cell:.3f}" for cell in mean[1:6]), f"{mean[6]:.2f}"]
            print(f"| {title} | {name} | {' | '.join(shown)} |".replace("nan", "-"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=ROOT@SIZE")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--peer", action="store_true", help="the table with cleanlab, too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    print("| all splits together | images | noise | reported | precision | recall | expected / true | AP | rate | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    read = {}
    for text in args.data:
        name, place = text.split("=", 1)
        root, size = place.rsplit("@", 1)
        read[name] = data = features_of(name, root, int(size), args.cache)
        splits = [split for split in ("train", "val", "test") if split in data]
        features = np.concatenate([data[split] for split in splits])
        labels = np.concatenate([data[f"{split}-labels"] for split in splits])
        classes = list(data["classes"])
        for share in (0, 0.01, 0.05, 0.1, 0.2):
            cells = []
            for seed in range(SEEDS if share else 1):
                given = flipped(labels, share, seed, classes)
                wrong, start = given != labels, time.process_time()
                doubts = doubtful_labels(features, given, len(classes))
                seconds, reported = time.process_time() - start, doubts.wrong > REPORTED
                found = (reported & wrong).sum()
                ratios = [found / max(1, reported.sum()), found / max(1, wrong.sum())]
                ratios += [doubts.wrong[reported].sum() / max(1, found), average_precision(doubts.wrong, wrong)]
                cells.append([reported.sum(), *ratios, doubts.rate, seconds])
            mean = np.mean(cells, axis=0)
            shown = " | ".join(f"{cell:.3f}" for cell in mean[1:6])
            print(f"| {name} | {len(labels):,} | {share:.0%} | {mean[0]:.0f} | {shown} | {mean[6]:.2f} |", flush=True)
    noise = [("none", 0.0, False), ("1 %", 0.01, False), ("5 %", 0.05, False), ("10 %", 0.1, False)]
    noise += [("20 %", 0.2, False), ("confusable 5 %", 0.05, True)]
    for name, data in read.items():
        if args.peer:
            print(f"\n{name}, the {len(data['train']):,} training images\n")
            pairs = {label for pair in PAIRS for label in pair}
            compare(data, noise if pairs == set(data["classes"]) else noise[:1])


if __name__ == "__main__":
    main()
