"""Targets of a release, made and checked with diffusers and transformers.

    check_targets.py make MODEL FOLDER          FOLDER/pipeline, xl, three, flux and llava: tiny, random around the model's own towers
    check_targets.py check FOLDER TEXT VISION   what the releases TEXT and VISION made of them, against the releases' own CLIPs
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel,
    StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel,
)  # fmt: skip
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, LlamaConfig, LlavaConfig,
    LlavaForConditionalGeneration, LlavaProcessor, T5Config, T5EncoderModel, T5TokenizerFast,
)  # fmt: skip

PROMPTS = ["pizza", "a rocket over a red heart", "grinning face", ""]
failures = []


def check(what, ok, detail=""):
    print(f"  {'ok  ' if ok else 'FAIL'} {what}{': ' + detail if detail else ''}")
    if not ok:
        failures.append(what)


def make(model, folder):
    torch.manual_seed(7)
    text = CLIPTextModel.from_pretrained(model)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=text.config.hidden_size, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8, sample_size=8)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=AutoTokenizer.from_pretrained(model), unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.to(torch.float16).save_pretrained(folder / "pipeline", variant="fp16")

    # Stable Diffusion XL: its second encoder is the model's, its first one another CLIP's.
    projected = CLIPTextModelWithProjection.from_pretrained(model)
    sizes = projected.config
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=2 * sizes.hidden_size, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + sizes.projection_dim,
    )  # fmt: skip
    tokenizers = [AutoTokenizer.from_pretrained(model) for _ in range(2)]
    StableDiffusionXLPipeline(
        vae=vae.float(), text_encoder=CLIPTextModel(text.config), text_encoder_2=projected, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        unet=unet, scheduler=DDIMScheduler(),
    ).save_pretrained(folder / "xl")  # fmt: skip

    make_transformers(model, projected, folder)

    clip = CLIPModel.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=clip.config.vision_config, text_config=words, image_token_index=image, vision_feature_layer=-2)
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.vision_model.load_state_dict(clip.vision_model.state_dict())
    llava.save_pretrained(folder / "llava", max_shard_size="2MB")
    LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(model), tokenizer=tokenizer, patch_size=clip.config.vision_config.patch_size,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder / "llava")  # fmt: skip


def make_transformers(model, projected, folder):
    """Stable Diffusion 3, whose first encoder is the model's, and FLUX.1; both have a T5 beside CLIP."""
    sizes, wide = projected.config, 2 * projected.config.hidden_size
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "pizza": 3, "rocket": 4, "face": 5}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    t5 = lambda: T5EncoderModel(T5Config(vocab_size=200, d_model=wide, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    t5_tokens = lambda: T5TokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    vae = lambda channels: AutoencoderKL(block_out_channels=(32,), latent_channels=channels, norm_num_groups=8, sample_size=8, shift_factor=0.0, scaling_factor=1.0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=wide, caption_projection_dim=32, pooled_projection_dim=2 * sizes.projection_dim, pos_embed_max_size=8,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(4), text_encoder=projected,
        tokenizer=AutoTokenizer.from_pretrained(model), text_encoder_2=CLIPTextModelWithProjection(sizes),
        tokenizer_2=AutoTokenizer.from_pretrained(model), text_encoder_3=t5(), tokenizer_3=t5_tokens(),
    ).save_pretrained(folder / "three")  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=wide,
        pooled_projection_dim=sizes.hidden_size, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(4), text_encoder=CLIPTextModel.from_pretrained(model),
        tokenizer=AutoTokenizer.from_pretrained(model), text_encoder_2=t5(), tokenizer_2=t5_tokens(),
    ).save_pretrained(folder / "flux")  # fmt: skip


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def untouched(name, source, target, changed):
    before, after = digests(source), digests(target)
    differ = sorted(file for file in before if before[file] != after.get(file))
    check(f"{name}: {len(before) - len(differ)} files are the same bytes", set(before) == set(after) and differ == sorted(changed), f"changed: {', '.join(differ)}")


@torch.no_grad()
def prompt_embeddings(pipeline):
    return pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0].float()


