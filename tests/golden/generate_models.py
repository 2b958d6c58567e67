# SPDX-License-Identifier: MIT
"""Writes models/<name>/: small checkpoints of published architectures, and what their MoE layers compute.

    python3 -m venv v
    v/bin/pip install numpy torch transformers safetensors
    v/bin/python generate_models.py                  # writes all folders
    v/bin/python generate_models.py --only mixtral   # one of them
    v/bin/python generate_models.py --check          # compares them byte by byte, exits with 1 if they differ

Written with Python 3.11.7, numpy 2.4.6, torch 2.15.0 and transformers 5.24.0. A folder holds

    config.json, model*.safetensors, model.safetensors.index.json
        as save_pretrained of the model's class in transformers wrote them, F32. Every weight is a number of bfloat16,
        so that a bfloat16 copy is exact. Written by this script, with the published names and layouts: models that
        transformers lacks, weights in FP8 and MXFP4, and qwen3_vl_moe, which transformers 5.24.0 writes in another
        layout (qwen3_vl_moe_saved).
    expected.safetensors
        what an MoE layer does with two batches, of 7 tokens and of 1; names begin with "t7." and "t1.":
            hidden_states, grad_output  [T, D]
            router_logits               [T, E]  before softmax or sigmoid, without the selection bias
            expert_ids                  [T, K]  I32, as the model selects, -1 where there is none
            expert_weights              [T, K]  what an expert's output is multiplied by (Llama-4: its input), scaling
                                                included, 0 where there is none
            output, grad_input          [T, D]
            grad.<name>                 for each tensor of the layer, with name, shape and packing of the checkpoint,
                                        except selection biases and quantised weights
        of loss = sum(output * grad_output). K is the most experts that a token of the batch has. Where two layers are
        recorded, names begin with the layer ("encoder.t7.").
        __metadata__ has one entry, "golden", a JSON text: model_type, the layers (their index in the checkpoint, the
        beginning of their tensors' names and of their names here), the order of slots, notes, and "deviation" where
        transformers is wrong and the numbers are those of the formula.

The blocks run in float32 and eval mode, with eager experts. The formulas below share no code with transformers; they
read the written checkpoint by its names and are torch's float64. For every batch the script asserts that both agree:
same experts, every tensor within 2e-6 of its largest element, gradients by autograd. No choice is a tie or nearly one:
what is compared differs by 1e-3 at least; selection biases and groups change choices.
"""

import os

# Before the imports: the answers must not depend on the processor or on the number of threads.
os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"

import copy
import filecmp
import json
import pathlib
import platform
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils import logging

logging.disable_progress_bar()
FOLDER = pathlib.Path(__file__).resolve().parent / "models"
SMALLEST_GAP = 1e-3
TOLERANCE = 2e-6
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


class Close(Exception):
    """Something is nearly a tie, or a rule had nothing to do: draw again."""


def need(condition):
    if not condition:
        raise Close


# ---------------------------------------------------------------------------------------------------
# The formulas. T tokens, D model width, F expert width, E experts, K slots; w: the layer's tensors by the rest of
# their names. A rule returns expert ids and weights [T, K] of logits [T, E].


def best(keys, k):
    """The k best entries of each row, best first."""
    sorted_keys, order = torch.sort(keys.detach(), dim=1, descending=True)
    gaps = (sorted_keys[:, :-1] - sorted_keys[:, 1:])[:, :k]
    need(not (gaps < SMALLEST_GAP).any())
    return order[:, :k]


def softmax_rule(k, normalize=False, scale=1.0, bias=None, least=0.0):
    """Softmax, the k best, divided by their sum or not. bias: tensor that is added for choosing only."""

    def rule(w, z):
        s = z.softmax(1)
        ids = best(s + w[bias].reshape(-1) if bias else s, k)
        if bias:
            need_different(ids, best(s, k))
        u = s.gather(1, ids)
        return ids, scale * (u / u.sum(1, keepdim=True).clamp(min=least) if normalize else u)

    return rule


def top_softmax_rule(k):
    """Softmax over the k best logits."""

    def rule(w, z):
        ids = best(z, k)
        return ids, z.gather(1, ids).softmax(1)

    return rule


