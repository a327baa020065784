//! Logs on stderr: text for people, or one JSON object per line for machines.

use std::borrow::Cow;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::sync::OnceLock;

use lethe_shared::printable::printable_message;
use tracing_subscriber::EnvFilter;

/// The format of logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Text for people.
    #[default]
    Human,
    /// One JSON object per line.
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

/// Starts logging. The environment variable `LETHE_LOG` (directives of `tracing-subscriber`)
/// overrides the filter `default`.
///
/// Called once, by the binaries; a second call changes nothing.
pub fn start(format: Format, default: &str) {
    if FORMAT.set(format).is_err() {
        return;
    }
    let filter = EnvFilter::try_from_env("LETHE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Lines)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Human => logs.init(),
        Format::Json => {
            logs.json().flatten_event(true).with_current_span(false).with_span_list(true).init()
        }
    }
}

/// Writes whole lines; the text has no trailing newline.
pub type Print = fn(&str) -> std::io::Result<()>;

static PRINT: OnceLock<Print> = OnceLock::new();

/// Sends every line for stderr to `print`, for example to print above a progress bar. A second call
/// changes nothing.
pub fn print_by(print: Print) {
    let _ = PRINT.set(print);
}

/// stderr, where each write is one or more whole lines.
#[derive(Debug)]
struct Lines;

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(lines);
        // On a terminal, lines have escape codes for colours, and `tracing-subscriber` escapes what
        // they quote. JSON has its own escapes.
        let is_plain = format() == Format::Human && !std::io::stderr().is_terminal();
        let text = if is_plain { Cow::Owned(printable_message(&text)) } else { text };
        match PRINT.get() {
            Some(print) => print(text.trim_end_matches('\n'))?,
            None => std::io::stderr().lock().write_all(text.as_bytes())?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Returns the log format of this process.
pub fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Prints a line on stderr whatever the log level; as a JSON object when logs are JSON. Control and
/// invisible characters are escaped.
pub fn say(level: &'static str, text: &str) {
    say_with(level, text, &[]);
}

/// Does the same, with further fields of the JSON object.
pub fn say_with(level: &'static str, text: &str, fields: &[(&str, serde_json::Value)]) {
    let text = printable_message(text);
    let line = match (format(), level) {
        (Format::Json, _) => {
            let mut object = serde_json::json!({ "level": level.to_uppercase(), "message": text });
            for (name, value) in fields {
                object[name] = value.clone();
            }
            format!("{object}\n")
        }
        (Format::Human, "info") => format!("{text}\n"),
        (Format::Human, _) => format!("{level}: {text}\n"),
    };
    // A closed stderr must not end the process.
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
