"""Reads some hundred odd tar files with the `webdataset` package and with Lethe: the same pairs, or a refusal.

Usage: check_tars.py LETHE_READ
"""

import collections
import fnmatch
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import odd_tars
import webdataset

IMAGES = ("jpg", "jpeg", "png", "webp")

# What Lethe refuses although the package reads it: patterns of names, and why.
REFUSED = {
    "links-*": "links, which the package leaves out",
    "hard-links-*": "the same",
    "unknown-kind": "members that are no files, which the package leaves out",
    "fifo": "the same",
    "*-device": "the same",
    "volume-label": "the same",
    "v7-directory": "a folder in the oldest form",
    "absolute": "absolute, upward and empty parts of paths",
    "upward*": "the same",
    "double-slash": "the same",
    "overlong-name-*": "paths of more than 1,024 bytes",
    "latin-*": "names that are not UTF-8",
    "extension-with-space": "a sample that is no pair, which the package returns",
    "interleaved": "the same",
    "no-caption": "the same",
    "no-image": "the same",
    "two-images": "the same, with two images",
    "gif*": "images that Lethe does not read or that are damaged, which the package does not look at",
    "empty-image": "the same",
    "cut-image": "the same",
    "empty-caption": "captions that are empty, no UTF-8, invisible or larger than 64 KiB",
    "caption-utf16": "the same",
    "caption-nul": "captions hold no U+0000: it is UTF-16 without a mark more often than text",
    "caption-latin": "the same",
    "caption-blank": "the same",
    "caption-invisible": "the same",
    "caption-overlong": "the same",
    "sparse-*": "sparse files",
    "pax-*too-large": "pax headers of more than 1 MiB",
    "pax-path-twice": "headers that contradict each other",
    "size-negative": "the same",
    "two-archives-same-key": "a key that ends an archive and begins the next one",
    "end-not-a-block": "bytes behind the archive that are no archive",
    "trailing-*": "the same",
    "cut-*": "an archive that is cut, where the package ends without an error",
    "wrong-checksum": "the same, with a wrong checksum",
    "signed-checksum": "checksums of signed bytes, as very old programs wrote them",
    "gzip": "a compressed archive",
}
# What Lethe reads otherwise, or although the package refuses it: the keys, and why.
OTHERWISE = {
    "dot-slash": (["a", "b", "x/c"], "`./` before a path is no part of the key"),
    "dot-slash-twice": (["a", "b"], "the same"),
    "dot-slash-mixed": (["a"], "the same"),
    "dots-in-folders": (["v1.0/a", "v1.0/b", "x.y/z.w/c", "d.e/f"], "the same"),
    "meta-folder-dot-slash": (["__meta__/x", "a"], "the same"),
    "hidden-in-folder-between": (["x/a"], "hidden files in folders belong to no sample"),
    "hidden-pair-in-folder": (["x/a"], "the same"),
    "two-others": (["a"], "two files of a sample that are neither images nor captions"),
    "two-archives": (["a", "b", "c"], "archives behind the first one are read"),
    "two-archives-split-pair": (["a"], "the same"),
    "zeros-inside": (["a", "b", "c"], "the same"),
    "leading-zeros": (["a", "b"], "the same"),
    "empty": ([], "an empty file is a shard without samples"),
    "prefix-in-gnu": (["a"], "GNU's headers have no prefix of a path"),
    "pax-global-path": (["a"], "a global path, which would be that of every member"),
}


def by_webdataset(path):
    """The pairs of a shard, `(key, image, caption)`; `None` for a sample that is no pair. Or why the shard cannot be read."""
    try:
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    pairs = []
    for sample in samples:
        images = [sample[ending] for ending in IMAGES if ending in sample]
        if not images and "txt" not in sample:
            continue
        try:
            # Lethe removes byte-order marks and surrounding white space.
            caption = sample["txt"].decode().strip("\ufeff \t\r\n\v\f\u0085\u00a0\u2028\u2029\u3000")
        except (KeyError, UnicodeDecodeError):
            caption = ""
        is_pair = len(images) == 1 and caption
        pairs.append((sample["__key__"], hashlib.sha256(images[0]).hexdigest(), caption) if is_pair else None)
    return pairs


def by_lethe(program, paths):
    printed = subprocess.run([program, "shards"], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, check=True).stdout
    for path, line in zip(paths, printed.splitlines(), strict=True):
        said = json.loads(line)
        if "samples" in said:
            yield path.name, [(sample["key"], sample["image"], sample["caption"]) for sample in said["samples"]]
        else:
            yield path.name, said.get("refusal", "panicked")


def difference(theirs, ours):
    """How the results differ; `None` when they do not."""
    if isinstance(ours, str):
        return None if isinstance(theirs, str) and ours != "panicked" else f"refused by Lethe ({ours})"
    if isinstance(theirs, str):
        return f"read by Lethe ({[key for key, *_ in ours]}), refused by webdataset ({theirs})"
    return None if theirs == ours else f"{theirs} by webdataset, {ours} by Lethe"


def main():
    archives = dict(odd_tars.every())
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in archives]
        for path, data in zip(paths, archives.values()):
            path.write_bytes(data)
        ours = dict(by_lethe(sys.argv[1], paths))
        theirs = {path.name: by_webdataset(path) for path in paths}
    counts, wrong, used = collections.Counter(), [], set()
    for name in archives:
        found = difference(theirs[name], ours[name])
        if found is None:
            counts["refused by both" if isinstance(ours[name], str) else "the same pairs"] += 1
            continue
        is_refused = isinstance(ours[name], str)
        table, kind = (REFUSED, "refused by Lethe, as stated") if is_refused else (OTHERWISE, "read otherwise, as stated")
        pattern = next((pattern for pattern in table if fnmatch.fnmatch(name, pattern)), None)
        is_stated = pattern is not None and ours[name] != "panicked" and (is_refused or [key for key, *_ in ours[name]] == table[pattern][0])
        if is_stated:
            used.add(pattern)
            counts[kind] += 1
        else:
            wrong.append(f"{name}: {found}")
    wrong += [f"{pattern}: a stated difference that no file shows" for pattern in [*REFUSED, *OTHERWISE] if pattern not in used]
    for line in wrong:
        print(f"  FAIL {line}")
    print(f"tars: {len(archives)} files, webdataset {version('webdataset')}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if wrong:
        sys.exit(f"{len(wrong)} tar files are not read as by webdataset")


if __name__ == "__main__":
    main()
