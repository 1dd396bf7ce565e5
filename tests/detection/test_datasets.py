import numpy as np
import pytest
import torch
from box_files import save
from PIL import Image

from project.decoding import BadImage
from project.detection.datasets import Album, BoxDataset, read_image, scaled
from project.detection.transforms import train_transform


def make(folder, count=3, **options) -> BoxDataset:
    paths = [str(folder / f"{i}.png") for i in range(count)]
    for i in range(count):
        save(folder / f"{i}.png")
    boxes = [torch.tensor([[1.0, 2, 30, 40]] * i).reshape(-1, 4) for i in range(count)]
    labels = [torch.arange(i) for i in range(count)]
    return BoxDataset(paths, boxes, labels, **{"max_size": 1000, "kept": {}, **options})


def test_images_are_read_as_they_are_and_scaled_down_if_they_are_large(tmp_path):
    save(tmp_path / "a.png")
    image, factors = read_image(str(tmp_path / "a.png"), 100)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    assert torch.equal(image, expected) and factors == (1, 1)
    image, factors = read_image(str(tmp_path / "a.png"), 33)
    assert image.shape == (3, 25, 33) and factors == (33 / 80, 25 / 60)
    assert scaled(10_000, 10, 100) == (100, 1)


def test_each_image_gets_its_own_boxes(tmp_path):
    dataset = make(tmp_path)
    found = [dataset[(i, 0)] for i in range(3)]
    for i, item in enumerate(found):
        assert item is not None
        assert len(item[1]["boxes"]) == i and item[1]["labels"].tolist() == list(range(i))
        assert item[1]["image_id"].item() == i


def test_the_seed_alone_decides_what_is_random(tmp_path):
    dataset = make(tmp_path, transform=train_transform(0.3, 0.5, 0.5, 0.5))
    first = [dataset[(2, seed)] for seed in range(4)]
    again = [dataset[(2, seed)] for seed in reversed(range(4))][::-1]
    for one, other in zip(first, again, strict=True):
        assert one is not None and other is not None
        assert torch.equal(one[0], other[0]) and torch.equal(one[1]["boxes"], other[1]["boxes"])
    assert len({tuple(one[0].shape) for one in first if one}) > 1


def test_kept_images_stay_as_they_are(tmp_path):
    kept = {str(tmp_path / "0.png"): (torch.zeros(3, 60, 80, dtype=torch.uint8), (1.0, 1.0))}
    item = make(tmp_path, kept=kept)[(0, 0)]
    assert item is not None
    item[0].add_(1)
    assert kept[str(tmp_path / "0.png")][0].sum() == 0


def test_an_album_holds_what_can_be_read_in_one_tensor(tmp_path):
    sizes = {}
    for i in range(4):
        save(tmp_path / f"{i}.png", (40 + i, 30))
        sizes[str(tmp_path / f"{i}.png")] = (40 + i, 30)
    (tmp_path / "1.png").write_bytes(b"")
    save(tmp_path / "2.png", (10, 10))  # changed since its size was read
    album = Album(sizes, 41)
    for path in sizes:
        album.read(path)
    assert list(album) == [str(tmp_path / "0.png"), str(tmp_path / "3.png")]
    for path in album:
        image, factors = read_image(path, 41)
        assert torch.equal(album[path][0], image) and album[path][1] == factors
    assert len({image.untyped_storage().data_ptr() for image, _ in album.values()}) == 1


def test_without_a_readable_image_the_error_says_so(tmp_path):
    dataset = make(tmp_path, transform=train_transform(0, 0, 0, 0), skip_bad=True)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(BadImage, match="none of the 3 images can be read any more"):
        dataset[(1, 0)]
