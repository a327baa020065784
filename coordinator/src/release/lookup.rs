//! Releases as people name them: `NAME`, `NAME:NUMBER` or `NAME@CHANNEL`.

use lethe_store::Store;

use super::channels::{LATEST, Move, last_move};
use super::publish::{Published, checked, published, unknown};
use crate::failure::Failure;

/// A release as people name it: `NAME`, `NAME:NUMBER` or `NAME@CHANNEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The name.
    pub name: String,
    /// Selection among the releases of that name.
    pub which: Which,
}

/// A selection among the releases of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The release that [`LATEST`] points to, or the last one if that channel does not exist.
    Newest,
    /// The release with this number.
    Number(u64),
    /// The release that a channel points to.
    Channel(String),
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, which) = if let Some((name, channel)) = text.split_once('@') {
            (name, Which::Channel(checked(channel)?.to_owned()))
        } else if let Some((name, number)) = text.split_once(':') {
            (
                name,
                Which::Number(
                    number.parse().map_err(|_| format!("`{number}` is no number of a release"))?,
                ),
            )
        } else {
            (text, Which::Newest)
        };
        Ok(Self { name: checked(name)?.to_owned(), which })
    }
}

/// Returns the selected release.
///
/// # Errors
/// [`Failure::BadInput`] when there is no such release.
pub async fn find(store: &Store, wanted: &Wanted) -> Result<Published, Failure> {
    let name = &wanted.name;
    let mut there = published(store, name).await?;
    let led = |last: Option<(u64, Move)>| last.map(|(_, last)| last.number);
    let number = match &wanted.which {
        Which::Number(number) => *number,
        Which::Channel(channel) => {
            led(last_move(store, name, channel).await?).ok_or_else(|| {
                Failure::input(format!("{}: there is no {name}@{channel}", store.name()))
            })?
        }
        Which::Newest => match led(last_move(store, name, LATEST).await?) {
            Some(number) => number,
            None => *there
                .keys()
                .next_back()
                .ok_or_else(|| Failure::input(format!("{} has no release {name}", store.name())))?,
        },
    };
    there.remove(&number).ok_or_else(|| unknown(name, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_named_as_people_write_them() {
        let of = |text: &str| text.parse::<Wanted>().map(|wanted| (wanted.name, wanted.which));
        assert_eq!(of("a"), Ok(("a".into(), Which::Newest)));
        assert_eq!(of("a:12"), Ok(("a".into(), Which::Number(12))));
        assert_eq!(of("a@production"), Ok(("a".into(), Which::Channel("production".into()))));
        for text in ["", "a:", "a:x", "a@", "../a", "a/b", "a@b/c"] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
