"""Compares what Lethe computes with a SigLIP and with its release with what transformers computes from the same images and texts.

Usage: check_siglip.py make SHARD
       check_siglip.py MODEL_FOLDER RELEASE_FOLDER BASE_EMBEDDINGS RELEASE_EMBEDDINGS [SHARD]

The embeddings are what lethe-embed wrote for SHARD, by default the demo's validation shard. `make` writes a shard that needs more of
the processor: images that are not square, and captions with capitals, punctuation, odd spaces and too many words.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import torch
from check_release import PAIRS, check, failures, features, raw, read_shard, unit
from odd_images import picture, saved
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

VALIDATION = Path(__file__).resolve().parents[2] / "jobs/emoji/validation.tar"
PIXELS, EMBEDDINGS = 1e-6, 1e-4
SIZES = [(90, 61), (47, 90), (48, 48), (9, 14), (33, 121), (200, 50), (49, 48), (300, 301)]
CAPTIONS = [
    "a photo of a cat",
    "The RED Heart, and Pizza!",
    "  cat\tface \u00a0 with   tears\nof joy ",
    "up-down arrow (left_right) don't",
    "£5 café naïve “quotes” — dash…",
    "rocket 🚀 to the moon",
    " ".join(["grinning face with smiling eyes"] * 6),
    "?!",
]


def make(path):
    """Writes the shard of odd images and captions."""
    with tarfile.open(path, "w") as shard:
        for number, (size, caption) in enumerate(zip(SIZES, CAPTIONS)):
            for ending, data in (("png", saved(picture(*size), "PNG")), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{number}.{ending}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


class Peer:
    """A SigLIP folder as transformers sees it, with the processor on which the model was trained: Pillow resizes the images."""

    def __init__(self, folder):
        self.model, found = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(folder, use_fast=False)
        check(f"{folder.name}: every tensor is the model's", not any(found.values()), str({k: v for k, v in found.items() if v}))

    def pixels(self, images):
        # One at a time: a batch of different sizes is no special case.
        return torch.cat([self.processor(images=image, return_tensors="pt")["pixel_values"] for image in images])

    def tokens(self, texts):
        return self.processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def embed_images(self, pixels):
        return unit(torch.cat([features(self.model.get_image_features(part)) for part in pixels.split(128)]))

    @torch.no_grad()
    def embed_texts(self, ids):
        return unit(torch.cat([features(self.model.get_text_features(part)) for part in ids.split(128)]))


def embeddings(name, peer, ours, shard):
    images, captions = (items[:PAIRS] for items in shard)
    ours = load_file(ours)
    pixels, ids = peer.pixels(images), peer.tokens(captions)
    count, padding = len(images), peer.processor.tokenizer.pad_token_id
    same = 0
    for row, written, length in zip(ids.tolist(), ours["input_ids"].tolist(), ours["lengths"].tolist()):
        same += row == written[:length] + [padding] * (len(row) - length)
    check(f"{name}: token ids", same == count, f"{same} of {count} texts, padded to {ids.shape[1]}")
    for what, theirs, tolerance in (
        ("pixel_values", pixels, PIXELS),
        ("image_embeds", peer.embed_images(pixels), EMBEDDINGS),
        ("text_embeds", peer.embed_texts(ids), EMBEDDINGS),
    ):
        difference = (theirs - ours[what][:count]).abs().max().item()
        check(f"{name}: {what} of {count} pairs", difference <= tolerance, f"differ by at most {difference:.1e}")


def edits(base, release):
    """Only the layers that the record names differ, and they do."""
    record = json.loads((release / "composition.json").read_text())
    before, after = (raw(folder / "model.safetensors") for folder in (base, release))
    named = {concept["layer"] for concept in record["concepts"]}
    check("the same tensors", sorted(before) == sorted(after) and all(before[n].dtype == after[n].dtype for n in before))
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    check(f"{len(changed)} of {len(before)} tensors differ", changed <= named and changed, f"{sorted(changed)}; the record names {sorted(named)}")


def main():
    if sys.argv[1] == "make":
        return make(sys.argv[2])
    base, release = Path(sys.argv[1]), Path(sys.argv[2])
    shard = read_shard(sys.argv[5] if len(sys.argv) > 5 else VALIDATION)
    print("transformers loads the base and the release")
    embeddings("base", Peer(base), sys.argv[3], shard)
    embeddings("release", Peer(release), sys.argv[4], shard)
    edits(base, release)
    if failures:
        sys.exit(f"{len(failures)} checks failed")
    print("transformers computes what Lethe computes")


if __name__ == "__main__":
    main()
