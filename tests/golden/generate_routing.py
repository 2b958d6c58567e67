# SPDX-License-Identifier: MIT
"""Writes routing.safetensors: published gates and routers on given logits, noise and tokens.

    python3 -m venv v
    v/bin/pip install numpy scipy torch transformers safetensors megatron-core
    v/bin/pip install --no-deps deepspeed torchtitan st-moe-pytorch psutil hjson msgpack py-cpuinfo pydantic \\
        pydantic_core annotated_types typing_inspection spmd_types tyro docstring_parser shtab typeguard beartype \\
        colt5-attention local-attention hyper-connections einx frozendict torch-einops-utils
    v/bin/python generate_routing.py            # writes the file
    v/bin/python generate_routing.py --check    # compares it byte by byte, exits with 1 if it differs

Written with Python 3.11.7, numpy 2.4.6, scipy 1.17.1, torch 2.15.0, transformers 5.24.0, megatron-core 0.16.1,
deepspeed 0.19.8, torchtitan 0.3.0 and st-moe-pytorch 0.1.8. One function below makes one case: it runs the published
code, where there is a package of it, else the formula of the paper or of code that is not a package. Everything is
float64 (code that asks for float32 gets float64), inputs are float32 numbers. T tokens, E experts, K slots; the
tensors of a case begin with its name:

    logits          [T, L]      F32
    expert_ids      [T, K]      I32  experts that work on the token in slot order, -1 where there is none, -2 where the
                                     token stands in for what its expert returns. Ascending in cases whose published
                                     code does not say in which order
    weights         [T, K]      F64  combine weights, 0 at -1
    dweights        [T, K]      F64  of loss = sum(weights * dweights), 0 at -1
    dlogits         [T, L]      F64  by torch's autograd, indices and noise as constants
    noise           [draws T, E] F64 samples
    gate.<name>     [1, E]      F64  a parameter of the gate; grad.gate.<name> its gradient
    token_ids, sequence_offsets, table [V, K]                                I32  side inputs
    token_importance, logit_offset                                           F64

A case without logits is one of a router: x [T, D], the router's weights, the logits, and the gradients of
loss = sum(logits * grad_logits). __metadata__ has one entry, "golden", a JSON text with the sources of the cases, the
seed and the versions.

No choice is a tie or nearly one: what is compared differs by 1e-3 at least, and every rule has something to do (the
script draws again until that is so).
"""

import os

os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import importlib
import importlib.metadata
import json
import math
import pathlib
import platform
import sys
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import safetensors.numpy
import scipy.optimize
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

FOLDER = pathlib.Path(__file__).resolve().parent
SEED = 20
SMALLEST_GAP = 1e-3
VERSIONS = ["numpy", "scipy", "torch", "transformers", "megatron-core", "deepspeed", "torchtitan", "st-moe-pytorch"]
CASES = {}


class Close(Exception):
    """Something is nearly a tie, or a rule had nothing to do: draw again."""


def case(source):
    def add(function):
        CASES[function.__name__] = (source, function)
        return function

    return add


def published(package, what):
    version = importlib.metadata.version(package)
    return f"published: {package} {version} {what}"


def transformers_class(model, name):
    return getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)


def module(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


class Float64(TorchFunctionMode):
    """Code that asks for float32 gets float64; samplers return what they are given."""

    def __init__(self, uniform=None):
        self.uniform = None if uniform is None else torch.as_tensor(uniform)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(a):
            return torch.float64 if a is torch.float32 else a

        if self.uniform is not None and function is torch.rand_like:
            return self.uniform
        if self.uniform is not None and function is torch.Tensor.uniform_:
            return args[0].copy_(self.uniform)
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


# ---------------------------------------------------------------------------------------------------
# Drawing inputs, and refusing what is close.


def single(values):
    """Rounded to float32."""
    return np.asarray(values, np.float32).astype(np.float64)


def draw(rng, tokens, columns, scale=1.2, skew=0.0):
    """Logits whose rows have no two entries closer than 0.02; skew favours the first columns."""
    rows = []
    while len(rows) < tokens:
        row = single(scale * rng.standard_normal(columns) + skew * np.linspace(1, -1, columns))
        if np.diff(np.sort(row)).min() >= 0.02:
            rows.append(row)
    return torch.tensor(np.array(rows), requires_grad=True)


def array(a):
    return a.detach().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)


def need(condition):
    if not condition:
        raise Close


def need_order(keys, k):
    """The k best entries of each row, in their order, are clearly so."""
    ranked = -np.sort(-array(keys), axis=-1)
    gaps = -np.diff(ranked[..., : k + 1], axis=-1)
    need(np.nanmin(np.where(np.isfinite(gaps), gaps, 1.0)) >= SMALLEST_GAP)


def need_distance(values, bound):
    need(np.abs(array(values) - array(bound)).min() >= SMALLEST_GAP)


def need_apart(values):
    """No two of them are close."""
    need(np.diff(np.sort(array(values).ravel())).min() >= SMALLEST_GAP)


def need_apart_by_expert(values, chosen):
    """Values [T, E] of the tokens that chose an expert are apart."""
    for e in range(array(chosen).shape[1]):
        column = array(values)[array(chosen)[:, e] != 0, e]
        if len(column) > 1:
            need_apart(column)


# ---------------------------------------------------------------------------------------------------
# From results to tensors.


def finish(rng, z, ids, weights, *, is_set=False, parameters=(), **extra):
    """The tensors of a case. parameters: name -> leaf of the gate."""
    parameters = dict(parameters)
    ids, keep = array(ids).astype(np.int32), array(ids) != -1
    assert (array(weights)[~keep] == 0).all()
    dweights = rng.standard_normal(ids.shape) * keep
    loss = (weights * torch.tensor(dweights)).sum()
    leaves = [z, *parameters.values()]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    grads = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads)]
    need((array(grads[0]).round(9) != 0).mean() > 0.105)  # a comparison of zeros proves nothing
    if is_set:
        order = np.argsort(np.where(keep, ids, 1 << 20), axis=1, kind="stable")
        take = lambda a: np.take_along_axis(a, order, axis=1)
        ids, dweights, weights = take(ids), take(dweights), take(array(weights))
    tensors = {
        "logits": array(z).astype(np.float32),
        "expert_ids": ids,
        "weights": array(weights),
        "dweights": dweights,
        "dlogits": array(grads[0]),
    }
    for (name, value), grad in zip(parameters.items(), grads[1:]):
        tensors["gate." + name] = array(value).reshape(1, -1)
        tensors["grad.gate." + name] = array(grad).reshape(1, -1)
    return tensors | {name.replace("__", "."): array(value) for name, value in extra.items()}


def finish_dense(rng, z, weights, chosen=None, **extra):
    """The same from weights [T, E], 0 where an expert does not work; a set."""
    chosen = array(weights) != 0 if chosen is None else array(chosen)
    slots = max(1, chosen.sum(axis=1).max())
    ids = np.full((len(chosen), slots), -1, np.int32)
    for t, row in enumerate(chosen):
        experts = np.flatnonzero(row)
        ids[t, : len(experts)] = experts
    return finish(rng, z, ids, gather(weights, ids), is_set=True, **extra)


def gather(weights, ids):
    """weights [T, E] at ids [T, K], 0 at -1."""
    ids = torch.as_tensor(np.asarray(ids)).long()
    return weights.gather(1, ids.clamp(min=0)) * (ids >= 0)


def top(keys, k):
    """Experts in falling order of keys."""
    need_order(keys, k)
    return np.argsort(-array(keys), axis=1, kind="stable")[:, :k]


