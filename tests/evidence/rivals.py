#!/usr/bin/env python3
"""Removes the demo's hundred concepts by other methods of unlearning, and measures every result as Lethe measures its own releases.

usage: rivals.py LETHE WORK [--only WORDS] [--relearn] [--curve FILE --concepts N… --seed SEED…] [--model FOLDER]

Each method edits the demo's CLIP in PyTorch as its authors describe it, with the settings that score best of those listed: half of what is
forgotten (1 - FA@5 on the forget images) plus half of what is kept (TA@1 on validation drawings of covered classes, at most that of the base).
Nothing is chosen on test drawings or on classes that no retained data names. `lethe evaluate --model` then measures the model.

Columns: FA@1/FA@5 on the forget images; the share of TA@1/TA@5 that is kept on test drawings of removed (less is better), covered and never
seen classes; how often the removed name is the best of itself and 1 or 19 retained names; R@1 of searching test drawings by removed names;
the mean cosine of 2,000 random texts' embeddings with those of the base (words that the model knows, in an order that names no class, and
that no method was given); processor seconds with the chosen settings, without the search for them; the largest memory of the process. With
--relearn also TA@1/TA@5 on test drawings of the removed classes after fine-tuning for fifty steps on one pair of each concept.

With --curve, the methods of CURVE remove N of the demo's 300 removable concepts: the first N of an order that the seed draws. Their settings
are those that were best for the hundred. Each row is appended to the file as soon as it is measured, and rows that the file has are skipped.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/bench"), str(ROOT / "tests/ecosystem")]
import runs
from check_release import read_shard

JOB = ROOT / "jobs/emoji"
MANIFEST = JOB / "remove-100.toml"
BATCH, SEED = 64, 1
TRAINING = {"rates": (1e-5, 3e-5, 1e-4), "steps": (10, 40)}
SALIENT = 0.5  # SalUn's share of the weights
NEGATION = {"rate": 1e-4, "steps": 50}
SUM = (0.1, 0.2, 0.3, 1.0)
RELEARN = {"rate": 1e-4, "steps": 50}


def split():
    """The class names by role, of `split.csv`."""
    roles = {}
    with open(JOB / "split.csv", newline="") as file:
        for row in csv.DictReader(file):
            roles.setdefault(row["role"], []).append(row["class"])
    return roles


class Demo:
    """The demo's model and data, with the concepts that a manifest removes."""

    def __init__(self, manifest, model):
        self.processor, self.tokenizer = CLIPImageProcessor.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        self.base = CLIPModel.from_pretrained(model).float().eval()
        self.classes = [name for name in (JOB / "classes.txt").read_text().splitlines() if name]
        self.place = {name: i for i, name in enumerate(self.classes)}
        self.concepts = runs.rows_of(manifest)
        self.removed = [row["class"] for row in self.concepts]
        self.covered = split()["covered"]
        shards = [read_shard(JOB / row["forget"]) for row in self.concepts]
        self.forget = self.pixels([picture for pictures, _ in shards for picture in pictures])
        self.captions = [caption for _, captions in shards for caption in captions]
        self.owner = torch.tensor([i for i, (pictures, _) in enumerate(shards) for _ in pictures])
        pictures, self.retain_captions = [], []
        for shard in sorted(JOB.glob("retain-*.tar")):
            images, captions = read_shard(shard)
            pictures += images
            self.retain_captions += captions
        self.retain = self.pixels(pictures)
        self.retain_texts = (JOB / "retain-texts.txt").read_text().splitlines()
        covered = set(self.covered)
        known = [(picture, caption) for picture, caption in zip(*read_shard(JOB / "validation.tar")) if caption in covered]
        known = random.Random(SEED).sample(known, 256)
        self.held, self.held_class = self.pixels([picture for picture, _ in known]), torch.tensor([self.place[name] for _, name in known])
        self.random = random.Random(SEED)
        torch.manual_seed(SEED)
        self.before = self.hits(self.base)

    def pixels(self, pictures):
        return torch.cat([self.processor(pictures[i : i + 256], return_tensors="pt")["pixel_values"] for i in range(0, len(pictures), 256)])

    def copy(self):
        model = CLIPModel(self.base.config)
        model.load_state_dict(self.base.state_dict())
        return model.float().eval()

    def tokens(self, texts):
        return self.tokenizer(list(texts), padding=True, return_tensors="pt").input_ids

    def texts(self, model, texts):
        return unit(model.text_projection(model.text_model(self.tokens(texts)).pooler_output))

    def images(self, model, pixels):
        return unit(model.visual_projection(model.vision_model(pixels).pooler_output))

    @torch.no_grad()
    def hits(self, model):
        """FA@5 on the forget images, averaged over concepts, and TA@1 on validation drawings of covered classes."""
        texts = torch.cat([self.texts(model, self.classes[i : i + 256]) for i in range(0, len(self.classes), 256)])
        found = lambda pixels: torch.cat([(self.images(model, part) @ texts.T).topk(5).indices for part in pixels.split(128)])
        own = torch.tensor([self.place[name] for name in self.removed])[self.owner]
        forget = (found(self.forget) == own[:, None]).any(1).double()
        mean = torch.zeros(len(self.removed), dtype=torch.double).index_add_(0, self.owner, forget) / torch.bincount(self.owner)
        kept = (found(self.held)[:, 0] == self.held_class).double().mean()
        return mean.mean().item(), kept.item()

    def score(self, model):
        """What settings are chosen by, and its two parts."""
        found, kept = self.hits(model)
        kept = min(kept / self.before[1], 1.0)
        return (1 - found + kept) / 2, found, kept

    def forget_batch(self):
        """One pair of each of some concepts, at most BATCH."""
        chosen = self.random.sample(range(len(self.concepts)), min(BATCH, len(self.concepts)))
        places = [self.random.choice((self.owner == concept).nonzero()[:, 0].tolist()) for concept in chosen]
        return self.forget[places], [self.captions[i] for i in places]

    def retain_batch(self, count=BATCH):
        places = self.random.sample(range(len(self.retain)), count)
        return self.retain[places], [self.retain_captions[i] for i in places]

    def contrastive(self, model, pixels, captions):
        """CLIP's loss in both directions. Where there are fewer than BATCH pairs, retained ones are their negatives."""
        count = len(captions)
        if count < BATCH:
            others, names = self.retain_batch(BATCH - count)
            pixels, captions = torch.cat([pixels, others]), captions + names
        scores, own = model.logit_scale.exp() * self.images(model, pixels) @ self.texts(model, captions).T, torch.arange(count)
        return (torch.nn.functional.cross_entropy(scores[:count], own) + torch.nn.functional.cross_entropy(scores.T[:count], own)) / 2


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def trained(demo, loss, rates, steps, masks=None):
    """Yields the model, with the settings and the processor seconds so far, along trainings at several rates."""
    for rate in rates:
        model, seconds = demo.copy(), 0.0
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for step in range(1, max(steps) + 1):
            began = time.process_time()
            optimizer.zero_grad()
            loss(model).backward()
            if masks is not None:
                for name, weight in model.named_parameters():
                    weight.grad *= masks[name]
            optimizer.step()
            seconds += time.process_time() - began
            if step in steps:
                yield f"rate {rate:g}, {step} steps", seconds, model


