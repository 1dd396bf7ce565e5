"""Random changes of training images that move their boxes: zoom, crop, flip and colours."""

import math

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

FILL = (124, 116, 104)  # ImageNet's mean colour, which is zero after normalization
VISIBLE = 0.3  # share of a box that must be left by a crop, or else the box is left out
TRIES = 10
CROP_SIDES = (0.55, 1.0)  # of the part that is cropped: 0.3 to 1 of the area
CROP_RATIO = 4 / 3
SMALLEST = 1.0  # pixels of a box's sides


class RandomView(v2.Transform):
    """Look at a random part of an image, or at an image from afar, on a canvas of the mean colour.

    The result has another size; detectors scale every image to the size that they see, so that a part becomes larger
    and an image on a canvas smaller. Boxes are clipped; those of which too little is left are dropped with their
    labels. If none would be left of those that there are, another part is tried, and after some the image is unchanged.

    Args:
        sides: Smallest and largest side of what is seen, as a share of the image's; above 1 there is a margin.
        ratio: Largest factor by which the proportions of what is seen differ from the image's.
        p: Probability of doing anything.
    """

    def __init__(self, sides: tuple[float, float], ratio: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.sides, self.ratio, self.p = sides, ratio, p

    def forward(
        self, image: tv_tensors.Image, target: dict[str, torch.Tensor]
    ) -> tuple[tv_tensors.Image, dict[str, torch.Tensor]]:
        if torch.rand(()).item() >= self.p:
            return image, target
        boxes = target["boxes"]
        for _ in range(TRIES):
            top, left, height, width = self.choose(*image.shape[-2:])
            moved = F.crop(boxes, top, left, height, width)
            kept = area(moved) >= VISIBLE * area(boxes)
            if kept.any() or not len(kept):
                break
        else:
            return image, target
        changed = {**target, "boxes": tv_tensors.wrap(moved[kept], like=moved), "labels": target["labels"][kept]}
        return on_canvas(image, top, left, height, width), changed

    def choose(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is seen, in pixels."""
        side, form, y, x = torch.rand(4).tolist()
        low, high = self.sides
        side = low + (high - low) * side
        stretch = math.exp((2 * form - 1) * math.log(self.ratio) / 2)
        # No longer than the image unless there are to be margins
        new_height = max(round(height * min(side * stretch, max(high, 1.0))), 1)
        new_width = max(round(width * min(side / stretch, max(high, 1.0))), 1)
        return round(y * (height - new_height)), round(x * (width - new_width)), new_height, new_width


def area(boxes: torch.Tensor) -> torch.Tensor:
    """Areas of boxes `(n, 4)`, in square pixels, `(n,)`."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def on_canvas(image: tv_tensors.Image, top: int, left: int, height: int, width: int) -> tv_tensors.Image:
    """The part of an image from `top` and `left`, which are negative where the canvas begins beyond the image."""
    bottom, right = top + height - image.shape[-2], left + width - image.shape[-1]
    margins = [max(-left, 0), max(-top, 0), max(right, 0), max(bottom, 0)]
    if any(margins):
        image = F.pad(image, margins, fill=list(FILL))
    return F.crop(image, max(top, 0), max(left, 0), height, width)


def train_transform(scale_jitter: float, crop: float, flip: float, colour: float) -> v2.Compose:
    """From an image and its target, as tv_tensors, to changed ones; see `BoxData` for the options."""
    steps: list[torch.nn.Module] = []
    if scale_jitter:
        steps.append(RandomView((1 - scale_jitter, 1 + scale_jitter)))
    if crop:
        steps.append(RandomView(CROP_SIDES, CROP_RATIO, p=crop))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if colour:
        steps.append(v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour))
    return v2.Compose([*steps, v2.SanitizeBoundingBoxes(min_size=SMALLEST)])
