"""Reads some hundred odd image files with Pillow and with Lethe: the same pixels, or both refuse.

Usage: check_images.py LETHE_READ
"""

import collections
import fnmatch
import io
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import odd_images
from PIL import Image, ImageFile, ImageOps, __version__

# As in tests/input_parity.rs: decoders of lossy formats differ by single levels.
MOST, MEAN = 4, 0.5
# The same for what is stated to differ.
STATED_MEAN = 6

# What Lethe refuses although Pillow reads it: patterns of names, and why.
REFUSED = {
    "other-*": "a format that Lethe does not read",
    "png-too-large": "more pixels than Pillow reads without a warning",
    "png-crc-*": "a wrong checksum, which Pillow skips in image data and behind it",
    "png-cut-*": "cut behind the image data",
    "png-critical-unknown": "a chunk that must be understood, and is not",
    "png-cgbi": "the same: Apple's own form of PNG",
    "png-no-palette": "an image of a palette, without one",
    "png-taller": "too little data for the size in the header, which Pillow fills with black",
    "png-compression-1": "a header that no version of PNG allows",
    "png-long-header": "the same",
    "png-two-headers": "the same",
    "jpeg-*-flipped-*": "damaged coded data, which Pillow reads on as it can",
    "jpeg-*segment-behind-data": "a segment behind the coded data, before the end",
    "jpeg-zeros-before-scan": "more than three bytes between segments",
    "jpeg-*-scans*": "a sequential JPEG in several scans",
    "jpeg-sampled-*": "unusual chroma subsampling: colours larger than brightness, or factors of 3",
    "jpeg-jfif-adobe-0": "headers that contradict each other on the colours",
    "jpeg-jfif-ids-rgb": "the same",
    "jpeg-cmyk-adobe-1": "the same",
    "jpeg-ids-same": "two channels with one name",
    "jpeg-no-tables": "no Huffman tables, as in a film of JPEGs",
    "jpeg-arithmetic": "arithmetic-coded, and damaged here",
    "jpeg-length-*": "a segment without a length",
    "webp-animated-offset*": "an animation whose first frame does not cover it",
}
# What Lethe reads otherwise, or although Pillow refuses it.
OTHERWISE = {
    "*-exif-garbage": "an EXIF block that is none: Pillow reads the image, and fails to turn it",
    "*-exif-magic": "the same",
    "webp-lossless-flipped-6": "a bit that changed, which libwebp notices",
    "png-adler": "a wrong checksum inside the compressed stream, where those of the chunks are right",
    "png-grey-trns-short": "a transparent level that is cut, which no pixel needs",
    "jpeg-jfif-short": "a JFIF header that is cut, which no pixel needs",
    "jpeg-1x40-2": "subsampled colours of at most two pixels' width, which libjpeg does not interpolate",
    "jpeg-2x2000-2": "the same",
    "jpeg-8x8-2": "8 × 8 pixels with subsampled colours: by 3 levels at most, 0.52 on average",
}

# Damage that Pillow does not refuse either: each decoder fills what is missing as it can.
FILLED = {
    "jpeg-*-ended": "coded data that ends early, before an end marker",
    "jpeg-taller": "the same",
    "jpeg-*-flipped-*": "bits that changed inside coded data",
}


def by_pillow(data):
    """The RGB pixels as `[height, width, 3]`, or why there are none."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:
        return f"EXIF: {type(error).__name__}: {error}"
    return np.asarray(image.convert("RGB"))


def by_lethe(program, folder, names):
    """The same by Lethe, by name."""
    (folder / "out").mkdir()
    listed = "".join(f"{folder / name}\n" for name in names)
    printed = subprocess.run([program, "images", folder / "out"], input=listed, capture_output=True, text=True, check=True).stdout
    found = {}
    for number, (name, line) in enumerate(zip(names, printed.splitlines(), strict=True)):
        said = json.loads(line)
        if "width" in said:
            raw = (folder / "out" / f"{number}.rgb").read_bytes()
            found[name] = np.frombuffer(raw, np.uint8).reshape(said["height"], said["width"], 3)
        else:
            found[name] = said.get("refusal", "panicked")
    return found


def is_lossy(name, data):
    return name.startswith("jpeg") or (data[:4] == b"RIFF" and b"VP8 " in data)


def difference(name, data, theirs, ours):
    """How the results differ; `None` when they do not."""
    if isinstance(theirs, str) and isinstance(ours, str):
        return "panics" if ours == "panicked" else None
    if isinstance(ours, str):
        return f"refused by Lethe ({ours})"
    if isinstance(theirs, str):
        return f"read by Lethe, refused by Pillow ({theirs})"
    if theirs.shape != ours.shape:
        return f"{theirs.shape[1]} × {theirs.shape[0]} pixels by Pillow, {ours.shape[1]} × {ours.shape[0]} by Lethe"
    apart = np.abs(theirs.astype(int) - ours)
    most, mean = (MOST, MEAN) if is_lossy(name, data) else (0, 0)
    if apart.max() > most or apart.mean() > mean:
        extent = "far " if apart.mean() > STATED_MEAN else ""
        return f"pixels differ {extent}by {apart.max()} levels, {apart.mean():.2f} on average"
    return None


def main():
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    warnings.simplefilter("ignore")
    images = dict(odd_images.every())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, data in images.items():
            (folder / name).write_bytes(data)
        ours = by_lethe(sys.argv[1], folder, [*images])
    counts, wrong, used = collections.Counter(), [], set()
    for name, data in images.items():
        theirs = by_pillow(data)
        found = difference(name, data, theirs, ours[name])
        if found is None:
            counts["refused by both" if isinstance(theirs, str) else "the same pixels"] += 1
            continue
        if found.startswith("refused by Lethe"):
            tables, kind = [REFUSED], "refused by Lethe, as stated"
        elif found.startswith("pixels differ"):
            tables, kind = [FILLED, {} if found.startswith("pixels differ far") else OTHERWISE], "read otherwise, as stated"
        else:
            tables, kind = [OTHERWISE], "read otherwise, as stated"
        pattern = next((pattern for table in tables for pattern in table if fnmatch.fnmatch(name, pattern)), None)
        if pattern is None or "panicked" in found:
            wrong.append(f"{name}: {found}")
        else:
            used.add(pattern)
            counts[kind] += 1
    wrong += [f"{pattern}: a stated difference that no file shows" for pattern in [*REFUSED, *OTHERWISE, *FILLED] if pattern not in used]
    for line in wrong:
        print(f"  FAIL {line}")
    print(f"images: {len(images)} files, Pillow {__version__}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if wrong:
        sys.exit(f"{len(wrong)} images are not read as by Pillow")


if __name__ == "__main__":
    main()
