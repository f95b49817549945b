"""Pickles that want to run code, crash the reader, or make it take all time and memory."""

import pickle
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.pickles import (
    START,
    Content,
    archive,
    call,
    gadgets,
    legacy,
    made_by,
    number,
    table,
    tensor,
    text,
    tuple_of,
    whole,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def gadget_files() -> Iterator[tuple[str, Content]]:
    """Every gadget in every protocol, as an archive, in torch's older format, and bare."""
    wrappers: dict[str, Callable[[bytes], bytes]] = {
        "an archive": archive,
        "the older format": legacy,
        "a bare pickle": bytes,
    }
    for name in gadgets(Path()):
        for protocol in PROTOCOLS:
            for place, wrap in wrappers.items():
                if place == "an archive" or protocol in (2, 4):
                    yield (
                        f"{name} in protocol {protocol} in {place}",
                        make_gadget(name, protocol, wrap),
                    )


def make_gadget(name: str, protocol: int, wrap: Callable[[bytes], bytes]) -> Content:
    def make(folder: Path) -> bytes:
        held = {"format": 1, "model": {"w": gadgets(folder / "canary")[name]}}
        return wrap(pickle.dumps(held, protocol))

    return make


def odd_pickles() -> Iterator[tuple[str, Content]]:
    """What torch's reader would crash on, hang on, or fill the memory with; and nonsense."""
    for name, make in PICKLES.items():
        yield f"{name} in an archive", made_by(partial(wrapped, archive, make))
        yield f"{name} in the older format", made_by(partial(wrapped, legacy, make))


def wrapped(wrap: Callable[[bytes], bytes], make: Callable[[], bytes]) -> bytes:
    return wrap(make())


def doubling(levels: int, kind: bytes) -> bytes:
    """A tuple, or list, that holds one twice, which holds one twice, and so on."""
    if kind == b"tuple":
        return b")q\0" + b"h\0h\0\x86q\0" * levels
    return b"]q\0" + b"](h\0h\0eq\0" * levels


def key(value: bytes) -> bytes:
    """A pickle of a table that has the value as a key."""
    return whole(b"}" + value + b"K\x01s")


def held(value: bytes) -> bytes:
    """A pickle of a checkpoint with the value as its model."""
    return whole(table(format=number(1), model=value))


PICKLES: dict[str, Callable[[], bytes]] = {
    "a key of 2^60 elements": lambda: key(doubling(60, b"tuple")),
    "a set of 2^60 elements": lambda: whole(
        call("builtins set", b"](" + doubling(60, b"tuple") + b"e")
    ),
    "a key 200,000 levels deep": lambda: key(b")" + b"\x85" * 200_000),
    "a long key many times": lambda: whole(
        b"}" + b"(" + b"K\1" * 9000 + b"tq\0K\1s" + b"h\0K\1s" * 50_000
    ),
    "a list of 2^60 elements": lambda: held(doubling(60, b"list")),
    "a list 100,000 levels deep": lambda: held(b"]" * 100_000 + b"a" * 99_999),
    "a list that holds itself": lambda: held(b"]q\0h\0a"),
    "a table that holds itself": lambda: whole(b"}q\0" + text("model") + b"h\0s"),
    "millions of operations": lambda: held(b"](" + b"N" * 3_000_000 + b"e"),
    "a key of 30 MB": lambda: key(text("\x1b[31m\n" + "k" * 30_000_000)),
    "a key with escapes": lambda: key(text("\x1b[2J\x07\r\n\u202e" * 20)),
    "a bytearray of 2 GB": lambda: held(call("builtins bytearray", b"J\xff\xff\xff\x7f")),
    "many bytearrays": lambda: held(
        b"](" + call("__builtin__ bytearray", b"J\0\0\0\x10") * 30 + b"e"
    ),
    "a counter": lambda: held(call("collections Counter", text("a" * 9000))),
    "an encoding": lambda: held(call("_codecs encode", text("é" * 400_000), text("idna"))),
    "an imported encoding": lambda: held(call("_codecs encode", text("a"), text("uu"))),
    "a string longer than the file": lambda: START + b"X\xff\xff\xff\xff" + b"a",
    "a string of 2^62 bytes": lambda: START + b"\x8d" + struct.pack("<Q", 1 << 62),
    "bytes of 2^62": lambda: START + b"\x8e" + struct.pack("<Q", 1 << 62),
    "a bytearray of 2^62": lambda: START + b"\x96" + struct.pack("<Q", 1 << 62),
    "a frame of 2^62 bytes": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "a number of 2 GB": lambda: START + b"\x8b\xff\xff\xff\x7f",
    "a number of many digits": lambda: START + b"L" + b"9" * 3_000_000 + b"L\n.",
    "a memo that is not there": lambda: whole(b"h\x07"),
    "a memo with a high number": lambda: whole(b"Nr\xff\xff\xff\xff}"),
    "nothing on the stack": lambda: whole(b"\x86"),
    "no mark": lambda: whole(b"t"),
    "no end": lambda: START + b"}" * 1000,
    "only a start": lambda: START,
    "another protocol": lambda: b"\x80\xff}.",
    "a global by stack": lambda: b"\x80\x04\x8c\x02os\x8c\x06system\x93." + b"",
    "an instance": lambda: START + b"(ios\nsystem\n.",
    "an extension": lambda: whole(b"\x82\x01"),
    "a persistent text": lambda: START + b"Pname\n.",
    "a persistent list": lambda: whole(b"]Q"),
    "a dotted global": lambda: whole(call("torch._utils os.system", text("touch canary"))),
    "a global of torch": lambda: whole(call("torch float.__class__", text("a"))),
    "a module of torch": lambda: whole(call("torch.nn.modules.linear Linear", b"K\2", b"K\2")),
    "a tensor class": lambda: whole(call("torch Tensor", number(10**10))),
    "an attribute that shadows": lambda: held(
        call("collections OrderedDict") + table(items=b"K\x01", keys=b"K\x01") + b"b"
    ),
}


def lying_tensors() -> Iterator[tuple[str, Content]]:
    """State dicts and checkpoints whose tensors are not what they say."""
    for name, made in TENSORS.items():
        yield f"{name} as weights", archive(whole(table(w=made)))
        yield f"{name} in a checkpoint", archive(held(table(w=made)))


STORED = (
    tuple_of(text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(4)) + b"Q"
)
TENSORS: dict[str, bytes] = {
    "more elements than stored": tensor((10**9,)),
    "2^40 elements": tensor((1 << 40,)),
    "2^60 elements of stride 0": tensor((1 << 60,), (0,)),
    "a million elements of stride 0": tensor((10**6,), (0,)),
    "a size that overflows": tensor((1 << 40, 1 << 40), (0, 0)),
    "a negative stride": tensor((4,), (-1,)),
    "a negative size": tensor((-4,)),
    "an offset beyond the storage": tensor(offset=1 << 40),
    "a negative offset": tensor(offset=-1),
    "more sizes than strides": tensor((2, 2), (1,)),
    "a thousand dimensions": tensor((1,) * 1000, (1,) * 1000),
    "a storage of 2^60 elements": tensor(elements=1 << 60),
    "a storage of -1 elements": tensor(elements=-1),
    "an unknown storage": tensor(storage="torch FooStorage"),
    "a storage that is a function": tensor(storage="torch save"),
    "complex numbers": tensor((2,), storage="torch ComplexFloatStorage", elements=2),
    "quantised numbers": tensor(storage="torch QUInt8Storage", elements=16),
    "the place meta": tensor(place="meta"),
    "the place cuda": tensor(place="cuda:99"),
    "an unknown place": tensor(place="moon:0"),
    "a key out of the archive": tensor(key=text("../../../etc/passwd")),
    "a key that is not there": tensor(key=text("77")),
    "a key that is a number": tensor(key=number(0)),
    "a key that is a table": tensor(key=b"}"),
    "odd metadata": tensor(more=(table(conj=b"\x88", evil=b"K\1"),)),
    "metadata that is no table": tensor(more=(b"K\1",)),
    "sparse elements": call(
        "torch._utils _rebuild_sparse_tensor",
        b"ctorch.serialization\n_get_layout\n" + tuple_of(text("torch.sparse_coo")) + b"R",
        tuple_of(tensor(), tensor(), tuple_of(number(1 << 60))),
    ),
    "no storage": call(
        "torch._utils _rebuild_meta_tensor_no_storage",
        b"ctorch\nfloat32\n",
        tuple_of(number(1 << 60)),
        tuple_of(number(1)),
        b"\x89",
    ),
    "a state with attributes": call(
        "torch._utils _rebuild_parameter_with_state",
        tensor(),
        b"\x89",
        call("collections OrderedDict"),
        table(detach=b"K\1", nbytes=b"K\1"),
    ),
    "a class of its own": call(
        "torch._tensor _rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nTensor\n",
        tuple_of(STORED),
        b"}",
    ),
}
