# SPDX-License-Identifier: MIT
"""Writes the files of this folder with the format's own Python package.

Made with safetensors 0.8.0, torch 2.15.0 and numpy 2.4.6; the values are formulas, so there is no seed.
Run it in this folder: python generate.py
"""

import numpy
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

# Element i of each, where the type can hold it: (i - 3) * 1.5, then its special values.
numbers = torch.tensor([(i - 3) * 1.5 for i in range(8)], dtype=torch.float64)
special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 6.0e-8, 65504.0, 1e-40],
                       dtype=torch.float64)
floats = torch.stack([numbers, special])  # [2, 8]
integers = torch.arange(-3, 5)  # [8]

save_file(
    {
        "f64": floats,
        "f32": floats.to(torch.float32),
        "f16": floats.to(torch.float16),
        "bf16": floats.to(torch.bfloat16),
        "f8_e4m3": numbers.to(torch.float8_e4m3fn),
        "f8_e5m2": numbers.to(torch.float8_e5m2),
        "i64": torch.tensor([[-(2**63), -1, 0], [1, 3_000_000_000, 2**63 - 1]]),
        "i32": integers.to(torch.int32),
        "i16": integers.to(torch.int16),
        "i8": integers.to(torch.int8),
        "u8": torch.tensor([0, 1, 127, 128, 255], dtype=torch.uint8),
        "u16": torch.tensor([0, 1, 65535], dtype=torch.uint16),
        "u32": torch.tensor([0, 1, 2**32 - 1], dtype=torch.uint32),
        "u64": torch.tensor([0, 1, 2**63 - 1], dtype=torch.uint64),
        "bool": torch.tensor([True, False, True]),
    },
    "dtypes.safetensors",
    metadata={"format": "pt"},
)

# Names and shapes that are allowed and rarely seen.
values = numpy.arange(6, dtype=numpy.float32)
save_arrays(
    {
        name: numpy.resize(values, shape)
        for name, shape in {
            "": [6],
            "scalar": [],
            "empty": [0, 3],
            "cube": [2, 1, 3],
            'quote " backslash \\ newline \n': [2],
            "größe 大 😀": [3],
            "\x00\x1f\x7f": [1],
        }.items()
    },
    "names.safetensors",
    {"note": 'tab \t, "quoted", ü'},
)

# One routed layer under a published model's names, in bfloat16, with nothing but eighths in it.
width, ffn, experts = 8, 4, 2


def weight(rows, cols, start):
    return ((torch.arange(rows * cols) + start) % 17 - 8).reshape(rows, cols).to(torch.bfloat16) / 8


prefix = "model.layers.0.block_sparse_moe."
layer = {prefix + "gate.weight": weight(experts, width, 0)}
for e in range(experts):
    layer[f"{prefix}experts.{e}.w1.weight"] = weight(ffn, width, 3 * e + 1)
    layer[f"{prefix}experts.{e}.w2.weight"] = weight(width, ffn, 3 * e + 2)
    layer[f"{prefix}experts.{e}.w3.weight"] = weight(ffn, width, 3 * e + 3)
save_file(layer, "mixtral.safetensors", metadata={"format": "pt"})
