"""Find image files in folders, and say what is passed over."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from project import UserError, first_few

log = logging.getLogger(__name__)

HEIF = (".heic", ".heif")  # photos of phones, for which Pillow needs a plugin
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *(HEIF if find_spec("pillow_heif") else ()),
)
JUNK = (".", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")


def expanded(path: str) -> str:
    """The path with `~` replaced by the home folder, which a shell does not do in `--data.root=~/photos`."""
    return path if os.path.lexists(path) else os.path.expanduser(path)


def check_there(root: str) -> None:
    """Reject a `--data.root` that does not exist. Raises `UserError`."""
    if not os.path.exists(expanded(root)):
        raise UserError(f"--data.root {root}: no such folder or file")


def folder_of(root: str) -> str:
    """The folder in which the images are: `root` itself, or that of the manifest."""
    return root if os.path.isdir(root) else os.path.dirname(os.path.abspath(root))


def is_junk(name: str) -> bool:
    """Whether a file is hidden or left by an operating system: `.DS_Store`, `._photo.jpg`, `__MACOSX`, `@eaDir`."""
    return name.startswith(JUNK)


def list_images(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """All image files below a folder, sorted; links are followed, and each folder is visited once.

    Returns:
        The paths, and how many other files were passed over, by extension.

    Raises:
        UserError: A folder may not be read, or a pipe, socket or device is named like an image.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        if (real := os.path.realpath(parent)) in seen:  # a link to a parent folder would list its images again
            continue
        seen.add(real)
        folders = []
        for entry in entries(parent):
            if is_folder(entry):
                folders.append(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                if not entry.is_file(follow_symlinks=False):
                    check_regular(entry.path)
                images.append(entry.path)
            else:
                others[os.path.splitext(entry.name)[1].lower() or "without extension"] += 1
        waiting += reversed(folders)
    return images, others


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without junk. Raises `UserError` if it may not be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not is_junk(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); allow it, or move the folder away") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def check_regular(path: str) -> None:
    """Refuse pipes, sockets and devices, which reading may never end. Raises `UserError`."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: not a file, but a pipe, a socket or a device")


def passed_over(others: Counter[str]) -> str:
    """What `list_images` has passed over, in words."""
    kinds = first_few([f"{count} {extension}" for extension, count in others.most_common()])
    heif = "; to read HEIC: pip install -e '.[heif]'" if any(others[extension] for extension in HEIF) else ""
    return f"passed over {kinds}, which are not supported images{heif}"


def subfolders(folder: str | Path) -> list[str]:
    """Sorted names of the subfolders of a folder, without junk. Raises `UserError`."""
    return [entry.name for entry in entries(folder) if is_folder(entry)]


def has_images(folder: str) -> bool:
    """Whether there are images in the folder itself, not only in its subfolders."""
    return any(images_in(folder))


def count_images(folder: str) -> int:
    """The number of images in the folder itself, without its subfolders."""
    return sum(1 for _ in images_in(folder))


def images_in(folder: str) -> Iterator[str]:
    """Names of the images in the folder itself."""
    names = (entry.name for entry in entries(folder) if not is_folder(entry))
    return (name for name in names if name.lower().endswith(EXTENSIONS))


def class_folders(folder: str) -> list[str]:
    """Names of the subfolders in which images lie; none if the folder cannot be read."""
    try:
        return [name for name in subfolders(folder) if has_images(os.path.join(folder, name))]
    except UserError:
        return []


def find_images(given: list[str]) -> list[str]:
    """The given files and the images in the given folders, logging what is passed over. Raises `UserError`."""
    paths = []
    for path in map(expanded, given):
        check_regular(path)
        images, others = list_images(path) if os.path.isdir(path) else ([path], Counter())
        paths += images
        if others:
            log.warning(f"{path}: {passed_over(others)}")
    if not paths:
        raise UserError(f"no images under {', '.join(given)}")
    return paths