def keep_groups(keys, values, keep):
    """-inf in the groups that are not among those of the best values [T, groups]."""
    groups = best(values, keep)
    mask = torch.zeros(values.shape, dtype=torch.bool).scatter(1, groups, True)
    return keys.masked_fill(~mask.repeat_interleave(keys.shape[1] // values.shape[1], 1), -torch.inf)


def group_limited_rule(k, groups, keep, scale):
    """DeepSeek-V2: softmax, the k best of the groups with the best expert."""

    def rule(w, z):
        s = z.softmax(1)
        grouped = s.reshape(len(s), groups, -1)
        ids = best(keep_groups(s, grouped.amax(2), keep), k)
        need_different(ids, best(s, k))
        need_different(ids, best(keep_groups(s, grouped.topk(2, dim=2)[0].sum(2), keep), k))
        return ids, scale * s.gather(1, ids)

    return rule


def sigmoid_rule(k, bias, groups=1, keep=1, scale=1.0, epsilon=1e-20):
    """DeepSeek-V3: sigmoid, the k best with the bias, of the groups whose two best sum highest."""

    def rule(w, z):
        s = z.sigmoid()
        keys = s + w[bias]
        grouped = keys.reshape(len(s), groups, -1)
        chosen = keep_groups(keys, grouped.topk(2, dim=2)[0].sum(2), keep)
        ids = best(chosen, k)
        need_different(ids, best(s, k))
        if groups > 1:
            need_different(ids, best(keys, k))
            need_different(ids, best(keep_groups(keys, grouped.amax(2), keep), k))
            need_different(ids, chosen.masked_fill(chosen.isinf(), 0).topk(k)[1])  # a mask of 0 would be seen
        u = s.gather(1, ids)
        return ids, scale * u / (u.sum(1, keepdim=True) + epsilon)

    return rule


def need_different(ids, others):
    """A batch has a token for which a rule matters."""
    if len(ids) > 1:
        need((ids.sort(1)[0] != others.sort(1)[0]).any())


def glu(x, gate, up, down, activation=F.silu):
    return (activation(x @ gate.T) * (x @ up.T)) @ down.T


def separate(names="gate_proj up_proj down_proj", start="experts."):
    """Experts in tensors of their own."""
    return lambda w, e, x: glu(x, *(w[f"{start}{e}.{name}.weight"] for name in names.split()))


def shared(start, gate=None):
    def add(w, x):
        y = glu(x, *(w[f"{start}{name}_proj.weight"] for name in ("gate", "up", "down")))
        return (x @ w[gate].T).sigmoid() * y if gate else y

    return add


@dataclass
class Layer:
    index: int
    prefix: str  # of its tensors in the checkpoint
    module: str  # its block in the model
    rule: Callable
    experts: int
    expert: Callable  # (w, e, x)
    router: str = "gate.weight"
    router_bias: str = ""
    shared: Callable | None = None
    input_weighted: bool = False
    identities: int = 0  # experts after the others that return their input
    without_gradient: tuple = ()  # ends of names
    without_meaning: tuple = ()  # ends of names that nothing reads, so that a checkpoint need not have them
    only: tuple = ("",)  # beginnings of names after the prefix
    at: str = ""  # where names in expected.safetensors begin
    run: Callable | None = None  # (module, x) -> logits, ids, weights, y
    deviation: str = ""
    logits: Callable | None = None  # (w, x, logits of the layer before)

    def route(self, w, x, before=None):
        z = self.logits(w, x, before) if self.logits else x @ w[self.router].T
        if self.router_bias:
            z = z + w[self.router_bias]
        return z, *self.rule(w, z)

    def forward(self, w, x, before=None):
        z, ids, weights = self.route(w, x, before)
        y = torch.zeros_like(x)
        for e in range(self.experts + self.identities):
            if not (ids == e).any():
                continue
            share = (weights * (ids == e)).sum(1, keepdim=True)
            if e >= self.experts:
                y = y + share * x
            else:
                y = y + (self.expert(w, e, share * x) if self.input_weighted else share * self.expert(w, e, x))
        if self.shared:
            y = y + self.shared(w, x)
        return z, ids, weights, y


# ---------------------------------------------------------------------------------------------------
# The blocks of transformers.


def run_block(model, layer, x):
    """Logits, ids, weights and the output of a block that hands (x, ids, weights) to its experts."""
    block, seen = model.get_submodule(layer.module), {}
    router = getattr(block, "gate", None) or block.router

    def of_router(module, inputs, outputs):
        seen["logits"] = outputs[0] if isinstance(outputs, tuple) else outputs

    def of_experts(module, inputs):
        seen["ids"], seen["weights"] = inputs[1:]

    hooks = [router.register_forward_hook(of_router), block.experts.register_forward_pre_hook(of_experts)]
    y = block(x[None])
    for hook in hooks:
        hook.remove()
    y = y[0] if isinstance(y, tuple) else y
    return seen["logits"], seen["ids"], seen["weights"], y.reshape(x.shape)


def gradients_by_name(model, folder):
    """The gradients as save_pretrained writes the parameters."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for one, of in zip(other.parameters(), model.parameters(), strict=True):
            one.copy_(torch.zeros_like(of) if of.grad is None else of.grad)
    other.save_pretrained(folder)
    return read(folder)


def read(folder):
    """All tensors of a checkpoint."""
    files = sorted(pathlib.Path(folder).glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}


def rewrite(folder, tensors):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tensors_of(layer, checkpoint):
    starts = tuple(layer.prefix + only for only in layer.only)
    return {name.removeprefix(layer.prefix): t for name, t in checkpoint.items() if name.startswith(starts)}


def to_bfloat16(values):
    return torch.as_tensor(np.asarray(values, np.float32)).bfloat16().float()


ROUTERS = (".gate.weight", ".router.weight", ".wg.weight", ".classifier.weight", ".layer.weight")


def initial(case, name, shape):
    """Weights as large as 1 / sqrt(their last extent), routers twice that so that the experts' scores differ."""
    scale, mean = 1 / shape[-1] ** 0.5 if len(shape) > 1 else 0.2, 0.0
    if name.endswith("e_score_correction_bias"):
        scale, mean = case.bias
    elif "norm" in name:
        mean = 1.0
    elif name.endswith(ROUTERS):
        scale *= 2
    for part, factor in case.scales.items():
        scale *= factor if part in name else 1
    random = np.random.default_rng([case.seed, zlib.crc32(name.encode())])
    return to_bfloat16(mean + scale * random.standard_normal(tuple(shape)))


@dataclass
class Published:
    """A model of transformers."""

    model: torch.nn.Module
    layers: list
    notes: str
    slots: str = "falling scores"
    shards: str = "50GB"
    relayout: Callable | None = None  # checkpoint -> checkpoint, of weights and of gradients
    quantise: Callable | None = None  # checkpoint -> checkpoint, undone by decode
    decode: Callable = lambda checkpoint: checkpoint
    config: dict = field(default_factory=dict)  # what this adds to config.json
    not_weights: tuple = ()  # ends of names
    bias: tuple = (0.3, 0.0)  # deviation and mean of selection biases
    scales: dict = field(default_factory=dict)  # by a part of the name
    seed: int = 1

    def fill(self):
        named = dict(self.model.named_parameters()) | {
            n: t for n, t in self.model.state_dict().items() if n.endswith("e_score_correction_bias")
        }
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(initial(self, name, tensor.shape))

    def write(self, folder):
        self.model.eval()
        self.fill()
        if hasattr(self.model, "set_experts_implementation"):
            self.model.set_experts_implementation("eager")
        self.model.save_pretrained(folder, max_shard_size=self.shards)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for name, tensor in read(folder).items():
            exact = torch.equal(tensor, to_bfloat16(tensor)) or name.endswith(self.not_weights)
            assert tensor.dtype == torch.float32 and exact, name
        if self.relayout:
            rewrite(folder, self.relayout(read(folder)))
            self.reload(folder)
        if self.quantise:
            stored = self.quantise(read(folder))
            rewrite(folder, self.decode(stored))
            self.reload(folder)
            rewrite(folder, stored)
        if self.config:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | self.config, indent=2, sort_keys=True) + "\n")
        checkpoint = self.decode(read(folder))
        results = {}
        for layer in self.layers:
            w = {name: tensor.double() for name, tensor in tensors_of(layer, checkpoint).items()}
            for tokens in (7, 1):
                (x,), (dy,) = draw([layer], [w], tokens, self.seed)
                found = self.run(layer, w, x, dy)
                results |= {f"{layer.at}t{tokens}.{name}": value for name, value in found.items()}
        write_expected(folder, results, self.layers, self.seed, self.notes, self.slots)

    def reload(self, folder):
        """What transformers reads from the folder."""
        self.model, report = type(self.model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(report.values()), report
        self.model.eval().set_experts_implementation("eager")

    def run(self, layer, w, x, dy):
        """Everything the block computes, compared with the formula."""
        (expected,) = evaluate([layer], [w], [x], [dy])
        if layer.deviation:
            z, ids, weights = layer.run(self.model, layer, x)
            found = {"router_logits": z, "expert_ids": ids, "expert_weights": weights}
            compare(found, {name: expected[name] for name in found})
            return narrow(expected)
        self.model.zero_grad()
        inputs = x.clone().requires_grad_()
        z, ids, weights, y = (layer.run or run_block)(self.model, layer, inputs)
        (y * dy).sum().backward()
        found = {"router_logits": z, "expert_ids": ids, "expert_weights": weights, "output": y}
        found |= {"grad_input": inputs.grad}
        with tempfile.TemporaryDirectory() as temporary:
            grads = gradients_by_name(self.model, temporary)
        grads = tensors_of(layer, self.relayout(grads) if self.relayout else grads)
        found |= {"grad." + layer.prefix + n: g for n, g in grads.items() if not n.endswith(layer.without_gradient)}
        compare(found, expected)
        return narrow({"hidden_states": x, "grad_output": dy} | found)


@dataclass
class Computed:
    """A model that transformers lacks."""

    config: dict
    shapes: dict  # of all tensors
    layers: list  # each hears the logits of the one before
    notes: str
    slots: str = "falling scores"
    scales: dict = field(default_factory=dict)
    seed: int = 1

    def write(self, folder):
        (folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")
        rewrite(folder, {name: initial(self, name, shape) for name, shape in self.shapes.items()})
        checkpoint = read(folder)
        ws = [{n: t.double() for n, t in tensors_of(layer, checkpoint).items()} for layer in self.layers]
        results = {}
        for tokens in (7, 1):
            batch = draw(self.layers, ws, tokens, self.seed)
            for layer, found in zip(self.layers, evaluate(self.layers, ws, *batch)):
                results |= {f"{layer.at}t{tokens}.{name}": value for name, value in narrow(found).items()}
        write_expected(folder, results, self.layers, self.seed, self.notes, self.slots)


def evaluate(layers, ws, inputs, output_gradients):
    """Everything the formula says about layers that follow each other."""
    before, loss, found = None, 0.0, []
    for layer, w, x, dy in zip(layers, ws, inputs, output_gradients):
        x, dy = x.double().requires_grad_(), dy.double()
        w = {name: t.clone().requires_grad_(not name.endswith(layer.without_gradient)) for name, t in w.items()}
        before, ids, weights, y = layer.forward(w, x, before)
        loss = loss + (y * dy).sum()
        results = {"hidden_states": x, "grad_output": dy, "router_logits": before, "expert_ids": ids}
        found.append((w, x, results | {"expert_weights": weights, "output": y}))
    loss.backward()
    for layer, (w, x, results) in zip(layers, found):
        results["grad_input"] = x.grad
        for name, tensor in w.items():
            if tensor.requires_grad:
                grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                results["grad." + layer.prefix + name] = grad
    return [results for _, _, results in found]


def narrow(results):
    return {
        name: value.detach().int() if name == "expert_ids" else value.detach().float()
        for name, value in results.items()
    }


def compare(found, expected):
    names = expected.keys() - {"hidden_states", "grad_output"}
    assert found.keys() == names, found.keys() ^ names
    found, expected = by_expert(found), by_expert(expected)
    assert torch.equal(found["expert_ids"].long(), expected["expert_ids"].long())
    for name in found:
        error = (found[name].double() - expected[name].double()).abs().max()
        size = expected[name].abs().max()
        assert error <= TOLERANCE * size, (name, float(error), float(size))


def by_expert(results):
    """Slots of each token in rising order of experts."""
    ids, order = results["expert_ids"].sort(dim=1)
    return results | {"expert_ids": ids, "expert_weights": results["expert_weights"].gather(1, order)}


def draw(layers, ws, tokens, seed):
    """A batch for each of the layers that follow each other, in which nothing is close and most experts have work."""
    random = np.random.default_rng([seed, tokens, zlib.crc32(layers[0].prefix.encode())])

    def route(inputs):
        before, found = None, []
        for layer, w, x in zip(layers, ws, inputs):
            before, ids, _ = layer.route(w, x.double(), before)
            found.append(ids)
        return found

    for _ in range(20000):
        rows = []
        while len(rows) < tokens:
            row = [to_bfloat16(random.standard_normal((1, w[layer.router].shape[1]))) for layer, w in zip(layers, ws)]
            try:
                route(row)
            except Close:
                continue
            rows.append(row)
        inputs = [torch.cat(column) for column in zip(*rows)]
        try:
            for layer, ids in zip(layers, route(inputs)):
                used = (ids.unique() >= 0).sum()
                need(used >= min(layer.experts + layer.identities, -(-3 * ids.numel() // 5)))
        except Close:
            continue
        return inputs, [to_bfloat16(random.standard_normal(x.shape)) for x in inputs]
    raise RuntimeError(f"{layers[0].prefix}: no batch without a close decision")


def write_expected(folder, tensors, layers, seed, notes, slots):
    about = {
        "model_type": json.loads((folder / "config.json").read_text())["model_type"],
        "layers": [{"layer": l.index, "prefix": l.prefix, "at": l.at} for l in layers],
        "slots": slots,
        "notes": notes,
        "seed": str(seed),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    for layer in layers:
        if layer.deviation:
            about["deviation"] = layer.deviation
    for name, value in tensors.items():
        assert value.isfinite().all() and ("grad." in name or "ids" in name or (value != 0).any()), name
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()}
    # One key: the package writes several in the order of a hash table, which differs from run to run.
    data = safetensors.numpy.save(tensors, {"golden": json.dumps(about)})
    (folder / "expected.safetensors").write_bytes(data)


# ---------------------------------------------------------------------------------------------------
# The cases. Small attention common to all.

SMALL = dict(
    vocab_size=16,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)


def make(name, settings):
    """A model for causal language modelling, by the name of its classes."""
    config = getattr(transformers, name + "Config")(**settings)
    return getattr(transformers, name + "ForCausalLM")(config)


@case
def mixtral():
    E, k = 9, 3
    model = make("Mixtral", SMALL | dict(head_dim=8, intermediate_size=5, num_local_experts=E, num_experts_per_tok=k))
    layer = Layer(
        1,
        "model.layers.1.block_sparse_moe.",
        "model.layers.1.mlp",
        softmax_rule(k, normalize=True),
        E,
        separate("w1 w3 w2"),
    )
    return Published(model, [layer], "w1 gates, w3 is linear, w2 leads back.", shards="20KB")


@case
def qwen2_moe():
    E, k = 9, 3
    own = dict(
        intermediate_size=20,
        moe_intermediate_size=7,
        shared_expert_intermediate_size=9,
        num_experts=E,
        num_experts_per_tok=k,
        mlp_only_layers=[0],
    )
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        softmax_rule(k),
        E,
        separate(),
        shared=shared("shared_expert.", "shared_expert_gate.weight"),
    )
    return Published(make("Qwen2Moe", SMALL | own), [layer], "norm_topk_prob is false. Layer 0 is dense.")


LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4)
BIAS = "gate.e_score_correction_bias"


def deepseek_v3_like(name, own, k, groups, keep, scale, E, notes, **more):
    own = dict(
        intermediate_size=20,
        moe_intermediate_size=5,
        n_shared_experts=1,
        n_routed_experts=E,
        num_experts_per_tok=k,
        n_group=groups,
        topk_group=keep,
        routed_scaling_factor=scale,
        norm_topk_prob=True,
        first_k_dense_replace=1,
        num_key_value_heads=2,
    ) | own
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        sigmoid_rule(k, BIAS, groups, keep, scale),
        E,
        separate(),
        shared=shared("shared_experts."),
        without_gradient=(BIAS,),
    )
    return Published(make(name, SMALL | own), [layer], notes, slots="not defined", **more)


@case
def deepseek_v3():
    notes = "Layer 0 is dense. The bias is mostly negative: masking losing groups with 0 would be seen."
    return deepseek_v3_like("DeepseekV3", LATENT, 3, 4, 2, 2.5, 12, notes, bias=(0.1, -0.8), seed=5)


@case
def kimi_k2():
    notes = "As deepseek_v3, with one group and Kimi-K2's scale; its published model_type is kimi_k2. Layer 0 is dense."
    return deepseek_v3_like("DeepseekV3", LATENT, 3, 1, 1, 2.827, 9, notes, shards="20KB", seed=2)


@case
def glm4_moe():
    own = dict(head_dim=8, num_key_value_heads=1)
    return deepseek_v3_like("Glm4Moe", own, 3, 1, 1, 2.5, 9, "Layer 0 is dense.", seed=3)


@case
def deepseek_v2():
    E, k = 12, 3
    own = dict(
        intermediate_size=20,
        moe_intermediate_size=5,
        n_shared_experts=2,
        n_routed_experts=E,
        num_experts_per_tok=k,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        routed_scaling_factor=16.0,
        norm_topk_prob=False,
        first_k_dense_replace=1,
        num_key_value_heads=2,
    )
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        group_limited_rule(k, 4, 2, 16.0),
        E,
        separate(),
        shared=shared("shared_experts."),
    )
    notes = "Layer 0 is dense. The shared experts are one of twice the width. norm_topk_prob is false."
    return Published(make("DeepseekV2", SMALL | LATENT | own), [layer], notes, slots="not defined")


@case
def qwen3_moe():
    E, k = 9, 3
    own = dict(
        head_dim=8,
        intermediate_size=20,
        moe_intermediate_size=7,
        num_experts=E,
        num_experts_per_tok=k,
        norm_topk_prob=True,
        decoder_sparse_step=2,
    )
    rule = softmax_rule(k, normalize=True)
    layer = Layer(1, "model.layers.1.mlp.", "model.layers.1.mlp", rule, E, separate())
    return Published(make("Qwen3Moe", SMALL | own), [layer], "norm_topk_prob is true. Layer 0 is dense.")


def packed(gate_up, down, transposed):
    """Experts in two tensors, the gate's half first; transposed: [E, D, 2 F] and [E, F, D]."""

    def expert(w, e, x):
        first, last = (w[name][e].T if transposed else w[name][e] for name in (gate_up, down))
        return glu(x, *first.chunk(2), last)

    return expert


def qwen3_vl_like(transposed, notes, **more):
    E, k = 9, 3
    text = dict(
        head_dim=8,
        intermediate_size=20,
        moe_intermediate_size=7,
        num_experts=E,
        num_experts_per_tok=k,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1]),
    )
    vision = dict(
        depth=1,
        hidden_size=8,
        intermediate_size=8,
        num_heads=2,
        in_channels=1,
        patch_size=2,
        spatial_merge_size=1,
        temporal_patch_size=1,
        out_hidden_size=16,
        num_position_embeddings=4,
        deepstack_visual_indexes=[0],
    )
    config = transformers.Qwen3VLMoeConfig(text_config=SMALL | text, vision_config=vision)
    model = transformers.Qwen3VLMoeForConditionalGeneration(config)
    prefix = "model.language_model.layers.1.mlp."
    layer = Layer(
        1,
        prefix,
        prefix[:-1],
        softmax_rule(k, normalize=True),
        E,
        packed("experts.gate_up_proj", "experts.down_proj", transposed),
    )
    return Published(model, [layer], notes + " Weights are always normalised.", **more)


