//! Hashed names, which only the owner of the salt can reverse: `release.names = "hashed"`.

use aws_lc_rs::hmac;
use lethe_shared::manifest::Concept;
use lethe_shared::words::normal_name;

/// Smallest length of a salt, bytes.
const SHORTEST: usize = 16;
/// Largest salt file, bytes.
pub const MAX_SALT: u64 = 4096;
/// Hexadecimal digits of a hashed name: 80 bits. The probability of a collision among a million
/// names is 10⁻¹².
const DIGITS: usize = 20;

/// The secret salt of name hashes. Without the salt, nobody can recover a name from its hash, not
/// even by hashing a list of likely names.
pub struct Salt(hmac::Key);

impl Salt {
    /// Reads a salt from the bytes of a file. Surrounding white space is ignored.
    ///
    /// # Errors
    /// A sentence when the salt is shorter than 16 bytes.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        let salt = bytes.trim_ascii();
        if salt.len() < SHORTEST {
            return Err(format!(
                "holds {} bytes, a salt has {SHORTEST} at least; `openssl rand -hex 32` makes one",
                salt.len()
            ));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, salt)))
    }

    /// Returns a name's hash: `h` and the first digits of HMAC-SHA-256(salt, name), with the name
    /// in its normal form. The hash is a valid id.
    pub fn hash(&self, name: &str) -> String {
        let tag = hmac::sign(&self.0, normal_name(name).as_bytes());
        format!("h{}", &data_encoding::HEXLOWER.encode(tag.as_ref())[..DIGITS])
    }

    /// Replaces id, name, class and group of a concept by their hashes. The class index stays,
    /// because evaluation needs it.
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
        let (a, b) =
            (Salt::of(b"0123456789abcdef\n").unwrap(), Salt::of(b"0123456789abcdeg").unwrap());
        assert_eq!(
            a.hash("Ada Lovelace"),
            Salt::of(b" 0123456789abcdef").unwrap().hash("Ada Lovelace")
        );
        assert_ne!(a.hash("Ada Lovelace"), b.hash("Ada Lovelace"));
        assert_ne!(a.hash("Ada Lovelace"), a.hash("ada lovelace"));
        assert_eq!(a.hash("Beyonce\u{301}"), a.hash("Beyoncé"));
        assert!(lethe_shared::manifest::is_id(&a.hash("Ada Lovelace")));
        // Computed in Python: "h" + hmac.new(b"0123456789abcdef", b"Ada Lovelace",
        // "sha256").hexdigest()[:20]
        assert_eq!(a.hash("Ada Lovelace"), "ha9a6b5391a9c2dac8ca0");
        assert!(Salt::of(b"short").is_err());
    }
}
