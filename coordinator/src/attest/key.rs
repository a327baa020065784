//! Keys as openssl makes them: PEM files with a key on the elliptic curve P-256, P-384 or P-521.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair, ParsedPublicKey,
};
use data_encoding::BASE64;
use lethe_shared::digest::Digest;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

use crate::failure::Failure;

/// Largest key file, bytes.
const MAX_FILE: u64 = 64 << 10;
/// The signing algorithms: each curve with the hash that belongs to it.
const SIGNING: [&EcdsaSigningAlgorithm; 3] = [
    &ECDSA_P256_SHA256_ASN1_SIGNING,
    &ECDSA_P384_SHA384_ASN1_SIGNING,
    &ECDSA_P521_SHA512_ASN1_SIGNING,
];
/// The verification algorithms, in the order of [`SIGNING`].
const VERIFYING: [&EcdsaVerificationAlgorithm; 3] =
    [&ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1, &ECDSA_P521_SHA512_ASN1];
/// Advice in the error message for a file that is not a private key.
const MAKE_ONE: &str = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` and \
                        `openssl ec -in key.pem -pubout -out key.pub`";

/// A private key. Clones share it.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<EcdsaKeyPair>,
    public: PublicKey,
}

/// A public key.
#[derive(Clone)]
pub struct PublicKey {
    key: Arc<ParsedPublicKey>,
    hint: Digest,
}

impl SigningKey {
    /// Reads a private key: PEM, `EC PRIVATE KEY` or `PRIVATE KEY`.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the file does not hold a private key.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |problem: &str| Failure::input(format!("{}: {problem}", path.display()));
        let text = read(path)?;
        if find(&text, b"ENCRYPTED") {
            return Err(wrong(
                "is encrypted; `openssl pkey -in FILE -out key.pem` takes the password off",
            ));
        }
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
            PemError::NoItemsFound => wrong(&format!("holds no private key in PEM; {MAKE_ONE}")),
            other => wrong(&other.to_string()),
        })?;
        let pair = SIGNING
            .iter()
            .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, key.secret_der()).ok());
        let pair =
            pair.ok_or_else(|| wrong(&format!("is no key on P-256, P-384 or P-521; {MAKE_ONE}")))?;
        let der: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(|_| wrong("has no public half"))?;
        let public =
            PublicKey::from_der(der.as_ref()).ok_or_else(|| wrong("has no public half"))?;
        Ok(Self { pair: Arc::new(pair), public })
    }

    /// Returns the public half of the key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message and returns the signature: ECDSA with the hash of the curve's size, in
    /// ASN.1.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the system's random number generator fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        Ok(signature
            .map_err(|_| {
                Failure::Infrastructure("the system gives no randomness to sign with".to_owned())
            })?
            .as_ref()
            .to_vec())
    }
}

impl PublicKey {
    /// Reads a public key: PEM, `PUBLIC KEY`.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the file does not hold a public key.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |problem: &str| Failure::input(format!("{}: {problem}", path.display()));
        let der = SubjectPublicKeyInfoDer::from_pem_slice(&read(path)?).map_err(|error| match error {
            PemError::NoItemsFound => wrong("holds no public key in PEM; `openssl ec -in key.pem -pubout -out key.pub` writes it"),
            other => wrong(&other.to_string()),
        })?;
        Self::from_der(&der)
            .ok_or_else(|| wrong(&format!("is no key on P-256, P-384 or P-521; {MAKE_ONE}")))
    }

    fn from_der(der: &[u8]) -> Option<Self> {
        let key = VERIFYING.iter().find_map(|curve| ParsedPublicKey::new(*curve, der).ok())?;
        // `model_signing` hashes the PEM text of the key, in the form that openssl writes.
        let body = BASE64.encode(der);
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        Some(Self { key: Arc::new(key), hint: Digest::of(pem.as_bytes()) })
    }

    /// Returns the key's name in signatures: the SHA-256 of its PEM text.
    pub fn hint(&self) -> Digest {
        self.hint
    }

    /// Returns whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.hint == other.hint
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.hint)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.hint)
    }
}

fn find(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |problem: String| Failure::input(format!("{}: {problem}", path.display()));
    let size =
        std::fs::metadata(path).map_err(|error| wrong(format!("cannot be read: {error}")))?.len();
    if size > MAX_FILE {
        return Err(wrong(format!("has {size} bytes; no key is that large")));
    }
    std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn write(curve: &'static EcdsaSigningAlgorithm) -> tempfile::NamedTempFile {
        let pair = EcdsaKeyPair::generate(curve).unwrap();
        let document = pair.to_pkcs8v1().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let body = BASE64.encode(document.as_ref());
        std::fs::write(
            file.path(),
            format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"),
        )
        .unwrap();
        file
    }

    /// Returns a private key for tests.
    pub(in super::super) fn key() -> SigningKey {
        SigningKey::read(write(SIGNING[0]).path()).unwrap()
    }

    #[test]
    fn each_curve_verifies_its_own_signatures() {
        for curve in SIGNING {
            let key = SigningKey::read(write(curve).path()).unwrap();
            let signature = key.sign(b"message").unwrap();
            assert!(key.public().verifies(b"message", &signature));
            assert!(!key.public().verifies(b"massage", &signature));
            assert!(!super::tests::key().public().verifies(b"message", &signature));
            assert!(!format!("{key:?}").contains("PRIVATE"));
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, says) in [
            ("", "holds no private key"),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "is encrypted",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "is no key on P-256",
            ),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = SigningKey::read(file.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(
            PublicKey::read(file.path()).unwrap_err().to_string().contains("holds no public key")
        );
    }
}
