# SPDX-License-Identifier: MIT
"""Writes tests/fuzz/bind/: checkpoints of the small layers of bind_fuzz.cpp, as their models lay them out.

Run it in this folder: python make_bind_corpus.py
The name says what an input holds; refused_* must be refused. The first byte chooses the layer and
how it is read: see bind_fuzz.cpp. found_* are by the fuzzer, and stay.
"""

import json
import pathlib
import random
import struct

folder = pathlib.Path(__file__).parent / "bind"
folder.mkdir(exist_ok=True)
numbers = random.Random(1)
kinds = ["mixtral", "halves", "halves_in_out", "dbrx", "scattered", "gpt_oss", "gpt_oss_mxfp4", "deepseek"]
SEVERAL, ODD, BF16, INT8, INT4 = 8, 16, 32, 96, 160
small, large, experts = 4, 32, 2


def size(shape):
    count = 1
    for extent in shape:
        count *= extent
    return count


def element(dtype):
    """A value between -2 and 2 or a code; neither NaN nor infinite."""
    value = numbers.randrange(-32, 33) / 16
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return bytes([numbers.randrange(128) % 0x78 | numbers.randrange(2) << 7])
    if dtype == "U8":
        return bytes([numbers.randrange(256)])
    return struct.pack({"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q"}[dtype], value if dtype != "I64" else 1)


def tensor(shape, dtype="F32", data=None):
    if data is None:
        data = b"".join(element(dtype) for _ in range(size(shape)))
    return dtype, list(shape), data


def scale_bytes(*shape):
    """E8M0, 1/16 to 4."""
    return tensor(shape, "U8", bytes(numbers.randrange(123, 130) for _ in range(size(shape))))


def file(tensors, pad=True):
    """In order of the names; where `pad` is false, the header's length makes data unaligned."""
    header, data = {}, b""
    for name, (dtype, shape, part) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + (0 if pad else 1))
    return struct.pack("<Q", len(text)) + text + data


def put(name, kind, tensors, choice=0, pad=True):
    (folder / name).write_bytes(bytes([kinds.index(kind) | choice]) + file(tensors, pad))


def put_several(name, kind, *files, choice=0, index=None):
    """An index and the files "a", "b", ..., as checkpoint_parts.hpp splits them."""
    names = {tensor: chr(ord("a") + i) for i, tensors in enumerate(files) for tensor in tensors}
    text = json.dumps({"weight_map": names}, separators=(",", ":")).encode() if index is None else index
    parts = [text, *(file(tensors) for tensors in files)]
    (folder / name).write_bytes(
        bytes([kinds.index(kind) | SEVERAL | choice]) + b"".join(struct.pack("<I", len(part)) + part for part in parts)
    )


