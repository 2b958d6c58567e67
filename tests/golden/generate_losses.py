# SPDX-License-Identifier: MIT
"""Writes losses.safetensors: published auxiliary losses and their gradients on given logits.

    v/bin/python generate_losses.py            # writes the file; v as generate_routing.py says
    v/bin/python generate_losses.py --check    # compares it byte by byte, exits with 1 if it differs

Versions and the form of the script are those of generate_routing.py, whose helpers it uses. One function below makes
one case: it runs the published code, where there is a package of it, else the formula of the paper or of code that is
not a package. Everything is float64 (code that asks for float32 gets float64), inputs are float32 numbers. T tokens, E
experts, K slots; the tensors of a case begin with its name:

    logits          [T, L]      F32  of several layers or ranks, one below the other
    parts           [1]         I32  how many those are
    expert_ids      [T, K]      I32  experts of the token in slot order, -1 where there is none
    dropped         [T, K]      I32  1: the assignment was dropped
    value           [1]         F64  the loss without any coefficient
    dlogits         [T, L]      F64  its gradient by torch's autograd; counts and samples as constants
    padding         [T]         I32  1: not a token
    sequence_offsets, device_of_expert          I32
    token_weights, expert_weights, noise [T, E] F64

__metadata__ has one entry, "golden", a JSON text with the sources of the cases, the seed and the versions. No choice
is a tie or nearly one.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

from generate_routing import FOLDER, Float64, array, draw, main, module, need, need_order, published, top


SEED = 21
VERSIONS = ["numpy", "torch", "transformers", "megatron-core", "deepspeed", "st-moe-pytorch"]
CASES = {}


def case(source):
    def add(function):
        CASES[function.__name__] = (source, function)
        return function

    return add


def finish(z, value, ids=None, **extra):
    """The tensors of a case. z: the leaf, or leaves of several parts."""
    leaves = list(z) if isinstance(z, (tuple, list)) else [z]
    grads = torch.autograd.grad(value, leaves)
    dlogits = np.concatenate([array(g) for g in grads])
    need(np.abs(dlogits).max() > 1e-4)  # a comparison of zeros proves nothing
    tensors = {
        "logits": np.concatenate([array(leaf) for leaf in leaves]).astype(np.float32),
        "value": array(value).reshape(1).astype(np.float64),
        "dlogits": dlogits,
        "parts": np.array([len(leaves)], np.int32),
    }
    if ids is not None:
        tensors["expert_ids"] = np.asarray(ids, np.int32)
    return tensors | {name: array(a) for name, a in extra.items()}


def integers(values):
    return np.asarray(values, np.int32)


def one_hot(ids, experts):
    """[T, K, E], 0 where ids are -1."""
    ids = torch.as_tensor(np.asarray(ids)).long()
    return F.one_hot(ids.clamp(min=0), experts).double() * (ids >= 0)[..., None]


def padding_of(rng, tokens):
    padding = (rng.random(tokens) < 0.3).astype(np.int32)
    need(0 < padding.sum() < tokens // 2)
    return padding


# ---------------------------------------------------------------------------------------------------
# transformers


def transformers_loss(model, name="load_balancing_loss_func"):
    return getattr(module(f"transformers.models.{model}.modeling_{model}"), name)


def mixtral(rng, k, layers=1, is_masked=False, model="mixtral"):
    z = [draw(rng, 10, 8) for _ in range(layers)]
    ids = np.concatenate([top(layer.softmax(1), k) for layer in z])
    mask, extra = None, {}
    if is_masked:
        padding = padding_of(rng, 10)
        mask = torch.tensor(1 - padding).reshape(2, 5)
        extra["padding"] = np.tile(padding, layers)
    with Float64():
        value = transformers_loss(model)(tuple(z), 8, k, mask)
    return finish(z, value, ids, **extra)


MIXTRAL = "mixtral load_balancing_loss_func"


@case(published("transformers", MIXTRAL))
def mixtral_2(rng):
    return mixtral(rng, 2)


@case(published("transformers", MIXTRAL + ", 4 slots"))
def mixtral_4(rng):
    return mixtral(rng, 4)


@case(published("transformers", MIXTRAL + ", attention mask"))
def mixtral_masked(rng):
    return mixtral(rng, 2, is_masked=True)


@case(published("transformers", MIXTRAL + ", three layers"))
def mixtral_layers(rng):
    return mixtral(rng, 2, layers=3)


@case(published("transformers", MIXTRAL + ", three layers, attention mask, 4 slots"))
def mixtral_layers_masked(rng):
    return mixtral(rng, 4, layers=3, is_masked=True)


@case(published("transformers", "nllb_moe load_balancing_loss_func, two layers, attention mask"))
def nllb_layers_masked(rng):
    return mixtral(rng, 2, layers=2, is_masked=True, model="nllb_moe")


@case(published("transformers", "switch_transformers load_balancing_loss_func"))
def switch_sequences(rng):
    z = draw(rng, 12, 8)
    ids = top(z, 1)
    with Float64():
        value = transformers_loss("switch_transformers")(z.softmax(1).view(3, 4, 8), torch.tensor(ids).view(3, 4))
    return finish(z, value, ids, sequence_offsets=integers([0, 4, 8, 12]))


@case(published("transformers", "switch_transformers load_balancing_loss_func, union of two slots"))
def switch_union(rng):
    z = draw(rng, 12, 8)
    ids = top(z, 2)
    with Float64():
        value = transformers_loss("switch_transformers")(z.softmax(1).view(3, 4, 8), torch.tensor(ids).view(3, 4, 2))
    return finish(z, value, ids, sequence_offsets=integers([0, 4, 8, 12]))


@case(published("transformers", "switch_transformers router_z_loss_func"))
def switch_z(rng):
    z = draw(rng, 12, 8)
    return finish(z, transformers_loss("switch_transformers", "router_z_loss_func")(z.view(3, 4, 8)))


# ---------------------------------------------------------------------------------------------------
# megatron-core

MEGATRON = "switch_load_balancing_loss_func"


def megatron_utils():
    return module("megatron.core.transformer.moe.moe_utils")


def megatron_parts(rng, z, k, score="softmax", padding=None):
    """Routing map and scores as the router makes them for the loss."""
    mask = None if padding is None else torch.tensor(padding == 1)
    with Float64():
        return megatron_utils().compute_routing_scores_for_aux_loss(z, k, score, padding_mask=mask)


def megatron(rng, k=3, score="softmax", is_masked=False):
    z = draw(rng, 11, 8)
    padding = padding_of(rng, 11) if is_masked else None
    routing_map, scores = megatron_parts(rng, z, k, score, padding)
    counts = routing_map.sum(0)
    tokens = 11 if padding is None else int(11 - padding.sum())
    value = megatron_utils().switch_load_balancing_loss_func(scores, counts, tokens, k, 8, 1.0)
    return finish(z, value, top(z, k), **({} if padding is None else {"padding": padding}))


@case(published("megatron-core", MEGATRON))
def megatron_softmax(rng):
    return megatron(rng)


@case(published("megatron-core", MEGATRON + ", sigmoid scores"))
def megatron_sigmoid(rng):
    return megatron(rng, score="sigmoid")


@case(published("megatron-core", MEGATRON + ", padding mask"))
def megatron_masked(rng):
    return megatron(rng, is_masked=True)


@case(published("megatron-core", MEGATRON + ", called per sequence as in the router"))
def megatron_sequences(rng):
    z = draw(rng, 12, 8)  # three sequences of four tokens, one after the other
    routing_map, scores = megatron_parts(rng, z, 2)
    by_position = lambda a: a.view(3, 4, 8).transpose(0, 1).reshape(4, 24)  # Megatron has [S, B, E]
    value = (
        megatron_utils().switch_load_balancing_loss_func(
            by_position(scores), by_position(routing_map).sum(0), 4, 2, 8, 1.0
        )
        / 3
    )
    return finish(z, value, top(z, 2), sequence_offsets=integers([0, 4, 8, 12]))


@case(published("megatron-core", MEGATRON + ", counts and tokens of two ranks"))
def megatron_ranks(rng):
    z = [draw(rng, 6, 8), draw(rng, 6, 8)]
    maps, scores = zip(*(megatron_parts(rng, part, 2) for part in z))
    counts = sum(part.sum(0) for part in maps)
    value = sum(megatron_utils().switch_load_balancing_loss_func(part, counts, 12, 2, 8, 1.0) for part in scores)
    return finish(z, value, np.concatenate([top(part, 2) for part in z]))


@case(published("megatron-core", "z_loss_func, padding mask"))
def megatron_z(rng):
    z, padding = draw(rng, 11, 8), padding_of(rng, 11)
    value = megatron_utils().z_loss_func(z, 1.0, torch.tensor(padding == 1))
    return finish(z, value, padding=padding)


# ---------------------------------------------------------------------------------------------------
# deepspeed and st-moe-pytorch


def deepspeed(name, z, **settings):
    with Float64():
        return getattr(module("deepspeed.moe.sharded_moe"), name)(z.clone(), min_capacity=1, **settings)[0]


@case(published("deepspeed", "top1gating"))
def deepspeed_1(rng):
    z = draw(rng, 11, 8, skew=0.7)
    value = deepspeed("top1gating", z, capacity_factor=0.8, use_rts=False)
    return finish(z, value, top(z, 1))


@case(published("deepspeed", "top2gating"))
def deepspeed_2(rng):
    z = draw(rng, 11, 8, skew=0.7)
    value = deepspeed("top2gating", z, capacity_factor=0.8, top2_2nd_expert_sampling=False)
    return finish(z, value, top(z, 2))


@case(published("deepspeed", "topkgating, 3 slots"))
def deepspeed_k(rng):
    z = draw(rng, 11, 8, skew=0.7)
    value = deepspeed("topkgating", z, k=3, capacity_factor=0.8)
    return finish(z, value, top(z, 3))


def st_moe(rng, factor):
    """One sequence through a gate whose weight is the identity; and what its first slots lost to the capacity."""
    gate = module("st_moe_pytorch.st_moe_pytorch").TopNGating(
        8, 8, top_n=2, capacity_factor_train=factor, threshold_train=1e-30
    )
    gate = gate.double().train()
    gate.to_gates.weight = torch.nn.Parameter(torch.eye(8, dtype=torch.float64))
    z = draw(rng, 24, 8, skew=0.8)
    ids = top(z, 2)
    with Float64():
        _, _, balance, z_loss = gate(z.unsqueeze(0))
    capacity = max(min(24, int(24 * factor / 8)), 4)
    dropped, load = np.zeros_like(ids), np.zeros(8, int)
    for t, e in enumerate(ids[:, 0]):
        load[e] += 1
        dropped[t, 0] = load[e] > capacity
    need(dropped.any() == (factor < 2))
    return z, ids, balance, z_loss, integers(dropped)


@case(published("st-moe-pytorch", "TopNGating, balance loss"))
def st_moe_balance(rng):
    z, ids, balance, _, dropped = st_moe(rng, 8.0)
    return finish(z, balance, ids, dropped=dropped)


@case(published("st-moe-pytorch", "TopNGating, balance loss, whose count is of what fits the capacity"))
def st_moe_dropped(rng):
    z, ids, balance, _, dropped = st_moe(rng, 1.4)
    return finish(z, balance, ids, dropped=dropped)


@case(published("st-moe-pytorch", "TopNGating, router z-loss"))
def st_moe_z(rng):
    z, _, _, z_loss, _ = st_moe(rng, 8.0)
    return finish(z, z_loss)


# ---------------------------------------------------------------------------------------------------
# Formulas of load balance


@case("formula: torch, DeepSeek-V3's released code, loss per sequence")
def deepseek_sequences(rng):
    z = draw(rng, 12, 8)
    ids = top(z, 2)
    s = z.softmax(1).view(3, 4, 8)
    ce = one_hot(ids, 8).sum(1).view(3, 4, 8).sum(1) * 8 / (4 * 2)
    return finish(z, (ce * s.mean(1)).sum(1).mean(), ids, sequence_offsets=integers([0, 4, 8, 12]))


@case("formula: torch, DeepSeek-V3's sequence-wise loss on sigmoids")
def deepseek_v3_sequences(rng):
    z = draw(rng, 12, 8)
    ids = top(z, 2)
    s = z.sigmoid()
    s = (s / s.sum(1, keepdim=True)).view(3, 4, 8)
    f = one_hot(ids, 8).sum(1).view(3, 4, 8).sum(1) * 8 / (2 * 4)
    return finish(z, (f * s.mean(1)).sum(1).mean(), ids, sequence_offsets=integers([0, 4, 8, 12]))


def devices(rng):
    z = draw(rng, 11, 8)
    ids = top(z, 3)
    device = integers([0, 1, 0, 2, 1, 1, 2, 0])
    on_device = torch.tensor(device)[:, None] == torch.arange(3)  # [E, D]
    p = z.softmax(1).mean(0) @ on_device.double()
    return z, ids, device, on_device.double(), p


@case("formula: torch, DeepSeek-V2's loss of devices")
def deepseek_devices(rng):
    z, ids, device, on_device, p = devices(rng)
    f = one_hot(ids, 8).sum((0, 1)) * 8 / (3 * 11)
    return finish(z, ((f @ on_device) / on_device.sum(0) * p).sum(), ids, device_of_expert=device)


@case("formula: torch, DeepSeek-V2's loss of communication, M = 2")
def deepseek_communication(rng):
    z, ids, device, on_device, p = devices(rng)
    sent = ((one_hot(ids, 8).sum(1) @ on_device) > 0).double().sum(0)
    need((sent.numpy() % 11 != 0).any())
    return finish(z, (3 / (2 * 11) * sent * p).sum(), ids, device_of_expert=device)


@case("formula: torch, MoE++'s loss, tau 0.75")
def moe_plus_plus(rng):
    z = draw(rng, 11, 8)
    ids = top(z, 2)
    eta = torch.tensor([1.0] * 5 + [0.75] * 3, dtype=torch.float64)
    f = one_hot(ids, 8).sum(1).mean(0)
    return finish(z, (eta * f * z.softmax(1).mean(0)).sum(), ids, expert_weights=eta)


@case("formula: torch, Uni-MoE's loss, weights of tokens, padding removed")
def uni_moe(rng):
    z, padding = draw(rng, 11, 8), padding_of(rng, 11)
    ids = top(z, 4)
    for t in range(11):
        ids[t, 1 + t % 4 :] = -1
    m = one_hot(ids, 8).sum(1)
    q = z.masked_fill(m == 0, torch.finfo(torch.float64).min).softmax(1)
    weights = np.where(rng.random(11) < 0.4, 10.0, 1.0)
    need(1 < (weights[padding == 0] == 10).sum() < 6)
    a = torch.tensor(weights * (1 - padding))[:, None]
    value = 8 * ((a * m).sum(0) / a.sum() * (a * q).sum(0) / a.sum()).sum()
    return finish(z, value, ids, token_weights=weights, padding=padding)


@case("formula: torch, fastmoe's gates: both factors over the assignments that are kept")
def fastmoe_balance(rng):
    z = draw(rng, 11, 8)
    ids = top(z, 2)
    dropped = integers(rng.random((11, 2)) < 0.25)
    need(dropped.any())
    kept = (1 - torch.tensor(dropped)).double()
    f = (one_hot(ids, 8) * kept[..., None]).sum((0, 1)) / kept.sum()
    return finish(z, 8 * (f * (z.softmax(1).sum(0) / kept.sum())).sum(), ids, dropped=dropped)


@case("formula: torch, DynMoLE's released code")
def dyn_mole(rng):
    z = draw(rng, 11, 8)
    ids = top(z, 4)
    for t in range(11):
        ids[t, 1 + t % 4 :] = -1
    s = z.softmax(1)
    masked = s * one_hot(ids, 8).sum(1)
    return finish(z, 8 * (masked.mean(0) * s.mean(0)).sum(), ids)


@case("formula: torch, Mesh TensorFlow's second-place loss without its epsilon")
def mesh_second_place(rng):
    z = draw(rng, 11, 8)
    ids = top(z, 2)
    first, second = one_hot(ids, 8).unbind(1)
    without = z.softmax(1) * (1 - first)
    proxy = without / without.sum(1, keepdim=True)
    return finish(z, 64 * (second.mean(0) * proxy.mean(0)).mean(), ids)


@case("formula: torch, DynMoLE's Tsallis entropy")
def dyn_mole_entropy(rng):
    z = draw(rng, 12, 8)
    p = z.softmax(1) + 1e-5
    value = ((1 - (p**1.1).sum(1)) / (1 - 8 ** (1 - 1.1))).mean()
    return finish(z, value)


@case("formula: torch, Dynamic_MoE's entropy")
def dynamic_moe_entropy(rng):
    z = draw(rng, 11, 8)
    p = z.softmax(1)
    return finish(z, -(p * p.log()).sum(1).mean())


# ---------------------------------------------------------------------------------------------------
# Formulas of importance and load


def cv_squared(v):
    """fastmoe, Tutel, LLaMA-MoE"""
    return v.var() / (v.mean() ** 2 + 1e-10)


def cv_squared_vmoe(v):
    return (v.std(correction=0) / v.mean()) ** 2


@case("formula: torch, V-MoE's importance loss")
def v_moe_importance(rng):
    z = draw(rng, 11, 8)
    return finish(z, cv_squared_vmoe(z.softmax(1).sum(0)))


@case("formula: torch, Tutel's importance loss")
def tutel_importance(rng):
    z = draw(rng, 11, 8)
    return finish(z, cv_squared(z.softmax(1).sum(0)))


def phi(u):
    return torch.distributions.Normal(torch.zeros_like(u), torch.ones_like(u)).cdf(u)


def noisy(rng, is_learned, k, sigma=None):
    """Logits [z | n] or z, noise, sigma, noisy logits, the best of them."""
    z = draw(rng, 11, 16 if is_learned else 8)
    noise = rng.standard_normal((11, 8))
    sigma = F.softplus(z[:, 8:]) + 1e-2 if is_learned else torch.tensor(sigma, dtype=torch.float64)
    h = z[:, :8] + torch.tensor(noise) * sigma
    need_order(h, min(k + 1, 8))
    return z, noise, sigma, h, torch.tensor(top(h, k))


def fastmoe_load(z, sigma, h, k):
    """NoisyGate._prob_in_top_k"""
    clean, best = z[:, :8], h.topk(k + 1, 1)[0]
    threshold_if_in, threshold_if_out = best[:, k : k + 1], best[:, k - 1 : k]
    is_in = h > threshold_if_in
    return torch.where(is_in, phi((clean - threshold_if_in) / sigma), phi((clean - threshold_if_out) / sigma)).sum(0)


@case("formula: torch, fastmoe's NoisyGate: importance and load")
def fastmoe_noisy(rng):
    z, noise, sigma, h, ids = noisy(rng, True, 2)
    w = torch.zeros_like(h).scatter(1, ids, h.gather(1, ids).softmax(1))
    value = cv_squared(w.sum(0)) + cv_squared(fastmoe_load(z, sigma, h, 2))
    return finish(z, value, ids, noise=noise)


@case("formula: torch, Shazeer's load loss, k = E - 1")
def shazeer_load(rng):
    z, noise, sigma, h, ids = noisy(rng, True, 7)
    return finish(z, cv_squared_vmoe(fastmoe_load(z, sigma, h, 7)), ids, noise=noise)


@case("formula: torch, V-MoE's importance and load loss")
def v_moe_noisy(rng):
    z, noise, sigma, h, ids = noisy(rng, False, 3, 1.0 / 8)
    threshold = h.gather(1, ids)[:, -1:]
    load = phi((z - threshold) / sigma).mean(0)
    return finish(z, (cv_squared_vmoe(z.softmax(1).sum(0)) + cv_squared_vmoe(load)) / 2, ids, noise=noise)


@case("formula: torch, ShiftAddViT's latency-aware loss")
def shift_add_vit(rng):
    z, noise, sigma, h, ids = noisy(rng, True, 1)
    alpha = torch.tensor([6.0, 4.0] * 4, dtype=torch.float64)
    value = cv_squared(alpha * h.softmax(1).sum(0)) + cv_squared(alpha * fastmoe_load(z, sigma, h, 1))
    return finish(z, value, ids, noise=noise, expert_weights=alpha)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__, FOLDER / "losses.safetensors", CASES, SEED, VERSIONS))
