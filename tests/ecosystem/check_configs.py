"""Embeds texts and images by tiny CLIPs of many configurations with transformers, open_clip and Lethe: the same embeddings, or a refusal.

Usage: check_configs.py LETHE_READ
"""

import collections
import io
import json
import logging
import subprocess
import sys
import tarfile
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import odd_models
import open_clip
import torch
from odd_images import picture, saved
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, SiglipImageProcessor, SiglipModel
from transformers import logging as transformers_logging
from transformers.image_utils import load_image

# Largest difference of a unit embedding's numbers, as in check_release.py.
TOLERANCE = 1e-5
TEXTS = ["a photo of a cat", "the red dog", "a pizza on the mat with a rocket over the red heart of a grinning face", "cat", "Something Else!"]
# Sizes of the images: an odd excess is cropped, one is smaller than the model's input, one has that size.
SIZES = [(90, 61), (47, 90), (odd_models.SIDE, odd_models.SIDE), (9, 14), (33, 121)]


def write_shard(path):
    """The texts and images as a shard; returns the images."""
    files = [saved(picture(*size), "PNG") for size in SIZES]
    with tarfile.open(path, "w") as shard:
        for number, (text, file) in enumerate(zip(TEXTS, files)):
            for ending, data in (("png", file), ("txt", text.encode())):
                entry = tarfile.TarInfo(f"{number}.{ending}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    folder = path.parent / "images"
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number}.png").write_bytes(file)
    return [load_image(str(folder / f"{number}.png")) for number in range(len(files))]


def unit(x):
    return x.float() / x.float().norm(dim=-1, keepdim=True)


def features(found):
    """What a tower gives: a tensor, since transformers 5 with more beside it."""
    return found if torch.is_tensor(found) else found.pooler_output


@torch.no_grad()
def by_transformers(folder, images):
    variant = "fp16" if (folder / "model.fp16.safetensors").exists() else None
    model, loading = CLIPModel.from_pretrained(folder, dtype=torch.float32, variant=variant, output_loading_info=True)
    if missing := loading["missing_keys"]:
        raise ValueError(f"random weights: {missing}")
    model.eval()
    processor = folder / "processor_config.json"
    if processor.exists():
        processor = CLIPImageProcessor.from_dict(json.loads(processor.read_text())["image_processor"])
    else:
        processor = CLIPImageProcessor.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    texts = features(model.get_text_features(encoded["input_ids"], encoded["attention_mask"]))
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    return unit(features(model.get_image_features(pixels))), unit(texts)


@torch.no_grad()
def by_siglip(folder, images):
    model, loading = SiglipModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := loading["missing_keys"]:
        raise ValueError(f"random weights: {missing}")
    model.eval()
    length = model.config.text_config.max_position_embeddings
    # As SiglipProcessor is called: padded to the whole context, without a mask.
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    texts = features(model.get_text_features(encoded["input_ids"]))
    pixels = SiglipImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    return unit(features(model.get_image_features(pixels))), unit(texts)


@torch.no_grad()
def by_open_clip(folder, images):
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32")
    model.eval()
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    pixels = torch.stack([preprocess(image) for image in images])
    found = [model.encode_image(pixels), model.encode_text(tokens)]
    return [unit(x[0] if isinstance(x, tuple) else x) for x in found]


def by_lethe(program, folders, shard):
    printed = subprocess.run([program, "models", shard], input="".join(f"{folder}\n" for folder in folders), capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def attempt(read, folder, images):
    """The embeddings by the original, or why there are none."""
    try:
        return read(folder, images)
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]


def difference(theirs, ours):
    """How the results differ; `None` when they do not."""
    if "panic" in ours:
        return "panics"
    if isinstance(theirs, str):
        return f"read by Lethe, refused by the original ({theirs})"
    for what, one, other in zip(("images", "texts"), theirs, (ours["images"], ours["texts"])):
        other = torch.tensor(other)
        if one.shape != other.shape:
            return f"embeddings of {what} have the shape {[*one.shape]}, by Lethe {[*other.shape]}"
        if not (apart := (one - other).abs().max().item()) <= TOLERANCE:
            return f"embeddings of {what} differ by {apart:.1e}"
    return None


def main():
    logging.disable(logging.ERROR)
    transformers_logging.set_verbosity(50)
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wrong, parts = [], []
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        images = write_shard(work / "pairs.tar")
        for library, cases, make, read in (
            ("transformers", odd_models.of_transformers(), odd_models.transformers_folder, by_transformers),
            ("siglip", odd_models.of_siglip(), odd_models.siglip_folder, by_siglip),
            ("open_clip", odd_models.of_open_clip(), odd_models.open_clip_folder, by_open_clip),
        ):
            made, counts = [], collections.Counter()
            for number, (name, must, options, after) in enumerate(cases):
                folder = work / f"{library}-{number}"
                folder.mkdir()
                make(folder, **options)
                if after:
                    after(folder)
                made.append((f"{library} {name}", must, folder))
            for (name, must, folder), ours in zip(made, by_lethe(sys.argv[1], [folder for *_, folder in made], work / "pairs.tar"), strict=True):
                if refusal := ours.get("refusal"):
                    counts["refused"] += 1
                    if must:
                        wrong.append(f"{name}: must be read, but is refused ({refusal})")
                    continue
                if found := difference(attempt(read, folder, images), ours):
                    wrong.append(f"{name}: {found}")
                else:
                    counts["the same embeddings"] += 1
            parts.append(
                f"{library} {version('open_clip_torch' if library == 'open_clip' else 'transformers')}: {len(made)} folders, {sum(must for _, must, _ in made)} of which must be read, "
                + ", ".join(f"{count} {what}" for what, count in counts.items())
            )
    for line in wrong:
        print(f"  FAIL {line}")
    print("configurations: " + "; ".join(parts))
    if wrong:
        sys.exit(f"{len(wrong)} configurations are not read as by the originals")


if __name__ == "__main__":
    main()
