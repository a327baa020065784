"""The demo's drawings, and what the trainers of its targets share."""

import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs/emoji"
TRAINING = ROOT / "target/emoji/train.tar"
SIDE = 48


class Drawings:
    """Drawings in memory: `pixels` uint8 `[n, 3, 48, 48]`, `classes` `[n]`, and the captions of each."""

    def __init__(self, shard, names):
        index = {name: place for place, name in enumerate(names)}
        samples = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, ending = member.name.split(".", 1)
                samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
        pixels, classes, self.captions = [], [], []
        for files in samples.values():
            picture = next(files[ending] for ending in ("png", "webp") if ending in files)
            pixels.append(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")))
            name = files["txt"].decode().strip()
            classes.append(index[name])
            self.captions.append(json.loads(files["json"])["captions"] if "json" in files else [name])
        self.pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        self.classes = torch.tensor(classes)

    def __len__(self):
        return len(self.classes)


def class_names():
    return [name for name in (JOB / "classes.txt").read_text().splitlines() if name]


def read(names):
    """Training, validation and test drawings."""
    return [Drawings(shard, names) for shard in (TRAINING, JOB / "validation.tar", JOB / "test.tar")]


def augmented(pixels, strength):
    """Float pictures in 0 to 1, each shifted, scaled, rotated and recoloured at random; white outside."""
    pictures = pixels.float() / 255
    if strength == 0:
        return pictures
    n = len(pictures)
    uniform = lambda *shape: 2 * torch.rand(*shape) - 1
    angle, scale = 0.25 * strength * uniform(n), 1 + 0.2 * strength * uniform(n)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = 0.15 * strength * uniform(n, 2)
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = torch.nn.functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    pictures = 1 - torch.nn.functional.grid_sample(1 - pictures, grid, align_corners=False)
    pictures = pictures * (1 + 0.25 * strength * uniform(n, 1, 1, 1)) + 0.1 * strength * uniform(n, 3, 1, 1)
    return pictures.clamp(0, 1)


class Average:
    """The running average of a model's weights, which is what is written."""

    def __init__(self, model, decay):
        self.decay, self.steps = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + 10))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - keep)
            else:
                self.weights[name].copy_(tensor)


def fit(name, model, loss, count, epochs, batch, rate, decay=0.999, weight_decay=0.01, seed=1):
    """Trains a model: AdamW, warm-up and cosine, and a running average of the weights, which the model has at the end. `loss` returns the
    loss of the drawings with these numbers, below `count`."""
    torch.manual_seed(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(f"{name}: {sum(map(torch.numel, parameters)) / 1e6:.2f} million parameters, {epochs} epochs of {count} drawings", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    average, total, step, began = Average(model, decay), epochs * (count // batch), 0, time.monotonic()
    for epoch in range(epochs):
        order, losses = torch.randperm(count), []
        for start in range(0, count - batch + 1, batch):
            warm, progress = min(1.0, (step + 1) / 200), step / total
            optimizer.param_groups[0]["lr"] = rate * warm * (0.5 * (1 + np.cos(np.pi * progress)) + 0.005)
            value = loss(order[start : start + batch])
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(model)
            losses.append(value.item())
            step += 1
        print(f"{name}: epoch {epoch + 1:3} loss {np.mean(losses):.4f} {time.monotonic() - began:.0f} s", flush=True)
    model.load_state_dict(average.weights)
    return model.eval()


def autocast():
    """bfloat16 where the processor multiplies it faster than float32."""
    flags = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)
