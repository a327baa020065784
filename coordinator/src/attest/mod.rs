//! What a release says of itself for others to check, and signatures on it. docs/proof.md has the formats.
//!
//! | file of a release | what | made by |
//! |---|---|---|
//! | `provenance.json` | SLSA provenance: base, data, manifest, versions | `provenance.rs` |
//! | `receipts.jsonl` | one removal receipt a concept, one a line | `receipts.rs` |
//! | `attestations.intoto.jsonl` | the same, each statement signed alone (`dsse.rs`) | whoever holds a key |
//! | `model.sig` | a signature over every file (`model_signing.rs`) | whoever holds a key |
//!
//! The first two are the record's files. The last two are created after it, once, and name nothing that changes.

pub mod dsse;
pub mod key;
pub mod model_signing;
pub mod names;
pub mod provenance;
pub mod receipts;

use bytes::Bytes;
use lethe_shared::record::Composition;
use lethe_shared::store;
use serde_json::{Value, json};

use self::dsse::Envelope;
use self::key::{PublicKey, SigningKey};
use self::model_signing::Files;
use crate::failure::Failure;
use crate::release::RECORD;
use crate::release::read::Release;
use crate::release::verify::{self, Problem};

/// The provenance's name in a release.
pub const PROVENANCE: &str = "provenance.json";
/// The receipts' name in a release.
pub const RECEIPTS: &str = "receipts.jsonl";
/// The signed statements' name beside a release's files.
pub const ATTESTATIONS: &str = "attestations.intoto.jsonl";
/// The signature's name beside a release's files.
pub const SIGNATURE: &str = "model.sig";
/// What stands in a release's folder without being named by its record.
pub const BESIDE: [&str; 2] = [ATTESTATIONS, SIGNATURE];

/// The version of this program.
const LETHE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The type of an in-toto statement.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Largest file of statements or signatures, bytes.
const MAX_FILE: u64 = 256 << 20;

/// Files of a record as in-toto subjects.
fn subjects(record: &Composition, wanted: impl Fn(&str) -> bool) -> Vec<Value> {
    let files = record.files.iter().filter(|(name, _)| wanted(name));
    files.map(|(name, file)| json!({ "name": name, "digest": { "sha256": file.digest } })).collect()
}

/// Signs a release: every statement in it alone, then all its files. One that this key has signed before stays as it is. What is
/// signed is what the record says; whether files are what it says is [`verify`]'s to know.
///
/// # Errors
/// [`Failure::BadInput`] when something else has been signed there; else when the store cannot be read or written.
pub async fn sign(release: &Release, key: &SigningKey) -> Result<(), Failure> {
    let statements = statements(release).await?;
    if !statements.is_empty() && beside(release, ATTESTATIONS).await?.is_none() {
        let sealed: Vec<String> =
            statements.iter().map(|line| Ok(encode(&Envelope::seal(line, key)?)? + "\n")).collect::<Result<_, Failure>>()?;
        create(release, ATTESTATIONS, sealed.concat()).await?;
    }
    let attestations = beside(release, ATTESTATIONS).await?;
    // Nothing of somebody else's is signed unseen.
    let mut problem = attestations.as_deref().and_then(|bytes| check_attestations(bytes, &statements, key.public()));
    if problem.is_none() {
        if beside(release, SIGNATURE).await?.is_none() {
            let files = files(release, attestations.as_deref());
            create(release, SIGNATURE, model_signing::sign(&release.record.name, &files, key)?).await?;
        }
        problem = check(release, key.public()).await?.into_iter().next();
    }
    problem.map_or(Ok(()), |problem| {
        let at = release.address();
        Err(Failure::input(format!("{at}/{problem}; a signature is made once: put that one aside if it should not count")))
    })
}

