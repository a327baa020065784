#!/usr/bin/env python3
"""Trains a LLaVA that names the demo's classes, around the vision tower of a CLIP, which stays as it is.

usage: llava.py CLIP OUT [EPOCHS]

Writes OUT as transformers does, in float16: a projector and a small Llama that answers "what is this ?", "is this a NAME ?" and
"describe this". OUT/answers.json has its accuracy on training drawings and on the two families that no training sees.
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer, CLIPImageProcessor, CLIPModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    PreTrainedTokenizerFast,
)  # fmt: skip

from drawings import SIDE, augmented, autocast, class_names, fit, read

QUESTION, DESCRIBE, YES, NO, IMAGE = "what is this ?", "describe this", "yes", "no", "<image>"
# Copies of each training drawing: the first as it is, the others augmented.
COPIES = 4
LAYER = -2


def words(tokenizer):
    """A tokenizer of the CLIP's words and those of the questions."""
    known = [word for word, _ in sorted(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"].items(), key=lambda item: item[1])]
    more = [word for word in f"{QUESTION} is this a {DESCRIBE} {YES} {NO}".split() if word not in known]
    vocabulary = {word: place for place, word in enumerate(known + sorted(set(more)) + [IMAGE])}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.normalizer, found.pre_tokenizer = tokenizer.backend_tokenizer.normalizer, pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left",
        additional_special_tokens=[IMAGE],
    )  # fmt: skip


@torch.no_grad()
def features(clip, processor, pictures):
    """The hidden states of the patches `[n, patches, width]` that a LLaVA reads; float16."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    found = []
    for part in pictures.split(256):
        hidden = clip.vision_model((part - mean) / deviation, output_hidden_states=True).hidden_states[LAYER]
        found.append(hidden[:, 1:].half())
    return torch.cat(found)


def question_and_answer(name, captions, names):
    """One of the three kinds; half of them ask for the name."""
    kind = random.random()
    if kind < 0.5:
        return QUESTION, name
    if kind < 0.8:
        other = random.random() < 0.5
        return f"is this a {random.choice(names) if other else name} ?", NO if other else YES
    return DESCRIBE, random.choice(captions)


@torch.no_grad()
def answers(model, tokenizer, seen, question):
    """What the model says to one question about each picture, given the features of their patches."""
    found = []
    for part in seen.split(256):
        ids = tokenizer(question, return_tensors="pt").input_ids.expand(len(part), -1)
        table, language = model.get_input_embeddings(), model.model.language_model
        patches = model.model.multi_modal_projector(part.float())
        rows = torch.cat([table(ids[:, :1]), patches, table(ids[:, 1:])], 1)
        said = torch.full((len(part), 0), 0)
        for _ in range(12):
            following = model.lm_head(language(inputs_embeds=rows).last_hidden_state[:, -1]).argmax(-1)
            said = torch.cat([said, following[:, None]], 1)
            rows = torch.cat([rows, table(following)[:, None]], 1)
        for row in said.tolist():
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            found.append(tokenizer.decode(row[:end]))
    return found


def main():
    folder, out, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 16
    random.seed(1)
    torch.manual_seed(1)
    names = class_names()
    clip = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
    processor, tokenizer = CLIPImageProcessor.from_pretrained(folder), words(AutoTokenizer.from_pretrained(folder))
    sets = dict(zip(("training", "validation", "test"), read(names)))
    training = sets["training"]
    copies = [augmented(training.pixels, strength) for strength in [0.0] + [0.7] * (COPIES - 1)]
    seen = torch.stack([features(clip, processor, copy) for copy in copies])
    language = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, max_position_embeddings=96,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=clip.config.vision_config, text_config=language, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=LAYER, vision_feature_select_strategy="default", image_seq_length=seen.shape[2],
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.vision_model.load_state_dict(clip.vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    patches = seen.shape[2]

    def loss(rows):
        pairs = [question_and_answer(names[training.classes[row]], training.captions[row], names) for row in rows.tolist()]
        ids, wanted = [], []
        for question, answer in pairs:
            asked = tokenizer(question).input_ids
            said = tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            ids.append(asked + said)
            wanted.append([-100] * (len(asked) + patches) + said)
        width = max(map(len, ids))
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
        labels = torch.tensor([row + [-100] * (width + patches - len(row)) for row in wanted])
        table = model.get_input_embeddings()(padded)
        with autocast():
            shown = model.model.multi_modal_projector(seen[torch.randint(COPIES, (len(rows),)), rows].float())
            joined = torch.cat([table[:, :1], shown.float(), table[:, 1:]], 1)
            hidden = model.model.language_model(inputs_embeds=joined).last_hidden_state
            at = labels[:, 1:] != -100
            logits = model.lm_head(hidden[:, :-1][at])
        return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][at])

    fit("llava", model, loss, len(training), epochs, 64, 1e-3, weight_decay=0.05)
    scores = {}
    for name, drawings in sets.items():
        read_by = features(clip, processor, drawings.pixels.float() / 255)
        said = answers(model, tokenizer, read_by, QUESTION)
        expected = [tokenizer.decode(tokenizer(names[label], add_special_tokens=False).input_ids) for label in drawings.classes]
        scores[name] = round(100 * sum(a == b for a, b in zip(said, expected)) / len(said), 1)
    print(f"llava: right names, %: {scores}", flush=True)
    model.half().save_pretrained(out)
    LlavaProcessor(
        image_processor=processor, tokenizer=tokenizer, patch_size=clip.config.vision_config.patch_size, vision_feature_select_strategy="default",
        image_token=IMAGE, num_additional_image_tokens=1,
    ).save_pretrained(out)  # fmt: skip
    (out / "answers.json").write_text(json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
