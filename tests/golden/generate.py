# SPDX-License-Identifier: MIT
"""Writes the *.safetensors of this folder: layers of published models with all they compute.

    python3 -m venv v
    v/bin/pip install numpy torch transformers safetensors
    v/bin/python generate.py            # writes the files
    v/bin/python generate.py --check    # compares them byte by byte, exits with 1 if they differ

Written with Python 3.11.7, numpy 2.4.6, torch 2.15.0 and transformers 5.23.0. The same versions give
the same bytes: seeds are fixed, everything runs on one thread and on code for the oldest processors.

Each file holds one layer, one batch and the gradients of loss = sum(output * grad_output):

    input, grad_output        [T, D]  F32
    <published name>                  F32  every weight under its name in the model's checkpoints
    router_logits             [T, E]
    expert_ids                [T, K]  I32  in the order in which the model selects, -1 where there is none
    expert_weights            [T, K]       what the expert's output is multiplied by, 0 where there is none
    output, grad_input        [T, D]
    grad.<published name>                  for every weight with a gradient

mixtral, qwen2_moe, qwen2_moe_norm and deepseek_v3 are made by the models' blocks in transformers: results
are F32 from a float32 run, and again under "<name>.f64" from a run of the same code in which every float32
is a float64 (the blocks ask for float32 by name in their routers, so converting the module is not enough).
moe_plus_plus, moe_plus_plus_mixtral_gating and dynamic_moe come from the formulas of this script, whose
released code is not a package; their results are F64, without a suffix. __metadata__ has one entry, "golden",
a JSON text that says what the layer is, what is peculiar about it, its seed and the versions.

The formulas below come from the papers and share no code with the blocks; they are numpy's longdouble.
For every file the script asserts that
  - their gradients, derived by hand, agree with central differences;
  - the blocks agree with them: same experts, all tensors within 1e-13 (float64) or 2e-6 (float32) of the
    tensor's largest element;
  - no choice is a tie or nearly one: what is compared differs by 1e-3 at least;
  - every expert is used, and no tensor consists mostly of zeros.

So transformers 5.23.0 is right about these layers. Versions before it may not be: deepseek_v3 used to mask
the groups that lost with 0 instead of -inf, which lets their experts back in where the biased scores are
negative (as they are in the file below), and in development states of 5.0 the "router_logits" of mixtral
and qwen2_moe were probabilities.
"""

import os

# Before the imports: the answers must not depend on the processor or on the number of threads.
os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import json
import pathlib
import platform
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import safetensors.numpy
import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

FOLDER = pathlib.Path(__file__).resolve().parent
SMALLEST_GAP = 1e-3

# ---------------------------------------------------------------------------------------------------
# The formulas. T tokens, D model width, F expert width, E experts, K slots; weights are [out, in].


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@dataclass
class Swiglu:
    """y = down (silu(gate x) * (up x)), the three by name."""

    gate: str
    up: str
    down: str

    def forward(self, w, x):
        a, u = x @ w[self.gate].T, x @ w[self.up].T
        return (a * sigmoid(a) * u) @ w[self.down].T

    def backward(self, w, x, dy):
        a, u = x @ w[self.gate].T, x @ w[self.up].T
        s = sigmoid(a)
        dh = dy @ w[self.down]
        da, du = dh * u * s * (1 + a * (1 - s)), dh * a * s
        dx = da @ w[self.gate] + du @ w[self.up]
        return dx, {self.gate: da.T @ x, self.up: du.T @ x, self.down: dy.T @ (a * s * u)}


