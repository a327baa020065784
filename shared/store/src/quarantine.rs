//! The quarantine: corrupt objects are moved there, and the jobs that produced them run again.
//!
//! Nothing is overwritten. A corrupt object is kept under `damaged/` for inspection, and its key
//! becomes free for the correct bytes.

use lethe_shared::digest::Digest;
use lethe_shared::fault::StoredObject;
use object_store::ObjectStoreExt;

use crate::error::Error;
use crate::local::blocking;
use crate::store::Store;

/// The state of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Its contents match its name.
    Sound,
    /// It does not exist.
    Absent,
    /// It was corrupt, and was moved to this key in the quarantine.
    Quarantined(String),
}

fn key(object: StoredObject) -> String {
    let (folder, hex, end) = match object {
        StoredObject::Artifact(digest) => ("artifacts", digest.to_string(), ""),
        StoredObject::Outcome(job) => ("outcomes", job.to_string(), ".json"),
    };
    format!("{folder}/{}/{hex}{end}", &hex[..2])
}

impl Store {
    /// Reads an object, and quarantines it when its contents do not match its name.
    ///
    /// # Cancel safety
    /// A cancelled call may have quarantined the object.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn check(&self, object: StoredObject) -> Result<Checked, Error> {
        let Some(bytes) = self.get(&key(object)).await? else { return Ok(Checked::Absent) };
        let sound = match object {
            StoredObject::Artifact(digest) => blocking(move || Digest::of(&bytes)).await? == digest,
            StoredObject::Outcome(job) => self.get_outcome(job).await.is_ok(),
        };
        if sound {
            Ok(Checked::Sound)
        } else {
            self.quarantine(object).await.map(Checked::Quarantined)
        }
    }

    /// Moves an object to the quarantine and returns its key there.
    ///
    /// # Cancel safety
    /// A cancelled call may have moved the object. Where a store copies and deletes, it may exist
    /// under both keys; calling it again completes the move.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn quarantine(&self, object: StoredObject) -> Result<String, Error> {
        let key = key(object);
        let aside = format!("damaged/{key}");
        let moved = self
            .inner
            .rename(&self.key(&key)?, &self.key(&aside)?)
            .await
            .map_err(|error| self.error(&key, error));
        match moved {
            // Another process was faster.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(aside),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lethe_shared::address::Address;
    use lethe_shared::reference::JobId;

    use super::*;
    use crate::store::artifact_key;

    #[tokio::test]
    async fn a_corrupt_artifact_is_named_and_its_key_is_free_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Address::Local(folder.path().into())).unwrap();
        let artifact = store.put_artifact(Bytes::from_static(b"some bytes")).await.unwrap();
        let object = StoredObject::Artifact(artifact.digest);
        assert_eq!(store.check(object).await.unwrap(), Checked::Sound);
        store.put(&artifact_key(&artifact), Bytes::from_static(b"some byteS")).await.unwrap();
        let error = store.get_artifact(&artifact).await.unwrap_err();
        assert_eq!(error.corrupt_object(), Some(object));
        let Checked::Quarantined(key) = store.check(object).await.unwrap() else {
            panic!("it is corrupt")
        };
        assert_eq!(store.get(&key).await.unwrap().unwrap(), "some byteS");
        assert_eq!(store.check(object).await.unwrap(), Checked::Absent);
        assert_eq!(store.get_artifact(&artifact).await.unwrap_err().corrupt_object(), Some(object));
        store.put_artifact(Bytes::from_static(b"some bytes")).await.unwrap();
        assert_eq!(store.get_artifact(&artifact).await.unwrap(), "some bytes");
    }

    #[tokio::test]
    async fn outcomes_too() {
        let store = Store::in_memory();
        let job = JobId::from(Digest::of(b"job"));
        let object = StoredObject::Outcome(job);
        store.put(&key(object), Bytes::from_static(b"{ half an outc")).await.unwrap();
        assert_eq!(store.get_outcome(job).await.unwrap_err().corrupt_object(), Some(object));
        assert!(matches!(store.check(object).await.unwrap(), Checked::Quarantined(_)));
        assert_eq!(store.get_outcome(job).await.unwrap(), None);
    }
}
