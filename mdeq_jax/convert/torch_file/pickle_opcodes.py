"""A pickle reader that only builds plain containers, scalars and objects of an allow-list.

Python's `Unpickler` runs whatever a pickle names. This reader interprets the opcodes that
`torch.save` writes, with the same stack, marks and memo. The standard library's `pickletools`
describes the language and decodes the arguments. A global is looked up in a table of the caller
and never imported. An opcode that is not listed below is refused.
"""

import pickletools
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from mdeq_jax.convert.errors import WeightsFileError
from mdeq_jax.convert.torch_file.allowed import (
    AllowedCall,
    UnsafePickleError,
    check_key,
    refused_global,
)

# The largest released state dict takes 17,000 opcodes and 65 KB, and each of an optimizer's two
# moments as much again. These limits stop a hostile file within a fraction of a second and 100 MB.
MAX_OPCODES = 300_000
MAX_PICKLE_BYTES = 8 * 2**20


def read_pickle(
    data: bytes,
    allowed_globals: Mapping[tuple[str, str], object],
    persistent_load: Callable[[object], object] | None = None,
) -> tuple[object, int]:
    """Reads the pickle at the start of `data`.

    Args:
        data: bytes that begin with a pickle; the bytes after it are not read.
        allowed_globals: (module, name) -> the object that replaces that global. Only an
            `AllowedCall` can be called.
        persistent_load: turns a persistent id into an object; None refuses persistent ids.

    Returns:
        The object, and the number of bytes its pickle takes.

    Raises:
        WeightsFileError: the pickle names a global that is not allowed, or is malformed.
        ValueError: `pickletools` cannot decode an opcode or its argument.
    """
    machine = _Machine(allowed_globals, persistent_load)
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if count == MAX_OPCODES:
            raise WeightsFileError(
                f"the pickle has more than {MAX_OPCODES:,} opcodes, far more than a network needs"
            )
        if opcode.name == "STOP":
            assert position is not None  # `genops` knows it for bytes
            return machine.pop(), position + 1
        handler = _HANDLERS.get(opcode.name)
        if handler is None:
            raise WeightsFileError(
                f"the pickle uses the opcode {opcode.name} at byte {position}, which a file of "
                "plain containers and tensors does not need; refused, and nothing was run"
            )
        handler(machine, argument)
    raise WeightsFileError("the pickle ends before its STOP opcode: the file is cut short")


