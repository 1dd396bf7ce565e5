"""Results that later runs can reuse: which images have been checked, and the features of frozen backbones.

Everything is kept in `$XDG_CACHE_HOME/finetune-resnet` (`~/.cache/finetune-resnet`), which may be deleted at any time.
A failure of the cache costs time but never fails a run.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor

from project.files import whole

MAX_CHECKED = 10_000_000  # files, at 8 bytes each
MAX_FEATURE_BYTES = 10 * 2**30  # the least recently used files are removed first


def cache_folder() -> Path:
    """The cache folder; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-resnet"


def fingerprints(paths: Iterable[str]) -> np.ndarray:
    """One number per file that changes whenever the file does: uint64 `(N,)`.

    It is a hash of the path, the size, and the times of the last change of content and inode (mtime, ctime). No program
    can change a file and keep all of these, and looking them up is a thousand times faster than reading the file.
    """
    return np.fromiter(map(_fingerprint, paths), dtype=np.uint64)


def _fingerprint(path: str) -> int:
    try:
        state = os.stat(path)
        text = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} ".encode()
    except OSError:
        text = b"missing "
    return int.from_bytes(blake2b(text + os.fsencode(os.path.abspath(path)), digest_size=8).digest(), "little")


def load_checked() -> np.ndarray:
    """Fingerprints of the files that have been decoded without error, uint64 `(N,)`."""
    try:
        known = np.load(cache_folder() / "checked.npy", allow_pickle=False)
        return known if known.dtype == np.uint64 and known.ndim == 1 else np.empty(0, np.uint64)
    except (OSError, ValueError, EOFError):
        return np.empty(0, np.uint64)


def save_checked(good: np.ndarray) -> None:
    """Add fingerprints, uint64 `(N,)`, to those that `load_checked` returns."""
    known = np.concatenate([load_checked(), good])[-MAX_CHECKED:]
    with suppress(OSError), whole(cache_folder() / "checked.npy") as file:
        np.save(file, known)


def load_features(key: str) -> Tensor | None:
    """The features `(N, F)` that `save_features` stored under this key, or None."""
    path = cache_folder() / f"features-{key}.safetensors"
    try:
        features = safetensors.torch.load_file(path)["features"]
        os.utime(path)  # mark as recently used
        return features
    except Exception:  # missing, or damaged in any way: compute them again
        return None


def save_features(key: str, features: Tensor) -> None:
    """Store features `(N, F)`, removing the least recently used ones if there is no room."""
    size = features.numel() * features.element_size()
    if size > MAX_FEATURE_BYTES:
        return
    with suppress(OSError):  # no space or no permission: do without the cache
        kept = {path: path.stat() for path in cache_folder().glob("features-*.safetensors")}
        total = size + sum(state.st_size for state in kept.values())
        for path in sorted(kept, key=lambda path: kept[path].st_mtime):
            if total > MAX_FEATURE_BYTES:
                path.unlink(missing_ok=True)
                total -= kept[path].st_size
        with whole(cache_folder() / f"features-{key}.safetensors") as file:
            file.write(safetensors.torch.save({"features": features.contiguous()}))
