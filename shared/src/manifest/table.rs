//! The reader of concept tables: CSV or JSON lines. Runs and curation read the same tables.

use serde::Deserialize;
use serde_json::Value;

use super::concepts::{MAX_CONCEPTS, Row};
use super::error::Error;
use crate::json;
use crate::vocabulary::Stop;

/// Most problems that are reported at once.
const MAX_PROBLEMS: usize = 20;
/// Characters of a value that a message shows.
const SHOWN: usize = 40;
/// All columns.
const COLUMNS: [&str; 9] =
    ["id", "name", "aliases", "class", "forget", "strength", "group", "stop", "tolerance"];
/// Separators that are understood, with their names. A header decides which one a table has.
const SEPARATORS: [(u8, &str); 3] = [(b',', "comma"), (b';', "semicolon"), (b'\t', "tab")];

/// What a table is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A run: every concept has forget shards.
    Run,
    /// Curation: `forget` is ignored.
    Curation,
}

impl Purpose {
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Run => &["id", "name", "forget"],
            Self::Curation => &["id", "name"],
        }
    }
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct TableRow {
    /// Its line number.
    pub line: usize,
    /// The concept. For curation, `forget` is empty.
    pub row: Row,
}

/// Parses a table. The ending of `name` decides the format: `.csv` or `.tsv`, or `.jsonl`.
///
/// # Errors
/// Every problem found with file, line and column, at most twenty.
pub fn read(bytes: &[u8], name: &str, purpose: Purpose) -> Result<Vec<TableRow>, Vec<Error>> {
    let whole = |problem: &str| Err(vec![Error::new(name, problem)]);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) => {
            return whole("is UTF-16 text; save it as UTF-8");
        }
        Err(_) => return whole("is not UTF-8 text"),
    };
    let ending = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let reader = Reader { file: name, purpose };
    let rows = match ending.as_str() {
        "csv" | "tsv" => reader.csv(text),
        "jsonl" => reader.lines(text),
        _ => return whole("the name of a concept table ends in .csv or .jsonl"),
    }?;
    if rows.is_empty() { whole("contains no concepts") } else { Ok(rows) }
}

/// A line of JSON. Types are checked later, because a message of the parser names no field.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Value>,
    name: Option<Value>,
    aliases: Option<Value>,
    class: Option<Value>,
    forget: Option<Value>,
    strength: Option<Value>,
    group: Option<Value>,
    stop: Option<Value>,
    tolerance: Option<Value>,
}

struct Reader<'a> {
    file: &'a str,
    purpose: Purpose,
}