def mask_of(ids, experts):
    mask = np.zeros((len(ids), experts), bool)
    for t, row in enumerate(np.asarray(ids)):
        mask[t, row[row >= 0]] = True
    return mask


def keep_in_turn(ids, capacity, tokens=None):
    """k-major: all first choices in the order of tokens, then all second ones; -1 for who comes too late."""
    kept, load = ids.copy(), {}
    for slot in range(ids.shape[1]):
        for t in range(len(ids)) if tokens is None else tokens:
            e = ids[t, slot]
            load[e] = load.get(e, 0) + 1
            if load[e] > capacity:
                kept[t, slot] = -1
    need((kept != ids).any() and (kept >= 0).any())
    return kept


# ---------------------------------------------------------------------------------------------------
# transformers


def router_of(model, name, z, **config):
    """Runs a router module whose weight is the identity, so that its logits are z."""
    experts = z.shape[1]
    sizes = dict(hidden_size=experts, num_experts=experts, num_local_experts=experts)
    with Float64():
        router = transformers_class(model, name)(SimpleNamespace(**(sizes | config))).double()
        linear = getattr(router, "classifier", None) or getattr(router, "gate", None) or router
        linear.weight = torch.nn.Parameter(torch.eye(experts, dtype=torch.float64))
    return router


def run_router(router, *arguments):
    with Float64():
        return router(*arguments)


@case(published("transformers", "mixtral"))
def mixtral(rng):
    z = draw(rng, 11, 9)
    need_order(z, 2)
    _, w, ids = run_router(router_of("mixtral", "MixtralTopKRouter", z, num_experts_per_tok=2), z)
    return finish(rng, z, ids, w)


def qwen(rng, normalized):
    z = draw(rng, 11, 12)
    need_order(z.softmax(1), 4)
    router = router_of("qwen3_moe", "Qwen3MoeTopKRouter", z, num_experts_per_tok=4, norm_topk_prob=normalized)
    _, w, ids = run_router(router, z)
    return finish(rng, z, ids, w)


@case(published("transformers", "qwen3_moe, norm_topk_prob false"))
def qwen3_raw(rng):
    return qwen(rng, False)


@case(published("transformers", "qwen3_moe, norm_topk_prob true"))
def qwen3_normalized(rng):
    return qwen(rng, True)


@case(published("transformers", "deepseek_v2, group_limited_greedy"))
def deepseek_v2(rng):
    z = draw(rng, 11, 12)
    s = z.softmax(1)
    need_order(s.view(11, 4, 3).amax(2), 2)
    config = dict(n_group=4, topk_group=2, routed_scaling_factor=16.0, topk_method="group_limited_greedy")
    _, w, ids = run_router(router_of("deepseek_v2", "DeepseekV2TopkRouter", z, num_experts_per_tok=3, **config), z)
    need((np.sort(array(ids)) != np.sort(np.argsort(-array(s), axis=1)[:, :3])).any())
    need_order(s, 12)
    return finish(rng, z, ids, w)


@case(published("transformers", "deepseek_v3"))
def deepseek_v3(rng):
    z, b = draw(rng, 11, 12), single(0.3 * rng.standard_normal(12))
    biased = z.sigmoid() + torch.tensor(b)
    need_order(biased.view(11, 4, 3).topk(2)[0].sum(2), 2)
    need_order(biased, 12)
    config = dict(n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True)
    router = router_of("deepseek_v3", "DeepseekV3TopkRouter", z, num_experts_per_tok=3, **config)
    router.e_score_correction_bias = torch.tensor(b)
    _, w, ids = run_router(router, z)
    need((np.sort(array(ids)) != np.sort(np.argsort(-array(biased), axis=1)[:, :3])).any())
    return finish(rng, z, ids, w, gate__bias=b.reshape(1, -1))


@case(published("transformers", "afmoe"))
def afmoe(rng):
    z, b = draw(rng, 11, 9), single(0.3 * rng.standard_normal(9))
    need_order(z.sigmoid() + torch.tensor(b), 3)
    router = router_of("afmoe", "AfmoeTokenChoiceRouter", z, num_experts_per_tok=3, route_scale=1.75)
    _, w, ids = run_router(router, z.unsqueeze(0), torch.tensor(b))
    return finish(rng, z, ids, w, gate__bias=b.reshape(1, -1))


@case(published("transformers", "longcat_flash"))
def longcat(rng):
    z, b = draw(rng, 11, 12), single(0.05 * rng.standard_normal(12))
    biased = z.softmax(1) + torch.tensor(b)
    need_order(biased, 4)
    config = dict(n_routed_experts=9, zero_expert_num=3, routed_scaling_factor=6.0)
    router = router_of("longcat_flash", "LongcatFlashTopkRouter", z, num_experts_per_tok=4, **config)
    router.e_score_correction_bias = torch.tensor(b)
    _, w, ids = run_router(router, z)
    need((np.sort(array(ids)) != np.sort(np.argsort(-array(z), axis=1)[:, :4])).any())
    return finish(rng, z, ids, w, gate__bias=b.reshape(1, -1))


def ernie(rng, least):
    z, b = draw(rng, 11, 9), single(0.05 * rng.standard_normal(9))
    need_order(z.softmax(1) + torch.tensor(b), 3)
    router = router_of("ernie4_5_moe", "Ernie4_5_MoeTopKRouter", z, num_experts_per_tok=3, moe_norm_min=least)
    router.moe_statics.e_score_correction_bias.data = torch.tensor(b).reshape(1, -1)
    _, w, ids = run_router(router, z)
    sums = gather(z.softmax(1), array(ids)).sum(1)
    need_distance(sums, least)
    need(least < 0.1 or ((array(sums) < least).any() and (array(sums) > least).any()))
    return finish(rng, z, ids, w, gate__bias=b.reshape(1, -1))


@case(published("transformers", "ernie4_5_moe"))
def ernie4_5(rng):
    return ernie(rng, 1e-12)


@case(published("transformers", "ernie4_5_moe, moe_norm_min 0.75"))
def ernie4_5_clamped(rng):
    return ernie(rng, 0.75)


@case(published("transformers", "gpt_oss"))
def gpt_oss(rng):
    z, b = draw(rng, 11, 9), single(rng.standard_normal(9))
    need_order(z + torch.tensor(b), 4)
    router = router_of("gpt_oss", "GptOssTopKRouter", z, num_experts_per_tok=4)
    router.bias.data = torch.tensor(b)
    _, w, ids = run_router(router, z)
    return finish(rng, z, ids, w, logit_offset=b.reshape(1, -1))


@case(published("transformers", "granitemoe"))
def granite(rng):
    z = draw(rng, 11, 9)
    _, w, ids = run_router(router_of("granitemoe", "GraniteMoeTopKRouter", z, num_experts_per_tok=3), z)
    return finish(rng, z, ids, w)


def llama(rng, k):
    z = draw(rng, 11, 9)
    with Float64():
        router = transformers_class("llama4", "Llama4Router")(
            SimpleNamespace(hidden_size=9, num_local_experts=9, num_experts_per_tok=k)
        ).double()
        router.weight = torch.nn.Parameter(torch.eye(9, dtype=torch.float64))
    scores, _ = run_router(router, z)
    return finish_dense(rng, z, scores)


@case(published("transformers", "llama4"))
def llama4(rng):
    return llama(rng, 1)


@case(published("transformers", "llama4, two experts"))
def llama4_top_2(rng):
    return llama(rng, 2)


