"""Some hundred tiny CLIP folders of transformers and open_clip with random weights, and what must be read of them."""

import gzip
import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizerFast,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

WORDS = "a photo of the cat dog red heart on mat with hat rocket over pizza grinning face ## not known".split()
# `<eos>` has the largest id, at which open_clip and older models of transformers pool.
VOCABULARY = ["<pad>", "<unk>", "<bos>", *WORDS, "<eos>"]
EOS = len(VOCABULARY) - 1
CONTEXT = 12
SIDE = 24


def small_tokenizer(folder, **options):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", EOS)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", model_max_length=CONTEXT, **options
    ).save_pretrained(folder)  # fmt: skip


def clip_tokenizer(folder):
    """CLIP's own tokenizer of 49,408 tokens, from the list of merges that open_clip brings."""
    source = Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT).save_pretrained(folder)


@torch.no_grad()
def randomise(model):
    """Weights that are large enough for every setting to show in the embeddings."""
    draw = torch.Generator().manual_seed(7)
    for name, tensor in model.named_parameters():
        if "logit" in name:
            continue
        noise = torch.randn(tensor.shape, generator=draw)
        if tensor.dim() > 1:
            tensor.copy_(1.2 * noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.2 * noise + ("norm" in name or "ln_" in name or "layrnorm" in name) * name.endswith("weight"))


def edit(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


# --- transformers

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "do_convert_rgb": True,
}  # fmt: skip


