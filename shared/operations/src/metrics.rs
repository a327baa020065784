//! All metrics of Lethe processes. Names and labels are documented in `docs/monitoring.md`; a test
//! compares the two.
//!
//! Each process has one set, returned by [`metrics()`]. Labels have few possible values: a run, a
//! concept or an address is never a label.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A kind of job, and how something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindEnd {
    kind: &'static str,
    end: &'static str,
}

/// A kind of job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    kind: &'static str,
}

/// A kind of job, and a stage of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindStage {
    kind: &'static str,
    stage: String,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct State {
    state: &'static str,
}

/// A class of faults.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FaultClass {
    class: &'static str,
}

/// A store operation, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperationResult {
    operation: &'static str,
    result: &'static str,
}

/// A store operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// How an attempt at a job, or a job, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its outcome was written.
    Done,
    /// Its outcome was there already.
    Found,
    /// It failed and may come again.
    Failed,
    /// It is a dead letter.
    DeadLettered,
    /// It was released for redelivery, and does not count.
    Released,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Found => "found",
            Self::Failed => "failed",
            Self::DeadLettered => "dead-lettered",
            Self::Released => "released",
        }
    }
}

/// The metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    jobs: Family<KindEnd, Counter>,
    attempts: Family<KindEnd, Counter>,
    redeliveries: Family<Kind, Counter>,
    in_flight: Family<Kind, Gauge>,
    job_seconds: Family<KindStage, Histogram>,
    heartbeats_missed: Counter,
    faults: Family<FaultClass, Counter>,
    paused: Gauge,
    queue: Family<State, Gauge>,
    asking: Gauge,
    runs: Family<State, Gauge>,
    store_operations: Family<OperationResult, Counter>,
    store_bytes: Family<Operation, Counter>,
    resident: Gauge<u64, AtomicU64>,
    started: Gauge<f64, AtomicU64>,
}

/// Buckets from 5 ms to an hour.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.5, 16))
}

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("lethe"),
            jobs: Family::default(),
            attempts: Family::default(),
            redeliveries: Family::default(),
            in_flight: Family::default(),
            job_seconds: Family::new_with_constructor(seconds),
            heartbeats_missed: Counter::default(),
            faults: Family::default(),
            paused: Gauge::default(),
            queue: Family::default(),
            asking: Gauge::default(),
            runs: Family::default(),
            store_operations: Family::default(),
            store_bytes: Family::default(),
            resident: Gauge::default(),
            started: Gauge::default(),
        };
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            metrics.started.set(now.as_secs_f64());
        }
        let m = &mut metrics;
        m.registry.register("jobs", "Jobs that ended, as seen by the coordinator", m.jobs.clone());
        m.registry.register("attempts", "Deliveries that a worker answered", m.attempts.clone());
        m.registry.register(
            "redeliveries",
            "Deliveries of a job after its first",
            m.redeliveries.clone(),
        );
        m.registry.register(
            "attempts_in_flight",
            "Deliveries that this worker is processing",
            m.in_flight.clone(),
        );
        m.registry.register(
            "job_seconds",
            "Wall-clock time of jobs done by this worker, whole and by stage",
            m.job_seconds.clone(),
        );
        m.registry.register(
            "heartbeats_missed",
            "Heartbeats that the queue did not confirm",
            m.heartbeats_missed.clone(),
        );
        m.registry.register(
            "faults",
            "Attempts of this worker that failed, by class of fault",
            m.faults.clone(),
        );
        m.registry.register(
            "worker_paused",
            "1 while this worker takes no jobs because its self-check fails",
            m.paused.clone(),
        );
        m.registry.register("queue_jobs", "Jobs in the queue", m.queue.clone());
        m.registry.register(
            "queue_workers_asking",
            "Workers that wait for a job",
            m.asking.clone(),
        );
        m.registry.register("runs", "Runs that this coordinator knows", m.runs.clone());
        m.registry.register(
            "store_operations",
            "Requests to the object store",
            m.store_operations.clone(),
        );
        m.registry.register(
            "store_bytes",
            "Bytes to and from the object store",
            m.store_bytes.clone(),
        );
        m.registry.register(
            "memory_resident_bytes",
            "Resident set of this process",
            m.resident.clone(),
        );
        m.registry.register(
            "process_start_seconds",
            "When this process started, Unix time",
            m.started.clone(),
        );
        m.registry.register("build_info", "Version of this program", build);
        metrics
    }

    /// Counts a job that ended.
    pub fn job_ended(&self, kind: &'static str, end: End) {
        self.jobs.get_or_create(&KindEnd { kind, end: end.name() }).inc();
    }

    /// Counts a delivery that a worker has taken; it is in flight until the guard is dropped.
    pub fn attempt(&'static self, kind: &'static str, attempt: u32) -> InFlight {
        if attempt > 1 {
            self.redeliveries.get_or_create(&Kind { kind }).inc();
        }
        self.in_flight.get_or_create(&Kind { kind }).inc();
        InFlight { metrics: self, kind }
    }

    /// Records the duration of a job and of its stages.
    pub fn job_took<'a>(
        &self,
        kind: &'static str,
        seconds: f64,
        stages: impl IntoIterator<Item = (&'a String, &'a f64)>,
    ) {
        self.job_seconds
            .get_or_create(&KindStage { kind, stage: "all".to_owned() })
            .observe(seconds);
        for (stage, seconds) in stages {
            self.job_seconds
                .get_or_create(&KindStage { kind, stage: stage.clone() })
                .observe(*seconds);
        }
    }

    /// Counts a heartbeat that the queue did not confirm.
    pub fn heartbeat_missed(&self) {
        self.heartbeats_missed.inc();
    }

    /// Counts a failed attempt by class of its fault.
    pub fn fault(&self, class: &'static str) {
        self.faults.get_or_create(&FaultClass { class }).inc();
    }

    /// Sets whether this worker is paused.
    pub fn worker_paused(&self, paused: bool) {
        self.paused.set(i64::from(paused));
    }

    /// Sets the numbers of jobs and waiting workers of the queue, of all runs.
    pub fn queue_holds(&self, waiting: u64, in_hand: u64, dead: u64, asking: u64) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, jobs) in [("waiting", waiting), ("in-hand", in_hand), ("dead", dead)] {
            self.queue.get_or_create(&State { state }).set(number(jobs));
        }
        self.asking.set(number(asking));
    }

    /// Sets the numbers of runs by state.
    pub fn runs_are(&self, counts: impl IntoIterator<Item = (&'static str, usize)>) {
        for (state, count) in counts {
            self.runs.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a request to the object store.
    pub fn store_answered(&self, operation: &'static str, result: &'static str) {
        self.store_operations.get_or_create(&OperationResult { operation, result }).inc();
    }

    /// Counts bytes that were sent to or received from the object store.
    pub fn store_moved(&self, operation: &'static str, bytes: u64) {
        self.store_bytes.get_or_create(&Operation { operation }).inc_by(bytes);
    }

    /// Encodes all metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        self.resident.set(resident_bytes().unwrap_or(0));
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.registry).expect("writing to a string does not fail");
        encoded
    }
}