def dbrx(rng, p):
    z = draw(rng, 11, 9)
    need_order(z.softmax(1), 4)
    own = SimpleNamespace(top_k=4, moe_normalize_expert_weights=p)
    with Float64():
        w, ids = transformers_class("dbrx", "DbrxFFN").route_tokens_to_experts(own, z)
    return finish(rng, z, ids, w)


@case(published("transformers", "dbrx, p = 1"))
def dbrx_1(rng):
    return dbrx(rng, 1.0)


@case(published("transformers", "dbrx, p = 2"))
def dbrx_2(rng):
    return dbrx(rng, 2.0)


@case(published("transformers", "lfm2_moe"))
def lfm2(rng):
    z, b = draw(rng, 11, 9), single(0.3 * rng.standard_normal(9))
    need_order(z.sigmoid() + torch.tensor(b), 3)
    config = dict(num_experts_per_tok=3, norm_topk_prob=True, routed_scaling_factor=1.5, use_expert_bias=True)
    _, w, ids = run_router(router_of("lfm2_moe", "Lfm2MoeTopKRouter", z, **config), z, torch.tensor(b))
    return finish(rng, z, ids, w, gate__bias=b.reshape(1, -1))


@case(published("transformers", "deepseek_v4"))
def deepseek_v4(rng):
    z, b = draw(rng, 11, 9), single(0.3 * rng.standard_normal(9))
    need_order(F.softplus(z).sqrt() + torch.tensor(b), 3)
    config = dict(num_experts_per_tok=3, scoring_func="sqrtsoftplus", routed_scaling_factor=1.5)
    router = router_of("deepseek_v4", "DeepseekV4TopKRouter", z, **config)
    router.e_score_correction_bias = torch.tensor(b)
    _, w, ids = run_router(router, z)
    return finish(rng, z, ids, w, gate__bias=b.reshape(1, -1))


@case(published("transformers", "deepseek_v4, hash layer"))
def deepseek_v4_hash(rng):
    z = draw(rng, 11, 9)
    table = np.array([rng.permutation(9)[:3] for _ in range(7)])
    tokens = rng.integers(0, 7, 11)
    config = dict(num_experts_per_tok=3, scoring_func="sqrtsoftplus", routed_scaling_factor=1.5, vocab_size=7)
    router = router_of("deepseek_v4", "DeepseekV4HashRouter", z, **config)
    router.tid2eid = torch.tensor(table)
    _, w, ids = run_router(router, z, torch.tensor(tokens))
    side = dict(table=table.astype(np.int32), token_ids=tokens.astype(np.int32).reshape(1, -1))
    return finish(rng, z, ids, w, is_set=True, **side)


def switch_router(rng):
    z = draw(rng, 12, 9, skew=1.0)
    need_order(z.softmax(1), 1)
    config = dict(expert_capacity=2, router_bias=False, router_jitter_noise=0.0, router_ignore_padding_tokens=False)
    router = router_of("switch_transformers", "SwitchTransformersTop1Router", z, router_dtype="float64", **config)
    mask, w, _ = run_router(router, z.view(2, 6, 9))  # two sequences, each with its capacity
    mask, w = array(mask).reshape(12, 9), w.reshape(12, 1)
    need((mask.sum(1) == 0).sum() >= 2)
    best = array(z).argmax(1).reshape(-1, 1)
    return z, mask.sum(1, keepdims=True), w, best, dict(sequence_offsets=np.array([[0, 6, 12]], np.int32))


@case(published("transformers", "switch_transformers: who comes too late is dropped"))
def switch(rng):
    z, kept, w, best, side = switch_router(rng)
    return finish(rng, z, np.where(kept, best, -1), w * torch.tensor(kept), **side)


@case("formula: torch, switch_transformers 4.x: who comes too late passes with its weight")
def switch_pass_through(rng):
    z, kept, w, best, side = switch_router(rng)
    return finish(rng, z, np.where(kept, best, -2), w, **side)


def nllb(rng, policy, before, prioritized=False):
    z = draw(rng, 13, 9, skew=1.2)
    gumbel, uniform = rng.gumbel(size=(13, 9)), rng.uniform(size=(13, 1))
    s = z.softmax(1)
    need_order(z, 2)
    if policy == "sampling":
        need_order(z.detach() + torch.tensor(gumbel), 3)
    second = array(s.sort(1, descending=True)[0])[:, 1]
    need_distance(2 * second, uniform[:, 0])
    need_apart(s.amax(1))
    config = dict(expert_capacity=None, router_bias=False, router_ignore_padding_tokens=False, router_dtype="float64")
    config |= dict(second_expert_policy=policy, normalize_router_prob_before_dropping=before)
    config |= dict(batch_prioritized_routing=prioritized, moe_eval_capacity_token_fraction=1.0)
    router = router_of("nllb_moe", "NllbMoeTop2Router", z, **config).train()
    original = torch.distributions.gumbel.Gumbel
    torch.distributions.gumbel.Gumbel = lambda *_: SimpleNamespace(rsample=lambda shape: torch.tensor(gumbel))
    try:
        with Float64(uniform[:, 0]):
            _, combine = router.route_tokens(z * 1, input_dtype=torch.float64)
    finally:
        torch.distributions.gumbel.Gumbel = original
    count = (array(combine) != 0).sum(1)
    need((count == 2).any() and (count == 1).any())
    noise = {"sampling": gumbel, "random": np.repeat(uniform, 9, axis=1)}
    if policy == "all":  # with the other policies the rule itself leaves experts out
        need(count.sum() < 24)
    return finish_dense(rng, z, combine, **({"noise": noise[policy]} if policy in noise else {}))


@case(published("transformers", "nllb_moe, all, normalised after dropping"))
def nllb_all(rng):
    return nllb(rng, "all", False)


@case(published("transformers", "nllb_moe, all, normalised before dropping"))
def nllb_before(rng):
    return nllb(rng, "all", True)


@case(published("transformers", "nllb_moe, all, batch-prioritised"))
def nllb_prioritized(rng):
    return nllb(rng, "all", False, True)


@case(published("transformers", "nllb_moe, sampling"))
def nllb_sampling(rng):
    return nllb(rng, "sampling", False)


@case(published("transformers", "nllb_moe, random"))
def nllb_random(rng):
    return nllb(rng, "random", False)


# ---------------------------------------------------------------------------------------------------
# Megatron-LM, torchtitan, DeepSpeed, st-moe-pytorch


def megatron(rng, experts=9, k=3, drop=None, factor=0.7, skew=0.0, keys=None, bias=None, **settings):
    z = draw(rng, 11, experts, skew=skew)
    utils = module("megatron.core.transformer.moe.moe_utils")
    if keys is not None:
        need_order(keys(z), k if bias is None else experts)
    with Float64():
        if bias is not None:
            bias = single(bias * rng.standard_normal(experts))
            settings["expert_bias"] = torch.tensor(bias)
            need_order(z.sigmoid() + torch.tensor(bias), experts)
        w, chosen = utils.topk_routing_with_score_function(z, k, **settings)
        if drop is not None:
            need_apart_by_expert(w, chosen)
            before = chosen
            w, chosen = utils.apply_router_token_dropping(w, chosen, k, factor, drop)
            need((before != chosen).any())
    return finish_dense(rng, z, w, chosen, **({} if bias is None else {"gate__bias": bias.reshape(1, -1)}))


MEGATRON = "topk_routing_with_score_function, "


@case(published("megatron-core", MEGATRON + "softmax"))
def megatron_softmax(rng):
    return megatron(rng)


