import numpy as np
from helpers import save_image

from project.insight.glances import glance


def test_unreadable_files_are_marked(tmp_path):
    good = save_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = glance([str(good), str(tmp_path / "b.png"), str(tmp_path / "missing.png")])
    assert found.readable.tolist() == [True, False, False]
    assert found.properties["format"].tolist() == ["PNG", "", ""]
    assert np.isnan(found.properties["width"][1:]).all() and found.properties["width"][0] == 40