impl Reader<'_> {
    fn at(&self, line: usize, problem: impl Into<String>) -> Error {
        Error::new(format!("{}:{line}", self.file), problem)
    }

    fn csv(&self, text: &str) -> Result<Vec<TableRow>, Vec<Error>> {
        // With `\r\n`, the parser's line numbers would be off by one.
        let mut text = text.replace("\r\n", "\n");
        if !text.contains('\n') {
            text = text.replace('\r', "\n");
        }
        // Excel's first line `sep=;` says what the header says too. An empty line keeps the numbers.
        if let Some(rest) = text.strip_prefix("sep=").and_then(|rest| rest.get(1..))
            && rest.starts_with('\n')
        {
            text = rest.to_owned();
        }
        let head = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let (separator, shown) = separator(head);
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .delimiter(separator)
            .from_reader(text.as_bytes());
        let wrong = |error: csv::Error| {
            let line = error.position().map_or(1, |position| position.line() as usize);
            let problem = match error.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
                    "has {len} fields, the header has {expected_len}; a field that contains a {shown} needs double quotes"
                ),
                _ => error.to_string(),
            };
            self.at(line, problem)
        };
        let header = reader.headers().map_err(|error| vec![wrong(error)])?.clone();
        self.header(&header, head, shown).map_err(|error| vec![error])?;
        self.collect(reader.records().map(|record| {
            let record = record.map_err(&wrong)?;
            let line = record.position().map_or(0, |position| position.line() as usize);
            let field = |column: &str| {
                let at = header.iter().position(|known| known == column)?;
                Some(Value::String(record.get(at)?.to_owned())).filter(|text| text != "")
            };
            self.row(
                line,
                Line {
                    id: field("id"),
                    name: field("name"),
                    aliases: field("aliases"),
                    class: field("class"),
                    forget: field("forget"),
                    strength: field("strength"),
                    group: field("group"),
                    stop: field("stop"),
                    tolerance: field("tolerance"),
                },
                true,
            )
        }))
    }

    /// Checks the header of a CSV table.
    fn header(&self, header: &csv::StringRecord, head: &str, shown: &str) -> Result<(), Error> {
        let mut seen: Vec<&str> = Vec::new();
        for (number, column) in (1..).zip(header) {
            if seen.contains(&column) {
                return Err(self.at(1, format!("column `{}` appears twice", show(column))));
            }
            if column.is_empty() {
                return Err(self.at(1, format!("column {number} has no name")));
            }
            seen.push(column);
        }
        let missing = self.purpose.required().iter().find(|required| !seen.contains(required));
        if let Some(column) = missing {
            let columns: Vec<String> =
                seen.iter().take(12).map(|column| format!("`{}`", show(column))).collect();
            let hint = if seen.iter().any(|other| other.eq_ignore_ascii_case(column)) {
                "; write names of columns in lower case"
            } else if seen.len() == 1 && head.contains(['|', ':', ' ']) {
                "; separate columns with commas"
            } else {
                ""
            };
            return Err(self.at(
                1,
                format!(
                    "column `{column}` is missing; the header, read with a {shown} between columns, has {}{hint}",
                    columns.join(", ")
                ),
            ));
        }
        match seen.iter().find(|column| !COLUMNS.contains(column)) {
            Some(column) => Err(self.at(
                1,
                format!("unknown column `{}`, expected {}", show(column), COLUMNS.join(", ")),
            )),
            None => Ok(()),
        }
    }

    fn lines(&self, text: &str) -> Result<Vec<TableRow>, Vec<Error>> {
        if text.trim_start().starts_with('[') {
            let problem = "is one JSON array; write one object on each line, without brackets and commas around them";
            return Err(vec![Error::new(self.file, problem)]);
        }
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        self.collect(lines.map(|(number, line)| {
            let fields = json::parse::<Line>(line.as_bytes())
                .map_err(|error| self.at(number, error.to_string()))?;
            self.row(number, fields, false)
        }))
    }

    /// Collects rows, or problems.
    fn collect(
        &self,
        rows: impl Iterator<Item = Result<TableRow, Error>>,
    ) -> Result<Vec<TableRow>, Vec<Error>> {
        let (mut read, mut problems) = (Vec::new(), Vec::new());
        for row in rows {
            match row {
                Ok(row) => read.push(row),
                Err(error) => problems.push(error),
            }
            if problems.len() == MAX_PROBLEMS {
                break;
            }
            if read.len() > MAX_CONCEPTS {
                return Err(vec![Error::new(self.file, "more than 100,000 concepts")]);
            }
        }
        if problems.is_empty() { Ok(read) } else { Err(problems) }
    }

    fn row(&self, line: usize, fields: Line, is_csv: bool) -> Result<TableRow, Error> {
        let wrong = |problem: String| self.at(line, problem);
        let text = |column: &str, value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(wrong(format!("{column} is `{}`, expected a text", show(&other.to_string()))))
            }
        };
        let needed = |column: &str, value: Option<Value>| match text(column, value)? {
            Some(text) => Ok(text),
            // The checks of a row name its concept.
            None if is_csv => Ok(String::new()),
            None => Err(wrong(format!("missing field `{column}`"))),
        };
        let number = |column: &str, value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(Value::String(text)) if is_csv => number(&text)
                .map(Some)
                .map_err(|expected| wrong(format!("{column} is `{}`, {expected}", show(&text)))),
            Some(other) => {
                Err(wrong(format!("{column} is `{}`, expected a number", show(&other.to_string()))))
            }
        };
        let is_run = self.purpose == Purpose::Run;
        let stop = match text("stop", fields.stop)?.as_deref() {
            None => None,
            Some(name) => Some(Stop::parse(name).ok_or_else(|| {
                wrong(format!("stop is `{}`, expected {}", show(name), Stop::EXPECTED))
            })?),
        };
        let aliases = match fields.aliases {
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|alias| Ok(text("aliases", Some(alias))?.unwrap_or_default()))
                .collect::<Result<Vec<_>, Error>>()?,
            other => text("aliases", other)?
                .map(|text| text.split('|').map(str::to_owned).collect())
                .unwrap_or_default(),
        };
        let aliases = aliases
            .into_iter()
            .map(|alias| alias.trim().to_owned())
            .filter(|alias| !alias.is_empty())
            .collect();
        let row = Row {
            id: needed("id", fields.id)?.trim().to_owned(),
            name: needed("name", fields.name)?.trim().to_owned(),
            aliases,
            class: text("class", fields.class)?,
            forget: if is_run { needed("forget", fields.forget)? } else { String::new() },
            strength: number("strength", fields.strength)?,
            group: text("group", fields.group)?,
            stop,
            tolerance: number("tolerance", fields.tolerance)?,
        };
        Ok(TableRow { line, row })
    }
}

