//! W3C trace contexts (`traceparent`) of jobs.

use lethe_shared::digest::Digest;
use lethe_shared::reference::JobId;

/// Returns the trace context of a job's messages: the trace is that of the run, the parent span
/// that of the job.
///
/// Both are derived from the names alone, so every process uses the same ones.
pub fn traceparent(run: &str, job: JobId) -> String {
    let trace = Digest::of(format!("lethe trace {run}").as_bytes()).to_string();
    let span = Digest::of(format!("lethe span {run} {job}").as_bytes()).to_string();
    format!("00-{}-{}-01", &trace[..32], &span[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_its_trace_and_shares_its_runs() {
        let job = |text: &str| JobId::from(Digest::of(text.as_bytes()));
        let (one, two) = (traceparent("r", job("1")), traceparent("r", job("2")));
        assert_eq!(one, traceparent("r", job("1")));
        assert_eq!(one.split('-').map(str::len).collect::<Vec<_>>(), [2, 32, 16, 2]);
        assert_eq!(one[..36], two[..36]);
        assert_ne!(one, two);
        assert_ne!(one[..36], traceparent("s", job("1"))[..36]);
    }
}