class _Machine:
    """The pickle machine: the stack since the last mark, the stacks below the marks, the memo."""

    def __init__(self, allowed_globals, persistent_load):
        self.allowed_globals = allowed_globals
        self.persistent_load = persistent_load
        self.stack = []
        self.marked_stacks = []
        self.memo = {}  # a dict, not a list: a huge index costs nothing

    def pop(self):
        if not self.stack:
            raise WeightsFileError("damaged pickle: an opcode needs a value and the stack is empty")
        return self.stack.pop()

    def pop_to_mark(self):
        if not self.marked_stacks:
            raise WeightsFileError("damaged pickle: an opcode needs a mark and there is none")
        items = self.stack
        self.stack = self.marked_stacks.pop()
        return items

    def top(self, *types: type) -> Any:
        """Returns the value on top of the stack, which must have exactly one of these types."""
        value = self.stack[-1] if self.stack else None
        if type(value) not in types:
            expected = " or ".join(t.__name__ for t in types)
            raise WeightsFileError(
                f"damaged pickle: an opcode needs a {expected} and found a {type(value).__name__}"
            )
        return value

    def push(self, value):
        self.stack.append(value)

    def mark(self, _):
        self.marked_stacks.append(self.stack)
        self.stack = []

    def put(self, index):
        # The text form of PUT has no bound, and long integers with equal hashes are easy to make.
        if not 0 <= index < 2**32:
            raise WeightsFileError("damaged pickle: a memo index is not in 0..2**32-1")
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def memoize(self, _):
        self.put(len(self.memo))

    def get(self, index):
        if index not in self.memo:
            raise WeightsFileError(
                f"damaged pickle: it reads memo entry {reprlib.repr(index)}, which was never stored"
            )
        self.stack.append(self.memo[index])

    def marked_tuple(self, _):
        self.push(tuple(self.pop_to_mark()))

    def marked_list(self, _):
        self.push(self.pop_to_mark())

    def marked_dict(self, _):
        items = self.pop_to_mark()
        self.push({})
        self._set_items(items)

    def append(self, _):
        value = self.pop()
        self.top(list).append(value)

    def appends(self, _):
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def add_items(self, _):
        values = self.pop_to_mark()
        self.top(set).update(check_key(value) for value in values)

    def set_item(self, _):
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def set_items(self, _):
        self._set_items(self.pop_to_mark())

    def _set_items(self, items):
        if len(items) % 2:
            raise WeightsFileError("damaged pickle: a dict has a key without a value")
        target = self.top(dict, OrderedDict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def find_global(self, argument):
        # `pickletools` joins the two lines of GLOBAL and INST with a space.
        module, _, name = argument.partition(" ")
        self.push(self._look_up(module, name))

    def stack_global(self, _):
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise WeightsFileError("damaged pickle: the name of a global is not a string")
        self.push(self._look_up(module, name))

    def _look_up(self, module, name):
        if (module, name) in self.allowed_globals:
            return self.allowed_globals[module, name]
        raise refused_global(module, name)

    def old_instance(self, argument):
        self.find_global(argument)
        call, args = self.pop(), tuple(self.pop_to_mark())
        self._call(call, args)

    def extension(self, code):
        raise UnsafePickleError(
            f"refused: the pickle names a global by the extension code {code}, which hides what it "
            "is and could run code. Nothing was run."
        )

    def reduce(self, _):
        args, function = self.pop(), self.pop()
        self._call(function, args)

    def _call(self, function, args):
        if type(function) is not AllowedCall:
            raise UnsafePickleError(
                f"refused: the pickle calls a {type(function).__name__}, which is not one of the "
                "functions that rebuild tensors and so could run code. Nothing was run."
            )
        if type(args) is not tuple or not function.min_args <= len(args) <= function.max_args:
            raise WeightsFileError(
                f"damaged pickle: {function.call.__name__} is called with {reprlib.repr(args)}, "
                f"not with {function.min_args} to {function.max_args} arguments"
            )
        self.push(function.call(*args))

    def build(self, _):
        """Drops the attributes of an OrderedDict, such as `_metadata` of a state dict."""
        state = self.pop()
        target = self.top(OrderedDict)
        if type(state) is not dict:
            raise WeightsFileError(
                f"damaged pickle: the attributes of a {type(target).__name__} are a "
                f"{type(state).__name__}, not a dict"
            )

    def persistent_id(self, _):
        if self.persistent_load is None:
            raise WeightsFileError("damaged file: a tensor storage where none can stand")
        self.push(self.persistent_load(self.pop()))


def _constant(value):
    return lambda machine, _: machine.push(value)


def _empty(container):
    return lambda machine, _: machine.push(container())


def _short_tuple(length):
    def build(machine, _):
        items = [machine.pop() for _ in range(length)]
        machine.push(tuple(reversed(items)))

    return build


def _ignore(machine, _):
    """PROTO and FRAME: the protocol changes no opcode, and all data are in memory."""


_HANDLERS = {
    **dict.fromkeys(("PROTO", "FRAME"), _ignore),
    **{"NONE": _constant(None), "NEWTRUE": _constant(True), "NEWFALSE": _constant(False)},
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _Machine.push),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"), _Machine.push),
    **{"EMPTY_DICT": _empty(dict), "EMPTY_LIST": _empty(list), "EMPTY_SET": _empty(set)},
    **{"EMPTY_TUPLE": _constant(()), "TUPLE": _Machine.marked_tuple},
    **{f"TUPLE{length}": _short_tuple(length) for length in (1, 2, 3)},
    **{"MARK": _Machine.mark, "LIST": _Machine.marked_list, "DICT": _Machine.marked_dict},
    **{"APPEND": _Machine.append, "APPENDS": _Machine.appends, "ADDITEMS": _Machine.add_items},
    **{"SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items},
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **{"MEMOIZE": _Machine.memoize, "BINPERSID": _Machine.persistent_id},
    **{"GLOBAL": _Machine.find_global, "STACK_GLOBAL": _Machine.stack_global},
    **{"REDUCE": _Machine.reduce, "BUILD": _Machine.build, "INST": _Machine.old_instance},
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
}
