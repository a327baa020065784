"""The drawings of the demo as tensors, and what the trainers of its targets share."""

import io
import json
import random
import tarfile
import time
from pathlib import Path

import numpy
import torch
from PIL import Image

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Drawings:
    """Drawings of 48 × 48 pixels (uint8, [n, 3, 48, 48]), the class of each, and the forms of its caption, the plain name first; of some
    families, or of all."""

    def __init__(self, shard, families=None):
        pictures, self.classes, self.captions = [], [], []
        with tarfile.open(shard) as tar:
            samples = {}
            for member in tar:
                key, ending = member.name.rsplit(".", 1)
                samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
        for key in sorted(samples):
            files = samples[key]
            told = json.loads(files["json"]) if "json" in files else {}
            if families and told["family"] not in families:
                continue
            picture = Image.open(io.BytesIO(files.get("png") or files["webp"])).convert("RGB")
            pictures.append(torch.from_numpy(numpy.array(picture)).permute(2, 0, 1))
            name = told.get("class") or files["txt"].decode().strip()
            self.classes.append(name)
            self.captions.append(told.get("captions") or [name])
        self.pictures = torch.stack(pictures)

    def __len__(self):
        return len(self.classes)


def scaled(pictures):
    """Bytes as numbers in [-1, 1], on the device."""
    return pictures.to(DEVICE).float() / 127.5 - 1.0


def moved(pictures, strength):
    """Pictures in [-1, 1], each shifted, turned, sheared and scaled a little, with its colours changed a little; white outside."""
    n = len(pictures)

    def uniform(most):
        return (torch.rand(n, device=pictures.device) * 2 - 1) * most * strength

    angle, zoom, shear = uniform(0.3), 1 + uniform(0.25), uniform(0.2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack([cos * zoom, -sin * zoom + shear, uniform(0.15)], 1), torch.stack([sin * zoom, cos * zoom, uniform(0.15)], 1)]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    shown = 1 - torch.nn.functional.grid_sample(1 - pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    gain = 1 + (torch.rand(n, 3, 1, 1, device=pictures.device) * 2 - 1) * 0.2 * strength
    return (1 - (1 - shown) * gain).clamp(-1, 1)


def batches(n, size, seed):
    """The indices of one epoch in a random order, in batches; what is left over waits for another epoch."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return [order[at : at + size] for at in range(0, n - size + 1, size)]


class Average:
    """The running average of a model's weights."""

    def __init__(self, model, decay):
        self.decay, self.steps = decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)


class Training:
    """One training: AdamW, a learning rate that rises for 200 steps and falls to zero over the last share of the epochs, a running average
    of the weights, and a checkpoint after every epoch from which the same command goes on."""

    def __init__(self, model, checkpoint, epochs, steps, rate, decay=0.999, falling=0.3, weight_decay=0.01):
        self.model, self.checkpoint, self.epochs, self.falling, self.rate = model.to(DEVICE), Path(checkpoint), epochs, falling, rate
        self.steps, self.epoch, self.step = steps, 0, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay)
        self.average = Average(model, decay)
        if self.checkpoint.is_file():
            kept = torch.load(self.checkpoint, map_location=DEVICE, weights_only=True)
            model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.average.weights, self.average.steps = kept["average"], kept["step"]
            self.epoch, self.step = kept["epoch"], kept["step"]

    def run(self, epoch_of_losses):
        """Trains; `epoch_of_losses(epoch)` yields the loss of each batch, and each is one step."""
        while self.epoch < self.epochs:
            start, total, count = time.monotonic(), 0.0, 0
            random.seed(self.epoch)
            torch.manual_seed(self.epoch)
            self.model.train()
            for loss in epoch_of_losses(self.epoch):
                done = self.step / (self.epochs * self.steps)
                factor = min(1.0, (self.step + 1) / 200, (1 - done) / self.falling)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * max(factor, 0.0)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.average.update(self.model)
                self.step += 1
                total, count = total + loss.item(), count + 1
            self.epoch += 1
            self.keep()
            print(f"epoch {self.epoch} of {self.epochs}: loss {total / max(count, 1):.4f}, {time.monotonic() - start:.0f} s", flush=True)
        self.model.load_state_dict(self.average.weights)
        return self.model.eval()

    def keep(self):
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        written = self.checkpoint.with_suffix(".part")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average.weights}
        torch.save(state | {"epoch": self.epoch, "step": self.step}, written)
        written.replace(self.checkpoint)


def half():
    """bfloat16 where the processor multiplies it; elsewhere float32."""
    fast = DEVICE.type == "cuda" or any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast)
