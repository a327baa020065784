"""Writes the fixtures of tests/input_parity.rs: what Pillow 11.3 and transformers 4.57 make of some images.

Run it where those are installed (tests/ecosystem/run.sh puts them into .tools/ecosystem/site):
    PYTHONPATH=.tools/ecosystem/site python3 tests/input/make.py
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor

HERE = Path(__file__).parent


def noise(width, height, seed):
    """Pixels of a linear congruential generator, which the Rust side repeats."""
    values, state = np.empty(width * height * 3, np.uint8), seed
    for i in range(values.size):
        state = (state * 1664525 + 1013904223) % 2**32
        values[i] = state >> 24
    return Image.fromarray(values.reshape(height, width, 3), "RGB")


def picture(width=37, height=29):
    """Something smooth with an edge, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    green = 127 + 100 * np.sin(y / 4)
    blue = np.where(x + y > 30, 220, 30)
    return Image.fromarray(np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8), "RGB")


def sha(data):
    return hashlib.sha256(data).hexdigest()


def decoding():
    rgb = picture()
    grey = rgb.convert("L")
    alpha = Image.fromarray((np.arange(37 * 29) % 256).astype(np.uint8).reshape(29, 37), "L")
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    palette = rgb.quantize(16)
    deep = Image.fromarray((np.arange(37 * 29).astype(np.uint16) * 61).reshape(29, 37))
    cmyk = rgb.convert("CMYK")
    exact = {
        "rgb.png": (rgb, {}),
        "grey.png": (grey, {}),
        "grey-alpha.png": (Image.merge("LA", (grey, alpha)), {}),
        "rgba.png": (rgba, {}),
        "palette.png": (palette, {}),
        "palette-transparent.png": (palette, {"transparency": 3}),
        "grey-16.png": (deep, {}),
        "one-bit.png": (grey.convert("1"), {}),
        "lossless.webp": (rgb, {"lossless": True}),
        "lossless-alpha.webp": (rgba, {"lossless": True, "exact": True}),
    }
    close = {
        "444.jpg": (rgb, {"quality": 90, "subsampling": 0}),
        "420.jpg": (rgb, {"quality": 90, "subsampling": 2}),
        "grey.jpg": (grey, {"quality": 90}),
        "progressive.jpg": (rgb, {"quality": 90, "subsampling": 0, "progressive": True}),
        "cmyk.jpg": (cmyk, {"quality": 95}),
        "lossy.webp": (rgb, {"quality": 90}),
    }
    for orientation in (2, 3, 5, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        close[f"turned-{orientation}.jpg"] = (rgb, {"quality": 90, "subsampling": 0, "exif": exif})
    found = []
    for files, is_exact in ((exact, True), (close, False)):
        for name, (image, options) in files.items():
            image.save(HERE / name, **options)
            decoded = ImageOps.exif_transpose(Image.open(HERE / name)).convert("RGB")
            entry = {"file": name, "width": decoded.width, "height": decoded.height, "sha256": sha(decoded.tobytes())}
            if not is_exact:
                # Decoders differ in single levels: the pixels themselves are compared.
                decoded.save(HERE / f"{name}.expected.png", optimize=True)
                entry["expected"] = f"{name}.expected.png"
            found.append(entry)
    return found


def resizing():
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
    sizes = [
        ((640, 480), (298, 224)), ((480, 640), (224, 298)), ((100, 100), (224, 224)), ((333, 77), (48, 11)), ((77, 333), (11, 48)),
        ((1, 1), (7, 5)), ((300, 200), (1, 1)), ((5, 400), (3, 17)), ((400, 5), (17, 3)), ((224, 300), (224, 150)), ((300, 224), (150, 224)),
        ((31, 37), (37, 31)), ((1000, 30), (20, 64)),
    ]  # fmt: skip
    cases = [(a, b, "bicubic") for a, b in sizes] + [(a, b, name) for a, b in sizes[:4] for name in filters if name != "bicubic"]
    found = []
    for seed, (before, after, name) in enumerate(cases):
        resized = noise(*before, seed).resize(after, Image.Resampling(filters[name]))
        found.append({"seed": seed, "from": before, "to": after, "filter": name, "sha256": sha(resized.tobytes())})
    return found


def preprocessing():
    configs = {
        "shortest": {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}},
        "crop": {"size": {"shortest_edge": 56}, "crop_size": 40},
        "squash": {"size": {"height": 40, "width": 40}, "do_center_crop": False},
        "frame": {"do_resize": False, "crop_size": {"height": 64, "width": 64}},
        "plain": {"size": {"shortest_edge": 32}, "crop_size": 32, "do_normalize": False, "resample": 2},
        "own": {"size": {"shortest_edge": 32}, "crop_size": 32, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    }
    found = []
    for name, config in configs.items():
        processor = CLIPImageProcessor(**config)
        written = {"image_processor_type": "CLIPImageProcessor", **config}
        for width, height in ((90, 61), (61, 90), (48, 48), (33, 121)):
            pixels = processor(noise(width, height, 7), return_tensors="np")["pixel_values"][0]
            entry = {"name": name, "config": written, "image": [width, height], "sha256": sha(np.ascontiguousarray(pixels, "<f4").tobytes())}
            found.append({**entry, "first": [float(v) for v in pixels[:, 3, 5]]})
    return found


def tokenising():
    texts = [
        "a photo of a cat", "A Photo of a CAT!", "", "naïve café — résumé", "emoji 🙂 and 中文", "don't can't won't", "1234567890 3.14159",
        "tabs\tand\nnewlines", "x" * 200, "word " * 60, "<|startoftext|> inside <|endoftext|> it",
    ]  # fmt: skip
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", " "), normalizers.Lowercase()])
    split = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", special_tokens=["<|startoftext|>", "<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["a photo of a cat and a dog", "don't you know naïve café", "numbers words emoji"] * 20, trainer)
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("<|endoftext|>", end), cls=("<|startoftext|>", start), trim_offsets=False, add_prefix_space=False
    )
    (HERE / "bpe").mkdir(exist_ok=True)
    tokenizer.save(str(HERE / "bpe" / "tokenizer.json"))
    tokenizer.enable_truncation(77)
    return [{"text": text, "ids": tokenizer.encode(text).ids} for text in texts]


if __name__ == "__main__":
    expected = {"decoding": decoding(), "resizing": resizing(), "preprocessing": preprocessing(), "tokenising": tokenising()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