@case(published("megatron-core", MEGATRON + "softmax before top-k, scaled"))
def megatron_pre_softmax(rng):
    return megatron(rng, use_pre_softmax=True, scaling_factor=2.5, keys=lambda z: z.softmax(1))


@case(published("megatron-core", MEGATRON + "sigmoid"))
def megatron_sigmoid(rng):
    return megatron(rng, score_function="sigmoid", keys=torch.sigmoid)


@case(published("megatron-core", MEGATRON + "sigmoid, one expert"))
def megatron_sigmoid_1(rng):
    return megatron(rng, k=1, score_function="sigmoid", keys=torch.sigmoid)


@case(published("megatron-core", MEGATRON + "sigmoid, bias, groups, scaled"))
def megatron_groups(rng):
    groups = dict(num_groups=4, group_topk=2, scaling_factor=2.5)
    return megatron(rng, experts=12, k=4, score_function="sigmoid", bias=0.3, **groups)


@case(published("megatron-core", MEGATRON + "softmax, groups by the sum of 3"))
def megatron_softmax_groups(rng):
    keys = lambda z: z.softmax(1).view(11, 3, 4).topk(3)[0].sum(2)
    groups = dict(num_groups=3, group_topk=1, use_pre_softmax=True)
    return megatron(rng, experts=12, k=3, keys=keys, **groups)


@case(published("megatron-core", "apply_router_token_dropping, probs"))
def megatron_drop_probs(rng):
    return megatron(rng, k=2, drop="probs", skew=1.0)


@case("formula: numpy, Megatron-LM's drop by position (whose own order is that of ties)")
def megatron_drop_position(rng):
    z = draw(rng, 11, 9, skew=1.0)
    ids = top(z, 2)
    w = gather(z, ids).softmax(1)
    load, kept = [0] * 9, ids.copy()
    for t in range(11):
        for slot in range(2):
            load[ids[t, slot]] += 1
            if load[ids[t, slot]] > math.ceil(11 * 2 / 9 * 0.7):
                kept[t, slot] = -1
    need((kept != ids).any())
    return finish(rng, z, kept, w * torch.tensor(kept >= 0))


def sinkhorn_gate(rng, k):
    z = draw(rng, 11, 9, skew=0.7)
    plan = module("megatron.core.transformer.moe.moe_utils").sinkhorn(z.detach())
    ids = top(plan * len(plan), k)  # rows of sum 1
    need((np.sort(ids) != np.sort(np.argsort(-array(z), axis=1)[:, :k])).any())
    scores = z.sigmoid() if k == 1 else z.softmax(1)
    return finish(rng, z, ids, gather(scores, ids))


@case(published("megatron-core", "sinkhorn, one expert"))
def sinkhorn_1(rng):
    return sinkhorn_gate(rng, 1)


@case(published("megatron-core", "sinkhorn, two experts"))
def sinkhorn_2(rng):
    return sinkhorn_gate(rng, 2)


@case(published("torchtitan", "TokenChoiceTopKRouter, groups"))
def torchtitan(rng):
    z, b = draw(rng, 11, 12), single(0.3 * rng.standard_normal(12))
    biased = z.sigmoid() + torch.tensor(b)
    need_order(biased.view(11, 4, 3).topk(2)[0].sum(2), 2)
    need_order(biased, 12)
    cls = module("torchtitan.models.common.moe").TokenChoiceTopKRouter
    router = cls.__new__(cls)
    torch.nn.Module.__init__(router)
    router.gate, router.top_k, router.score_func = torch.nn.Identity(), 3, "sigmoid"
    router.num_experts, router.num_expert_groups, router.num_limited_groups = 12, 4, 2
    router.route_norm, router.route_scale, router._debug_force_load_balance = True, 1.25, False
    with Float64():
        w, ids, _ = router(z.unsqueeze(0), torch.tensor(b))
    return finish(rng, z, ids[0], w[0], gate__bias=b.reshape(1, -1))


def deepspeed():
    return module("deepspeed.moe.sharded_moe")


def deepspeed_top1(rng, by):
    z, gumbel = draw(rng, 13, 9, skew=1.0), rng.gumbel(size=(13, 9))
    need_order(z.detach() + torch.tensor(gumbel), 1)
    s = z.softmax(1)
    first = np.argmax(array(z) + gumbel, axis=1)
    need_apart_by_expert(s, mask_of(first.reshape(-1, 1), 9))
    uniform = torch.linspace(0.9, 0.1, 13, dtype=torch.float64).repeat(9, 1).T if by == "position" else s.detach()
    gates = deepspeed()
    gates.gumbel_map[z.device] = lambda shape: torch.tensor(gumbel)
    gates.exp_selection_uniform_map[z.device] = lambda shape: uniform
    with Float64():
        _, _, _, ids, _, w, _ = gates.top1gating(z, 0.9, 1, noisy_gate_policy="RSample", sparse_routes=True)
    ids = array(ids).T
    need((ids < 0).any() and (first != array(z).argmax(1)).any())
    return finish(rng, z, ids, w.T, noise=gumbel)


@case(published("deepspeed", "top1gating, RSample, draws that fall with position"))
def deepspeed_top_1(rng):
    return deepspeed_top1(rng, "position")


@case(published("deepspeed", "top1gating, RSample, draws equal to probabilities"))
def deepspeed_top_1_probabilities(rng):
    return deepspeed_top1(rng, "probabilities")


@case(published("deepspeed", "top2gating"))
def deepspeed_top_2(rng):
    z, gumbel = draw(rng, 13, 9, skew=1.0), rng.gumbel(size=(13, 9))
    need_order(z, 2)
    need_order(z.detach() + torch.tensor(gumbel), 3)
    gates = deepspeed()
    gates.gumbel_map[z.device] = lambda shape: torch.tensor(gumbel)
    with Float64():
        _, _, _, ids, _, w, _ = gates.top2gating(z * 1, 0.8, 1, sparse_routes=True)
    ids = array(ids).T
    count = (ids >= 0).sum(1)
    need((count == 0).any() and (count == 1).any() and (ids[:, 1] != np.argsort(-array(z), 1)[:, 1]).any())
    return finish(rng, z, ids, w.T, noise=gumbel)


def deepspeed_topk(rng, policy):
    z = draw(rng, 13, 9, skew=1.0)
    s = z.softmax(1)
    need_order(s, 3)
    chosen = mask_of(np.argsort(-array(s), axis=1)[:, :3], 9)
    # The package compares softmax over all experts. By the normalised weights, others would go first.
    normalized = array(s) / (array(s) * chosen).sum(1, keepdims=True)
    capacity = math.ceil(13 / 9 * 0.7 * 3)
    differ = False
    for e in range(9):
        tokens = np.flatnonzero(chosen[:, e])
        best = [set(tokens[np.argsort(-scores[tokens, e])][:capacity]) for scores in (array(s), normalized)]
        differ |= best[0] != best[1]
    need(policy != "probs" or differ)
    need_apart_by_expert(s, chosen)
    with Float64():
        _, _, _, ids, _, w, _ = deepspeed().topkgating(z, 3, 0.7, 1, drop_policy=policy, sparse_routes=True)
    ids, w = array(ids).T, w.T
    need((ids < 0).any())
    return finish(rng, z, ids, w * torch.tensor(ids >= 0))


@case(published("deepspeed", "topkgating, probs"))
def deepspeed_top_k_probabilities(rng):
    return deepspeed_topk(rng, "probs")


@case(published("deepspeed", "topkgating, position"))
def deepspeed_top_k_position(rng):
    return deepspeed_topk(rng, "position")


