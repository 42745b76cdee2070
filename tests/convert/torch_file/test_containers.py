"""Files that `torch.save` did not write: safetensors is read, others are named with a remedy."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile

import ml_dtypes
import numpy as np
import pytest

from mdeq_jax.convert import WeightsFileError, load_torch_file
from tests.helpers.torch_files import dumps, tensor, write_zip

pytest.importorskip("safetensors")


def refusal(path):
    with pytest.raises(WeightsFileError) as caught:
        load_torch_file(path)
    return str(caught.value)


def write_safetensors(path, arrays):
    """As https://huggingface.co/docs/safetensors describes the format."""
    kinds = {"float32": "F32", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, a in arrays.items():
        offsets = [len(data), len(data) + a.nbytes]
        header[name] = dict(dtype=kinds[a.dtype.name], shape=a.shape, data_offsets=offsets)
        data += a.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_safetensors_are_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(2, 3)).astype(np.float32),
        "b": rng.normal(size=4).astype(ml_dtypes.bfloat16),
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False]),
    }
    path = write_safetensors(tmp_path / "model.safetensors", arrays)
    found = load_torch_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    data = path.read_bytes()
    for cut in range(9, len(data), 7):
        path.write_bytes(data[:cut])
        refusal(path)


def test_compressed_files_and_archives_are_named(tmp_path):
    path = write_zip(tmp_path / "w.pkl", dumps({"w": tensor((6,))}), {"0": bytes(24)})
    data = path.read_bytes()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(path, "w.pkl")
    for content, message in (
        (gzip.compress(data), "but gzip-compressed: unpack it with `gunzip`"),
        (bz2.compress(data), "bzip2-compressed"),
        (lzma.compress(data), "xz-compressed"),
        (archive.getvalue(), "a tar archive: unpack it with `tar xf`"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    ):
        path.write_bytes(content)
        assert message in refusal(path)


def test_folders_are_named(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    assert "a folder. Name a file of weights. It holds w.pth" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "in several files" in refusal(tmp_path)
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    assert "dcp_to_torch" in refusal(tmp_path)
