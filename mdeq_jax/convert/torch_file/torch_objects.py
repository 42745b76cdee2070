"""Tensors of a PyTorch file as numpy arrays: storages, strided views, and the allow-list."""

import math
import reprlib
from collections import Counter, OrderedDict
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.allowed import AllowedCall, check_key

# `tensor.expand` repeats elements at no cost in the file. No weight is larger than this.
MAX_EXPANDED_BYTES = 2**20
_MAX_DIMS = 32  # numpy's own limit before version 2

_STORAGE_DTYPES = {
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Storage(NamedTuple):
    """The flat memory that tensors are views of.

    Attributes:
        raw: uint8 `[N]`, its bytes.
        dtype: of its elements.
    """

    raw: np.ndarray
    dtype: np.dtype

    @property
    def numel(self):
        """Number of elements."""
        return self.raw.nbytes // self.dtype.itemsize


class StorageTable:
    """The storages that a pickle names. They are allocated when named, and filled afterwards.

    The memory of a storage is not touched before it is filled. Together the storages may not be
    larger than the file that holds them.

    Attributes:
        storages: the key of each storage in the file -> `Storage`.
    """

    def __init__(self, file_size: int):
        self.storages: dict[str, Storage] = {}
        self._bytes_left = file_size
        self._file_size = file_size

    def persistent_load(self, persistent_id) -> Storage:
        """Returns the storage of ("storage", type, key, location, numel[, view]).

        Only older files have `view`: None or (view key, offset, numel), in elements.
        """
        if type(persistent_id) is not tuple or len(persistent_id) not in (5, 6):
            raise WeightsFileError(
                f"damaged pickle: the storage id {reprlib.repr(persistent_id)} is not a tuple "
                "('storage', type, key, location, numel)"
            )
        kind, dtype, key, _, numel = persistent_id[:5]
        view = persistent_id[5] if len(persistent_id) == 6 else None
        if not (type(kind) is str and kind == "storage" and isinstance(dtype, np.dtype)):
            raise WeightsFileError(
                f"damaged pickle: {reprlib.repr(persistent_id)} names no storage of a known type"
            )
        if type(key) is not str or not _is_count(numel):
            raise WeightsFileError(
                f"damaged pickle: a storage has the key {reprlib.repr(key)} and "
                f"{reprlib.repr(numel)} elements; required: a string and an integer from 0"
            )
        storage = self._find_or_allocate(key, dtype, numel)
        return storage if view is None else _storage_view(storage, view)

    def _find_or_allocate(self, key, dtype, numel):
        known = self.storages.get(key)
        if known is not None:
            if (known.dtype, known.numel) != (dtype, numel):
                raise WeightsFileError(
                    f"storage {reprlib.repr(key)} is named twice, as {known.numel} elements of "
                    f"{known.dtype} and as {reprlib.repr(numel)} of {dtype}"
                )
            return known
        nbytes = numel * dtype.itemsize
        if nbytes > self._bytes_left:
            raise WeightsFileError(
                f"storage {reprlib.repr(key)} declares {reprlib.repr(nbytes)} bytes; with the "
                f"storages before it that is more than the whole file has ({self._file_size:,})"
            )
        self._bytes_left -= nbytes
        storage = Storage(np.empty(nbytes, np.uint8), dtype)
        self.storages[key] = storage
        return storage

    def check_filled(self):
        """Checks that booleans are 0 or 1, which numpy does not."""
        for key, (raw, dtype) in self.storages.items():
            if dtype == np.bool_ and raw.size and raw.max() > 1:
                raise WeightsFileError(
                    f"boolean storage {reprlib.repr(key)} holds a byte that is not 0 or 1: "
                    "the file is damaged"
                )


def _storage_view(storage, view):
    if type(view) is not tuple or len(view) != 3 or not all(map(_is_count, view[1:])):
        raise WeightsFileError(f"damaged pickle: {reprlib.repr(view)} is no view of a storage")
    _, start, numel = view
    if start + numel > storage.numel:
        raise WeightsFileError(
            f"a view of elements {reprlib.repr(start)} to {reprlib.repr(start + numel)} exceeds "
            f"its storage of {storage.numel}"
        )
    itemsize = storage.dtype.itemsize
    return Storage(storage.raw[start * itemsize : (start + numel) * itemsize], storage.dtype)


def _is_count(value):
    return type(value) is int and value >= 0


def rebuild_tensor(storage: Storage, offset: int, size, stride) -> np.ndarray:
    """Returns a view of `storage`.

    Args:
        storage: the memory.
        offset: of the first element, in elements.
        size: shape of the tensor.
        stride: of each axis, in elements.

    Returns:
        An array of shape `size` that shares memory with the other tensors of the storage. It is
        read-only if it repeats elements (`tensor.expand`).

    Raises:
        WeightsFileError: a value is negative or has a wrong type, or an element lies outside the
            storage.
    """
    if not isinstance(storage, Storage):
        raise WeightsFileError("damaged pickle: a tensor has no storage")
    size, stride = _check_counts(size, "size"), _check_counts(stride, "stride")
    if len(size) != len(stride) or len(size) > _MAX_DIMS or not _is_count(offset):
        raise WeightsFileError(
            f"a tensor has size {reprlib.repr(size)}, stride {reprlib.repr(stride)} and offset "
            f"{reprlib.repr(offset)}; required: as many strides as sizes, at most {_MAX_DIMS}, and "
            "an offset from 0"
        )
    numel, itemsize = math.prod(size), storage.dtype.itemsize
    described = f"a tensor of size {reprlib.repr(size)} and stride {reprlib.repr(stride)}"
    if numel == 0:
        # numpy multiplies the sizes other than 0, and must not overflow.
        if math.prod(n for n in size if n) >= 2**56:
            raise WeightsFileError(f"{described} is absurd")
        return np.empty(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.numel:
        raise WeightsFileError(
            f"{described} at offset {reprlib.repr(offset)} needs {reprlib.repr(last + 1)} elements "
            f"and its storage has {storage.numel}"
        )
    expanded = numel > storage.numel
    if expanded and numel * itemsize > MAX_EXPANDED_BYTES:
        raise WeightsFileError(
            f"{described} repeats {storage.numel} elements to {reprlib.repr(numel)}; at most "
            f"{MAX_EXPANDED_BYTES:,} bytes are expanded. Save `tensor.contiguous()` instead."
        )
    # The stride of an axis of length 1 is unused and may be any number.
    strides = [step * itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    array = np.ndarray(size, storage.dtype, storage.raw, offset * itemsize, strides)
    array.flags.writeable = not expanded
    return array


def _check_counts(values, name):
    if type(values) not in (tuple, list) or not all(map(_is_count, values)):
        raise WeightsFileError(
            f"a tensor has the {name} {reprlib.repr(values)}; required: integers from 0"
        )
    return tuple(values)


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None):
    del requires_grad, hooks
    if metadata is not None and not (type(metadata) is dict and not metadata):
        raise WeightsFileError(
            f"a tensor carries the metadata {reprlib.repr(metadata)} (a lazy conjugate or "
            "negative), which is not read. Save `tensor.clone()` instead."
        )
    return rebuild_tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor, requires_grad=True, hooks=None):
    del requires_grad, hooks
    if not isinstance(tensor, np.ndarray):
        raise WeightsFileError("damaged pickle: a parameter holds no tensor")
    return tensor


def _rebuild_size(values=()):
    return _check_counts(values, "torch.Size")


def _ordered_dict(items=()):
    if type(items) not in (list, tuple) or not all(
        type(item) in (list, tuple) and len(item) == 2 for item in items
    ):
        raise WeightsFileError("damaged pickle: an OrderedDict is not made of (key, value) pairs")
    return OrderedDict((check_key(key), value) for key, value in items)


def _counter(counts=None):
    if type(counts) not in (dict, type(None)):
        raise WeightsFileError("damaged pickle: a Counter is not made of a dict")
    return dict(counts or {})


def _set(values=()):
    if type(values) not in (list, tuple):
        raise WeightsFileError("damaged pickle: a set is not made of a list")
    return {check_key(value) for value in values}


def _encode(text, encoding):
    if not (type(text) is str and type(encoding) is str and encoding == "latin1"):
        raise WeightsFileError("damaged pickle: bytes are not written as a latin1 string")
    return text.encode("latin1")


_REBUILD_PARAMETER = AllowedCall(_rebuild_parameter, 1, 3)

# Every global that a pickle may name. None runs code from the file or imports a module.
ALLOWED_GLOBALS = {
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
    ("torch._utils", "_rebuild_tensor"): AllowedCall(rebuild_tensor, 4, 4),
    ("torch._utils", "_rebuild_tensor_v2"): AllowedCall(_rebuild_tensor_v2, 6, 7),
    ("torch._utils", "_rebuild_parameter"): _REBUILD_PARAMETER,
    ("torch.nn.parameter", "Parameter"): _REBUILD_PARAMETER,
    ("torch", "Size"): AllowedCall(_rebuild_size, 0, 1),
    ("collections", "OrderedDict"): AllowedCall(_ordered_dict, 0, 1),
    # The milestones of torch's MultiStepLR; a plain dict is enough to read them.
    (Counter.__module__, Counter.__name__): AllowedCall(_counter, 0, 1),
    # How protocol 2, torch's default, writes sets and bytes.
    ("__builtin__", "set"): AllowedCall(_set, 0, 1),
    ("builtins", "set"): AllowedCall(_set, 0, 1),
    ("_codecs", "encode"): AllowedCall(_encode, 2, 2),
}