@dataclass
class Constant:
    """y = a0 x + a1 v with a = softmax(mix x). MoE++, arXiv 2410.07348."""

    mix: str  # [2, D]
    value: str  # [D]

    def forward(self, w, x):
        a = softmax(x @ w[self.mix].T)
        return a[:, :1] * x + a[:, 1:] * w[self.value]

    def backward(self, w, x, dy):
        a = softmax(x @ w[self.mix].T)
        da = np.stack([(dy * x).sum(axis=1), dy @ w[self.value]], axis=1)
        dz = a * (da - (a * da).sum(axis=1, keepdims=True))
        return a[:, :1] * dy + dz @ w[self.mix], {self.mix: dz.T @ x, self.value: (a[:, 1:] * dy).sum(axis=0)}


class Copy:
    def forward(self, w, x):
        return x

    def backward(self, w, x, dy):
        return dy, {}


class Zero:
    def forward(self, w, x):
        return np.zeros_like(x)

    def backward(self, w, x, dy):
        return np.zeros_like(x), {}


@dataclass
class Formula:
    """y = sum over the selected e of weight_e expert_e(input_scale x), plus the shared expert of x."""

    router: str  # [E, D]
    experts: list
    score: str = "softmax"  # of the logits; or "sigmoid"
    k: int = 0  # the k best
    p: float = 0  # or, with k = 0: the best until their scores sum to more than p
    bias: str = ""  # [E] added to the scores for choosing only
    groups: int = 1  # only experts of the keep_groups best groups, by their two best scores
    keep_groups: int = 1
    normalize: bool = False  # divide by the sum of the selected
    epsilon: float = 0  # added to that sum
    scale: float = 1
    null: int = -1  # expert whose weight is removed before normalising
    input_scale: float = 1
    shared: Swiglu | None = None
    shared_gate: str = ""  # [1, D], a sigmoid
    smallest_gap: float = field(default=float("inf"), init=False)  # of all choices made so far

    def score_of(self, z):
        return softmax(z) if self.score == "softmax" else sigmoid(z)

    def apart(self, better, worse):
        self.smallest_gap = min(self.smallest_gap, float(better - worse))

    def select_one(self, s, choice):
        """Expert ids of one token, best first."""
        if self.groups > 1:
            grouped = choice.reshape(self.groups, -1)
            value = np.sort(grouped, axis=1)[:, -2:].sum(axis=1)
            best = np.argsort(-value)
            self.apart(value[best[self.keep_groups - 1]], value[best[self.keep_groups]])
            losers = best[self.keep_groups :]
            grouped = grouped.copy()
            grouped[losers] = -np.inf
            choice = grouped.reshape(-1)
        order = np.argsort(-choice)
        count = self.k
        if not count:
            sums = np.cumsum(s[order])
            over = np.nonzero(sums > self.p)[0]
            count = over[0] + 1 if len(over) else len(s)
            for value in sums[:count]:
                self.apart(abs(value - self.p), 0)
        for better, worse in zip(order[:count], order[1 : count + 1]):
            self.apart(choice[better], choice[worse])
        return order[:count]

    def select(self, w, z):
        s = self.score_of(z)
        choice = s + w[self.bias] if self.bias else s
        chosen = [self.select_one(*rows) for rows in zip(s, choice)]
        ids = np.full((len(z), max(map(len, chosen))), -1)
        for row, experts in zip(ids, chosen):
            row[: len(experts)] = experts
        return ids

    def weigh(self, z, ids):
        """Weights [T, K], the scores that count among them, and what these were divided by."""
        counts = (ids >= 0) & (ids != (self.null if self.null >= 0 else len(self.experts)))
        u = np.where(counts, np.take_along_axis(self.score_of(z), ids, axis=1), 0)
        total = u.sum(axis=1, keepdims=True) + self.epsilon if self.normalize else np.ones_like(u[:, :1])
        return self.scale * u / total, counts, total

    def forward(self, w, x, ids=None):
        z = x @ w[self.router].T
        ids = self.select(w, z) if ids is None else ids
        weights = self.weigh(z, ids)[0]
        y = np.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slots = np.nonzero(ids == e)
            y[rows] += weights[rows, slots, None] * expert.forward(w, self.input_scale * x[rows])
        if self.shared:
            opened = sigmoid(x @ w[self.shared_gate].T) if self.shared_gate else 1
            y += opened * self.shared.forward(w, x)
        return y, {"router_logits": z, "expert_ids": ids, "expert_weights": weights, "output": y}

    def backward(self, w, x, dy, ids):
        z = x @ w[self.router].T
        weights, counts, total = self.weigh(z, ids)
        dx, grads = np.zeros_like(x), {}
        dweights = np.zeros_like(weights)
        for e, expert in enumerate(self.experts):
            rows, slots = np.nonzero(ids == e)
            inputs = self.input_scale * x[rows]
            dweights[rows, slots] = (expert.forward(w, inputs) * dy[rows]).sum(axis=1)
            dinputs, more = expert.backward(w, inputs, weights[rows, slots, None] * dy[rows])
            dx[rows] += self.input_scale * dinputs
            grads |= more
        du = self.scale * dweights
        if self.normalize:
            du = (du - (dweights * weights).sum(axis=1, keepdims=True)) / total
        s, ds = self.score_of(z), np.zeros_like(z)
        for t, k in zip(*np.nonzero(counts)):
            ds[t, ids[t, k]] += du[t, k]
        dz = s * (ds - (s * ds).sum(axis=1, keepdims=True)) if self.score == "softmax" else ds * s * (1 - s)
        dx += dz @ w[self.router]
        grads[self.router] = dz.T @ x
        if self.shared:
            opened = sigmoid(x @ w[self.shared_gate].T) if self.shared_gate else 1
            dinputs, more = self.shared.backward(w, x, opened * dy)
            dx += dinputs
            grads |= more
            if self.shared_gate:
                dgate = (self.shared.forward(w, x) * dy).sum(axis=1, keepdims=True) * opened * (1 - opened)
                dx += dgate @ w[self.shared_gate]
                grads[self.shared_gate] = dgate.T @ x
        return {"grad_input": dx} | {"grad." + name: grad for name, grad in grads.items()}


