# SPDX-License-Identifier: MIT
"""Checks what this library writes: do other readers see the layers of models/ in it?

    cmake --build ../../build/test --target rewrite_model    # with tests, examples and nlohmann-json
    v/bin/python check_roundtrip.py ../../build/test/examples/rewrite_model            # all models
    v/bin/python check_roundtrip.py ../../build/test/examples/rewrite_model mixtral    # one of them

rewrite_model reads the MoE layers of a model and writes its folder again, with these layers as moe::save writes them.
They must have the names and shapes of the original's, transformers must load the folder without missing, unexpected or
mismatched tensors in them, and every parameter and buffer of the loaded blocks must equal the original's to the bit.
Quantised tensors are decoded first; models that transformers lacks are compared by name. Exits with 1 if one differs.
"""

import subprocess
import sys
import tempfile

import generate_models as models  # first: it sets what the libraries read when they are imported

import json
import pathlib

import torch
import transformers


def load(folder, tensors):
    """The model that transformers reads from decoded tensors, and what it says about loading."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as temporary:
        copy = pathlib.Path(temporary)
        (copy / "config.json").write_text(json.dumps(config))
        models.rewrite(copy, tensors)
        kind = getattr(transformers, config["architectures"][0])
        return kind.from_pretrained(copy, dtype=torch.float32, output_loading_info=True)


def rewrite(program, case, original, folder):
    """Whether `program` wrote the folder. It counts the layers of a decoder behind those of the encoder."""
    config = json.loads((original / "config.json").read_text())
    layers = [l.index + (config.get("encoder_layers", config.get("num_layers", 0)) if l.at == "decoder." else 0)
              for l in case.layers]
    return subprocess.run([program, original, folder, *map(str, layers)]).returncode == 0


def differences(program, model, folder):
    original = models.FOLDER / model
    case = models.CASES[model]()
    if not rewrite(program, case, original, folder):
        return ["rewrite_model failed"]
    decode = getattr(case, "decode", lambda checkpoint: checkpoint)
    written, expected = decode(models.read(folder)), decode(models.read(original))
    found = []
    for layer in case.layers:
        for name, tensor in expected.items():
            # Nothing reads them, but transformers wants them.
            if name.startswith(layer.prefix) and name.endswith(layer.without_meaning):
                written.setdefault(name, tensor)
        ours, theirs = models.tensors_of(layer, written), models.tensors_of(layer, expected)
        for name in sorted(ours.keys() ^ theirs.keys()):
            found.append(f"{layer.prefix}{name}: only in the {'written' if name in ours else 'original'} checkpoint")
        for name in sorted(ours.keys() & theirs.keys()):
            if ours[name].shape != theirs[name].shape:
                found.append(f"{layer.prefix}{name}: {list(ours[name].shape)} instead of {list(theirs[name].shape)}")
            elif not torch.equal(ours[name].float(), theirs[name].float()):
                found.append(f"{layer.prefix}{name}: other values")
    if found or isinstance(case, models.Computed):
        return found
    ours, report = load(folder, written)
    theirs, _ = load(original, expected)
    for layer in case.layers:
        modules = [f"{layer.module}.{only}" for only in layer.only]
        starts = tuple(modules) + tuple(layer.prefix + only for only in layer.only)
        for kind, names in report.items():
            found += [f"{kind}: {name}" for name in names if str(name).strip("('").startswith(starts)]
        expected = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            if name.startswith(tuple(modules)) and not torch.equal(tensor, expected[name]):
                found.append(f"{name}: other values after loading")
    return found


def main(arguments):
    if not arguments or not set(arguments[1:]) <= models.CASES.keys():
        sys.exit(__doc__)
    torch.set_num_threads(1)
    same = True
    for name in arguments[1:] or models.CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = differences(arguments[0], name, pathlib.Path(folder))
        print(f"{name}: {'differs' if found else 'same'}", *found, sep="\n    ")
        same = same and not found
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