def transpose_experts(checkpoint):
    return {n: t.mT if ".language_model." in n and ".experts." in n else t for n, t in checkpoint.items()}


@case
def qwen3_vl_moe():
    notes = (
        "gate_up_proj is [E, D, 2 F], the gate's columns first, and down_proj [E, F, D], as published; see "
        "qwen3_vl_moe_saved for what transformers writes."
    )
    # Programs tell the layouts apart by the version.
    return qwen3_vl_like(True, notes, relayout=transpose_experts, config=dict(transformers_version="4.57.0"))


@case
def qwen3_vl_moe_saved():
    notes = (
        "save_pretrained of transformers 5.24.0 writes gate_up_proj as [E, 2 F, D] and down_proj as [E, D, F], which "
        "is not the published layout (it transposes only when shapes differ from its own)."
    )
    return qwen3_vl_like(False, notes)


@case
def qwen3_next():
    E, k = 9, 3
    own = dict(
        head_dim=8,
        intermediate_size=20,
        moe_intermediate_size=7,
        shared_expert_intermediate_size=9,
        num_experts=E,
        num_experts_per_tok=k,
        layer_types=["linear_attention", "full_attention"],
        mlp_only_layers=[0],
        linear_conv_kernel_dim=2,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
    )
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        softmax_rule(k, normalize=True),
        E,
        separate(),
        shared=shared("shared_expert.", "shared_expert_gate.weight"),
    )
    return Published(make("Qwen3Next", SMALL | own), [layer], "norm_topk_prob is true. Layer 0 is dense.")