@torch.no_grad()
def check_pipeline(folder, release):
    source, target = folder / "pipeline", release / "targets/sd"
    for variant, tolerance in ((None, 1e-5), ("fp16", 2e-2)):
        kind = torch.float16 if variant else torch.float32
        before, after = (StableDiffusionPipeline.from_pretrained(path, variant=variant, torch_dtype=kind) for path in (source, target))
        # Half precision on a CPU: the weights are what is compared.
        before, after = before.to(torch.float32), after.to(torch.float32)
        ids = after.tokenizer(PROMPTS, padding="max_length", max_length=after.tokenizer.model_max_length, truncation=True, return_tensors="pt")
        clip = CLIPModel.from_pretrained(release).text_model(input_ids=ids["input_ids"]).last_hidden_state
        ours, old = prompt_embeddings(after), prompt_embeddings(before)
        name = f"pipeline {variant or 'float32'}"
        check(f"{name}: prompt embeddings are those of the released CLIP", (ours - clip).abs().max() <= tolerance, f"differ by at most {(ours - clip).abs().max():.1e}")
        check(f"{name}: and not those of before", (ours - old).abs().max() > 10 * tolerance, f"differ by {(ours - old).abs().max():.1e}")
        drawn(name, before, after)
    untouched("pipeline", source, target, [f"text_encoder/model{variant}.safetensors" for variant in ("", ".fp16")])


@torch.no_grad()
def check_xl(folder, release):
    source, target = folder / "xl", release / "targets/sdxl"
    before, after = (StableDiffusionXLPipeline.from_pretrained(path) for path in (source, target))
    ids = after.tokenizer_2(PROMPTS, padding="max_length", max_length=after.tokenizer_2.model_max_length, truncation=True, return_tensors="pt")
    clip = CLIPTextModelWithProjection.from_pretrained(release)(input_ids=ids["input_ids"], output_hidden_states=True)
    (old, _, old_pooled, _), (ours, _, pooled, _) = (pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False) for pipeline in (before, after))
    size = clip.hidden_states[-2].shape[-1]
    check("xl: the first encoder says what it said", torch.equal(ours[..., :-size], old[..., :-size]))
    differ = max((ours[..., -size:] - clip.hidden_states[-2]).abs().max(), (pooled - clip.text_embeds).abs().max())
    check("xl: the second one and its projection are the released CLIP's", differ <= 1e-5, f"differ by at most {differ:.1e}")
    moved = (pooled - old_pooled).abs().max()
    check("xl: and not those of before", moved > 1e-4, f"differ by {moved:.1e}")
    drawn("xl", before, after)
    untouched("xl", source, target, ["text_encoder_2/model.safetensors"])


def drawn(name, before, after):
    draw = lambda pipeline: pipeline(PROMPTS[0], num_inference_steps=2, height=16, width=16, output_type="pt", generator=torch.manual_seed(0)).images
    images = [draw(pipeline) for pipeline in (before, after)]
    check(f"{name}: draws, and something else", torch.isfinite(images[1]).all() and not torch.equal(*images))


@torch.no_grad()
def check_three(folder, release):
    source, target = folder / "three", release / "targets/sd3"
    before, after = (StableDiffusion3Pipeline.from_pretrained(path) for path in (source, target))
    ids = after.tokenizer(PROMPTS, padding="max_length", max_length=after.tokenizer.model_max_length, truncation=True, return_tensors="pt")
    clip = CLIPTextModelWithProjection.from_pretrained(release)(input_ids=ids["input_ids"], output_hidden_states=True)
    encode = lambda pipeline: pipeline.encode_prompt(PROMPTS, None, None, device="cpu", do_classifier_free_guidance=False)
    (old, _, old_pooled, _), (ours, _, pooled, _) = encode(before), encode(after)
    length, width = clip.hidden_states[-2].shape[1:]
    moved = ours - old
    check("sd3: the other CLIP and T5 say what they said", not moved[:, length:].any() and not moved[:, :length, width:].any())
    differ = max((ours[:, :length, :width] - clip.hidden_states[-2]).abs().max(), (pooled[:, : clip.text_embeds.shape[1]] - clip.text_embeds).abs().max())
    check("sd3: the first encoder and its projection are the released CLIP's", differ <= 1e-5, f"differ by at most {differ:.1e}")
    check("sd3: and not those of before", (pooled - old_pooled).abs().max() > 1e-4, f"differ by {(pooled - old_pooled).abs().max():.1e}")
    drawn("sd3", before, after)
    untouched("sd3", source, target, ["text_encoder/model.safetensors"])


