"""What a GPU does at real sizes: CLIPs of random weights, the demo's pictures and words; the authors' procedure in PyTorch beside it.

Usage: gpu.py LETHE WORK_FOLDER [--sizes B/32,L/14,H/14] [--precisions float32,tf32,bfloat16] [--concepts N] [--device cuda] [--no-peer]
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import slug
import torch
from growth import samples, write
from runs import lethe, manifest_of, phases, rows_of
from transformers import CLIPConfig, CLIPModel

# Text width, blocks, heads; vision width, blocks, heads, patch; embedding. `tiny` is for trying this program out.
SIZES = {
    "tiny": ((64, 2, 2), (64, 2, 2, 32), 32, "quick_gelu"),
    "B/32": ((512, 12, 8), (768, 12, 12, 32), 512, "quick_gelu"),
    "L/14": ((768, 12, 12), (1024, 24, 16, 14), 768, "quick_gelu"),
    "H/14": ((1024, 24, 16), (1280, 32, 16, 14), 1024, "gelu"),
}
SIDE = 224
RETAIN_PAIRS, RETAIN_TEXTS, VALIDATION = 512, 512, 512


def model(base, folder, size, device):
    """A CLIP of this size with random weights, the demo's tokeniser and its preprocessing at 224 pixels."""
    text, vision, embedding, activation = SIZES[size]
    known = json.loads((base / "config.json").read_text())["text_config"]
    tower = lambda width, blocks, heads: dict(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks, num_attention_heads=heads, hidden_act=activation
    )
    tokens = {key: known.get(key) for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    texts = dict(**tower(*text), **tokens, max_position_embeddings=77, vocab_size=49408, projection_dim=embedding)
    images = dict(**tower(*vision[:3]), image_size=SIDE, patch_size=vision[3], projection_dim=embedding)
    torch.manual_seed(0)
    with torch.device(device):
        made = CLIPModel(CLIPConfig(text_config=texts, vision_config=images, projection_dim=embedding))
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("config.json", "model.safetensors"))
    made.save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return sum(parameter.numel() for parameter in made.parameters())


def peak(device, precision):
    """TFLOP/s of a large matrix product in a precision: what there is to be had."""
    side, times = (8192, 10) if device != "cpu" else (1024, 3)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32) for _ in range(2))
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    for _ in range(2):
        a @ b
    wait()
    began = time.perf_counter()
    for _ in range(times):
        a @ b
    wait()
    return 2 * side**3 * times / (time.perf_counter() - began) / 1e12


