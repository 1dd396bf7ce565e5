import os

from helpers import save_image

from project.listing import list_images


def test_list_images_goes_deep_skips_junk_and_survives_a_link_loop(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/._c.jpg", ".hidden/d.png", "__MACOSX/e.png"):
        save_image(tmp_path / name) if not name.endswith("JPG") else save_image(tmp_path / "a/c.JPG")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "photo.jp2").write_text("x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    images, others = list_images(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in images] == ["b.png", "a/c.JPG"]
    assert others == {".txt": 1, ".jp2": 1}
