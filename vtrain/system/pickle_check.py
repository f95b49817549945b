"""What a pickle would build, found out without building it.

torch's reader for weights runs no code, but it can be crashed (a tuple nested a million times, once
it is hashed), made to hang (a tuple of 2^60 elements that are all the same) or to fill the memory
(`bytearray(2**31)`). Such a pickle is refused before torch sees it.
"""

import pickletools
from typing import Any, BinaryIO, NamedTuple

# For plain data, such as the metrics of 10,000 epochs, and for each tensor.
MAX_OPERATIONS = 300_000
OPERATIONS_PER_TENSOR = 60
MAX_REPEATED = 1_000_000  # elements of objects that are referred to again
MAX_TUPLE_DEPTH = 64
_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch device",
        "torch._utils _rebuild_meta_tensor_no_storage",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_qtensor",
        "torch._utils _rebuild_sparse_tensor",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_tensor_v3",
        "torch.nn.parameter Parameter",
        "torch.storage TypedStorage",
        "torch.storage UntypedStorage",
        "torch.storage _LegacyStorage",
        "torch.serialization _get_layout",
        "__builtin__ set",
        "builtins set",
        "__builtin__ complex",
        "builtins complex",
        "_codecs encode",
    }
)
_NUMBERS_OF_TORCH = ("float", "bfloat", "int", "uint", "complex", "bool", "quint", "qint")
# How bytes are written: as text in this encoding. Others can take very long.
_ENCODE, _ENCODING = "_codecs encode", "latin1"


class PickleRefusedError(ValueError):
    """The pickle holds what weights and checkpoints have no need of."""


class PythonObjectError(PickleRefusedError):
    """The pickle names an object that is neither tensor nor plain data; its name is the message."""


class _Item(NamedTuple):
    """What is known of an object: elements and depth of a tuple, the text of a string or global.

    `last` is the text of a tuple's last element.
    """

    elements: int = 1
    depth: int = 0
    text: str | None = None
    last: str | None = None


_OTHER = _Item()
_PUSHES = frozenset(
    {
        "BINFLOAT",
        "BININT",
        "BININT1",
        "BININT2",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_SET",
        "EMPTY_TUPLE",
        "LONG1",
        "NEWFALSE",
        "NEWTRUE",
        "NONE",
        "SHORT_BINSTRING",
    }
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Take so many objects off, of which the first stays.
_TAKES = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TAKES_MARKED = frozenset({"APPENDS", "SETITEMS"})


def check_pickle(stream: BinaryIO, *, tensors: int = 0) -> None:
    """Follow the next pickle of the stream, of so many stored tensors, up to its end.

    Raises:
        PickleRefusedError: it is none that torch.save writes for weights and plain data.
        Exception: of any kind, where it is damaged.
    """
    follower, limit = _Follower(), MAX_OPERATIONS + OPERATIONS_PER_TENSOR * tensors
    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if number >= limit:
            raise PickleRefusedError(f"its pickle has more than {limit:,} operations")
        follower.follow(operation.name, argument)


class _Follower:
    """The stack and the memo of a reader, with items in place of objects."""

    def __init__(self) -> None:
        self._stack: list[_Item] = []
        self._marked: list[list[_Item]] = []
        self._memo: dict[int, _Item] = {}
        self._repeated = 0

    def follow(self, name: str, argument: Any) -> None:
        """Do what an operation does to the stack."""
        stack = self._stack
        if name in _PUSHES:
            stack.append(_OTHER)
        elif name == "BINUNICODE":
            stack.append(_Item(text=argument if len(argument) < 80 else None))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._repeat(self._memo[argument])
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            self._stack = self._marked.pop()
            self._stack.append(_join(stack))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [_join(stack[-_TUPLES[name] :])]
        elif name in _TAKES:
            del stack[-_TAKES[name] :]
        elif name in _TAKES_MARKED:
            self._stack = self._marked.pop()
        else:
            self._build(name, argument)

    def _repeat(self, item: _Item) -> None:
        self._stack.append(item)
        self._repeated += item.elements
        if self._repeated > MAX_REPEATED:  # all of them are looked at when a key is hashed
            raise PickleRefusedError("it repeats tuples within tuples")

    def _build(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            _check_global(argument)
            stack.append(_Item(text=argument))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            if stack.pop().text == _ENCODE and arguments.last != _ENCODING:
                raise PickleRefusedError(f"it encodes text as {arguments.last!r}")
            stack.append(_OTHER)
        elif name == "BINPERSID":
            stack[-1] = _OTHER
        elif name not in ("PROTO", "STOP"):
            raise PickleRefusedError(f"its pickle has the operation {name}")


def _join(items: list[_Item]) -> _Item:
    depth = 1 + max((item.depth for item in items), default=0)
    if depth > MAX_TUPLE_DEPTH:
        raise PickleRefusedError(f"it holds tuples nested more than {MAX_TUPLE_DEPTH} levels deep")
    elements = 1 + sum(item.elements for item in items)
    return _Item(elements, depth, last=items[-1].text if items else None)


def _check_global(name: str) -> None:
    module, _, attribute = name.partition(" ")
    known = name in _GLOBALS or (
        module == "torch"
        and (attribute.startswith(_NUMBERS_OF_TORCH) or attribute.endswith("Storage"))
        and attribute.isidentifier()
    )
    if not known:
        shown = f"{module}.{attribute}"
        for prefix in ("builtins.", "__builtin__."):
            shown = shown.removeprefix(prefix)
        raise PythonObjectError(f"{shown:.200}")
