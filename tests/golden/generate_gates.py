# SPDX-License-Identifier: MIT
"""Writes sparse_mixer.safetensors: a published gate on given logits and given noise.

    python3 -m venv v
    v/bin/pip install numpy torch transformers safetensors
    v/bin/python generate_gates.py            # writes the file
    v/bin/python generate_gates.py --check    # compares it byte by byte, exits with 1 if it differs

Written with Python 3.11.7, numpy 2.4.6, torch 2.15.0 and transformers 5.24.0. T tokens, E experts, K slots:

    logits                    [T, E]     F32
    noise                     [2 K T, E] F64  Gumbel samples of slot 0, uniform ones of slot 0, Gumbel of slot 1 ...
    grad_weights              [T, K]     F64  of loss = sum(weights * grad_weights)
    <mode>.expert_ids         [T, K]     I32  for the modes inference and training
    <mode>.expert_weights     [T, K]     F64
    <mode>.grad_logits        [T, E]     F64

transformers' sparsemixer draws its noise itself; here torch's samplers give it ours. The logits are large and
close, so that several experts are within the neighbourhood of the best one; no decision is close: the script
asserts that what is compared differs by 1e-5 at least.
"""

import os

os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import json
import pathlib
import platform
import sys

import numpy as np
import safetensors.numpy
import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers.models.phimoe.modeling_phimoe import sparsemixer

FOLDER = pathlib.Path(__file__).resolve().parent
SEED, T, E, K, EPSILON = 1, 24, 8, 2, 0.01
SMALLEST_GAP = 1e-5


class GivenNoise(TorchFunctionMode):
    """torch's samplers return what they are given: exponential_ exp(-gumbel), rand_like uniforms."""

    def __init__(self, noise):
        self.gumbel = iter(noise[0::2])
        self.uniform = iter(noise[1::2])

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.exponential_:
            return args[0].copy_(torch.exp(-torch.tensor(next(self.gumbel))))
        if function is torch.rand_like:
            return torch.tensor(next(self.uniform)[:, :1])
        if function is torch.Tensor.uniform_:
            return args[0]  # already uniform
        return function(*args, **(kwargs or {}))


def check_gaps(z, noise, ids):
    """No comparison of the gate is nearly a tie."""
    left = z.astype(np.float64)
    rows = np.arange(T)
    for slot in range(K):
        best = left.max(axis=1, keepdims=True)
        ratio = (best - left) / np.maximum(np.abs(left), np.abs(best), where=np.isfinite(left), out=np.ones_like(left))
        gaps = [np.abs(ratio - 2 * EPSILON), np.abs(noise[2 * slot + 1][:, 0] - 0.75)]
        keys = np.sort(np.where(ratio > 2 * EPSILON, -np.inf, left + noise[2 * slot]), axis=1)
        gaps += [keys[:, -1] - np.where(np.isfinite(keys[:, -2]), keys[:, -2], -1e9)]
        gaps += [np.diff(np.sort(left, axis=1)[:, -2:], axis=1)]
        assert min(g.min() for g in gaps) >= SMALLEST_GAP
        left[rows, ids[:, slot]] = -np.inf


def sparse_mixer():
    random = np.random.default_rng(SEED)
    z = (5 + 0.15 * random.standard_normal((T, E))).astype(np.float32)
    z[::3] -= 10  # also below 0
    noise = np.empty((2 * K, T, E))
    noise[0::2] = random.gumbel(size=(K, T, E))
    noise[1::2] = random.uniform(size=(K, T, 1))  # the gate reads one column
    grad = random.standard_normal((T, K))
    tensors = {"logits": z, "noise": noise.reshape(-1, E), "grad_weights": grad}
    for training in (False, True):
        scores = torch.tensor(z.astype(np.float64)).requires_grad_()
        with GivenNoise(noise):
            weights, ids = sparsemixer(scores, EPSILON, training, K)
            (weights * torch.tensor(grad)).sum().backward()
        mode = "training" if training else "inference"
        tensors[mode + ".expert_ids"] = ids.numpy().astype(np.int32)
        tensors[mode + ".expert_weights"] = weights.detach().numpy()
        tensors[mode + ".grad_logits"] = scores.grad.numpy()
        check_gaps(z, noise, ids.numpy())
    # Every factor occurs, and choices that are not the best.
    drawn, best = tensors["training.expert_ids"], tensors["inference.expert_ids"]
    assert 0.3 < (drawn[:, 0] != best[:, 0]).mean() < 0.9
    about = {
        "source": "transformers.models.phimoe.modeling_phimoe.sparsemixer",
        "settings": json.dumps({"k": K, "epsilon": EPSILON}),
        "seed": str(SEED),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, {"golden": json.dumps(about)}
    )


CASES = {"sparse_mixer": sparse_mixer}


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    same = True
    for name, case in CASES.items():
        path = FOLDER / (name + ".safetensors")
        data = case()
        if not arguments:
            path.write_bytes(data)
            print(f"{path.name}: {len(data)} bytes")
        elif not path.exists() or path.read_bytes() != data:
            print(f"{path.name} differs")
            same = False
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
