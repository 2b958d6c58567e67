# SPDX-License-Identifier: MIT
"""Writes tests/fuzz/safetensors/: one small file per attack, and sound ones to start mutations from.

Run it in this folder: python make_corpus.py
The name says what a file tries; all but sound_* must be refused.
"""

import json
import pathlib
import struct

folder = pathlib.Path(__file__).parent / "safetensors"
folder.mkdir(exist_ok=True)


def put(name, header, data=b"", length=None):
    if isinstance(header, str):
        header = header.encode()
    size = len(header) if length is None else length
    (folder / name).write_bytes(struct.pack("<Q", size % 2**64) + header + data)


def tensor(dtype="U8", shape="[1]", offsets="[0,1]", more=""):
    return '{"dtype":"%s","shape":%s,"data_offsets":%s%s}' % (dtype, shape, offsets, more)


def one(*arguments, **named):
    return '{"a":' + tensor(*arguments, **named) + "}"


def two(first, second, names=("a", "b")):
    return '{"%s":%s,"%s":%s}' % (names[0], first, names[1], second)


# Sound
put("sound_empty", "{}      ")
put("sound_one_byte", one(), b"x")
put("sound_scalar", one("F64", "[]", "[0,8]"), struct.pack("<d", -0.5))
put("sound_zero_dimension", one("F32", "[3,0,2]", "[0,0]"))
put("sound_rank_8", one("F32", "[1,1,2,1,1,1,1,1]", "[0,8]"), struct.pack("<2f", 1.5, float("nan")))
put("sound_metadata", '{"__metadata__":{"format":"pt","":"\\u0000\\ud83d\\ude00"},"a":' + tensor() + "}", b"x")
put("sound_spaces_and_escapes", '{ "\\u0061\\n" :\t' + tensor("U\\u0038") + "\r\n}   ", b"x")
put("sound_unknown_dtype", one("F4", "[2,4]", "[0,4]"), bytes(4))
sizes = {"U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U16": 2,
         "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
header, end = {}, 0
for dtype, size in sizes.items():
    header[dtype.lower()] = {"dtype": dtype, "shape": [3, 1], "data_offsets": [end, end + 3 * size]}
    end += 3 * size
put("sound_every_dtype", json.dumps(header), bytes((37 * i) % 256 for i in range(end)))
put("sound_out_of_order", two(tensor(offsets="[1,2]"), tensor(offsets="[0,1]")), b"xy")

# The length field
(folder / "file_empty").write_bytes(b"")
(folder / "file_seven_bytes").write_bytes(bytes(7))
(folder / "file_of_gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(40))
put("length_zero", "")
put("length_one_too_many", "{}", length=3)
put("length_cuts_the_header", one(), b"x", length=20)
put("length_over_the_limit", "{}", length=100_000_001)
put("length_wraps_with_8", "{}", length=2**64 - 8)
put("length_wraps_to_the_header", "{}", length=2**64 - 6)
put("length_negative", "{}", length=-1)

# JSON
put("json_array", "[]")
put("json_leading_space", " {}")
put("json_byte_order_mark", b"\xef\xbb\xbf{}")
put("json_trailing_object", "{}{}")
put("json_trailing_zero_byte", "{}\0")
put("json_trailing_newline", "{}\n")
put("json_trailing_comma", '{"a":' + tensor() + ",}", b"x")
put("json_nested_arrays", '{"a":{"dtype":"U8","shape":' + "[" * 4000)
put("json_nested_objects", '{"a":' * 1000)
put("json_invalid_utf8", b'{"\xff":' + tensor().encode() + b"}", b"x")
put("json_overlong_utf8", b'{"\xc0\xaf":' + tensor().encode() + b"}", b"x")
put("json_utf8_surrogate", b'{"\xed\xa0\x80":' + tensor().encode() + b"}", b"x")
put("json_lone_surrogate", '{"\\ud800":' + tensor() + "}", b"x")
put("json_swapped_surrogates", '{"\\udc00\\ud800":' + tensor() + "}", b"x")
put("json_control_character", '{"a\n":' + tensor() + "}", b"x")
put("json_unclosed_string", '{"a')
put("json_unclosed_escape", '{"a\\')
put("json_unclosed_unicode_escape", '{"a\\u00')
put("json_null_tensor", '{"a":null}')
put("json_tensor_as_array", '{"a":["U8",[1],[0,1]]}', b"x")

# Numbers
put("number_negative", one(shape="[-1]"), b"x")
put("number_fraction", one(shape="[1.0]"), b"x")
put("number_exponent", one(offsets="[0,1e0]"), b"x")
put("number_leading_zero", one(shape="[01]"), b"x")
put("number_2_64", one(shape="[18446744073709551616]"), b"x")
put("number_2_64_plus_1", one(shape="[18446744073709551617]"), b"x")
put("number_a_double_rounds", one(offsets="[9007199254740993,9007199254740994]"), b"x")

# Shapes
put("shape_wraps_to_0", one("F32", "[4294967296,4294967296]", "[0,0]"))
put("shape_wraps_to_4_bytes", one("F32", "[4611686018427387905]", "[0,4]"), bytes(4))
put("shape_signed_overflow", one("U8", "[3037000500,3037000500]", "[0,0]"))
put("shape_2_63", one("U8", "[9223372036854775808]", "[0,0]"))
put("shape_overflow_behind_zero", one("F32", "[0,4294967296,4294967296]", "[0,0]"))
put("shape_exabytes_over_4_bytes", one("F32", "[1000000000,250000000]", "[0,4]"), bytes(4))
put("shape_too_large", one("F32", "[3]", "[0,8]"), bytes(8))
put("shape_too_small", one("F32", "[1]", "[0,8]"), bytes(8))
put("shape_zero_owns_bytes", one("U8", "[0]", "[0,1]"), b"x")
put("shape_rank_9", one(shape="[1,1,1,1,1,1,1,1,1]"), b"x")
put("shape_rank_9_with_zero", one(shape="[0,1,1,1,1,1,1,1,1]", offsets="[0,0]"))
put("shape_of_strings", one(shape='["1"]'), b"x")

# Offsets
put("offsets_beyond_the_file", one("U8", "[2]", "[0,2]"), b"x")
put("offsets_backwards", one("U8", "[1]", "[1,0]"), b"x")
put("offsets_difference_wraps", one("U8", "[2]", "[18446744073709551615,1]"), b"x")
put("offsets_end_2_64_minus_1", one("U8", "[1]", "[0,18446744073709551615]"), b"x")
put("offsets_one", one(offsets="[0]"), b"x")
put("offsets_three", one(offsets="[0,1,1]"), b"x")
put("offsets_hole_at_front", one(offsets="[1,2]"), b"xy")
put("offsets_hole_between", two(tensor(), tensor(offsets="[2,3]")), b"xyz")
put("offsets_hole_at_end", one(), b"xy")
put("offsets_overlap", two(tensor("U8", "[2]", "[0,2]"), tensor("U8", "[2]", "[1,3]")), b"xyz")
put("offsets_same_bytes_twice", two(tensor(), tensor()), b"x")
put("offsets_empty_inside_another", two(tensor("U8", "[2]", "[0,2]"), tensor("U8", "[0]", "[1,1]")), b"xy")
put("offsets_empty_beyond_the_file", one("U8", "[0]", "[9,9]"))
put("offsets_none_but_bytes", "{}", b"x")

# Names and fields
put("name_twice", two(tensor(), tensor(offsets="[1,2]"), ("a", "a")), b"xy")
put("name_twice_by_escape", two(tensor(), tensor(offsets="[1,2]"), ("a", "\\u0061")), b"xy")
put("name_1025_bytes", '{"' + "n" * 1025 + '":' + tensor() + "}", b"x")
put("field_twice", one(more=',"dtype":"U8"'), b"x")
put("field_unknown", one(more=',"x":1'), b"x")
put("field_no_dtype", '{"a":{"shape":[1],"data_offsets":[0,1]}}', b"x")
put("field_no_shape", '{"a":{"dtype":"U8","data_offsets":[0,1]}}', b"x")
put("field_no_offsets", '{"a":{"dtype":"U8","shape":[1]}}', b"x")
put("metadata_twice", '{"__metadata__":{},"__metadata__":{}}')
put("metadata_key_twice", '{"__metadata__":{"a":"1","a":"2"}}')
put("metadata_null", '{"__metadata__":null}')
put("metadata_nested", '{"__metadata__":{"a":{"b":"c"}}}')
put("metadata_is_a_tensor", '{"__metadata__":' + tensor() + "}", b"x")

# Unknown dtypes must not skip a check
put("dtype_unknown_beyond_the_file", one("X", "[4]", "[0,8]"), bytes(4))
put("dtype_unknown_hole", one("X", "[3]", "[1,4]"), bytes(4))
put("dtype_unknown_overflow", one("X", "[4294967296,4294967296]", "[0,0]"))
put("dtype_unknown_no_bytes", one("X", "[4]", "[0,0]"))
put("dtype_unknown_uneven", one("X", "[3]", "[0,4]"), bytes(4))
