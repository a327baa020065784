//! Objects that are not what they should be: recognised, put aside, made again by whoever made them.
//!
//! Nothing is overwritten. What is damaged moves to `damaged/`, for people to look at; the place it leaves is filled with
//! the bytes that its name stands for when the job that made it is done again.

use object_store::ObjectStoreExt;

use super::{Error, Store, blocking};
use crate::digest::Digest;
use crate::job::JobId;

/// What an error about a damaged object speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// An artifact.
    Artifact(Digest),
    /// A job's outcome.
    Outcome(JobId),
}

/// What was found where an object should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// What should be there.
    Sound,
    /// Nothing.
    Nothing,
    /// Something else; it was put aside under this key.
    PutAside(String),
}

impl Damaged {
    /// Reads the object's key out of an error's text, wherever the error comes from.
    pub fn in_text(text: &str) -> Option<Self> {
        let hex = |from: &str| {
            let end = from.bytes().take_while(u8::is_ascii_hexdigit).count();
            from[..end].parse::<Digest>().ok()
        };
        // `artifacts/ab/ab…` and `outcomes/ab/ab….json`
        let after = |folder: &str| text.split(folder).skip(1).find_map(|rest| hex(rest.get(3..)?));
        after("artifacts/").map(Self::Artifact).or_else(|| after("outcomes/").map(|digest| Self::Outcome(digest.into())))
    }

    fn key(&self) -> String {
        let (folder, hex, end) = match self {
            Self::Artifact(digest) => ("artifacts", digest.to_string(), ""),
            Self::Outcome(job) => ("outcomes", job.to_string(), ".json"),
        };
        format!("{folder}/{}/{hex}{end}", &hex[..2])
    }
}

impl Store {
    /// Looks at an object, and puts it aside when it is not what its name says.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn look_at(&self, object: Damaged) -> Result<Found, Error> {
        let key = object.key();
        let Some(bytes) = self.get(&key).await? else { return Ok(Found::Nothing) };
        let sound = match object {
            Damaged::Artifact(digest) => blocking(move || Digest::of(&bytes)).await? == digest,
            Damaged::Outcome(job) => self.get_outcome(job).await.is_ok(),
        };
        if sound { Ok(Found::Sound) } else { self.put_aside(object).await.map(Found::PutAside) }
    }

    /// Moves an object to `damaged/`: its key there.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_aside(&self, object: Damaged) -> Result<String, Error> {
        let key = object.key();
        let aside = format!("damaged/{key}");
        let moved = self.inner.rename(&self.key(&key)?, &self.key(&aside)?).await.map_err(|error| self.error(&key, error));
        match moved {
            // Someone else was faster.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(aside),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::address::Address;
    use crate::store::artifact_key;

    #[tokio::test]
    async fn what_is_damaged_is_named_and_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Address::Local(folder.path().into())).unwrap();
        let artifact = store.put_artifact(Bytes::from_static(b"some bytes")).await.unwrap();
        let object = Damaged::Artifact(artifact.digest);
        assert_eq!(store.look_at(object).await.unwrap(), Found::Sound);
        store.put(&artifact_key(&artifact), Bytes::from_static(b"some byteS")).await.unwrap();
        let error = store.get_artifact(&artifact).await.unwrap_err().to_string();
        assert_eq!(Damaged::in_text(&format!("concept x: {error}")), Some(object));
        let Found::PutAside(key) = store.look_at(object).await.unwrap() else { panic!("it is damaged") };
        assert_eq!(store.get(&key).await.unwrap().unwrap(), "some byteS");
        assert_eq!(store.look_at(object).await.unwrap(), Found::Nothing);
        store.put_artifact(Bytes::from_static(b"some bytes")).await.unwrap();
        assert_eq!(store.get_artifact(&artifact).await.unwrap(), "some bytes");
    }

    #[tokio::test]
    async fn outcomes_too() {
        let store = Store::in_memory();
        let object = Damaged::Outcome(JobId::from(Digest::of(b"job")));
        store.put(&object.key(), Bytes::from_static(b"{ half an outc")).await.unwrap();
        let error = store.get_outcome(JobId::from(Digest::of(b"job"))).await.unwrap_err().to_string();
        assert_eq!(Damaged::in_text(&error), Some(object));
        assert!(matches!(store.look_at(object).await.unwrap(), Found::PutAside(_)));
        assert_eq!(store.get_outcome(JobId::from(Digest::of(b"job"))).await.unwrap(), None);
        assert_eq!(Damaged::in_text("disk full"), None);
    }
}
