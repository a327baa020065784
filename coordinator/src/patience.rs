//! Waiting for a queue or store that cannot be reached.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use lethe_shared::{queue, store};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::failure::Failure;

/// How long something that fails for a moment is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The whole time.
    pub give_up: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { give_up: Duration::from_secs(600) }
    }
}

/// An error that may pass.
pub trait MayPass: Display + Into<Failure> {
    /// Whether trying again later may help.
    fn may_pass(&self) -> bool;
}

impl MayPass for queue::Error {
    fn may_pass(&self) -> bool {
        self.is_transient()
    }
}

impl MayPass for store::Error {
    fn may_pass(&self) -> bool {
        self.is_transient()
    }
}

impl Patience {
    /// Does something until it succeeds, fails for good, or time is up.
    ///
    /// # Errors
    /// The last error; [`Failure::Cancelled`].
    pub async fn keep<T, E, F, Fut>(&self, what: &str, cancel: &CancellationToken, act: F) -> Result<T, Failure>
    where
        E: MayPass,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.try_keep(what, cancel, act).await?.map_err(Into::into)
    }

    /// The same, with the last error as it is.
    ///
    /// # Errors
    /// [`Failure::Cancelled`] outside, the last error inside.
    pub async fn try_keep<T, E, F, Fut>(&self, what: &str, cancel: &CancellationToken, mut act: F) -> Result<Result<T, E>, Failure>
    where
        E: MayPass,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let began = Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            let error = match act().await {
                Ok(value) => return Ok(Ok(value)),
                Err(error) if !error.may_pass() || began.elapsed() + pause > self.give_up => return Ok(Err(error)),
                Err(error) => error,
            };
            warn!(what, %error, "trying again");
            tokio::select! {
                () = cancel.cancelled() => return Err(Failure::Cancelled),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (2 * pause).min(Duration::from_secs(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> store::Error {
        store::Error::Unavailable { object: "x".into(), cause: "a reset connection".into() }
    }

    #[tokio::test]
    async fn what_passes_is_waited_for_and_what_does_not_is_not() {
        let (patience, cancel) = (Patience { give_up: Duration::from_millis(700) }, CancellationToken::new());
        let mut left = 2;
        let kept = patience.keep("read", &cancel, || {
            left -= 1;
            std::future::ready(if left == 0 { Ok(7) } else { Err(error()) })
        });
        assert_eq!(kept.await.unwrap(), 7);
        let began = Instant::now();
        let kept: Result<(), Failure> = patience.keep("read", &cancel, || std::future::ready(Err(error()))).await;
        assert!(matches!(kept, Err(Failure::Infrastructure(_))) && began.elapsed() <= patience.give_up);
        let gone = || std::future::ready(Err::<(), _>(store::Error::NotFound { object: "x".into() }));
        assert!(patience.keep("read", &cancel, gone).await.is_err());
        cancel.cancel();
        let kept: Result<(), Failure> = patience.keep("read", &cancel, || std::future::ready(Err(error()))).await;
        assert!(matches!(kept, Err(Failure::Cancelled)));
    }
}
