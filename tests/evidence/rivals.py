#!/usr/bin/env python3
"""Removes the demo's hundred concepts by other methods of unlearning, and measures every result as Lethe measures its own releases.

usage: rivals.py LETHE STORE [--only WORDS] [--relearn]

Each method edits the demo's CLIP in PyTorch as its authors describe it, with the settings that score best of those listed: half of what is
forgotten (1 - FA@5 on the forget images) plus half of what is kept (TA@1 on validation drawings of covered classes, at most that of the base).
Nothing is chosen on test drawings or on classes that no retained data names. `lethe evaluate --model` then measures the model.

Columns: FA@1/FA@5 on the forget images; the share of TA@1/TA@5 that is kept on test drawings of removed (less is better), covered and never
seen classes; how often the removed name is the best of itself and 1 or 19 retained names; R@1 of searching test drawings by removed names; the mean cosine of 2,000 random texts' embeddings with those of the base (words that the
model knows, in an order that names no class, and that no method was given);
processor seconds with the chosen settings, without the search for them; the largest memory of the process. With --relearn also TA@1/TA@5 on
test drawings of the removed classes after fine-tuning for fifty steps on one pair of each concept.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import resource
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
RATES, STEPS = (1e-5, 3e-5, 1e-4), (10, 40)
SSD = {"alpha": (1.0, 3.0, 10.0, 30.0), "lambda": (0.1, 1.0)}
SALUN = {"share": 0.5}
NEGATION = {"rate": 1e-4, "steps": 50, "factors": (0.25, 0.5, 1.0, 2.0)}
CCUP = {"strengths": (0.1, 0.25, 0.5, 1.0), "retain": (0.1, 1.0, 10.0)}
EMCID = {"retain": (0.1, 1.0, 10.0, 100.0)}
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
    """The demo's model and data."""

    def __init__(self):
        self.processor, self.tokenizer = CLIPImageProcessor.from_pretrained(JOB / "model"), AutoTokenizer.from_pretrained(JOB / "model")
        self.base = CLIPModel.from_pretrained(JOB / "model").float().eval()
        self.classes = [name for name in (JOB / "classes.txt").read_text().splitlines() if name]
        self.place = {name: i for i, name in enumerate(self.classes)}
        self.concepts = runs.rows_of(MANIFEST)
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
        """One pair of each of some concepts: the images, their captions, and their places in the forget data."""
        chosen = self.random.sample(range(len(self.concepts)), BATCH)
        places = [self.random.choice((self.owner == concept).nonzero()[:, 0].tolist()) for concept in chosen]
        return self.forget[places], [self.captions[i] for i in places], places

    def retain_batch(self):
        places = self.random.sample(range(len(self.retain)), BATCH)
        return self.retain[places], [self.retain_captions[i] for i in places]

    def contrastive(self, model, pixels, captions):
        """CLIP's loss in both directions."""
        scores = model.logit_scale.exp() * self.images(model, pixels) @ self.texts(model, captions).T
        own = torch.arange(len(scores))
        return (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def trained(demo, loss, rates=RATES, steps=STEPS, masks=None):
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


def gradient_ascent(demo):
    return trained(demo, lambda model: -demo.contrastive(model, *demo.forget_batch()[:2]))


def fine_tuning(demo):
    return trained(demo, lambda model: demo.contrastive(model, *demo.retain_batch()))


def both(demo):
    return trained(demo, lambda model: demo.contrastive(model, *demo.retain_batch()) - demo.contrastive(model, *demo.forget_batch()[:2]))


def squares(demo, data, batches):
    """Sums of squared gradients of the contrastive loss over batches, by parameter."""
    model = demo.copy()
    found = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for _ in range(batches):
        model.zero_grad()
        demo.contrastive(model, *data()[:2]).backward()
        for name, weight in model.named_parameters():
            found[name] += weight.grad.square()
    return found


def salun(demo):
    """Random captions for forget images, on the weights with the largest gradients alone."""
    began = time.process_time()
    saliency = squares(demo, demo.forget_batch, 10)
    cut = torch.cat([value.flatten() for value in saliency.values()]).kthvalue(int((1 - SALUN["share"]) * sum(value.numel() for value in saliency.values()))).values
    masks = {name: (value > cut).float() for name, value in saliency.items()}
    spent = time.process_time() - began

    def loss(model):
        pixels, _, _ = demo.forget_batch()
        return demo.contrastive(model, pixels, demo.random.sample(demo.retain_captions, BATCH)) + demo.contrastive(model, *demo.retain_batch())

    for settings, seconds, model in trained(demo, loss, masks=masks):
        yield settings, spent + seconds, model


def ssd(demo):
    """Dampens the weights whose squared gradients on forget data are larger than those on retained data."""
    began = time.process_time()
    forget, retain = squares(demo, demo.forget_batch, 20), squares(demo, demo.retain_batch, 20)
    spent = time.process_time() - began
    for alpha in SSD["alpha"]:
        for strength in SSD["lambda"]:
            model = demo.copy()
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    chosen = forget[name] > alpha * retain[name]
                    factor = (strength * retain[name] / forget[name].clamp(min=1e-30)).clamp(max=1)
                    weight[chosen] *= factor[chosen]
            yield f"α {alpha:g}, λ {strength:g}", spent, model


def negation(demo):
    """Subtracts what fine-tuning on the forget pairs adds."""
    settings, seconds, tuned = next(trained(demo, lambda model: demo.contrastive(model, *demo.forget_batch()[:2]), (NEGATION["rate"],), (NEGATION["steps"],)))
    for factor in NEGATION["factors"]:
        model = demo.copy()
        with torch.no_grad():
            for weight, base, other in zip(model.parameters(), demo.base.parameters(), tuned.parameters()):
                weight.copy_(base - factor * (other - base))
        yield f"{settings}, factor {factor:g}", seconds, model


@torch.no_grad()
def ccup(demo):
    """A projection of image embeddings: onto the complement of the removed texts, in part; or the one that takes removed texts to zero and
    keeps those of covered classes in the sense of least squares."""
    began = time.process_time()
    removed, covered = demo.texts(demo.base, demo.removed).double(), demo.texts(demo.base, demo.covered).double()
    identity = torch.eye(removed.shape[1], dtype=torch.double)
    basis = torch.linalg.qr(removed.T).Q
    projections = {f"null space, strength {strength:g}": identity - strength * basis @ basis.T for strength in CCUP["strengths"]}
    gram, keep = removed.T @ removed / len(removed), covered.T @ covered / len(covered)
    for weight in CCUP["retain"]:
        projections[f"least squares, retained {weight:g}"] = torch.linalg.solve(gram + weight * keep + 1e-6 * identity, weight * keep).T
    spent = time.process_time() - began
    for settings, projection in projections.items():
        model = demo.copy()
        model.visual_projection.weight.copy_(projection.float() @ model.visual_projection.weight)
        yield settings, spent, model


@torch.no_grad()
def emcid(demo):
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
    began = time.process_time()
    known = {layer: statistics(layer) for layer in range(depth)}
    each = (time.process_time() - began) / depth
    for layers in ([depth - 1], list(range(depth))):
        for weight in EMCID["retain"]:
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


RIVALS = {
    "gradient ascent": gradient_ascent,
    "fine-tuning on retained pairs": fine_tuning,
    "both at once": both,
    "SalUn": salun,
    "SSD": ssd,
    "task negation": negation,
    "CCUP": ccup,
    "EMCID": emcid,
}


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rival(name, folder):
    """Writes the best of a rival's models to a folder, with what was tried."""
    demo = Demo()
    best, tried = None, []
    for settings, seconds, model in RIVALS[name](demo):
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


def relearned(model_folder, folder):
    """Fine-tunes a model on one pair of each concept, and writes it to a folder."""
    demo = Demo()
    demo.base = CLIPModel.from_pretrained(model_folder).float().eval()
    first = [(demo.owner == concept).nonzero()[0, 0].item() for concept in range(len(demo.concepts))]
    pairs = lambda: demo.random.sample(first, BATCH)

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
    def __init__(self, lethe, work, relearn):
        self.lethe, self.store, self.relearn = lethe, str(work / "store"), relearn
        self.work = work
        words = sorted({word for text in (JOB / "retain-texts.txt").read_text().split("\n") for word in text.split()})
        self.texts = random_texts([name for name in (JOB / "classes.txt").read_text().splitlines() if name], words)
        self.base = embedded(JOB / "model", self.texts)

    def call(self, *arguments):
        return runs.call(self.lethe, self.store, *arguments)

    def measured(self, folder):
        return self.call("evaluate", "--model", str(folder), str(MANIFEST))[0]

    def show(self, name, folder, seconds, peak):
        found = self.measured(folder)
        concepts = [one["after"] for one in found["concepts"].values()]
        mean = lambda key: 100 * sum(concept[key] for concept in concepts) / len(concepts)
        cells = [f"{mean('fa1'):.1f}/{mean('fa5'):.1f}"]
        for group in ("removed", "covered", "never_seen"):
            one = found["utility"]["test"][group]
            cells.append("/".join(f"{100 * one['after'][k] / one['before'][k]:.0f}" for k in ("ta1", "ta5")))
        few = {one["others"]: one["after"] for one in found["recognition"]["candidates"]}
        search = next(one for one in found["recognition"]["searches"] if one["set"] == "test")
        cells += [f"{100 * few[1]:.0f}", f"{100 * few[19]:.0f}", f"{100 * search['after']['r1']:.0f}"]
        cells.append(f"{(embedded(folder, self.texts) * self.base).sum(-1).mean().item():.2f}")
        cells += [f"{seconds:.0f}" if seconds else "", f"{peak:.0f}" if peak else ""]
        if self.relearn:
            again = self.work / "relearned"
            apart(relearned, folder, again)
            removed = self.measured(again)["utility"]["test"]["removed"]["after"]
            cells.append("/".join(f"{100 * removed[k]:.0f}" for k in ("ta1", "ta5")))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    def run(self, method, more=""):
        """A run of Lethe with this method: its release, processor seconds, and the largest memory of its process."""
        manifest = runs.manifest_of(MANIFEST, runs.rows_of(MANIFEST), self.work, method, method, composition=more)
        said, seconds, peak = self.call("run", str(manifest))
        return said["release"], seconds, peak

    def at(self, release, strength):
        ids = [row["id"] for row in runs.rows_of(MANIFEST)]
        return self.call("compose", release, *[word for one in ids for word in ("--strength", f"{one}={strength}")])[0]["release"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lethe")
    parser.add_argument("work", type=Path, help="folder for the store and the models")
    parser.add_argument("--only", nargs="+", action="extend", help="rows whose names begin like this")
    parser.add_argument("--relearn", action="store_true", help="also fine-tune each model on one pair of each concept")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.lethe, options.work, options.relearn)
    wanted = lambda name: not options.only or any(name.startswith(word) for word in options.only)
    columns = ["method", "FA@1/5", "removed", "covered", "never seen", "against 1", "against 19", "search R@1", "texts", "s", "MB"] + ["relearned"] * options.relearn
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    if wanted("base"):
        bench.show("base", JOB / "model", None, None)
    for name, method, more in (
        ("Lethe, `least-squares` (default)", "least-squares", 'tokens = "read"'),
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
    for name in RIVALS:
        if wanted(name):
            folder = options.work / name.replace(" ", "-")
            apart(rival, name, folder)
            tried = json.loads((folder / "tried.json").read_text())
            bench.show(f"{name} ({tried['chosen']})", folder, tried["seconds"], tried["memory"])
            print(f"\n{name}, FA@5 and covered kept by settings: {'; '.join(tried['tried'])}\n", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
