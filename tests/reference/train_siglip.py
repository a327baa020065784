"""Trains the small SigLIP of tests/model-siglip on the demo's drawings, from the demo's CLIP as a teacher.

Usage: train_siglip.py OUT_FOLDER [TEXT_EPOCHS VISION_EPOCHS PAIR_EPOCHS]

1. A Unigram tokenizer is trained on captions and retain texts, with the normalisation of SigLIP's own.
2. The towers start from the blocks of the CLIP in tests/model. The attention pooling starts from that model's last block.
3. The text tower learns the teacher's text embeddings; the vision tower learns its image embeddings, and by the sigmoid loss the names.
   Each begins with its last linear map by least squares.
4. Both towers, scale and bias learn from the pairs by SigLIP's loss.

Training uses the shards of jobs/emoji that the demo trains on (retain-*.tar, forget/*.tar), one drawing and one caption a pair;
validation.tar and test.tar are only measured. The products are in bfloat16, so another processor gives other last digits.
"""

import csv
import io
import json
import math
import sys
import tarfile
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import affine_grid, grid_sample, logsigmoid
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipModel
from transformers import SiglipImageProcessor

ROOT = Path(__file__).resolve().parents[2]
DEMO, TEACHER = ROOT / "jobs/emoji", ROOT / "tests/model"
SIDE, PATCH, WIDTH, CONTEXT, VOCABULARY = 48, 8, 192, 16, 1800
# The teacher's blocks that a tower starts from; its last vision block becomes the attention pooling.
VISION_BLOCKS, TEXT_BLOCKS = (0, 1, 2, 3), (0, 1, 3)
BATCH = 128
AUGMENTATION = 0.4
EPOCHS = dict(zip(("text", "vision", "pairs"), map(int, sys.argv[2:] or (8, 8, 2))))
PUNCTUATION = r"[!\"\#\$%\&'\(\)\*\+,\-\./:;<=>\?@\[\\\]\^_`\{\|\}\~]"
# Names whose meaning a mirror changes (worker/demo/src/train_loop.rs).
HANDED = {"left", "right", "arrow", "clockwise", "button", "east", "west", "input", "play", "fast", "next", "last", "part"}
began = time.time()


def say(text):
    print(f"{time.time() - began:6.0f} s, {time.process_time():6.1f} s of processor time  {text}", flush=True)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def read_shards(paths):
    """Images and captions of shards in their order."""
    images, captions = [], []
    for path in paths:
        samples = {}
        with tarfile.open(path) as shard:
            for member in shard:
                key, ending = member.name.split(".", 1)
                samples.setdefault(key, {})[ending] = shard.extractfile(member).read()
        for files in samples.values():
            encoded = next(files[e] for e in ("png", "webp", "jpg") if e in files)
            images.append(Image.open(io.BytesIO(encoded)).convert("RGB"))
            captions.append(files["txt"].decode().strip())
    return images, captions


def class_of(caption):
    """The class that a caption of the demo names: alone, before keywords, or after `emoji of`."""
    return caption.removeprefix("emoji of ").split(", ")[0]


class Data:
    """The training pairs, the class list and the retain texts."""

    def __init__(self):
        self.classes = (DEMO / "classes.txt").read_text().splitlines()
        index = {name: i for i, name in enumerate(self.classes)}
        with open(DEMO / "concepts-300.csv", newline="") as table:
            forget = [DEMO / row["forget"] for row in csv.DictReader(table)]
        images, self.captions = read_shards(sorted(DEMO.glob("retain-*.tar")) + forget)
        names = [class_of(caption) for caption in self.captions]
        self.labels = torch.tensor([index[name] for name in names])
        self.mirror = torch.tensor([not HANDED & set(name.replace("-", " ").split()) for name in names])
        processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
        # In 0 to 1.
        self.pixels = processor(images, return_tensors="pt")["pixel_values"] / 2 + 0.5
        self.texts = (DEMO / "retain-texts.txt").read_text().splitlines()


