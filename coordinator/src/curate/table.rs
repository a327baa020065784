//! The table of concepts to find: a manifest's concept table with names instead of shards.

use lethe_shared::manifest::Error;
use lethe_shared::manifest::concepts::{MAX_ALIASES, Row};
use lethe_shared::manifest::table::{self, Purpose, TableRow};

/// Largest number of names per concept.
const MAX_NAMES: usize = 1000;
/// Longest name, characters.
const MAX_NAME: usize = 200;
/// Most problems that are reported at once.
const MAX_PROBLEMS: usize = 20;

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its line number.
    pub line: usize,
    /// The resulting row of the manifest's table, with as many aliases as a run accepts.
    pub row: Row,
    /// Names to find: name, class and aliases.
    pub names: Vec<String>,
}

/// Reads a table by the same reader as a run, see [`table::read`].
///
/// # Errors
/// Every problem found with file and line, at most twenty.
pub fn parse(bytes: &[u8], name: &str) -> Result<Vec<Wanted>, Vec<Error>> {
    let (mut table, mut problems) = (Vec::new(), Vec::new());
    for row in table::read(bytes, name, Purpose::Curation)? {
        match wanted(row, name) {
            Ok(wanted) => table.push(wanted),
            Err(error) => problems.push(error),
        }
    }
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() { Ok(table) } else { Err(problems) }
}

fn wanted(found: TableRow, file: &str) -> Result<Wanted, Error> {
    let TableRow { line, mut row } = found;
    let wrong = |problem: String| Err(Error::new(format!("{file}:{line}"), problem));
    row.class = row.class.map(|class| class.trim().to_owned()).filter(|class| !class.is_empty());
    let mut names = vec![row.name.clone()];
    names.extend(row.class.clone());
    names.extend(row.aliases.clone());
    if names.len() > MAX_NAMES {
        return wrong(format!(
            "concept `{}` has {} names, at most {MAX_NAMES} are looked for",
            row.id,
            names.len()
        ));
    }
    if let Some(bad) = names.iter().find(|name| {
        name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control)
    }) {
        let shown: String = bad.chars().filter(|letter| !letter.is_control()).take(40).collect();
        return wrong(format!(
            "concept `{}`: `{shown}`: a name has 1 to {MAX_NAME} printable characters",
            row.id
        ));
    }
    row.aliases.truncate(MAX_ALIASES);
    // Curation writes the forget shards itself.
    row.forget = format!("forget/{}.tar", row.id);
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
            ("id,name\n", "t.csv: contains no concepts"),
        ] {
            let error = parse(table.as_bytes(), "t.csv").unwrap_err()[0].to_string();
            assert!(error.starts_with(message), "{error}\n  expected {message}");
        }
        assert!(
            parse(b"\n{\"id\":\"a\"}", "t.jsonl").unwrap_err()[0]
                .to_string()
                .starts_with("t.jsonl:2: missing field `name`")
        );
        assert!(parse(b"x", "t.txt").unwrap_err()[0].to_string().contains(".csv or .jsonl"));
        assert!(
            parse(b"id,name\n\xff,b", "t.csv").unwrap_err()[0].to_string().contains("not UTF-8")
        );
    }
}