@case
def olmoe():
    E, k = 11, 3
    own = dict(intermediate_size=5, num_experts=E, num_experts_per_tok=k, norm_topk_prob=False)
    layer = Layer(1, "model.layers.1.mlp.", "model.layers.1.mlp", softmax_rule(k), E, separate())
    return Published(make("Olmoe", SMALL | own), [layer], "norm_topk_prob is false.")


def clamped_glu(w, e, x):
    """gpt-oss: gate and up interleaved, both clamped, three biases."""
    u = x @ w["experts.gate_up_proj"][e] + w["experts.gate_up_proj_bias"][e]
    a, c = u[:, ::2].clamp(max=7.0), u[:, 1::2].clamp(-7.0, 7.0)
    h = a * (1.702 * a).sigmoid() * (c + 1)
    return h @ w["experts.down_proj"][e] + w["experts.down_proj_bias"][e]


def gpt_oss_like(D, F, E, k):
    own = dict(hidden_size=D, head_dim=8, intermediate_size=F, num_local_experts=E, num_experts_per_tok=k)
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        top_softmax_rule(k),
        E,
        clamped_glu,
        router="router.weight",
        router_bias="router.bias",
    )
    return make("GptOss", SMALL | own | dict(layer_types=["sliding_attention", "full_attention"])), layer


@case
def gpt_oss():
    model, layer = gpt_oss_like(16, 7, 9, 3)
    notes = "gate_up_proj is [E, D, 2 F], columns gate, up, gate, up; down_proj is [E, F, D]. Some inputs are clamped."
    scales = {"experts.gate_up_proj": 4.0, "router.bias": 5.0, "experts.gate_up_proj_bias": 1.0}
    return Published(model, [layer], notes, scales=scales)


def run_llama4(model, layer, x):
    block, seen = model.get_submodule(layer.module), {}
    hook = block.router.register_forward_hook(lambda module, inputs, outputs: seen.update(scores=outputs[0]))
    y, logits = block(x[None])
    hook.remove()
    ids = (seen["scores"] != 0).nonzero()[:, 1:]
    return logits, ids, seen["scores"].gather(1, ids), y


