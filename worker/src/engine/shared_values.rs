//! Values that the jobs of a process share, such as the model: created by the first job that needs
//! them, while others wait.
//!
//! Values are kept by type, so that this file does not depend on the files that define them.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Error;

/// A value that jobs share.
pub(super) trait SharedValue: Debug + Send + Sync + Sized + 'static {
    /// Everything on which the value depends.
    type Key: Debug + PartialEq + Send + Sync + 'static;
    /// Whether the value holds activations, which are dropped when the device runs out of memory.
    const HOLDS_ACTIVATIONS: bool = false;
}

/// The shared values of a process.
#[derive(Debug, Default)]
pub(super) struct SharedValues {
    caches: Mutex<HashMap<TypeId, Arc<dyn AnyCache>>>,
}

impl SharedValues {
    /// Returns the value of a key, which `create` creates unless it exists. An error is not kept.
    pub(super) fn get<V: SharedValue>(
        &self,
        key: V::Key,
        create: impl FnOnce() -> Result<V, Error>,
    ) -> Result<Arc<V>, Error> {
        let cache: Arc<dyn Any + Send + Sync> = {
            let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
            let cache =
                caches.entry(TypeId::of::<V>()).or_insert_with(|| Arc::new(Cache::<V>::default()));
            Arc::clone(cache) as _
        };
        let cache = cache
            .downcast::<Cache<V>>()
            .expect("a cache is stored under the id of its values' type");
        cache.get(key, create)
    }

    /// Drops all values that hold activations. Jobs that use one of them keep it.
    pub(super) fn drop_activations(&self) {
        for cache in self.caches.lock().unwrap_or_else(PoisonError::into_inner).values() {
            cache.drop_activations();
        }
    }
}

/// A [`Cache`] of any type of values.
trait AnyCache: Any + Debug + Send + Sync {
    fn drop_activations(&self);
}

/// The most recently used values of one type.
#[derive(Debug)]
struct Cache<V: SharedValue> {
    slots: Mutex<Vec<Keyed<V>>>,
}

/// A slot with the key of its value.
type Keyed<V> = (<V as SharedValue>::Key, Arc<Slot<V>>);

/// A value, or the lock under which it is created.
pub(super) type Slot<V> = Mutex<Option<Arc<V>>>;

/// The most values to keep of each type: a process works on one run at a time, rarely on two.
const MAX_VALUES: usize = 2;

impl<V: SharedValue> Default for Cache<V> {
    fn default() -> Self {
        Self { slots: Mutex::new(Vec::new()) }
    }
}

impl<V: SharedValue> AnyCache for Cache<V> {
    fn drop_activations(&self) {
        if V::HOLDS_ACTIVATIONS {
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

impl<V: SharedValue> Cache<V> {
    fn get(&self, key: V::Key, create: impl FnOnce() -> Result<V, Error>) -> Result<Arc<V>, Error> {
        let slot = self.slot(key);
        // The value is only ever set as a whole.
        let mut value = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        let created = Arc::new(create()?);
        *value = Some(Arc::clone(&created));
        Ok(created)
    }

    /// Returns the slot of a key as the most recent one, in place of the least recent one if it is
    /// new.
    fn slot(&self, key: V::Key) -> Arc<Slot<V>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = slots.iter().position(|(known, _)| *known == key) {
            let entry = slots.remove(position);
            let slot = Arc::clone(&entry.1);
            slots.push(entry);
            return slot;
        }
        if slots.len() == MAX_VALUES {
            slots.remove(0);
        }
        let slot = Arc::new(Mutex::new(None));
        slots.push((key, Arc::clone(&slot)));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SharedValue for u32 {
        type Key = u32;
    }

    impl SharedValue for String {
        type Key = u32;
        const HOLDS_ACTIVATIONS: bool = true;
    }

    #[test]
    fn a_value_is_created_once_and_the_least_recent_one_dropped() {
        let (values, created) = (SharedValues::default(), std::cell::Cell::new(0));
        let get = |key: u32| {
            let create = || {
                created.set(created.get() + 1);
                Ok(10 * key)
            };
            *values.get::<u32>(key, create).unwrap()
        };
        assert_eq!((get(1), get(1), get(2), created.get()), (10, 10, 20, 2));
        get(1);
        get(3);
        assert_eq!((get(1), created.get()), (10, 3));
        assert_eq!((get(2), created.get()), (20, 4));
    }

    #[test]
    fn an_error_is_not_kept() {
        let values = SharedValues::default();
        assert!(values.get::<u32>(1, || Err(Error::Cancelled)).is_err());
        assert_eq!(*values.get::<u32>(1, || Ok(5)).unwrap(), 5);
    }

    #[test]
    fn only_values_with_activations_are_dropped_for_memory() {
        let values = SharedValues::default();
        let get = |number: u32| {
            let text = values.get::<String>(1, || Ok(number.to_string())).unwrap();
            (*values.get::<u32>(1, || Ok(number)).unwrap(), text.to_string())
        };
        assert_eq!(get(5), (5, "5".to_owned()));
        values.drop_activations();
        assert_eq!(get(6), (5, "6".to_owned()));
    }
}
