//! Signatures of releases, and keys.

use std::sync::LazyLock;

use data_encoding::BASE64;
use lethe::attest::dsse::Envelope;
use lethe::attest::key::{PublicKey, SigningKey};
use lethe::attest::model_signing;
use serde_json::Value;

use crate::bytes;
use crate::draw::Draw;
use crate::harness::{Harness, Outcome, as_shown, hold, refused, same, usual_memory};
use crate::json::{Node, almost, unique_keys};
use crate::scratch;

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "signature",
            memory: usual_memory,
            seeds: || vec![SIGNATURE.to_vec()],
            generate: generate_signature,
            check: check_signature,
        },
        Harness {
            name: "key",
            memory: usual_memory,
            seeds: || vec![KEY.to_vec()],
            generate: generate_key,
            check: check_key,
        },
    ]
}

/// A signature that `model_signing` made, and its key.
const SIGNATURE: &[u8] = include_bytes!("../../../../coordinator/src/attest/golden/model.sig");
const KEY: &[u8] = include_bytes!("../../../../coordinator/src/attest/golden/key.pub");
const KEYS: &[&str] = &[
    "mediaType",
    "verificationMaterial",
    "publicKey",
    "hint",
    "tlogEntries",
    "dsseEnvelope",
    "payload",
    "payloadType",
    "signatures",
    "sig",
    "keyid",
];

fn read_key(pem: &[u8]) -> Result<PublicKey, String> {
    scratch::with_file("key.pub", pem, |_, path| {
        PublicKey::read(path).map_err(|error| error.to_string())
    })
}

fn generate_signature(draw: &mut Draw<'_>) -> Vec<u8> {
    static BUNDLE: LazyLock<Vec<Node>> = LazyLock::new(|| {
        let bundle: Value = serde_json::from_slice(SIGNATURE).expect("the signature is JSON");
        vec![Node::from(&bundle)]
    });
    let mut bundle = almost(&BUNDLE, KEYS, draw);
    let field = *draw.pick(&["payload", "sig"]);
    let envelope = bundle.field("dsseEnvelope");
    let text = if field == "payload" {
        envelope.and_then(|envelope| envelope.field("payload"))
    } else {
        envelope.and_then(|envelope| envelope.field("signatures")).and_then(|list| match list {
            Node::List(values) => values.first_mut()?.field("sig"),
            _ => None,
        })
    };
    if draw.one_in(3)
        && let Some(Node::Text(text)) = text
        && let Ok(mut content) = BASE64.decode(text.as_bytes())
    {
        bytes::mutate(&mut content, draw);
        *text = BASE64.encode(&content);
    }
    bundle.write(Some(draw)).into_bytes()
}

fn check_signature(bytes: &[u8]) -> Result<Outcome, String> {
    static PUBLIC: LazyLock<PublicKey> = LazyLock::new(|| read_key(KEY).expect("the key is one"));
    static SIGNED: LazyLock<model_signing::Files> =
        LazyLock::new(|| model_signing::open(SIGNATURE, &PUBLIC).expect("the signature is valid"));
    // The same bytes as a line of the file of signed statements.
    match serde_json::from_slice::<Envelope>(bytes) {
        Ok(envelope) => drop(envelope.open(&PUBLIC).map_err(as_shown).map_err(refused)),
        Err(error) => drop(refused(as_shown(error))?),
    }
    let _ = lethe::attest::receipts::about(bytes);
    match model_signing::open(bytes, &PUBLIC) {
        Ok(files) => {
            unique_keys(bytes)?;
            // Whoever has no key can change the form of a signature, and not what it says.
            same("signed files", &files, &*SIGNED)?;
            Ok(Outcome::Accepted)
        }
        Err(problem) => refused(as_shown(problem)),
    }
}

fn generate_key(draw: &mut Draw<'_>) -> Vec<u8> {
    let text = String::from_utf8_lossy(KEY).into_owned();
    let label = *draw.pick(&[
        "PUBLIC KEY",
        "PUBLIC KEY",
        "EC PRIVATE KEY",
        "PRIVATE KEY",
        "CERTIFICATE",
        "",
    ]);
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = BASE64.decode(body.as_bytes()).expect("the key is base64");
    if draw.one_in(2) {
        bytes::mutate(&mut der, draw);
    }
    let width = if draw.one_in(4) { 1 + draw.below(100) } else { 64 };
    let body = BASE64.encode(&der);
    let lines: Vec<String> = body
        .as_bytes()
        .chunks(width)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    let mut pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    if draw.one_in(8) {
        pem = format!("{}{pem}{}", draw.text(), draw.text());
    }
    pem.into_bytes()
}

fn check_key(bytes: &[u8]) -> Result<Outcome, String> {
    let private = scratch::with_file("key.pem", bytes, |_, path| {
        SigningKey::read(path).map_err(|error| error.to_string())
    });
    if let Err(problem) = private {
        refused(problem)?;
    }
    match read_key(bytes) {
        Ok(key) => {
            let again = read_key(bytes)?;
            same("keys", &key, &again)?;
            hold(!key.verifies(b"message", b"signature"), || "verifies anything".to_owned())?;
            Ok(Outcome::Accepted)
        }
        Err(problem) => refused(problem),
    }
}
