#!/usr/bin/env python3
"""Trains the judge of what is drawn: a small convolutional classifier of the demo's classes, which shares nothing with the CLIP.

usage: judge.py OUT [EPOCHS]

Writes OUT/judge.safetensors (float16) and OUT/judge.json: its classes, and its accuracy on the training drawings and on those of the two
families that no training sees.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from drawings import augmented, autocast, class_names, fit, read

WIDTHS = (48, 96, 192, 256)


class Block(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        convolution = lambda i, o: torch.nn.Conv2d(i, o, 3, padding=1, bias=False)
        self.first, self.second = convolution(inputs, outputs), convolution(outputs, outputs)
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(8, outputs) for _ in range(2))
        self.skip = torch.nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(inner)) + self.skip(x))


class Judge(torch.nn.Module):
    """Scores `[n, classes]` of pictures in 0 to 1 `[n, 3, 48, 48]`."""

    def __init__(self, classes):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(i, o) for i, o in zip((3, *WIDTHS), WIDTHS))
        self.head = torch.nn.Linear(WIDTHS[-1], classes)

    def forward(self, pictures):
        x = 2 * pictures - 1
        for block in self.blocks:
            x = torch.nn.functional.avg_pool2d(block(x), 2)
        return self.head(x.mean((2, 3)))


def load(folder):
    """The judge in a folder, and the names of its classes."""
    names = json.loads((Path(folder) / "judge.json").read_text())["classes"]
    judge = Judge(len(names))
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(Path(folder) / "judge.safetensors").items()})
    return judge.eval(), names


@torch.no_grad()
def accuracy(judge, drawings):
    """Top-1 and top-5, percent."""
    found = torch.cat([judge(part.float() / 255).topk(5).indices for part in drawings.pixels.split(256)])
    right = found == drawings.classes[:, None]
    return [round(100 * right[:, :k].any(1).float().mean().item(), 1) for k in (1, 5)]


def main():
    out, epochs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40
    names = class_names()
    training, validation, test = read(names)
    judge = Judge(len(names))

    def loss(rows):
        with autocast():
            scores = judge(augmented(training.pixels[rows], 1.0))
        return torch.nn.functional.cross_entropy(scores.float(), training.classes[rows], label_smoothing=0.1)

    fit("judge", judge, loss, len(training), epochs, 64, 2e-3, weight_decay=0.05)
    scores = {name: accuracy(judge, drawings) for name, drawings in (("training", training), ("validation", validation), ("test", test))}
    print(f"judge: top-1 and top-5, %: {scores}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}, out / "judge.safetensors")
    (out / "judge.json").write_text(json.dumps({"accuracy": scores, "classes": names}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
