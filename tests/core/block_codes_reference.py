# SPDX-License-Identifier: MIT
"""Prints the numbers that dtype_test.cpp and block_codes_test.cpp compare with.

Made with torch 2.15.0 and transformers 5.24.0: python block_codes_reference.py
A number is FNV-1a, 64 bits, of the values as little-endian floats in row-major order, with 0x7fc00000
for every NaN. Codes and scales are bytes of one generator, seed and all; see bytes_of().
"""

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors


def hash_of(values):
    values = torch.where(values.isnan(), torch.tensor(float("nan")), values.float()).contiguous()
    code = 0xCBF29CE484222325
    for byte in values.numpy().astype("<f4").tobytes():
        code = (code ^ byte) * 0x100000001B3 % 2**64
    return f"0x{code:016x}"


def bytes_of(count, seed):
    out = []
    for _ in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(seed >> 56)
    return torch.tensor(out, dtype=torch.uint8)


every = torch.arange(256, dtype=torch.uint8)
print("e4m3 ", hash_of(every.view(torch.float8_e4m3fn).float()))
print("e5m2 ", hash_of(every.view(torch.float8_e5m2).float()))
print("e8m0 ", hash_of(every.view(torch.float8_e8m0fnu).float()))

# gpt-oss: [E, rows, blocks, 16] codes, [E, rows, blocks] scales of 2^-27 to 2^36.
blocks = bytes_of(2 * 5 * 3 * 16, 1).view(2, 5, 3, 16)
scales = 100 + bytes_of(2 * 5 * 3, 2).view(2, 5, 3) % 64
weights = convert_moe_packed_tensors(blocks, scales)  # [E, cols, rows]
print("mxfp4", hash_of(weights.transpose(1, 2)))

# DeepSeek-V3: blocks of 128 x 128, the last ones partial; scales of 1.0 to 1.996 x 2^-10.
codes = bytes_of(200 * 300, 3).view(200, 300).view(torch.float8_e4m3fn).float()
scales = (1 + bytes_of(2 * 3, 4).view(2, 3).float() / 256) * 2.0**-10
scales = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
print("fp8  ", hash_of(codes * scales))
