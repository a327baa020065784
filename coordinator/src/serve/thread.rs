//! Runs a future on a dedicated thread.
//!
//! A run composes, copies and hashes gigabytes between its requests to queue and store. On the
//! runtime's worker threads this would block lease renewal, probes and other runs. On a dedicated
//! thread it blocks nothing else: tasks that the run spawns, its timers and its connections stay on
//! the runtime.

use std::future::Future;
use std::panic::resume_unwind;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Runs a future to completion on a new thread of this name. A panic of the future is resumed in
/// the caller.
///
/// # Errors
/// [`std::io::Error`] when the thread cannot be started.
///
/// # Cancel safety
/// Dropping this future drops the inner one at its next await point.
pub(super) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    future: impl Future<Output = T> + Send + 'static,
) -> std::io::Result<T> {
    let (runtime, dropped) = (Handle::current(), CancellationToken::new());
    let (sender, ended) = oneshot::channel();
    let guard = dropped.clone().drop_guard();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let value = runtime.block_on(async {
            tokio::select! {
                biased;
                () = dropped.cancelled() => None,
                value = future => Some(value),
            }
        });
        // The receiver is gone when the caller was dropped.
        let _ = sender.send(value);
    })?;
    let value = ended.await;
    drop(guard);
    match value {
        Ok(Some(value)) => Ok(value),
        // No value was sent: the thread panicked. It cannot have been dropped, because this future
        // holds the guard.
        Ok(None) | Err(_) => match thread.join() {
            Err(panic) => resume_unwind(panic),
            Ok(()) => Err(std::io::Error::other("the thread ended without a result")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Returns the largest delay of a ticking task while `work` runs.
    async fn latest_tick(work: impl Future<Output = ()>) -> Duration {
        const TICK: Duration = Duration::from_millis(10);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ticking = tokio::spawn(async move {
            let mut latest = Duration::ZERO;
            while !stopped.is_cancelled() {
                let before = Instant::now();
                tokio::time::sleep(TICK).await;
                latest = latest.max(before.elapsed().saturating_sub(TICK));
            }
            latest
        });
        work.await;
        stop.cancel();
        ticking.await.unwrap()
    }

    /// Spawned on the two worker threads of this runtime, four such runs would delay every other
    /// task by twice their duration.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn blocking_work_does_not_delay_other_tasks() {
        const BLOCKED: Duration = Duration::from_secs(2);
        let late = latest_tick(async {
            let runs = (0..4).map(|number| {
                tokio::spawn(async move {
                    on_own_thread(&format!("run-{number}"), async move {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        std::thread::sleep(BLOCKED);
                        // Spawned tasks still run on the runtime.
                        tokio::spawn(async move { number }).await.unwrap()
                    })
                    .await
                })
            });
            for (number, ended) in futures::future::join_all(runs).await.into_iter().enumerate() {
                assert_eq!(ended.unwrap().unwrap(), number);
            }
        });
        let late = late.await;
        assert!(late < BLOCKED / 2, "a tick came {late:?} late");
    }

    #[tokio::test]
    async fn a_panic_is_resumed() {
        let ended = tokio::spawn(on_own_thread("run", async { panic!("a fault") })).await;
        let panic = ended.map(|_: std::io::Result<()>| ()).unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"a fault"));
    }

    #[tokio::test]
    async fn an_abandoned_future_is_dropped() {
        struct Tells(Arc<AtomicBool>, Option<oneshot::Sender<()>>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
                let _ = self.1.take().map(|sender| sender.send(()));
            }
        }
        let (dropped, (sender, told)) = (Arc::new(AtomicBool::new(false)), oneshot::channel());
        let tells = Tells(Arc::clone(&dropped), Some(sender));
        let (began, beginning) = oneshot::channel();
        let waiting = tokio::spawn(on_own_thread("run", async move {
            let _tells = tells;
            let _ = began.send(());
            std::future::pending::<()>().await;
        }));
        beginning.await.unwrap();
        assert!(!dropped.load(Ordering::SeqCst));
        waiting.abort();
        tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().unwrap();
        assert!(dropped.load(Ordering::SeqCst));
    }
}