@case(published("st-moe-pytorch", "TopNGating"))
def st_moe(rng):
    z, uniform = draw(rng, 13, 9, skew=1.2), rng.uniform(0, 1, size=(13, 1))
    need_order(z.softmax(1), 2)
    best = array(z.softmax(1).topk(2)[0])
    need_distance(best[:, 1] / best.sum(1) / 0.4, uniform[:, 0])
    with Float64():
        gating = module("st_moe_pytorch.st_moe_pytorch").TopNGating(9, 9, threshold_train=0.4).double().train()
        gating.to_gates.weight = torch.nn.Parameter(torch.eye(9, dtype=torch.float64))
    draws = np.zeros((2, 1, 13))
    draws[1, 0] = uniform[:, 0]
    with Float64(draws):
        _, combine, _, _ = gating(z.unsqueeze(0))
    combine = combine[0].sum(2)
    kept = array(combine) != 0
    spared = uniform[:, 0] >= best[:, 1] / best.sum(1) / 0.4
    need(spared.any() and kept.sum() < 26 - spared.sum())
    return finish_dense(rng, z, combine, noise=np.repeat(uniform, 9, axis=1))


# ---------------------------------------------------------------------------------------------------
# Formulas: gates of k experts, capacity and noise.


def sums_to_one(w):
    return w / w.sum(1, keepdim=True)


@case("formula: torch, Megatron-LM's sqrtsoftplus")
def megatron_sqrt_softplus(rng):
    z = draw(rng, 11, 9)
    s = F.softplus(z).sqrt()
    ids = top(s, 3)
    picked = gather(s, ids)
    return finish(rng, z, ids, 1.5 * picked / (picked.sum(1, keepdim=True) + 1e-20))


@case("formula: torch, DeepSeek-V2 with norm_topk_prob")
def deepseek_v2_normalized(rng):
    z = draw(rng, 11, 12)
    s = z.softmax(1)
    groups = top(s.view(11, 4, 3).amax(2), 2)
    keys = np.where(np.repeat(mask_of(groups, 4), 3, axis=1), array(s), 0.0)
    ids = top(keys, 3)
    picked = gather(s, ids)
    return finish(rng, z, ids, picked / (picked.sum(1, keepdim=True) + 1e-20))


def learned_noise(rng, epsilon):
    z, noise = draw(rng, 11, 18), rng.standard_normal((11, 9))
    h = z[:, :9] + torch.tensor(noise) * (F.softplus(z[:, 9:]) + epsilon)
    ids = top(h, 3)
    return finish(rng, z, ids, gather(h, ids).softmax(1), noise=noise)


@case("formula: torch, Shazeer's noisy top-k")
def shazeer(rng):
    return learned_noise(rng, 0.0)


@case("formula: torch, fastmoe's noisy gate")
def fastmoe_noisy(rng):
    return learned_noise(rng, 1e-2)


@case("formula: torch, V-MoE: noise over experts, raw weights, batch-prioritised")
def v_moe(rng):
    z, noise = draw(rng, 13, 9, skew=1.3), 3 * rng.standard_normal((13, 9))
    h = z + torch.tensor(noise) / 9
    s = h.softmax(1)
    ids = top(s, 2)
    need_apart(s.amax(1))
    capacity = math.ceil(13 * 2 * 1.05 / 9)
    capacity += -capacity % 4
    kept = keep_in_turn(ids, capacity, np.argsort(-array(s.amax(1)), kind="stable"))
    need((kept != keep_in_turn(ids, capacity)).any())
    need((ids != np.argsort(-array(z), 1)[:, :2]).any())
    return finish(rng, z, kept, gather(s, ids) * torch.tensor(kept >= 0), noise=noise)


@case("formula: torch, flaxformer: raw weights, batch-prioritised")
def flaxformer(rng):
    z = draw(rng, 13, 9, skew=1.3)
    s = z.softmax(1)
    ids = top(s, 2)
    need_apart(s.amax(1))
    capacity = max(round(1.25 * 13 / 9), 4)
    kept = keep_in_turn(ids, capacity, np.argsort(-array(s.amax(1)), kind="stable"))
    need((kept != keep_in_turn(ids, capacity)).any())
    return finish(rng, z, kept, gather(s, ids) * torch.tensor(kept >= 0))


@case("formula: torch, Tutel: noise over experts, normalised, its capacity")
def tutel(rng):
    z, noise = draw(rng, 13, 9, skew=1.0), 3 * rng.standard_normal((13, 9))
    s = (z + torch.tensor(noise) / 9).softmax(1)
    ids = top(s, 2)
    kept = keep_in_turn(ids, 2 * int(1.0 * math.ceil(13 / 9)))
    picked = gather(s, ids)
    w = picked / picked.sum(1, keepdim=True).clamp(min=2.0**-52)
    return finish(rng, z, kept, w * torch.tensor(kept >= 0), noise=noise)


@case("formula: torch, OpenMoE: two experts, raw weights, its capacity")
def openmoe(rng):
    z = draw(rng, 13, 9, skew=1.2)
    s = z.softmax(1)
    ids = top(s, 2)
    capacity = math.floor(2 * 1.25 * 13 / 9)
    capacity = max(capacity + capacity % 2, 4)
    kept = keep_in_turn(ids, capacity)
    return finish(rng, z, kept, gather(s, ids) * torch.tensor(kept >= 0))


@case("formula: torch, fastmoe's GShard gate")
def fastmoe_gshard(rng):
    z, uniform = draw(rng, 11, 9), rng.uniform(size=(11, 1))
    ids = top(z, 2)
    w = gather(z, ids).softmax(1)
    need_distance(2 * array(w)[:, 1], uniform[:, 0])
    kept = np.where((np.arange(2) == 1) & (2 * array(w)[:, 1:] < uniform), -1, ids)
    need(0 < (kept < 0).sum() < 11)
    return finish(rng, z, kept, w * torch.tensor(kept >= 0), noise=np.repeat(uniform, 9, axis=1))


@case("formula: torch, mesh-TF's switch-max")
def switch_max(rng):
    z = draw(rng, 13, 9, skew=1.0)
    s = z.softmax(1)
    best, capacity = top(s, 1), max(math.floor(13 * 1.25 / 9), 2)
    need_apart_by_expert(s, mask_of(best, 9))
    kept = best.copy()
    for e in range(9):
        tokens = np.flatnonzero(best[:, 0] == e)
        kept[tokens[np.argsort(-array(s)[tokens, e])][capacity:]] = -1
    need((kept < 0).any())
    return finish(rng, z, kept, gather(s, best) * torch.tensor(kept >= 0))


@case("formula: torch, mesh-TF's no token left behind")
def no_token_left_behind(rng):
    z = draw(rng, 13, 9, skew=1.0)
    s = z.softmax(1)
    choices, load, placed = top(s, 9), [0] * 9, np.full(13, -1)
    for rank in range(9):
        for t in np.flatnonzero(placed < 0):
            e = choices[t, rank]
            if load[e] < 2:
                load[e] += 1
                placed[t] = e
    need((placed >= 0).all() and (placed != choices[:, 0]).sum() > 2)
    return finish(rng, z, placed.reshape(-1, 1), gather(s, placed.reshape(-1, 1)), is_set=True)


# ---------------------------------------------------------------------------------------------------
# Formulas: gates of a varying number of experts.


def prefix(z, counts, k=None):
    """The counts[t] best experts of each token."""
    ids = top(z, z.shape[1])[:, : max(counts)]
    return np.where(np.arange(max(counts)) < np.array(counts)[:, None], ids, -1)