def transformers_folder(
    folder, text=None, vision=None, top=None, processor=None, dtype=torch.float32, shards=None, variant=None, tokenizer=small_tokenizer, config=None
):
    """A folder as transformers saves it; then `config` edits its config.json."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary, eos = (49408, 49407) if tokenizer is clip_tokenizer else (len(VOCABULARY), EOS)
    texts = {**tower, "vocab_size": vocabulary, "max_position_embeddings": CONTEXT, "eos_token_id": eos, "bos_token_id": 2, "pad_token_id": 0, **(text or {})}
    visions = {**tower, "image_size": SIDE, "patch_size": 8, **(vision or {})}
    model = CLIPModel(CLIPConfig(text_config=texts, vision_config=visions, **{"projection_dim": 16, **(top or {})}))
    randomise(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards or "5GB", variant=variant)
    tokenizer(folder)
    found = {key: value for key, value in {**PROCESSOR, **(processor or {})}.items() if value is not ...}
    (folder / "preprocessor_config.json").write_text(json.dumps(found))
    if config:
        edit(folder / "config.json", config)


def older_sections(keep):
    def change(config):
        for section in ("text_config", "vision_config"):
            given = config[section]
            config[f"{section}_dict"] = given
            # Old files have other values in the section that is not used.
            config[section] = {**given, "hidden_act": "gelu", "layer_norm_eps": 0.1} if keep else None

    return change


def set_in(section, **values):
    return lambda config: (config[section] if section else config).update(values)


def moved_processor(folder):
    found = (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    nested = {"processor_class": "CLIPProcessor", "image_processor": json.loads(found.read_text())}
    found.write_text(json.dumps(nested))


def changed_weights(change, name="model.safetensors"):
    def after(folder):
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return after


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_transformers():
    """(name, must be read, options of `transformers_folder`, what is done to the folder then)."""

    def case(name, must=True, after=None, **options):
        return name, must, options, after

    yield case("plain")
    for name, must in (
        ("gelu", True),
        ("gelu_new", True),
        ("gelu_fast", True),
        ("gelu_pytorch_tanh", True),
        ("gelu_python", False),
        ("gelu_10", False),
        ("relu", False),
        ("silu", False),
        ("gelu_accurate", False),
    ):
        yield case(f"activation-{name}", must, text={"hidden_act": name}, vision={"hidden_act": name})
    yield case("activation-differs", text={"hidden_act": "gelu"})
    yield case("layers", text={"num_hidden_layers": 1}, vision={"num_hidden_layers": 3})
    yield case(
        "widths",
        text={"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 50},
        vision={"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 31},
    )
    yield case("one-head", text={"num_attention_heads": 1}, vision={"num_attention_heads": 1})
    yield case("projection", top={"projection_dim": 7})
    yield case("projection-in-sections", text={"projection_dim": 99}, vision={"projection_dim": 99})
    yield case("eos-2", text={"eos_token_id": 2})
    yield case("eos-wrong", False, text={"eos_token_id": 5})
    yield case("eos-bos", False, config=set_in("text_config", eos_token_id=2, bos_token_id=EOS))
    yield case("eos-null", False, config=set_in("text_config", eos_token_id=None))
    yield case("eos-null-default", False, tokenizer=clip_tokenizer, config=set_in("text_config", eos_token_id=None))
    yield case("eos-missing", tokenizer=clip_tokenizer, config=lambda config: config["text_config"].pop("eos_token_id", None))
    for section, key in (("text_config", "layer_norm_eps"), ("text_config", "hidden_act"), ("vision_config", "patch_size"), ("vision_config", "num_channels")):
        yield case(f"null-{section}-{key}", False, config=set_in(section, **{key: None}))
    yield case("null-vision-eos", config=set_in("vision_config", eos_token_id=None, bos_token_id=None))
    yield case("eos-top", config=set_in("", eos_token_id=1))
    yield case("eos-list", False, config=set_in("text_config", eos_token_id=[EOS]))
    yield case("pad", text={"pad_token_id": 1})
    yield case("pad-is-eos", text={"pad_token_id": EOS})
    yield case("epsilon", text={"layer_norm_eps": 0.1}, vision={"layer_norm_eps": 0.02})
    yield case("epsilon-small", text={"layer_norm_eps": 1e-12}, vision={"layer_norm_eps": 1e-12})
    yield case("image-30", vision={"image_size": 30, "patch_size": 6}, processor={"size": 30, "crop_size": 30})
    yield case("patch-does-not-divide", vision={"image_size": 30, "patch_size": 7}, processor={"size": 30, "crop_size": 30})
    yield case("one-patch", vision={"patch_size": SIDE})
    yield case("patch-1", vision={"image_size": 6, "patch_size": 1}, processor={"size": 6, "crop_size": 6})
    yield case("context-4", text={"max_position_embeddings": 4})
    yield case("context-77", text={"max_position_embeddings": 77})
    yield case("larger-vocabulary", text={"vocab_size": len(VOCABULARY) + 9})
    yield case("smaller-vocabulary", False, text={"vocab_size": EOS, "eos_token_id": 2})
    yield case("grey", False, vision={"num_channels": 1})
    yield case("older-sections", config=older_sections(True))
    yield case("older-sections-alone", config=older_sections(False))
    yield case("older-sections-part", False, config=lambda config: config.update(text_config_dict={"hidden_size": 32}))
    yield case("older-sections-empty", False, config=lambda config: config.update(text_config_dict={}))
    yield case("older-sections-null", config=lambda config: config.update(text_config_dict=None, vision_config_dict=None))
    generation = {
        "return_dict": True,
        "top_k": 50,
        "bad_words_ids": None,
        "num_beams": 1,
        "is_decoder": False,
        "pruned_heads": {},
        "tie_encoder_decoder": False,
        "prefix": None,
    }
    yield case("old-keys", config=lambda config: [config[section].update(generation) for section in ("text_config", "vision_config")])
    yield case(
        "dropout",
        text={"attention_dropout": 0.5},
        vision={"attention_dropout": 0.5},
        config=lambda config: [config[s].update(dropout=0.5) for s in ("text_config", "vision_config")],
    )
    yield case("attention-eager", config=set_in("", _attn_implementation="eager"))
    yield case("attention-sdpa", config=set_in("", attn_implementation="sdpa"))
    yield case("initial-values", text={"initializer_factor": 3.0}, top={"logit_scale_init_value": 1.0})
    yield case("hidden-states", config=set_in("", output_hidden_states=True, output_attentions=True))
    yield case("chunked", config=set_in("text_config", chunk_size_feed_forward=2))
    yield case("decoder", False, config=set_in("text_config", is_decoder=True))
    yield case("labels", config=set_in("", id2label={"0": "cat"}, label2id={"cat": 0}))
    yield case("an-option-of-tomorrow", False, config=set_in("text_config", rope_theta=10000))
    yield case("model-type-missing", False, config=lambda config: config.pop("model_type"))
    yield case("model-type-siglip", False, config=set_in("", model_type="siglip"))
    yield case("section-types-missing", config=lambda config: [config[section].pop("model_type", None) for section in ("text_config", "vision_config")])
    yield case("heads-do-not-divide", False, config=set_in("text_config", num_attention_heads=5))
    yield case("other-heads", config=set_in("text_config", num_attention_heads=2))
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        yield case(f"weights-{name}", dtype=dtype)
        yield case(f"weights-{name}-shards", dtype=dtype, shards="20KB")
    yield case("weights-float32-shards", shards="20KB")
    yield case("weights-variant", dtype=torch.float16, variant="fp16")
    yield case("weights-float64", False, dtype=torch.float64)
    yield case("weights-pickled", False, pickled)
    yield case(
        "weights-mixed", after=changed_weights(lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items() if "mlp" in name}))
    )
    yield case(
        "weights-position-ids",
        after=changed_weights(
            lambda tensors: tensors.update(
                {"text_model.embeddings.position_ids": torch.arange(CONTEXT)[None], "vision_model.embeddings.position_ids": torch.arange(10)[None]}
            )
        ),
    )
    yield case("weights-extra", False, changed_weights(lambda tensors: tensors.update(extra=torch.ones(3))))
    yield case("weights-missing", False, changed_weights(lambda tensors: tensors.pop("text_model.final_layer_norm.bias")))
    yield case("tokenizer-clip", tokenizer=clip_tokenizer)
    yield case("tokenizer-clip-eos-2", tokenizer=clip_tokenizer, text={"eos_token_id": 2})

    side = {"height": SIDE, "width": SIDE}
    for name, must, processor in (
        ("size-number", True, {"size": SIDE, "crop_size": SIDE}), ("size-larger", True, {"size": {"shortest_edge": SIDE + 7}}), ("size-smaller", True, {"size": {"shortest_edge": 17}}),
        ("size-square", True, {"size": side, "do_center_crop": False}), ("size-square-cropped", True, {"size": {"height": 30, "width": 30}}),
        ("size-oblong-cropped", True, {"size": {"height": 30, "width": 41}}), ("size-oblong", False, {"size": {"height": 30, "width": 41}, "do_center_crop": False}),
        ("size-longest-too", False, {"size": {"shortest_edge": SIDE, "longest_edge": 30}}), ("size-longest", False, {"size": {"longest_edge": SIDE}}),
        ("size-all", False, {"size": {"shortest_edge": SIDE, **side}}), ("size-float", False, {"size": {"shortest_edge": float(SIDE)}}), ("size-text", False, {"size": "24"}),
        ("size-missing", False, {"size": ...}), ("size-null", False, {"size": None}), ("size-no-crop", False, {"do_center_crop": False}),
        ("crop-number", True, {"crop_size": SIDE}), ("crop-shortest", False, {"crop_size": {"shortest_edge": SIDE}}), ("crop-oblong", False, {"crop_size": {"height": SIDE, "width": 30}}),
        ("crop-missing", False, {"crop_size": ...}), ("crop-null", False, {"crop_size": None}), ("crop-number-square", True, {"size": SIDE, "crop_size": SIDE, "default_to_square": False}),
        ("no-resize", True, {"do_resize": False}), ("no-rescale", True, {"do_rescale": False}), ("rescale", True, {"rescale_factor": 1 / 127.5}),
        ("no-normalize", True, {"do_normalize": False}), ("mean", True, {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}),
        ("mean-number", False, {"image_mean": 0.5, "image_std": 0.5}), ("mean-missing", True, {"image_mean": ..., "image_std": ...}), ("mean-null", True, {"image_mean": None, "image_std": None}),
        ("std-zero", False, {"image_std": [0.0, 1.0, 1.0]}), ("no-rgb", True, {"do_convert_rgb": False}), ("rgb-null", True, {"do_convert_rgb": None}),
        *((f"{key}-null", False, {key: None}) for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "resample", "rescale_factor")),
        *((f"{key}-missing", True, {key: ...}) for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "resample", "rescale_factor", "do_convert_rgb")),
        *((f"resample-{number}", True, {"resample": number}) for number in range(6)), ("resample-6", False, {"resample": 6}), ("resample-text", False, {"resample": "bicubic"}),
        ("type-missing", True, {"image_processor_type": ...}), ("type-older", True, {"image_processor_type": ..., "feature_extractor_type": "CLIPFeatureExtractor"}),
        ("type-other", False, {"image_processor_type": "ViTImageProcessor"}), ("unknown", False, {"do_sharpen": True}), ("pad", False, {"do_pad": True}),
    ):  # fmt: skip
        yield case(f"processor-{name}", must, processor=processor)
    yield case("processor-file", after=moved_processor)
    yield case("processor-other-side", False, processor={"size": 30, "crop_size": 30})


# --- SigLIPs of transformers

SIGLIP_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": None,
}  # fmt: skip


def siglip_folder(folder, text=None, vision=None, processor=None, dtype=torch.float32, shards=None, tokenizer=small_tokenizer, config=None):
    """A folder as transformers saves it; then `config` edits its config.json."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    texts = {**tower, "vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT, **(text or {})}
    model = SiglipModel(SiglipConfig(text_config=texts, vision_config={**tower, "image_size": SIDE, "patch_size": 8, **(vision or {})}))
    randomise(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards or "5GB")
    tokenizer(folder)
    found = {key: value for key, value in {**SIGLIP_PROCESSOR, **(processor or {})}.items() if value is not ...}
    (folder / "preprocessor_config.json").write_text(json.dumps(found))
    if config:
        edit(folder / "config.json", config)


