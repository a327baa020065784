"""SLUG's procedure for one concept as its authors run it, in PyTorch on transformers' CLIP.

For each concept: the forget gradient over its pairs; every layer ranked by it and by the stored retain gradient; for each layer on
either tower's Pareto front ten steps, and at each step the whole model evaluated: all class texts, the forget images, the validation
images. What a user would run instead of Lethe, and kinder to itself than the authors' scripts: images are decoded and texts
tokenised once, and texts are padded to the longest of a batch.

`shortcut=True` gives the same edits without paying for them: a tower that an edit does not reach keeps its embeddings, and utility
is computed where it is asked for only. For checking, not for timing.
"""

import csv
import json
import math
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from check_release import Peer, features, ranks, read_shard, unit
from safetensors.torch import load_file

# Layers are weights; biases, the factor on cosines, embeddings and norms are none (method.md).
LEFT_OUT = ("bias", "logit_scale", "embedding", "norm")
EVALUATIONS = 10
BATCH = 128


def tower_of(layer):
    return "vision" if layer.startswith("vis") else "text"


@dataclass
class Layer:
    """A layer with its scores and, where it is on a front, what was tried."""

    name: str
    importance: float
    alignment: float
    unit: float
    front: bool = False
    step: float | None = None
    fa1: float = 1.0
    fa5: float = 1.0
    utility: float = 0.0


@dataclass
class Clock:
    """Wall and processor seconds by stage."""

    wall: dict = field(default_factory=dict)
    cpu: dict = field(default_factory=dict)

    def time(self, stage, act):
        wall, cpu = time.perf_counter(), time.process_time()
        result = act()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - wall
        self.cpu[stage] = self.cpu.get(stage, 0.0) + time.process_time() - cpu
        return result


class Job:
    """A manifest's model and data, decoded and tokenised; the retain gradient by layer, or the file it is in."""

    def __init__(self, manifest, retain_gradient, device="cpu"):
        folder = Path(manifest).parent
        settings = tomllib.loads(Path(manifest).read_text())
        data = settings["data"]
        peer = Peer(folder / settings["model"]["uri"])
        self.peer, self.model, self.device = peer, peer.model.to(device), device
        self.parameters = dict(self.model.named_parameters())
        self.retain = retain_gradient if isinstance(retain_gradient, dict) else load_file(retain_gradient, device)
        names = (folder / data["classes"]).read_text().splitlines()
        prompt = data.get("template", "{}")
        self.index = {name: i for i, name in enumerate(names)}
        self.class_texts = self.tokens([prompt.replace("{}", name) for name in names])
        images, captions = read_shard(folder / data["validation"][0])
        self.validation = self.pixels(images)
        self.labels = torch.tensor([self.index[caption] for caption in captions], device=device)
        with open(folder / settings["concepts"]["table"], newline="") as table:
            rows = list(csv.DictReader(table))
        self.concepts = {row["id"]: (self.index[row["class"]], folder / row["forget"]) for row in rows}

    def pixels(self, images):
        return self.peer.pixels(images).to(self.device)

    def tokens(self, texts):
        length = self.model.config.text_config.max_position_embeddings
        settings = dict(padding=True, truncation=True, max_length=length, return_token_type_ids=False, return_tensors="pt")
        return [self.peer.tokenizer(texts[i : i + BATCH], **settings).to(self.device) for i in range(0, len(texts), BATCH)]

    def embed_texts(self, batches):
        return unit(torch.cat([features(self.model.get_text_features(**batch)) for batch in batches]))

    def embed_images(self, pixels):
        return unit(torch.cat([features(self.model.get_image_features(part)) for part in pixels.split(BATCH)]))

    def forget_gradient(self, pixels, captions):
        """Gradient of mean 1 − cos over the pairs, of every parameter, as the authors' backward pass has it."""
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.parameters.items()}
        for part, texts in zip(pixels.split(BATCH), self.tokens(captions)):
            self.model.zero_grad(set_to_none=True)
            cosines = (self.embed_images(part) * self.embed_texts([texts])).sum(-1)
            (1 - cosines).mean().backward()
            for name, p in self.parameters.items():
                if p.grad is not None:
                    total[name] += p.grad.double() * len(part)
        self.model.zero_grad(set_to_none=True)
        return {name: (sum / len(pixels)).float() for name, sum in total.items()}

    def rank(self, gradient):
        layers = []
        for name, p in self.parameters.items():
            if p.dim() < 2 or any(part in name for part in LEFT_OUT):
                continue
            weight, forget, retain = (t.detach().double().flatten() for t in (p, gradient[name], self.retain[name]))
            length = forget.norm().item()
            cosine = (forget @ retain).item() / max(length * retain.norm().item(), 1e-300)
            layers.append(Layer(name, length / weight.norm().item(), abs(cosine), weight.norm().item() / max(length, 1e-300)))
        for layer in layers:
            others = [o for o in layers if tower_of(o.name) == tower_of(layer.name)]
            layer.front = not any(o.alignment < layer.alignment and o.importance > layer.importance for o in others)
        return layers


