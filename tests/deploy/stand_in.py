"""Lays the demo's data under the names that the manifests in jobs/ use.

    stand_in.py folder DEMO FOLDER     for cluster-300.toml, stable-diffusion.toml and llava.toml: FOLDER becomes the folder that they stand in
    stand_in.py s3 DEMO ENDPOINT       for clip-s3.toml: the bucket `lethe`
"""

import json
import struct
import sys
from pathlib import Path


def names(demo: Path, model: str, table: str, concepts: str, **groups: str) -> dict[str, Path]:
    """From names to files of the demo."""
    laid = {f"{model}/{file.name}": file for file in sorted((demo / "model").iterdir())}
    laid[f"{concepts}concepts.csv"] = demo / table
    laid |= {f"{concepts}forget/{file.name}": file for file in sorted((demo / "forget").glob("*.tar"))}
    laid |= {f"{groups['retain']}retain-{number}.tar": file for number, file in enumerate(sorted(demo.glob("retain-*.tar")))}
    laid[groups["texts"]] = demo / "retain-texts.txt"
    laid[groups["validation"]] = demo / "validation.tar"
    laid[groups["test"]] = demo / "test.tar"
    laid[groups["classes"]] = demo / "classes.txt"
    return laid


def folder(demo: str, target: str) -> None:
    laid = names(
        Path(demo), "clip-vit-large-patch14", "concepts-300.csv", "",
        retain="retain/", texts="retain/texts-0.txt", validation="validation/0.tar", test="test/0.tar", classes="classes.txt",
    )  # fmt: skip
    for name, file in laid.items():
        path = Path(target) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file.resolve())
    (Path(target) / "clip-vit-large-patch14-336").symlink_to("clip-vit-large-patch14")
    targets(Path(demo) / "model", Path(target))


def weights(file: Path, prefix: str, to: str, path: Path) -> None:
    """The tensors of a safetensors file whose names begin like this, as another file, with something else in its place."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, parts, start = {}, [], 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name.startswith(prefix):
            begin, end = entry["data_offsets"]
            parts.append(data[8 + length + begin : 8 + length + end])
            header[to + name[len(prefix) :]] = entry | {"data_offsets": [start, start + end - begin]}
            start += end - begin
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def targets(model: Path, folder: Path) -> None:
    """What the manifests release into: the demo model's towers, with next to nothing around them."""
    config = json.loads((model / "config.json").read_text())
    pipeline, llava = folder / "stable-diffusion-v1-5", folder / "llava-1.5-7b-hf"
    (pipeline / "text_encoder").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    (pipeline / "text_encoder/config.json").write_text(json.dumps(config["text_config"]))
    weights(model / "model.safetensors", "text_model.", "text_model.", pipeline / "text_encoder/model.safetensors")
    llava.mkdir()
    (llava / "config.json").write_text(json.dumps({"model_type": "llava", "vision_config": config["vision_config"], "vision_feature_layer": -2}))
    weights(model / "model.safetensors", "vision_model.", "vision_tower.vision_model.", llava / "model.safetensors")


def s3(demo: str, endpoint: str) -> None:
    import boto3

    laid = names(
        Path(demo), "models/clip-vit-base-patch32", "concepts-100.csv", "concepts/",
        retain="data/", texts="data/retain-texts.txt", validation="data/validation-0.tar", test="data/test-0.tar", classes="data/classes.txt",
    )  # fmt: skip
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="lethe")
    for name, file in laid.items():
        client.upload_file(str(file), "lethe", name)


if __name__ == "__main__":
    {"folder": folder, "s3": s3}[sys.argv[1]](*sys.argv[2:])
