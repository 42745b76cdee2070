"""Decoding: what is right is decoded as Pillow does, what is not is named."""

import io

import numpy as np
import pytest

from mdeq_jax.data.vision import decoding
from mdeq_jax.data.vision.decoding import ExampleError
from tests.helpers.synthetic_images import encode, picture

Image = pytest.importorskip("PIL.Image")


def pillow_bytes(mode, file_format, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture(30, 40)).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decodes_as_pillow(suffix):
    data = encode(suffix, picture(31, 47))
    assert decoding.read_header(data, "x") == (31, 47, "RGB", 8, suffix == ".jpg")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    image = decoding.decode_rgb(data, "x")
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= (3 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("tail", [b"\0", b"more bytes than a chunk has", b"\0" * 4096])
def test_bytes_after_the_end_do_not_matter(suffix, tail):
    data = encode(suffix, picture(31, 47))
    assert decoding.read_header(data + tail, "x") == decoding.read_header(data, "x")
    decoded = decoding.decode_rgb(data + tail, "x")
    np.testing.assert_array_equal(decoded, decoding.decode_rgb(data, "x"))


def test_every_truncation_of_a_png_is_named():
    data = encode(".png", picture(9, 9))
    for length in range(8, len(data)):
        with pytest.raises(ExampleError, match="truncated PNG"):
            decoding.read_header(data[:length], "x")


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_decoding(reduction):
    image = picture(129, 203)
    reduced = decoding.decode_rgb(encode(".jpg", image), "x", reduction)
    assert reduced.shape == (-(-129 // reduction), -(-203 // reduction), 3)
    assert abs(reduced.mean() - image.mean()) < 3


def test_exif_orientation_is_ignored_as_in_torchvision():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = pillow_bytes("RGB", "JPEG", exif=exif)
    assert decoding.decode_rgb(data, "x").shape == (30, 40, 3)


def test_progressive_jpeg_with_a_thumbnail_in_its_header():
    thumbnail = b"Exif\0\0" + encode(".jpg", picture(8, 8))
    data = pillow_bytes("RGB", "JPEG", progressive=True, exif=thumbnail)
    assert decoding.read_header(data, "x")[:2] == (30, 40)
    with pytest.raises(ExampleError, match="truncated JPEG"):  # the thumbnail's end is not the end
        decoding.read_header(data[:-200], "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(".jpg", picture(64, 64))[:-40], "a.x: truncated JPEG"),
        (encode(".jpg", picture(64, 64))[:15], "a.x: truncated JPEG"),
        (encode(".png", picture(64, 64))[:-30], "a.x: truncated PNG"),
        (b"GIF89a...", "a.x: neither a JPEG nor a PNG"),
        (b"", "a.x: neither a JPEG nor a PNG"),
    ],
)
def test_damaged_files(data, message):
    with pytest.raises(ExampleError, match=message) as info:
        decoding.read_header(data, "a.x")
    assert "on_error='skip'" in str(info.value)


def test_damaged_inside():
    data = bytearray(encode(".png", picture(64, 64)))
    data[100:-20] = bytes(len(data) - 120)
    decoding.read_header(bytes(data), "a.png")
    with pytest.raises(ExampleError, match=r"a\.png: cannot be decoded"):
        decoding.decode_rgb(bytes(data), "a.png")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pillow_bytes("L", "JPEG"), "8-bit grey"),
        (pillow_bytes("CMYK", "JPEG"), "8-bit CMYK"),
        (pillow_bytes("L", "PNG"), "8-bit grey"),
        (pillow_bytes("LA", "PNG"), "8-bit grey with alpha"),
        (pillow_bytes("P", "PNG"), "8-bit palette"),
        (pillow_bytes("RGBA", "PNG"), "8-bit RGB with alpha"),
        (encode(".png", picture(9, 9).astype(np.uint16) * 257), "16-bit RGB"),
        (encode(".png", picture(9, 9)[..., 0].astype(np.uint16) * 257), "16-bit grey"),
    ],
)
def test_images_that_are_not_rgb(data, kind):
    header = decoding.read_header(data, "a.x")
    with pytest.raises(ExampleError, match=f"a.x: a {kind} image.*convert_to_rgb=True"):
        decoding.check_rgb(header, "a.x")
    image = decoding.decode_rgb(data, "a.x")  # what convert_to_rgb then gives
    assert image.shape == (header.height, header.width, 3) and image.dtype == np.uint8


def test_label_maps_are_not_touched():
    labels = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    np.testing.assert_array_equal(decoding.decode_label_map(encode(".png", labels), "a"), labels)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pillow_bytes("L", "JPEG"), "is a JPEG"),
        (pillow_bytes("RGB", "PNG"), "8-bit RGB PNG"),
        (pillow_bytes("P", "PNG"), "8-bit palette PNG"),
    ],
)
def test_label_maps_of_the_wrong_kind(data, kind):
    with pytest.raises(ExampleError, match=f"a.png: a label map must be.*{kind}"):
        decoding.decode_label_map(data, "a.png")
