"""Boxes through the data module: every format gives the same, the same in any process, and what is bad is named."""

import json
import logging
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from box_files import SIZE, SPLITS, WRITERS, save, voc_text, write_coco, write_voc, write_yolo
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from pycocotools.coco import COCO

from project import PACKAGE, UserError
from project.detection.data import BoxData
from project.detection.datasets import collate

SAMPLE = PACKAGE / "sample/bccd"


def load(root: Path, class_names=None, **options) -> BoxData:
    return BoxData(class_names, root=str(root), **{"num_workers": 0, "batch_size": 2, **options})


def boxes_by_name(data: BoxData) -> dict[str, dict[str, list]]:
    found: dict[str, dict[str, list]] = {}
    for split, samples in data.samples.items():
        for path, _ in samples:
            target = data.target(path)
            names = [data.class_names[i] for i in target["labels"]]
            found.setdefault(split, {})[Path(path).name] = list(
                zip(names, [tuple(box) for box in target["boxes"].tolist()], strict=True)
            )
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_boxes_and_splits(tmp_path, name):
    data = load(WRITERS[name](tmp_path / "data"))
    found = boxes_by_name(data)
    assert {split: set(images) for split, images in found.items()} == {s: set(i) for s, i in SPLITS.items()}
    for split, images in SPLITS.items():
        for file, boxes in images.items():
            assert [label for label, _ in found[split][file]] == [label for label, _ in boxes]
            for (_, box), (_, expected) in zip(found[split][file], boxes, strict=True):
                assert box == pytest.approx(expected, abs=1e-4)
    assert data.class_names == (["cat", "dog"] if name == "Pascal VOC" else ["dog", "cat"])
    line = data.describe()
    assert f": {name}; 2 classes; 4 train images with 4 boxes, 1 without any; 1 val images with 2 boxes" in line


def test_coco_written_from_voc_gives_the_same_loaders(tmp_path):
    voc, coco = load(write_voc(tmp_path / "voc")), load(write_coco(tmp_path / "coco"))
    assert boxes_by_name(voc) == boxes_by_name(coco)
    for (images, targets), (others, their) in zip(voc.val_dataloader(), coco.val_dataloader(), strict=True):
        assert all(map(torch.equal, images, others))
        assert [t["boxes"].tolist() for t in targets] == [t["boxes"].tolist() for t in their]


def test_the_sample_is_read_as_pycocotools_reads_it():
    data = load(SAMPLE)
    assert data.class_names == ["Platelets", "RBC", "WBC"]
    assert [len(samples) for samples in data.samples.values()] == [100, 30, 30]
    for split, samples in data.samples.items():
        theirs = COCO(SAMPLE / f"annotations/instances_{split}.json")
        by_name = {image["file_name"]: image["id"] for image in theirs.dataset["images"]}
        for path, _ in samples:
            expected = theirs.loadAnns(theirs.getAnnIds(by_name[Path(path).name]))
            target = data.target(path)
            corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in expected)]
            assert target["boxes"].tolist() == corners
            assert (target["labels"] + 1).tolist() == [a["category_id"] for a in expected]


def test_pascal_voc_files_are_read_as_elementtree_reads_them(tmp_path):
    root = write_voc(tmp_path / "data")
    data = load(root)
    for path in (root / "Annotations").glob("*.xml"):
        [image] = (root / "JPEGImages").glob(f"{path.stem}.*")
        boxes = [[float(edge.text or "") for edge in box] for box in ET.parse(path).iter("bndbox")]
        assert data.target(str(image))["boxes"].tolist() == boxes


def test_batches_are_lists_of_images_with_their_boxes(tmp_path):
    data = load(write_coco(tmp_path / "data"))
    [(images, targets)] = data.test_dataloader()
    assert [image.shape for image in images] == [(3, 60, 80)] * 2 and images[0].dtype == torch.uint8
    assert targets[1]["boxes"].tolist() == [[16, 4, 60, 40]] and targets[1]["boxes"].dtype == torch.float32
    assert targets[1]["labels"].tolist() == [1] and targets[1]["labels"].dtype == torch.int64
    assert [target["image_id"].item() for target in targets] == [0, 1]
    assert all(type(part) is torch.Tensor for target in targets for part in (*images, *target.values()))