@case
def llama4():
    E = 9
    text = dict(
        head_dim=8,
        intermediate_size=7,
        intermediate_size_mlp=20,
        num_local_experts=E,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        pad_token_id=0,
    )
    vision = dict(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_channels=1,
        intermediate_size=16,
        vision_output_dim=16,
        image_size=4,
        patch_size=2,
        projector_input_dim=16,
        projector_output_dim=16,
    )
    config = transformers.Llama4Config(text_config=SMALL | text, vision_config=vision)
    model = transformers.Llama4ForConditionalGeneration(config)

    def rule(w, z):
        ids = best(z, 1)
        return ids, z.gather(1, ids).sigmoid()

    layer = Layer(
        1,
        "language_model.model.layers.1.feed_forward.",
        "language_model.model.layers.1.feed_forward",
        rule,
        E,
        packed("experts.gate_up_proj", "experts.down_proj", True),
        router="router.weight",
        shared=shared("shared_expert."),
        input_weighted=True,
        run=run_llama4,
    )
    notes = (
        "The weight multiplies the expert's input. gate_up_proj is [E, D, 2 F], the gate's columns first; down_proj is "
        "[E, F, D]. Layer 0 is dense."
    )
    return Published(model, [layer], notes, slots="one")


def dbrx_expert(w, e, x):
    rows = len(w["experts.mlp.w1"]) // len(w["router.layer.weight"])
    w1, v1, w2 = (w[f"experts.mlp.{name}"][rows * e : rows * (e + 1)] for name in ("w1", "v1", "w2"))
    return glu(x, w1, v1, w2.T)


@case
def dbrx():
    E, k = 9, 3
    config = transformers.DbrxConfig(
        d_model=16,
        n_heads=2,
        n_layers=2,
        max_seq_len=32,
        vocab_size=16,
        attn_config=dict(kv_n_heads=1, clip_qkv=8, rope_theta=500000),
        ffn_config=dict(
            ffn_hidden_size=7, moe_num_experts=E, moe_top_k=k, moe_jitter_eps=0.01, moe_loss_weight=0.05
        ),
    )
    layer = Layer(
        1,
        "transformer.blocks.1.ffn.",
        "transformer.blocks.1.ffn",
        softmax_rule(k, normalize=True),
        E,
        dbrx_expert,
        router="router.layer.weight",
    )
    notes = "w1 gates, v1 is linear, both [E F, D] expert by expert; w2 is [E F, D] too and used as h w2."
    return Published(transformers.DbrxForCausalLM(config), [layer], notes)


def sparse_mixer_rule(jitter):
    """Phi-3.5-MoE at inference: twice the best, weighed by a softmax over those within 2 jitter of it."""

    def rule(w, z):
        ids, weights, left = [], [], z
        for _ in range(2):
            chosen = best(left, 1)
            v = left.detach().gather(1, chosen)
            distance = (v - z.detach()) / torch.maximum(z.detach().abs(), v)
            need((distance - 2 * jitter).abs().min() >= SMALLEST_GAP)
            s = left.masked_fill(distance > 2 * jitter, -torch.inf).softmax(1)
            ids.append(chosen)
            weights.append(s.gather(1, chosen))
            left = left.scatter(1, chosen, -torch.inf)
        weights = torch.cat(weights, 1)
        if len(z) > 1:
            need((weights.amin(1) < 0.8).sum() >= 3)
        return torch.cat(ids, 1), weights

    return rule


@case
def phimoe():
    E = 9
    own = dict(
        intermediate_size=7, num_local_experts=E, num_experts_per_tok=2, router_jitter_noise=0.15, attention_bias=True
    )
    layer = Layer(
        1,
        "model.layers.1.block_sparse_moe.",
        "model.layers.1.mlp",
        sparse_mixer_rule(0.15),
        E,
        separate("w1 w3 w2"),
    )
    notes = (
        "w1 gates, w3 is linear, w2 leads back. router_jitter_noise is 0.15 instead of the published 0.01, so that "
        "weights differ from 1."
    )
    return Published(make("Phimoe", SMALL | own), [layer], notes, slots="first and second choice")


@case
def jamba():
    E, k = 9, 3
    own = dict(
        intermediate_size=7,
        num_experts=E,
        num_experts_per_tok=k,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=2,
        mamba_d_conv=2,
        mamba_expand=1,
        mamba_dt_rank=2,
        pad_token_id=0,
    )
    layer = Layer(
        1,
        "model.layers.1.feed_forward.",
        "model.layers.1.feed_forward",
        softmax_rule(k),
        E,
        separate(),
        router="router.weight",
    )
    return Published(make("Jamba", SMALL | own), [layer], "Weights are not normalised. Layer 0 is dense.")


@case
def granitemoe():
    E, k = 9, 3
    own = dict(intermediate_size=7, num_local_experts=E, num_experts_per_tok=k, residual_multiplier=0.22)
    prefix = "model.layers.1.block_sparse_moe."
    layer = Layer(
        1,
        prefix,
        prefix[:-1],
        top_softmax_rule(k),
        E,
        packed("input_linear.weight", "output_linear.weight", False),
        router="router.layer.weight",
    )
    notes = (
        "input_linear is [E, 2 F, D], the gate's rows first; output_linear is [E, D, F]. residual_multiplier is the "
        "caller's."
    )
    return Published(make("GraniteMoe", SMALL | own), [layer], notes)


def run_granite_shared(model, layer, x):
    z, ids, weights, y = run_block(model, replace(layer, module=layer.module + ".block_sparse_moe"), x)
    return z, ids, weights, y + model.get_submodule(layer.module).shared_mlp(x)


@case
def granitemoeshared():
    E, k = 9, 3
    own = dict(
        intermediate_size=7,
        shared_intermediate_size=9,
        num_local_experts=E,
        num_experts_per_tok=k,
        residual_multiplier=0.22,
    )

    def add(w, x):
        return glu(x, *w["shared_mlp.input_linear.weight"].chunk(2), w["shared_mlp.output_linear.weight"])

    moe = "block_sparse_moe."
    layer = Layer(
        1,
        "model.layers.1.",
        "model.layers.1",
        top_softmax_rule(k),
        E,
        packed(moe + "input_linear.weight", moe + "output_linear.weight", False),
        router=moe + "router.layer.weight",
        shared=add,
        only=(moe, "shared_mlp."),
        run=run_granite_shared,
    )
    notes = (
        "The output is block_sparse_moe plus shared_mlp, as the decoder layer adds them. Gate rows come first in both "
        "input_linear. residual_multiplier is the caller's."
    )
    return Published(make("GraniteMoeShared", SMALL | own), [layer], notes)


@case
def hunyuan_v1_moe():
    E, k = 9, 3
    own = dict(intermediate_size=5, num_experts=E, moe_topk=k, head_dim=8, pad_token_id=0)
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        softmax_rule(k, normalize=True),
        E,
        separate(),
        router="gate.wg.weight",
        shared=shared("shared_mlp."),
    )
    notes = "transformers gives the experts and the shared MLP the same width, intermediate_size."
    return Published(make("HunYuanMoEV1", SMALL | own), [layer], notes)


@case
def longcat_flash():
    E, zero, k = 8, 3, 4
    own = dict(
        ffn_hidden_size=10,
        expert_ffn_hidden_size=5,
        n_routed_experts=E,
        zero_expert_num=zero,
        moe_topk=k,
        routed_scaling_factor=6.0,
        num_layers=2,
        head_dim=4,
        num_key_value_heads=2,
    )
    settings = {key: value for key, value in SMALL.items() if key != "num_hidden_layers"}
    bias = "router.e_score_correction_bias"
    unused = tuple(f"experts.{e}.{part}_proj.weight" for e in range(E, E + zero) for part in ("gate", "up"))
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        softmax_rule(k, scale=6.0, bias=bias),
        E,
        separate(),
        router="router.classifier.weight",
        identities=zero,
        without_gradient=(bias, *unused),
        without_meaning=unused,
    )
    notes = (
        f"Experts {E} to {E + zero - 1} return their input; that transformers writes gate_proj and up_proj for them "
        "means nothing, the published checkpoint has none."
    )
    model = make("LongcatFlash", settings | LATENT | own)
    return Published(model, [layer], notes, slots="not defined", bias=(0.1, 0.0))


