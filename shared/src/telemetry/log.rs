//! Logs on stderr: lines for people, or one JSON object a line for machines.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("expected human or json".to_owned()),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Human { "human" } else { "json" })
    }
}

static FORMAT: OnceLock<Format> = OnceLock::new();

/// Starts logging. What is logged is decided by the environment variable `LETHE_LOG` (`tracing-subscriber`'s directives), or else by `default`.
///
/// Called once, by the binaries; a second call changes nothing.
pub fn start(format: Format, default: &str) {
    if FORMAT.set(format).is_err() {
        return;
    }
    let filter = EnvFilter::try_from_env("LETHE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Human => logs.init(),
        Format::Json => logs.json().flatten_event(true).with_current_span(false).with_span_list(true).init(),
    }
}

/// How this process logs.
pub fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Says something that a person should read whatever the log level: a line on stderr, as a JSON object where logs are JSON.
pub fn say(level: &'static str, text: &str) {
    let mut stderr = std::io::stderr().lock();
    // A reader that has gone away is no reason to stop.
    let _ = match (format(), level) {
        (Format::Json, _) => writeln!(stderr, "{}", serde_json::json!({ "level": level.to_uppercase(), "message": text })),
        (Format::Human, "info") => writeln!(stderr, "{text}"),
        (Format::Human, _) => writeln!(stderr, "{level}: {text}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names() {
        for format in [Format::Human, Format::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<Format>().is_err());
    }
}
