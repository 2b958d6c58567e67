# SPDX-License-Identifier: MIT
"""Checks checkpoints that this library wrote against those of models/: do other readers see the same layers?

    v/bin/python check_roundtrip.py OUT/mixtral OUT/dbrx     # compared with models/mixtral and models/dbrx

Each folder holds config.json and model*.safetensors and is called as its original. Its MoE layers must have the names
and shapes of the original's, transformers must load it without missing, unexpected or mismatched tensors in them, and
every parameter and buffer of the loaded blocks must equal the original's to the bit. What else is in the checkpoint
does not matter. Quantised tensors are decoded first; models that transformers lacks are compared by name.
Exits with 1 if a folder differs.
"""

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


def differences(folder):
    original = models.FOLDER / folder.name
    case = models.CASES[folder.name]()
    decode = getattr(case, "decode", lambda checkpoint: checkpoint)
    written, expected = decode(models.read(folder)), decode(models.read(original))
    found = []
    for layer in case.layers:
        for name, tensor in expected.items():
            # The published checkpoint has none of them, but transformers wants them.
            if name.endswith(layer.without_meaning) and name.split("experts.")[0] + "experts.0.up_proj.weight" in written:
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
    if not arguments:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    same = True
    for folder in map(pathlib.Path, arguments):
        found = differences(folder.resolve())
        print(f"{folder.name}: {'differs' if found else 'same'}", *found, sep="\n    ")
        same = same and not found
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