def gradient_ascent(demo, rates, steps):
    return trained(demo, lambda model: -demo.contrastive(model, *demo.forget_batch()), rates, steps)


def fine_tuning(demo, rates, steps):
    return trained(demo, lambda model: demo.contrastive(model, *demo.retain_batch()), rates, steps)


def both(demo, rates, steps, weights):
    for weight in weights:
        loss = lambda model: demo.contrastive(model, *demo.retain_batch()) - weight * demo.contrastive(model, *demo.forget_batch())
        for settings, seconds, model in trained(demo, loss, rates, steps):
            yield f"ascent weighted {weight:g}, {settings}", seconds, model


def squares(demo, data, batches):
    """Sums of squared gradients of the contrastive loss over batches, by parameter."""
    model = demo.copy()
    found = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for _ in range(batches):
        model.zero_grad()
        demo.contrastive(model, *data()).backward()
        for name, weight in model.named_parameters():
            found[name] += weight.grad.square()
    return found


def salun(demo, rates, steps):
    """Random captions for forget images, on the weights with the largest gradients alone."""
    began = time.process_time()
    saliency = squares(demo, demo.forget_batch, 10)
    cut = torch.cat([value.flatten() for value in saliency.values()]).kthvalue(int((1 - SALIENT) * sum(value.numel() for value in saliency.values()))).values
    masks = {name: (value > cut).float() for name, value in saliency.items()}
    spent = time.process_time() - began

    def loss(model):
        pixels, _ = demo.forget_batch()
        return demo.contrastive(model, pixels, demo.random.sample(demo.retain_captions, len(pixels))) + demo.contrastive(model, *demo.retain_batch())

    for settings, seconds, model in trained(demo, loss, rates, steps, masks):
        yield settings, spent + seconds, model


