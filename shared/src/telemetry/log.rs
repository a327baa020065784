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
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Lines).with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Human => logs.init(),
        Format::Json => logs.json().flatten_event(true).with_current_span(false).with_span_list(true).init(),
    }
}

/// Writes whole lines, without the last one's end.
pub type Print = fn(&str) -> std::io::Result<()>;

static PRINT: OnceLock<Print> = OnceLock::new();

/// Has every line on stderr written by whoever draws there, above the drawing. A second call changes nothing.
pub fn print_by(print: Print) {
    let _ = PRINT.set(print);
}

/// stderr, where each write is one or more whole lines.
#[derive(Debug)]
struct Lines;

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        match PRINT.get() {
            Some(print) => print(String::from_utf8_lossy(lines).trim_end_matches('\n'))?,
            None => std::io::stderr().lock().write_all(lines)?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// How this process logs.
pub fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Says something that a person should read whatever the log level: a line on stderr, as a JSON object where logs are JSON.
pub fn say(level: &'static str, text: &str) {
    let line = match (format(), level) {
        (Format::Json, _) => format!("{}\n", serde_json::json!({ "level": level.to_uppercase(), "message": text })),
        (Format::Human, "info") => format!("{text}\n"),
        (Format::Human, _) => format!("{level}: {text}\n"),
    };
    // A reader that has gone away is no reason to stop.
    let _ = Lines.write_all(line.as_bytes());
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