def evaluate(formula, weights, x, dy):
    """All tensors of a file, as longdouble, with gradients checked against central differences."""
    w = {name: value.astype(np.longdouble) for name, value in weights.items()}
    x, dy = x.astype(np.longdouble), dy.astype(np.longdouble)
    results = formula.forward(w, x)[1]
    assert formula.smallest_gap >= SMALLEST_GAP, f"nearly a tie: {formula.smallest_gap}"
    ids = results["expert_ids"]
    assert np.array_equal(np.unique(ids[ids >= 0]), np.arange(len(formula.experts))), "an expert is not used"
    results |= formula.backward(w, x, dy, ids)

    random = np.random.default_rng(0)
    step = np.longdouble(1e-5)

    def loss(name, direction, amount):
        moved = w | {name: w[name] + amount * direction} if name else w
        y, more = formula.forward(moved, x if name else x + amount * direction)
        assert np.array_equal(more["expert_ids"], ids)
        return (y * dy).sum()

    for name in ["", *(n for n in weights if n != formula.bias)]:
        gradient = results["grad." + name if name else "grad_input"]
        for _ in range(3):
            direction = random.standard_normal(gradient.shape).astype(np.longdouble)
            measured = (loss(name, direction, step) - loss(name, direction, -step)) / (2 * step)
            derived, size = (gradient * direction).sum(), np.abs(gradient * direction).sum()
            assert abs(measured - derived) <= 1e-7 * size, (name or "input", measured, derived)
    return results


# ---------------------------------------------------------------------------------------------------
# The published blocks.