def ssd(demo, alphas, strengths):
    """Dampens the weights whose squared gradients on forget data are larger than those on retained data."""
    began = time.process_time()
    forget, retain = squares(demo, demo.forget_batch, 20), squares(demo, demo.retain_batch, 20)
    spent = time.process_time() - began
    for alpha in alphas:
        for strength in strengths:
            model = demo.copy()
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    chosen = forget[name] > alpha * retain[name]
                    factor = (strength * retain[name] / forget[name].clamp(min=1e-30)).clamp(max=1)
                    weight[chosen] *= factor[chosen]
            yield f"α {alpha:g}, λ {strength:g}", spent, model


def negation(demo, factors):
    """Subtracts what fine-tuning on the forget pairs adds."""
    settings, seconds, tuned = next(trained(demo, lambda model: demo.contrastive(model, *demo.forget_batch()), (NEGATION["rate"],), (NEGATION["steps"],)))
    for factor in factors:
        model = demo.copy()
        with torch.no_grad():
            for weight, base, other in zip(model.parameters(), demo.base.parameters(), tuned.parameters()):
                weight.copy_(base - factor * (other - base))
        yield f"{settings}, factor {factor:g}", seconds, model


@torch.no_grad()
def ccup(demo, strengths, weights):
    """A projection of image embeddings: onto the complement of the removed texts, in part; or the one that takes removed texts to zero and
    keeps those of covered classes in the sense of least squares."""
    began = time.process_time()
    removed, covered = demo.texts(demo.base, demo.removed).double(), demo.texts(demo.base, demo.covered).double()
    identity = torch.eye(removed.shape[1], dtype=torch.double)
    basis = torch.linalg.qr(removed.T).Q
    projections = {f"null space, strength {strength:g}": identity - strength * basis @ basis.T for strength in strengths}
    gram, keep = removed.T @ removed / len(removed), covered.T @ covered / len(covered)
    for weight in weights:
        projections[f"least squares, retained {weight:g}"] = torch.linalg.solve(gram + weight * keep + 1e-6 * identity, weight * keep).T
    spent = time.process_time() - began
    for settings, projection in projections.items():
        model = demo.copy()
        model.visual_projection.weight.copy_(projection.float() @ model.visual_projection.weight)
        yield settings, spent, model


@torch.no_grad()
def emcid(demo, depths, weights):
    """The closed form of EMCID and MEMIT: the state of the last token of a removed text becomes that of the mean retained text, by edits of the
    text tower's MLPs, each of which takes an equal share of the remaining change; every token of retained texts holds them back."""
    sources = sorted({(concept, caption) for concept, caption in zip(demo.owner.tolist(), demo.captions)} | set(enumerate(demo.removed)))
    sources = [text for _, text in sources]
    end = demo.tokenizer.eos_token_id

    def read(model, texts, layer, act):
        """Calls `act` with the inputs of a layer's fc2 `[texts, tokens, inputs]`, the places of the last tokens, and the last states before the
        final norm, batch by batch."""
        kept = {}
        hook = model.text_model.encoder.layers[layer].mlp.fc2.register_forward_pre_hook(lambda _, inputs: kept.update(keys=inputs[0]))
        for start in range(0, len(texts), 512):
            ids = demo.tokens(texts[start : start + 512])
            at = (ids == end).int().argmax(1)
            hidden = model.text_model(ids, output_hidden_states=True).hidden_states[-1]
            act(kept["keys"], at, hidden[torch.arange(len(ids)), at])
        hook.remove()

    def statistics(layer):
        """The second moment of a layer's inputs at every token of retained texts, and the mean of their last states, by the base model."""
        total = {"moment": 0, "tokens": 0, "state": 0}

        def act(keys, at, states):
            every = keys[torch.arange(keys.shape[1])[None] <= at[:, None]]
            total["moment"] = total["moment"] + every.T @ every
            total["tokens"] += len(every)
            total["state"] = total["state"] + states.sum(0)

        read(demo.base, demo.retain_texts, layer, act)
        return (total["moment"] / total["tokens"]).double(), (total["state"] / len(demo.retain_texts)).double()

    def last(model, layer):
        """A layer's inputs at the last token of the removed texts, and the last states."""
        keys, states = [], []
        read(model, sources, layer, lambda inputs, at, now: (keys.append(inputs[torch.arange(len(at)), at]), states.append(now)))
        return torch.cat(keys).double(), torch.cat(states).double()

    depth = demo.base.config.text_config.num_hidden_layers
    # They depend on the model alone; so do their seconds, which count in every row.
    if not demo.statistics.exists():
        began = time.process_time()
        known = {layer: statistics(layer) for layer in range(depth)}
        torch.save((known, (time.process_time() - began) / depth), demo.statistics)
    known, each = torch.load(demo.statistics)
    for layers in (list(range(depth))[-count:] for count in depths):
        for weight in weights:
            began, model = time.process_time(), demo.copy()
            for index, layer in enumerate(layers):
                moment, state = known[layer]
                keys, now = last(model, layer)
                left = weight * moment + keys.T @ keys / len(keys)
                left += 1e-8 * left.diagonal().mean() * torch.eye(len(left), dtype=torch.double)
                wanted = (state - now) / (len(layers) - index)
                change = torch.linalg.solve(left, keys.T @ wanted / len(keys)).T
                model.text_model.encoder.layers[layer].mlp.fc2.weight += change.float()
            yield f"{'the last layer' if len(layers) == 1 else 'all layers'}, retained {weight:g}", each * len(layers) + time.process_time() - began, model


