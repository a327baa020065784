#!/usr/bin/env python3
"""A probe: what a diffusion pipeline with the edits still draws, beside the unedited one.

It draws each removed class and each retained one by its prompt, with both pipelines and the same noise. `changed.GROUP` is the mean
difference of the two drawings, as a share of the range of a pixel. A judge, where there is one, says what is to be seen. In
UnlearnCanvas's terms (arXiv 2402.11846): `ua` is the share of removed prompts in whose drawing the judge no longer finds the class, of those
that the unedited pipeline draws; `ira.GROUP` is the share of retained prompts that are still drawn right, of those that the unedited pipeline
draws right.

    command = ["python3", "stable_diffusion.py", "--judge", "judge.py:FOLDER", "--retained", "groups.csv"]
"""

import argparse
import json

import numpy
import torch
from diffusers import DiffusionPipeline

from common import Input, load_judge, read_groups, sampled, share, still_true, write

VERSION = "1"
# Pictures of the report, for the removed classes and for each group of retained ones.
SHOWN = 12


def pipelines(told, name):
    """The unedited pipeline, and the same with the edited text encoders."""
    edited, base = told.target("stable-diffusion", name)
    # Pictures that it replaces by black ones cannot be compared.
    checked = json.loads((base / "model_index.json").read_text()).get("safety_checker")
    unchecked = {"safety_checker": None, "requires_safety_checker": False} if checked else {}
    before, after = (DiffusionPipeline.from_pretrained(base, **unchecked) for _ in range(2))
    for part in [part for part in after.components if part.startswith("text_encoder") and (edited / part).is_dir()]:
        encoder = getattr(after, part)
        setattr(after, part, type(encoder).from_pretrained(edited / part, config=encoder.config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for pipeline in (before, after):
        # Half precision is slow on most processors, where it works at all.
        pipeline.to(device, torch.float32 if device == "cpu" else None)
        pipeline.set_progress_bar_config(disable=True)
    return before, after


def draw(pipeline, prompts, options, what):
    pictures = []
    for start in range(0, len(prompts), options.batch):
        part = prompts[start : start + options.batch]
        generators = [torch.Generator().manual_seed(1000 * options.seed + start + i) for i in range(len(part))]
        side = {"height": options.side, "width": options.side} if options.side else {}
        pictures += pipeline(part, num_inference_steps=options.steps, guidance_scale=options.guidance, generator=generators, **side).images
        print(f"{what}: {len(pictures)} of {len(prompts)} drawn", flush=True)
    return pictures


def change(before, after):
    """The mean difference of two pictures, as a share of the range of a pixel."""
    return float(numpy.abs(numpy.asarray(before, numpy.float32) - numpy.asarray(after, numpy.float32)).mean() / 255)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", metavar="FILE:ARGUMENT", help="Python file with load(ARGUMENT); without one, only the change is measured")
    parser.add_argument("--retained", required=True, metavar="CSV", help="retained classes: columns class, group")
    parser.add_argument("--group-column", default="group", help="the column that names a class's group")
    parser.add_argument("--target", help="name of the target, where there are several")
    parser.add_argument("--prompt", default="{}", help="prompt around a class name")
    parser.add_argument("--each", type=int, default=100, help="most classes of a group; 0 for all")
    parser.add_argument("--top", type=int, default=5, help="the judge finds a class in its first so many")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--side", type=int, help="side of a picture in pixels; the pipeline's own by default")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    told, judge = Input(), load_judge(options.judge) if options.judge else None
    groups = {"removed": sampled(told.removed, options.each)}
    groups |= {name: sampled(set(classes) - set(told.removed), options.each) for name, classes in read_groups(options.retained, options.group_column).items()}
    before, after = pipelines(told, options.target)
    numbers, pictures, notes = {}, [], []
    for group, classes in groups.items():
        if not classes:
            continue
        prompts = [options.prompt.format(name) for name in classes]
        drawn = [draw(pipeline, prompts, options, f"{group}, {when}") for pipeline, when in ((before, "base"), (after, "release"))]
        numbers[f"changed.{group}"] = round(sum(map(change, *drawn)) / len(classes), 4)
        for place, name in enumerate(classes[:SHOWN]):
            files = [f"{group}-{place}-{when}.png" for when in ("before", "after")]
            for file, made in zip(files, drawn):
                made[place].save(told.output / file)
            pictures.append({"title": f"{name} ({group})", "before": files[0], "after": files[1]})
        if judge is None:
            continue
        found = [[name in ranked[: options.top] for name, ranked in zip(classes, judge(made))] for made in drawn]
        drawn_still = still_true(*found)
        numbers[f"drawn.{group}"] = share(found[0])
        numbers[f"still.{group}"] = share(found[1])
        if group == "removed":
            numbers["ua"] = share([not hit for hit in drawn_still])
        else:
            numbers[f"ira.{group}"] = share(drawn_still)
        notes.append(f"{group}: the unedited pipeline draws {sum(found[0])} of {len(classes)} classes, the edited one {sum(drawn_still)} of these")
    notes.append(f"one drawing a class, {options.steps} steps, guidance {options.guidance}")
    if judge:
        notes.append(f"found means in the judge's first {options.top}")
    write(told.output, VERSION, numbers, pictures, notes)


if __name__ == "__main__":
    main()