class Float64(TorchFunctionMode):
    """Code that asks for float32 gets float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(a):
            return torch.float64 if a is torch.float32 else a

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def run_block(block, prefix, parts, weights, x, dy, dtype):
    """Runs a block on weights under their published names; parts are the names of gate, up and down."""
    gate, up, down = (lambda e, part=part: f"{prefix}experts.{e}.{part}.weight" for part in parts)
    tensors = {name: torch.tensor(value, dtype=dtype) for name, value in weights.items()}
    experts = sum(name.startswith(prefix + "experts.") for name in weights) // 3
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if not n.startswith(prefix + "experts.")}
    state["experts.gate_up_proj"] = torch.stack(
        [torch.cat([tensors[gate(e)], tensors[up(e)]]) for e in range(experts)]
    )
    state["experts.down_proj"] = torch.stack([tensors[down(e)] for e in range(experts)])
    block.to(dtype).eval().load_state_dict(state, strict=True)
    block.zero_grad()

    routed = []
    hook = block.gate.register_forward_hook(lambda module, inputs, outputs: routed.append(outputs))
    inputs = torch.tensor(x, dtype=dtype)[None].requires_grad_()
    with Float64() if dtype == torch.float64 else nullcontext():
        y = block(inputs)
        (y[0] * torch.tensor(dy, dtype=dtype)).sum().backward()
    hook.remove()

    ((logits, combine, ids),) = routed
    results = {"router_logits": logits, "expert_ids": ids, "expert_weights": combine, "output": y[0]}
    results["grad_input"] = inputs.grad[0]
    for name, parameter in block.named_parameters():
        if name == "experts.gate_up_proj":
            for e in range(experts):
                halves = parameter.grad[e].chunk(2)
                results["grad." + gate(e)], results["grad." + up(e)] = halves
        elif name == "experts.down_proj":
            results |= {"grad." + down(e): parameter.grad[e] for e in range(experts)}
        else:
            results["grad." + prefix + name] = parameter.grad
    assert all(value.dtype in (dtype, torch.int64) for value in results.values())
    return {name: value.detach().numpy() for name, value in results.items()}


def by_expert(results):
    """Ids and weights with the slots of each token in ascending order of experts."""
    order = np.argsort(results["expert_ids"], axis=1)
    return {n: np.take_along_axis(results[n], order, axis=1) for n in ("expert_ids", "expert_weights")}


def check_block(found, expected, tolerance, slots_are_sorted):
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    if not slots_are_sorted:
        found, expected = found | by_expert(found), expected | by_expert(expected)
    assert np.array_equal(found["expert_ids"], expected["expert_ids"])
    for name in found:
        error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
        assert error <= tolerance, (name, error)


# ---------------------------------------------------------------------------------------------------
# The cases.


def draw(seed, tokens, width, shapes):
    """Input, output gradient and weights, float32. Weights are scaled by 1 / sqrt(their last extent),
    routers are twice that so that the experts' scores differ."""
    random = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * random.standard_normal(shape)).astype(np.float32)

    x, dy = normal(tokens, width), normal(tokens, width)
    weights = {}
    for name, shape in shapes.items():
        router = name.endswith((".gate.weight", ".gate.wg.weight", ".router.weight"))
        scale = 1.0 if len(shape) == 1 else (2.0 if router else 1.0) / shape[-1] ** 0.5
        weights[name] = normal(*shape, scale=scale)
    return x, dy, weights


def swiglu_shapes(prefix, parts, D, F):
    return {f"{prefix}{part}.weight": (D, F) if part == parts[2] else (F, D) for part in parts}


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def swiglu(prefix, parts=PROJECTIONS):
    return Swiglu(*(f"{prefix}{part}.weight" for part in parts))


def routed_shapes(prefix, parts, E, D, F, router="gate.weight"):
    shapes = {prefix + router: (E, D)}
    for e in range(E):
        shapes |= swiglu_shapes(f"{prefix}experts.{e}.", parts, D, F)
    return shapes


