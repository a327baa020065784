"""Makes the reference values of SigLIP and of open_clip's CustomTextCLIP (tests/golden/README.md) with PyTorch autograd.

Usage: siglip.py GOLDEN_FOLDER [DEBUG_FOLDER]

Every model is tiny and random, including gains, biases, the probe and the positions. The values are float32; a second pass in float64
checks that they are well conditioned: embeddings to 2e-6, gradients to 2e-5, the same Pareto sets. With DEBUG_FOLDER, the hidden states
of the first forget batch after each block go there.
"""

import copy
import functools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable
from unittest import mock

import open_clip
import timm
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from safetensors.torch import save_file
from torch.nn.functional import logsigmoid
from transformers import SiglipConfig, SiglipModel

PAIRS = 6
BATCHES = {"forget": 2, "retain": 3}
# No layer is one whose name contains any of these; gains are layers.
LEFT_OUT = ("bias", "logit_scale", "position", "embed", "probe", "latent")
OPEN_CLIP_VISION = {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False}
# Arguments of timm's own entry point; heads, activation, eps and pooling stay as it sets them.
TIMM_SIZES = {"embed_dim": 36, "depth": 2, "patch_size": 8, "img_size": 32}


@dataclass
class Case:
    """A model, how its embeddings and its training loss are computed, and how its texts end."""

    folder: str
    model: torch.nn.Module
    embed_images: Callable
    embed_texts: Callable
    retain: Callable
    write: Callable
    blocks: dict
    image_size: int
    vocabulary: int
    context: int
    ends: list
    padding: int
    edits: dict
    start: list


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def randomise(model, seed, logit_scale, logit_bias):
    """Draws every parameter: products of about unit size, gains around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        draw = torch.randn(p.shape, generator=generator)
        if name == "logit_scale":
            draw = torch.full(p.shape, logit_scale)
        elif name == "logit_bias":
            draw = torch.full(p.shape, logit_bias)
        elif any(part in name for part in ("embed", "probe", "latent")):
            draw = draw * (0.09 if p.dim() == 4 else 0.5)
        elif "bias" in name:
            draw = draw * 0.1
        elif p.dim() == 1:
            draw = 1 + 0.1 * draw
        else:
            inputs = p.shape[0] if name.endswith(("visual.proj", "text_projection")) else p[0].numel()
            draw = draw / math.sqrt(inputs)
        p.data.copy_(draw)
    return model.eval().requires_grad_(True)


def token_rows(case, generator):
    """Texts of different lengths, the last one as long as the context, padded to the whole context."""
    rows = []
    for number in range(PAIRS):
        room = case.context - len(case.start) - len(case.ends)
        words = room if number == PAIRS - 1 else int(torch.randint(1, room, (1,), generator=generator))
        ids = torch.randint(3, case.vocabulary - 4, (words,), generator=generator).tolist()
        row = case.start + ids + case.ends
        rows.append(row + [case.padding] * (case.context - len(row)))
    return torch.tensor(rows)


def batches(case, seed):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for kind, count in BATCHES.items():
        for number in range(count):
            pixels = torch.randn(PAIRS, 3, case.image_size, case.image_size, generator=generator)
            found[kind, number] = pixels, token_rows(case, generator)
    return found


def forget_loss(model, case, pixels, ids):
    return (1 - (unit(case.embed_images(model, pixels)) * unit(case.embed_texts(model, ids))).sum(-1)).mean()


def sigmoid_loss(images, texts, scale, bias):
    """SigLIP's loss, written out: the mean over images of −Σ_j log σ(±(t·cos + b)), plus for an image's own text."""
    logits = scale * images @ texts.T + bias
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -logsigmoid(signs * logits).sum(1).mean()


def measure(case, dtype):
    """Embeddings, losses and mean gradients, in one precision."""
    model = copy.deepcopy(case.model).to(dtype)
    parameters = dict(model.named_parameters())
    embeds, losses = {}, {kind: [] for kind in BATCHES}
    gradients = {kind: {name: torch.zeros_like(p) for name, p in parameters.items()} for kind in BATCHES}
    for (kind, number), (pixels, ids) in case.batches.items():
        pixels = pixels.to(dtype)
        model.zero_grad(set_to_none=True)
        loss = forget_loss(model, case, pixels, ids) if kind == "forget" else case.retain(model, pixels, ids)
        loss.backward()
        losses[kind].append(loss.item())
        for name, p in parameters.items():
            if p.grad is not None:
                gradients[kind][name] += p.grad / BATCHES[kind]
        with torch.no_grad():
            embeds[f"{kind}.{number}.image_embeds"] = unit(case.embed_images(model, pixels))
            embeds[f"{kind}.{number}.text_embeds"] = unit(case.embed_texts(model, ids))
    return embeds, losses, gradients


def rank(case, gradients):
    """Scores of every parameter but the scale and bias of the cosines, candidates and Pareto fronts by tower, and first steps."""
    layers, candidates, pareto, steps = {}, {"text": [], "vision": []}, {}, {}
    for name, p in case.model.named_parameters():
        if name.startswith("logit_"):
            continue
        weight, forget, retain = (t.detach().double().flatten() for t in (p, gradients["forget"][name], gradients["retain"][name]))
        cosine = (forget @ retain / (forget.norm() * retain.norm()).clamp(min=1e-300)).item()
        layers[name] = {
            "weight_norm": weight.norm().item(),
            "forget_grad_norm": forget.norm().item(),
            "importance": (forget.norm() / weight.norm()).item(),
            "alignment": abs(cosine),
            "cosine": cosine,
        }
        if not any(part in name for part in LEFT_OUT):
            candidates["vision" if name.startswith("vis") else "text"].append(name)
    for tower, names in candidates.items():
        beats = lambda a, b: a["alignment"] < b["alignment"] and a["importance"] > b["importance"]
        pareto[tower] = sorted(n for n in names if not any(beats(layers[other], layers[n]) for other in names))
        steps.update((n, layers[n]["weight_norm"] / layers[n]["forget_grad_norm"] / 10) for n in pareto[tower])
    return {"layers": layers, "candidates": candidates, "pareto": pareto, "initial_step": steps}


def edit(case, tower, layer, gradients, scores):
    """One edit of one layer by a tenth of its norm: its record and the embeddings of the first forget batch."""
    step = scores["layers"][layer]["weight_norm"] / scores["layers"][layer]["forget_grad_norm"] / 10
    pixels, ids = case.batches["forget", 0]
    with torch.no_grad():
        before = forget_loss(case.model, case, pixels, ids).item()
        edited = copy.deepcopy(case.model)
        parameter = dict(edited.named_parameters())[layer]
        parameter.copy_((parameter.double() + step * gradients["forget"][layer].double()).float())
        after = forget_loss(edited, case, pixels, ids).item()
        embeds = {
            f"edit.{tower}.image_embeds": unit(case.embed_images(edited, pixels)),
            f"edit.{tower}.text_embeds": unit(case.embed_texts(edited, ids)),
        }
    record = {"layer": layer, "tower": tower, "step": step, "forget_loss_before": before, "forget_loss_after": after}
    return record, embeds


def check(case, single, double):
    """The float32 values against those in float64."""
    (embeds, losses, gradients), (precise, precise_losses, precise_gradients) = single, double
    worst = max((embeds[name] - precise[name]).abs().max().item() for name in embeds)
    assert worst < 2e-6, f"{case.folder}: embeddings are off by {worst}"
    for kind in BATCHES:
        assert all(abs(a - b) < 3e-6 * max(1, abs(b)) for a, b in zip(losses[kind], precise_losses[kind])), f"{case.folder}: {kind} loss"
        for name, exact in precise_gradients[kind].items():
            off, size = (gradients[kind][name] - exact).norm().item(), exact.norm().item()
            # A key bias shifts all scores of a query equally: its gradient is zero.
            assert off < (2e-5 * size if size > 1e-9 else 4e-7), f"{case.folder}: {kind} gradient of {name} is off by {off} of {size}"
    assert rank(case, gradients)["pareto"] == rank(case, precise_gradients)["pareto"], f"{case.folder}: Pareto sets"
    images, texts = (torch.cat([v for name, v in embeds.items() if what in name]) for what in ("image", "text"))
    for vectors in (images, texts):
        cosines = vectors @ vectors.T - 2 * torch.eye(len(vectors))
        assert cosines.max() < 0.9999, f"{case.folder}: two items have nearly one embedding"


def write_debug(case, folder):
    """Hidden states after each block on the first forget batch."""
    states, hooks = {}, []
    for tower, blocks in case.blocks.items():
        for number, block in enumerate(blocks):

            def keep(_, __, output, name=f"debug.{tower}.{number}"):
                states[name] = (output[0] if isinstance(output, tuple) else output).detach().clone().contiguous()

            hooks.append(block.register_forward_hook(keep))
    pixels, ids = case.batches["forget", 0]
    with torch.no_grad():
        case.embed_images(case.model, pixels)
        case.embed_texts(case.model, ids)
    for hook in hooks:
        hook.remove()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(states, folder / "debug.safetensors")


def write(case, seed, golden, debug):
    case.batches = batches(case, seed)
    folder = golden / case.folder
    folder.mkdir(parents=True, exist_ok=True)
    case.write(folder)
    inputs = {}
    for (kind, number), (pixels, ids) in case.batches.items():
        inputs |= {f"{kind}.{number}.pixel_values": pixels, f"{kind}.{number}.input_ids": ids}
    save_file(inputs, folder / "batches.safetensors")

    single, double = measure(case, torch.float32), measure(case, torch.float64)
    check(case, single, double)
    embeds, losses, gradients = single
    scores = rank(case, gradients)
    tensors, records = dict(embeds), []
    for kind, found in gradients.items():
        tensors |= {f"grad.{kind}.{name}": g for name, g in found.items()}
    for tower, layer in case.edits.items():
        record, edited = edit(case, tower, layer, gradients, scores)
        assert abs(record["forget_loss_after"] - record["forget_loss_before"]) > 1e-2, f"{case.folder}: the edit of {layer} does nothing"
        records.append(record)
        tensors |= edited
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "expected.safetensors")
    numbers = {**scores, "loss": losses, "edits": records}
    (folder / "expected.json").write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    if debug:
        write_debug(case, debug / case.folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    fronts = ", ".join(f"{len(names)} of {len(scores['candidates'][tower])} {tower}" for tower, names in scores["pareto"].items())
    print(f"{case.folder}: {size / 1e6:.2f} MB; on the fronts {fronts}; losses {losses['forget'][0]:.4f}, {losses['retain'][0]:.4f}", flush=True)


def transformers_case(folder, seed, text, vision, eos, defaults, edits):
    config = SiglipConfig(text_config=text, vision_config=vision)
    model = randomise(SiglipModel(config), seed, math.log(10), -3.0)

    def embed_images(model, pixels):
        return model.get_image_features(pixels)

    def embed_texts(model, ids):
        return model.get_text_features(ids)

    def retain(model, pixels, ids):
        loss = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
        embeds = unit(embed_images(model, pixels)), unit(embed_texts(model, ids))
        assert torch.allclose(loss, sigmoid_loss(*embeds, model.logit_scale.exp(), model.logit_bias), rtol=1e-6)
        return loss

    def write(folder):
        model.save_pretrained(folder)
        if not defaults:
            shorten(folder / "config.json")

    return Case(
        folder=folder,
        model=model,
        embed_images=embed_images,
        embed_texts=embed_texts,
        retain=retain,
        write=write,
        blocks={"vision": model.vision_model.encoder.layers, "text": model.text_model.encoder.layers},
        image_size=config.vision_config.image_size,
        vocabulary=config.text_config.vocab_size,
        context=config.text_config.max_position_embeddings,
        ends=[eos],
        padding=config.text_config.pad_token_id,
        edits=edits,
        start=[],
    )


def shorten(file):
    """Leaves out of a written configuration what equals transformers' defaults, as google's first SigLIP checkpoints do."""
    config, defaults = json.loads(file.read_text()), SiglipConfig()
    for tower, default in (("text_config", defaults.text_config), ("vision_config", defaults.vision_config)):
        default = default.to_dict()
        kept = ("model_type",)
        config[tower] = {key: value for key, value in config[tower].items() if key in kept or default.get(key, ...) != value}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def open_clip_case(folder, seed, config, siglip, start, ends, edits):
    with mock.patch("timm.create_model", functools.partial(timm.create_model, **TIMM_SIZES)):
        model = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    randomise(model, seed, math.log(10), -3.0)

    def retain(model, pixels, ids):
        images, texts, scale = unit(model.encode_image(pixels)), unit(model.encode_text(ids)), model.logit_scale.exp()
        if not siglip:
            return ClipLoss()(images, texts, scale)
        loss = SigLipLoss()(images, texts, scale, model.logit_bias)
        assert torch.allclose(loss, sigmoid_loss(images, texts, scale, model.logit_bias), rtol=1e-6)
        return loss

    def write(folder):
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        constants = (0.5,) * 3, (0.5,) * 3
        if not siglip:
            constants = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        preprocess = {"mean": constants[0], "std": constants[1]}
        if siglip:
            preprocess |= {"interpolation": "bicubic", "resize_mode": "squash"}
        written = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(written, indent=1) + "\n")

    text = config["text_cfg"]
    vision = model.visual.trunk.blocks if siglip else model.visual.transformer.resblocks
    return Case(
        folder=folder,
        model=model,
        embed_images=lambda model, pixels: model.encode_image(pixels),
        embed_texts=lambda model, ids: model.encode_text(ids),
        retain=retain,
        write=write,
        blocks={"vision": vision, "text": model.text.transformer.resblocks},
        image_size=config["vision_cfg"]["image_size"],
        vocabulary=text["vocab_size"],
        context=text["context_length"],
        ends=ends,
        padding=0,
        edits=edits,
        start=start,
    )


def cases():
    attention_pool = {"vision": "vision_model.head.attention.in_proj_weight", "text": "text_model.head.weight"}
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    yield transformers_case(
        "siglip",
        1,
        text={**width, "num_hidden_layers": 2, "vocab_size": 200, "max_position_embeddings": 12},
        vision={**width, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        eos=1,
        defaults=False,
        edits=attention_pool,
    )
    text = {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_size": 48}
    tokens = {"vocab_size": 180, "max_position_embeddings": 14, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    yield transformers_case(
        "siglip2",
        2,
        text={**text, **tokens},
        vision={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_attention_heads": 6,
            "num_hidden_layers": 2,
            "image_size": 24,
            "patch_size": 6,
        },
        eos=1,
        defaults=True,
        edits={"vision": "vision_model.head.mlp.fc2.weight", "text": "text_model.encoder.layers.0.self_attn.v_proj.weight"},
    )
    yield open_clip_case(
        "openclip-siglip",
        3,
        {
            "embed_dim": TIMM_SIZES["embed_dim"],
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {**OPEN_CLIP_VISION, "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": {
                "context_length": 12,
                "vocab_size": 160,
                "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "width": 32,
                "heads": 4,
                "layers": 2,
                "mlp_ratio": 2.0,
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": 1e-6},
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        siglip=True,
        start=[],
        ends=[1],
        edits={"vision": "visual.trunk.attn_pool.kv.weight", "text": "text.text_projection.weight"},
    )
    yield open_clip_case(
        "openclip-custom-text",
        4,
        {
            "embed_dim": 24,
            "custom_text": True,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8, "mlp_ratio": 2.0},
            "text_cfg": {"context_length": 12, "vocab_size": 200, "width": 32, "heads": 4, "layers": 2, "mlp_ratio": 2.0},
        },
        siglip=False,
        start=[198],
        ends=[199],
        edits={"vision": "visual.proj", "text": "text.transformer.resblocks.0.attn.out_proj.weight"},
    )


def main():
    golden = Path(sys.argv[1])
    debug = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    for seed, case in enumerate(cases(), start=11):
        write(case, seed, golden, debug)


if __name__ == "__main__":
    main()
