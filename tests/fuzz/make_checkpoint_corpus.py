# SPDX-License-Identifier: MIT
"""Writes tests/fuzz/checkpoint/: an index and the files beside it in one input, as checkpoint_parts.hpp splits it.

Run it in this folder: python make_checkpoint_corpus.py
The name says what an input holds; all but sound_* must be refused.
"""

import json
import pathlib
import struct

folder = pathlib.Path(__file__).parent / "checkpoint"
folder.mkdir(exist_ok=True)


def file(*names):
    """A safetensors file of one byte for each name."""
    header = {name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(names)}
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(len(names)))


def put(name, index, *files):
    parts = [index.encode() if isinstance(index, str) else index, *files]
    (folder / name).write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in parts))


def weights(entries, more=""):
    """entries: name -> file; `more` goes before the map."""
    return "{" + more + '"weight_map":' + json.dumps(entries, separators=(",", ":")) + "}"


both = {"x": "a", "y": "b", "z": "a"}
files = (file("x", "z"), file("y"))

# Sound
put("sound_two_files", weights(both), *files)
put("sound_metadata", weights(both, '"metadata":{"total_size":3.0e0,"more":[null,true,{"a":-1}]},'), *files)
put("sound_metadata_behind", weights(both)[:-1] + ',"metadata":"x"}\n', *files)
put("sound_escapes", r'{"w\u0065ight_map":{"\u0078":"\u0061"}}', file("x"))
put("sound_no_tensors", weights({}))
put("sound_file_not_named", weights({"y": "b"}), b"damaged", file("y"))

# Index and files that disagree
put("entry_in_no_file", weights({**both, "w": "a"}), *files)
put("entry_in_another_file", weights({**both, "y": "a"}), *files)
put("entry_missing", weights({"x": "a", "y": "b"}), *files)
put("file_missing", weights({**both, "w": "c"}), *files)
put("file_damaged", weights(both), files[0], files[1][:-1])
put("file_empty", weights(both), files[0], b"")
put("name_in_two_files", weights(both), files[0], file("x", "y"))

# The index alone
put("index_empty", "")
put("index_of_another_kind", "[]")
put("index_without_map", '{"metadata":{}}')
put("index_map_is_an_array", '{"weight_map":[]}')
put("index_map_twice", '{"weight_map":{},"weight_map":{}}')
put("index_metadata_twice", '{"metadata":1,"metadata":1,"weight_map":{}}')
put("index_member_unknown", '{"weight_map":{},"x":1}')
put("index_name_twice", '{"weight_map":{"x":"a","x":"a"}}', file("x"))
put("index_name_twice_by_escape", r'{"weight_map":{"x":"a","\u0078":"a"}}', file("x"))
put("index_name_1025_bytes", weights({"n" * 1025: "a"}), file("x"))
put("index_file_is_a_number", '{"weight_map":{"x":1}}', file("x"))
put("index_file_256_bytes", weights({"x": "a" * 256}), file("x"))
put("index_invalid_utf8", b'{"weight_map":{"\xff":"a"}}', file("x"))
put("index_byte_order_mark", b'\xef\xbb\xbf{"weight_map":{}}')
put("index_trailing_object", '{"weight_map":{}}{}')
put("index_nested_arrays", '{"metadata":' + "[" * 4000)
put("index_nested_objects", '{"metadata":' + '{"a":' * 1000)
put("index_number_damaged", '{"metadata":1.e5,"weight_map":{}}')

# File names that lead elsewhere
for number, name in enumerate(["", ".", "..", "../a", "/a", "a/", "b/../a", "..\\a", "C:\\a", "a\0", "\0a"]):
    put(f"path_{number}", weights({"x": name}), file("x"))