/// Returns the separator of a header that has a column `id` with it, and its name; a comma, where
/// none has.
fn separator(head: &str) -> (u8, &'static str) {
    let has_id = |(separator, _): &(u8, &str)| {
        let names = |column: &str| column.trim().trim_matches('"').eq_ignore_ascii_case("id");
        head.split(char::from(*separator)).any(names) && head.contains(char::from(*separator))
    };
    SEPARATORS.into_iter().find(has_id).unwrap_or(SEPARATORS[0])
}

/// Parses a number of a CSV table, or returns what is expected.
fn number(text: &str) -> Result<f64, &'static str> {
    let unit = |text: &str| text.trim().replace(',', ".").parse::<f64>().is_ok();
    if text.strip_suffix('%').is_some_and(unit) {
        return Err("expected a share of one: write 0.5 for 50 %");
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ if text.contains(',') && unit(text) => {
            Err("expected a decimal point: write 0.5, not 0,5")
        }
        _ => Err("expected a number"),
    }
}

/// Returns the beginning of a value for a message, with control and invisible characters escaped.
fn show(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(SHOWN) {
        if matches!(letter, '"' | '\'' | '\\') {
            shown.push(letter);
        } else {
            shown.extend(letter.escape_debug());
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(table: &str, name: &str, purpose: Purpose) -> String {
        let problems = read(table.as_bytes(), name, purpose).unwrap_err();
        problems.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn semicolons_and_tabs_separate_columns_as_well() {
        let table = "id,name,forget,strength\na,\"red, heart\",x.tar,0.5\nb,dog,\"y.tar;z.tar\",\n";
        let expected = read(table.as_bytes(), "t.csv", Purpose::Run).unwrap();
        assert_eq!(expected[0].row.name, "red, heart");
        for (name, table) in [
            (
                "t.csv",
                "\u{feff}id;name;forget;strength\r\na;red, heart;x.tar;0.5\r\nb;dog;\"y.tar;z.tar\";\r\n",
            ),
            (
                "t.CSV",
                "id\tname\tforget\tstrength\na\tred, heart\tx.tar\t0.5\nb\tdog\ty.tar;z.tar\t\n",
            ),
            (
                "t.tsv",
                "\"id\"\t\"name\"\tforget\tstrength\na\tred, heart\tx.tar\t0.5\nb\tdog\ty.tar;z.tar\t\n",
            ),
        ] {
            assert_eq!(read(table.as_bytes(), name, Purpose::Run).unwrap(), expected, "{table}");
        }
        let read = |table: &str| read(table.as_bytes(), "t.csv", Purpose::Run);
        let named = |table: &str| {
            read(table).unwrap().into_iter().map(|row| (row.line, row.row.id)).collect::<Vec<_>>()
        };
        // Excel's first line, an empty one, and the line ends of old Macs.
        assert_eq!(named("sep=;\r\nid;name;forget\r\na;A;a.tar\r\n"), [(3, "a".to_owned())]);
        assert_eq!(named("\nid;name;forget\na;A;a.tar\n"), [(3, "a".to_owned())]);
        assert_eq!(named("id,name,forget\ra,A,a.tar\r"), [(2, "a".to_owned())]);
    }

    #[test]
    fn a_bad_header_says_what_was_seen() {
        for (table, message) in [
            (
                "id|name|forget\na|b|c",
                "t.csv:1: column `id` is missing; the header, read with a comma between columns, has `id|name|forget`; separate columns with commas",
            ),
            ("ID,Name\na,b", "has `ID`, `Name`; write names of columns in lower case"),
            ("Id;name;forget\na;b;c", "read with a semicolon between columns, has `Id`"),
            ("id;name\na;b", "column `forget` is missing; the header, read with a semicolon"),
            ("id,name,forget,id\na,b,c,d", "t.csv:1: column `id` appears twice"),
            ("id,name,forget,\na,b,c,", "t.csv:1: column 4 has no name"),
            (
                "id;name;forget\na;b;c.tar;d.tar",
                "t.csv:2: has 4 fields, the header has 3; a field that contains a semicolon needs double quotes",
            ),
            (
                "id,name,colour,forget\na,b,c,d",
                "unknown column `colour`, expected id, name, aliases",
            ),
        ] {
            let error = problems(table, "t.csv", Purpose::Run);
            assert!(error.contains(message), "{error}\n  expected {message}");
        }
        let array = problems("[\n{\"id\": \"a\"}\n]", "t.jsonl", Purpose::Run);
        assert!(array.contains("one JSON array; write one object on each line"), "{array}");
        let utf16: Vec<u8> = "\u{feff}id,name".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let error = read(&utf16, "t.csv", Purpose::Run).unwrap_err()[0].to_string();
        assert!(error.contains("is UTF-16 text; save it as UTF-8"), "{error}");
    }

    #[test]
    fn bad_values_name_their_column() {
        for (value, message) in [
            ("\"0,5\"", "strength is `0,5`, expected a decimal point"),
            ("50%", "strength is `50%`, expected a share of one"),
            ("\"12,5 %\"", "strength is `12,5 %`, expected a share of one"),
            ("strong", "strength is `strong`, expected a number"),
            ("nan", "strength is `nan`, expected a number"),
            ("1e999", "strength is `1e999`, expected a number"),
            ("\"\u{1b}]0;x\"", "strength is `\\u{1b}]0;x`, expected a number"),
        ] {
            for purpose in [Purpose::Run, Purpose::Curation] {
                let table = format!("id,name,forget,strength\na,b,c,{value}");
                let error = problems(&table, "t.csv", purpose);
                assert!(error.starts_with(&format!("t.csv:2: {message}")), "{error}");
                let tolerance = table.replace("strength", "tolerance");
                assert!(
                    problems(&tolerance, "t.csv", purpose).starts_with("t.csv:2: tolerance is")
                );
            }
        }
        for (field, message) in [
            (r#""strength":"0.5""#, "strength is `\"0.5\"`, expected a number"),
            (r#""strength":[1]"#, "strength is `[1]`, expected a number"),
            (r#""class":5"#, "class is `5`, expected a text"),
            (r#""stop":"fa2""#, "stop is `fa2`, expected fa1, fa5, or rank S"),
            (r#""aliases":["x",1]"#, "aliases is `1`, expected a text"),
            (r#""colour":1"#, "unknown field `colour`"),
            (r#""id":"b""#, "the key `id` appears twice"),
        ] {
            let line = format!(r#"{{"id":"a","name":"b","forget":"c",{field}}}"#);
            let error = problems(&format!("\n{line}"), "t.jsonl", Purpose::Run);
            assert!(error.starts_with(&format!("t.jsonl:2: {message}")), "{error}");
        }
        let error = problems(r#"{"id":"a","name":"b"}"#, "t.jsonl", Purpose::Run);
        assert_eq!(error, "t.jsonl:1: missing field `forget`");
        let error = problems(r#"{"id":1,"name":"b"}"#, "t.jsonl", Purpose::Curation);
        assert_eq!(error, "t.jsonl:1: id is `1`, expected a text");
    }

    #[test]
    fn up_to_twenty_problems_are_named_at_once() {
        let table = format!("id,name,forget,stop\n{}", "a,b,c,fa2\n".repeat(30));
        assert_eq!(problems(&table, "t.csv", Purpose::Run).lines().count(), 20);
        let table = "id,name,forget,stop\na,b,c,fa2\nd,e\nf,g,h,fa3";
        let error = problems(table, "t.csv", Purpose::Run);
        let lines: Vec<&str> = error.lines().map(|line| &line[..8]).collect();
        assert_eq!(lines, ["t.csv:2:", "t.csv:3:", "t.csv:4:"]);
    }

    #[test]
    fn aliases_are_a_text_or_a_list() {
        let csv = "id,name,aliases,forget\na,Orwell,1984| Animal Farm ||,old.tar";
        let json = r#"{"id":"a","name":"Orwell","aliases":["1984","Animal Farm"],"forget":3}"#;
        let (csv, json) = (csv.as_bytes(), json.as_bytes());
        let curated = read(csv, "t.csv", Purpose::Curation).unwrap();
        assert_eq!(curated[0].row, read(json, "t.jsonl", Purpose::Curation).unwrap()[0].row);
        let run = read(csv, "t.csv", Purpose::Run).unwrap();
        for (rows, forget) in [(curated, ""), (run, "old.tar")] {
            assert_eq!(rows[0].row.aliases, ["1984", "Animal Farm"]);
            assert_eq!(rows[0].row.forget, forget);
        }
    }
}
