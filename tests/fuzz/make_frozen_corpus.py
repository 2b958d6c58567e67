# SPDX-License-Identifier: MIT
"""Writes tests/fuzz/frozen/: the layer of frozen_fuzz.cpp as save_frozen() would write it, from the layouts
that io/frozen.hpp and kernels/storage_table.hpp say, and some that contradict themselves.

Run it in this folder: python make_frozen_corpus.py
The name says what an input holds; all but sound_* must be refused. Machines have panels of 16 or
32 columns and refuse the sound ones of the other width. found_* are by the fuzzer, and stay.
"""

import json
import pathlib
import random
import struct

folder = pathlib.Path(__file__).parent / "frozen"
folder.mkdir(exist_ok=True)
numbers = random.Random(1)
dim = 4


def size(shape):
    count = 1
    for extent in shape:
        count *= extent
    return count


def floats(*shape):
    values = [numbers.randrange(-32, 33) / 16 for _ in range(size(shape))]
    return "F32", list(shape), struct.pack(f"<{len(values)}f", *values)


def panels(storage, width, columns):
    """Any codes will do; scales are small."""
    each = lambda make: b"".join(make() for _ in range(width))
    code = lambda count: bytes(numbers.randrange(256) for _ in range(count * width))
    float_scale = lambda: struct.pack("<f", numbers.randrange(64) / 1024)
    half_scale = lambda: struct.pack("<e", numbers.randrange(64) / 1024)
    panel = b""
    if storage == "fp32":
        panel = b"".join(each(lambda: struct.pack("<f", numbers.randrange(-32, 33) / 16)) for _ in range(dim))
    elif storage in ("int8", "ternary"):
        panel = each(float_scale)
    for _ in range(0 if storage == "fp32" else 2):  # records of 32 rows
        if storage in ("bf16", "f16"):
            value = lambda: struct.pack("<f", numbers.randrange(-32, 33) / 16)[2:]
            panel += b"".join(each(value) for _ in range(32))
        else:
            panel += code({"int8": 32, "int8_block": 32, "int4": 16, "int4_zero": 16, "ternary": 8}[storage])
        if storage in ("int8_block", "int4", "int4_zero"):
            panel += each(half_scale)
        if storage == "int4_zero":
            panel += code(1)
    panel += bytes(-len(panel) % 64)
    data = panel * (-(-columns // width))
    return "U64", [len(data) // 8], data


def file(tensors):
    """Wider types first, then by name; data starts at a multiple of 64."""
    header, data = {}, b""
    width = {"U64": 8, "F32": 4, "U8": 1}
    for name, (dtype, shape, part) in sorted(tensors.items(), key=lambda t: (-width.get(t[1][0], 2), t[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text + data


def text(storages, width, compute="exact"):
    parameters = 2 * (3 * dim * dim + 3 * dim) + 3 * dim
    lines = ["moe-frozen 1", "scalar F32", f"panels {width}", f"model_dim {dim}", f"output_dim {dim}",
             "input_scale 1", f"parameters {parameters}"]
    lines += [f"experts.{e} gated silu {dim} {dim} {dim} limit 7 up_offset 1 {storage} {compute}"
              for e, storage in enumerate(storages)]
    lines += [f"experts.2 free class 1 flops {2 * dim}"]
    return as_text("".join(line + "\n" for line in lines))


def as_text(lines):
    data = lines.encode()
    return "U8", [len(data)], data


def layer(storages=("fp32", "fp32"), width=16, compute="exact"):
    all = {"layer.frozen": text(storages, width, compute), "layer.router.weight": floats(3, dim)}
    for e, storage in enumerate(storages):
        all[f"layer.experts.{e}.gate_up"] = panels(storage, width, 32)
        all[f"layer.experts.{e}.down"] = panels(storage, width, dim)
        all[f"layer.experts.{e}.gate_up_bias"] = floats(1, 32)  # 16 of gate, 16 of up
        all[f"layer.experts.{e}.down_bias"] = floats(1, dim)
    return all


def put(name, tensors):
    (folder / name).write_bytes(file(tensors))


def changed(name, value, tensors=None):
    tensors = dict(tensors or layer())
    tensors.pop("layer." + name, None)
    if value is not None:
        tensors["layer." + name] = value
    return tensors


put("sound_16_fp32", layer())
put("sound_32_fp32", layer(width=32))
put("sound_16_bf16", layer(("bf16", "bf16"), 16, "bf16"))
put("sound_16_exact", layer(("f16", "fp32")))
put("sound_16_int8", layer(("int4", "int4_zero"), 16, "int8"))
put("sound_16_int8_block", layer(("int8_block", "ternary"), 16, "int8"))

lines = layer()["layer.frozen"][2].decode()
for name, old, new in (
    ("text_empty", lines, ""), ("text_title", "moe-frozen 1", "moe-frozen 2"), ("text_scalar", "F32", "F64"),
    ("text_width", "panels 16", "panels 8"), ("text_model_dim", "model_dim 4", "model_dim 5"),
    ("text_parameters", "parameters 132", "parameters 131"), ("text_activation", "silu", "relu"),
    ("text_limit", "limit 7", "limit 8"), ("text_storage", "fp32", "int5"),
    ("text_compute", "fp32 exact", "fp32 int8"), ("text_facts", "free", "null"),
    ("text_goes_on", "flops 8\n", "flops 8\nexperts.3"), ("text_not_ascii", "silu", "\xe9\u20ac\n\0"),
):
    put(name, {"layer.frozen": as_text(lines.replace(old, new, 1) if old != lines else new)})
both = ("ternary", "ternary")
put("text_computes_differ", changed("frozen", as_text(lines.replace("fp32 exact", "ternary exact", 1).replace("fp32 exact", "ternary int8")), layer(both)))
put("text_missing", changed("frozen", None))
put("text_of_floats", changed("frozen", floats(8)))
put("panels_missing", changed("experts.0.down", None))
put("panels_empty", changed("experts.0.down", ("U64", [0], b"")))
put("panels_of_bytes", changed("experts.0.gate_up", ("U8", [512], bytes(512))))
put("bias_shape", changed("experts.1.gate_up_bias", floats(1, 2 * dim)))
put("bias_dtype", changed("experts.1.down_bias", ("BF16", [1, dim], bytes(2 * dim))))
put("left_over", changed("experts.2.down", floats(1)))
put("nothing", {})
