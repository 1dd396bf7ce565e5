"""Files of tensors from strangers: named with their role, refused in one line, never executed."""

import time
import zipfile

import pytest
import torch

from project import UserError
from project.tensor_files import read_tensors


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_tensor_file_is_named_with_its_role(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(UserError, match=f"checkpoint .*{name}: "):
        read_tensors(str(tmp_path / name), "checkpoint")


def refused(path):
    with pytest.raises(UserError) as error:
        read_tensors(str(path), "weights")
    message = str(error.value)
    assert message.startswith(f"weights {path}: ") and "\n" not in message and "weights_only" not in message
    return message


def test_code_is_refused_without_advice_to_run_it(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    assert "a TorchScript archive, which holds code" in refused(tmp_path / "a.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.pt")
    assert "more than tensors and plain values" in refused(tmp_path / "b.pt")
    for content in (b"", b"\0" * 100, b"\x80\x02" * 50, b"PK\x03\x04" + bytes(100)):
        (tmp_path / "c.pt").write_bytes(content)
        assert ("the file is empty" in refused(tmp_path / "c.pt")) == (content == b"")
    with open(tmp_path / "sparse.pt", "wb") as file:
        file.truncate(10**12)
    refused(tmp_path / "sparse.pt")
    assert "No such file" in refused(tmp_path / "none.pt")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10_000_000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as stored, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as bomb:
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 100_000
    assert "it is compressed" in refused(tmp_path / "b.pt")


def test_a_file_of_a_million_tensors_is_refused_at_once(tmp_path):
    entry = '"t%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = "{" + ",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(200_000)) + "}"
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(800_000)
    (tmp_path / "a.safetensors").write_bytes(content)
    began = time.monotonic()
    assert "above the limit of 100,000" in refused(tmp_path / "a.safetensors")
    assert time.monotonic() - began < 1