@case
def ernie4_5_moe():
    E, k = 9, 3
    own = dict(
        intermediate_size=20,
        moe_intermediate_size=7,
        moe_num_experts=E,
        moe_k=k,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
        pad_token_id=0,
    )
    bias = "moe_statics.e_score_correction_bias"
    layer = Layer(
        1,
        "model.layers.1.mlp.",
        "model.layers.1.mlp",
        softmax_rule(k, normalize=True, bias=bias, least=1e-12),
        E,
        separate(),
        shared=shared("shared_experts."),
        without_gradient=(bias,),
    )
    notes = "Layer 0 is dense. The bias is [1, E]. The shared experts are one of twice the width."
    return Published(make("Ernie4_5_Moe", SMALL | own), [layer], notes, slots="falling biased scores", bias=(0.1, 0.0))


@case
def minimax():
    E, k = 9, 3
    own = dict(
        head_dim=8,
        intermediate_size=7,
        num_local_experts=E,
        num_experts_per_tok=k,
        layer_types=["linear_attention", "full_attention"],
        block_size=4,
    )
    layer = Layer(
        1,
        "model.layers.1.block_sparse_moe.",
        "model.layers.1.mlp",
        softmax_rule(k, normalize=True),
        E,
        separate("w1 w3 w2"),
    )
    notes = "MiniMax-Text-01. w1 gates, w3 is linear, w2 leads back."
    computed = ("self_attn.slope_rate", "_decay")
    return Published(make("MiniMax", SMALL | own), [layer], notes, not_weights=computed)


@case
def minimax_m2():
    E, k = 9, 3
    own = dict(head_dim=8, intermediate_size=7, num_local_experts=E, num_experts_per_tok=k)
    bias = "e_score_correction_bias"
    layer = Layer(
        1,
        "model.layers.1.block_sparse_moe.",
        "model.layers.1.mlp",
        sigmoid_rule(k, bias, epsilon=0.0),
        E,
        separate("w1 w3 w2"),
        without_gradient=(bias,),
    )
    notes = "w1 gates, w3 is linear, w2 leads back. Nothing is added to the sum before dividing."
    return Published(make("MiniMaxM2", SMALL | own), [layer], notes, slots="not defined")


def run_switch(model, layer, x):
    block, seen = model.get_submodule(layer.module), {}
    hook = block.router.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs=outputs))
    y = block(x[None])
    hook.remove()
    chosen, weights, logits = (value[0] for value in seen["outputs"])
    assert (chosen.sum(1) == 1).all()
    return logits, chosen.argmax(1, keepdim=True), weights, y[0]


def relu_experts(first, last):
    """Plain experts, with biases where the checkpoint has them."""

    def expert(w, e, x):
        for name in (first, last):
            start = f"experts.expert_{e}.{name}."
            x = x @ w[start + "weight"].T
            if start + "bias" in w:
                x = x + w[start + "bias"]
            x = x.relu() if name == first else x
        return x

    return expert


@case
def switch_transformers():
    E = 8
    config = transformers.SwitchTransformersConfig(
        vocab_size=16,
        d_model=16,
        d_kv=8,
        d_ff=5,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_heads=2,
        num_experts=E,
        relative_attention_num_buckets=4,
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    layers = [
        Layer(
            1,
            f"{side}.block.1.layer.{part}.mlp.",
            f"{side}.block.1.layer.{part}.mlp",
            softmax_rule(1),
            E,
            relu_experts("wi", "wo"),
            router="router.classifier.weight",
            at=side + ".",
            run=run_switch,
        )
        for side, part in (("encoder", 1), ("decoder", 2))
    ]
    notes = "expert_capacity is 64: no token is dropped. Layer 0 is dense."
    return Published(model, layers, notes, slots="one")


def top_two_rule(scale):
    """NLLB-MoE: the two best logits, their softmax probabilities divided by their sum."""

    def rule(w, z):
        s = z.softmax(1)
        ids = best(s, 2)
        u = s.gather(1, ids)
        return ids, scale * u / u.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).eps)

    return rule


def run_nllb_router(model, layer, x):
    """Logits, ids and weights; the experts that transformers calls are wrong."""
    block = model.get_submodule(layer.module)
    _, gates, logits = block.router(x)
    weights, ids = gates.topk(2, dim=1)
    return logits, ids, weights * (1 - block.experts.moe_token_dropout)


@case
def nllb_moe():
    E, dropout = 8, 0.2
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in dict(layers=2, ffn_dim=5, attention_heads=2, sparse_step=2).items()
    }
    config = transformers.NllbMoeConfig(
        vocab_size=16, d_model=16, max_position_embeddings=32, num_experts=E, moe_token_dropout=dropout, **sizes
    )
    model = transformers.NllbMoeForConditionalGeneration(config)
    layers = [
        Layer(
            1,
            f"model.{side}.layers.1.ffn.",
            f"model.{side}.layers.1.ffn",
            top_two_rule(1 - dropout),
            E,
            relu_experts("fc1", "fc2"),
            router="router.classifier.weight",
            at=side + ".",
            run=run_nllb_router,
            deviation="NllbMoeSparseMLP of transformers 5.24.0 takes the mask of first choices for expert ids: "
            "expert 1 works for every first choice, expert 0 for every second. Output and gradients are those of the "
            "formula; logits, ids and weights agree with the block's router.",
        )
        for side in ("encoder", "decoder")
    ]
    notes = (
        "Weights are scaled by 1 - moe_token_dropout at inference. moe_eval_capacity_token_fraction is 1: no token is "
        "dropped. Layer 0 is dense."
    )
    return Published(model, layers, notes)


# Quantised experts.