/// A delivery that a worker is processing.
#[derive(Debug)]
pub struct InFlight {
    metrics: &'static Metrics,
    kind: &'static str,
}

impl InFlight {
    /// Counts how the delivery ended.
    pub fn ended(self, end: End) {
        self.metrics.attempts.get_or_create(&KindEnd { kind: self.kind, end: end.name() }).inc();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.in_flight.get_or_create(&Kind { kind: self.kind }).dec();
    }
}

/// Returns the resident set size of this process in bytes, where the system reports it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = metrics();
        metrics.job_ended("shown", End::Done);
        let attempt = metrics.attempt("shown", 2);
        assert!(metrics.encode().contains("lethe_attempts_in_flight{kind=\"shown\"} 1"));
        attempt.ended(End::Failed);
        metrics.job_took("shown", 1.5, [(&"search".to_owned(), &0.5)]);
        let text = metrics.encode();
        for line in [
            "lethe_jobs_total{kind=\"shown\",end=\"done\"} 1",
            "lethe_attempts_total{kind=\"shown\",end=\"failed\"} 1",
            "lethe_redeliveries_total{kind=\"shown\"} 1",
            "lethe_attempts_in_flight{kind=\"shown\"} 0",
            "lethe_job_seconds_count{kind=\"shown\",stage=\"search\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }

    /// The documentation names every metric, and no other.
    #[test]
    fn documentation_names_every_metric() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/monitoring.md");
        let text = std::fs::read_to_string(path).unwrap();
        let documented: std::collections::BTreeSet<&str> = text
            .split('`')
            .filter(|word| word.starts_with("lethe_") && !word.contains('*'))
            .map(|word| word.split('{').next().unwrap())
            .collect();
        // What has no value yet is not shown.
        let metrics = metrics();
        metrics.job_ended("concept", End::Done);
        metrics.attempt("concept", 2).ended(End::Done);
        metrics.job_took("concept", 1.0, []);
        metrics.queue_holds(0, 0, 0, 0);
        metrics.runs_are([("queued", 0)]);
        metrics.store_answered("get", "ok");
        metrics.store_moved("read", 0);
        metrics.fault("input");
        let encoded = metrics.encode();
        let mut known = std::collections::BTreeSet::new();
        for line in encoded.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            known.insert(if kind == "counter" { format!("{name}_total") } else { name.to_owned() });
        }
        assert_eq!(
            documented.into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>(),
            known
        );
    }
}