/// Creates a file beside a release's; whoever came first stays.
async fn create(release: &Release, name: &str, text: String) -> Result<(), Failure> {
    match release.store.create(&format!("{}/{name}", release.prefix), Bytes::from(text)).await {
        Ok(_) | Err(store::Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with the signatures on a release, if this key must have signed it. Files are taken to be what the record says.
///
/// # Errors
/// When the store cannot be read.
pub async fn check(release: &Release, key: &PublicKey) -> Result<Vec<Problem>, Failure> {
    for name in BESIDE {
        let size = release.store.size(&format!("{}/{name}", release.prefix)).await?.unwrap_or(0);
        if size > MAX_FILE {
            return Ok(vec![Problem::new(name, format!("has {size} bytes; none is that large"))]);
        }
    }
    let attestations = beside(release, ATTESTATIONS).await?;
    let mut problems = Vec::new();
    match beside(release, SIGNATURE).await?.map(|signature| model_signing::open(&signature, key)) {
        None => problems.push(Problem::new(SIGNATURE, "is missing: nobody has signed this release")),
        Some(Err(problem)) => problems.push(Problem::new(SIGNATURE, problem)),
        Some(Ok(signed)) => problems.extend(differences(&files(release, attestations.as_deref()), &signed)),
    }
    if let Some(attestations) = attestations {
        problems.extend(check_attestations(&attestations, &statements(release).await?, key));
    }
    Ok(problems)
}

fn check_attestations(attestations: &[u8], statements: &[Vec<u8>], key: &PublicKey) -> Option<Problem> {
    let problem = match unseal(attestations, key) {
        Err(problem) => Some(problem),
        Ok(signed) => (signed != statements).then(|| "signs other statements than the release makes".to_owned()),
    };
    problem.map(|problem| Problem::new(ATTESTATIONS, problem))
}

fn differences(expected: &Files, signed: &Files) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, digest) in expected {
        match signed.get(name) {
            None => problems.push(Problem::new(name, "is not covered by the signature")),
            Some(signed) if signed != digest => problems.push(Problem::new(name, "has other bytes than were signed")),
            Some(_) => {}
        }
    }
    let gone = signed.keys().filter(|name| !expected.contains_key(*name));
    problems.extend(gone.map(|name| Problem::new(&name.escape_default().to_string(), "was signed, and is no file of this release")));
    problems
}

/// Every file that a signature has to cover.
fn files(release: &Release, attestations: Option<&[u8]>) -> Files {
    let named = release.record.files.iter().map(|(name, file)| (name.clone(), file.digest));
    let attestations = attestations.map(|bytes| (ATTESTATIONS.to_owned(), lethe_shared::digest::Digest::of(bytes)));
    let targets = verify::target_files(release).into_iter().map(|(name, file)| (name, file.digest));
    named.chain(targets).chain([(RECORD.to_owned(), release.digest)]).chain(attestations).collect()
}

/// The statements that a release makes: its provenance, then its receipts. None in a release of an earlier version of Lethe.
async fn statements(release: &Release) -> Result<Vec<Vec<u8>>, Failure> {
    if !release.record.files.contains_key(PROVENANCE) {
        return Ok(Vec::new());
    }
    let mut all = vec![release.file(PROVENANCE).await?.to_vec()];
    all.extend(lines(&release.file(RECEIPTS).await?).map(<[u8]>::to_vec));
    Ok(all)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

fn unseal(attestations: &[u8], key: &PublicKey) -> Result<Vec<Vec<u8>>, String> {
    if !attestations.ends_with(b"\n") {
        return Err("breaks off in its last line".to_owned());
    }
    let open = |(number, line): (usize, &[u8])| {
        let envelope: Envelope = serde_json::from_slice(line).map_err(|error| format!("line {number} is no DSSE envelope: {error}"))?;
        envelope.open(key).map_err(|problem| format!("line {number} {problem}"))
    };
    (1..).zip(lines(attestations)).map(open).collect()
}

/// The receipt of a concept: signed when the release is, as it can be handed out; `None` when the release removes no such concept.
///
/// # Errors
/// When the store cannot be read, or the release makes no receipts.
pub async fn receipt(release: &Release, concept: &str) -> Result<Option<String>, Failure> {
    let statements = statements(release).await?;
    if statements.is_empty() {
        return Err(Failure::input(format!("{} has no receipts: it was made by an earlier lethe", release.address())));
    }
    let Some(at) = statements.iter().position(|line| receipts::about(line).as_deref() == Some(concept)) else { return Ok(None) };
    let signed = beside(release, ATTESTATIONS).await?;
    let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let line = signed.and_then(|signed| lines(&signed).nth(at).map(text));
    Ok(Some(line.unwrap_or_else(|| text(&statements[at]))))
}

/// A file beside a release's, if it is there.
async fn beside(release: &Release, name: &str) -> Result<Option<Bytes>, Failure> {
    let key = format!("{}/{name}", release.prefix);
    match release.store.size(&key).await? {
        Some(size) if size > MAX_FILE => Err(Failure::input(format!("{}/{name} has {size} bytes; none is that large", release.address()))),
        Some(_) => Ok(release.store.get(&key).await?),
        None => Ok(None),
    }
}

fn encode(envelope: &Envelope) -> Result<String, Failure> {
    serde_json::to_string(envelope).map_err(Failure::input)
}
