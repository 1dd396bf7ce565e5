import os
import socket
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import needs_links, needs_posix, save_image

from project import UserError
from project.listing import EXTENSIONS, check_regular, expanded, list_images, passed_over


@needs_links
def test_list_images_goes_deep_skips_junk_and_survives_a_link_loop(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/._c.jpg", ".hidden/d.png", "__MACOSX/e.png"):
        save_image(tmp_path / name) if not name.endswith("JPG") else save_image(tmp_path / "a/c.JPG")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "photo.jp2").write_text("x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    images, others = list_images(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in images] == ["b.png", "a/c.JPG"]
    assert others == {".txt": 1, ".jp2": 1}


def test_the_extensions_of_all_formats_are_listed_and_the_others_counted(tmp_path):
    for name in ("a.jfif", "b.JPE", "c.avif", "d.ppm", "e.pgm", "f.pbm", "g.pnm", "h.jp2", "i.txt", "j"):
        (tmp_path / name).touch()
    images, others = list_images(tmp_path)
    assert [os.path.basename(path)[0] for path in images] == list("abcdefg")
    assert others == {".jp2": 1, ".txt": 1, "without extension": 1}


def test_heic_is_listed_where_it_can_be_read_and_otherwise_said_how(tmp_path):
    assert (".heic" in EXTENSIONS and ".heif" in EXTENSIONS) == (find_spec("pillow_heif") is not None)
    assert passed_over(Counter({".heic": 24, ".txt": 1})) == (
        "passed over 24 .heic, 1 .txt, which are not supported images; to read HEIC: pip install -e '.[heif]'"
    )
    assert "pip" not in passed_over(Counter({".txt": 1}))


@needs_links
@needs_posix
@pytest.mark.timeout(20)
def test_a_pipe_or_socket_named_like_an_image_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "a.jpg"):
        with pytest.raises(UserError, match=r"a\.jpg: not a file, but a pipe"):
            list_images(path) if path.is_dir() else check_regular(str(path))
    (tmp_path / "a.jpg").unlink()
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s.png")
        with pytest.raises(UserError, match=r"s\.png: not a file"):
            list_images(short)
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"device\.png: not a file"):
        list_images(tmp_path)


@needs_links
def test_links_that_lead_nowhere_are_listed_so_that_the_check_names_them(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    assert [os.path.basename(path) for path in list_images(tmp_path)[0]] == ["gone.png", "self.png"]


def test_a_folder_that_may_not_be_read_is_an_error_that_names_it():
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to other users, too
        save_image(Path(root) / "red/closed/a.png")
        os.chmod(root, 0o755)
        os.chmod(f"{root}/red/closed", 0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(UserError, match=r"red/closed: cannot be read \(Permission denied\)"):
                list_images(f"{root}/red")
        finally:
            os.seteuid(user)
            os.chmod(f"{root}/red/closed", 0o755)


def test_the_home_folder_is_expanded_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/x") == str(tmp_path / "x")
    (tmp_path / "~").mkdir()
    (tmp_path / "~/x").touch()
    assert expanded("~/x") == "~/x"
