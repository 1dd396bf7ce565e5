import shutil
from pathlib import Path

from box_files import save, voc_text, write_voc

from project.detection.voc import find_xml, parsed, read_voc


def read(root: Path):
    return read_voc(str(root), find_xml(str(root)))


def test_images_that_no_list_names_are_left_out_and_said(tmp_path, caplog):
    root = write_voc(tmp_path)
    (root / "ImageSets/Main/test.txt").unlink()
    assert list(read(root).splits) == ["train", "val"]
    assert "2 images in no list of ImageSets/Main, left out" in caplog.text


def test_trainval_stands_for_train_only_if_there_is_no_train(tmp_path, caplog):
    root = write_voc(tmp_path)
    lists = root / "ImageSets/Main"
    (lists / "trainval.txt").write_text("a\nb\nc\nd\ne\n")
    (lists / "cat_train.txt").write_text("a  1\nb -1\n")
    assert [len(records) for records in read(root).splits.values()] == [4, 1, 2]
    (lists / "train.txt").unlink()
    assert {split: len(records) for split, records in read(root).splits.items()} == {"train": 5, "test": 2}
    assert "trainval.txt is taken as the train split" in caplog.text


def test_without_lists_all_are_one_and_files_may_lie_beside_the_images(tmp_path):
    root = write_voc(tmp_path / "data")
    shutil.rmtree(root / "ImageSets")
    assert len(read(root).splits["all"]) == 7
    for split in ("train", "valid"):
        save(tmp_path / "beside" / split / "x.png")
        (tmp_path / "beside" / split / "x.xml").write_text(voc_text("x.png", [("cat", (1, 2, 3, 4))]))
    found = read(tmp_path / "beside")
    assert [records[0].path for records in found.splits.values()] == [
        str(tmp_path / "beside" / split / "x.png") for split in ("train", "valid")
    ]


def test_the_image_is_that_of_the_file_s_own_name_or_else_the_one_it_names(tmp_path):
    root = write_voc(tmp_path)
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("a.png", "C:\\photos\\other.jpg"))
    assert read(root).splits["train"][0].path == str(root / "JPEGImages/a.png")
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/other.jpg")
    assert read(root).splits["train"][0].path == str(root / "JPEGImages/other.jpg")
    (root / "JPEGImages/other.jpg").unlink()
    assert read(root).splits["train"][0].path == str(root / "JPEGImages/other.jpg")


def test_elements_know_their_line(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<?xml version='1.0' encoding='latin-1'?>\n<annotation>\n\n<object/>&amp;</annotation>", "latin-1")
    assert [element.get("line") for element in parsed(str(path)).iter()] == ["2", "4"]
