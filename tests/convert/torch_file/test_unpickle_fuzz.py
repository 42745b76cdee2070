"""Thousands of damaged files: each soon loads or is refused, and none runs code.

The files are loaded by this same file run as a script, in a process whose audit hook records every
event (importing, opening, executing, ...) other than the opening of the file itself.
"""

import codecs
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.torch_files import Call, Global, Raw, dumps, legacy_bytes, tensor, write_zip

SEED = 20200615

# What the parsers of the standard library raise on damaged bytes; an AttributeError or a TypeError
# behind the converter's error would be a mistake of ours.
PARSER_ERRORS = {
    *("ValueError", "UnicodeDecodeError", "BadZipFile", "NotImplementedError", "RuntimeError"),
    *("OSError", "EOFError", "error", "OverflowError"),
}

RUN_TOUCH = Call(Global("posix", "system"), ("touch ran",))
# Opcodes that are worth splicing in anywhere: ways to call, and long or deep arguments.
SPLICES = [
    *(b"cposix\nsystem\n", b"X\x08\0\0\0touch ran\x85R", b"c__builtin__\neval\n", b"R", b"b", b"Q"),
    *(b"(S'touch ran'\niposix\nsystem\n", b"\x93", b"\x81", b"\x92", b"o", b"\x82\x01", b"t", b"."),
    *(b"X\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"r\xff\xff\xff\xff"),
    *(b"\x8a\x09" + b"\0" * 8 + b"\x7f", b"J\xff\xff\xff\xff", b"h\x00", b"2", b"0", b"1", b"u"),
    *(b"]" * 200, b"(" * 200, b")q\x00" + b"h\x00h\x00\x86q\x00" * 40),
]


def base_files():
    """Pickles of honest and hostile files, and the storages they need: [(pickle, {key: array})]."""
    storages = {
        "0": np.arange(150, dtype="<f4"),
        "1": np.arange(3, dtype="<i8"),
        "2": np.ones(2, np.uint8),
    }
    weights = {
        "w": tensor((2, 75)),
        "t": tensor((75, 2), (1, 75)),
        "n": tensor((3,), kind="LongStorage", key="1"),
        "mask": tensor((2,), kind="BoolStorage", key="2"),
    }
    ordered = Call(Global("collections", "OrderedDict"), (), {"_metadata": {"version": 1}})
    checkpoint = {"epoch": 3, "best": 0.5, "state_dict": weights, "other": [ordered, None, True]}
    return [
        (dumps(weights), storages),
        (dumps(checkpoint), storages),
        (dumps({**weights, "evil": RUN_TOUCH}), storages),
        (dumps({**weights, "evil": Call(Raw(b"c__builtin__\neval\n"), ("1",))}), storages),
    ]


def mutate(rng, content):
    """One to four random edits of some bytes."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 2, 4, 8, 50))
        match rng.randrange(7):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = rng.choice(SPLICES)
            case 5:
                content[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
            case 6:
                start = rng.randrange(len(content) + 1)
                chunk = content[start : start + length]
                content[at : at + len(chunk)], content[start : start + length] = (
                    chunk,
                    content[at : at + len(chunk)],
                )
    return bytes(content)


def write_mutant(rng, path, pickled, storages):
    """In either form, with the edits in the pickle alone or anywhere in the file."""
    zipped, whole_file = rng.random() < 0.5, rng.random() < 0.5
    if not whole_file:
        pickled = mutate(rng, pickled)
    if zipped:
        write_zip(path, pickled, {key: v.tobytes() for key, v in storages.items()})
        content = path.read_bytes()
    else:
        content = legacy_bytes(pickled, {key: (v.size, v.tobytes()) for key, v in storages.items()})
    path.write_bytes(mutate(rng, content) if whole_file else content)


def load_mutants(folder, num_files):
    """Loads every file; returns counts of what happened and of what the audit hook saw."""
    from mdeq_jax.convert.errors import WeightsFileError
    from mdeq_jax.convert.torch_file.unpickle import load_torch_file

    path, rng, bases = folder / "mutant.pkl", random.Random(SEED), base_files()
    outcomes, causes, events, slowest = Counter(), Counter(), Counter(), 0.0
    loading = False

    def record(event, args):
        # `reprlib` calls id() on what it shortens for a message.
        if loading and event != "builtins.id" and not (event == "open" and args[0] == str(path)):
            events[f"{event} {args}"[:100]] += 1

    for codec in ("cp437", "latin1", "raw_unicode_escape"):  # imported by Python at first use
        codecs.lookup(codec)
    sys.addaudithook(record)
    loading = True
    eval("1")  # the hook must see this
    seen_by_hook, loading = sorted(events), False
    events.clear()
    for _ in range(num_files):
        write_mutant(rng, path, *rng.choice(bases))
        start = time.process_time()
        loading = True
        try:
            loaded = load_torch_file(path)
            outcome = "loaded"
        except WeightsFileError as error:
            outcome, cause = "refused", error.__cause__
            if cause is not None:
                causes[type(cause).__name__] += 1
        finally:
            loading = False
        slowest = max(slowest, time.process_time() - start)
        outcomes[outcome] += 1
        if outcome == "loaded":
            for array in loaded.values():
                array.sum()  # every element can be read
    return {
        "outcomes": outcomes,
        "causes": causes,
        "seen_by_hook": seen_by_hook,
        "events": events,
        "slowest": slowest,
        "files": sorted(p.name for p in folder.iterdir()),
    }


@pytest.mark.parametrize("num_files", [1500, pytest.param(6000, marks=pytest.mark.slow)])
def test_mutated_files_never_run_hang_or_raise_another_error(num_files, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", __file__, tmp_path, str(num_files)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    print(report)
    assert sum(report["outcomes"].values()) == num_files
    assert report["outcomes"]["loaded"] > num_files / 60
    assert report["outcomes"]["refused"] > num_files / 6
    assert report["seen_by_hook"] and report["events"] == {}
    assert report["files"] == ["mutant.pkl"]
    assert set(report["causes"]) <= PARSER_ERRORS
    assert report["slowest"] < 1


if __name__ == "__main__":
    limit = 4 * 2**30  # of address space; a file that asks for more fails, and is seen in `causes`
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(load_mutants(Path(sys.argv[1]), int(sys.argv[2]))))
