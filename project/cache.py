"""Results that later runs can reuse: which images have been checked, and the features of frozen backbones.

Everything is kept in `$XDG_CACHE_HOME/finetune-resnet` (`~/.cache/finetune-resnet`), which may be deleted at any time.
A failure of the cache costs time but never fails a run: each file has a checksum, and a damaged one is not used.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from project.files import one_at_a_time, whole

log = logging.getLogger(__name__)

MAX_CHECKED = 10_000_000  # files, at 8 bytes each
MAX_FEATURE_BYTES = 10 * 2**30  # the least recently used files are removed first


def cache_folder() -> Path:
    """The cache folder; it may not exist yet. Raises `OSError` if there is no home directory to have it in."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-resnet"
    except RuntimeError as error:  # HOME is not set, and the user is not in the list of users
        raise FileNotFoundError("no home directory") from error


@contextmanager
def first_come() -> Iterator[None]:
    """What is made for the cache in the `with` block is made by the first of the processes that start together.

    The others wait for it: of eight processes on one file system, seven find the images checked, the weights there.
    """
    try:
        path = cache_folder() / "busy.lock"
    except OSError:  # then nothing can be kept for the others
        yield
        return
    with one_at_a_time(path):
        yield


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
    return _short_hash(text + os.fsencode(os.path.abspath(path)))


def lasting_fingerprints(samples: Iterable[tuple[str, str]], folder: str) -> Tensor:
    """One number per sample, int64 `(N,)`, that stays the same when the folder is moved or copied.

    It is a hash of the path below the folder, the class and the size.
    """
    prefix = os.path.join(folder, "")

    def one(sample: tuple[str, str]) -> int:
        path, label = sample
        size = os.path.getsize(path) if os.path.exists(path) else -1
        return _short_hash(os.fsencode(f"{size} {label}\0{path.removeprefix(prefix)}"))

    return torch.from_numpy(np.fromiter(map(one, samples), dtype=np.uint64).view(np.int64))


def _short_hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def load_checked() -> np.ndarray:
    """Fingerprints of the files that have been decoded without error, uint64 `(N,)`."""
    known = _load("checked")
    fits = known is not None and known.ndim == 1 and known.dtype == torch.int64
    return known.numpy().view(np.uint64) if known is not None and fits else np.empty(0, np.uint64)


def save_checked(good: np.ndarray) -> None:
    """Add fingerprints, uint64 `(N,)`, to those that `load_checked` returns."""
    known = np.concatenate([load_checked(), good])[-MAX_CHECKED:]
    with suppress(OSError):
        _save("checked", torch.from_numpy(known.view(np.int64)))
        (cache_folder() / "checked.npy").unlink(missing_ok=True)  # what older versions kept it in, without a checksum


def load_features(key: str, shape: tuple[int, int]) -> Tensor | None:
    """The features that `save_features` stored under this key, if there are any of this shape, `(N, F)`."""
    features = _load(f"features-{key}")
    if features is None or features.shape != shape or not features.is_floating_point():
        return None
    with suppress(OSError):
        os.utime(_path(f"features-{key}"))  # mark as recently used
    return features


def save_features(key: str, features: Tensor) -> None:
    """Store features `(N, F)`, removing the least recently used ones if there is no room."""
    size = features.numel() * features.element_size()
    if size > MAX_FEATURE_BYTES or not features.isfinite().all():
        return
    with suppress(OSError):  # no space or no permission: do without the cache
        # Drafts that a kill has left are counted and removed like whole files.
        kept = {path: path.stat() for path in cache_folder().glob("*features-*")}
        total = size + sum(state.st_size for state in kept.values())
        for path in sorted(kept, key=lambda path: kept[path].st_mtime):
            if total > MAX_FEATURE_BYTES:
                path.unlink(missing_ok=True)
                total -= kept[path].st_size
        _save(f"features-{key}", features)


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.safetensors"


def _checksum(name: str, tensor: Tensor) -> str:
    digest = blake2b(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(name: str, tensor: Tensor) -> None:
    """Write a tensor in full or not at all, with a checksum. Raises `OSError`."""
    tensor = tensor.contiguous()
    with whole(_path(name), durable=True) as file:
        file.write(safetensors.torch.save({"tensor": tensor}, metadata={"checksum": _checksum(name, tensor)}))


def _load(name: str) -> Tensor | None:
    """What `_save` has written under this name; None if it is missing or, with a warning, if it is damaged."""
    try:
        path = _path(name)
        path.open("rb").close()
    except OSError:  # missing, no permission, or no home directory: do without the cache
        return None
    with suppress(Exception), safe_open(path, framework="pt") as file:  # it raises many types
        tensor = file.get_tensor("tensor")
        if (file.metadata() or {})["checksum"] == _checksum(name, tensor):
            return tensor
    log.warning(f"{path}: not used, since it is damaged or of an older version; it is computed again")
    return None