def train_tokenizer(data, out):
    """A Unigram tokenizer in the manner of SigLIP's: lower case, no punctuation, single spaces, `</s>` as end and as padding."""
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Lowercase(), normalizers.Replace(Regex(PUNCTUATION), ""), normalizers.Replace(Regex(r"\s+"), " ")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(data.classes * 4 + data.captions + data.texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    assert [tokenizer.token_to_id(token) for token in special] == [0, 1, 2]
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "processor_class": "SiglipProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "model_input_names": ["input_ids"],
        "padding_side": "right",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    write_json(out / "tokenizer_config.json", settings)
    write_json(out / "special_tokens_map.json", {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"})
    settings = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5] * 3,
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    write_json(out / "preprocessor_config.json", settings)
    return AutoTokenizer.from_pretrained(out)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def tokens(tokenizer, texts):
    settings = dict(padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    return tokenizer(texts, **settings)["input_ids"]


class Teacher:
    """The demo's CLIP."""

    def __init__(self):
        self.model = CLIPModel.from_pretrained(TEACHER).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(TEACHER)
        processor = CLIPImageProcessor.from_pretrained(TEACHER)
        self.mean, self.deviation = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))

    @torch.no_grad()
    def texts(self, texts):
        settings = dict(padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt", return_token_type_ids=False)
        found = []
        for start in range(0, len(texts), 256):
            encoded = self.tokenizer(texts[start : start + 256], **settings)
            # Nothing after the end has an effect on a causal text tower.
            longest = int(encoded.pop("attention_mask").sum(1).max())
            with bfloat16():
                found.append(self.model.get_text_features(encoded["input_ids"][:, :longest]).float())
        return unit(torch.cat(found))

    @torch.no_grad()
    def images(self, pixels):
        with bfloat16():
            found = [self.model.get_image_features((part - self.mean) / self.deviation).float() for part in pixels.split(256)]
        return unit(torch.cat(found))


def student(teacher, tokenizer):
    """A SigLIP whose weights start from the teacher's."""
    shape = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=6)
    vocabulary = len(tokenizer)
    config = SiglipConfig(
        text_config=dict(**shape, num_hidden_layers=len(TEXT_BLOCKS), vocab_size=vocabulary, max_position_embeddings=CONTEXT),
        vision_config=dict(**shape, num_hidden_layers=len(VISION_BLOCKS), image_size=SIDE, patch_size=PATCH),
    )
    model = SiglipModel(config)
    with torch.no_grad():
        start_text(model.text_model, teacher, tokenizer)
        start_vision(model.vision_model, teacher)
        model.logit_scale.fill_(math.log(20))
        model.logit_bias.fill_(-8)
    return model


def start_text(tower, teacher, tokenizer):
    """Words take the teacher's embeddings; positions are one earlier, because there is no token at the beginning."""
    old = teacher.model.text_model
    words, positions = old.embeddings.token_embedding.weight, old.embeddings.position_embedding.weight
    torch.nn.init.normal_(tower.embeddings.token_embedding.weight, std=words.std().item())
    known = teacher.tokenizer.get_vocab()
    for piece, i in tokenizer.get_vocab().items():
        if piece.startswith("▁") and piece[1:] in known:
            tower.embeddings.token_embedding.weight[i] = words[known[piece[1:]]]
    tower.embeddings.token_embedding.weight[1] = words[known["<eos>"]]
    tower.embeddings.position_embedding.weight.copy_(torch.cat([positions[1:], positions[-1:]]))
    for block, number in zip(tower.encoder.layers, TEXT_BLOCKS):
        block.load_state_dict(old.encoder.layers[number].state_dict())
    tower.final_layer_norm.load_state_dict(old.final_layer_norm.state_dict())
    tower.head.weight.copy_(teacher.model.text_projection.weight)
    tower.head.bias.zero_()


def start_vision(tower, teacher):
    """Pixels are scaled otherwise, and the norm before the first block is gone: both go into the patch embedding."""
    old = teacher.model.vision_model
    gain, offset = old.pre_layrnorm.weight, old.pre_layrnorm.bias
    patches, positions = old.embeddings.patch_embedding.weight, old.embeddings.position_embedding.weight[1:]
    weight = patches * (0.5 / teacher.deviation)
    bias = (patches * ((0.5 - teacher.mean) / teacher.deviation)).sum((1, 2, 3))
    # One mean and one spread for all images and patches.
    pixels = teacher.sample
    spread = (old.embeddings.patch_embedding((pixels - teacher.mean) / teacher.deviation).flatten(2).mT + positions).std(-1).mean()
    centre = torch.eye(WIDTH) - 1 / WIDTH
    scale = gain / spread
    tower.embeddings.patch_embedding.weight.copy_(scale.view(-1, 1, 1, 1) * (centre @ weight.flatten(1)).view_as(weight))
    tower.embeddings.patch_embedding.bias.copy_(scale * (centre @ bias) + offset)
    tower.embeddings.position_embedding.weight.copy_(scale * (positions @ centre))
    for block, number in zip(tower.encoder.layers, VISION_BLOCKS):
        block.load_state_dict(old.encoder.layers[number].state_dict())

    # The pooling does what the last block does for the class token, whose query and state are the sample's mean here.
    last, head = old.encoder.layers[-1], tower.head
    tower.post_layernorm.load_state_dict(last.layer_norm1.state_dict())
    states = old((pixels - teacher.mean) / teacher.deviation, output_hidden_states=True).hidden_states[len(VISION_BLOCKS)]
    state = states[:, 0].mean(0)
    head.probe.copy_(last.layer_norm1(states[:, 0]).mean(0).view(1, 1, -1))
    attention = last.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    head.attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    head.attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    # The last norm's gain and the projection follow; its spread is left out.
    out = teacher.model.visual_projection.weight * old.post_layernorm.weight
    back = torch.linalg.pinv(out, rtol=1e-2)
    head.attention.out_proj.weight.copy_(out @ attention.out_proj.weight)
    head.attention.out_proj.bias.copy_(out @ (attention.out_proj.bias + state))
    head.layernorm.weight.fill_(1)
    head.layernorm.bias.zero_()
    head.mlp.fc1.weight.copy_(last.mlp.fc1.weight * last.layer_norm2.weight @ back)
    head.mlp.fc1.weight.mul_((last.mlp.fc1.weight * last.layer_norm2.weight).norm() / head.mlp.fc1.weight.norm())
    head.mlp.fc1.bias.copy_(last.mlp.fc1.bias + last.mlp.fc1.weight @ last.layer_norm2.bias)
    head.mlp.fc2.weight.copy_(out @ last.mlp.fc2.weight)
    head.mlp.fc2.bias.copy_(out @ last.mlp.fc2.bias)


def uniform(n, low, high):
    return torch.rand(n) * (high - low) + low


def augment(pixels, mirror, strength):
    """Random places, sizes, angles and colours, on the ink, so that paper stays white (worker/demo/src/train_augment.rs)."""
    if strength == 0:
        return pixels
    n = len(pixels)
    angle, shear = uniform(n, -0.35, 0.35) * strength, uniform(n, -0.12, 0.12) * strength
    size, aspect = (uniform(n, -0.22, 0.22) * strength).exp(), (uniform(n, -0.12, 0.12) * strength).exp()
    flip = 1 - 2 * ((torch.rand(n) < 0.5) & mirror).float()
    cos, sin, across, down = angle.cos(), angle.sin(), size * aspect, size / aspect
    shift = uniform((2, n), -0.18, 0.18) * strength
    rows = [cos * across * flip, (shear - sin) * down, shift[0], sin * across * flip, cos * down, shift[1]]
    grid = affine_grid(torch.stack(rows, 1).view(n, 2, 3), pixels.shape, align_corners=False)
    ink = grid_sample(1 - pixels, grid, align_corners=False)
    grey = ink.mean(1, keepdim=True)
    saturation = uniform((n, 1, 1, 1), 1 - 0.6 * strength, 1 + 0.4 * strength)
    saturation = saturation * (torch.rand(n, 1, 1, 1) > 0.12 * strength)
    level = uniform((n, 3, 1, 1), 1 - 0.2 * strength, 1 + 0.2 * strength) * uniform((n, 1, 1, 1), 1 - 0.3 * strength, 1 + 0.25 * strength)
    return 1 - ((grey + saturation * (ink - grey)) * level).clamp(0, 1)


def embed_images(model, pixels, kept=1.0):
    """Image embeddings, from a random share of the patches."""
    tower = model.vision_model
    states = tower.embeddings(pixels * 2 - 1)
    if kept < 1:
        patches = states.shape[1]
        chosen = torch.rand(len(states), patches).topk(round(patches * kept), dim=1).indices
        states = states.gather(1, chosen.unsqueeze(-1).expand(-1, -1, WIDTH))
    for block in tower.encoder.layers:
        states = block(states, None)
    return unit(tower.head(tower.post_layernorm(states)).float())


def embed_texts(model, ids):
    return unit(model.get_text_features(ids).float())


def sigmoid_loss(logits, wanted):
    """SigLIP's loss; `wanted[i, j]` says whether text j is image i's."""
    return -logsigmoid(torch.where(wanted, logits, -logits)).sum(1).mean()


class Training:
    """An optimiser with a warm-up and a cosine schedule, and the running average of the weights."""

    def __init__(self, parameters, steps, rate):
        self.parameters, self.steps, self.rate, self.step = list(parameters), steps, rate, 0
        matrices = [p for p in self.parameters if p.dim() > 1]
        vectors = [p for p in self.parameters if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), foreach=True)
        self.average = [p.detach().clone() for p in self.parameters]

    def descend(self, loss):
        rate = min(1.0, (self.step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps) + 0.01)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - min(0.99, (self.step + 1) / (self.step + 10)))

    def finish(self):
        for p, mean in zip(self.parameters, self.average):
            p.data.copy_(mean)