class Search:
    """The search of one concept's step on one layer after another."""

    def __init__(self, job, concept, shortcut=False):
        self.job, self.shortcut = job, shortcut
        self.label, forget = job.concepts[concept]
        images, self.captions = read_shard(forget)
        self.pixels = job.pixels(images)
        self.own = torch.full((len(images),), self.label, device=job.device)
        self.kept = job.labels != self.label
        if shortcut:
            with torch.no_grad():
                self.classes = job.embed_texts(job.class_texts)
                self.forget, self.validation = job.embed_images(self.pixels), job.embed_images(job.validation)

    def evaluate(self, tower, utility=True):
        """FA@1, FA@5 and, on all other classes, TA@1 of the model as it is now."""
        job, keep = self.job, self.shortcut
        classes = self.classes if keep and tower == "vision" else job.embed_texts(job.class_texts)
        forget = self.forget if keep and tower == "text" else job.embed_images(self.pixels)
        found = ranks(forget, classes, self.own)
        fa1, fa5 = ((found < k).double().mean().item() for k in (1, 5))
        if keep and not utility:
            return fa1, fa5, None
        validation = self.validation if keep and tower == "text" else job.embed_images(job.validation)
        found = ranks(validation, classes, job.labels)
        return fa1, fa5, (found < 1)[self.kept].double().mean().item()

    @torch.no_grad()
    def layer(self, layer, gradient, evaluations=EVALUATIONS):
        """So many evaluations; the smallest step that forgets by FA@5 is the layer's answer."""
        parameter, tower = self.job.parameters[layer.name], tower_of(layer.name)
        original = parameter.detach().clone()
        edited = lambda step: parameter.copy_((original.double() + step * gradient.double()).float())
        low, high, step = 0.0, math.inf, layer.unit / 10
        for _ in range(evaluations):
            edited(step)
            fa1, fa5, utility = self.evaluate(tower, utility=False)
            if fa5 == 0.0:
                high, layer.step = step, step
                layer.fa1, layer.fa5, layer.utility = fa1, fa5, utility
            else:
                low = step
            step = 2 * step if high == math.inf else (low + high) / 2
        if self.shortcut and layer.step is not None:
            edited(layer.step)
            layer.utility = self.evaluate(tower)[2]
        parameter.copy_(original)


def choose(layers):
    """Lowest forget accuracy, then highest utility, then smallest relative change, then first by name."""
    answers = [layer for layer in layers if layer.step is not None]
    return min(answers, key=lambda a: (a.fa5, a.fa1, -a.utility, a.step / a.unit, a.name), default=None)


def run(job, concept, shortcut=False):
    """One concept from its shard to its edit; also the seconds it took, and how many layers were on the fronts."""
    clock = Clock()
    search = clock.time("data", lambda: Search(job, concept, shortcut))
    gradient = clock.time("gradient", lambda: job.forget_gradient(search.pixels, search.captions))
    front = [layer for layer in clock.time("ranking", lambda: job.rank(gradient)) if layer.front]
    for layer in front:
        clock.time("search", lambda: search.layer(layer, gradient[layer.name]))
    return choose(front), clock, len(front)


def price(job, concept, evaluations):
    """What one concept costs, from so many evaluations: each is of the whole model, and costs the same whatever the layer and step."""
    clock = Clock()
    search = clock.time("data", lambda: Search(job, concept))
    gradient = clock.time("gradient", lambda: job.forget_gradient(search.pixels, search.captions))
    front = [layer for layer in clock.time("ranking", lambda: job.rank(gradient)) if layer.front]
    clock.time("search", lambda: search.layer(front[0], gradient[front[0].name], evaluations))
    for seconds in (clock.wall, clock.cpu):
        seconds["search"] *= EVALUATIONS * len(front) / evaluations
    return clock, len(front)


def retain_gradient(store):
    """The file of the retain gradient in a store that a run has filled."""
    for path in Path(store).glob("outcomes/*/*.json"):
        outcome = json.loads(path.read_text())
        if outcome["kind"] == "retain-reduce":
            digest = outcome["output"]["gradient"]["digest"]
            return Path(store) / "artifacts" / digest[:2] / digest
    raise SystemExit(f"{store} holds no retain gradient")