def published(block, prefix, parts, formula, data, seed, settings, quirks, slots_are_sorted=True):
    """A file from a block of transformers."""
    x, dy, weights = data
    expected = evaluate(formula, weights, x, dy)
    narrow = run_block(block, prefix, parts, weights, x, dy, torch.float32)
    wide = run_block(block, prefix, parts, weights, x, dy, torch.float64)
    check_block(narrow, expected, 2e-6, slots_are_sorted)
    check_block(wide, expected, 1e-13, slots_are_sorted)
    assert np.array_equal(narrow.pop("expert_ids"), wide["expert_ids"])
    ids = wide.pop("expert_ids")
    results = narrow | {"expert_ids": ids} | {name + ".f64": value for name, value in wide.items()}
    source = f"{type(block).__module__}.{type(block).__name__}"
    return file_of(x, dy, weights, results, source, seed, settings, quirks)


def computed(formula, data, seed, settings, quirks, pack=lambda tensors: tensors):
    """A file from the formulas."""
    x, dy, weights = data
    results = evaluate(formula, weights, x, dy)
    results = {n: v if n == "expert_ids" else v.astype(np.float64) for n, v in results.items()}
    return file_of(x, dy, pack(weights), pack(results), "generate.py, in longdouble", seed, settings, quirks)


def file_of(x, dy, weights, results, source, seed, settings, quirks):
    tensors = {"input": x, "grad_output": dy} | weights | results
    for name, value in tensors.items():
        if name == "expert_ids":
            continue
        telling = np.abs(value) > 1e-5 * np.abs(value).max()
        assert np.isfinite(value).all() and telling.mean() >= 0.5, f"{name} is mostly zero"
    tensors["expert_ids"] = tensors["expert_ids"].astype(np.int32)
    about = {
        "source": source,
        "settings": json.dumps(settings),
        "quirks": quirks,
        "seed": str(seed),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    # One key: the package writes several in the order of a hash table, which differs from run to run.
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, {"golden": json.dumps(about)}
    )


def mixtral():
    """Softmax, two best, normalised."""
    seed, T, D, F, E, k = 1, 13, 16, 22, 8, 2
    prefix, parts = "model.layers.0.block_sparse_moe.", ("w1", "w3", "w2")
    config = MixtralConfig(
        hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=k, router_jitter_noise=0.0
    )
    config._experts_implementation = "eager"
    formula = Formula(
        prefix + "gate.weight", [swiglu(f"{prefix}experts.{e}.", parts) for e in range(E)], k=k, normalize=True
    )
    data = draw(seed, T, D, routed_shapes(prefix, parts, E, D, F))
    settings = {"model_dim": D, "ffn_dim": F, "experts": E, "k": k, "normalize": True}
    quirks = "w1 is the gate, w3 the up and w2 the down projection."
    return published(MixtralSparseMoeBlock(config), prefix, parts, formula, data, seed, settings, quirks)


def qwen2_moe(normalize):
    """Softmax, three best, raw or normalised, and a shared expert behind a sigmoid."""
    seed, T, D, F, shared, E, k = 3, 13, 12, 10, 18, 8, 3
    prefix = "model.layers.0.mlp."
    config = Qwen2MoeConfig(
        hidden_size=D,
        moe_intermediate_size=F,
        shared_expert_intermediate_size=shared,
        num_experts=E,
        num_experts_per_tok=k,
        norm_topk_prob=normalize,
    )
    config._experts_implementation = "eager"
    formula = Formula(
        prefix + "gate.weight",
        [swiglu(f"{prefix}experts.{e}.") for e in range(E)],
        k=k,
        normalize=normalize,
        shared=swiglu(prefix + "shared_expert."),
        shared_gate=prefix + "shared_expert_gate.weight",
    )
    shapes = routed_shapes(prefix, PROJECTIONS, E, D, F)
    shapes |= swiglu_shapes(prefix + "shared_expert.", PROJECTIONS, D, shared)
    shapes[prefix + "shared_expert_gate.weight"] = (1, D)
    data = draw(seed, T, D, shapes)
    settings = {"model_dim": D, "ffn_dim": F, "shared_ffn_dim": shared, "experts": E, "k": k}
    settings["normalize"] = normalize
    quirks = "The shared expert is multiplied by sigmoid(shared_expert_gate x)."
    if not normalize:
        quirks += " The weights of a token do not sum to 1."
    block = Qwen2MoeSparseMoeBlock(config)
    return published(block, prefix, PROJECTIONS, formula, data, seed, settings, quirks)


