//! Signatures on a release: made once, checked with the public key. `docs/proof.md` describes the
//! formats.

use bytes::Bytes;
use lethe_store as store;

use crate::attest::dsse::Envelope;
use crate::attest::key::{PublicKey, SigningKey};
use crate::attest::model_signing::{self, Files};
use crate::attest::receipts;
use crate::failure::Failure;
use crate::layout::{ATTESTATIONS, BESIDE, PROVENANCE, RECEIPTS, RECORD, SIGNATURE};
use crate::lease::fence::Fence;
use crate::release::read::Release;
use crate::release::verify::{self, Problem};

/// Largest file of statements or signatures, bytes.
const MAX_FILE: u64 = 256 << 20;

/// Signs a release: each statement alone, then all its files. A release that this key has signed
/// before stays as it is. The signature covers the digests in the record; [`verify`] checks the
/// files against them.
///
/// # Errors
/// [`Failure::BadInput`] when existing statements or signatures differ; [`Failure::Infrastructure`]
/// when another coordinator has taken the run over, or the store cannot be read or written.
pub async fn sign(release: &Release, key: &SigningKey, fence: &Fence) -> Result<(), Failure> {
    let statements = statements(release).await?;
    if !statements.is_empty() && beside(release, ATTESTATIONS).await?.is_none() {
        let sealed: Vec<String> = statements
            .iter()
            .map(|line| Ok(encode(&Envelope::seal(line, key)?)? + "\n"))
            .collect::<Result<_, Failure>>()?;
        create(release, ATTESTATIONS, sealed.concat(), fence).await?;
    }
    let attestations = beside(release, ATTESTATIONS).await?;
    // Existing statements are checked before they are signed.
    let mut problem = attestations
        .as_deref()
        .and_then(|bytes| check_attestations(bytes, &statements, key.public()));
    if problem.is_none() {
        if beside(release, SIGNATURE).await?.is_none() {
            let files = files(release, attestations.as_deref());
            create(
                release,
                SIGNATURE,
                model_signing::sign(&release.record.name, &files, key)?,
                fence,
            )
            .await?;
        }
        problem = check(release, key.public()).await?.into_iter().next();
    }
    problem.map_or(Ok(()), |problem| {
        let at = release.address();
        Err(Failure::input(format!(
            "{at}/{problem}; a signature is made once: put that one aside if it should not count"
        )))
    })
}

/// Creates a file beside a release's files. An existing file stays.
async fn create(release: &Release, name: &str, text: String, fence: &Fence) -> Result<(), Failure> {
    fence.check().await?;
    match release.store.create(&release.key(name), Bytes::from(text)).await {
        Ok(_) | Err(store::Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the problems of the signatures on a release that this key must have signed. Assumes that
/// the files match the record.
///
/// # Errors
/// [`Failure::Infrastructure`] when the store cannot be read.
pub async fn check(release: &Release, key: &PublicKey) -> Result<Vec<Problem>, Failure> {
    for name in BESIDE {
        let size = release.store.size(&release.key(name)).await?.unwrap_or(0);
        if size > MAX_FILE {
            return Ok(vec![Problem::new(name, format!("has {size} bytes; none is that large"))]);
        }
    }
    let attestations = beside(release, ATTESTATIONS).await?;
    let mut problems = Vec::new();
    match beside(release, SIGNATURE).await?.map(|signature| model_signing::open(&signature, key)) {
        None => {
            problems.push(Problem::new(SIGNATURE, "is missing: nobody has signed this release"))
        }
        Some(Err(problem)) => problems.push(Problem::new(SIGNATURE, problem)),
        Some(Ok(signed)) => {
            problems.extend(differences(&files(release, attestations.as_deref()), &signed))
        }
    }
    if let Some(attestations) = attestations {
        problems.extend(check_attestations(&attestations, &statements(release).await?, key));
    }
    Ok(problems)
}

fn check_attestations(
    attestations: &[u8],
    statements: &[Vec<u8>],
    key: &PublicKey,
) -> Option<Problem> {
    let problem = match unseal(attestations, key) {
        Err(problem) => Some(problem),
        Ok(signed) => (signed != statements)
            .then(|| "signs other statements than the release makes".to_owned()),
    };
    problem.map(|problem| Problem::new(ATTESTATIONS, problem))
}

fn differences(expected: &Files, signed: &Files) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, digest) in expected {
        match signed.get(name) {
            None => problems.push(Problem::new(name, "is not covered by the signature")),
            Some(signed) if signed != digest => {
                problems.push(Problem::new(name, "has other bytes than were signed"))
            }
            Some(_) => {}
        }
    }
    let gone = signed.keys().filter(|name| !expected.contains_key(*name));
    problems.extend(gone.map(|name| {
        Problem::new(
            &name.escape_default().to_string(),
            "was signed, and is no file of this release",
        )
    }));
    problems
}

/// Returns every file that a signature has to cover.
fn files(release: &Release, attestations: Option<&[u8]>) -> Files {
    let named = release.record.files.iter().map(|(name, file)| (name.clone(), file.digest));
    let attestations = attestations
        .map(|bytes| (ATTESTATIONS.to_owned(), lethe_shared::digest::Digest::of(bytes)));
    let targets = verify::target_files(release).into_iter().map(|(name, file)| (name, file.digest));
    named.chain(targets).chain([(RECORD.to_owned(), release.digest)]).chain(attestations).collect()
}

/// Returns the statements of a release: its provenance, then its receipts. A release of an earlier
/// version of Lethe has none.
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
        let envelope: Envelope = serde_json::from_slice(line)
            .map_err(|error| format!("line {number} is no DSSE envelope: {error}"))?;
        envelope.open(key).map_err(|problem| format!("line {number} {problem}"))
    };
    (1..).zip(lines(attestations)).map(open).collect()
}

/// Returns the receipt of a concept, signed if the release is signed; `None` if the release has no
/// receipt of the concept.
///
/// # Errors
/// [`Failure`] when the store cannot be read, or the release has no receipts.
pub async fn receipt(release: &Release, concept: &str) -> Result<Option<String>, Failure> {
    let statements = statements(release).await?;
    if statements.is_empty() {
        return Err(Failure::input(format!(
            "{} has no receipts: it was made by an earlier lethe",
            release.address()
        )));
    }
    let Some(at) =
        statements.iter().position(|line| receipts::about(line).as_deref() == Some(concept))
    else {
        return Ok(None);
    };
    let signed = beside(release, ATTESTATIONS).await?;
    let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let line = signed.and_then(|signed| lines(&signed).nth(at).map(text));
    Ok(Some(line.unwrap_or_else(|| text(&statements[at]))))
}

/// Returns a file beside a release's files, if it exists.
async fn beside(release: &Release, name: &str) -> Result<Option<Bytes>, Failure> {
    let key = release.key(name);
    match release.store.size(&key).await? {
        Some(size) if size > MAX_FILE => Err(Failure::input(format!(
            "{}/{name} has {size} bytes; none is that large",
            release.address()
        ))),
        Some(_) => Ok(release.store.get(&key).await?),
        None => Ok(None),
    }
}

fn encode(envelope: &Envelope) -> Result<String, Failure> {
    serde_json::to_string(envelope).map_err(Failure::input)
}