# Each method with the settings that are tried.
RIVALS = {
    "gradient ascent": (gradient_ascent, TRAINING),
    "fine-tuning on retained pairs": (fine_tuning, TRAINING),
    "both at once": (both, TRAINING | {"steps": (10, 40, 120), "weights": (0.1, 1.0)}),
    "SalUn": (salun, TRAINING | {"rates": (3e-5, 1e-4)}),
    "SSD": (ssd, {"alphas": (1.0, 3.0, 10.0, 30.0), "strengths": (0.1, 1.0)}),
    "task negation": (negation, {"factors": (0.25, 0.5, 1.0, 2.0)}),
    "CCUP": (ccup, {"strengths": (0.1, 0.25, 0.5, 1.0), "weights": (0.1, 1.0, 10.0)}),
    "EMCID": (emcid, {"depths": (1, 4), "weights": (0.1, 1.0, 10.0, 100.0)}),
}
# The rows of the curve, with the settings that were best for the demo's hundred, and EMCID's next best.
CURVE = {
    "EMCID": ("EMCID", {"depths": (4,), "weights": (0.1,)}),
    "retained 1: EMCID": ("EMCID", {"depths": (4,), "weights": (1.0,)}),
    "both at once": ("both at once", {"rates": (1e-5,), "steps": (40,), "weights": (1.0,)}),
    "SSD": ("SSD", {"alphas": (10.0,), "strengths": (0.1,)}),
}
LETHE, SUM_AT, SUM_STRENGTH = "Lethe, `least-squares` (default)", "SLUG's edits, `sum`", 1.0


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rival(name, grid, manifest, base, folder, statistics):
    """Writes the best of a rival's models to a folder, with what was tried."""
    demo = Demo(manifest, base)
    demo.statistics = statistics
    best, tried = None, []
    for settings, seconds, model in RIVALS[name][0](demo, **grid):
        score, found, kept = demo.score(model)
        tried.append(f"{settings}: {100 * found:.0f}, {100 * kept:.0f}")
        if best is None or score > best[0]:
            best = (score, settings, seconds)
            save(demo, model, folder)
    (folder / "tried.json").write_text(json.dumps({"chosen": best[1], "seconds": best[2], "memory": memory(), "tried": tried}))


def save(demo, model, folder):
    model.save_pretrained(folder)
    demo.processor.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)


def relearned(manifest, base, model_folder, folder):
    """Fine-tunes a model on one pair of each concept, and writes it to a folder."""
    demo = Demo(manifest, base)
    demo.base = CLIPModel.from_pretrained(model_folder).float().eval()
    first = [(demo.owner == concept).nonzero()[0, 0].item() for concept in range(len(demo.concepts))]
    pairs = lambda: demo.random.sample(first, min(BATCH, len(first)))

    def loss(model):
        places = pairs()
        return demo.contrastive(model, demo.forget[places], [demo.captions[i] for i in places])

    _, _, model = next(trained(demo, loss, (RELEARN["rate"],), (RELEARN["steps"],)))
    save(demo, model, folder)


