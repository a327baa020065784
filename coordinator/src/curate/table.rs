//! The table of concepts to find: a manifest's concept table with names instead of shards.

use lethe_shared::manifest::Error;
use lethe_shared::manifest::concepts::Row;
use lethe_shared::vocabulary::Stop;
use serde::Deserialize;

/// Permitted columns. Curation writes `forget` itself, so an existing value is ignored.
const COLUMNS: [&str; 9] =
    ["id", "name", "aliases", "class", "forget", "strength", "group", "stop", "tolerance"];
/// Largest number of concepts.
const MAX_CONCEPTS: usize = 100_000;
/// Largest number of names per concept.
const MAX_NAMES: usize = 1000;
/// Longest name, characters.
const MAX_NAME: usize = 200;

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its line number.
    pub line: usize,
    /// The resulting row of the manifest's table.
    pub row: Row,
    /// Names to find: name, class and aliases.
    pub names: Vec<String>,
}

/// Aliases in JSON lines: a string as in CSV, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Aliases {
    Text(String),
    List(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    name: String,
    aliases: Option<Aliases>,
    class: Option<String>,
    #[serde(rename = "forget")]
    _forget: Option<serde_json::Value>,
    strength: Option<f64>,
    group: Option<String>,
    stop: Option<Stop>,
    tolerance: Option<f64>,
}

/// Parses a table. The extension of `name`, `.csv` or `.jsonl`, selects the format.
///
/// # Errors
/// [`Error`] with file and line.
pub fn parse(bytes: &[u8], name: &str) -> Result<Vec<Wanted>, Error> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| Error::new(name, "is not UTF-8 text"))?;
    let rows = if name.ends_with(".csv") {
        parse_csv(text, name)?
    } else if name.ends_with(".jsonl") {
        parse_lines(text, name)?
    } else {
        return Err(Error::new(name, "the name of a concept table ends in .csv or .jsonl"));
    };
    match rows.len() {
        0 => Err(Error::new(name, "names no concept")),
        1..=MAX_CONCEPTS => Ok(rows),
        _ => Err(Error::new(name, "more than 100,000 concepts")),
    }
}

fn parse_csv(text: &str, file: &str) -> Result<Vec<Wanted>, Error> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let wrong = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        let problem = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("has {len} fields, the header has {expected_len}")
            }
            _ => error.to_string(),
        };
        Error::new(format!("{file}:{line}"), problem)
    };
    let header = reader.headers().map_err(wrong)?.clone();
    let missing = ["id", "name"]
        .into_iter()
        .find(|required| !header.iter().any(|column| column == *required));
    if let Some(column) = missing {
        return Err(Error::new(format!("{file}:1"), format!("column `{column}` is missing")));
    }
    if let Some(column) = header.iter().find(|column| !COLUMNS.contains(column)) {
        return Err(Error::new(
            format!("{file}:1"),
            format!("unknown column `{column}`, expected {}", COLUMNS.join(", ")),
        ));
    }
    let mut rows = Vec::new();
    for record in reader.records().take(MAX_CONCEPTS + 1) {
        let record = record.map_err(wrong)?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        let field = |column: &str| {
            header
                .iter()
                .position(|known| known == column)
                .and_then(|at| record.get(at))
                .filter(|f| !f.is_empty())
        };
        let number = |column: &str| {
            let wrong = |text: &str| {
                Error::new(
                    format!("{file}:{line}"),
                    format!("{column} is `{text}`, expected a number"),
                )
            };
            field(column).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
        };
        let stop = match field("stop") {
            None => None,
            Some("fa1") => Some(Stop::Fa1),
            Some("fa5") => Some(Stop::Fa5),
            Some(other) => {
                return Err(Error::new(
                    format!("{file}:{line}"),
                    format!("stop is `{other}`, expected fa1 or fa5"),
                ));
            }
        };
        let row = Line {
            id: field("id").unwrap_or_default().to_owned(),
            name: field("name").unwrap_or_default().to_owned(),
            aliases: field("aliases").map(|text| Aliases::Text(text.to_owned())),
            class: field("class").map(str::to_owned),
            _forget: None,
            strength: number("strength")?,
            group: field("group").map(str::to_owned),
            stop,
            tolerance: number("tolerance")?,
        };
        rows.push(wanted(row, line, file)?);
    }
    Ok(rows)
}