def padded_with(token):
    """The small tokenizer with another padding token."""

    def write(folder):
        small_tokenizer(folder)
        edit(folder / "tokenizer_config.json", lambda config: config.update(pad_token=token))
        edit(folder / "special_tokens_map.json", lambda config: config.update(pad_token=token))

    return write


def of_siglip():
    """As `of_transformers`."""

    def case(name, must=True, after=None, **options):
        return name, must, options, after

    yield case("plain")
    yield case("projection", text={"hidden_size": 24, "projection_size": 32}, vision={"num_attention_heads": 8})
    yield case("projection-of-another-width", False, text={"projection_size": 16})
    yield case("activations", text={"hidden_act": "gelu"}, vision={"hidden_act": "quick_gelu"})
    yield case("epsilon", text={"layer_norm_eps": 1e-2}, vision={"layer_norm_eps": 1e-2})
    yield case("layers", text={"num_hidden_layers": 1}, vision={"num_hidden_layers": 3})
    yield case("context-4", text={"max_position_embeddings": 4})
    yield case("patch-does-not-divide", vision={"image_size": SIDE, "patch_size": 7})
    yield case("padded-with-the-end", tokenizer=padded_with("<eos>"))
    yield case("no-head", False, config=set_in("vision_config", vision_use_head=False))
    yield case("naflex", False, config=set_in("", model_type="siglip2"))
    yield case("an-option-of-tomorrow", False, config=set_in("text_config", rope_theta=10000))
    yield case("weights-float16", dtype=torch.float16)
    yield case("weights-bfloat16-shards", dtype=torch.bfloat16, shards="20KB")
    yield case("weights-extra", False, changed_weights(lambda tensors: tensors.update(extra=torch.ones(3))))
    yield case("without-bias-of-logits", False, changed_weights(lambda tensors: tensors.pop("logit_bias")))
    for name, must, value in (
        ("bilinear", True, {"resample": 2}), ("lanczos", True, {"resample": 1}), ("default-size", False, {"size": ...}), ("oblong", False, {"size": {"height": SIDE, "width": 32}}),
        ("mean", True, {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}), ("no-normalisation", True, {"do_normalize": False}), ("default-mean", True, {"image_mean": ..., "image_std": ...}),
        ("not-rescaled", True, {"do_rescale": False}), ("unknown", False, {"patch_size": 16}),
    ):  # fmt: skip
        yield case(f"processor-{name}", must, processor=value)


