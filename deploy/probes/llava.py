#!/usr/bin/env python3
"""A probe: what a vision-language model with the edits still names, beside the unedited one.

It shows pictures of removed and of retained classes to both models and asks what they are. An answer is right when it holds the class's
name. `forgotten` is the share of the removed pictures that the unedited model names and the edited one does not; `kept.GROUP` is the share of
the retained pictures that are still named, of those that the unedited model names.

    command = ["python3", "llava.py", "--pictures", "test.tar", "--retained", "groups.csv"]
"""

import argparse
import io
import re
import tarfile

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from common import Input, read_groups, sampled, share, still_true, write

VERSION = "1"
# Answers that are told, and pictures of the report, for each group of classes.
SHOWN = 12


def read(shards, classes, most):
    """Pictures of these classes, at most so many a class: the captions of the shards are class names."""
    found = {name: [] for name in classes}
    for shard in shards:
        samples = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, ending = member.name.split(".", 1)
                samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
        for files in samples.values():
            name = files["txt"].decode().strip()
            if name in found and len(found[name]) < most:
                picture = next(files[ending] for ending in ("png", "webp", "jpg", "jpeg") if ending in files)
                found[name].append(Image.open(io.BytesIO(picture)).convert("RGB"))
    return [(picture, name) for name, pictures in found.items() for picture in pictures]


def names(answer, name):
    """Whether an answer holds a name, as whole words in order."""
    words = lambda text: re.findall(r"\w+", text.lower())
    said, wanted = words(answer), words(name)
    return any(said[at : at + len(wanted)] == wanted for at in range(len(said) - len(wanted) + 1))


@torch.no_grad()
def ask(model, processor, pictures, options, what):
    answers = []
    for start in range(0, len(pictures), options.batch):
        part = [picture for picture, _ in pictures[start : start + options.batch]]
        given = processor(text=[options.question] * len(part), images=part, return_tensors="pt", padding=True).to(model.device, model.dtype)
        # Some tokenizers return it, and few language models read it.
        given.pop("token_type_ids", None)
        said = model.generate(**given, max_new_tokens=options.tokens, do_sample=False)
        answers += processor.batch_decode(said[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{what}: {len(answers)} of {len(pictures)} asked", flush=True)
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", required=True, nargs="+", metavar="TAR", help="WebDataset shards whose captions are class names")
    parser.add_argument("--retained", required=True, metavar="CSV", help="retained classes: columns class, group")
    parser.add_argument("--group-column", default="group", help="the column that names a class's group")
    parser.add_argument("--target", help="name of the target, where there are several")
    parser.add_argument("--question", default="<image> what is this ?")
    parser.add_argument("--each", type=int, default=100, help="most classes of a group; 0 for all")
    parser.add_argument("--per-class", type=int, default=2, help="most pictures of a class")
    parser.add_argument("--tokens", type=int, default=12, help="longest answer")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()

    told = Input()
    edited, base = told.target("llava", options.target)
    groups = {"removed": sampled(told.removed, options.each)}
    groups |= {name: sampled(set(classes) - set(told.removed), options.each) for name, classes in read_groups(options.retained, options.group_column).items()}
    pictures = {group: read(options.pictures, classes, options.per_class) for group, classes in groups.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor, answers = AutoProcessor.from_pretrained(base), {}
    for when, folder in (("base", base), ("release", edited)):
        kind = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForImageTextToText.from_pretrained(folder, torch_dtype=kind).eval().to(device)
        answers[when] = {group: ask(model, processor, shown, options, f"{group}, {when}") for group, shown in pictures.items()}
    numbers, seen, notes = {}, [], []
    for group, shown in pictures.items():
        right = {when: [names(answer, name) for answer, (_, name) in zip(answers[when][group], shown)] for when in answers}
        numbers[f"right.{group}"], numbers[f"still.{group}"] = share(right["base"]), share(right["release"])
        named = still_true(right["base"], right["release"])
        if group == "removed":
            numbers["forgotten"] = share([not hit for hit in named])
        else:
            numbers[f"kept.{group}"] = share(named)
        for place, (picture, name) in enumerate(shown[:SHOWN]):
            before, after = (answers[when][group][place].strip()[:80] for when in ("base", "release"))
            picture.save(told.output / f"{group}-{place}.png")
            seen.append({"title": f"{name} ({group}): “{before}” before, “{after}” now", "after": f"{group}-{place}.png"})
    notes.append(f"asked “{options.question}”; an answer is right when it holds the class's name")
    write(told.output, VERSION, numbers, seen, notes)


if __name__ == "__main__":
    main()
