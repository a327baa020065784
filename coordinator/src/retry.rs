//! Retries queue and store calls until the run is cancelled or `--give-up` has passed.

use std::future::Future;

use lethe_shared::retry::{RetryPolicy, Transient};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Calls `act` until it succeeds, fails permanently, or the policy gives up. `what` names the call
/// in the log.
///
/// # Errors
/// The last error; [`Failure::Cancelled`] when `cancel` is cancelled between two attempts.
pub async fn retry<T, E, Acting>(
    policy: &RetryPolicy,
    what: &str,
    cancel: &CancellationToken,
    act: impl FnMut() -> Acting,
) -> Result<T, Failure>
where
    E: Transient + Into<Failure>,
    Acting: Future<Output = Result<T, E>>,
{
    policy.run_until(what, cancel, act).await?.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lethe_store as store;

    use super::*;

    fn error() -> store::Error {
        store::Error::Unavailable { object: "x".into(), cause: "a reset connection".into() }
    }

    #[tokio::test]
    async fn transient_errors_are_retried_and_others_are_failures() {
        let (policy, cancel) =
            (RetryPolicy::service(Duration::from_millis(700)), CancellationToken::new());
        let mut left = 2;
        let kept = retry(&policy, "read", &cancel, || {
            left -= 1;
            std::future::ready(if left == 0 { Ok(7) } else { Err(error()) })
        });
        assert_eq!(kept.await.unwrap(), 7);
        let began = Instant::now();
        let kept: Result<(), Failure> =
            retry(&policy, "read", &cancel, || std::future::ready(Err(error()))).await;
        assert!(
            matches!(kept, Err(Failure::Infrastructure(_)))
                && began.elapsed() <= Duration::from_millis(700)
        );
        let gone = || {
            std::future::ready(Err::<(), _>(store::Error::NotFound {
                object: "x".into(),
                stored: None,
            }))
        };
        assert!(retry(&policy, "read", &cancel, gone).await.is_err());
        cancel.cancel();
        let kept: Result<(), Failure> =
            retry(&policy, "read", &cancel, || std::future::ready(Err(error()))).await;
        assert!(matches!(kept, Err(Failure::Cancelled)));
    }
}
