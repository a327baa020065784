//! Names that only their owner can read: `release.names = "hashed"`.

use aws_lc_rs::hmac;
use lethe_shared::manifest::Concept;

/// Fewest bytes of a salt.
const SHORTEST: usize = 16;
/// Most bytes of a salt file.
pub const MAX_SALT: u64 = 4096;
/// Hexadecimal digits of a hashed name: 80 bits, so that a million names meet by chance once in 10¹² releases.
const DIGITS: usize = 20;

/// What names are hashed with. Without it, a name cannot be told from its hash, and no list of likely names helps.
pub struct Salt(hmac::Key);

impl Salt {
    /// A salt as it stands in a file; white space around it does not count.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        let salt = bytes.trim_ascii();
        if salt.len() < SHORTEST {
            return Err(format!("holds {} bytes, a salt has {SHORTEST} at least; `openssl rand -hex 32` makes one", salt.len()));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, salt)))
    }

    /// A name's hash: `h` and the first digits of HMAC-SHA-256(salt, name). It can stand wherever an id can.
    pub fn hash(&self, name: &str) -> String {
        let tag = hmac::sign(&self.0, name.as_bytes());
        format!("h{}", &data_encoding::HEXLOWER.encode(tag.as_ref())[..DIGITS])
    }

    /// Hashes everything that a concept is called. What it is judged by (its class's place in the class list) stays.
    pub fn hide(&self, concept: &mut Concept) {
        let Concept { id, name, class, group, .. } = concept;
        for text in [id, name, class].into_iter().chain(group) {
            *text = self.hash(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_an_id_that_depends_on_name_and_salt() {
        let (a, b) = (Salt::of(b"0123456789abcdef\n").unwrap(), Salt::of(b"0123456789abcdeg").unwrap());
        assert_eq!(a.hash("Ada Lovelace"), Salt::of(b" 0123456789abcdef").unwrap().hash("Ada Lovelace"));
        assert_ne!(a.hash("Ada Lovelace"), b.hash("Ada Lovelace"));
        assert_ne!(a.hash("Ada Lovelace"), a.hash("ada lovelace"));
        assert!(lethe_shared::manifest::is_id(&a.hash("Ada Lovelace")));
        // By Python: "h" + hmac.new(b"0123456789abcdef", b"Ada Lovelace", "sha256").hexdigest()[:20]
        assert_eq!(a.hash("Ada Lovelace"), "ha9a6b5391a9c2dac8ca0");
        assert!(Salt::of(b"short").is_err());
    }
}
