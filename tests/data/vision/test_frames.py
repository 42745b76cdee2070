"""Images of a folder, and frames of a video, one after the other."""

import cv2
import numpy as np
import pytest

from mdeq_jax.data.vision.frames import read_frames


def write_gray(path, value=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((4, 4, 3), value, np.uint8))


def test_frames_of_a_video(tmp_path):
    path = tmp_path / "drive.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for value in (0, 100, 200):
        video.write(np.full((16, 32, 3), value, np.uint8))
    video.release()
    count, frames = read_frames(path)
    frames = list(frames)
    assert count == len(frames) == 3
    assert [frame.name for frame in frames] == [f"drive_{i:06d}.png" for i in (1, 2, 3)]
    for frame, value in zip(frames, (0, 100, 200)):
        assert frame.image.shape == (16, 32, 3)
        assert np.abs(frame.image.astype(int) - value).max() < 8  # JPEG


def test_what_is_no_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_frames(tmp_path / "nowhere")
    (tmp_path / "text.mp4").write_text("nothing")
    with pytest.raises(ValueError, match=r"text\.mp4: not a video that OpenCV can read"):
        read_frames(tmp_path / "text.mp4")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.png: neither a JPEG nor a PNG"):
        list(read_frames(tmp_path).frames)


def test_damaged_pictures_are_named_or_skipped(tmp_path):
    for name in ("0", "1", "2"):
        write_gray(tmp_path / f"{name}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"1\.png: truncated PNG"):
        list(read_frames(tmp_path).frames)
    count, frames = read_frames(tmp_path, on_error="skip")
    assert count == 3 and [frame.name for frame in frames] == ["0.png", "2.png"]


def test_a_picture_that_cannot_be_read_is_skipped_too(tmp_path):
    write_gray(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"1\.png: cannot be read"):
        list(read_frames(tmp_path).frames)
    _, frames = read_frames(tmp_path, on_error="skip")
    assert [frame.name for frame in frames] == ["0.png"]


def test_pictures_that_differ_in_their_suffix_alone(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/1.jpg"):
        write_gray(tmp_path / name)
    with pytest.raises(ValueError, match=r"b/1\.jpg and .*b/1\.png would have the same results"):
        read_frames(tmp_path)