def test_images_above_the_largest_size_are_scaled_with_their_boxes(tmp_path):
    root = write_coco(tmp_path / "data")
    data = load(root, max_size=40)
    [(images, targets)] = data.test_dataloader()
    assert images[0].shape == (3, 30, 40) and targets[0]["boxes"].tolist() == [[4, 4, 24, 14]]
    assert data.target(data.samples["test"][0][0])["boxes"].tolist() == [[8, 8, 48, 28]]


def test_the_same_batches_from_any_number_of_workers_and_after_an_interruption(tmp_path):
    root = write_coco(tmp_path / "data")

    def batches(workers: int, resumed: int = 0) -> list:
        data = load(root, num_workers=workers, batch_size=1, colour=0.5)
        data.load_state_dict({"epoch": 0, "batches_done": resumed, "images_a_step": 1})
        return [(images[0], targets[0]) for images, targets in data.train_dataloader()]

    whole = batches(0)
    assert len(whole) == 4
    for other, first in ((batches(2), 0), (batches(0, resumed=2), 2)):
        for (image, target), (expected, their) in zip(other, whole[first:], strict=True):
            assert torch.equal(image, expected)
            assert all(torch.equal(target[name], their[name]) for name in their)


class Watcher(LightningModule):
    """Learns nothing, and keeps what it sees of each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[float, ...]] = []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        boxes = torch.cat([target["boxes"] for target in targets])
        noise = torch.rand(()).item()  # as of dropout
        self.seen.append((noise, sum(image.float().sum().item() for image in images), boxes.sum().item()))
        return self.weight * noise

    def validation_step(self, batch, batch_idx):
        assert len(batch[0]) == len(batch[1]) == 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_resumed_run_sees_the_steps_of_one_that_was_not_interrupted(tmp_path):
    root = write_coco(tmp_path / "data")
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def run(ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
        trainer = Trainer(**quiet, use_distributed_sampler=False, max_epochs=3, callbacks=[keep])
        watcher = Watcher()
        trainer.fit(watcher, datamodule=load(root, batch_size=1, num_workers=1), ckpt_path=ckpt_path, weights_only=True)
        return watcher.seen

    whole = run()
    assert len(set(whole)) == 12
    assert run(tmp_path / "step=6.ckpt") == whole[6:]


def test_padding_is_left_out_of_batches(tmp_path):
    data = load(write_coco(tmp_path / "data"))
    dataset = data.dataset("test", {})
    images, targets = collate([dataset[(0, 0)], dataset[(-1, 0)]])
    assert len(images) == len(targets) == 1
    assert collate([dataset[(-1, 0)]]) == ([], [])


def test_a_changed_box_changes_the_fingerprint_of_its_image_and_a_moved_folder_none(tmp_path):
    root = write_voc(tmp_path / "data")
    before = load(root).fingerprints["train"]
    root = root.rename(tmp_path / "moved")
    assert torch.equal(load(root).fingerprints["train"], before)
    (root / "Annotations/b.xml").write_text(voc_text("b.png", [("dog", (0, 0, 20, 31))]))
    after = load(root).fingerprints["train"]
    assert (after != before).tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", ["data", "data/data.yaml"])
def test_fingerprints_are_the_same_from_any_working_directory(tmp_path, monkeypatch, name):
    root = write_yolo(tmp_path / "data")
    (root / "images/train").rename(tmp_path / "elsewhere")
    (root / "labels/train").rename(tmp_path / "labels")
    for path in (tmp_path / "labels").iterdir():
        path.rename(tmp_path / "elsewhere" / path.name)
    (root / "data.yaml").write_text("train: ../elsewhere\nval: images/val\nnames: [dog, cat]")
    expected = load(tmp_path / name).fingerprints
    monkeypatch.chdir((tmp_path / name).parent)
    found = load(Path(Path(name).name)).fingerprints
    assert all(torch.equal(found[split], expected[split]) for split in expected)


def test_a_file_in_the_working_directory_can_be_named(tmp_path, monkeypatch):
    root = write_coco(tmp_path, {"all": SPLITS["train"]})
    (root / "annotations/instances_all.json").rename(root / "boxes.json")
    monkeypatch.chdir(tmp_path)
    assert len(load(Path("boxes.json"), ["dog", "cat"]).samples["all"]) == 4


def test_a_model_s_classes_keep_their_order_and_the_data_may_lack_some(tmp_path):
    root = write_voc(tmp_path / "data")
    data = load(root, ["bird", "dog", "cat"])
    assert data.target(str(root / "JPEGImages/a.png"))["labels"].tolist() == [2, 1]
    with pytest.raises(UserError, match=r"a\.xml, line 3: class 'dog', which the model does not have"):
        load(root, ["cat"])
    data = load(root, ["cat"], bad_boxes="skip")
    assert data.target(str(root / "JPEGImages/a.png"))["labels"].tolist() == [0]


def test_splits_that_are_not_given_are_drawn_the_same_each_time_with_every_class_in_each(tmp_path):
    images = {f"{i}.png": [("cat" if i % 4 else "dog", (1, 2, 30, 40))] for i in range(24)}
    root = write_coco(tmp_path / "data", {"all": images})
    (root / "annotations/instances_all.json").rename(root / "boxes.json")
    data = load(root / "boxes.json")
    assert data.samples == load(root / "boxes.json").samples
    assert data.samples != load(root / "boxes.json", split_seed=1).samples
    for samples in data.samples.values():
        assert {text for _, text in samples} == {"1 dog", "1 cat"}
    assert "(no splits given: drew 15% for val and 15% for test)" in data.describe()
    evaluated = load(root / "boxes.json", ["dog", "cat"])
    assert evaluated.samples.keys() == {"all"}
    evaluated.choose_test_split("test")
    assert evaluated.samples == data.samples
    evaluated.choose_test_split("all")
    assert len(evaluated.dataset("all", {})) == 24 and "24 all images with 24 boxes" in evaluated.describe()


def test_a_missing_split_is_refused_and_without_test_val_is_tested(tmp_path, caplog):
    data = load(write_coco(tmp_path / "data", {s: i for s, i in SPLITS.items() if s != "test"}))
    assert data.test_split == "val"
    data.choose_test_split("test")
    assert data.test_split == "val" and "There is no test split" in caplog.text
    with pytest.raises(UserError, match="no training images, only 'test'"):
        load(write_coco(tmp_path / "other", {"test": SPLITS["test"]}))


def test_missing_and_broken_images_are_listed_with_the_file_that_names_them_or_skipped(tmp_path, caplog):
    root = write_coco(tmp_path / "data")
    (root / "train/a.png").unlink()
    (root / "train/d.png").write_bytes((root / "train/d.png").read_bytes()[:500])
    with pytest.raises(UserError, match=r"a\.png: no such file \(named in .*instances_train\.json, images\[0\]\)"):
        load(root)
    unchecked = load(root, bad_images="skip", bad_boxes="skip", check=False)
    assert [Path(path).name for path, _ in unchecked.samples["train"]] == ["b.png", "c.png", "d.png"]
    data = load(root, bad_images="skip", bad_boxes="skip")
    assert [Path(path).name for path, _ in data.samples["train"]] == ["b.png", "c.png"]
    assert "d.png" in caplog.text and data.class_names == ["dog"]
    assert "class 'cat', which the training split does not have" in caplog.text


def test_a_file_that_breaks_later_is_replaced_in_training_and_left_out_in_evaluation(tmp_path, caplog):
    data = load(write_coco(tmp_path / "data"), bad_images="skip")
    for split in ("train", "test"):
        Path(data.samples[split][0][0]).write_bytes(b"")
    assert len([image for images, _ in data.test_dataloader() for image in images]) == 1
    assert len([image for images, _ in data.train_dataloader() for image in images]) == 4
    strict = load(write_coco(tmp_path / "strict"))
    Path(strict.samples["test"][0][0]).write_bytes(b"")
    with pytest.raises(UserError, match=r"f\.png: the file is empty"):
        list(strict.test_dataloader())


def test_images_that_fit_into_memory_are_read_once(tmp_path, monkeypatch):
    data = load(write_coco(tmp_path / "data"))
    first = [image for images, _ in data.val_dataloader() for image in images]
    for path in (path for split in ("train", "val") for path, _ in data.samples[split]):
        Path(path).unlink()
    again = [image for images, _ in data.val_dataloader() for image in images]
    assert torch.equal(first[0], again[0]) and first[0] is not again[0]
    assert len([image for images, _ in data.train_dataloader() for image in images]) == 4
    monkeypatch.setattr("project.detection.data.MAX_KEPT_BYTES", 1000)
    assert load(write_coco(tmp_path / "other")).album == {}


@pytest.mark.parametrize(  # where the size in the file is that of the upright image, and that of the stored one
    ("orientation", "stored"), [*((i, False) for i in range(1, 9)), *((i, True) for i in range(5, 9))]
)
def test_boxes_lie_on_the_object_in_photos_that_exif_turns(tmp_path, orientation, stored, caplog):
    white = Image.new("L", (8, 6))
    white.paste(255, (1, 1, 4, 3))  # in the stored image
    image = white.resize((80, 60), Image.Resampling.NEAREST).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = write_voc(tmp_path / "data", {"train": {"a.png": [("cat", (0, 0, 9, 9))]}, "val": SPLITS["val"]})
    image.save(root / "JPEGImages/a.png", exif=exif)
    turned = orientation >= 5
    upright = {1: (10, 10, 40, 30), 2: (40, 10, 70, 30), 3: (40, 30, 70, 50), 4: (10, 30, 40, 50)}
    upright |= {5: (10, 10, 30, 40), 6: (30, 10, 50, 40), 7: (30, 40, 50, 70), 8: (10, 40, 30, 70)}
    box = (10, 10, 40, 30) if stored else upright[orientation]
    size = SIZE if stored or not turned else (60, 80)
    (root / "Annotations/a.xml").write_text(voc_text("a.png", [("cat", box)], size))
    data = load(root, bad_boxes="skip")
    image_tensor, target = data.dataset("train", {})[(0, 0)] or pytest.fail("no image")
    left, top, right, bottom = target["boxes"][0].int().tolist()
    light = image_tensor[0] > 128
    assert light.sum() == 30 * 20 and light[top:bottom, left:right].all()
    assert ("1 photos are turned by Exif, but not in their annotations" in caplog.text) == stored


def test_what_looks_wrong_is_said_before_training_and_nothing_of_the_sample(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for root, said in ((SAMPLE, False), (write_coco(tmp_path / "data"), True)):
        data = load(root)
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.setup("fit")
        assert ("classes with fewer than 10 boxes in train: dog (2), cat (2)" in caplog.text) == said


def broken(root: Path, path: str, text: str | bytes) -> None:
    (root / path).write_bytes(text.encode() if isinstance(text, str) else text)


def changed(key: str, i: int, **values):
    """A change of an entry of the JSON file of the training split."""

    def change(root: Path) -> None:
        path = root / "annotations/instances_train.json"
        content = json.loads(path.read_text())
        content[key][i] |= values
        path.write_text(json.dumps(content))

    return change


TRAIN = "annotations/instances_train.json"
DEEP = "[" * 200_000
BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>\n<annotation><filename>&c;</filename></annotation>'
OBJECT = "<annotation>\n<object><name>cat</name><bndbox>{}</bndbox></object></annotation>"
MALFORMED = {  # what is done to a good data set, and what the message must say
    "coco truncated": (write_coco, (TRAIN, '{"images": [], "annotations": [], "categories": ['), "not JSON"),
    "coco nested": (write_coco, (TRAIN, f'{{"annotations": 1, "categories": {DEEP}'), "not JSON"),
    "coco not utf-8": (write_coco, (TRAIN, b'{"annotations": [], "categories": "\xff"}'), "not JSON"),
    "coco list": (write_coco, (TRAIN, '[{"annotations": [], "categories": []}]'), "a list, where"),
    "coco no images": (write_coco, (TRAIN, '{"annotations": [], "categories": []}'), "no 'images'"),
    "coco images an object": (
        write_coco,
        (TRAIN, '{"images": {}, "annotations": [], "categories": []}'),
        "images is not a list",
    ),
    "coco image a number": (
        write_coco,
        (TRAIN, '{"images": [3], "annotations": [], "categories": []}'),
        "images\\[0\\]: not an object",
    ),
    "coco empty": (write_coco, (TRAIN, '{"images": [], "annotations": [], "categories": []}'), "no training images"),
    "coco image id": (write_coco, changed("images", 1, id="1"), "images\\[1\\]: id is '1'"),
    "coco image id twice": (write_coco, changed("images", 1, id=0), "images\\[1\\]: id 0 stands in another"),
    "coco file twice": (write_coco, changed("images", 1, file_name="a.png"), "a.png stands in images\\[0\\]"),
    "coco file name": (write_coco, changed("images", 2, file_name=None), "images\\[2\\]: file_name is None"),
    "coco outside": (write_coco, changed("images", 2, file_name="../../x.png"), "images\\[2\\]: '../../x.png' is not"),
    "coco absolute": (write_coco, changed("images", 2, file_name="/etc/passwd"), "images\\[2\\]: '/etc/passwd' is not"),
    "coco size": (write_coco, changed("images", 0, width="wide"), "images\\[0\\]: the size of the image is 'wide'"),
    "coco other size": (write_coco, changed("images", 0, width=800), "images\\[0\\]: it is of an image of 800 x 60"),
    "coco category name": (write_coco, changed("categories", 0, name=""), "categories\\[0\\]: name is ''"),
    "coco category twice": (write_coco, changed("categories", 1, id=3), "categories\\[1\\]: id 3 or name 'cat'"),
    "coco unknown category": (write_coco, changed("annotations", 0, category_id=4), "\\[0\\]: category_id 4 is no"),
    "coco category null": (write_coco, changed("annotations", 0, category_id=None), "\\[0\\]: category_id None is no"),
    "coco unknown image": (write_coco, changed("annotations", 2, image_id=99), "\\[2\\]: image_id 99 is no image's"),
    "coco image a list": (
        write_coco,
        changed("annotations", 2, image_id=[0]),
        "\\[2\\]: image_id \\[0\\] is no image's",
    ),
    "coco three numbers": (write_coco, changed("annotations", 1, bbox=[1, 2, 3]), "\\[1\\]: bbox is \\[1, 2, 3\\]"),
    "coco texts": (write_coco, changed("annotations", 1, bbox=["1", 2, 3, 4]), "\\[1\\]: bbox is"),
    "coco nan": (write_coco, changed("annotations", 1, bbox=[float("nan"), 2, 3, 4]), "\\[1\\]: bbox is \\[nan"),
    "coco infinite": (write_coco, changed("annotations", 1, bbox=[1, 2, float("inf"), 4]), "\\[1\\]: bbox is"),
    "coco huge": (write_coco, changed("annotations", 1, bbox=[10**400, 2, 3, 4]), "\\[1\\]: bbox is"),
    "coco no box": (write_coco, changed("annotations", 1, bbox=None), "\\[1\\]: bbox is None"),
    "coco empty box": (write_coco, changed("annotations", 1, bbox=[1, 2, 0, 4]), "\\[1\\]: empty"),
    "coco reversed": (write_coco, changed("annotations", 1, bbox=[9, 2, -5, 4]), "\\[1\\]: reversed"),
    "coco out": (write_coco, changed("annotations", 1, bbox=[70, 2, 20, 4]), "\\[1\\]: reaches out of the image"),
    "coco far out": (write_coco, changed("annotations", 1, bbox=[700, 2, 20, 4]), "\\[1\\]: outside the image"),
    "coco twice": (
        write_coco,
        changed("annotations", 1, bbox=[10, 5, 40, 40], category_id=7),
        "\\[1\\]: the same box stands in .*annotations\\[0\\], too",
    ),
    "voc not xml": (write_voc, ("Annotations/a.xml", "<annotation>"), "not XML"),
    "voc empty": (write_voc, ("Annotations/a.xml", ""), "not XML"),
    "voc bytes": (write_voc, ("Annotations/a.xml", b"\xff\xfe\x00"), "not XML"),
    "voc encoding": (write_voc, ("Annotations/a.xml", '<?xml version="1.0" encoding="x-1"?><annotation/>'), "not XML"),
    "voc bomb": (write_voc, ("Annotations/a.xml", BOMB), "line 1: a DOCTYPE"),
    "voc root": (write_voc, ("Annotations/a.xml", "<html></html>"), "begins with <html>"),
    "voc no name": (write_voc, ("Annotations/a.xml", "<annotation>\n<object/></annotation>"), "line 2: an object with"),
    "voc no box": (write_voc, ("Annotations/a.xml", OBJECT.format("")), "line 2: not four numbers: xmin missing"),
    "voc no number": (
        write_voc,
        ("Annotations/a.xml", OBJECT.format("<xmin>x</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax>")),
        "line 2: not four numbers: xmin 'x'",
    ),
    "voc nan": (
        write_voc,
        ("Annotations/a.xml", OBJECT.format("<xmin>1</xmin><ymin>nan</ymin><xmax>3</xmax><ymax>4</ymax>")),
        "line 2: not four numbers",
    ),
    "voc size": (
        write_voc,
        ("Annotations/a.xml", "<annotation><size><width>a</width><height>2</height></size></annotation>"),
        "the size of the image is 'a'",
    ),
    "voc list": (write_voc, ("ImageSets/Main/val.txt", "e\nz\n"), "line 2: there is no annotation file z.xml"),
    "voc list twice": (write_voc, ("ImageSets/Main/val.txt", "e\n\ne\n"), "line 3: e stands in line 1, too"),
    "voc list not text": (write_voc, ("ImageSets/Main/val.txt", b"e\n\xff\n"), "not text in UTF-8"),
    "yolo yaml": (write_yolo, ("data.yaml", "names: [a\ntrain: {"), "not YAML"),
    "yolo yaml object": (write_yolo, ("data.yaml", "names: !!python/object:os.system {}"), "not YAML"),
    "yolo count": (write_yolo, ("data.yaml", "names: [a, b]\nnc: 3\n"), "nc is 3, but there are 2 names"),
    "yolo names": (write_yolo, ("data.yaml", "names: 3\n"), "`names` is not a list"),
    "yolo numbers": (write_yolo, ("data.yaml", "names: {1: a, 2: b}\n"), "not 0 to 1"),
    "yolo no names": (write_yolo, ("data.yaml", "names: []\n"), "it names no classes"),
    "yolo name twice": (write_yolo, ("data.yaml", "names: [a, a]\n"), "a class name stands in it twice"),
    "yolo folder": (write_yolo, ("data.yaml", "names: [a, b]\ntrain: nowhere\n"), "nowhere, which does not exist"),
    "yolo split": (write_yolo, ("data.yaml", "names: [a, b]\ntrain: {a: 1}\n"), "train is .*'a.*, not a folder"),
    "yolo class": (write_yolo, ("labels/train/a.txt", "2 .5 .5 .1 .1"), "line 1: class 2 is not one of 0 to 1"),
    "yolo fraction": (write_yolo, ("labels/train/a.txt", "\n0.5 .5 .5 .1 .1"), "line 2: class 0.5 is not one of"),
    "yolo four": (write_yolo, ("labels/train/a.txt", "0 .5 .5 .1"), "line 1: 4 numbers, where"),
    "yolo confidence": (write_yolo, ("labels/train/a.txt", "0 .5 .5 .1 .1 .9"), "line 1: 6 numbers, where"),
    "yolo word": (write_yolo, ("labels/train/a.txt", "dog .5 .5 .1 .1"), "line 1: not numbers: 'dog"),
    "yolo nan": (write_yolo, ("labels/train/a.txt", "0 nan .5 .1 .1"), "line 1: not numbers"),
    "yolo pixels": (write_yolo, ("labels/train/a.txt", "0 30 20 10 10"), "line 1: outside the image"),
    "yolo empty": (write_yolo, ("labels/train/a.txt", "0 .5 .5 0 .1"), "line 1: empty"),
    "yolo twice": (write_yolo, ("labels/train/a.txt", "0 .5 .5 .1 .1\n0 .5 .5 .1 .1"), "line 2: the same box stands"),
    "yolo not text": (write_yolo, ("labels/train/a.txt", b"0 .5 \xff"), "not text in UTF-8"),
    "yolo zeros": (write_yolo, ("labels/train/a.txt", b"0 .5 \0"), "not text: it contains zero bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_annotations_get_one_line_that_names_the_file(tmp_path, name):
    write, change, expected = MALFORMED[name]
    root = write(tmp_path / "data")
    if isinstance(change, tuple):
        broken(root, *change)
    else:
        change(root)
    with pytest.raises(UserError, match=expected) as error:
        load(root)
    assert "\n" not in str(error.value) and str(root) in str(error.value)
    file = Path(change[0] if isinstance(change, tuple) else TRAIN).name
    assert file in str(error.value) or name == "coco empty"


def test_bad_boxes_are_left_out_or_clipped_if_the_user_says_so(tmp_path, caplog):
    root = write_yolo(tmp_path / "data")
    lines = ["0 .5 .5 .5 .5", "0 .5 .5 .5 .5", "7 .5 .5 .1 .1", "1 1 .5 .5 .5", "1 .5 .5 0 .5", "1 9 9 .1 .1"]
    (root / "labels/train/a.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"5 of 12 boxes cannot be used \(fix them, or .* --data.bad_boxes skip"):
        load(root)
    data = load(root, bad_boxes="skip")
    target = data.target(data.samples["train"][0][0])
    assert target["boxes"].tolist() == [[20, 15, 60, 45], [60, 15, 80, 45]] and target["labels"].tolist() == [0, 1]
    assert "5 of 12 boxes cannot be used: left out, or clipped to the image" in caplog.text


def test_that_no_box_can_be_used_hides_not_why(tmp_path):
    root = write_yolo(tmp_path / "data")
    for path in (root / "labels").rglob("*.txt"):
        path.write_text("0 40 30 10 10")
    with pytest.raises(UserError, match=r"6 of 6 boxes cannot be used .*line 1: outside the image of 80 x 60 pixels"):
        load(root)
    with pytest.raises(UserError, match="no usable box in its 4 training images"):
        load(root, bad_boxes="skip")


def test_annotations_of_another_image_are_left_out_with_it(tmp_path):
    root = write_coco(tmp_path / "data")
    save(root / "train/a.png", (40, 30))
    data = load(root, bad_boxes="skip")
    assert [Path(path).name for path, _ in data.samples["train"]] == ["b.png", "c.png", "d.png"]


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"flip": 2}, {"crop": -1}, {"scale_jitter": 1}, {"max_size": 8}, {"val_fraction": 0.9}],
)
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(UserError, match=f"--data.{next(iter(options))}"):
        load(tmp_path, **options)


def test_without_data_the_option_is_named():
    with pytest.raises(UserError, match=r"--data\.root"):
        BoxData()