def falling_sums(z, p):
    c = np.cumsum(-np.sort(-array(z.softmax(1)), axis=1), axis=1)
    need_distance(c, p)
    return c


def top_p(rng, p, count):
    z = draw(rng, 11, 9)
    counts = [count(row) for row in falling_sums(z, p)]
    need(len(set(counts)) >= 3)
    ids = prefix(z, counts)
    return finish(rng, z, ids, gather(z.softmax(1), ids))


@case("formula: torch, Dynamic_MoE's top-p: up to the expert that passes p")
def top_p_exceed(rng):
    def count(c):
        over = c > 0.55
        kept = ~over
        kept[np.argmax(over)] = True
        return int(kept.sum())

    return top_p(rng, 0.55, count)


@case("formula: torch, Uni-MoE's top-p: up to the expert that reaches p")
def top_p_reach(rng):
    return top_p(rng, 0.7, lambda c: 1 + int((~(c >= 0.7)).sum()))


@case("formula: torch, DynMoLE's top-p: before the expert that passes p, two at least")
def top_p_below(rng):
    return top_p(rng, 0.75, lambda c: max(2, int((c <= 0.75).sum())))


def uni_moe(rng, capacity):
    tokens, dynamic, fixed, jitter = 13, 6, 2, 0.05
    z = draw(rng, tokens, dynamic + fixed, scale=1.0, skew=0.6 if capacity else 0.0)
    zd = z[:, :dynamic]
    c = falling_sums(zd, 0.7)
    counts = 1 + (~(c >= 0.7)).sum(1)
    need(len(set(counts)) >= 3)
    ids = prefix(zd, list(counts))
    weights = torch.zeros(tokens, dynamic, dtype=torch.float64)
    shared = False
    for t in range(tokens):
        running, row = zd[t].detach().clone(), [torch.zeros((), dtype=torch.float64)] * dynamic
        for _ in range(counts[t]):
            best = int(running.argmax())
            v = zd[t].detach()[best]
            far = (v - zd[t].detach()) / torch.maximum(zd[t].detach().abs(), v.abs())
            need_distance(far[torch.isfinite(running)], 2 * jitter)
            live = ~(far > 2 * jitter) & torch.isfinite(running)
            shared |= int(live.sum()) > 1
            row[best] = zd[t].masked_fill(~live, -torch.inf).softmax(0)[best]
            running[best] = -torch.inf
        weights = weights.index_put((torch.tensor([t]),), torch.stack(row).unsqueeze(0))
    need(shared)
    chosen = mask_of(ids, dynamic)
    if capacity:
        keys, before = array(zd), chosen.copy()
        need_apart_by_expert(keys, chosen)
        most = max(math.ceil(tokens / dynamic * 1.0), 8)
        for e in range(dynamic):
            takers = np.flatnonzero(chosen[:, e])
            chosen[takers[np.argsort(-keys[takers, e])][most:], e] = False
        need((before != chosen).any())
        weights = weights * torch.tensor(chosen)
    rw = weights / (weights.sum(1, keepdim=True) + 1e-6)
    work = np.concatenate([chosen, np.ones((tokens, fixed), bool)], axis=1)
    g = z.masked_fill(torch.tensor(~work), -torch.inf).softmax(1)
    final = torch.cat([rw * g[:, :dynamic].sum(1, keepdim=True), g[:, dynamic:]], 1)
    return finish_dense(rng, z, final, work)


@case("formula: torch, Uni-MoE 2.0's dynamic capacity")
def uni_moe_dynamic(rng):
    return uni_moe(rng, False)


# The released code normalises before it drops and again after, adding 1e-6 both times, so that the weights of a token
# are smaller by a part in a million. Here they are normalised once, over what is kept.
@case("formula: torch, Uni-MoE 2.0's dynamic capacity, tokens dropped by logits")
def uni_moe_dropping(rng):
    return uni_moe(rng, True)


@case("formula: torch, DynMoLE")
def dyn_mole(rng):
    z = draw(rng, 11, 9, scale=1.1)
    s = z.softmax(1)
    h = (1 - ((s + 1e-5) ** 1.1).sum(1)) / 0.1 / ((1 - 9**-0.1) / 0.1)
    need_distance(h, 0.9)
    c = falling_sums(z, 0.75)
    counts = [9 if h[t] > 0.9 else max(2, int((c[t] <= 0.75).sum())) for t in range(11)]
    need(counts.count(9) in range(2, 6) and len(set(counts)) >= 3)
    ids = prefix(z, counts)
    return finish(rng, z, ids, gather(s, ids))


def dyn_moe(rng, training):
    z, a = draw(rng, 11, 9), torch.tensor(single(0.9 + 0.5 * rng.standard_normal(9)), requires_grad=True)
    mask = np.ones(9)
    mask[4] = 0
    u, threshold = z.sigmoid() * torch.tensor(mask), (1.25 * a).sigmoid()
    need_distance(u, threshold.unsqueeze(0))
    r = torch.relu(u - threshold)
    active = r + (torch.sign(r) - r).detach()  # the gradient goes through the sign as it is
    k = active.detach().sum(1, keepdim=True)
    need((k == 0).any() and (k == 1).any() and (k > 2).any())
    w = active / k.clamp(min=1)
    if not training:
        need_order(u, 1)
        best = F.one_hot(u.argmax(1), 9) * (k == 0)
        w = w + best
    return finish_dense(rng, z, w, parameters=dict(threshold=a), gate__mask=mask.reshape(1, -1))


@case("formula: torch, DynMoE's top-any in training")
def dyn_moe_training(rng):
    return dyn_moe(rng, True)


@case("formula: torch, DynMoE's top-any at inference")
def dyn_moe_inference(rng):
    return dyn_moe(rng, False)


def evo_moe(rng, phase, noisy=True):
    z, gumbel, tau = draw(rng, 11, 9), rng.gumbel(size=(11, 9)), 0.8
    h = (z + torch.tensor(gumbel)) / tau
    p = h.softmax(1)
    need_order(h, 9)
    need_distance(h.detach(), (0.001 * h.exp().sum(1, keepdim=True)).log().detach())
    if phase == "soft":
        counts = [int(n) for n in (p > 0.001).sum(1)]
        need(len(set(counts)) >= 2)
    elif phase == "hard":
        counts = [1] * 11
        need((p.argmax(1) != z.argmax(1)).any())
    ids = prefix(h, counts)
    return finish(rng, z, ids, gather(p if noisy else z.softmax(1), ids), noise=gumbel)


@case("formula: torch, EvoMoE, soft phase")
def evo_moe_soft(rng):
    return evo_moe(rng, "soft")


@case("formula: torch, EvoMoE, soft phase, weights without noise")
def evo_moe_clean(rng):
    return evo_moe(rng, "soft", False)


@case("formula: torch, EvoMoE, hard phase")
def evo_moe_hard(rng):
    return evo_moe(rng, "hard")


@case("formula: torch, EvoMoE, dense phase")
def evo_moe_dense(rng):
    z = draw(rng, 11, 9)
    ids = top(z, 9)
    return finish(rng, z, ids, gather(z.softmax(1), ids))


@case("formula: torch, EvoMoE, inference")
def evo_moe_inference(rng):
    z = draw(rng, 11, 9)
    ids = top(z, 1)
    return finish(rng, z, ids, gather(z.softmax(1), ids))


def above(rng, chosen, weights, check, **draw_options):
    z = draw(rng, 11, 9, **draw_options)
    check(z)
    counts = [int(n) for n in chosen(z).sum(1)]
    need(len(set(counts)) >= 3)
    ids = prefix(z, counts)
    return finish(rng, z, ids, weights(z, ids))


