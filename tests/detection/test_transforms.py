import pytest
import torch
from torchvision import tv_tensors

from project.detection.transforms import FILL, VISIBLE, RandomView, area, on_canvas, train_transform


def sample(boxes=((10, 5, 50, 45), (60, 20, 80, 60))):
    """An image that is black but for its boxes, each of another grey, with them as target."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    for i, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = 100 * (i + 1)
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": tv_tensors.BoundingBoxes(found, format="XYXY", canvas_size=(60, 80)),
        "labels": torch.arange(len(boxes)),
    }
    return tv_tensors.Image(image), target


def test_a_flip_moves_boxes_to_the_other_side():
    _, target = train_transform(0, 0, 1.0, 0)(*sample())
    assert target["boxes"].tolist() == [[30, 5, 70, 45], [0, 20, 20, 60]] and target["labels"].tolist() == [0, 1]


class Given(RandomView):
    def __init__(self, *view: int) -> None:
        super().__init__((1, 1))
        self.view = view

    def choose(self, height, width):
        return self.view


def test_a_crop_shifts_and_clips_boxes_and_drops_those_of_which_too_little_is_left():
    image, target = Given(10, 20, 40, 45)(*sample())  # top, left, height, width
    assert image.shape == (3, 40, 45)
    assert target["boxes"].tolist() == [[0, 0, 30, 35]] and target["labels"].tolist() == [
        0
    ]  # of the other, 5 x 30 / 800
    image, target = Given(10, 20, 40, 50)(*sample())  # of the other, 10 x 30 / 800 = 0.375
    assert target["boxes"].tolist() == [[0, 0, 30, 35], [40, 10, 50, 40]]
    assert (image[:, 10:40, 40:50] == 200).all() and (image[:, :35, :30] == 100).all()


def test_an_image_seen_from_afar_lies_on_the_mean_colour():
    image, target = Given(-20, -10, 120, 100)(*sample())
    assert image.shape == (3, 120, 100) and image[:, 0, 0].tolist() == list(FILL)
    assert target["boxes"].tolist() == [[20, 25, 60, 65], [70, 40, 90, 80]]
    assert (image[:, 25:65, 20:60] == 100).all()


def test_a_part_and_a_margin_at_the_same_time():
    image, _ = sample()
    seen = on_canvas(image, -5, 30, 30, 60)  # 10 columns beyond the right edge
    assert seen.shape == (3, 30, 60)
    assert torch.equal(seen[:, 5:, :50], image[:, :25, 30:]) and seen[:, 29, 59].tolist() == list(FILL)


def test_no_crop_loses_all_boxes_or_leaves_one_of_which_little_is_seen():
    torch.manual_seed(0)
    crop = RandomView((0.2, 0.4), 4 / 3)
    boxes = ((0, 0, 4, 4), (70, 50, 80, 60))
    sizes = set()
    for _ in range(200):
        image, target = crop(*sample(boxes))
        sizes.add(tuple(image.shape[-2:]))
        assert len(target["boxes"]) == len(target["labels"]) > 0
        whole = area(torch.tensor(boxes).float())[target["labels"]]
        assert (area(target["boxes"]) >= VISIBLE * whole).all()
        for (left, top, right, bottom), label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            assert (image[:, top:bottom, left:right] == 100 * (label + 1)).all()
    assert len(sizes) > 20


def test_negatives_are_cropped_too():
    image, target = RandomView((0.5, 0.6))(*sample(()))
    assert image.shape[-1] < 80 and target["boxes"].shape == (0, 4)


def test_views_keep_within_their_limits():
    torch.manual_seed(0)
    for _ in range(200):
        top, left, height, width = RandomView((0.55, 1.0), 4 / 3).choose(60, 80)
        assert 0 <= top <= 60 - height and 0 <= left <= 80 - width
        assert min(height / 60, width / 80) >= 0.9 * 0.55 * 0.86 and 0.7 <= (height / 60) / (width / 80) <= 1.4
        top, left, height, width = RandomView((0.8, 1.2)).choose(60, 80)
        assert 48 <= height <= 72 and min(0, 60 - height) <= top <= max(0, 60 - height)


def test_the_same_seed_gives_the_same_and_colours_leave_boxes_alone():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(train_transform(0.2, 0.5, 0.5, 0.3)(*sample()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][0].shape != results[2][0].shape or not torch.equal(results[0][0], results[2][0])
    image, target = train_transform(0, 0, 0, 0.5)(*sample())
    assert target["boxes"].tolist() == sample()[1]["boxes"].tolist() and image.dtype == torch.uint8


def test_everything_off_changes_nothing():
    image, target = train_transform(0, 0, 0, 0)(*sample())
    assert torch.equal(image, sample()[0]) and target["boxes"].tolist() == sample()[1]["boxes"].tolist()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_probability_of_a_crop(p):
    torch.manual_seed(0)
    sizes = {tuple(RandomView((0.5, 0.7), p=p)(*sample())[0].shape) for _ in range(20)}
    assert (sizes == {(3, 60, 80)}) == (p == 0)