def work_of(size, rows, folder):
    """Floating-point operations in matrix products that no method can spare, for all concepts: their images through the vision tower once,
    their texts through the text tower and back."""
    text, vision = SIZES[size][:2]
    images, tokens = 0, 0
    for row in rows:
        captions = [caption for caption, _ in samples(folder / row["forget"])]
        images += len(captions)
        tokens += sum(len(caption.split()) + 2 for caption in captions)
    blocks = lambda width, count, n: count * (24 * n * width**2 + 4 * n**2 * width)
    per_image = blocks(vision[0], vision[1], (SIDE // vision[3]) ** 2 + 1)
    return images * per_image + 3 * tokens * 24 * text[1] * text[0] ** 2


def stages(store):
    """Seconds by kind of job and stage."""
    found = {}
    for path in (store / "outcomes").rglob("*.json"):
        outcome = json.loads(path.read_text())
        kind = outcome["kind"]
        took = found.setdefault(kind, {"jobs": 0, "all": 0.0})
        took["jobs"] += 1
        took["all"] += outcome["execution"]["seconds"]
        for stage, seconds in outcome["execution"]["stages"].items():
            took[stage] = took.get(stage, 0.0) + seconds
    return found


def retain_gradient(job, pairs):
    """g_r of one batch, for the ranking: what it costs does not depend on what is in it."""
    images, captions = pairs
    images, texts = job.embed_images(job.pixels(images)), job.embed_texts(job.tokens(captions))
    logits, own = job.model.logit_scale.exp() * images @ texts.T, torch.arange(len(captions), device=job.device)
    (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in job.parameters.items()}
    job.model.zero_grad(set_to_none=True)
    return gradient


def authors(manifest, device, concept, precision):
    """Seconds that one concept takes by the authors' procedure, from a few evaluations; the layers on its fronts."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    job = slug.Job(manifest, {}, device)
    images, captions = slug.read_shard(job.concepts[concept][1])
    job.retain = retain_gradient(job, (images, captions))
    slug.price(job, concept, 1)
    clock, front = slug.price(job, concept, 4)
    return sum(seconds for stage, seconds in clock.wall.items() if stage != "data"), front


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lethe")
    parser.add_argument("work", type=Path)
    parser.add_argument("--manifest", type=Path, default=Path("jobs/emoji/remove-100.toml"))
    parser.add_argument("--sizes", default="B/32,L/14,H/14")
    parser.add_argument("--precisions", default="float32,tf32,bfloat16")
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--stages", action="store_true", help="seconds by kind of job and stage too")
    arguments = parser.parse_args()
    work, folder, device = arguments.work, arguments.manifest.parent.resolve(), arguments.device
    rows = rows_of(arguments.manifest)[: arguments.concepts]
    precisions = arguments.precisions.split(",")

    texts = (folder / "retain-texts.txt").read_text().splitlines()[:RETAIN_TEXTS]
    (work / "texts.txt").write_text("\n".join(texts) + "\n")
    data = {
        "retain": write(work / "retain.tar", samples(folder / "retain-00000.tar")[:RETAIN_PAIRS]),
        "retain_texts": [str(work / "texts.txt")],
        "validation": write(work / "validation.tar", samples(folder / "validation.tar")[::2][:VALIDATION]),
        "test": [],
    }
    peers = []
    peaks = {precision: peak(device, precision) for precision in precisions}
    what = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    print(f"{what}; a product of large matrices: " + ", ".join(f"{rate:.0f} TFLOP/s in {name}" for name, rate in peaks.items()))
    print(f"{len(rows)} concepts, {RETAIN_PAIRS} retain pairs, {RETAIN_TEXTS} retain texts, {VALIDATION} validation images.\n")
    print("| model | parameters, M | precision | statistics s | a concept ms | concepts a minute | share of the peak | coefficients s | whole run s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)

    for size in arguments.sizes.split(","):
        place = work / size.replace("/", "-")
        parameters = model(folder / "model", place, size, device)
        for precision in precisions:
            name = f"{place.name}-{precision}"
            described = manifest_of(
                arguments.manifest, rows, work, name, workers=arguments.workers, device=device, precision=precision, model=place, **data
            )
            store = work / f"store-{name}"
            wall, _, report = lethe(arguments.lethe, described, store)
            took = phases(report)
            each = (took["survey"] + took["concepts"]) / len(rows)
            share = work_of(size, rows, folder) / len(rows) / each / peaks[precision] / 1e12
            line = [size, f"{parameters / 1e6:.0f}", precision, f"{took['statistics']:.1f}", f"{1000 * each:.0f}", f"{60 / each:.0f}", f"{share:.0%}"]
            line += [f"{took.get('doses', 0.0):.1f}", f"{wall:.1f}"]
            print("| " + " | ".join(line) + " |", flush=True)
            if arguments.stages:
                print(json.dumps({kind: {stage: round(s, 2) for stage, s in took.items()} for kind, took in stages(store).items()}), flush=True)
            shutil.rmtree(store)
            if not arguments.no_peer and precision != "bfloat16":
                seconds, front = authors(described, device, rows[0]["id"], precision)
                peers.append(f"| {size} | {precision} | {seconds:.1f} | {front} | {seconds / each:.0f} |")
        shutil.rmtree(place)
    if peers:
        print(f"\nThe authors' procedure, PyTorch {torch.__version__.split('+')[0]} on the same device, from four evaluations:\n")
        print("| model | precision | s a concept | layers on its fronts | times Lethe's default |\n|---|---|---|---|---|")
        print("\n".join(peers))


if __name__ == "__main__":
    main()
