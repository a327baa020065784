"""Lays the demo's data under the names that the manifests in jobs/ use.

    stand_in.py folder DEMO FOLDER     for cluster-300.toml: FOLDER becomes the folder that the manifest stands in
    stand_in.py s3 DEMO ENDPOINT       for clip-s3.toml: the bucket `lethe`
"""

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