@case("formula: torch, MoMa's threshold at inference")
def threshold(rng):
    return above(
        rng,
        lambda z: z.sigmoid() > 0.6,
        lambda z, ids: gather(z.sigmoid(), ids),
        lambda z: need_distance(z.sigmoid(), 0.6),
    )


@case("formula: torch, ReMoE")
def relu(rng):
    return above(rng, lambda z: z > 0, lambda z, ids: gather(z.relu(), ids), lambda z: need_distance(z, 0.0))


@case("formula: torch, min-p, normalised")
def min_p(rng):
    share = lambda z: (z - z.amax(1, keepdim=True)).exp()
    return above(
        rng,
        lambda z: share(z) >= 0.2,
        lambda z, ids: sums_to_one(gather(z.softmax(1), ids)),
        lambda z: need_distance(share(z), 0.2),
    )


@case("formula: torch, the second and third expert, normalised")
def ranks(rng):
    z = draw(rng, 11, 9)
    ids = top(z, 3)[:, 1:]
    return finish(rng, z, ids, sums_to_one(gather(z.softmax(1), ids)))


# ---------------------------------------------------------------------------------------------------
# Formulas: gates that look at the batch, and what is left.


def expert_choice(rng, z, scores, capacity, divide=False, least=0, **extra):
    need_order(scores.T, capacity)
    chosen = np.zeros((13, 9), bool)
    for e in range(9):
        chosen[np.argsort(-array(scores)[:, e])[:capacity], e] = True
    count = chosen.sum(1)
    need(count.min() == least and count.max() >= 4)
    w = scores * torch.tensor(chosen)
    return finish_dense(rng, z, w / torch.tensor(np.maximum(count, 1))[:, None] if divide else w, chosen, **extra)


@case("formula: torch, expert choice, softmax over experts")
def expert_choice_softmax(rng):
    z = draw(rng, 13, 9, scale=2.0)
    return expert_choice(rng, z, z.softmax(1), round(13 * 2 / 9))


@case("formula: torch, V-MoE's expert choice with noise")
def expert_choice_v_moe(rng):
    z, noise = draw(rng, 13, 9, scale=2.0), rng.standard_normal((13, 9))
    capacity = math.ceil(13 * 2 / 9)
    capacity += -capacity % 4
    return expert_choice(rng, z, (z + torch.tensor(noise) / 9).softmax(1), capacity, least=1, noise=noise)


@case("formula: torch, MoMa's expert choice, sigmoid and Gumbel noise")
def expert_choice_moma(rng):
    z, noise = draw(rng, 13, 9), rng.gumbel(size=(2, 13, 9))
    scores = (z + torch.tensor(noise[0] - noise[1])).sigmoid()
    return expert_choice(rng, z, scores, round(13 * 2 / 9), noise=noise.reshape(26, 9))


@case("formula: torch, mesh-TF's expert choice, softmax over tokens")
def expert_choice_mesh(rng):
    z = draw(rng, 13, 9)
    return expert_choice(rng, z, z.softmax(0), round(13 * 2 / 9), True)


