//! Tables of concepts: CSV and JSON lines.

use std::path::PathBuf;

use lethe_shared::address::Address;
use lethe_shared::manifest::table::{Purpose, TableRow, read};
use lethe_shared::manifest::{Classes, concepts};
use serde_json::json;

use crate::draw::Draw;
use crate::harness::{Harness, Outcome, refused, same};
use crate::json::{almost, documents, unique_keys};

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "table-csv",
            memory,
            seeds: || TABLES.iter().map(|text| text.as_bytes().to_vec()).collect(),
            generate: generate_csv,
            check: |bytes| check("t.csv", bytes),
        },
        Harness {
            name: "table-jsonl",
            memory,
            seeds: || vec![LINES.join("\n").into_bytes()],
            generate: |draw| {
                let seeds = documents(LINES);
                let lines = (0..=draw.below(3)).map(|_| almost(&seeds, &COLUMNS, draw).write(None));
                lines.collect::<Vec<_>>().join("\n").into_bytes()
            },
            check: |bytes| check("t.jsonl", bytes),
        },
    ]
}

/// A row has nine values, most of them absent.
fn memory(input: &[u8]) -> usize {
    (4 << 20) + 512 * input.len()
}

const COLUMNS: [&str; 9] =
    ["id", "name", "aliases", "class", "forget", "strength", "group", "stop", "tolerance"];
const TABLES: [&str; 3] = [
    "id,name,forget,strength\na,\"red, heart\",x.tar,0.5\nb,dog,\"y.tar;z.tar\",\n",
    "id;name;aliases;forget\r\na;cat;tom|kitty;x.tar\r\n",
    "id\tname\tclass\tforget\tgroup\tstop\ttolerance\na\tcat\tcat face\tx.tar\tg\tfa1\t0.25\n",
];
const LINES: [&str; 2] = [
    r#"{"id":"a","name":"cat","class":"cat face","forget":"x.tar","strength":0.5,"group":"g","stop":"fa5","tolerance":0.25}"#,
    r#"{"id":"b","name":"Orwell","aliases":["1984","Animal Farm"],"forget":"y.tar;z.tar"}"#,
];

fn generate_csv(draw: &mut Draw<'_>) -> Vec<u8> {
    let separator = *draw.pick(&[",", ",", ";", "\t", "|"]);
    let mut columns = vec!["id", "name", "forget"];
    for column in COLUMNS {
        if draw.one_in(4) && (draw.one_in(20) || !columns.contains(&column)) {
            columns.push(column);
        }
    }
    let at = draw.below(columns.len());
    columns.swap(0, at);
    let mut text = String::new();
    if draw.one_in(20) {
        text.push('\u{feff}');
    }
    let end = *draw.pick(&["\n", "\n", "\r\n", "\r"]);
    text.push_str(&columns.join(separator));
    text.push_str(end);
    for row in 0..draw.below(4) {
        for (number, column) in columns.iter().enumerate() {
            if number > 0 {
                text.push_str(separator);
            }
            let value = match (*column, draw.below(12)) {
                (_, 0) => draw.text(),
                (_, 1) => draw.numeral(),
                ("id", _) => format!("c{row}"),
                ("name" | "class", _) => "cat".to_owned(),
                ("forget", _) => "x.tar;y.tar".to_owned(),
                ("strength" | "tolerance", _) => (*draw
                    .pick(&["0.5", "0,5", "50%", "1e3", "", "+1", "nan", " 0.25 "]))
                .to_owned(),
                ("stop", _) => (*draw.pick(&["fa1", "fa5", "rank 0.5", "rank 1", ""])).to_owned(),
                _ => "a|b".to_owned(),
            };
            if draw.one_in(4) || value.contains([',', ';', '\t', '\n', '"']) && !draw.one_in(8) {
                text.push_str(&format!("\"{}\"", value.replace('"', "\"\"")));
            } else {
                text.push_str(&value);
            }
        }
        if draw.one_in(30) {
            text.push_str(separator);
        }
        text.push_str(end);
    }
    text.into_bytes()
}

/// The rows as lines of JSON.
fn json_lines(rows: &[TableRow], purpose: Purpose) -> String {
    let line = |read: &TableRow| {
        let row = &read.row;
        let mut line = json!({ "id": row.id, "name": row.name });
        line["aliases"] = json!(row.aliases);
        if purpose == Purpose::Run {
            line["forget"] = json!(row.forget);
        }
        let stop = row.stop.map(|stop| serde_json::to_value(stop).expect("a name"));
        for (key, value) in [
            ("class", row.class.as_ref().map(|text| json!(text))),
            ("group", row.group.as_ref().map(|text| json!(text))),
            ("strength", row.strength.map(|number| json!(number))),
            ("tolerance", row.tolerance.map(|number| json!(number))),
            ("stop", stop),
        ] {
            if let Some(value) = value {
                line[key] = value;
            }
        }
        line.to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn content(rows: &[TableRow]) -> Vec<&concepts::Row> {
    rows.iter().map(|read| &read.row).collect()
}

fn check(name: &str, bytes: &[u8]) -> Result<Outcome, String> {
    let mut outcome = Outcome::Refused;
    for purpose in [Purpose::Run, Purpose::Curation] {
        let rows = match read(bytes, name, purpose) {
            Ok(rows) => rows,
            Err(problems) => {
                problems.iter().try_for_each(|problem| refused(problem).map(drop))?;
                continue;
            }
        };
        outcome = Outcome::Accepted;
        if name.ends_with(".jsonl") {
            bytes.split(|&byte| byte == b'\n').try_for_each(unique_keys)?;
        }
        let lines = json_lines(&rows, purpose);
        let again = read(lines.as_bytes(), "again.jsonl", purpose).map_err(|problems| {
            format!("was accepted, but not as JSON lines: {problems:?}\n{lines}")
        })?;
        same("rows of two formats", &content(&rows), &content(&again))?;
        let classes = Classes::parse(b"cat\ncat face\ndog", "classes.txt").expect("a class list");
        let rows = rows.into_iter().map(|read| (read.line, read.row)).collect();
        let folder = Address::Local(PathBuf::from("/data"));
        match concepts::check(rows, name, &folder, &classes) {
            Ok(found) => {
                for concept in &found {
                    same("a class", &classes.find(&concept.class), &Some(concept.class_index))?;
                }
            }
            Err(problems) => problems.iter().try_for_each(|problem| refused(problem).map(drop))?,
        }
    }
    Ok(outcome)
}