def deepseek_v3():
    """Sigmoid, selection bias, two of four groups, four best, normalised, times 2.5, a shared expert."""
    seed, T, D, F, E, k, groups, keep, scale = 16, 17, 12, 8, 16, 4, 4, 2, 2.5
    prefix = "model.layers.3.mlp."
    config = DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=F,
        n_shared_experts=1,
        n_routed_experts=E,
        num_experts_per_tok=k,
        n_group=groups,
        topk_group=keep,
        routed_scaling_factor=scale,
        norm_topk_prob=True,
    )
    config._experts_implementation = "eager"
    bias = prefix + "gate.e_score_correction_bias"
    settings_of_choice = {"k": k, "score": "sigmoid"}
    formula = Formula(
        prefix + "gate.weight",
        [swiglu(f"{prefix}experts.{e}.") for e in range(E)],
        bias=bias,
        groups=groups,
        keep_groups=keep,
        normalize=True,
        epsilon=1e-20,
        scale=scale,
        shared=swiglu(prefix + "shared_experts."),
        **settings_of_choice,
    )
    shapes = routed_shapes(prefix, PROJECTIONS, E, D, F)
    shapes |= swiglu_shapes(prefix + "shared_experts.", PROJECTIONS, D, F)
    x, dy, weights = draw(seed, T, D, shapes | {bias: (E,)})
    weights[bias] = np.float32(0.2) * weights[bias] - np.float32(0.8)

    # Each step must matter: without the bias, without the groups, or with losing groups masked by 0
    # instead of -inf, other experts would be chosen. The mean of the bias alone changes nothing.
    w = {name: value.astype(np.longdouble) for name, value in weights.items()}
    z = x.astype(np.longdouble) @ w[formula.router].T
    ids = formula.select(w, z)
    for other in (Formula("", [], groups=groups, keep_groups=keep, **settings_of_choice),
                  Formula("", [], bias=bias, **settings_of_choice)):  # fmt: skip
        different = np.sort(other.select(w, z), axis=1) != np.sort(ids, axis=1)
        assert different.any(axis=1).mean() > 0.25
    assert ((sigmoid(z) + w[bias] > 0).sum(axis=1) < k).any()

    settings = {"model_dim": D, "ffn_dim": F, "experts": E, "shared": 1, "groups": groups}
    settings |= {"keep_groups": keep, "normalize": True, "scale": scale} | settings_of_choice
    quirks = (
        "The order of a token's slots is not defined (topk with sorted=False). The bias chooses and does not "
        "weigh; it is mostly negative, so that masking losing groups with 0 instead of -inf would be seen. "
        "1e-20 is added to the sum before dividing. The bias has no gradient."
    )
    block = DeepseekV3MoE(config)
    return published(
        block, prefix, PROJECTIONS, formula, (x, dy, weights), seed, settings, quirks, slots_are_sorted=False
    )


