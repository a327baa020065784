#!/usr/bin/env python3
"""What the demo's diffusion pipeline still draws after removals, by Lethe and by what else is used on pipelines.

usage: drawings.py LETHE STORE [--each N] [--only WORDS] [--picture FILE]

Rows: Lethe's releases of 1, 10, 100 and 300 concepts, that of a hundred at strengths 0.5 and 1.5, edits added up as SLUG adds them (`sum`), Lethe's `preconditioned`, UCE
(arXiv 2308.14761: closed form on the keys and values of the cross-attention) and ESD-x (2303.07345: fine-tuning of the cross-attention).

Columns, in the terms of UnlearnCanvas (2402.11846): UA, the share of removed classes whose drawing the judge no longer finds the class in, and
IRA, the share of retained classes still drawn right, covered and never seen apart; each of the classes that the unedited pipeline draws
right. Right means in the judge's first five of all classes. UCE and ESD have settings that are chosen by (UA + IRA) / 2 on drawings from other
noise, of the removed classes and of covered classes that are not reported.
"""

import argparse
import csv
import random
import resource
import sys
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from transformers import CLIPTextModel

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "deploy/emoji-targets"), str(ROOT / "tests/bench")]
import judge as judges
import runs

JOB = ROOT / "jobs/emoji"
STEPS, GUIDANCE, TOP = 20, 3.0, 5
ESD = {"rates": (1e-5, 1e-4), "steps": (100, 300), "batch": 32, "strength": 1.0}
UCE = {"erase": (0.3, 1.0, 3.0), "ridge": (0.001, 0.01, 0.1)}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Bench:
    """The unedited pipeline, the judge, and the classes that are drawn."""

    def __init__(self, each):
        self.pipeline = StableDiffusionPipeline.from_pretrained(JOB / "targets/pipeline", safety_checker=None, requires_safety_checker=False)
        self.pipeline.to("cpu", torch.float32)
        self.unet, self.text = self.pipeline.unet.eval(), self.pipeline.text_encoder.eval()
        for part in (self.unet, self.text, self.pipeline.vae):
            part.requires_grad_(False)
        self.judge = judges.load(JOB / "targets/judge")
        self.removed = {n: [row["class"] for row in rows(JOB / "concepts-300.csv" if n == 300 else JOB / "concepts-100.csv")][: n] for n in (1, 10, 100, 300)}
        roles = {}
        for row in rows(JOB / "split.csv"):
            roles.setdefault(row["role"], []).append(row["class"])
        shuffled = {role: random.Random(0).sample(sorted(names), len(names)) for role, names in roles.items()}
        self.retained = {"covered": shuffled["covered"][:each], "unseen": shuffled["unseen"][:each]}
        self.validation, self.kept = shuffled["covered"][each : 2 * each], roles["covered"]
        self.each = each
        self.known = {}

    @torch.no_grad()
    def states(self, text, prompts):
        """What the U-Net reads of each prompt: `[n, positions, width]`."""
        tokens = self.pipeline.tokenizer
        ids = tokens(prompts, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt").input_ids
        return torch.cat([text(part)[0] for part in ids.split(256)])

    @torch.no_grad()
    def draw(self, text, unet, names, seed):
        """A drawing of each name, from the same noise whatever draws it."""
        self.pipeline.unet, self.pipeline.text_encoder = unet, text
        self.pipeline.set_progress_bar_config(disable=True)
        made = []
        for start in range(0, len(names), 50):
            part = names[start : start + 50]
            noise = [torch.Generator().manual_seed(100_000 * seed + start + i) for i in range(len(part))]
            made += self.pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise).images
        self.pipeline.unet, self.pipeline.text_encoder = self.unet, self.text
        return made

    def right(self, text, unet, names, seed):
        return [name in ranked[:TOP] for name, ranked in zip(names, self.judge(self.draw(text, unet, names, seed)))]

    def share(self, text, unet, names, seed):
        """Of the names that the unedited pipeline draws right, the share that this one does."""
        key = (tuple(names), seed)
        if key not in self.known:
            self.known[key] = self.right(self.text, self.unet, names, seed)
        now = [hit for hit, before in zip(self.right(text, unet, names, seed), self.known[key]) if before]
        return sum(now) / max(len(now), 1), len(now)

    def measure(self, text, unet, removed):
        sampled = random.Random(0).sample(removed, min(len(removed), self.each))
        return {"UA": 1 - self.share(text, unet, sampled, 0)[0]} | {group: self.share(text, unet, names, 0)[0] for group, names in self.retained.items()}

    def validate(self, text, unet, removed):
        """(UA + IRA) / 2 on other noise and other covered classes."""
        sampled = random.Random(1).sample(removed, min(len(removed), self.each // 2))
        return (1 - self.share(text, unet, sampled, 1)[0] + self.share(text, unet, self.validation[: self.each // 2], 1)[0]) / 2


def cross_attention(unet):
    return {name: module for name, module in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}


def copy_of(bench):
    unet = type(bench.unet).from_config(bench.unet.config)
    unet.load_state_dict(bench.unet.state_dict())
    return unet.eval().requires_grad_(False)


def uce(bench, removed):
    """Maps the states of removed prompts onto those of the empty prompt, position by position, and holds those of covered classes."""
    old, stay = bench.states(bench.text, removed).double(), bench.states(bench.text, bench.kept).double().flatten(0, 1)
    anchor = bench.states(bench.text, [""]).double().expand_as(old)
    old, anchor = old.flatten(0, 1), anchor.flatten(0, 1)
    best, gram, tried = None, stay.T @ stay / len(bench.kept), []
    for erase in UCE["erase"]:
        for ridge in UCE["ridge"]:
            unet = copy_of(bench)
            share = erase / len(removed)
            left = gram + share * old.T @ old + ridge * gram.diagonal().mean() * torch.eye(old.shape[1], dtype=torch.double)
            move = torch.linalg.solve(left, share * old.T @ (anchor - old)).T
            for layer in cross_attention(unet).values():
                layer.weight.data += (layer.weight.double() @ move).float()
            score = bench.validate(bench.text, unet, removed)
            tried.append(f"erase {erase:g}, ridge {ridge:g}: {score:.3f}")
            if best is None or score > best[0]:
                best = (score, unet)
    return best[1], tried


def esd(bench, removed):
    """Trains the cross-attention to predict, for a removed prompt, the opposite of what the prompt adds. Noisy drawings come from the unedited
    pipeline's own drawings of the removed classes."""
    torch.manual_seed(0)
    noise = bench.pipeline.scheduler
    alphas = noise.alphas_cumprod
    pictures = [picture for seed in (2, 3) for picture in bench.draw(bench.text, bench.unet, removed, seed)]
    pixels = torch.stack([torch.from_numpy(bench.pipeline.image_processor.pil_to_numpy(picture))[0].permute(2, 0, 1) for picture in pictures]) * 2 - 1
    with torch.no_grad():
        latents = torch.cat([bench.pipeline.vae.encode(part).latent_dist.mean for part in pixels.split(50)]) * bench.pipeline.vae.config.scaling_factor
    states, empty = bench.states(bench.text, removed * 2), bench.states(bench.text, [""])
    best, tried = None, []
    for rate in ESD["rates"]:
        unet = copy_of(bench)
        trained = [weight for name, weight in unet.named_parameters() if ".attn2." in name]
        for weight in trained:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(trained, lr=rate)
        for step in range(1, max(ESD["steps"]) + 1):
            chosen = torch.randint(len(latents), (ESD["batch"],))
            times = torch.randint(1000, (ESD["batch"],))
            signal, spread = alphas[times].sqrt()[:, None, None, None], (1 - alphas[times]).sqrt()[:, None, None, None]
            shown, given = signal * latents[chosen] + spread * torch.randn_like(latents[chosen]), states[chosen]
            with torch.no_grad():
                with_name = bench.unet(shown, times, encoder_hidden_states=given).sample
                without = bench.unet(shown, times, encoder_hidden_states=empty.expand_as(given)).sample
            loss = (unet(shown, times, encoder_hidden_states=given).sample - (without - ESD["strength"] * (with_name - without))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in ESD["steps"]:
                score = bench.validate(bench.text, unet, removed)
                tried.append(f"rate {rate:g}, {step} steps: {score:.3f}")
                if best is None or score > best[0]:
                    best = (score, {name: value.clone() for name, value in unet.state_dict().items()})
    unet = copy_of(bench)
    unet.load_state_dict(best[1])
    return unet, tried


class Lethe:
    """Releases of the demo's text tower with the pipeline as a target."""

    def __init__(self, program, store):
        self.program, self.store = program, store

    def call(self, *arguments):
        """Calls the program; returns the release, processor seconds, and the largest memory of its process, MB."""
        said, seconds, peak = runs.call(self.program, self.store, *arguments)
        return said["release"], seconds, peak

    def run(self, removed, table, method="least-squares", more=""):
        """A run that removes these classes; `table` has their rows."""
        chosen = [row for row in rows(table) if row["class"] in set(removed)]
        folder = Path(self.store) / "bench-manifests"
        folder.mkdir(parents=True, exist_ok=True)
        target = f'[[release.target]]\nname = "pipeline"\nkind = "stable-diffusion"\nuri = "{JOB}/targets/pipeline"'
        manifest = runs.manifest_of(JOB / "remove-100.toml", chosen, folder, f"{len(chosen)}-{method}", method, composition=more, more=target)
        return self.call("run", str(manifest))

    def at(self, release, removed_ids, strength):
        return self.call("compose", release, *[word for concept in removed_ids for word in ("--strength", f"{concept}={strength}")])

    def text(self, release):
        return CLIPTextModel.from_pretrained(Path(release) / "targets/pipeline/text_encoder").float().eval()


def sheet(bench, text, removed, path):
    """Draws classes of each group that the unedited pipeline draws right, before and after, and writes the drawings as one picture."""
    chosen = []
    for group, names, count in (("removed", removed, 8), ("covered", bench.retained["covered"], 4), ("never seen", bench.retained["unseen"], 4)):
        right = [name for name, hit in zip(names, bench.right(bench.text, bench.unet, names, 0)) if hit]
        # Short names fit below a drawing.
        chosen += [(group, name) for name in sorted(right, key=len)[:count]]
    side, line = 96, 14
    page = Image.new("RGB", (side * len(chosen) + 60, 2 * side + 3 * line), "white")
    pen = ImageDraw.Draw(page)
    for row, (name, encoder) in enumerate((("before", bench.text), ("after", text))):
        pen.text((2, line + row * side + side // 2), name, fill="black")
        for column, picture in enumerate(bench.draw(encoder, bench.unet, [name for _, name in chosen], 0)):
            page.paste(picture.resize((side, side), Image.NEAREST), (60 + column * side, line + row * side))
    for column, (group, name) in enumerate(chosen):
        if column == 0 or chosen[column - 1][0] != group:
            pen.text((62 + column * side, 1), group, fill="black")
        pen.text((62 + column * side, line + 2 * side + 2), name[:15], fill="black")
    page.quantize(128).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lethe")
    parser.add_argument("store")
    parser.add_argument("--each", type=int, default=100, help="classes of each group that are drawn")
    parser.add_argument("--only", nargs="+", action="extend", help="rows whose names begin like this")
    parser.add_argument("--picture", type=Path, help="write drawings before and after the removal of a hundred concepts to this PNG file, and nothing else")
    options = parser.parse_args()
    bench, lethe = Bench(options.each), Lethe(options.lethe, options.store)
    wanted = lambda name: not options.only or any(name.startswith(word) for word in options.only)

    if options.picture:
        release, _, _ = lethe.run(bench.removed[100], JOB / "concepts-100.csv")
        return sheet(bench, lethe.text(release), bench.removed[100], options.picture)

    everything = sorted(row["class"] for row in rows(JOB / "concepts-300.csv"))
    drawn = bench.right(bench.text, bench.unet, everything, 0)
    print(f"the unedited pipeline draws {sum(drawn)} of {len(drawn)} removable classes right; not: {', '.join(name for name, hit in zip(everything, drawn) if not hit)}", flush=True)
    print("| removal | concepts | UA | IRA, covered | IRA, never seen | processor s | peak MB |\n|---|---|---|---|---|---|---|")

    def show(name, removed, text, unet, seconds, memory):
        found = bench.measure(text, unet, removed)
        cells = [f"{100 * found[key]:.0f} %" for key in ("UA", "covered", "unseen")]
        print(f"| {name} | {len(removed)} | {' | '.join(cells)} | {seconds:.0f} | {memory:.0f} |", flush=True)

    hundred = None
    for count, removed in bench.removed.items():
        if wanted("Lethe") or (count == 100 and wanted("Lethe at")):
            release, seconds, memory = lethe.run(removed, JOB / ("concepts-300.csv" if count == 300 else "concepts-100.csv"))
            hundred = release if count == 100 else hundred
            show("Lethe", removed, lethe.text(release), bench.unet, seconds, memory)
    removed = bench.removed[100]
    if hundred and wanted("Lethe at"):
        ids = [row["id"] for row in rows(JOB / "concepts-100.csv")]
        for strength in (0.5, 1.5):
            release, seconds, memory = lethe.at(hundred, ids, strength)
            show(f"Lethe at strength {strength}", removed, lethe.text(release), bench.unet, seconds, memory)
    if wanted("Lethe at"):
        last = 'layer = "text_model.encoder.layers.3.mlp.fc2.weight"; retain_weight = 100; rank = 8'
        for more in ("rank = 8", *(f"retain_weight = {weight}; rank = 8" for weight in (300, 200, 100)), last):
            release, seconds, memory = lethe.run(removed, JOB / "concepts-100.csv", more=more.replace("; ", "\n"))
            show(f"Lethe, `{more}`", removed, lethe.text(release), bench.unet, seconds, memory)
    for method, name in (("preconditioned", "Lethe, `preconditioned`"), ("sum", "SLUG's edits, added up (`sum`)")):
        if wanted(method):
            release, seconds, memory = lethe.run(removed, JOB / "concepts-100.csv", method)
            show(name, removed, lethe.text(release), bench.unet, seconds, memory)
    for name, rival in (("UCE", uce), ("ESD-x", esd)):
        if wanted(name):
            start = time.process_time()
            unet, tried = rival(bench, removed)
            seconds = time.process_time() - start
            show(name, removed, bench.text, unet, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            print(f"{name}, by validation: {'; '.join(tried)}", flush=True)


if __name__ == "__main__":
    main()
