# SPDX-License-Identifier: MIT
"""Writes soft_moe.safetensors: the SoftMoE layer of the package soft-moe-pytorch with all it computes.

    python3 -m venv v
    v/bin/pip install numpy torch safetensors einops soft-moe-pytorch
    v/bin/python generate_soft_moe.py            # writes the file
    v/bin/python generate_soft_moe.py --check    # compares it byte by byte, exits with 1 if it differs

Written with Python 3.11.7, numpy 2.4.6, torch 2.15.0, einops 0.8.2 and soft-moe-pytorch 0.1.9.
Seeds are fixed, everything runs on one thread and on code for the oldest processors.

The file holds one layer, a batch of two sequences, and the gradients of loss = sum(output * grad_output):

    input, grad_output        [B T, D]  F32  one sequence below the other
    padding                   [B T]     I32  1: not a token
    <published name>                    F32  every weight
    output, grad_input        [B T, D]  F32
    grad.<published name>               F32  for every weight

and the results again under "<name>.f64" from the same layer in float64. grad_output is 0 where there is
padding. The package lets padding read the plain mean of all slots; here its output is written as 0.

The formula below shares no code with the package and is numpy's longdouble. The script asserts that the
package agrees with it, outputs and weights of both softmaxes, to 1e-13 (float64) or 2e-6 (float32).
"""

import os

# Before the imports: the answers must not depend on the processor or on the number of threads.
os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["OMP_NUM_THREADS"] = "1"

import importlib.metadata
import json
import math
import pathlib
import platform
import sys

import numpy as np
import safetensors.numpy
import torch
from soft_moe_pytorch import SoftMoE

FILE = pathlib.Path(__file__).resolve().parent / "soft_moe.safetensors"
SEED, SEQUENCES, TOKENS, WIDTH, EXPERTS, SLOTS, MULTIPLE = 7, 2, 7, 12, 3, 2, 2
PADDING = np.array([[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1, 1]], np.int32)


def softmax(a, axis):
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def gelu(a):
    return a * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(a.astype(float))


def formula(w, x):
    """One sequence of live tokens."""
    w = {name: value.astype(np.longdouble) for name, value in w.items()}
    unit = lambda v: v / np.sqrt((v * v).sum(axis=-1, keepdims=True)) * np.sqrt(np.longdouble(v.shape[-1]))
    u = unit(x.astype(np.longdouble)) * w["norm.gamma"]
    logits = u @ (unit(w["slot_embeds"].reshape(-1, WIDTH)) * w["slot_norm.gamma"]).T
    slots = softmax(logits, 0).T @ u
    outputs = []
    for p, slot in enumerate(slots):
        e = f"experts.experts.{p // SLOTS}."
        hidden = gelu(w[e + "0.weight"] @ slot + w[e + "0.bias"])
        outputs.append(w[e + "3.weight"] @ hidden + w[e + "3.bias"])
    return softmax(logits, 1) @ np.stack(outputs)


def draw():
    """Input, output gradient and weights, float32."""
    random = np.random.default_rng(SEED)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    x, dy = normal(SEQUENCES, TOKENS, WIDTH), normal(SEQUENCES, TOKENS, WIDTH)
    dy[PADDING != 0] = 0
    weights = {}
    for name, value in SoftMoE(WIDTH, num_experts=EXPERTS, num_slots=SLOTS, expert_mult=MULTIPLE).named_parameters():
        scale = 1 / math.sqrt(value.shape[-1]) if value.ndim == 2 else 0.5
        weights[name] = (name.endswith("gamma") + scale * normal(*value.shape)).astype(np.float32)
    return x, dy, weights


def run(weights, x, dy, dtype):
    layer = SoftMoE(WIDTH, num_experts=EXPERTS, num_slots=SLOTS, expert_mult=MULTIPLE).to(dtype)
    layer.load_state_dict({name: torch.from_numpy(value).to(dtype) for name, value in weights.items()})
    x = torch.from_numpy(x).to(dtype).requires_grad_()
    y = layer(x, mask=torch.from_numpy(PADDING == 0))
    (y * torch.from_numpy(dy).to(dtype)).sum().backward()
    results = {"output": y * torch.from_numpy(PADDING == 0)[..., None], "grad_input": x.grad}
    results = {name: value.reshape(-1, WIDTH) for name, value in results.items()}
    results |= {"grad." + name: value.grad for name, value in layer.named_parameters()}
    assert all(value.dtype == dtype for value in results.values())
    return {name: value.detach().numpy() for name, value in results.items()}


def check(results, weights, x, tolerance):
    found = results["output"].reshape(x.shape)
    for b in range(SEQUENCES):
        live = PADDING[b] == 0
        expected = formula(weights, x[b, live])
        error = np.abs(found[b, live] - expected).max() / np.abs(expected).max()
        assert error <= tolerance, error


def make():
    torch.set_num_threads(1)
    x, dy, weights = draw()
    narrow, wide = run(weights, x, dy, torch.float32), run(weights, x, dy, torch.float64)
    check(narrow, weights, x, 2e-6)
    check(wide, weights, x, 1e-13)
    tensors = {"input": x.reshape(-1, WIDTH), "grad_output": dy.reshape(-1, WIDTH), "padding": PADDING.reshape(-1)}
    tensors |= weights | narrow | {name + ".f64": value for name, value in wide.items()}
    about = {
        "source": "soft_moe_pytorch.SoftMoE",
        "settings": json.dumps({"model_dim": WIDTH, "experts": EXPERTS, "slots": SLOTS, "ffn_dim": WIDTH * MULTIPLE}),
        "seed": str(SEED),
        "python": platform.python_version(),
    }
    for package in ("numpy", "torch", "einops", "soft-moe-pytorch"):
        about[package] = importlib.metadata.version(package).split("+")[0]
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, {"golden": json.dumps(about)}
    )


if __name__ == "__main__":
    made = make()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if FILE.read_bytes() == made else "soft_moe.safetensors differs")
    FILE.write_bytes(made)
