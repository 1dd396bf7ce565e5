"""How far the fine details of two images agree once one is laid on the other as well as possible. Imports no torch.

First roughly, at half the size: windows of one image against the whole of the other and against its middle, plain and
mirrored. From the best of these an affine map is fitted, step by step, so that crops, shifts and small turns match.
"""

from typing import NamedTuple

import numpy as np

from project.insight import SIDE

SMOOTH = 0.5  # pixels of blur, so that an image sampled anew still agrees
BLUR = 4.0  # pixels: details are what this blur takes away
SPREAD = 2.0  # pixels over which the contrast is made even: an outline would hide what is inside it
NOISE = 10.0  # grey levels: contrast well below this stays low
FLAT = 0.15  # root mean square of details, below which there are none: of 1.5 grey levels
SMALL = SIDE // 2
SIZES = {1.0: 1, 0.9: 3, 0.8: 5}  # of windows, as a share of the side, and how many positions they have on each axis
MIDDLE = 0.9  # side of the middle, which is compared with windows, too: they are shifts of it
ROUNDS = 6  # in which a map is fitted
OVERLAP = 0.6  # of the thumbnail's area, at least
IMAGES = 256  # whose windows are held at once
PAIRS = 64  # whose maps are fitted at once: what they need stays in the processor's cache
SCALE = 300  # of rough details as int8


class Rough(NamedTuple):
    """The best rough match of P pairs.

    Attributes:
        level: Correlation of details at half the size, float32 `(P,)`.
        side: Which of the two has the window, int8 `(P,)` of 0 and 1.
        place: Which template of the other one fits which window: template * windows + window, int16 `(P,)`.
    """

    level: np.ndarray
    side: np.ndarray
    place: np.ndarray


