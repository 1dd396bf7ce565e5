"""Decode every new image once, before the actual work starts, to find broken files."""

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from project import first_few
from project.cache import fingerprints, first_come, load_checked, save_checked
from project.decoding import BadImage
from project.images import try_out
from project.progress import shown
from project.splits import Samples

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_UNASKED_CHECKS = 100_000  # files: under two minutes at a thousand per second
MAX_KEPT_BYTES = 2**30  # of decoded images: 7,000 of them at 224 pixels


def drop_bad_images(
    samples: dict[str, Samples],
    policy: str,
    check: bool | None,
    read: Callable[[str], Any],
    image_bytes: int | None,
) -> tuple[dict[str, Samples], dict[str, Tensor]]:
    """Decode all files that have not been decoded before, and leave out the broken ones.

    Args:
        samples: Samples by split.
        policy: `error` stops with a list of the broken files, `skip` leaves them out with a warning.
        check: Whether to check at all; None checks only if there are at most `MAX_UNASKED_CHECKS` new files.
        read: Returns the decoded image, given its path.
        image_bytes: Size in bytes of what `read` returns; None to keep no image.

    Returns:
        The remaining samples, and by path the images that `read` returned, which need not be decoded again; no images
        if they would take more than `MAX_KEPT_BYTES`.

    Raises:
        BadImage: There are broken files, and the policy is `error`.
    """
    if check is False:
        return samples, {}
    paths = [path for split in samples.values() for path, _ in split]
    prints = fingerprints(paths)
    num_new = int((~np.isin(prints, load_checked())).sum())
    if check is None and num_new > MAX_UNASKED_CHECKS:
        log.warning(f"{num_new:,} new files are too many to be checked without being asked (--data.check true)")
        return samples, {}
    with first_come() if num_new else nullcontext():
        decoded, bad = decode_new(paths, prints, read, image_bytes)
    if not bad:
        return samples, decoded
    tell(bad, len(paths), policy)
    left = {split: [sample for sample in listed if sample[0] not in bad] for split, listed in samples.items()}
    return left, decoded


def decode_new(
    paths: list[str], prints: np.ndarray, read: Callable[[str], Any], image_bytes: int | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Decode the files that no process has decoded before, and record those that can be.

    Args:
        paths: All files.
        prints: Their fingerprints.
        read: As for `drop_bad_images`.
        image_bytes: As for `drop_bad_images`.

    Returns:
        What `read` returned, if it is to be kept, and the reason for each file that cannot be decoded, both by path.
    """
    new = ~np.isin(prints, load_checked())
    unseen = [path for path, is_new in zip(paths, new, strict=True) if is_new]
    decoded: dict[str, Tensor] = {}
    if image_bytes is not None and len(unseen) * image_bytes <= MAX_KEPT_BYTES:
        decoded, bad = decode(unseen, read)
    else:
        _, bad = decode(unseen, try_out)
    if unseen:
        save_checked(prints[new & np.array([path not in bad for path in paths])])
    return decoded, bad


def tell(bad: dict[str, str], num_images: int, policy: str) -> None:
    """Report which of `num_images` images cannot be used, and why. Raises `BadImage` if the policy is `error`."""
    listing = first_few([f"{path}: {reason}" for path, reason in bad.items()])
    if policy == "error":
        raise BadImage(
            f"{len(bad)} of {num_images} images cannot be used "
            f"(fix or remove them, or leave them out with --data.bad_images skip): {listing}"
        )
    log.warning(f"{len(bad)} images cannot be used and are left out: {listing}")


def decode(paths: Iterable[str], read: Callable[[str], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Read files in threads (Pillow releases the GIL), with a progress bar.

    Returns:
        What `read` returned, and the reason for each file that cannot be decoded, both by path.
    """
    decoded: dict[str, T] = {}
    bad: dict[str, str] = {}

    def try_to_read(path: str) -> None:
        try:
            decoded[path] = read(path)
        except BadImage as error:
            bad[path] = str(error).removeprefix(f"{path}: ")

    paths = list(paths)
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for _ in shown(pool.map(try_to_read, paths), "Checking images", len(paths)):
            pass
    return decoded, bad