# --- open_clip


def open_clip_folder(folder, vision=None, text=None, top=None, preprocess=None, tokenizer=small_tokenizer, dtype=torch.float32, build=None, config=None):
    """A folder as open_clip pushes it to a hub; `build` changes how the model is built, `config` the file that is then written."""
    import open_clip

    named = {} if tokenizer is clip_tokenizer else {"hf_tokenizer_name": "beside-this-file", "vocab_size": len(VOCABULARY)}
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8, **(vision or {})},
        "text_cfg": {"context_length": CONTEXT, "width": 32, "heads": 4, "layers": 2, **named, **(text or {})},
        **(top or {}),
    }
    built = json.loads(json.dumps(model_cfg))
    if build:
        build(built)
    cls = open_clip.model.CustomTextCLIP if built.pop("custom_text", False) else open_clip.model.CLIP
    model = cls(**built)
    randomise(model)
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors", metadata={"format": "pt"}
    )
    tokenizer(folder)
    (folder / "open_clip_config.json").write_text(
        json.dumps(
            {
                "model_cfg": model_cfg,
                "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], **(preprocess or {})},
            }
        )
    )
    if config:
        edit(folder / "open_clip_config.json", config)


def of_open_clip():
    """As `of_transformers`."""

    def case(name, must=True, after=None, **options):
        return name, must, options, after

    yield case("plain")
    yield case("quick-gelu", top={"quick_gelu": True})
    yield case("mlp-ratio", vision={"mlp_ratio": 2.0}, text={"mlp_ratio": 3.0})
    yield case("mlp-ratio-odd", vision={"mlp_ratio": 4.9231}, text={"mlp_ratio": 2.66})
    yield case("head-width", vision={"head_width": 16}, text={"heads": 8})
    yield case("head-width-does-not-divide", False, vision={"width": 36, "head_width": 16, "layers": 1})
    yield case("layers", vision={"layers": 1}, text={"layers": 3})
    yield case("widths", vision={"width": 40}, text={"width": 24})
    yield case("embedding", top={"embed_dim": 7})
    yield case("context-4", text={"context_length": 4})
    yield case("context-77", text={"context_length": 77})
    yield case("image-30", vision={"image_size": 30, "patch_size": 6})
    yield case("patch-does-not-divide", vision={"image_size": 30, "patch_size": 7})
    yield case("one-patch", vision={"patch_size": SIDE})
    yield case("image-pair", False, vision={"image_size": [SIDE, SIDE]})
    yield case("image-oblong", False, vision={"image_size": [SIDE, 32]})
    yield case("patch-pair", False, vision={"patch_size": [8, 8]})
    yield case("resnet", False, vision={"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32, "patch_size": None})
    for name, must, value in (
        ("ls_init_value", False, 0.1), ("patch_dropout", True, 0.5), ("attentional_pool", False, True), ("no_ln_pre", False, True), ("pos_embed_type", False, "sin_cos_2d"),
        ("final_ln_after_pool", False, True), ("pool_type", False, "avg"), ("pool_type", True, "tok"), ("output_tokens", False, True), ("act_kwargs", False, {"approximate": "tanh"}),
        ("act_kwargs", True, {}), ("norm_kwargs", False, {"eps": 0.1}), ("norm_kwargs", True, {}), ("block_type", True, "default"), ("block_type", False, "custom"), ("qk_norm", False, True),
        ("scaled_cosine_attn", False, True), ("scale_heads", False, True), ("scale_attn_inner", False, True), ("scale_attn", False, True), ("scale_fc", False, True), ("qk_norm", True, False),
        ("timm_pool", True, "avg"), ("timm_proj", True, "linear"), ("attn_pooler_heads", True, 4),
    ):  # fmt: skip
        yield case(f"vision-{name}-{json.dumps(value)}", must, vision={name: value})
    for name, must, value in (
        ("ls_init_value", False, 0.1), ("embed_cls", False, True), ("no_causal_mask", False, True), ("no_causal_mask", True, False), ("final_ln_after_pool", False, True),
        ("pool_type", True, "argmax"), ("pool_type", False, "first"), ("pool_type", False, "last"), ("pool_type", False, "eos"), ("proj_bias", False, True), ("proj_bias", True, False),
        ("proj_type", True, "linear"), ("output_tokens", False, True), ("act_kwargs", False, {"approximate": "tanh"}), ("norm_kwargs", False, {"eps": 0.1}), ("block_type", False, "custom"),
        ("qk_norm", False, True), ("scale_heads", False, True), ("scale_attn", False, True), ("scale_fc", False, True), ("pad_id", True, 1), ("eos_id", True, 5), ("hf_proj_type", True, "mlp"),
        ("hf_pooler_type", True, "mean_pooler"), ("hf_model_pretrained", True, False), ("tokenizer_kwargs", True, {}), ("tokenizer_kwargs", False, {"strip_sep_token": True}), ("tokenizer_kwargs", False, {"clean": "lower"}),
        ("tokenizer_mode", False, "clips"),
    ):  # fmt: skip
        yield case(f"text-{name}-{json.dumps(value)}", must, text={name: value})
    yield case("text-proj_type-none", False, text={"proj_type": "none"}, top={"embed_dim": 32})
    for name, must, value in (
        ("init_logit_scale", True, 1.0), ("init_logit_bias", True, -10.0), ("output_dict", True, True), ("nonscalar_logit_scale", False, True), ("custom_text", False, True),
    ):  # fmt: skip
        yield case(f"{name}-{json.dumps(value)}", must, top={name: value})
    yield case("an-option-of-tomorrow", False, build=lambda config: config["vision_cfg"].pop("rope"), vision={"rope": True})
    yield case("weights-float16", dtype=torch.float16)
    yield case("weights-bfloat16", dtype=torch.bfloat16)
    yield case("weights-extra", False, changed_weights(lambda tensors: tensors.update(extra=torch.ones(3)), "open_clip_model.safetensors"))
    siglip = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-2}, "tokenizer_kwargs": {"clean": "canonicalize"}}
    custom = {"custom_text": True, "init_logit_bias": -10.0}
    yield case("siglip-text", text=siglip, top=custom)
    yield case("siglip-text-tanh", text={**siglip, "act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 3.0}, top=custom)
    yield case("siglip-text-without-projection", text={**siglip, "proj_bias": False, "proj_type": "none"}, top={**custom, "embed_dim": 32})
    yield case("siglip-text-not-custom", False, text=siglip)
    yield case("tokenizer-clip", tokenizer=clip_tokenizer)
    yield case("tokenizer-clip-quick-gelu", tokenizer=clip_tokenizer, top={"quick_gelu": True})
    for name, must, value in (
        ("mean", True, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}), ("mean-number", False, {"mean": 0.5, "std": 0.5}), ("mean-null", True, {"mean": None, "std": None}),
        ("bilinear", True, {"interpolation": "bilinear"}), ("bicubic", True, {"interpolation": "bicubic"}), ("random", False, {"interpolation": "random"}), ("nearest", False, {"interpolation": "nearest"}),
        ("lanczos", False, {"interpolation": "lanczos"}), ("interpolation-number", False, {"interpolation": 2}), ("resize-null", True, {"resize_mode": None, "interpolation": None}),
        ("shortest", True, {"resize_mode": "shortest"}), ("squash", True, {"resize_mode": "squash"}), ("squash-bilinear", True, {"resize_mode": "squash", "interpolation": "bilinear"}),
        ("longest", False, {"resize_mode": "longest"}), ("resize-number", False, {"resize_mode": 1}), ("fill", True, {"fill_color": 128}), ("fill-longest", False, {"fill_color": 128, "resize_mode": "longest"}),
        ("size", True, {"size": SIDE}), ("size-pair", True, {"size": [SIDE, SIDE]}), ("size-other", False, {"size": 30}), ("mode", True, {"mode": "RGB"}), ("mode-grey", False, {"mode": "L"}),
        ("unknown", False, {"sharpen": 1}),
    ):  # fmt: skip
        yield case(f"preprocess-{name}", must, preprocess=value)
    yield case("preprocess-missing", config=lambda config: config.pop("preprocess_cfg"))
    yield case("preprocess-empty", config=lambda config: config.update(preprocess_cfg={}))