@torch.no_grad()
def check_flux(folder, release):
    source, target = folder / "flux", release / "targets/flux"
    before, after = (FluxPipeline.from_pretrained(path) for path in (source, target))
    ids = after.tokenizer(PROMPTS, padding="max_length", max_length=after.tokenizer_max_length, truncation=True, return_tensors="pt")
    clip = CLIPModel.from_pretrained(release).text_model(input_ids=ids["input_ids"]).pooler_output
    (old, old_pooled, _), (ours, pooled, _) = (pipeline.encode_prompt(PROMPTS, None, device="cpu", max_sequence_length=16) for pipeline in (before, after))
    check("flux: T5 says what it said", torch.equal(ours, old))
    check("flux: the pooled text is the released CLIP's", (pooled - clip).abs().max() <= 1e-5, f"differs by at most {(pooled - clip).abs().max():.1e}")
    check("flux: and not that of before", (pooled - old_pooled).abs().max() > 1e-4, f"differs by {(pooled - old_pooled).abs().max():.1e}")
    drawn("flux", before, after)
    untouched("flux", source, target, ["text_encoder/model.safetensors"])
    record = {target["name"]: target for target in json.loads((release / "composition.json").read_text())["targets"]}
    unedited = {name: [encoder["folder"] for encoder in one.get("unedited", [])] for name, one in record.items()}
    check("the record names the encoders that are not edited",
          unedited == {"sd": [], "sdxl": ["text_encoder"], "sd3": ["text_encoder_3", "text_encoder_2"], "flux": ["text_encoder_2"]}, str(unedited))  # fmt: skip


@torch.no_grad()
def check_llava(folder, release):
    source, target = folder / "llava", release / "targets/llava"
    before, after = (LlavaForConditionalGeneration.from_pretrained(path).eval() for path in (source, target))
    clip = CLIPModel.from_pretrained(release).eval()
    pixels = torch.randn(3, 3, clip.config.vision_config.image_size, clip.config.vision_config.image_size, generator=torch.manual_seed(1))
    hidden = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    expected = after.model.multi_modal_projector(hidden)
    features = [torch.stack(list(model.model.get_image_features(pixels))) for model in (before, after)]
    check("llava: image features are those of the released CLIP", (features[1] - expected).abs().max() <= 1e-5, f"differ by at most {(features[1] - expected).abs().max():.1e}")
    check("llava: and not those of before", (features[0] - features[1]).abs().max() > 1e-4, f"differ by {(features[0] - features[1]).abs().max():.1e}")
    kept = before.state_dict()
    moved = [name for name, tensor in after.state_dict().items() if not torch.equal(tensor, kept[name])]
    check("llava: nothing else moved", bool(moved) and all("vision_tower" in name for name in moved), ", ".join(moved))
    changed = [file for file, digest in digests(source).items() if digests(target).get(file) != digest]
    untouched("llava", source, target, changed)
    check("llava: only shards with edits changed", 0 < len(changed) < len(list(source.glob("*.safetensors"))))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        check_pipeline(Path(sys.argv[2]), Path(sys.argv[3]))
        check_xl(Path(sys.argv[2]), Path(sys.argv[3]))
        check_three(Path(sys.argv[2]), Path(sys.argv[3]))
        check_flux(Path(sys.argv[2]), Path(sys.argv[3]))
        check_llava(Path(sys.argv[2]), Path(sys.argv[4]))
        if failures:
            sys.exit(f"{len(failures)} checks failed")
        print("the targets are what their releases say")