def least_squares(inputs, targets, ridge=1e-3):
    """Weight and bias of the linear map from inputs to targets."""
    centre, goal = inputs.mean(0), targets.mean(0)
    x, y = (inputs - centre).double(), (targets - goal).double()
    gram = x.T @ x
    weight = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ y).T.float()
    return weight, goal - weight @ centre


@torch.no_grad()
def fit_text_head(model, ids, targets):
    tower = model.text_model
    with bfloat16():
        states = torch.cat([tower(part).last_hidden_state[:, -1].float() for part in ids.split(256)])
    weight, bias = least_squares(states, targets)
    tower.head.weight.copy_(weight)
    tower.head.bias.copy_(bias)


@torch.no_grad()
def fit_vision_head(model, pixels, targets):
    """The pooling's second MLP layer, on what its attention leaves of the target."""
    head, inputs, outputs = model.vision_model.head, [], []
    hooks = [
        head.mlp.fc2.register_forward_hook(lambda _, received, __: inputs.append(received[0][:, 0].float())),
        head.attention.register_forward_hook(lambda _, __, output: outputs.append(output[0][:, 0].float())),
    ]
    with bfloat16():
        for part in pixels.split(256):
            embed_images(model, part)
    for hook in hooks:
        hook.remove()
    hidden, attended = torch.cat(inputs), torch.cat(outputs)
    # The attention's part is as long as the target, which is of unit length.
    factor = 1 / attended.norm(dim=-1).mean()
    head.attention.out_proj.weight.mul_(factor)
    head.attention.out_proj.bias.mul_(factor)
    weight, bias = least_squares(hidden, targets - factor * attended)
    head.mlp.fc2.weight.copy_(weight)
    head.mlp.fc2.bias.copy_(bias)