fn parse_lines(text: &str, file: &str) -> Result<Vec<Wanted>, Error> {
    let lines =
        (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).take(MAX_CONCEPTS + 1);
    lines
        .map(|(number, line)| {
            let row = serde_json::from_str(line)
                .map_err(|error| Error::new(format!("{file}:{number}"), error.to_string()))?;
            wanted(row, number, file)
        })
        .collect()
}

fn wanted(row: Line, line: usize, file: &str) -> Result<Wanted, Error> {
    let wrong = |problem: String| Err(Error::new(format!("{file}:{line}"), problem));
    let (id, name) = (row.id.trim().to_owned(), row.name.trim().to_owned());
    let class = row.class.map(|class| class.trim().to_owned()).filter(|class| !class.is_empty());
    let aliases: Vec<String> = match row.aliases {
        None => Vec::new(),
        Some(Aliases::Text(text)) => text.split('|').map(str::to_owned).collect(),
        Some(Aliases::List(list)) => list,
    };
    let mut names = vec![name.clone()];
    names.extend(class.clone());
    names.extend(
        aliases.iter().map(|alias| alias.trim().to_owned()).filter(|alias| !alias.is_empty()),
    );
    if names.len() > MAX_NAMES {
        return wrong(format!(
            "concept `{id}` has {} names, at most {MAX_NAMES} are looked for",
            names.len()
        ));
    }
    if let Some(bad) = names.iter().find(|name| {
        name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control)
    }) {
        let shown: String = bad.chars().filter(|letter| !letter.is_control()).take(40).collect();
        return wrong(format!(
            "concept `{id}`: `{shown}`: a name has 1 to {MAX_NAME} printable characters"
        ));
    }
    let forget = format!("forget/{id}.tar");
    let row = Row {
        id,
        name,
        class,
        forget,
        strength: row.strength,
        group: row.group,
        stop: row.stop,
        tolerance: row.tolerance,
    };
    Ok(Wanted { line, row, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let csv = "\u{feff}id,name,aliases,class,strength,group\nny,New York,NYC | Big Apple,,0.5,cities\ncat,cat,,cat face,,\n";
        let lines = concat!(
            r#"{"id":"ny","name":"New York","aliases":["NYC","Big Apple"],"strength":0.5,"group":"cities"}"#,
            "\n\n",
            r#"{"id":"cat","name":"cat","class":"cat face","forget":"old.tar"}"#
        );
        let (csv, lines) =
            (parse(csv.as_bytes(), "t.csv").unwrap(), parse(lines.as_bytes(), "t.jsonl").unwrap());
        assert_eq!(csv[0].names, ["New York", "NYC", "Big Apple"]);
        assert_eq!(
            (csv[1].names.as_slice(), csv[1].line),
            (&["cat".to_owned(), "cat face".to_owned()][..], 3)
        );
        for (a, b) in csv.iter().zip(&lines) {
            assert_eq!((&a.row, &a.names), (&b.row, &b.names));
        }
        // An alias that looks like a number is a string.
        assert_eq!(parse(b"id,name,aliases\na,Orwell,1984", "t.csv").unwrap()[0].names[1], "1984");
    }

    #[test]
    fn problems_name_the_line() {
        for (table, message) in [
            ("id,label\na,b", "t.csv:1: column `name` is missing"),
            ("id,name,colour\na,b,c", "t.csv:1: unknown column `colour`"),
            ("id,name\na,b\nc,d,e", "t.csv:3: has 3 fields, the header has 2"),
            ("id,name\na,", "t.csv:2: concept `a`: ``: a name has 1 to 200"),
            ("id,name,strength\na,b,much", "t.csv:2: strength is `much`"),
            ("id,name\n", "t.csv: names no concept"),
        ] {
            let error = parse(table.as_bytes(), "t.csv").unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}\n  expected {message}");
        }
        assert!(
            parse(b"\n{\"id\":\"a\"}", "t.jsonl")
                .unwrap_err()
                .to_string()
                .starts_with("t.jsonl:2: missing field `name`")
        );
        assert!(parse(b"x", "t.txt").unwrap_err().to_string().contains(".csv or .jsonl"));
        assert!(parse(b"id,name\n\xff,b", "t.csv").unwrap_err().to_string().contains("not UTF-8"));
    }
}
