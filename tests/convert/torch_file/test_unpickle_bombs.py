"""Small files made to exhaust time or memory, each loaded in a process that is measured."""

import copy
import json
import struct
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.torch_files import (
    ORDERED_DICT,
    Call,
    Raw,
    dumps,
    opcodes,
    tensor,
    write_legacy,
    write_zip,
)

MEASURE = """
import json, sys, time
from pathlib import Path
from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.unpickle import load_torch_object

def peak_mb():
    # Not `ru_maxrss`, which a new process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

before, start = peak_mb(), time.process_time()
try:
    load_torch_object(sys.argv[1])
    message = ""
except WeightsFileError as error:
    message = str(error)
seconds = time.process_time() - start
print(json.dumps([message, seconds, peak_mb() - before]))
"""


def pickled_bomb(code, expected):
    return lambda path: write_zip(path, dumps(Raw(code))), expected


def compressed(path):
    write_zip(path, dumps({"w": tensor((2**26,))}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**28))


def lying_sizes(path):
    write_zip(path, dumps({"w": tensor((6,))}), {"0": bytes(24)})
    content = path.read_bytes()
    start = content.rindex(b"PK\x01\x02")
    sizes = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content[: start + 20] + sizes + content[start + 28 :])


def overlapping(path, count, size):
    """A zip that lists one member so many times under different names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(size))
        for i in range(count):
            member = copy.copy(archive.filelist[0])
            member.filename = f"archive/data/{i:060}"
            archive.filelist.append(member)


def many_storages(path):
    saved = [tensor((2**20,), key=str(i)) for i in range(5000)]
    write_zip(path, dumps(saved), {"0": bytes(2**22)})


def many_dicts(path):
    write_zip(path, dumps([Call(ORDERED_DICT, ())] * 65_000))


def same_hashes(path):
    # Opcodes, not a dict: making that dict here would take the half minute it is to cost.
    items = b"".join(opcodes(i * (2**61 - 1)) + b"N" for i in range(65_000))
    write_zip(path, dumps(Raw(b"}(" + items + b"u")))


def long_text(path):
    path.write_bytes(b"a line of text " * 2**22)


def nested_twice(opcode):
    """x = (); x = (x, x) 60 times, by way of the memo."""
    return b")" + b"".join(b"q\x00h\x00" + opcode for _ in range(60))


BOMBS = {
    "compressed zip": (compressed, "to 268435456)"),
    "lying sizes": (lying_sizes, "declares 2,147,48"),
    "overlapping members": (lambda path: overlapping(path, 2000, 2**20), "of content in a file of"),
    "endless list of members": (lambda path: overlapping(path, 45_000, 0), "list of members takes"),
    "many members": (lambda path: overlapping(path, 30_000, 0), "ends before its STOP|exhausted"),
    "long string": pickled_bomb(b"X\xff\xff\xff\xffab", "expected 4294967295 bytes"),
    "long bytes": pickled_bomb(b"B\xff\xff\xff\xffab", "expected 4294967295 bytes"),
    "longer string": pickled_bomb(b"\x8d" + struct.pack("<Q", 2**62) + b"ab", "expected 46116"),
    "long integer": pickled_bomb(b"\x8b\xff\xff\xff\x7fab", "not enough data in stream"),
    "integer of 1 MB": pickled_bomb(b"\x8b\0\0\x10\0" + b"1" * 2**20, "opcode LONG4"),
    "decimal integer": pickled_bomb(b"L" + b"1" * 2**20 + b"L\n", "Exceeds the limit"),
    "frame": pickled_bomb(b"\x95" + b"\xff" * 8 + b"N", ""),
    "memo index": pickled_bomb(b"Nr\xff\xff\xff\xff", ""),
    "text memo index": pickled_bomb(b"Np99999999999999\n", "memo index"),
    "opcodes": pickled_bomb(b"N" * 2**20, "more than 300,000 opcodes"),
    "opcodes in 100 MB": pickled_bomb(b"N" * 10**8, "at most 8,388,608 are read"),
    "marks": pickled_bomb(b"(" * 299_000, "stack is empty"),
    "deep nesting": pickled_bomb(b"]" * 140_000 + b"a" * 139_999, "deeper than 50"),
    "deep tuples": pickled_bomb(b")" + b"\x85" * 200_000, "deeper than 50"),
    "unfolding tuples": pickled_bomb(nested_twice(b"\x86"), "deeper than 50"),
    "unfolding wide": pickled_bomb(
        b")q\x00" + (b"(" + b"h\x00" * 1000 + b"tq\x00") * 20, "more than 300,000 values"
    ),
    "unfolding key": pickled_bomb(b"}" + nested_twice(b"\x86") + b"Ns", "has the key"),
    "unfolding set": pickled_bomb(b"\x8f(" + nested_twice(b"\x86") + b"\x90", "has the key"),
    "unfolding size": pickled_bomb(
        b"ctorch\nSize\n" + nested_twice(b"\x86") + b"\x85R", "torch.Size"
    ),
    "cycle": pickled_bomb(b"]q\x00h\x00a", "deeper than 50"),
    "equal hashes": (same_hashes, "below 2**60"),
    "many storages": (many_storages, "more than the whole file has"),
    "many dicts": (many_dicts, ""),
    "huge storage": (
        lambda path: write_legacy(path, dumps({"w": tensor((2**60,))})),
        "more than the whole file has",
    ),
    "expanded": (
        lambda path: write_zip(path, dumps({"w": tensor((2**40,), (0,), numel=1)}), {"0": b"0000"}),
        "repeats 1 elements",
    ),
    "absurd shape": (
        lambda path: write_zip(path, dumps(tensor((2**40,) * 9, numel=1)), {"0": b"0000"}),
        "its storage has 1",
    ),
    "text of 60 MB": (long_text, "It is text"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("case", BOMBS)
def test_bombs_end_soon_and_small(tmp_path, case):
    make, expected = BOMBS[case]
    path = tmp_path / "bomb.pkl"
    make(path)
    command = [sys.executable, "-c", MEASURE, path]
    for _ in range(3):  # a processor that other work shares is slower than it is
        ran = subprocess.run(command, capture_output=True, check=True, timeout=60)
        message, seconds, megabytes = json.loads(ran.stdout)
        if seconds < 1:
            break
    print(f"{case}: {seconds:.2f} s, {megabytes:.0f} MB, {message}")
    if expected:
        assert any(part in message for part in expected.split("|"))
    else:
        assert not message
    assert seconds < 1 and megabytes < 400
