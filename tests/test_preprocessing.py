import pytest
from helpers import PREPROCESSING

from project import UserError
from project.preprocessing import check_preprocessing, mean_colour, scaled_size


def test_the_size_is_that_of_torchvision_and_of_what_is_to_be_seen():
    assert scaled_size(640, 480, 256, "crop") == (341, 256)
    assert scaled_size(480, 640, 256, "pad") == (192, 256) and scaled_size(5000, 1, 256, "pad") == (256, 1)
    assert scaled_size(640, 480, 256, "squash") == (256, 256)


def test_the_mean_colour_is_zero_after_normalization_up_to_rounding():
    assert mean_colour(PREPROCESSING) == (124, 116, 104)
    assert mean_colour({**PREPROCESSING, "mean": [-1, 0.5, 2]}) == (0, 128, 255)


def test_values_that_are_no_preprocessing_are_refused():
    check_preprocessing(PREPROCESSING)
    check_preprocessing({**PREPROCESSING, "fit": "pad", "white": None})
    for name, value in [
        ("crop_size", 0),
        ("resize_size", -1),
        ("resize_size", "256"),
        ("crop_size", 10**9),
        ("mean", [0.1, float("nan"), 0.2]),
        ("std", [0.1, 0.0, 0.2]),
        ("std", [1.0]),
        ("mean", "abc"),
        ("interpolation", "none"),
        ("interpolation", 3),
        ("fit", "stretch"),
        ("white", -4),
        ("white", "x"),
    ]:
        with pytest.raises(UserError, match=rf"preprocessing: .*{name.removesuffix('_size')}"):
            check_preprocessing({**PREPROCESSING, name: value})
    with pytest.raises(UserError, match="no crop_size"):
        check_preprocessing({})
