"""Finds the edits of a release by least squares again, in PyTorch on transformers, from the formulas of docs/composition.md.

Usage: check_least_squares.py JOB_FOLDER MANIFEST RELEASE STORE

The manifest has method "least-squares" with tokens = "read", rounds = 0 and a rank that cuts nothing. Of Lethe's results, only the list of
covered classes' texts is taken from the store.
"""

import csv
import json
import sys
import tomllib
from pathlib import Path

import torch
from check_release import check, failures, read_shard
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

RIDGE, WEIGHT, UNLABELLED, TEXTS, MEAN_TEXTS = 0.0003, 100.0, 0.5, 16, 512
# Both compute towers in float32, in other orders, and later layers depend on the edits of earlier ones.
TOLERANCE = 0.005


class Tower:
    """A text tower: what a layer that ends an MLP is given, and what the last block comes to."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = CLIPModel.from_pretrained(folder).float().eval().text_model

    def layer(self, number):
        return self.model.encoder.layers[number].mlp.fc2

    @torch.no_grad()
    def passes(self, texts, number):
        """Inputs of a layer `[texts, tokens, inputs]`, the places of the ends, and the last block's outputs there, some texts at a time."""
        kept = {}
        hook = self.layer(number).register_forward_pre_hook(lambda _, inputs: kept.update(inputs=inputs[0]))
        for start in range(0, len(texts), 512):
            ids = self.tokenizer(texts[start : start + 512], padding=True, return_tensors="pt").input_ids
            ends = (ids == self.tokenizer.eos_token_id).int().argmax(1)
            hidden = self.model(ids, output_hidden_states=True).hidden_states[-1]
            yield kept["inputs"], ends, hidden[torch.arange(len(ids)), ends].double()
        hook.remove()


def moment(tower, texts, number):
    """The sum of x xᵀ over all tokens up to the ends of texts, and the number of these tokens."""
    total, tokens = 0, 0
    for inputs, ends, _ in tower.passes(texts, number):
        rows = inputs[torch.arange(inputs.shape[1])[None] <= ends[:, None]]
        total, tokens = total + (rows.T @ rows).double(), tokens + len(rows)
    return total, tokens


def metric(tower, paired, unlabelled, number):
    """C + ρ c̄ I of a layer."""
    sums = [moment(tower, texts, number) for texts in (paired, unlabelled) if texts]
    weights = [1.0, UNLABELLED][: len(sums)]
    mean = lambda values: sum(w * value for w, value in zip(weights, values)) / sum(weights)
    scaled = mean([total / total.diagonal().mean() for total, _ in sums])
    size = mean([total.diagonal().mean() / tokens for total, tokens in sums])
    return size * (scaled + RIDGE * torch.eye(len(scaled), dtype=torch.double))


def texts_of(class_text, captions):
    others = list(dict.fromkeys(caption for caption in captions if caption != class_text))
    taken = min(TEXTS - 1, len(others))
    return [class_text] + [others[place * len(others) // taken] for place in range(taken)]


def stored_lists(store):
    """The lists of texts among a store's artifacts."""
    for path in Path(store, "artifacts").glob("*/*"):
        with open(path, "rb") as file:
            if file.read(2) == b'["':
                yield json.loads(path.read_bytes())


def main():
    job, manifest, release, store = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    settings = tomllib.loads((job / manifest).read_text())
    classes = [name for name in (job / settings["data"]["classes"]).read_text().splitlines() if name]
    with open(job / settings["concepts"]["table"], newline="") as table:
        concepts = list(csv.DictReader(table))
    covered = next(texts for texts in stored_lists(store) if "" in texts)
    captions = [caption for name in settings["data"]["retain"] for shard in sorted(job.glob(name)) for caption in read_shard(shard)[1]]
    paired = captions + covered
    unlabelled = [text for name in settings["data"].get("retain_texts", []) for text in (job / name).read_text().splitlines() if text]

    base, edited = Tower(job / "model"), Tower(job / "model")
    depth = len(base.model.encoder.layers)
    most = min(MEAN_TEXTS, len(classes))
    chosen = [classes[place * len(classes) // most] for place in range(most)]
    mean = torch.cat([states for _, _, states in base.passes(chosen, 0)]).mean(0)
    texts, shares = [], []
    for concept in concepts:
        own = texts_of(concept["class"], read_shard(job / concept["forget"])[1])
        texts += own
        shares += [len(own) ** -0.5] * len(own)
    shares = torch.tensor(shares, dtype=torch.double)[:, None]
    ours = load_file(release / "model.safetensors")
    for number in range(depth):
        cost = metric(base, paired, unlabelled, number)
        found = list(edited.passes(texts, number))
        keys = torch.cat([inputs[torch.arange(len(ends)), ends].double() for inputs, ends, _ in found])
        residuals = (mean - torch.cat([states for _, _, states in found])) / (depth - number)
        keys, residuals = shares * keys, shares * residuals
        change = torch.linalg.solve(keys.T @ keys + WEIGHT * cost, keys.T @ residuals).T
        before = base.layer(number).weight.double()
        theirs = ours[f"text_model.encoder.layers.{number}.mlp.fc2.weight"].double() - before
        off = ((theirs - change).norm() / change.norm()).item()
        check(f"edits of layer {number} by least squares", off <= TOLERANCE, f"‖Δ‖/‖θ‖ {change.norm() / before.norm():.2f}, differ by {100 * off:.2f} %")
        # As stored: later layers are solved under it.
        edited.layer(number).weight.data.copy_((before + theirs).float())
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