@case("formula: scipy's linear_sum_assignment, BASE")
def base(rng):
    tokens, experts = 12, 4
    z = draw(rng, tokens, experts)
    cost = -np.repeat(array(z), tokens // experts, axis=1)  # a column per place

    def best(cost):
        rows, places = scipy.optimize.linear_sum_assignment(cost)
        return cost[rows, places].sum(), places // (tokens // experts)

    least, expert = best(cost)
    for t in range(tokens):  # any other assignment is worse by more than an auction may lose
        other = cost.copy()
        other[t, np.arange(tokens) // (tokens // experts) == expert[t]] = 1e3
        need(best(other)[0] - least >= tokens * 1e-4 + SMALLEST_GAP)
    need((expert != array(z).argmax(1)).sum() >= 2)
    return finish(rng, z, expert.reshape(-1, 1), gather(z.sigmoid(), expert.reshape(-1, 1)))


@case("formula: torch, Megatron-LM's quantile balancing")
def quantile(rng):
    tokens, experts, k, ema = 12, 9, 3, 0.25
    z, beta = draw(rng, tokens, experts, skew=0.5), single(0.4 * rng.standard_normal(experts))
    keys = array(z) - beta
    ids = top(keys, k + 1)[:, :k]
    a = -np.sort(-keys, axis=1)[:, k]
    b = -np.sort(-(array(z) - a[:, None]), axis=0)[tokens * k // experts]
    new = ema * beta + (1 - ema) * b
    new -= new.mean()
    picked = gather(z, ids).softmax(1)
    return finish(rng, z, ids, picked, gate__bias=-beta.reshape(1, -1), new_bias=-new.reshape(1, -1))


def add_up(per_head, tokens, experts):
    """[T, E] from (token, expert, weight) of all heads."""
    t, e, w = zip(*per_head)
    return torch.zeros(tokens, experts, dtype=torch.float64).index_put(
        (torch.tensor(t), torch.tensor(e)), torch.stack(w), accumulate=True
    )


@case("formula: torch, product keys: two heads, the best sums")
def product_keys(rng):
    tokens, heads, n, k = 11, 2, 4, 3
    z, entries = draw(rng, tokens, heads * 2 * n), []
    for t in range(tokens):
        for h in range(heads):
            z1, z2 = z[t, 2 * n * h : 2 * n * h + n], z[t, 2 * n * h + n : 2 * n * (h + 1)]
            sums = (z1[:, None] + z2[None, :]).reshape(-1)
            need_order(sums.detach().unsqueeze(0), k)
            values, experts = sums.topk(k)
            entries += [(t, int(e), w) for e, w in zip(experts, values.softmax(0))]
    need(len({(t, e) for t, e, _ in entries}) < len(entries))
    return finish_dense(rng, z, add_up(entries, tokens, n * n))


@case("formula: torch, Monet: two heads, half-keys above a quantile, products of softmaxes")
def monet(rng):
    tokens, heads, n, k = 11, 2, 4, 2
    z, entries = draw(rng, tokens, heads * 2 * n), []
    mean, variance = single(0.2 * rng.standard_normal((heads, 2))), single(rng.uniform(0.8, 1.8, (heads, 2)))
    cut = 0.0  # of the standard normal distribution, at 1 - k / n = 1/2
    sizes = set()
    for t in range(tokens):
        for h in range(heads):
            parts = []
            for axis in range(2):
                row = z[t, n * (2 * h + axis) : n * (2 * h + axis + 1)]
                normal = (row.detach() - mean[h, axis]) / math.sqrt(variance[h, axis])
                need_distance(normal, cut)
                kept = normal >= min(cut, float(normal.max()))
                sizes.add((int(kept.sum()), bool(normal.max() < cut)))
                parts.append(row.masked_fill(~kept, -torch.inf).softmax(0))
            g = parts[0][:, None] * parts[1][None, :]
            entries += [(t, i * n + j, g[i, j]) for i in range(n) for j in range(n) if g[i, j] > 0]
    need((1, True) in sizes and len(sizes) >= 4)
    return finish_dense(rng, z, add_up(entries, tokens, n * n), gate__mean=mean, gate__variance=variance)


@case("formula: torch, MC-MoE's online pruning")
def mc_moe(rng):
    z, importance = draw(rng, 10, 9), rng.uniform(size=10)
    ids = top(z, 2)
    w = gather(z, ids).softmax(1)
    ratio = w[:, 1] / w[:, 0]
    need_distance(ratio, 0.5)
    spared = np.argsort(-importance)[:2]
    small = array(ratio) < 0.5
    need(small[spared].any() and 2 <= small.sum() <= 8)
    small[spared] = False
    kept = np.stack([ids[:, 0], np.where(small, -1, ids[:, 1])], axis=1)
    w = sums_to_one(w * torch.tensor(kept >= 0))
    return finish(rng, z, kept, w, token_importance=importance.reshape(1, -1))


@case("formula: python, hash layers: a table of experts by vocabulary id")
def hash_table(rng):
    table = np.array([rng.permutation(9)[:2] for _ in range(7)])
    tokens = rng.integers(0, 7, 11)
    ids = np.sort(table[tokens], axis=1).astype(np.int32)
    return {"expert_ids": ids, "table": table.astype(np.int32), "token_ids": tokens.astype(np.int32).reshape(1, -1)}


@case("formula: python, hash layers without a table: splitmix64 of the vocabulary id")
def hash_function(rng):
    def mix(b):
        b = (b + 0x9E3779B97F4A7C15) % 2**64
        b = (b ^ b >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        b = (b ^ b >> 27) * 0x94D049BB133111EB % 2**64
        return b ^ b >> 31

    seed, slots, experts, tokens = 5, 3, 9, rng.integers(0, 30000, 13)
    ids = []
    for v in map(int, tokens):
        chosen = []
        for j in range(slots):
            r = mix(mix(mix(seed) ^ v) ^ j) % (experts - slots + 1 + j)
            chosen.append(experts - slots + j if r in chosen else r)
        ids.append(sorted(chosen))
    return {"expert_ids": np.array(ids, np.int32), "token_ids": tokens.astype(np.int32).reshape(1, -1)}


# ---------------------------------------------------------------------------------------------------
# Routers


def of_gradient(name):
    """grad.x, or 1.grad.x for the second of two layers."""
    return name[:2] + "grad." + name[2:] if name[0].isdigit() else "grad." + name


def finish_router(rng, inputs, logits, weights):
    """inputs and weights: name -> leaf; logits: name -> result."""
    leaves, tensors, loss = inputs | weights, {}, 0.0
    for name, value in logits.items():
        grad = rng.standard_normal(value.shape)
        loss = loss + (value * torch.tensor(grad)).sum()
        tensors |= {name: array(value), of_gradient(name): grad}
    for (name, leaf), grad in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values()))):
        tensors |= {name: array(leaf).astype(np.float32), of_gradient(name): array(grad)}
    return {name: value.reshape(1, -1) if value.ndim < 2 else value for name, value in tensors.items()}


def leaf(rng, *shape, scale=1.0):
    return torch.tensor(single(scale * rng.standard_normal(shape)), requires_grad=True)


@case("formula: torch, MoE++: two layers of tanh routers, the second hears the first, scaled logits")
def moe_plus_plus_routers(rng):
    x = {f"{i}.x": leaf(rng, 9, 5) for i in range(2)}
    w = {}
    for i in range(2):
        w[f"{i}.router.hidden.weight"] = leaf(rng, 12, 5, scale=0.5)
        w[f"{i}.router.output.weight"] = leaf(rng, 7, 12, scale=0.4)
    w["1.router.residual"] = leaf(rng, 7, 7, scale=0.4)
    z = [(x[f"{i}.x"] @ w[f"{i}.router.hidden.weight"].T).tanh() @ w[f"{i}.router.output.weight"].T for i in range(2)]
    second = z[1] + z[0] @ w["1.router.residual"].T
    second = second / (second.std(1, keepdim=True, unbiased=True) / 0.75)
    return finish_router(rng, x, {"0.result": z[0], "1.result": second}, w)


def cosine(r, embeddings, tau, epsilon=1e-12, normalize=True):
    unit = F.normalize(embeddings, dim=1, eps=epsilon)
    return (F.normalize(r, dim=1, eps=epsilon) if normalize else r) @ unit.T * tau.clamp(max=math.log(100)).exp()


@case("formula: torch, Tutel's cosine router")
def tutel_cosine(rng):
    x, p, b = leaf(rng, 11, 5), leaf(rng, 6, 5, scale=0.5), leaf(rng, 6, scale=0.2)
    m, tau = leaf(rng, 9, 6, scale=0.1), torch.tensor(single([math.log(1 / 0.5)]), requires_grad=True)
    z = cosine(x @ p.T + b, m, tau)
    names = ["projection.weight", "projection.bias", "embeddings", "log_scale"]
    return finish_router(rng, {"x": x}, {"result": z}, {"router." + n: v for n, v in zip(names, [p, b, m, tau])})


@case("formula: torch, XMoE's router as released")
def xmoe(rng):
    x, p = leaf(rng, 11, 12), leaf(rng, 8, 12, scale=0.4)
    m = rng.standard_normal((9, 8))
    m = torch.tensor(single(1.5 * m / np.linalg.norm(m, axis=1, keepdims=True)), requires_grad=True)
    z = cosine(x @ p.T, m, torch.zeros(1, dtype=torch.float64), epsilon=1e-4, normalize=False)
    return finish_router(rng, {"x": x}, {"result": z}, {"router.projection.weight": p, "router.embeddings": m})


@case("formula: torch, DynMoE's cosine router, its temperature learned")
def dyn_moe_cosine(rng):
    x, m = leaf(rng, 11, 5), leaf(rng, 9, 5)
    tau = torch.tensor(single([math.log(1 / 0.1)]), requires_grad=True)
    z = cosine(x, m, tau)
    return finish_router(rng, {"x": x}, {"result": z}, {"router.embeddings": m, "router.log_scale": tau})


@case("formula: torch, Yuan 2.0-M32's attention router")
def yuan(rng):
    x, w = leaf(rng, 11, 5), leaf(rng, 27, 5, scale=0.5)
    q, k, v = (x @ w[9 * i : 9 * i + 9].T for i in range(3))
    z = ((q[:, :, None] * k[:, None, :]).softmax(2) @ v[:, :, None]).squeeze(2)
    return finish_router(rng, {"x": x}, {"result": z}, {"router.weight": w})


# ---------------------------------------------------------------------------------------------------


def make(name, cases, seed, verbose):
    """The tensors of a case, by name, of the first inputs without a close decision."""
    function = cases[name][1]
    for attempt in range(200000):
        try:
            tensors = function(np.random.default_rng([seed, zlib.crc32(name.encode()), attempt]))
        except Close:
            continue
        if verbose:
            print(f"{name}: attempt {attempt}", flush=True)
        return {f"{name}.{key}": np.ascontiguousarray(value) for key, value in tensors.items()}
    raise RuntimeError(f"{name}: no inputs without a close decision")


def main(arguments, usage, path, cases, seed, versions):
    """Writes the cases to a file, or compares them with it."""
    if arguments not in ([], ["--check"]):
        sys.exit(usage)
    torch.set_num_threads(1)
    tensors = {}
    for name in cases:
        tensors |= make(name, cases, seed, "--check" not in arguments)
    about = {
        "sources": {name: source for name, (source, _) in cases.items()},
        "seed": str(seed),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name).split("+")[0] for name in versions},
    }
    data = safetensors.numpy.save(tensors, {"golden": json.dumps(about)})
    if not arguments:
        path.write_bytes(data)
        print(f"{path.name}: {len(cases)} cases, {len(data)} bytes")
    elif not path.exists() or path.read_bytes() != data:
        print(f"{path.name} differs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__, FOLDER / "routing.safetensors", CASES, SEED, VERSIONS))