def changed(tensors, **changes):
    """Keys with __ for dots; None removes. What is new goes last, where a sanitizer sees a read past it."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in tensors.items() if name not in changes}
    return kept | {name: value for name, value in changes.items() if value is not None}


def mixtral(dtype="F32", d=small, f=small):
    all = {"moe.gate.weight": tensor([experts, d], dtype)}
    for e in range(experts):
        for name, shape in ("w1", [f, d]), ("w2", [d, f]), ("w3", [f, d]):
            all[f"moe.experts.{e}.{name}.weight"] = tensor(shape, dtype)
    return all


def halves(dtype="F32", in_out=False, d=small, f=small):
    both = [d, 2 * f] if in_out else [2 * f, d]
    down = [f, d] if in_out else [d, f]
    return {
        "mlp.gate.weight": tensor([experts, d], dtype),
        "mlp.experts.gate_up_proj": tensor([experts, *both], dtype),
        "mlp.experts.down_proj": tensor([experts, *down], dtype),
    }


def dbrx(dtype="F32", d=small, f=small):
    return {
        "ffn.router.layer.weight": tensor([experts, d], dtype),
        **{f"ffn.experts.mlp.{name}": tensor([experts * f, d], dtype) for name in ("w1", "v1", "w2")},
    }


def scattered(prefix="a.0.", stacked=True, dtype="F32", d=small, f=small):
    all = {
        prefix + "router": tensor([experts, d], dtype),
        prefix + "ffn.first.0": tensor([f, d], dtype),
        prefix + "ffn.rest": tensor([(experts - 1) * d, f], dtype),
        **{prefix + f"ffn.up.{e}": tensor([f, d], dtype) for e in range(experts)},
    }
    if stacked:
        all[prefix + "ffn.gates"] = tensor([experts, f, d], dtype)
    else:
        all.update({prefix + f"ffn.gate.{e}": tensor([f, d], dtype) for e in range(experts)})
    return all


def gpt_oss(dtype="F32", d=small, f=small, mxfp4=False):
    all = {
        "mlp.router.weight": tensor([experts, d], dtype),
        "mlp.router.bias": tensor([experts], dtype),
        "mlp.experts.gate_up_proj_bias": tensor([experts, 2 * f], dtype),
        "mlp.experts.down_proj_bias": tensor([experts, d], dtype),
    }
    if mxfp4:
        all["mlp.experts.gate_up_proj_blocks"] = tensor([experts, 2 * f, d // 32, 16], "U8")
        all["mlp.experts.gate_up_proj_scales"] = scale_bytes(experts, 2 * f, d // 32)
        all["mlp.experts.down_proj_blocks"] = tensor([experts, d, f // 32, 16], "U8")
        all["mlp.experts.down_proj_scales"] = scale_bytes(experts, d, f // 32)
    else:
        all["mlp.experts.gate_up_proj"] = tensor([experts, d, 2 * f], dtype)
        all["mlp.experts.down_proj"] = tensor([experts, f, d], dtype)
    return all


def deepseek(dtype="F32", scales=None, d=small, f=small, block=3):
    all = {
        "mlp.gate.weight": tensor([experts, d]),
        "mlp.gate.e_score_correction_bias": tensor([experts]),
    }
    for path in [f"experts.{e}" for e in range(experts)] + ["shared_experts"]:
        for name, shape in ("gate", [f, d]), ("up", [f, d]), ("down", [d, f]):
            weight = f"mlp.{path}.{name}_proj.weight"
            all[weight] = tensor(shape, dtype)
            if scales is not None:
                blocks = [-(-extent // block) for extent in shape]
                all[weight + "_scale_inv"] = scale_bytes(*blocks) if scales == "U8" else tensor(blocks, scales)
    return all


makers = {
    "mixtral": mixtral,
    "halves": halves,
    "halves_in_out": lambda dtype: halves(dtype, True),
    "dbrx": dbrx,
    "scattered": lambda dtype: scattered(dtype=dtype),
    "gpt_oss": gpt_oss,
    "deepseek": deepseek,
}

# Sound: every kind, and every type that weights may have
for kind, make in makers.items():
    put(f"{kind}_f32", kind, make("F32"), choice=INT8)
for dtype in "F64", "F16", "BF16":
    put(f"mixtral_{dtype.lower()}", "mixtral", mixtral(dtype), choice=BF16)
put("mixtral_odd_address", "mixtral", mixtral("BF16"), choice=ODD)
put("mixtral_unaligned", "mixtral", mixtral("F32"), pad=False)
put("mixtral_mixed", "mixtral", changed(mixtral("F16"), moe__experts__1__w2__weight=tensor([small, small], "BF16")))
put("mixtral_beside_others", "mixtral", {"another": tensor([1], "I64"), **mixtral()})
put("gpt_oss_mxfp4", "gpt_oss_mxfp4", gpt_oss("BF16", large, large, True), choice=INT4 | ODD)
put("gpt_oss_row_bias", "gpt_oss", changed(gpt_oss(), mlp__router__bias=tensor([1, experts])))
for scales in "BF16", "U8":
    put(f"deepseek_fp8_{scales.lower()}", "deepseek", deepseek("F8_E4M3", scales))
put("deepseek_fp8_odd_address", "deepseek", deepseek("F8_E4M3", "F32"), choice=INT8 | ODD)
put("scattered_second_prefix", "scattered", scattered("0.", stacked=False))
put("scattered_gates_apart", "scattered", scattered(stacked=False))

# Values that are none
nan, infinite = struct.pack("<f", float("nan")), struct.pack("<f", float("inf"))
put("nan_router", "mixtral", changed(mixtral(), moe__gate__weight=tensor([experts, small], data=nan * experts * small)))
put("nan_expert", "mixtral", changed(mixtral(), moe__experts__0__w1__weight=tensor([small, small], data=nan * small**2)), choice=INT8)
put("infinite_expert", "halves", changed(halves(), mlp__experts__down_proj=tensor([experts, small, small], data=infinite * experts * small**2)), choice=INT4)
put("nan_codes", "deepseek", changed(deepseek("F8_E4M3", "F32"), mlp__experts__0__gate_proj__weight=tensor([small, small], "F8_E4M3", b"\x7f" * small**2)))
put("nan_scales", "gpt_oss_mxfp4", changed(gpt_oss("F32", large, large, True), mlp__experts__down_proj_scales=tensor([experts, large, 1], "U8", b"\xff" * experts * large)))
put("infinite_bias", "deepseek", changed(deepseek(), mlp__gate__e_score_correction_bias=tensor([experts], data=infinite * experts)))

# Several files
all = mixtral("BF16")
first = {name: all[name] for name in list(all)[:4]}
rest = {name: all[name] for name in list(all)[4:]}
put_several("several_mixtral", "mixtral", first, rest)
put_several("refused_index_lies", "mixtral", first, rest, index=b'{"weight_map":{"moe.gate.weight":"b"}}')

# Not of the layer
put("refused_nothing", "mixtral", {})
put("refused_missing", "mixtral", changed(mixtral(), moe__experts__1__w3__weight=None))
put("refused_left_over", "mixtral", changed(mixtral(), moe__gate__bias=tensor([experts])))
put("refused_no_names_near", "mixtral", {"x": tensor([1], "U8"), "\xe9\u20ac\U0001f600": tensor([1], "U8")})
put("refused_long_names", "mixtral", {"moe.gate.weight" + chr(ord("a") + i) * 900: tensor([1], "U8") for i in range(4)})
put("refused_shape", "mixtral", changed(mixtral(), moe__experts__0__w1__weight=tensor([small * small])))
put("refused_experts_fewer", "halves", changed(halves(), mlp__experts__down_proj=tensor([1, small, small])))
put("refused_experts_more", "dbrx", changed(dbrx(), ffn__experts__mlp__w2=tensor([3 * small, small])))
put("refused_rank_8", "halves", changed(halves(), mlp__experts__down_proj=tensor([1, 1, 1, 1, 1, experts, small, small])))
put("refused_integers", "mixtral", mixtral("I64"))
put("refused_dtype_unknown", "mixtral", changed(mixtral(), moe__gate__weight=tensor([experts, small], "X", bytes(16))))
put("refused_no_elements", "mixtral", changed(mixtral(), moe__gate__weight=tensor([0, small])))
put("refused_huge_and_empty", "mixtral", changed(mixtral(), moe__gate__weight=tensor([2**62, 0])))

# Codes and scales that do not go together
codes = deepseek("F8_E4M3", "F32")
put("refused_scales_missing", "deepseek", changed(codes, mlp__experts__0__gate_proj__weight_scale_inv=None))
put("refused_scales_shape", "deepseek", changed(codes, mlp__experts__0__gate_proj__weight_scale_inv=tensor([1, 1])))
put("refused_scales_dtype", "deepseek", changed(codes, mlp__experts__0__gate_proj__weight_scale_inv=tensor([2, 2], "F64")))
put("refused_scales_of_values", "deepseek", changed(codes, mlp__experts__0__gate_proj__weight=tensor([small, small])))
put("refused_codes_e5m2", "deepseek", deepseek("F8_E5M2", "F32"))
put("refused_codes_without_names", "mixtral", mixtral("F8_E4M3"))
put("mixed_codes_second", "deepseek", {name: value for name, value in codes.items() if "experts.0.gate" not in name}
    | {"mlp.experts.0.gate_proj.weight": tensor([small, small])})
put("mixed_codes_first", "deepseek", deepseek() | {name: value for name, value in codes.items() if "experts.0.gate" in name})
all = gpt_oss("BF16", large, large, True)
put("refused_mxfp4_small", "gpt_oss", changed(gpt_oss(), mlp__experts__down_proj=None, mlp__experts__gate_up_proj=None,
    mlp__experts__gate_up_proj_blocks=tensor([1], "U8"), mlp__experts__gate_up_proj_scales=tensor([1], "U8"),
    mlp__experts__down_proj_blocks=tensor([1], "U8"), mlp__experts__down_proj_scales=tensor([1], "U8")))
put("refused_mxfp4_scales_dtype", "gpt_oss_mxfp4", changed(all, mlp__experts__down_proj_scales=tensor([experts, large, 1], "BF16")))
