//! W3C trace contexts (`traceparent`): a run is one trace across all processes.
//!
//! The trace of a run and the span of a job are derived from their names, so that all processes use
//! the same ones. An attempt is a child span of its job. Log lines contain both ids, so a collector
//! of JSON logs can reconstruct a run. There is no built-in exporter.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use lethe_shared::digest::Digest;

/// A place in a trace: `00-<trace>-<span>-<flags>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

/// The text is not a trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct NotAContext;

impl TraceContext {
    /// Returns the root context of a run.
    pub fn of_run(run: &str) -> Self {
        let bytes = *Digest::of(format!("lethe trace {run}").as_bytes()).as_bytes();
        let number =
            |part: &[u8]| part.iter().fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
        Self {
            trace: number(&bytes[..16]).max(1),
            span: (number(&bytes[16..24]) as u64).max(1),
            flags: 1,
        }
    }

    /// Returns a new span of the same trace.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: random(), ..*self }
    }

    /// The trace's id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span's id: 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = NotAContext;

    /// Reads version 00, and of later versions what version 00 has, as the standard asks.
    fn from_str(text: &str) -> Result<Self, NotAContext> {
        let mut parts = text.trim().split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(NotAContext)?;
            let plain = part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if plain {
                u128::from_str_radix(part, 16).map_err(|_| NotAContext)
            } else {
                Err(NotAContext)
            }
        };
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        if version == 0xff || trace == 0 || span == 0 || (version == 0 && parts.next().is_some()) {
            return Err(NotAContext);
        }
        Ok(Self { trace, span: span as u64, flags: flags as u8 })
    }
}

/// Ids need to differ, not to be secret: the standard library's hash keys are seeded by the system
/// and differ at every call.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_survive_and_children_stay_in_the_trace() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = text.parse().unwrap();
        assert_eq!(context.to_string(), text);
        let child = context.child();
        assert_eq!(child.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(child.span_id(), context.span_id());
        assert_eq!(TraceContext::of_run("r"), TraceContext::of_run("r"));
        assert_ne!(TraceContext::of_run("r").trace_id(), TraceContext::of_run("s").trace_id());
    }

    #[test]
    fn what_is_no_context_is_refused() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &format!("{good}-more"),
            &good.replacen("00", "ff", 1),
            &good.replace('7', "+"),
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NotAContext), "{bad}");
        }
        assert!(format!("01{}-more", &good[2..]).parse::<TraceContext>().is_ok());
    }
}
