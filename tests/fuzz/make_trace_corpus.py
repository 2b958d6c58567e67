# SPDX-License-Identifier: MIT
"""Writes tests/fuzz/trace/: small traces as the layout in io/trace.hpp says, and some that contradict themselves.

Run it in this folder: python make_trace_corpus.py
The name says what a file holds; all but sound_* must be refused.
"""

import json
import pathlib
import struct

folder = pathlib.Path(__file__).parent / "trace"
folder.mkdir(exist_ok=True)
formats = {"U8": "B", "U16": "H", "I32": "i", "I64": "q", "U64": "Q", "F32": "f", "F64": "d"}


def put(name, tensors, format="moe.trace", version="1"):
    """tensors: name -> (dtype, numbers); wider types first, then by name."""
    header, data = {"__metadata__": {"format": format, "version": version}}, b""
    for key, (dtype, numbers) in sorted(tensors.items(), key=lambda t: (-struct.calcsize("<" + formats[t[1][0]]), t[0])):
        part = struct.pack(f"<{len(numbers)}{formats[dtype]}", *numbers)
        header[key] = {"dtype": dtype, "shape": [len(numbers)], "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)


def small(**changed):
    """Two batches of 2 and 1 tokens, two layers of 3 and 4 experts, in the second batch one."""
    tensors = {
        "batch.tokens": ("U8", [2, 1]),
        "batch.step": ("U64", [7, 8]),
        "batch.first_token": ("U8", [0, 2]),
        "batch.given": ("U8", [0, 0]),
        "batch.offsets": ("U8", [0, 0]),
        "record.batch": ("U8", [0, 0, 1]),
        "record.layer": ("U8", [0, 1, 0]),
        "record.experts": ("U8", [3, 4, 3]),
        "slots": ("U8", [2, 1, 0, 2, 1]),
        "experts": ("U8", [2, 0, 1, 3, 0, 2]),
        "weights": ("F32", [0.75, 0.25, 1.0, 0.5, 0.5, 1.0]),
    }
    for name, value in changed.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return tensors


nan = float("nan")
put("sound_empty", {})
put("sound_small", small())
put("sound_wide_types", small(weights=("F64", [0.1, 0.9, 1 / 3, nan, -0.0, 5e-324]),
                              experts=("I32", [2, 0, 1, 3, 0, 2]), slots=("I32", [2, 1, 0, 2, 1])))
put("sound_all_of_the_context", small(
    batch__given=("U8", [7, 1]), batch__offsets=("U8", [3, 0]), token_ids=("U16", [5, 60000, 5]),
    token_groups=("U8", [1, 0]), padding=("U8", [0, 1]), sequence_offsets=("U8", [0, 1, 2])))
put("sound_drops_and_input_weights", small(
    dropped=("U8", [0, 1, 2, 3, 0, 0]), input_weights=("F32", [1.0, 1.0, 0.5, nan, 1.0, 1.0])))
put("sound_no_tokens", {
    "batch.tokens": ("U8", [0]), "batch.step": ("U64", [0]), "batch.first_token": ("U8", [0]),
    "batch.given": ("U8", [0]), "batch.offsets": ("U8", [0]), "record.batch": ("U8", [0]),
    "record.layer": ("U8", [0]), "record.experts": ("U8", [1])})
put("format_of_another_file", small(), format="moe.routing")
put("version_2", small(), version="2")
put("expert_beyond_the_layer", small(experts=("U8", [2, 0, 3, 3, 0, 2])))
put("expert_twice", small(experts=("U8", [2, 2, 1, 3, 0, 2])))
put("slots_of_more_assignments", small(slots=("U8", [2, 1, 0, 2, 2])))
put("slots_negative", small(slots=("I32", [2, -1, 0, 2, 1])))
put("batch_beyond", small(record__batch=("U8", [0, 0, 2])))
put("layer_twice_in_a_batch", small(record__layer=("U8", [0, 0, 0])))
put("layer_with_other_experts", small(record__experts=("U8", [3, 4, 4])))
put("weights_too_few", small(weights=("F32", [0.75, 0.25, 1.0, 0.5, 0.5])))
put("dropped_unknown", small(dropped=("U8", [0, 0, 0, 0, 0, 4])))
put("given_unknown", small(batch__given=("U8", [8, 0])))
put("tokens_of_too_many", small(batch__tokens=("I64", [2, 2**62])))
put("tensor_unknown", small(more=("U8", [1])))
put("tensor_missing", small(slots=None))