def moe_plus_plus(mixtral_gating):
    """Softmax, two best of FFN, constant, copy and zero experts."""
    seed, T, D, F, ffn, E = 4, 19, 12, 10, 4, 8
    prefix = "model.layers.0.mlp.moe."
    shapes = {prefix + "gate.wg.weight": (E, D)}
    experts = []
    for e in range(ffn):
        shapes |= swiglu_shapes(f"{prefix}experts.experts.{e}.", PROJECTIONS, D, F)
        experts.append(swiglu(f"{prefix}experts.experts.{e}."))
    for e in range(ffn, ffn + 2):
        one = f"{prefix}experts.experts.{e}."
        shapes |= {one + "constant": (D,), one + "wg.weight": (2, D)}
        experts.append(Constant(one + "wg.weight", one + "constant"))
    experts += [Copy(), Zero()]
    formula = Formula(
        prefix + "gate.wg.weight",
        experts,
        k=2,
        normalize=True,
        null=-1 if mixtral_gating else E - 1,
        input_scale=1 if mixtral_gating else 2,
    )
    data = draw(seed, T, D, shapes)

    # Every kind of expert is someone's first and someone's second choice.
    w = {name: value.astype(np.longdouble) for name, value in data[2].items()}
    ids = formula.select(w, data[0].astype(np.longdouble) @ w[formula.router].T)
    for slot in range(2):
        assert {(*"ffff", *"kk", *"cz")[e] for e in ids[:, slot]} == set("fkcz")

    def pack(tensors):
        """The model keeps gate and up in one matrix called up_proj, gate first."""
        packed = dict(tensors)
        for name in tensors:
            if name.endswith(".gate_proj.weight"):
                up = name.replace("gate_proj", "up_proj")
                packed[up] = np.concatenate([packed.pop(name), tensors[up]])
        return packed

    settings = {"model_dim": D, "ffn_dim": F, "experts": "4 ffn, 2 constant, copy, zero", "k": 2}
    settings |= {"router": "linear", "mixtral_gating": mixtral_gating, "input_scale": formula.input_scale}
    if mixtral_gating:
        quirks = "The zero expert keeps its weight. Experts see the input unscaled."
    else:
        quirks = (
            "The weight of the zero expert is set to 0 before normalising, so that the other expert of that "
            "token gets 1. Experts see 2 x, the router x."
        )
    quirks += " up_proj holds the gate's rows, then the up rows. Not in this layer: the gating residual."
    return computed(formula, data, seed, settings, quirks, pack)


def dynamic_moe():
    """Softmax, the best until their sum exceeds 0.4, raw."""
    seed, T, D, F, E, p = 1, 13, 12, 14, 8, 0.4
    prefix = "model.layers.0.mlp."
    formula = Formula(prefix + "router.weight", [swiglu(f"{prefix}experts.{e}.") for e in range(E)], p=p)
    shapes = routed_shapes(prefix, PROJECTIONS, E, D, F, "router.weight")
    data = draw(seed, T, D, shapes)
    data[2][formula.router] /= np.float32(2)  # less decided tokens take more experts
    w = {name: value.astype(np.longdouble) for name, value in data[2].items()}
    ids = formula.select(w, data[0].astype(np.longdouble) @ w[formula.router].T)
    assert {1, 2, 3} <= set((ids >= 0).sum(axis=1))
    settings = {"model_dim": D, "ffn_dim": F, "experts": E, "p": p, "rule": "exceed", "normalize": False}
    quirks = "The expert that crosses p is taken too; a sum of exactly p has not crossed. Weights do not sum to 1."
    return computed(formula, data, seed, settings, quirks)


CASES = {
    "mixtral": mixtral,
    "qwen2_moe": lambda: qwen2_moe(False),
    "qwen2_moe_norm": lambda: qwen2_moe(True),
    "deepseek_v3": deepseek_v3,
    "moe_plus_plus": lambda: moe_plus_plus(False),
    "moe_plus_plus_mixtral_gating": lambda: moe_plus_plus(True),
    "dynamic_moe": dynamic_moe,
}


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    same = True
    for name, case in CASES.items():
        path = FOLDER / (name + ".safetensors")
        data = case()
        assert len(data) < 200_000, f"{path.name} has {len(data)} bytes"
        if not arguments:
            path.write_bytes(data)
            print(f"{path.name}: {len(data)} bytes")
        elif not path.exists() or path.read_bytes() != data:
            print(f"{path.name} differs")
            same = False
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