def apart(function, *arguments):
    """Calls a function in a process of its own, whose memory is its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{arguments}: exit code {process.exitcode}")


def random_texts(classes, words, count=2000):
    """Sequences of two to four words of the retained texts, which hold the name of no class."""
    chooser, texts = random.Random(SEED + 1), []
    names = [f" {name} " for name in classes]
    while len(texts) < count:
        text = " ".join(chooser.sample(words, chooser.randint(2, 4)))
        if not any(name in f" {text} " for name in names):
            texts.append(text)
    return texts


@torch.no_grad()
def embedded(folder, texts):
    model, tokenizer = CLIPModel.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)
    parts = [tokenizer(texts[i : i + 256], padding=True, return_tensors="pt").input_ids for i in range(0, len(texts), 256)]
    return unit(torch.cat([model.text_projection(model.text_model(part).pooler_output) for part in parts]))


class Bench:
    """Measures removals of some concepts from one model."""

    def __init__(self, lethe, work, statistics, concepts, model, relearn=False):
        self.lethe, self.work, self.statistics = lethe, work, statistics
        self.concepts, self.model, self.relearn = concepts, model, relearn
        self.store, self.manifest = str(work / "store"), runs.manifest_of(MANIFEST, concepts, work, "concepts", model=model)
        words = sorted({word for text in (JOB / "retain-texts.txt").read_text().split("\n") for word in text.split()})
        self.texts = random_texts([name for name in (JOB / "classes.txt").read_text().splitlines() if name], words)
        self.base = embedded(model, self.texts)

    def call(self, *arguments):
        return runs.call(self.lethe, self.store, *arguments)

    def measured(self, folder):
        return self.call("evaluate", "--model", str(folder), str(self.manifest))[0]

    def row(self, folder, seconds, peak):
        """All measures of a model, in percent but for the last three."""
        found = self.measured(folder)
        concepts = [one["after"] for one in found["concepts"].values()]
        row = {key: 100 * sum(concept[key] for concept in concepts) / len(concepts) for key in ("fa1", "fa5")}
        for group in ("removed", "covered", "never_seen"):
            one = found["utility"]["test"][group]
            for k in ("ta1", "ta5"):
                row[f"{group}_{k}_kept"] = 100 * one["after"][k] / one["before"][k] if one["before"][k] else None
        row["removed_ta5"] = 100 * found["utility"]["test"]["removed"]["after"]["ta5"]
        few = {one["others"]: one["after"] for one in found["recognition"]["candidates"]}
        search = next(one for one in found["recognition"]["searches"] if one["set"] == "test")
        row |= {"against_1": 100 * few[1], "against_19": 100 * few[19], "search_r1": 100 * search["after"]["r1"]}
        row["texts"] = (embedded(folder, self.texts) * self.base).sum(-1).mean().item()
        return row | {"seconds": seconds, "megabytes": peak}

    def show(self, name, folder, seconds, peak):
        row = self.row(folder, seconds, peak)
        pair = lambda *keys: "/".join("–" if row[key] is None else f"{row[key]:.0f}" for key in keys)
        cells = [f"{row['fa1']:.1f}/{row['fa5']:.1f}"] + [pair(f"{group}_ta1_kept", f"{group}_ta5_kept") for group in ("removed", "covered", "never_seen")]
        cells += [f"{row[key]:.0f}" for key in ("against_1", "against_19", "search_r1")] + [f"{row['texts']:.2f}"]
        cells += [f"{seconds:.0f}" if seconds else "", f"{peak:.0f}" if peak else ""]
        if self.relearn:
            again = self.work / "relearned"
            apart(relearned, self.manifest, self.model, folder, again)
            removed = self.measured(again)["utility"]["test"]["removed"]["after"]
            cells.append("/".join(f"{100 * removed[k]:.0f}" for k in ("ta1", "ta5")))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    def run(self, method, more=""):
        """A run of Lethe with this method: its release, processor seconds, and the largest memory of its process."""
        manifest = runs.manifest_of(MANIFEST, self.concepts, self.work, method, method, model=self.model, composition=more)
        said, seconds, peak = self.call("run", str(manifest))
        return said["release"], seconds, peak

    def rival(self, name, grid):
        """The best of a rival's models: its folder, and what was tried."""
        folder = self.work / name.replace(" ", "-")
        apart(rival, name, grid, self.manifest, self.model, folder, self.statistics)
        return folder, json.loads((folder / "tried.json").read_text())

    def at(self, release, strength):
        strengths = [word for row in self.concepts for word in ("--strength", f"{row['id']}={strength}")]
        return self.call("compose", release, *strengths)[0]["release"]


