"""What a removal costs as one thing after another grows: concepts, validation images, classes, the model.

Usage: growth.py LETHE MANIFEST WORK_FOLDER
"""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

from runs import lethe, manifest_of, phases, rows_of


def samples(shard):
    """(caption, members) of a shard's samples in its order."""
    found = {}
    with tarfile.open(shard) as archive:
        for member in archive:
            found.setdefault(member.name.split(".", 1)[0], []).append((member.name, archive.extractfile(member).read()))
    return [(next(data for name, data in files if name.endswith(".txt")).decode().strip(), files) for files in found.values()]


def write(path, chosen):
    with tarfile.open(path, "w") as archive:
        for _, files in chosen:
            for name, data in files:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return [str(path)]


def wider(base, folder, factor):
    """The same model with towers so many times as wide, of random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    shutil.copytree(base, folder)
    settings = json.loads((base / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        for size in ("hidden_size", "intermediate_size", "num_attention_heads"):
            settings[tower][size] *= factor
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(**settings)).save_pretrained(folder)
    return folder


def main():
    binary, manifest, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rows, folder = rows_of(manifest), manifest.parent.resolve()
    few, retain = rows[:8], ["retain-00000.tar"]
    names = (folder / "classes.txt").read_text().splitlines()
    validation = samples(folder / "validation.tar")
    print("| what grows | | statistics s | survey s per concept | direction s per concept | coefficients s | total s |\n|---|---|---|---|---|---|---|")

    def point(what, size, concepts, **settings):
        name = f"{what}-{size}".replace(" ", "-").replace(",", "")
        described = manifest_of(manifest, concepts, work, name, retain=retain, test=[], **settings)
        report = lethe(binary, described, work / f"store-{name}", cores=1)[2]
        took = phases(report)
        per = lambda phase: took[phase] / len(concepts)
        numbers = [took["statistics"], per("survey"), per("concepts"), took.get("doses", 0.0), took["total"]]
        print(f"| {what} | {size} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |", flush=True)

    for count in (8, 32):
        point("concepts", count, rows[:count])
    for share in (4, 2):
        chosen = write(work / f"validation-{share}.tar", validation[::share])
        point("validation images", len(validation[::share]), few, validation=chosen)
    for share in (4, 2):
        wanted = {row["class"] for row in few}
        kept = [name for number, name in enumerate(names) if number % share == 0 or name in wanted]
        (work / f"classes-{share}.txt").write_text("\n".join(kept) + "\n")
        chosen = [sample for sample in validation if sample[0] in set(kept)][: len(validation) // 4]
        shard = write(work / f"validation-classes-{share}.tar", chosen)
        point(f"classes, {len(chosen)} validation images", len(kept), few, classes=str(work / f"classes-{share}.txt"), validation=shard)
    chosen = write(work / "validation-model.tar", validation[::4])
    for factor in (1, 2):
        model = folder / "model" if factor == 1 else wider(folder / "model", work / "wide", factor)
        width = json.loads((model / "config.json").read_text())["text_config"]["hidden_size"]
        point("width", width, few, model=model, validation=chosen)


if __name__ == "__main__":
    main()
