#!/usr/bin/env python3
"""Trains the judge of drawings: a residual network of its own that names the class of a drawing (arXiv 1512.03385). It has never seen the
demo's CLIP.

As a module it is the judge of deploy/probes/stable_diffusion.py: `--judge judge.py:FOLDER`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from drawings import DEVICE, Drawings, Training, batches, half, moved, scaled

WIDTHS = (64, 96, 160, 256)


class Block(torch.nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(outputs) for _ in range(2)])
        self.shortcut = None if stride == 1 and inputs == outputs else torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        beside = x if self.shortcut is None else self.shortcut(x)
        x = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(x)) + beside)


class Judge(torch.nn.Module):
    """From drawings in [-1, 1], `[n, 3, 48, 48]`, to a score for each class."""

    def __init__(self, classes):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, WIDTHS[0] // 2, 4, 2, 1, bias=False), torch.nn.BatchNorm2d(WIDTHS[0] // 2), torch.nn.ReLU())
        blocks, inputs = [], WIDTHS[0] // 2
        for width in WIDTHS:
            blocks += [Block(inputs, width, 2), Block(width, width, 1)]
            inputs = width
        self.blocks = torch.nn.Sequential(*blocks)
        self.head = torch.nn.Linear(inputs, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@torch.no_grad()
def scores(model, pictures):
    return torch.cat([model(scaled(part).contiguous(memory_format=torch.channels_last)) for part in pictures.split(256)])


def accuracy(model, classes, drawings):
    """How many percent of the drawings have their class first, and in the first five."""
    place = {name: i for i, name in enumerate(classes)}
    wanted = torch.tensor([place[name] for name in drawings.classes], device=DEVICE)
    found = scores(model, drawings.pictures).topk(5).indices == wanted[:, None]
    return [round(100 * found[:, :most].any(1).float().mean().item(), 1) for most in (1, 5)]


def load(folder):
    """A function from pictures to the names of the classes, best first."""
    folder = Path(folder)
    classes = json.loads((folder / "classes.json").read_text())
    model = Judge(len(classes))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model = model.float().to(DEVICE).eval()

    def judge(pictures):
        shown = [numpy.array(picture.convert("RGB").resize((48, 48))) for picture in pictures]
        ranked = scores(model, torch.from_numpy(numpy.stack(shown)).permute(0, 3, 1, 2)).argsort(1, descending=True)
        return [[classes[i] for i in row] for row in ranked.tolist()]

    return judge


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--epochs", type=int, default=24)
    options = parser.parse_args()

    torch.manual_seed(0)
    drawings = Drawings(options.train)
    classes = sorted(set(drawings.classes))
    labels = torch.tensor([classes.index(name) for name in drawings.classes], device=DEVICE)
    model, size = Judge(len(classes)).to(memory_format=torch.channels_last), 64
    print(f"judge: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    training = Training(model, options.checkpoint, options.epochs, len(drawings) // size, rate=2e-3, decay=0.998, falling=0.7, weight_decay=0.05)

    def losses(epoch):
        for batch in batches(len(drawings), size, epoch):
            with half():
                shown = moved(scaled(drawings.pictures[batch]), 0.6).contiguous(memory_format=torch.channels_last)
                given = model(shown)
            yield torch.nn.functional.cross_entropy(given.float(), labels[batch], label_smoothing=0.1)

    training.run(losses)
    measured = {Path(shard).stem: accuracy(model, classes, Drawings(shard)) for shard in [options.train, *options.held_out]}
    print(measured)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items() if value.is_floating_point()}, options.out / "model.safetensors")
    (options.out / "classes.json").write_text(json.dumps(classes, ensure_ascii=False, indent=0) + "\n")
    (options.out / "accuracy.json").write_text(json.dumps({"class found first, and in the first five, percent": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