def table(bench, wanted):
    """Prints the rows of all methods for the demo's hundred."""
    columns = ["method", "FA@1/5", "removed", "covered", "never seen", "against 1", "against 19", "search R@1", "texts", "s", "MB"]
    columns += ["relearned"] * bench.relearn
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    if wanted("base"):
        bench.show("base", bench.model, None, None)
    for name, method, more in (
        (LETHE, "least-squares", 'tokens = "read"'),
        ("Lethe, `preconditioned`", "preconditioned", ""),
        ("Lethe, `margins`, both towers", "margins", 'towers = "both"'),
        ("Lethe, every token: `least-squares`", "least-squares", 'tokens = "all"'),
    ):
        if wanted(name):
            bench.show(name, *bench.run(method, more))
    for method in ("mean", "ties", "dare", "sum"):
        name = f"SLUG's edits, `{method}`"
        if wanted(name):
            release, seconds, peak = bench.run(method)
            bench.show(name, release, seconds, peak)
            for strength in SUM[:-1] if method == "sum" else ():
                bench.show(f"{name}, strength {strength:g}", bench.at(release, strength), None, None)
    for name, (_, grid) in RIVALS.items():
        if wanted(name):
            folder, tried = bench.rival(name, grid)
            bench.show(f"{name} ({tried['chosen']})", folder, tried["seconds"], tried["memory"])
            print(f"\n{name}, FA@5 and covered kept by settings: {'; '.join(tried['tried'])}\n", flush=True)


def drawn(count, seed):
    """The first concepts of an order of the 300 removable ones that the seed draws."""
    with open(JOB / "concepts-300.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(seed).shuffle(rows)
    return sorted(rows[:count], key=lambda row: row["id"])


def curve(options, statistics, wanted):
    """Appends to a file the rows of the curve that it has not."""
    known, names = set(), ("base", LETHE, SUM_AT, *CURVE)
    if options.curve.exists():
        with open(options.curve, newline="") as file:
            known = {(row["concepts"], row["seed"], row["method"]) for row in csv.DictReader(file)}
    for seed in options.seed:
        for count in options.concepts:
            missing = [name for name in names if wanted(name) and (str(count), str(seed), name) not in known]
            if not missing:
                continue
            work = options.work / f"{count}-{seed}"
            work.mkdir(exist_ok=True)
            bench = Bench(options.lethe, work, statistics, drawn(count, seed), options.model)
            for name in missing:
                settings = ""
                if name == "base":
                    row = bench.row(bench.model, None, None)
                elif name == LETHE:
                    row = bench.row(*bench.run("least-squares", 'tokens = "read"'))
                elif name == SUM_AT:
                    release, seconds, peak = bench.run("sum")
                    row = bench.row(bench.at(release, SUM_STRENGTH), seconds, peak)
                else:
                    folder, tried = bench.rival(*CURVE[name])
                    settings, row = tried["chosen"], bench.row(folder, tried["seconds"], tried["memory"])
                row = {"concepts": count, "seed": seed, "method": name, "settings": settings} | row
                number = lambda value: "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
                first = not options.curve.exists()
                with open(options.curve, "a", newline="") as file:
                    out = csv.DictWriter(file, row.keys())
                    if first:
                        out.writeheader()
                    out.writerow({key: number(value) for key, value in row.items()})
                print({key: number(value) for key, value in row.items()}, flush=True)
            shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lethe")
    parser.add_argument("work", type=lambda path: Path(path).resolve(), help="folder for the store and the models")
    parser.add_argument("--only", nargs="+", action="extend", help="rows whose names begin like this")
    parser.add_argument("--relearn", action="store_true", help="also fine-tune each model on one pair of each concept")
    parser.add_argument("--model", type=lambda path: Path(path).resolve(), default=JOB / "model", help="the CLIP that concepts are removed from")
    parser.add_argument("--curve", type=Path, help="append rows of several numbers of concepts to this CSV file")
    parser.add_argument("--concepts", nargs="+", type=int, default=[1, 10, 50, 100, 200, 300], help="numbers of concepts of the curve")
    parser.add_argument("--seed", nargs="+", type=int, default=[1], help="draws of the curve")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = lambda name: not options.only or any(name.startswith(word) for word in options.only)
    statistics = options.work / f"{'-'.join(options.model.parts[1:])}.pt"
    if options.curve:
        curve(options, statistics, wanted)
    else:
        table(Bench(options.lethe, options.work, statistics, runs.rows_of(MANIFEST), options.model, options.relearn), wanted)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