def _blur(width: float) -> np.ndarray:
    """Weights of a Gaussian blur of rows or columns, `(SIDE, SIDE)`."""
    distance = np.arange(SIDE)[:, None] - np.arange(SIDE)
    weights = np.exp(-0.5 * (distance / width) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _sampler(size: float, offset: float) -> np.ndarray:
    """Weights that sample `SMALL` pixels from a window of a row, `(SMALL, SIDE)`."""
    at = np.clip((offset + (np.arange(SMALL) + 0.5) / SMALL * size) * SIDE - 0.5, 0, SIDE - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(SIDE)) * SMALL / SIDE, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _grid(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Every `step`-th pixel on both axes: places in the flat thumbnail, and x, y (-1 to 1) and 1, float32 `(3, n)`."""
    line = np.arange(step // 2, SIDE, step)
    y, x = (axis.ravel() for axis in np.meshgrid(line, line, indexing="ij"))
    unit = np.stack([x, y]) * (2 / SIDE) + 1 / SIDE - 1
    return y * SIDE + x, np.concatenate([unit, np.ones((1, len(x)))]).astype(np.float32)


BLURS = _blur(SMOOTH), _blur(BLUR), _blur(SPREAD)
LINES = np.array([(size, k * (1 - size) / max(n - 1, 1)) for size, n in SIZES.items() for k in range(n)])
SAMPLERS = np.stack([_sampler(*line) for line in LINES])
# Rows and columns of each window, as indices into LINES
WINDOWS = np.array([(y, x) for y, a in enumerate(LINES) for x, b in enumerate(LINES) if a[0] == b[0]])
TEMPLATES = _sampler(1.0, 0.0), _sampler(MIDDLE, (1 - MIDDLE) / 2)
FINE, COARSE = _grid(1), _grid(2)


def details(grey: np.ndarray) -> np.ndarray:
    """What a blur takes away from thumbnails, at even contrast: float32 `(N, SIDE, SIDE)`.

    Args:
        grey: uint8 `(N, SIDE, SIDE)`.
    """
    smooth, blur, spread = BLURS
    images = smooth @ grey.astype(np.float32) @ smooth.T
    images -= blur @ images @ blur.T
    return images / np.sqrt(spread @ images**2 @ spread.T + NOISE**2)


def _unit(parts: np.ndarray) -> np.ndarray:
    """Vectors `(…, D)` with mean 0 and length 1, or 0 if there are no details."""
    parts = parts - parts.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(parts, axis=-1, keepdims=True)
    return parts / np.where(length > FLAT * parts.shape[-1] ** 0.5, length, np.inf)


def match(grey: np.ndarray, pairs: np.ndarray) -> Rough:
    """Match pairs roughly, with windows of either image.

    Args:
        grey: Thumbnails, uint8 `(N, SIDE, SIDE)`.
        pairs: int64 `(P, 2)`.
    """
    small = np.empty((len(grey), len(TEMPLATES), SMALL, SMALL), np.int8)
    for start in range(0, len(grey), IMAGES):
        images = details(grey[start : start + IMAGES])
        parts = np.stack([lines @ images @ lines.T for lines in TEMPLATES], axis=1).reshape(len(images), -1, SMALL**2)
        part = np.clip(np.rint(_unit(parts) * SCALE), -127, 127)
        small[start : start + IMAGES] = part.reshape(-1, len(TEMPLATES), SMALL, SMALL)
    owner, other = pairs.T.astype(np.int32).ravel(), pairs[:, ::-1].T.astype(np.int32).ravel()
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(grey) + 1))
    level, best = np.zeros(len(owner), np.float32), np.zeros(len(owner), np.int16)
    for first in range(0, len(grey), IMAGES):
        if starts[first] < starts[min(first + IMAGES, len(grey))]:
            for number, windows in enumerate(_windows(grey[first : first + IMAGES]), start=first):
                mine = order[starts[number] : starts[number + 1]]
                theirs = small[other[mine]].astype(np.float32)
                theirs = np.concatenate([theirs, theirs[..., ::-1]], axis=1).reshape(-1, SMALL**2)
                found = (theirs @ windows.T).reshape(len(mine), -1)
                best[mine], level[mine] = found.argmax(axis=1), found.max(axis=1) / SCALE
    both = level.reshape(2, -1)
    side = both.argmax(axis=0).astype(np.int8)
    of_first, of_second = best.reshape(2, -1)
    return Rough(both.max(axis=0), side, np.where(side == 0, of_first, of_second))


def _windows(grey: np.ndarray) -> np.ndarray:
    """The details in all windows of thumbnails, each of length 1: float32 `(N, W, SMALL * SMALL)`."""
    rows = SAMPLERS @ details(grey)[:, None]  # (N, lines, SMALL, SIDE)
    parts = np.stack([rows[:, y] @ SAMPLERS[x].T for y, x in WINDOWS], axis=1)
    return _unit(parts.reshape(len(grey), len(WINDOWS), SMALL**2))


def _maps(template: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Maps that lay a template (0: the whole, 1: the middle), int64 `(P,)`, on a window, `(P, 2)`.

    A map `(2, 3)` turns x and y, between -1 and 1, and 1 into x and y in pixels.
    """
    size, offset = LINES[window].transpose(2, 0, 1)  # each (P, 2): of rows, of columns
    maps = np.zeros((len(template), 2, 3), np.float32)
    for axis, line in ((0, 1), (1, 0)):  # x are columns
        maps[:, axis, axis] = size[:, line] / np.where(template == 1, MIDDLE, 1) * SIDE / 2
        maps[:, axis, 2] = (offset[:, line] + size[:, line] / 2) * SIDE - 0.5
    return maps


def agreement(grey: np.ndarray, pairs: np.ndarray, rough: Rough) -> np.ndarray:
    """How far the details of pairs agree where they overlap, from -1 to 1: float32 `(P,)`.

    Args:
        grey: Thumbnails, uint8 `(N, SIDE, SIDE)`.
        pairs: int64 `(P, 2)`.
        rough: Where to start from.
    """
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS):
        part = slice(start, start + PAIRS)
        row, side = np.arange(len(pairs[part])), rough.side[part]
        image, other = (details(grey[pairs[part][row, which]]) for which in (side, 1 - side))
        template, window = np.divmod(rough.place[part].astype(np.int64), len(WINDOWS))
        mirrored, template = np.divmod(template, len(TEMPLATES))
        other = np.where(mirrored[:, None, None] == 1, other[..., ::-1], other)
        maps = _maps(template, WINDOWS[window])
        result[part] = _fitted(image.reshape(len(row), -1), other.reshape(len(row), -1), maps)
    return result


def _fitted(image: np.ndarray, other: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Fit maps by Gauss-Newton, and return the best correlation: details `(P, SIDE * SIDE)`, maps `(P, 2, 3)`."""
    places, grid = COARSE
    wanted, best, best_maps = other[:, places], np.full(len(image), -1, np.float32), maps
    system = np.empty((len(image), 8, len(places)), np.float32)
    for _ in range(ROUNDS):
        values, by_x, by_y, inside = _sampled(image, maps, grid)
        found = _correlation(values, wanted, inside)
        best_maps = np.where((found > best)[:, None, None], maps, best_maps)
        best = np.maximum(found, best)
        # The other image as this one, times a gain, plus a constant, plus what a change of the map would change
        system[:, :3], system[:, 3:6] = (by_x * inside)[:, None] * grid, (by_y * inside)[:, None] * grid
        system[:, 6], system[:, 7] = values * inside, inside
        squares = system @ system.transpose(0, 2, 1)
        ridge = 1e-3 * np.trace(squares, axis1=1, axis2=2) / 8 + 1e-6
        squares += np.eye(8, dtype=np.float32) * ridge[:, None, None]
        solution = np.linalg.solve(squares, system @ (wanted * inside)[..., None])[..., 0]
        change = solution[:, :6] / np.where(solution[:, 6:7] > 0.1, solution[:, 6:7], np.inf)
        maps = maps + np.clip(change, -1, 1).reshape(-1, 2, 3)
    fits = (_sampled(image, final, FINE[1]) for final in (best_maps, maps))
    return np.max([_correlation(values, other, inside) for values, _, _, inside in fits], axis=0)


def _sampled(image: np.ndarray, maps: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values, their changes by x and by y, and which are inside (1 or 0), each `(P, n)`, where the maps put a grid."""
    at = maps @ grid
    inside = ((at >= 0) & (at <= SIDE - 1)).all(axis=1).astype(np.float32)
    at = np.clip(at, 0, SIDE - 1.001)
    whole = at.astype(np.int32)
    x, y = (at - whole).transpose(1, 0, 2)
    place = whole[:, 1] * SIDE + whole[:, 0] + np.arange(len(image), dtype=np.int32)[:, None] * SIDE**2
    flat = image.ravel()
    first, right, low, low_right = (flat[place + step] for step in (0, 1, SIDE, SIDE + 1))
    upper, lower = first + x * (right - first), low + x * (low_right - low)
    by_x = (1 - y) * (right - first) + y * (low_right - low)
    return upper + y * (lower - upper), by_x, lower - upper, inside


def _correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Correlation of values `(P, n)` where `inside` is 1; 0 where that is too little, or one has no details there."""
    count = inside.sum(axis=1)
    a, b = ((v - (v * inside).sum(axis=1, keepdims=True) / np.maximum(count, 1)[:, None]) * inside for v in (a, b))
    squares = np.einsum("pn,pn->p", a, a), np.einsum("pn,pn->p", b, b)
    enough = (count >= OVERLAP * a.shape[1]) & (np.minimum(*squares) > FLAT**2 * count)
    return np.where(enough, np.einsum("pn,pn->p", a, b) / np.sqrt(np.maximum(squares[0] * squares[1], 1e-12)), 0)