def train_text(model, teacher, data, tokenizer):
    texts = sorted(set(data.classes + data.captions + data.texts[:1000])) + data.classes
    targets, ids = teacher.texts(texts), tokens(tokenizer, texts)
    say(f"text: {len(texts)} texts, cosine {cosine(model, ids, targets):.3f} with the teacher's embeddings before")
    fit_text_head(model, ids, targets)
    say(f"text: cosine {cosine(model, ids, targets):.3f} by least squares")
    training = Training(model.text_model.parameters(), EPOCHS["text"] * (len(texts) // BATCH), 1e-3)
    for epoch in range(EPOCHS["text"]):
        for rows in torch.randperm(len(texts))[: len(texts) // BATCH * BATCH].split(BATCH):
            with bfloat16():
                embeds = embed_texts(model, ids[rows])
            loss = 1 - (embeds * targets[rows]).sum(-1).mean()
            training.descend(loss)
        say(f"text {epoch + 1}: cosine {1 - loss.item():.3f}")
    training.finish()
    fit_text_head(model, ids, targets)
    say(f"text: cosine {cosine(model, ids, targets):.3f} after")


@torch.no_grad()
def cosine(model, ids, targets):
    with bfloat16():
        return (embed_texts(model, ids[:1024]) * targets[:1024]).sum(-1).mean().item()


def train_vision(model, teacher, data):
    """Teacher's image embeddings, and among the teacher's texts of all class names the right one by the sigmoid loss."""
    classes, targets = teacher.texts(data.classes), teacher.images(data.pixels)
    say(f"vision: {len(targets)} drawings; the teacher finds {top(targets, classes, data.labels)} of them")
    fit_vision_head(model, data.pixels, targets)
    sample = torch.arange(0, len(targets), 4)
    found = embedded(model, data.pixels[sample])
    near = (found * targets[sample]).sum(-1).mean()
    say(f"vision: cosine {near:.3f} by least squares, which finds {top(found, classes, data.labels[sample])}")
    scale, bias = (torch.nn.Parameter(torch.tensor(value)) for value in (math.log(20.0), -8.0))
    steps = EPOCHS["vision"] * (len(targets) // BATCH)
    training = Training([*model.vision_model.parameters(), scale, bias], steps, 3e-4)
    for epoch in range(EPOCHS["vision"]):
        # Half of the patches teach almost as much in half the time; the last epochs see whole drawings.
        kept = 0.5 if epoch < 0.7 * (EPOCHS["vision"] - 1) else 1.0
        for rows in torch.randperm(len(targets))[: len(targets) // BATCH * BATCH].split(BATCH):
            pixels, labels = augment(data.pixels[rows], data.mirror[rows], AUGMENTATION), data.labels[rows]
            goal = teacher.images(pixels)
            with bfloat16():
                embeds = embed_images(model, pixels, kept)
            near = 1 - (embeds * goal).sum(-1).mean()
            wanted = labels[:, None] == torch.arange(len(classes))
            right = sigmoid_loss(scale.exp() * embeds @ classes.T + bias, wanted)
            training.descend(10 * near + right)
        say(f"vision {epoch + 1}: cosine {1 - near.item():.3f}, sigmoid loss {right.item():.3f}")
    training.finish()
    with torch.no_grad():
        model.logit_scale.fill_(scale.item())
        model.logit_bias.fill_(bias.item())


@torch.no_grad()
def embedded(model, pixels):
    with bfloat16():
        return torch.cat([embed_images(model, part) for part in pixels.split(256)])


def batches_without_repetition(labels):
    """Batches in which no class occurs twice."""
    batches, waiting = [], torch.randperm(len(labels)).tolist()
    while len(waiting) >= BATCH:
        rows, seen, later = [], set(), []
        for row in waiting:
            label = labels[row].item()
            if len(rows) < BATCH and label not in seen:
                rows.append(row)
                seen.add(label)
            else:
                later.append(row)
        if len(rows) < BATCH:
            break
        batches.append(torch.tensor(rows))
        waiting = later
    return batches


def train_pairs(model, data, tokenizer):
    """SigLIP's own loss over pairs; half of the captions are the plain name, by which the classes are called."""
    captions, names = tokens(tokenizer, data.captions), tokens(tokenizer, [data.classes[label] for label in data.labels])
    epochs = [batches_without_repetition(data.labels) for _ in range(EPOCHS["pairs"])]
    training = Training(model.parameters(), sum(map(len, epochs)), 1e-4)
    for epoch, batches in enumerate(epochs):
        for rows in batches:
            ids = torch.where(torch.rand(len(rows), 1) < 0.5, names[rows], captions[rows])
            pixels = augment(data.pixels[rows], data.mirror[rows], 0.3)
            with bfloat16():
                images, texts = embed_images(model, pixels), embed_texts(model, ids)
            loss = sigmoid_loss(model.logit_scale.exp() * images @ texts.T + model.logit_bias, torch.eye(len(rows), dtype=torch.bool))
            training.descend(loss)
        say(f"pairs {epoch + 1}: loss {loss.item():.3f}")
    training.finish()


def top(images, classes, labels):
    found = (images @ classes.T).topk(5).indices == labels[:, None]
    return f"{100 * found[:, 0].float().mean():.1f}/{100 * found.any(1).float().mean():.1f} %"


def write(model, out):
    """Half precision, as the demo's own model is."""
    model.config.architectures, model.config.dtype = ["SiglipModel"], torch.float16
    model.config.save_pretrained(out)
    weights = {name: t.half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def measure(out, data):
    """What the written folder scores in float32 by transformers' own processor, by set and role; writes the concepts to remove."""
    model, processor = AutoModel.from_pretrained(out, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(out, use_fast=False)
    encoded = processor(text=data.classes, padding="max_length", truncation=True, return_tensors="pt")
    classes = unit(torch.cat([model.get_text_features(part) for part in encoded["input_ids"].split(256)]))
    index = {name: i for i, name in enumerate(data.classes)}
    with open(DEMO / "split.csv", newline="") as table:
        roles = {row["class"]: row["role"] for row in csv.DictReader(table)}
    with open(DEMO / "concepts-300.csv", newline="") as table:
        concepts = list(csv.DictReader(table))
    # Per class, by how much its drawings' cosine with the name exceeds that with any other name, at least.
    margins = torch.full((len(classes),), math.inf)
    for name, paths in {
        "validation": [DEMO / "validation.tar"],
        "test": [DEMO / "test.tar"],
        "training": sorted(DEMO.glob("retain-*.tar")) + [DEMO / row["forget"] for row in concepts],
    }.items():
        images, captions = read_shards(paths)
        names = [class_of(caption) for caption in captions]
        labels = torch.tensor([index[name] for name in names])
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        embeds = unit(torch.cat([model.get_image_features(part) for part in pixels.split(256)]))
        say(f"{name}: {top(embeds, classes, labels)} of {len(images)}")
        for role in ("removable", "covered", "unseen"):
            rows = torch.tensor([roles[name] == role for name in names])
            if rows.any():
                say(f"  {role}: {top(embeds[rows], classes, labels[rows])} of {rows.sum()}")
        cosines = embeds @ classes.T
        own = cosines.gather(1, labels[:, None]).squeeze(1)
        others = cosines.scatter(1, labels[:, None], -1).max(1).values
        margins = margins.scatter_reduce(0, labels, own - others, "amin")
    write_concepts(out / "concepts.csv", concepts, {row["class"]: margins[index[row["class"]]].item() for row in concepts})


def write_concepts(path, concepts, margins):
    """The two concepts of each group that no drawing of any family mistakes, by the widest margins."""
    rows = []
    for group in sorted({row["group"] for row in concepts}):
        members = [row for row in concepts if row["group"] == group and margins[row["class"]] > 0]
        rows += sorted(members, key=lambda row: -margins[row["class"]])[:2]
    with path.open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "forget": "../../jobs/emoji/" + row["forget"]} for row in rows)
    say(f"{len(rows)} of {sum(margin > 0 for margin in margins.values())} concepts without a mistake: " + ", ".join(r["id"] for r in rows))


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    torch.set_num_threads(1)
    data = Data()
    say(f"{len(data.captions)} pairs of {len(set(data.labels.tolist()))} classes")
    tokenizer = train_tokenizer(data, out)
    teacher = Teacher()
    teacher.sample = data.pixels[:256]
    model = student(teacher, tokenizer)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters, {len(tokenizer)} tokens")
    train_text(model, teacher, data, tokenizer)
    train_vision(model, teacher, data)
    if EPOCHS["pairs"]:
        train_pairs(model, data, tokenizer)
    write(model, out)
    say(f"scale {model.logit_scale.exp().item():.2f}, bias {model.logit_bias.item():.2f}")
    measure(out, data)


if __name__ == "__main__":
    main()
