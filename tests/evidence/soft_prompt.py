#!/usr/bin/env python3
"""Tries to bring removed concepts back by a soft prompt: four token embeddings in place of the name, fitted to the forget images.

usage: soft_prompt.py JOB CONCEPTS MODEL…

JOB is the folder of the demo, CONCEPTS its table of removed concepts, and each MODEL a CLIP folder: the base model or a release. One
prompt a concept is fitted by Adam to the cross-entropy of its forget images against all class texts; nothing else is trained. The
prompts start from the tokens of the name, or from random tokens. Printed: TA@1/TA@5 of the drawings of the removed concepts that no
forget set has (validation and test), with the prompt in place of the name, after so many steps.
"""

import csv
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from check_release import read_shard

TOKENS, STEPS, RATE, SEED = 4, [0, 5, 10, 20, 50], 0.02, 1


def pairs(path):
    """Images and captions of a shard."""
    return list(zip(*read_shard(path)))


class Clip:
    """A CLIP folder as transformers reads it."""

    def __init__(self, folder):
        self.model = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
        self.processor, self.tokenizer = CLIPImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        self.text = self.model.text_model

    @torch.no_grad()
    def images(self, pictures):
        parts = [self.processor(pictures[i : i + 128], return_tensors="pt")["pixel_values"] for i in range(0, len(pictures), 128)]
        found = torch.cat([self.model.visual_projection(self.model.vision_model(part).pooler_output) for part in parts])
        return found / found.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def texts(self, names):
        found = []
        for name in names:
            ids = self.tokenizer(name, return_tensors="pt").input_ids
            found.append(self.model.text_projection(self.text(ids).pooler_output)[0])
        found = torch.stack(found)
        return found / found.norm(dim=-1, keepdim=True)

    def prompts(self, soft):
        """Embeddings of prompts `[concepts, tokens, width]` between the start and the end token."""
        table, start = self.text.embeddings.token_embedding.weight, self.tokenizer.bos_token_id
        ends = lambda token: table[token].expand(len(soft), 1, -1)
        rows = torch.cat([ends(start), soft, ends(self.tokenizer.eos_token_id)], dim=1)
        hidden = rows + self.text.embeddings.position_embedding.weight[: rows.shape[1]]
        mask = torch.full((rows.shape[1], rows.shape[1]), float("-inf")).triu(1)[None, None]
        hidden = self.text.encoder(inputs_embeds=hidden, causal_attention_mask=mask).last_hidden_state
        found = self.model.text_projection(self.text.final_layer_norm(hidden[:, -1]))
        return found / found.norm(dim=-1, keepdim=True)

    def tokens_of(self, name):
        """The first tokens of a name, the last one repeated where it has fewer than a prompt has."""
        ids = self.tokenizer(name, add_special_tokens=False).input_ids[:TOKENS]
        return ids + ids[-1:] * (TOKENS - len(ids))


def accuracy(images, own, texts, prompts, concepts):
    """TA@1 and TA@5 of images of removed concepts, each with its own prompt in place of its name."""
    scores = images @ texts.T
    mine = (images * prompts[own]).sum(-1)
    scores[torch.arange(len(images)), concepts[own]] = float("-inf")
    above = (scores >= mine[:, None]).sum(-1)
    return [100 * (above < k).float().mean().item() for k in (1, 5)]


def measure(folder, classes, removed, forget, unseen):
    clip = Clip(folder)
    texts, concepts = clip.texts(classes), torch.tensor([classes.index(name) for name in removed])
    train = clip.images([picture for picture, _ in forget])
    trained = torch.tensor([owner for _, owner in forget])
    held = clip.images([picture for picture, _ in unseen])
    owner = torch.tensor([removed.index(name) for _, name in unseen])
    table, scale = clip.text.embeddings.token_embedding.weight, clip.model.logit_scale.exp()
    torch.manual_seed(SEED)
    starts = {
        "the name": torch.tensor([clip.tokens_of(name) for name in removed]),
        "random tokens": torch.randint(len(table), (len(removed), TOKENS)),
    }
    for name, ids in starts.items():
        soft = table[ids].clone().requires_grad_()
        optimizer, found = torch.optim.Adam([soft], lr=RATE), []
        for step in range(max(STEPS) + 1):
            prompts = clip.prompts(soft)
            if step in STEPS:
                found.append(accuracy(held, owner, texts, prompts.detach(), concepts))
            logits = scale * (train @ texts.T)
            rows = torch.arange(len(train))
            logits[rows, concepts[trained]] = scale * (train * prompts[trained]).sum(-1)
            loss = torch.nn.functional.cross_entropy(logits, concepts[trained], reduction="none")
            # A mean over the images of a concept, so that concepts do not depend on each other.
            (loss / torch.bincount(trained)[trained]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"| {folder} | {name} | " + " | ".join(f"{top1:.0f}/{top5:.0f}" for top1, top5 in found) + " |", flush=True)


def main():
    job, table, models = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    classes = [name for name in (job / "classes.txt").read_text().splitlines() if name]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    removed = [row["class"] for row in rows]
    forget = [(picture, i) for i, row in enumerate(rows) for picture, _ in pairs(job / row["forget"])]
    unseen = [pair for shard in ["validation.tar", "test.tar"] for pair in pairs(job / shard) if pair[1] in set(removed)]
    print("| model | from | " + " | ".join(f"{step} steps" for step in STEPS) + " |\n|" + "---|" * (2 + len(STEPS)))
    for folder in models:
        measure(folder, classes, removed, forget, unseen)


if __name__ == "__main__":
    main()
