"""Find image files in folders, and say what is passed over."""

import os
from collections import Counter
from pathlib import Path

from project import first_few

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def is_junk(name: str) -> bool:
    """Whether a file is hidden or left by an operating system: `.DS_Store`, `._photo.jpg`, `__MACOSX`, `@eaDir`."""
    return name.startswith((".", "__MACOSX", "@eaDir"))


def list_images(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """All image files below a folder, sorted; links are followed, and each folder is visited once.

    Returns:
        The paths, and how many other files were passed over, by extension.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link to a parent folder would list its images again
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for name in sorted(files):
            if is_junk(name):
                continue
            if name.lower().endswith(EXTENSIONS):
                images.append(os.path.join(parent, name))
            else:
                others[os.path.splitext(name)[1].lower() or name] += 1
    return images, others


def passed_over(others: Counter[str]) -> str:
    """What `list_images` has passed over, in words."""
    kinds = first_few([f"{count} {extension}" for extension, count in others.most_common()])
    return f"passed over {kinds}, which are not supported images"
