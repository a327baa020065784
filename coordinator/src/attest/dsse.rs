//! Signed statements: in-toto statements in DSSE envelopes
//! (<https://github.com/secure-systems-lab/dsse>, version 1).

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::key::{PublicKey, SigningKey};
use crate::failure::Failure;

/// Payload type: an in-toto statement as JSON.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A statement and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    sig: String,
    keyid: String,
}

impl Envelope {
    /// Signs a statement.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the system's random number generator fails.
    pub fn seal(statement: &[u8], key: &SigningKey) -> Result<Self, Failure> {
        let signature = Signature {
            sig: BASE64.encode(&key.sign(&signed_bytes(statement))?),
            keyid: String::new(),
        };
        Ok(Self {
            payload: BASE64.encode(statement),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![signature],
        })
    }

    /// Returns the statement if `key` has signed the envelope.
    ///
    /// # Errors
    /// The defect of the envelope, as a sentence without a subject.
    pub fn open(&self, key: &PublicKey) -> Result<Vec<u8>, String> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(format!(
                "holds `{}`, no in-toto statement",
                self.payload_type.escape_default()
            ));
        }
        let [Signature { sig, keyid }] = &self.signatures[..] else {
            return Err(format!("has {} signatures, expected one", self.signatures.len()));
        };
        if !keyid.is_empty() {
            return Err("names its key in a way that this lethe does not know".to_owned());
        }
        let decode = |text: &str| {
            BASE64.decode(text.as_bytes()).map_err(|error| format!("is not base64: {error}"))
        };
        let (statement, signature) = (decode(&self.payload)?, decode(sig)?);
        if key.verifies(&signed_bytes(&statement), &signature) {
            Ok(statement)
        } else {
            Err("is not signed by this key, or was changed after".to_owned())
        }
    }
}

/// Returns the bytes to sign: DSSE's pre-authentication encoding of the statement.
fn signed_bytes(statement: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), statement.len()).into_bytes();
    bytes.extend_from_slice(statement);
    bytes
}
