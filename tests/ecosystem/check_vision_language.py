"""Vision-language models of the kinds that Lethe knows: made with transformers around the towers of a CLIP or a SigLIP, and checked in
releases of it.

    check_vision_language.py make MODEL FOLDER              FOLDER/KIND for each kind with a tower of the model's family: tiny, with random language models
    check_vision_language.py check FOLDER RELEASE           what a release made of them
    check_vision_language.py kinds MODEL                    prints the kinds of the model's family

Which blocks act is found by moving the weights of each block in transformers, and compared with what the release's record says.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, Gemma3TextConfig, LlamaConfig

WORDS = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
IMAGE = 7
failures = []


def check(what, ok, detail=""):
    print(f"  {'ok  ' if ok else 'FAIL'} {what}{': ' + detail if detail else ''}")
    if not ok:
        failures.append(what)


def llama():
    return LlamaConfig(**WORDS)


def vision_of(kind, vision):
    """The configuration of the tower as this kind of model has it."""
    if kind in ("idefics3", "smolvlm"):
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act", "layer_norm_eps")
        of = {"idefics3": transformers.Idefics3VisionConfig, "smolvlm": transformers.models.smolvlm.configuration_smolvlm.SmolVLMVisionConfig}[kind]
        return of(**{name: getattr(vision, name) for name in names})
    if kind in ("paligemma", "gemma3", "llava_onevision", "aya_vision", "cohere2_vision"):
        vision.vision_use_head = False
    return vision


def config_of(kind, vision):
    side = vision.image_size
    grid = {"image_grid_pinpoints": [[side, side], [side, 2 * side]]}
    gemma = Gemma3TextConfig(**WORDS, head_dim=8)
    make = {
        "vipllava": lambda: transformers.VipLlavaConfig(vision, llama(), image_token_index=IMAGE, vision_feature_layers=[-2, -4, 1]),
        "llava_next": lambda: transformers.LlavaNextConfig(vision, llama(), image_token_index=IMAGE, **grid),
        "llava_onevision": lambda: transformers.LlavaOnevisionConfig(vision, llama(), image_token_index=IMAGE, **grid),
        "aya_vision": lambda: transformers.AyaVisionConfig(vision, llama(), image_token_index=IMAGE, downsample_factor=2),
        "cohere2_vision": lambda: transformers.Cohere2VisionConfig(vision, llama(), image_token_id=IMAGE, downsample_factor=2, alignment_intermediate_size=64),
        "paligemma": lambda: transformers.PaliGemmaConfig(vision, llama(), image_token_index=IMAGE, projection_dim=WORDS["hidden_size"], hidden_size=WORDS["hidden_size"]),
        "gemma3": lambda: transformers.Gemma3Config(gemma, vision, mm_tokens_per_image=9, image_token_index=IMAGE),
        "idefics3": lambda: transformers.Idefics3Config(vision_config=vision, text_config=llama(), image_token_id=IMAGE, scale_factor=2, pad_token_id=0),
        "smolvlm": lambda: transformers.SmolVLMConfig(vision_config=vision, text_config=llama(), image_token_id=IMAGE, scale_factor=2, pad_token_id=0),
    }
    return make[kind]()


def kinds(model):
    if AutoConfig.from_pretrained(model).model_type == "clip":
        return ("llava_next", "vipllava")
    return ("llava_onevision", "aya_vision", "cohere2_vision", "paligemma", "gemma3", "idefics3", "smolvlm")


def tower_of(model):
    """The vision tower inside, without the wrapper that some kinds have."""
    inner = model.model
    tower = inner.vision_tower if hasattr(inner, "vision_tower") else inner.vision_model
    return getattr(tower, "vision_model", tower)


def without_head(tower):
    return {name: weight for name, weight in tower.state_dict().items() if not name.startswith("head.")}


def make(model, folder):
    torch.manual_seed(3)
    whole = AutoModel.from_pretrained(model, dtype="auto")
    for kind in kinds(model):
        config = config_of(kind, vision_of(kind, AutoConfig.from_pretrained(model).vision_config))
        made = AutoModelForImageTextToText.from_config(config)
        tower_of(made).load_state_dict(without_head(whole.vision_model))
        # As the model is stored, so that both are rounded alike.
        made.to(whole.dtype).save_pretrained(folder / kind)


@torch.no_grad()
def features(kind, model, pixels):
    """What goes from the vision tower into the projector."""
    inner, seen = model.model, []
    projector = inner.connector if hasattr(inner, "connector") else inner.multi_modal_projector
    hook = projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    if kind in ("idefics3", "smolvlm"):
        inner.get_image_features(pixels[:, None])
    elif kind in ("llava_next", "llava_onevision"):
        side = pixels.shape[-1]
        tiles = torch.stack([pixels, pixels], 1)
        inner.get_image_features(tiles, image_sizes=torch.tensor([[side, side]] * len(pixels)))
    else:
        inner.get_image_features(pixels)
    hook.remove()
    return seen[0]


@torch.no_grad()
def acting(kind, model, pixels):
    """The number of blocks whose weights change what is read, and whether the last norm does."""
    before, tower = features(kind, model, pixels), tower_of(model)

    def acts(weight):
        kept = weight.clone()
        weight += 0.1 * torch.randn_like(weight)
        moved = not torch.equal(features(kind, model, pixels), before)
        weight.copy_(kept)
        return moved

    blocks = [acts(block.mlp.fc2.weight) for block in tower.encoder.layers]
    assert blocks == sorted(blocks, reverse=True), blocks
    return sum(blocks), acts(tower.post_layernorm.weight)


@torch.no_grad()
def check_kind(kind, source, release, record):
    target = release / "targets" / kind
    load = lambda path: AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    before, after = load(source), load(target)
    vision = AutoModel.from_pretrained(release, dtype=torch.float32).vision_model
    side = vision.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.manual_seed(1))
    ours, old = features(kind, after, pixels), features(kind, before, pixels)
    blocks, norm = acting(kind, before, pixels)
    tower = record["towers"][0]
    check(f"{kind}: {blocks} of {tower['blocks']} blocks act{', and the last norm' if norm else ''}",
          tower["blocks_used"] == blocks and ("after its norm" in tower["reads"]) == norm, f"record: {tower['blocks_used']}, {tower['reads']}")  # fmt: skip
    # The released tower in the place of the old one; blocks that are not read do not matter.
    tower_of(before).load_state_dict(without_head(vision))
    expected = features(kind, before, pixels)
    check(f"{kind}: what is read is the released tower's", (ours - expected).abs().max() <= 1e-5, f"differs by at most {(ours - expected).abs().max():.1e}")
    check(f"{kind}: and not that of before", (ours - old).abs().max() > 1e-4, f"differs by {(ours - old).abs().max():.1e}")
    kept, new = load(source).state_dict(), after.state_dict()
    moved = [name for name in new if not torch.equal(new[name], kept[name])]
    check(f"{kind}: only the tower has moved", bool(moved) and all("vision" in name for name in moved), f"{len(moved)} tensors")


if __name__ == "__main__":
    act, first, *rest = sys.argv[1:]
    if act == "kinds":
        print(*kinds(first))
    elif act == "make":
        make(Path(first), Path(rest[0]))
    else:
        release = Path(rest[0])
        record = json.loads((release / "composition.json").read_text())
        targets = [target for target in record["targets"] if (Path(first) / target["name"]).is_dir()]
        for target in targets:
            check_kind(target["name"], Path(first) / target["name"], release, target)
        if failures or not targets:
            sys.exit(f"{len(failures)} checks failed" if failures else "no target to check")
        print(f"{len(targets)} kinds of vision-language models read what the record says")
