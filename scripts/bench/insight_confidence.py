"""What a trained model says of its own confidence, checked on its test images and on images of another kind.

    pip install -e '.[bench]'
    python scripts/train.py --name mine
    python scripts/bench/insight_confidence.py lightning_logs/mine --foreign food=DIR

Prints, for each run, how many test images `predict.py --unsure` answers and how many of these answers are right, and
for each folder of foreign images how well they are told from the test images: the area under the ROC curve (AUROC) of
the column `unlike`, beside that of the maximum probability. 0.5 is chance.
"""

import argparse
import csv
import random
import sys
import tempfile
from pathlib import Path

from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from project.listing import find_images  # noqa: E402
from project.metrics import wilson_interval  # noqa: E402
from scripts import predict  # noqa: E402

MOST = 2000  # foreign images


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def predicted(run: Path, images: list[str], promise: float, folder: str) -> list[dict[str, str]]:
    """The rows that `predict.py` writes."""
    output = Path(folder) / "predictions.csv"
    options = [f"--ckpt={run / 'checkpoints/best.ckpt'}", f"--unsure={promise}", f"--output={output}", "--top_k=1"]
    predict.main([*options, *images])
    return rows_of(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--promise", type=float, default=0.95)
    parser.add_argument("--foreign", action="append", default=[], metavar="NAME=DIR")
    args = parser.parse_args()
    print("| run | test images | top-1 | answered | of these right (95 % interval) |")
    print("|---|---|---|---|---|")
    told = []
    for run in args.runs:
        truth = {row["path"]: row["label"] for row in rows_of(run / "predictions.csv") if row["split"] == "test"}
        with tempfile.TemporaryDirectory() as folder:
            rows = predicted(run, list(truth), args.promise, folder)
            right = [row["label"] == truth[row["path"]] for row in rows]
            answers = [good for row, good in zip(rows, right, strict=True) if row["unsure"] == "no"]
            low, high = wilson_interval(sum(answers), len(answers))
            share = sum(answers) / max(1, len(answers))
            print(
                f"| {run.name} | {len(rows)} | {sum(right) / len(rows):.3f} | {len(answers)} | "
                f"{share:.3f} ({low:.3f} to {high:.3f}) |",
                flush=True,
            )
            for given in args.foreign:
                name, place = given.split("=", 1)
                files = find_images([place])
                files = files if len(files) <= MOST else random.Random(0).sample(files, MOST)
                both = rows + predicted(run, files, args.promise, folder)
                foreign = [False] * len(rows) + [True] * len(files)
                unlike = roc_auc_score(foreign, [float(row["unlike"]) for row in both])
                unsure = roc_auc_score(foreign, [-float(row["probability"]) for row in both])
                told.append(f"| {run.name} | {name}, {len(files)} | {unlike:.3f} | {unsure:.3f} |")
    print("\n| run | foreign images | AUROC of `unlike` | of the maximum probability |")
    print("|---|---|---|---|")
    print("\n".join(told))


if __name__ == "__main__":
    main()
