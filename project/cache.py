"""What later runs need not do again: checked images and the features of frozen backbones.

All of it lies in one folder, `$XDG_CACHE_HOME/finetune-resnet` (`~/.cache/finetune-resnet`), which may be deleted at
any time. Whatever goes wrong with it costs time, never a run.
"""

import os
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor

MAX_CHECKED = 10_000_000  # files, of 8 bytes each
MAX_FEATURE_BYTES = 10 * 2**30  # the longest unused go first


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-resnet"


def stamps(paths: Iterable[str]) -> np.ndarray:
    """One number for each file that changes when the file does, uint64 `(N,)`.

    It is made of the path, size, and times of the last change of content and of inode: no program can change a file and
    keep them all, and to ask for them is a thousand times faster than to read the file.
    """
    return np.fromiter(map(_stamp, paths), dtype=np.uint64)


def _stamp(path: str) -> int:
    try:
        state = os.stat(path)
        text = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} ".encode()
    except OSError:
        text = b"missing "
    return int.from_bytes(blake2b(text + os.fsencode(os.path.abspath(path)), digest_size=8).digest(), "little")


def load_checked() -> np.ndarray:
    """The stamps of the files that were decoded without error."""
    try:
        known = np.load(cache_folder() / "checked.npy", allow_pickle=False)
        return known if known.dtype == np.uint64 and known.ndim == 1 else np.empty(0, np.uint64)
    except (OSError, ValueError, EOFError):
        return np.empty(0, np.uint64)


def save_checked(good: np.ndarray) -> None:
    known = np.concatenate([load_checked(), good])[-MAX_CHECKED:]

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, known)

    _replace(cache_folder() / "checked.npy", write)


def load_features(key: str) -> Tensor | None:
    """What `save_features` kept under this key, or None."""
    path = cache_folder() / f"features-{key}.safetensors"
    try:
        features = safetensors.torch.load_file(path)["features"]
        os.utime(path)  # used just now
        return features
    except Exception:  # absent, or damaged in one of many ways: both are a reason to compute them again
        return None


def save_features(key: str, features: Tensor) -> None:
    """Keep features of shape `(N, F)`, and make room for them."""
    size = features.numel() * features.element_size()
    if size > MAX_FEATURE_BYTES:
        return
    try:
        kept = {path: path.stat() for path in cache_folder().glob("features-*.safetensors")}
        total = size + sum(state.st_size for state in kept.values())
        for path in sorted(kept, key=lambda path: kept[path].st_mtime):
            if total > MAX_FEATURE_BYTES:
                path.unlink(missing_ok=True)
                total -= kept[path].st_size
    except OSError:
        return
    _replace(
        cache_folder() / f"features-{key}.safetensors",
        lambda path: safetensors.torch.save_file({"features": features.contiguous()}, path),
    )


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file in full or not at all, whoever else writes it or is stopped meanwhile."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        os.replace(draft, path)
    except (OSError, safetensors.SafetensorError):  # no space, no permission: then without
        draft.unlink(missing_ok=True) if draft.parent.is_dir() else None
