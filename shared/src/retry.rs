//! Retries: one policy for store, queue, jobs and workers.

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::warn;

/// When no further attempt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// The caller decides.
    Never,
    /// After this many attempts.
    Attempts(u32),
    /// When the next attempt would begin later than this after the first one.
    After(Duration),
}

/// Pauses between attempts: the first one, doubling up to the longest one, each shortened by up to
/// a quarter at random so that processes which failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Pause after the first failure.
    pub first: Duration,
    /// Longest pause.
    pub most: Duration,
    /// When to stop trying.
    pub give_up: GiveUp,
}

/// An error that says whether the same call may succeed later.
pub trait Transient: Display {
    /// Whether trying again may help.
    fn is_transient(&self) -> bool;
}

impl RetryPolicy {
    /// Returns the policy of processes that depend on a queue or a store: pauses from 0.2 to 5
    /// seconds.
    pub const fn service(give_up: Duration) -> Self {
        Self {
            first: Duration::from_millis(200),
            most: Duration::from_secs(5),
            give_up: GiveUp::After(give_up),
        }
    }

    /// The pause after this many failures in a row, from 1.
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.most).mul_f64(1.0 - 0.25 * random_share())
    }

    /// Attempts that start now.
    pub fn attempts(&self) -> Attempts {
        Attempts { policy: *self, began: Instant::now(), failures: 0 }
    }

    /// Calls `act` until it succeeds, fails with an error that is not transient, or the policy
    /// gives up.
    ///
    /// # Errors
    /// The last error.
    ///
    /// # Cancel safety
    /// As cancel safe as `act`.
    pub async fn run<T, E: Transient, Acting: Future<Output = Result<T, E>>>(
        &self,
        mut act: impl FnMut() -> Acting,
    ) -> Result<T, E> {
        let mut attempts = self.attempts();
        loop {
            let error = match act().await {
                Err(error) if error.is_transient() => error,
                other => return other,
            };
            let Some(pause) = attempts.failed() else { return Err(error) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Like [`run`](Self::run), logs each failure, and stops in a pause when `cancel` is cancelled.
    /// An attempt that has begun is never cut short.
    ///
    /// # Errors
    /// [`Cancelled`] outside, the last error inside.
    pub async fn run_until<T, E: Transient, Acting: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        cancel: &CancellationToken,
        mut act: impl FnMut() -> Acting,
    ) -> Result<Result<T, E>, Cancelled> {
        let mut attempts = self.attempts();
        loop {
            let error = match act().await {
                Err(error) if error.is_transient() => error,
                other => return Ok(other),
            };
            let Some(pause) = attempts.failed() else { return Ok(Err(error)) };
            warn!(what, %error, ?pause, "failed; retrying after a pause");
            if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(Cancelled);
            }
        }
    }
}

/// A retry was cancelled between two attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// A sequence of attempts under a [`RetryPolicy`].
#[derive(Debug, Clone)]
pub struct Attempts {
    policy: RetryPolicy,
    began: Instant,
    failures: u32,
}

impl Attempts {
    /// Counts a failure. Returns the pause before the next attempt, or `None` when the policy gives
    /// up.
    pub fn failed(&mut self) -> Option<Duration> {
        self.failures += 1;
        let pause = self.policy.pause(self.failures);
        let over = match self.policy.give_up {
            GiveUp::Never => false,
            GiveUp::Attempts(most) => self.failures >= most,
            GiveUp::After(time) => self.began.elapsed() + pause > time,
        };
        (!over).then_some(pause)
    }

    /// Failures so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A number from 0 to 1. Randomness of hash maps is enough to spread retries, and needs no
/// dependency.
fn random_share() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_stay_bounded_and_differ() {
        let policy = RetryPolicy {
            first: Duration::from_millis(500),
            most: Duration::from_secs(30),
            give_up: GiveUp::Never,
        };
        let within = |pause: Duration, full: Duration| pause <= full && pause >= full.mul_f64(0.75);
        for _ in 0..100 {
            assert!(within(policy.pause(1), Duration::from_millis(500)));
            assert!(within(policy.pause(3), Duration::from_secs(2)));
            assert!(within(policy.pause(50), Duration::from_secs(30)));
            assert!(within(policy.pause(u32::MAX), Duration::from_secs(30)));
        }
        let pauses: std::collections::BTreeSet<Duration> =
            (0..20).map(|_| policy.pause(3)).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
    }

    #[test]
    fn attempts_end_when_time_is_up() {
        let policy = |give_up| RetryPolicy {
            first: Duration::from_millis(10),
            most: Duration::from_millis(10),
            give_up,
        };
        let mut attempts = policy(GiveUp::After(Duration::from_millis(200))).attempts();
        let began = Instant::now();
        while let Some(pause) = attempts.failed() {
            std::thread::sleep(pause);
        }
        assert!(began.elapsed() < Duration::from_secs(5) && attempts.failures() >= 2);
        let mut attempts = policy(GiveUp::Attempts(3)).attempts();
        assert!(
            attempts.failed().is_some()
                && attempts.failed().is_some()
                && attempts.failed().is_none()
        );
    }

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("a reset connection")]
    struct Reset {
        transient: bool,
    }

    impl Transient for Reset {
        fn is_transient(&self) -> bool {
            self.transient
        }
    }

    #[tokio::test(start_paused = true)]
    async fn transient_errors_are_retried_and_others_are_not() {
        let policy = RetryPolicy::service(Duration::from_secs(60));
        let mut calls = 0;
        let done = policy.run(|| {
            calls += 1;
            std::future::ready(if calls < 3 { Err(Reset { transient: true }) } else { Ok(calls) })
        });
        assert_eq!(done.await, Ok(3));
        let denied = || std::future::ready(Err::<(), _>(Reset { transient: false }));
        assert_eq!(policy.run(denied).await, Err(Reset { transient: false }));
        let cancel = CancellationToken::new();
        cancel.cancel();
        let reset = || std::future::ready(Err::<(), _>(Reset { transient: true }));
        assert_eq!(policy.run_until("read", &cancel, reset).await, Err(Cancelled));
        let at_once = RetryPolicy { give_up: GiveUp::Attempts(1), ..policy };
        assert_eq!(
            at_once.run_until("read", &cancel, reset).await,
            Ok(Err(Reset { transient: true }))
        );
    }
}
