"""Checks with transformers by how much texts that must not change move at the edited layers.

Usage: check_protected.py BASE RELEASE
"""

import json
import sys
from pathlib import Path

import torch
from check_release import Peer, check, failures


@torch.no_grad()
def passed(peer, layer, texts):
    """What each text puts into a linear layer, and gets from it, at every token up to the one that is read."""
    seen = []
    module = peer.model.get_submodule(layer.removesuffix(".weight"))
    hook = module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    for text in texts:
        encoded = peer.tokenizer([text], return_tensors="pt")
        peer.model.get_text_features(encoded["input_ids"], encoded["attention_mask"])
    hook.remove()
    # The largest token id ends a text.
    ends = [peer.tokenizer([text], return_tensors="pt")["input_ids"][0].argmax().item() + 1 for text in texts]
    return [(inputs[0, :end], output[0, :end]) for (inputs, output), end in zip(seen, ends)]


def main():
    base, folder = Peer(Path(sys.argv[1])), Path(sys.argv[2])
    released, record = Peer(folder), json.loads((folder / "composition.json").read_text())
    names = [text["name"] for text in record["protected"]]
    # `any_text` is how far a change of this size could move a text: rounding errors of inputs in float32 are a share of it.
    moved, any_text = [0.0] * len(names), 0.0
    for layer in record["layers"]:
        delta = (released.model.get_parameter(layer) - base.model.get_parameter(layer)).double()
        for i, (inputs, output) in enumerate(passed(base, layer, names)):
            inputs, lengths = inputs.double(), output.double().norm(dim=1)
            moved[i] = max(moved[i], ((inputs @ delta.T).norm(dim=1) / lengths).max().item())
            any_text = max(any_text, (inputs.norm(dim=1) * delta.norm() / lengths).max().item())
    off = max(abs(ours["moved"] - theirs) for ours, theirs in zip(record["protected"], moved))
    worst = max(moved)
    check(f"movement of {len(names)} texts that must not change", names and off <= 1e-3 * worst + 1e-7 * any_text, f"at most {worst:.1e}, differs by {off:.0e}")
    check("a change of this size could move other texts much further", worst < 1e-6 * any_text, f"by up to {any_text:.1e}")
    before, after = base.embed_texts(names), released.embed_texts(names)
    apart = (1 - (before * after).sum(1)).max().item()
    check("their embeddings", apart < 1e-3, f"1 - cos at most {apart:.1e}")
    if failures:
        sys.exit(f"{len(failures)} checks failed")


if __name__ == "__main__":
    main()