def block_scaled(weight):
    """float8_e4m3fn and a factor for each block of 128 x 128."""
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % 128, 0, -rows % 128))
    blocks = padded.reshape(-(-rows // 128), 128, -(-columns // 128), 128)
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return codes.to(torch.float8_e4m3fn), scale


def to_fp8(checkpoint):
    stored = {}
    for name, tensor in checkpoint.items():
        if tensor.ndim == 2 and "_proj" in name:
            stored[name], stored[name + "_scale_inv"] = block_scaled(tensor)
        else:
            stored[name] = tensor
    return stored


def from_fp8(stored):
    dense = {}
    for name, tensor in stored.items():
        if name + "_scale_inv" in stored:
            i, j = torch.meshgrid(*(torch.arange(n) // 128 for n in tensor.shape), indexing="ij")
            scales = stored[name + "_scale_inv"]
            dense[name] = tensor.float() * scales[i, j]
            spread = torch.kron(scales, torch.ones(128, 128))[: tensor.shape[0], : tensor.shape[1]]
            assert torch.equal(dense[name], tensor.float() * spread)
        elif not name.endswith("_scale_inv"):
            dense[name] = tensor
    return dense


@case
def deepseek_v3_fp8():
    notes = (
        "Projections are float8_e4m3fn, weight = code * weight_scale_inv[row // 128, column // 128]; numbers are those "
        "of the decoded weights. Layer 0 is dense."
    )
    own = LATENT | dict(
        vocab_size=4, hidden_size=136, moe_intermediate_size=5, n_shared_experts=27, intermediate_size=5
    )
    made = deepseek_v3_like("DeepseekV3", own, 3, 4, 2, 2.5, 8, notes, bias=(0.3, -0.8), seed=4)
    made.layers[0].without_gradient += ("_proj.weight",)
    made.quantise, made.decode = to_fp8, from_fp8
    made.config = {
        "quantization_config": dict(
            activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128]
        )
    }
    return made


FOUR_BITS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def to_mxfp4(checkpoint):
    """[E, in, out] to blocks [E, out, in / 32, 16] and scales [E, out, in / 32]."""
    stored = {}
    for name, tensor in checkpoint.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = tensor
            continue
        blocks = tensor.mT.unflatten(2, (-1, 32))
        scale = blocks.abs().amax(3).log2().floor() - 2
        units = blocks / 2.0 ** scale[..., None]
        codes = (units.abs()[..., None] - FOUR_BITS).abs().argmin(-1) + 8 * (units < 0)
        stored[name + "_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[name + "_scales"] = (scale + 127).to(torch.uint8)
    return stored


def from_mxfp4(stored):
    table, dense = torch.cat([FOUR_BITS, -FOUR_BITS]), {}
    for name, tensor in stored.items():
        if name.endswith("_blocks"):
            codes = torch.stack([tensor & 15, tensor >> 4], dim=-1).flatten(3).int()
            scales = stored[name.replace("_blocks", "_scales")]
            weight = (table[codes] * 2.0 ** (scales.float() - 127)[..., None]).flatten(2).mT
            assert torch.equal(weight, convert_moe_packed_tensors(tensor, scales, dtype=torch.float32))
            dense[name.removesuffix("_blocks")] = weight
        elif not name.endswith("_scales"):
            dense[name] = tensor
    return dense


@case
def gpt_oss_mxfp4():
    model, layer = gpt_oss_like(32, 64, 8, 3)
    layer.without_gradient = ("experts.gate_up_proj", "experts.down_proj")
    notes = (
        "blocks are [E, out, in / 32, 16] with the first of two numbers in the low half of a byte, rows of gate_up "
        "gate, up, gate, up; numbers are those of the decoded weights. Some inputs are clamped."
    )
    scales = {"experts.gate_up_proj": 12.0, "router.bias": 5.0}
    config = {
        "quantization_config": dict(
            modules_to_not_convert=[
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            quant_method="mxfp4",
        )
    }
    return Published(model, [layer], notes, scales=scales, quantise=to_mxfp4, decode=from_mxfp4, config=config)


# Models that transformers lacks.


def swiglu_shapes(start, D, F):
    return {f"{start}{part}_proj.weight": (D, F) if part == "down" else (F, D) for part in ("gate", "up", "down")}


@case
def deepseek():
    D, F, E, k, shared_experts = 16, 7, 9, 3, 2
    config = dict(
        architectures=["DeepseekForCausalLM"],
        model_type="deepseek",
        hidden_size=D,
        hidden_act="silu",
        intermediate_size=20,
        moe_intermediate_size=F,
        n_routed_experts=E,
        n_shared_experts=shared_experts,
        num_experts_per_tok=k,
        norm_topk_prob=False,
        scoring_func="softmax",
        first_k_dense_replace=1,
        moe_layer_freq=1,
        num_hidden_layers=2,
    )
    prefix = "model.layers.1.mlp."
    shapes = swiglu_shapes("model.layers.0.mlp.", D, 20)
    shapes |= {prefix + "gate.weight": (E, D)} | swiglu_shapes(prefix + "shared_experts.", D, shared_experts * F)
    for e in range(E):
        shapes |= swiglu_shapes(f"{prefix}experts.{e}.", D, F)
    layer = Layer(1, prefix, "", softmax_rule(k), E, separate(), shared=shared("shared_experts."))
    notes = "DeepSeek-MoE-16B. Layer 0 is dense. The shared experts are one of twice the width."
    return Computed(config, shapes, [layer], notes, slots="not defined")


def pad(rows, length):
    return torch.stack([F.pad(row, (0, length - len(row)), value=-1) for row in rows])


def top_p_rule(p):
    """Dynamic_MoE: the best until their sum exceeds p, with the one that crosses it."""

    def rule(w, z):
        s = z.softmax(1)
        order = best(s, s.shape[1])
        sums = s.detach().gather(1, order).cumsum(1)
        need((sums - p).abs().min() >= SMALLEST_GAP)
        counts = (sums <= p).sum(1) + 1
        if len(z) > 1:
            need({1, 2, 3} <= set(counts.tolist()))
        ids = pad([row[:count] for row, count in zip(order, counts)], int(counts.max()))
        return ids, s.gather(1, ids.clamp(min=0)) * (ids >= 0)

    return rule


@case
def dynamic_moe():
    D, F, E, p = 16, 7, 8, 0.4
    config = dict(
        architectures=["MoEForCausalLM"],
        model_type="llama",
        hidden_size=D,
        hidden_act="silu",
        intermediate_size=F,
        num_experts=E,
        top_p_threshold=p,
        expert_frequency=2,
        num_hidden_layers=3,
    )
    prefix = "model.layers.2.mlp."
    shapes = swiglu_shapes("model.layers.1.mlp.mlp.", D, F) | {prefix + "router.weight": (E, D)}
    for e in range(E):
        shapes |= swiglu_shapes(f"{prefix}experts.{e}.", D, F)
    layer = Layer(2, prefix, "", top_p_rule(p), E, separate(), router="router.weight")
    notes = (
        "The best experts until their scores sum to more than p, with the one that crosses it; raw scores weigh. "
        "Layers 0, 2, ... are of experts, 1 is dense (layer 0 is left out here)."
    )
    return Computed(config, shapes, [layer], notes, scales={"router": 0.5})


def dynamic_capacity_rule(dynamic, fixed, p, jitter):
    """Uni-MoE 2: as many as reach p, weighed by softmax over those within 2 jitter of each, beside fixed experts."""

    def rule(w, z):
        zd = z[:, :dynamic]
        q = zd.softmax(1)
        sums = q.detach().sort(1, descending=True)[0].cumsum(1)
        need((sums - p).abs().min() >= SMALLEST_GAP)
        counts = (sums < p).sum(1) + 1
        ids, weights = [], []
        for row, scores, count in zip(z, zd, counts):
            left, chosen, shares = scores, [], []
            for _ in range(count):
                i = best(left[None], 1)[0]
                v = left[i].detach()
                distance = (v - scores.detach()) / torch.maximum(scores.detach().abs(), v.abs())
                need((distance - 2 * jitter).abs().min() >= SMALLEST_GAP)
                shares.append(left.masked_fill(distance > 2 * jitter, -torch.inf).softmax(0)[i])
                chosen.append(i)
                left = left.scatter(0, i, -torch.inf)
            chosen = torch.cat([*chosen, torch.arange(dynamic, dynamic + fixed)])
            shares = torch.cat(shares)
            shares = shares / (shares.sum() + 1e-6)
            overall = row[chosen].softmax(0)
            ids.append(chosen)
            weights.append(torch.cat([shares * overall[:count].sum(), overall[count:]]))
        length = int(counts.max()) + fixed
        weights = torch.stack([F.pad(row, (0, length - len(row))) for row in weights])
        if len(z) > 1:
            need(len(set(counts.tolist())) >= 3)
            need(((ids := pad(ids, length)) == dynamic - 1).sum() >= 2)  # the null expert
            first = weights[:, :2].detach()
            need(((first[:, 0] - first[:, 1]).abs() > 0.05).sum() >= 2)  # uneven shares
            return ids, weights
        return pad(ids, length), weights

    return rule


@case
def uni_moe_2():
    D, width, shared_width, real, null, fixed, p, jitter = 16, 7, 5, 6, 1, 2, 0.7, 0.1
    config = dict(
        model_type="UniMoEV2_qwen2_vl",
        hidden_size=D,
        hidden_act="silu",
        mlp_dynamic_expert_num=real,
        mlp_dynamic_null_expert_num=null,
        mlp_dynamic_top_p=p,
        mlp_dynamic_top_k=2,
        mlp_fixed_expert_num=fixed,
        dynamic_intermediate_size=width,
        shared_intermediate_size=shared_width,
        router_jitter_noise=jitter,
        input_jitter_noise=0.01,
        token_drop=False,
        drop_policy="probs",
        min_capacity=8,
        capacity_factor=1.0,
        fp32_gate=True,
        num_hidden_layers=2,
    )
    prefix = "model.layers.1.mlp."
    starts = [f"dynamic_real_moe.deepspeed_moe.experts.deepspeed_experts.{e}." for e in range(real)]
    starts += [""] * null + [f"fixed_real_moe.{e}." for e in range(fixed)]
    shapes = {prefix + "gate.weight": (real + null + fixed, D)}
    for start in filter(None, starts):
        shapes |= swiglu_shapes(prefix + start, D, shared_width if start.startswith("fixed") else width)

    def expert(w, e, x):
        return separate(start=starts[e][:-2])(w, starts[e][-2], x) if starts[e] else torch.zeros_like(x)

    rule = dynamic_capacity_rule(real + null, fixed, p, jitter)
    layer = Layer(1, prefix, "", rule, real + null + fixed, expert)
    notes = (
        f"Logits: {real} real experts, {null} null (takes its share, returns 0), {fixed} fixed. Inference, no token is "
        "dropped. router_jitter_noise is 0.1 instead of the published 0.01, so that shares are uneven."
    )
    slots = "dynamic experts as they are chosen, then the fixed ones, then -1"
    return Computed(config, shapes, [layer], notes, slots=slots, scales={"gate.weight": 0.5})


@case
def moe_plus_plus():
    D, width, ffn, E = 16, 5, 5, 9
    config = dict(
        model_type="MoE++",
        hidden_size=D,
        hidden_act="silu",
        intermediate_size=width,
        num_experts=[E],
        moe_expert_interval=1,
        moe_use_mixtral_gating=False,
        moe_2layer_gate=True,
        moe_use_logits_norm=False,
        moe_gate_norm_std=1.0,
        moe_feature_no_mul_topk=False,
        num_hidden_layers=2,
    )

    def logits(w, x, before):
        z = (x @ w["gate.wg.0.weight"].T).tanh() @ w["gate.wg.2.weight"].T
        return z if before is None else z + before @ w["gate.gate_map.weight"].T

    def rule(w, z):
        s = z.softmax(1)
        ids = best(s, 2)
        u = s.gather(1, ids) * (ids != E - 1)
        if len(z) > 1:
            kinds = [*"f" * ffn, *"kk", *"cz"]
            need({kinds[e] for e in ids.flatten()} == set("fkcz"))
        return ids, u / u.sum(1, keepdim=True)

    def expert(w, e, x):
        x, start = 2 * x, f"experts.experts.{e}."
        if e < ffn:
            return glu(x, *w[start + "up_proj.weight"].chunk(2), w[start + "down_proj.weight"])
        if e < ffn + 2:
            a = (x @ w[start + "wg.weight"].T).softmax(1)
            return a[:, :1] * x + a[:, 1:] * w[start + "constant"]
        return x if e == ffn + 2 else torch.zeros_like(x)

    layers, shapes = [], {}
    for index in range(2):
        prefix = f"model.layers.{index}.mlp.moe."
        shapes |= {
            prefix + "gate.wg.0.weight": (8 * E, D),
            prefix + "gate.wg.2.weight": (E, 8 * E),
            prefix + "gate.gate_map.weight": (E, E),
        }
        for e in range(ffn):
            shapes[f"{prefix}experts.experts.{e}.up_proj.weight"] = (2 * width, D)
            shapes[f"{prefix}experts.experts.{e}.down_proj.weight"] = (D, width)
        for e in range(ffn, ffn + 2):
            shapes |= {f"{prefix}experts.experts.{e}.constant": (D,), f"{prefix}experts.experts.{e}.wg.weight": (2, D)}
        layers.append(
            Layer(
                index,
                prefix,
                "",
                rule,
                E,
                expert,
                router="gate.wg.0.weight",
                logits=logits,
                at=f"{index}.",
                without_meaning=() if index else ("gate.gate_map.weight",),
            )
        )
    notes = (
        f"Experts 0 to {ffn - 1} are FFNs (up_proj: the gate's rows, then the up rows), {ffn} and {ffn + 1} constant, "
        f"{ffn + 2} copies, {ffn + 3} is zero: its weight is removed before normalising. Experts see 2 x, the router "
        "x. Layer 1 adds gate_map of layer 0's logits to its own; router_logits are after that. The loss sums both "
        "layers, each with tokens of its own. gate_map of layer 0 is not used."
    )
    return Computed(config, shapes, layers, notes, scales={".constant": 5.0, "gate.wg.2": 3.0}, seed=4)


# ---------------------------------------------------------------------------------------------------


def same_folder(one, other):
    names = {path.name for path in one.iterdir()}
    if not other.is_dir() or names != {path.name for path in other.iterdir()}:
        return False
    return not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def main(arguments):
    check = "--check" in arguments
    arguments = [a for a in arguments if a != "--check"]
    if arguments and (arguments[0] != "--only" or not set(arguments[1:]) <= CASES.keys()):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    same = True
    for name in arguments[1:] or CASES:
        with tempfile.TemporaryDirectory() as temporary:
            made = pathlib.Path(temporary) / name
            made.mkdir()
            torch.manual_seed(0)
            CASES[name]().write(made)
            target = FOLDER / name
            if check:
                if not same_folder(made, target):
                    print(f"{name} differs")
                    same = False
                continue
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            shutil.copytree(made, target, copy_function=shutil.copyfile)
            print(f"{name}: {sum(path.stat().st_size for path in target.iterdir())} bytes", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
