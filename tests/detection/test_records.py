import pytest

from project import UserError
from project.detection.records import inside, numbers, read_lines, whole_size


def test_only_finite_numbers_are_numbers():
    assert numbers(["1", " 2.5 ", 3, -4e2]) == [1, 2.5, 3, -400]
    for value in ("", "x", "nan", "inf", None, True, [1], 10**400, float("nan")):
        assert numbers([1, value]) is None


def test_a_size_is_two_whole_numbers_and_zero_says_nothing():
    assert whole_size("640", 480.0, "a.xml") == (640, 480)
    assert whole_size(0, 0, "a.xml") is whole_size(None, "480", "a.xml") is None
    for size in (("640.5", 480), (-1, 5), ("wide", 5)):
        with pytest.raises(UserError, match=r"^a\.xml: the size of the image"):
            whole_size(*size, "a.xml")


def test_names_that_lead_out_of_the_folder_are_refused():
    assert inside("/data", "a/../b\\c.png", "x") == "/data/b/c.png"
    for name in ("", "..", "../a.png", "a/../../b.png", "/etc/passwd", ".", "a\0.png"):
        with pytest.raises(UserError, match="not the name of a file in the data set's folder"):
            inside("/data", name, "x")


def test_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf one \r\n\r\ntwo")
    assert read_lines(str(path)) == [(1, "one"), (3, "two")]
    with pytest.raises(UserError, match=r"b\.txt: cannot be read \(No such file"):
        read_lines(str(tmp_path / "b.txt"))
