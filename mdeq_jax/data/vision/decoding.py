"""Decodes images with OpenCV, and raises an error for a file of another kind.

OpenCV alone silently turns a truncated JPEG into a half grey image (version 4), a 16-bit PNG into 8
bits and a CMYK JPEG into RGB. The header is therefore read before the pixels.
"""

import struct
from typing import NamedTuple

import numpy as np

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_JPEG_COLORS = {1: "grey", 3: "RGB", 4: "CMYK"}
_CONVERT = (
    "save it as 8-bit RGB, or set config.data.convert_to_rgb=True to convert such images as they "
    "are read, or config.data.on_error='skip' to leave them out"
)
_REPLACE = "replace the file, or set config.data.on_error='skip' to leave it out"


class ExampleError(ValueError):
    """An example cannot be used. `config.data.on_error="skip"` skips it."""


class Header(NamedTuple):
    """The contents of an image file's header.

    Attributes:
        height: in pixels.
        width: in pixels.
        colors: "RGB", "grey", "CMYK", "palette", "grey with alpha" or "RGB with alpha".
        bits: per channel.
        is_jpeg: true for a JPEG, false for a PNG file.
    """

    height: int
    width: int
    colors: str
    bits: int
    is_jpeg: bool


def read_header(data: bytes, path: str) -> Header:
    """Reads the size and the kind of a JPEG or PNG file.

    Args:
        data: the file's bytes.
        path: name of the file in errors.

    Raises:
        ExampleError: another format, or a file that ends too early.
    """
    if data.startswith(_PNG_SIGNATURE):
        if not _is_whole_png(data):
            raise ExampleError(f"{path}: truncated PNG ({len(data)} bytes): {_REPLACE}.")
        width, height, bits, color = struct.unpack(">IIBB", data[16:26])
        return Header(height, width, _PNG_COLORS.get(color, f"type {color}"), bits, False)
    if data.startswith(b"\xff\xd8"):
        return _read_jpeg_header(data, path)
    raise ExampleError(
        f"{path}: neither a JPEG nor a PNG file (it begins with {data[:8]!r}): convert it to one "
        "of these, or set config.data.on_error='skip' to leave it out."
    )


def _is_whole_png(data: bytes) -> bool:
    """Whether the chunks are there from IHDR to IEND; bytes after the end do not matter.

    A chunk is the length of its content (4 bytes), its name (4), the content and a checksum (4).
    """
    position = len(_PNG_SIGNATURE)
    if data[position + 4 : position + 8] != b"IHDR":
        return False
    while position + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        position += 12 + length
        if name == b"IEND":
            return position <= len(data)
    return False


def _read_jpeg_header(data: bytes, path: str) -> Header:
    # ITU-T T.81, annex B: segments of marker (2 bytes), length (2 bytes), content.
    position, header = 2, None
    while position + 10 <= len(data):
        marker, length = struct.unpack(">xBH", data[position : position + 4])
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            bits, height, width, channels = struct.unpack(
                ">BHHB", data[position + 4 : position + 10]
            )
            colors = _JPEG_COLORS.get(channels, f"{channels} channels")
            header = Header(height, width, colors, bits, True)
        if marker == 0xDA:  # start of scan: from here on, FF D9 only ends the image
            break
        position += 2 + length
    if header is None or data.rfind(b"\xff\xd9") < position:
        raise ExampleError(f"{path}: truncated JPEG ({len(data)} bytes): {_REPLACE}.")
    return header


def check_rgb(header: Header, path: str) -> None:
    """Raises ExampleError unless the image is RGB of 8 bits per channel."""
    if header.colors != "RGB" or header.bits != 8:
        raise ExampleError(
            f"{path}: a {header.bits}-bit {header.colors} image, but 8-bit RGB is required: "
            f"{_CONVERT}."
        )


def decode_rgb(data: bytes, path: str, reduction: int = 1) -> np.ndarray:
    """Decodes an image, and converts it to RGB if it is not.

    Args:
        data: the file's bytes.
        path: name of the file in errors.
        reduction: 1, 2, 4 or 8: decode at 1/reduction of the height and width, rounded up. JPEG
            does so in the frequency domain, faster than decoding the whole image and resizing it.

    Returns:
        uint8 `[H, W, 3]`, RGB. The EXIF orientation is not applied, as in torchvision.

    Raises:
        ExampleError: the data are damaged.
    """
    import cv2

    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[reduction]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ExampleError(f"{path}: cannot be decoded, its data are damaged: {_REPLACE}.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_label_map(data: bytes, path: str) -> np.ndarray:
    """Decodes a label map: an 8-bit grey PNG whose values are the labels.

    Args:
        data: the file's bytes.
        path: name of the file in errors.

    Returns:
        uint8 `[H, W]`.

    Raises:
        ExampleError: the file is no 8-bit grey PNG, or is damaged.
    """
    import cv2

    header = read_header(data, path)
    if header.is_jpeg or header.colors != "grey" or header.bits != 8:
        kind = "JPEG" if header.is_jpeg else f"{header.bits}-bit {header.colors} PNG"
        raise ExampleError(
            f"{path}: a label map must be an 8-bit grey PNG whose values are the labels, but this "
            f"is a {kind}: {_REPLACE}."
        )
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise ExampleError(f"{path}: cannot be decoded, its data are damaged: {_REPLACE}.")
    return labels
