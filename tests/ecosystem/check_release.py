"""Checks a release with transformers: does it load, does it compute what Lethe computes, is its record true?

Usage: check_release.py JOB_FOLDER MANIFEST RELEASE BASE_EMBEDDINGS RELEASED_EMBEDDINGS
"""

import csv
import hashlib
import io
import json
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

PAIRS = 256
failures = []


def check(what, ok, detail=""):
    print(f"  {'ok  ' if ok else 'FAIL'} {what}{': ' + detail if detail else ''}")
    if not ok:
        failures.append(what)


def read_shard(path):
    """Images and captions of a shard in its order."""
    samples = {}
    with tarfile.open(path) as shard:
        for member in shard:
            key, ending = member.name.split(".", 1)
            samples.setdefault(key, {})[ending] = shard.extractfile(member).read()
    images, captions = [], []
    for files in samples.values():
        encoded = next(files[e] for e in ("png", "webp", "jpg") if e in files)
        images.append(Image.open(io.BytesIO(encoded)).convert("RGB"))
        captions.append(files["txt"].decode().strip())
    return images, captions


class Peer:
    """A CLIP folder as transformers sees it."""

    def __init__(self, folder):
        self.model = CLIPModel.from_pretrained(folder).eval()
        self.processor = CLIPImageProcessor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def pixels(self, images):
        return self.processor(images, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def embed_images(self, images):
        parts = [features(self.model.get_image_features(self.pixels(images[i : i + 128]))) for i in range(0, len(images), 128)]
        return unit(torch.cat(parts))

    @torch.no_grad()
    def embed_texts(self, texts):
        length = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        parts = [
            features(self.model.get_text_features(encoded["input_ids"][i : i + 128], encoded["attention_mask"][i : i + 128]))
            for i in range(0, len(texts), 128)
        ]
        return unit(torch.cat(parts))


def features(found):
    """What a tower gives: a tensor, since transformers 5 with more beside it."""
    return found if torch.is_tensor(found) else found.pooler_output


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def ranks(images, classes, labels):
    """How many classes score higher than an image's own; equal scores count when they come earlier in the list."""
    scores = images @ classes.T
    own = scores.gather(1, labels[:, None])
    earlier = (scores == own) & (torch.arange(len(classes), device=labels.device)[None] < labels[:, None])
    return ((scores > own) | earlier).sum(1)


def embeddings(name, peer, ours, shard):
    images, captions = shard
    images, captions = images[:PAIRS], captions[:PAIRS]
    ours = load_file(ours)
    differences = [
        ("pixels", (peer.pixels(images) - ours["pixel_values"][:PAIRS]).abs().max().item(), 1e-6),
        ("image embeddings", (peer.embed_images(images) - ours["image_embeds"][:PAIRS]).abs().max().item(), 1e-5),
        ("text embeddings", (peer.embed_texts(captions) - ours["text_embeds"][:PAIRS]).abs().max().item(), 1e-5),
    ]
    for what, difference, tolerance in differences:
        check(f"{name}: {what} of {len(images)} pairs", difference <= tolerance, f"differ by at most {difference:.1e}")
    same = all(
        peer.tokenizer(caption)["input_ids"] == ours["input_ids"][i][: ours["lengths"][i]].tolist() for i, caption in enumerate(captions)
    )
    check(f"{name}: token ids", same)


def accuracies(job, manifest, peer, record):
    """The record's zero-shot accuracies, computed again."""
    names = (job / manifest["data"]["classes"]).read_text().splitlines()
    index = {name: i for i, name in enumerate(names)}
    prompt = manifest["data"].get("template", "{}")
    classes = peer.embed_texts([prompt.replace("{}", name) for name in names])
    with open(job / manifest["concepts"]["table"], newline="") as table:
        rows = {row["id"]: row for row in csv.DictReader(table)}

    worst = 0.0
    for concept in record["concepts"]:
        row = rows[concept["id"]]
        images, _ = read_shard(job / row["forget"])
        found = ranks(peer.embed_images(images), classes, torch.full((len(images),), index[row["class"]]))
        for k, key in ((1, "fa1"), (5, "fa5")):
            worst = max(worst, abs((found < k).float().mean().item() - concept["composed"][key]) * len(images))
    check(f"composed FA@1 and FA@5 of {len(record['concepts'])} concepts", worst < 1.5, f"differ by at most {worst:.0f} images")

    removed = {index[row["class"]] for row in rows.values()}
    for name in ("validation", "test"):
        images, captions = read_shard(job / manifest["data"][name][0])
        kept = [i for i, caption in enumerate(captions) if index[caption] not in removed]
        labels = torch.tensor([index[captions[i]] for i in kept])
        found = ranks(peer.embed_images([images[i] for i in kept]), classes, labels)
        after = record["utility"][name]["after"]
        for k, key in ((1, "ta1"), (5, "ta5")):
            difference = abs((found < k).float().mean().item() - after[key]) * len(kept)
            check(f"TA@{k} on {len(kept)} {name} images", difference < 1.5, f"{after[key]:.4f}, differs by {difference:.0f} images")


def raw(path):
    """Tensors of a safetensors file as numpy arrays, byte for byte."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def accumulate(moved, factor, edits, concept):
    """Adds an edit's direction, whole or as factors, in the order that the record's digest rests on."""
    if concept in edits:
        moved += factor * edits[concept].astype(np.float64)
        return
    up, down = (edits[f"{concept}.{side}"].astype(np.float64) for side in ("up", "down"))
    for column, row in zip((factor * up).T, down):
        moved += np.outer(column, row)


def bytes_of_the_release(base, release, record):
    before, after, edits = (raw(path) for path in (base / "model.safetensors", release / "model.safetensors", release / "edits.safetensors"))
    digest = hashlib.sha256()
    for name in sorted(after):
        digest.update(after[name].tobytes())
    check("digest over tensor bytes in name order", digest.hexdigest() == record["digest"])
    edited = {concept["layer"] for concept in record["concepts"]}
    untouched = [name for name in before if name not in edited]
    check(f"{len(untouched)} tensors without an edit are the base's", all(before[n].tobytes() == after[n].tobytes() for n in untouched))
    exact = True
    for layer in edited:
        moved = np.zeros(before[layer].shape, np.float64)
        for concept in sorted(record["concepts"], key=lambda c: c["id"]):
            if concept["layer"] == layer:
                accumulate(moved, concept["strength"] * concept["dose"] * concept["step"], edits, concept["id"])
        exact &= (before[layer].astype(np.float64) + moved).astype(np.float32).astype(before[layer].dtype).tobytes() == after[layer].tobytes()
    check(f"{len(edited)} edited layers follow from edits.safetensors, bit for bit", exact)
    files = all(hashlib.sha256((release / name).read_bytes()).hexdigest() == f["digest"] for name, f in record["files"].items())
    check(f"digests of {len(record['files'])} files", files)


def main():
    job, release = Path(sys.argv[1]), Path(sys.argv[3])
    manifest = tomllib.loads((job / sys.argv[2]).read_text())
    record = json.loads((release / "composition.json").read_text())
    base, released = Peer(job / "model"), Peer(release)
    print("transformers loads the base and the release")
    shard = read_shard(job / manifest["data"]["validation"][0])
    embeddings("base", base, sys.argv[4], shard)
    embeddings("release", released, sys.argv[5], shard)
    accuracies(job, manifest, released, record)
    bytes_of_the_release(job / "model", release, record)
    if failures:
        sys.exit(f"{len(failures)} checks failed")
    print("the release is what its record says")


if __name__ == "__main__":
    main()
