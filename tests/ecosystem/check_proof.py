"""Checks what a release proves with other people's tools: OpenSSF Model Signing, the Hub's model card parser.

Usage: check_proof.py LETHE STORE NAME WORK_FOLDER
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import model_signing
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import ModelCard

CURVES = {"prime256v1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
failures = []


def check(what, ok, detail=""):
    print(f"  {'ok  ' if ok else 'FAIL'} {what}{': ' + detail if detail else ''}")
    if not ok:
        failures.append(what)


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def make_key(work, curve):
    private, public = work / f"{curve}.pem", work / f"{curve}.pub"
    for command in (
        ("openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", private),
        ("openssl", "ec", "-in", private, "-pubout", "-out", public),
    ):
        run(*command).check_returncode()
    return private, public


def theirs(folder, public):
    """Whether the stock tool verifies a folder."""
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    try:
        config.verify(folder, folder / "model.sig")
        return True
    except Exception:
        return False


def ours(lethe, folder, public):
    """Lethe's exit code for a folder."""
    return run(lethe, "verify", folder, "--public-key", public).returncode


def tampered(lethe, folder, public):
    """Changes one bit of every file in turn: both tools must see it."""
    missed = []
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        path.write_bytes(changed)
        if theirs(folder, public) or ours(lethe, folder, public) != 4:
            missed.append(path.name)
        path.write_bytes(whole)
    return missed


def signatures(lethe, store, release, name, work):
    for number, curve in enumerate(CURVES):
        private, public = make_key(work, curve)
        copy = work / f"copy-{curve}"
        if number == 0:
            run(lethe, "release", "sign", name, "--store", store, "--key", private).check_returncode()
            shutil.copytree(release, copy)
            check("model_signing verifies what lethe has signed", theirs(copy, public))
            command = run(sys.executable, "-m", "model_signing", "verify", "key", copy, "--signature", copy / "model.sig", "--public_key", public)
            check("so does its command line", command.returncode == 0, command.stdout.strip() + command.stderr.strip())
            check("one bit of any file: both say so", not (missed := tampered(lethe, copy, public)), ", ".join(missed))
            attestations(copy, public, CURVES[curve])
        else:
            # Two stores of the same release would be signed alike; the other direction shows the other curves.
            shutil.copytree(release, copy, ignore=shutil.ignore_patterns("model.sig", "attestations.intoto.jsonl"))
            signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=private)
            signing.set_hashing_config(model_signing.hashing.Config().set_ignored_paths(paths=["model.sig"]))
            signing.sign(copy, copy / "model.sig")
            check(f"lethe verifies what model_signing has signed ({curve})", ours(lethe, copy, public) == 0)
            check("and it does too", theirs(copy, public))
            if number == 1:
                check("one bit of any file: both say so", not (missed := tampered(lethe, copy, public)), ", ".join(missed))
        _, other = make_key(work, "prime256v1") if number else make_key(work, "secp384r1")
        check("another key verifies nothing", not theirs(copy, other) and ours(lethe, copy, other) == 4)


def attestations(folder, public, algorithm):
    """Each line alone is a DSSE envelope over the statement it stands for."""
    key = serialization.load_pem_public_key(public.read_bytes())
    statements = [(folder / "provenance.json").read_bytes(), *(folder / "receipts.jsonl").read_bytes().splitlines()]
    lines = (folder / "attestations.intoto.jsonl").read_text().splitlines()
    subjects = True
    for line, statement in zip(lines, statements, strict=True):
        envelope = json.loads(line)
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
        signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(algorithm))
        assert payload == statement, "a signed statement is another than the release's"
        for subject in json.loads(payload)["subject"]:
            subjects &= hashlib.sha256((folder / subject["name"]).read_bytes()).hexdigest() == subject["digest"]["sha256"]
    check(f"{len(lines)} signed statements verify one by one, with `cryptography`", True)
    check("their subjects are the release's files", subjects)


def card(release, record):
    card = ModelCard.load(release / "README.md")
    measured = {result.metric_name: result.metric_value for result in card.data.eval_results}
    concepts = record["concepts"]
    expected = sum(concept["composed"]["fa5"] for concept in concepts) / len(concepts)
    check("the Hub's parser reads the card's metadata", "machine-unlearning" in card.data.tags, str(sorted(card.data.to_dict())))
    check("and its numbers are the record's", abs(measured["FA@5, removed concepts"] - expected) <= 5e-5, str(measured))
    rows = [line for line in card.text.splitlines() if line.startswith("| ") and "`text_model" in line or "`vision_model" in line]
    check("every removal is in the card's table", len(rows) == len(concepts), f"{len(rows)} of {len(concepts)}")
    check("what was not shown is in the card", "## What was not shown" in card.text)


def main():
    lethe, store, name, work = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    release = Path(run(lethe, "release", "show", name, "--store", store, "--address").stdout.strip())
    card(release, json.loads((release / "composition.json").read_text()))
    signatures(lethe, store, release, name, work)
    if failures:
        sys.exit(f"{len(failures)} checks failed")
    print("other tools find what lethe says")


if __name__ == "__main__":
    main()
