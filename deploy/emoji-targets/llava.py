#!/usr/bin/env python3
"""Trains a LLaVA of the demo's world: the demo's vision tower as it is, read before its last block, a projector and a small Llama.

It answers "what is this ?", "is this a … ?" and "describe this" with the words of the captions.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer, CLIPImageProcessor, CLIPVisionModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    PreTrainedTokenizerFast,
)

from drawings import DEVICE, Drawings, Training, batches, half, moved, scaled

READ = -2
COPIES = 4
QUESTIONS = ("what is this ?", "is this a {} ?", "describe this")
LENGTH = 34


def tokens(folder):
    """The demo's tokenizer with the words that questions and answers need, without marks of its own."""
    words = PreTrainedTokenizerFast(tokenizer_object=AutoTokenizer.from_pretrained(folder).backend_tokenizer)
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    words.add_special_tokens({"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "additional_special_tokens": ["<image>"]})
    known = set(words.get_vocab())
    asked = " ".join(QUESTIONS).replace("{}", "").split() + ["yes", "no"]
    # Whole words only: `is` is no part of `fish`.
    words.add_tokens([AddedToken(word, single_word=True) for word in dict.fromkeys(asked) if word not in known])
    words.padding_side = "left"
    return words


@torch.no_grad()
def features(folder, drawings):
    """What the tower shows of each drawing and of some moved copies: [copies, n, 36, 192]."""
    tower = CLIPVisionModel.from_pretrained(folder).float().to(DEVICE).eval()
    processor = CLIPImageProcessor.from_pretrained(folder)
    mean, deviation = (torch.tensor(values, device=DEVICE)[:, None, None] for values in (processor.image_mean, processor.image_std))
    copies = []
    for copy in range(COPIES):
        torch.manual_seed(copy)
        shown = []
        for part in drawings.pictures.split(256):
            pictures = scaled(part) if copy == 0 else moved(scaled(part), 0.5)
            pictures = ((pictures + 1) / 2 - mean) / deviation
            shown.append(tower(pictures, output_hidden_states=True).hidden_states[READ][:, 1:].half())
        copies.append(torch.cat(shown))
    return torch.stack(copies), tower


def conversation(drawings, place, i):
    """A question about drawing i and its answer; half of the names in questions are those of other classes."""
    name, draw = drawings.classes[i], random.random()
    if draw < 0.6:
        return QUESTIONS[0], name
    if draw < 0.8:
        yes = random.random() < 0.5
        other = name if yes else random.choice(place)
        return QUESTIONS[1].format(other), "yes" if other == name else "no"
    return QUESTIONS[2], random.choice(drawings.captions[i])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--model", required=True, help="folder of the demo's CLIP")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--epochs", type=int, default=32)
    options = parser.parse_args()

    torch.manual_seed(0)
    drawings, words = Drawings(options.train), tokens(options.model)
    shown, tower = features(options.model, drawings)
    image, place = words.convert_tokens_to_ids("<image>"), sorted(set(drawings.classes))
    language = LlamaConfig(
        vocab_size=len(words), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6,
        max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=tower.config, text_config=language, image_token_index=image, vision_feature_layer=READ,
        vision_feature_select_strategy="default", image_seq_length=36, tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    learner = torch.nn.ModuleDict({"projector": model.model.multi_modal_projector, "language": model.model.language_model})
    size, patches = 64, shown.shape[2]
    training = Training(learner, options.checkpoint, options.epochs, len(drawings) // size, rate=1e-3, falling=0.6, weight_decay=0.05)

    def losses(epoch):
        for batch in batches(len(drawings), size, epoch):
            rows, answers = [], []
            for i in batch.tolist():
                question, answer = conversation(drawings, place, i)
                asked = words(question).input_ids
                said = words(answer).input_ids + [words.eos_token_id]
                row = (asked + said)[:LENGTH]
                rows.append(row + [words.pad_token_id] * (LENGTH - len(row)))
                answers.append(([-100] * len(asked) + said)[:LENGTH] + [-100] * (LENGTH - len(row)))
            ids, wanted = torch.tensor(rows, device=DEVICE), torch.tensor(answers, device=DEVICE)
            longest = int((ids != words.pad_token_id).sum(1).max())
            ids, wanted = ids[:, :longest], wanted[:, :longest]
            with half():
                pictures = learner["projector"](shown[random.randrange(COPIES), batch].float())
                given = torch.cat([pictures, learner["language"].embed_tokens(ids)], 1)
                # The state before a word predicts it.
                states = learner["language"](inputs_embeds=given).last_hidden_state[:, patches - 1 : -1]
                answered = wanted != -100
                logits = states[answered] @ learner["language"].embed_tokens.weight.T
            yield torch.nn.functional.cross_entropy(logits.float(), wanted[answered])

    training.run(losses)
    model.tie_weights()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = words.pad_token_id, words.eos_token_id
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(options.model), tokenizer=words, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model.config.vision_config._name_or_path = ""
    model.half().save_pretrained(options.out)
    processor.save_pretrained(options.out)
    measured = {Path(shard).stem: accuracy(model.float(), processor, Drawings(shard)) for shard in [options.train, *options.held_out]}
    (options.out / "accuracy.json").write_text(json.dumps({"what is this ?, percent": measured}, indent=1) + "\n")
    print(measured)


@torch.no_grad()
def accuracy(model, processor, drawings, most=1068):
    """The share of drawings that the model names, letter by letter."""
    from PIL import Image

    model.eval().to(DEVICE)
    chosen = sorted(random.Random(0).sample(range(len(drawings)), min(most, len(drawings))))
    right = 0
    for start in range(0, len(chosen), 64):
        part = chosen[start : start + 64]
        pictures = [Image.fromarray(drawings.pictures[i].permute(1, 2, 0).numpy()) for i in part]
        given = processor(text=["<image> what is this ?"] * len(part), images=pictures, return_tensors="pt").to(DEVICE)
        given.pop("token_type_ids", None)
        said = model.generate(**given, max_new_tokens=16, do_sample=False)
        answers = processor.batch_decode(said[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        spelled = [processor.tokenizer.decode(processor.tokenizer(drawings.classes[i]).input_ids) for i in part]
        right += sum(answer.strip() == name.strip() for answer, name in zip(answers, spelled))
    return round(100 * right / len(chosen), 1)


if __name__ == "__main__":
    main()
