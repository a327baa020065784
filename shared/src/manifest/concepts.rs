//! Concepts: rows of a [table](super::table), or of a list in the manifest, with the same fields.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::classes::Classes;
use super::error::Error;
use super::id::is_id;
use crate::address::Address;
use crate::printable::printable;
use crate::vocabulary::Stop;
use crate::words::normal_name;

/// Largest table, in bytes.
pub const MAX_TABLE: u64 = 64 << 20;
/// Longest name.
const MAX_NAME: usize = 200;
/// Most aliases of a concept in a run.
pub const MAX_ALIASES: usize = 20;
/// Most concepts of a run.
pub(super) const MAX_CONCEPTS: usize = 100_000;
/// Largest strength.
pub const MAX_STRENGTH: f64 = 100.0;

/// A concept as it is written in a table or list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Letters, digits, `.`, `_`, `-`; unique.
    pub id: String,
    /// Its display name.
    pub name: String,
    /// Other names of it, which the probe `words` measures with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its class in the class list; the name unless given.
    #[serde(default)]
    pub class: Option<String>,
    /// Its shards of image-text pairs, relative to this file; several are separated by `;`.
    pub forget: String,
    /// Strength α of its edit: 1 applies the edit as found, 0 does not apply it.
    #[serde(default)]
    pub strength: Option<f64>,
    /// Its group, for reports and for the strengths in `concepts.groups`.
    #[serde(default)]
    pub group: Option<String>,
    /// The measure by which it counts as forgotten; `method.stop` by default.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// Share of its forget images that may still be recognised; `composition.tolerance` by default.
    #[serde(default)]
    pub tolerance: Option<f64>,
}

/// A checked concept.
#[derive(Debug, Clone, PartialEq)]
pub struct Concept {
    /// Its id.
    pub id: String,
    /// Its display name.
    pub name: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// Its class name.
    pub class: String,
    /// Its class: position in the class list.
    pub class_index: u32,
    /// Its shards; wildcards in the last part allowed.
    pub forget: Vec<Address>,
    /// Strength α, multiplied by the strength of its group.
    pub strength: f64,
    /// Its group, for reports.
    pub group: Option<String>,
    /// The measure by which it counts as forgotten, where it differs from the default.
    pub stop: Option<Stop>,
    /// Share of its forget images that may still be recognised, where it differs from the default.
    pub tolerance: Option<f64>,
    /// File and line, for messages.
    pub place: String,
}

/// Multiplies the strength of each concept by the strength of its group.
///
/// # Errors
/// [`Error`] when a group has no concept, or a strength is out of range.
pub fn strengthen(
    concepts: &mut [Concept],
    groups: &BTreeMap<String, f64>,
    file: &str,
) -> Result<(), Error> {
    for (group, strength) in groups {
        let wrong = |problem: String| Error::new(format!("{file}: concepts.groups"), problem);
        let normal = normal_name(group);
        if !(0.0..=MAX_STRENGTH).contains(strength) {
            return Err(wrong(format!(
                "strength of group `{group}` is {strength}, expected 0 to {MAX_STRENGTH}"
            )));
        }
        let mut members = concepts
            .iter_mut()
            .filter(|concept| concept.group.as_deref() == Some(&*normal))
            .peekable();
        if members.peek().is_none() {
            return Err(wrong(format!("no concept is in group `{group}`")));
        }
        members
            .for_each(|concept| concept.strength = (concept.strength * strength).min(MAX_STRENGTH));
    }
    Ok(())
}

/// Checks rows against each other and against the class list. Relative shard addresses are resolved
/// from `folder`; `file` appears in messages.
///
/// # Errors
/// Every problem found, at most twenty.
pub fn check(
    rows: Vec<(usize, Row)>,
    file: &str,
    folder: &Address,
    classes: &Classes,
) -> Result<Vec<Concept>, Vec<Error>> {
    if rows.len() > MAX_CONCEPTS {
        return Err(vec![Error::new(file, "more than 100,000 concepts")]);
    }
    let mut problems = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut owners: HashMap<u32, (String, usize)> = HashMap::new();
    let mut concepts = Vec::with_capacity(rows.len());
    for (line, row) in rows {
        match check_row(&row, file, line, folder, classes) {
            Err(error) => problems.push(error),
            Ok(concept) => {
                let wrong = |problem: String| Error::new(format!("{file}:{line}"), problem);
                if let Some(before) = ids.insert(concept.id.clone(), line) {
                    problems.push(wrong(format!(
                        "id `{}` is already on line {before}; ids must be unique",
                        concept.id
                    )));
                }
                if let Some((other, before)) =
                    owners.insert(concept.class_index, (concept.id.clone(), line))
                {
                    problems.push(wrong(format!(
                        "concept `{}` has class `{}`, which concept `{other}` on line {before} already has; merge the two into one concept",
                        concept.id, concept.class
                    )));
                }
                concepts.push(concept);
            }
        }
        if problems.len() == 20 {
            break;
        }
    }
    if problems.is_empty() { Ok(concepts) } else { Err(problems) }
}

fn check_row(
    row: &Row,
    file: &str,
    line: usize,
    folder: &Address,
    classes: &Classes,
) -> Result<Concept, Error> {
    let wrong = |problem: String| Error::new(format!("{file}:{line}"), problem);
    let id = row.id.trim();
    if !is_id(id) {
        return Err(wrong(format!(
            "id `{id}`: use letters, digits, `.`, `_`, `-`, at most 100, the first a letter or digit"
        )));
    }
    let name = row.name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(wrong(format!(
            "concept `{id}`: a name has 1 to {MAX_NAME} printable characters"
        )));
    }
    let aliases: Vec<String> = row
        .aliases
        .iter()
        .map(|alias| alias.trim().to_owned())
        .filter(|alias| !alias.is_empty())
        .collect();
    if aliases.len() > MAX_ALIASES {
        return Err(wrong(format!(
            "concept `{id}` has {} aliases; give the {MAX_ALIASES} most usual ones",
            aliases.len()
        )));
    }
    if let Some(alias) = aliases
        .iter()
        .find(|alias| alias.chars().count() > MAX_NAME || alias.chars().any(char::is_control))
    {
        return Err(wrong(format!(
            "concept `{id}`: alias `{}`: an alias has 1 to {MAX_NAME} printable characters",
            printable(alias)
        )));
    }
    let class =
        row.class.as_deref().map(str::trim).filter(|class| !class.is_empty()).unwrap_or(name);
    let class_index = classes.find(class).ok_or_else(|| {
        let hint = classes
            .suggest(class)
            .map(|known| format!("; did you mean `{known}`?"))
            .unwrap_or_default();
        wrong(format!(
            "class `{}` of concept `{id}` is not in {}{hint}",
            printable(class),
            classes.file()
        ))
    })?;
    let strength = row.strength.unwrap_or(1.0);
    if !(0.0..=MAX_STRENGTH).contains(&strength) {
        return Err(wrong(format!(
            "concept `{id}`: strength is {strength}, expected 0 to {MAX_STRENGTH}"
        )));
    }
    if let Some(tolerance) = row.tolerance.filter(|tolerance| !(0.0..1.0).contains(tolerance)) {
        return Err(wrong(format!(
            "concept `{id}`: tolerance is {tolerance}, expected at least 0 and below 1"
        )));
    }
    let mut forget = Vec::new();
    for part in row.forget.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let address = resolve(part, folder)
            .map_err(|problem| wrong(format!("concept `{id}`: forget: {problem}")))?;
        forget.push(address);
    }
    if forget.is_empty() {
        return Err(wrong(format!("concept `{id}` has no forget shard")));
    }
    let group = row.group.as_deref().map(normal_name).filter(|group| !group.is_empty());
    // The list's spelling, which everything else compares with.
    let class = classes.names().get(class_index as usize).map_or(class, String::as_str);
    Ok(Concept {
        id: id.to_owned(),
        name: name.to_owned(),
        aliases,
        class: class.to_owned(),
        class_index,
        forget,
        strength,
        group: group.map(Cow::into_owned),
        stop: row.stop,
        tolerance: row.tolerance,
        place: format!("{file}:{line}"),
    })
}

fn resolve(text: &str, folder: &Address) -> Result<Address, String> {
    let is_relative = !text.contains("://") && !text.starts_with('/');
    let address = match folder {
        Address::Local(path) => Address::resolve(text, Some(path)),
        Address::Remote(_) if is_relative => folder.join(text),
        Address::Remote(_) => Address::parse(text),
    };
    address.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::table::{self, Purpose};
    use super::*;

    fn classes() -> Classes {
        Classes::parse(b"cat\ndog\nrocket\nred heart\n", "classes.txt").unwrap()
    }

    fn folder() -> Address {
        Address::parse("/jobs").unwrap()
    }

    fn rows(table: &str, name: &str) -> Result<Vec<(usize, Row)>, Vec<Error>> {
        let rows = table::read(table.as_bytes(), name, Purpose::Run)?;
        Ok(rows.into_iter().map(|found| (found.line, found.row)).collect())
    }

    #[test]
    fn aliases_are_bounded_and_errors_say_what_to_do() {
        let given = |aliases: &str| {
            read(&format!("id,name,aliases,forget\nc,cat,{aliases},c.tar\n"), "c.csv")
        };
        assert_eq!(given("tom| kitty |").unwrap()[0].aliases, ["tom", "kitty"]);
        assert!(given("").unwrap()[0].aliases.is_empty());
        assert_eq!(given(&"tom|".repeat(20)).unwrap()[0].aliases.len(), 20);
        assert_eq!(
            given(&"tom|".repeat(21)).unwrap_err(),
            "c.csv:2: concept `c` has 21 aliases; give the 20 most usual ones"
        );
        for (alias, shown) in [("o".repeat(201), "ooo"), ("a\u{7}b".to_owned(), "alias `a")] {
            let error = given(&alias).unwrap_err();
            assert!(error.contains("an alias has 1 to 200 printable characters"), "{error}");
            assert!(error.contains(shown), "{error}");
        }
    }

    fn read(table: &str, name: &str) -> Result<Vec<Concept>, String> {
        let join = |problems: Vec<Error>| {
            problems.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
        };
        let rows = rows(table, name).map_err(join)?;
        check(rows, name, &folder(), &classes()).map_err(join)
    }

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let csv = "\u{feff}id,name,class,forget,strength,group\r\nc1,cat,,f/c1.tar; s3://b/c1.tar,0.5,animals\r\nc2,\"dog\",dog,/abs/c2.tar,,\r\n";
        let lines = concat!(
            r#"{"id":"c1","name":"cat","forget":"f/c1.tar;s3://b/c1.tar","strength":0.5,"group":"animals"}"#,
            "\n\n",
            r#"{"id":"c2","name":"dog","class":"dog","forget":"/abs/c2.tar"}"#
        );
        let (csv, lines) = (read(csv, "t.csv").unwrap(), read(lines, "t.jsonl").unwrap());
        assert_eq!(
            csv[0].forget,
            [Address::parse("/jobs/f/c1.tar").unwrap(), Address::parse("s3://b/c1.tar").unwrap()]
        );
        assert_eq!((csv[0].class_index, csv[0].strength, csv[1].strength), (0, 0.5, 1.0));
        for (a, b) in csv.iter().zip(&lines) {
            assert_eq!(
                (&a.id, &a.class, &a.forget, &a.group),
                (&b.id, &b.class, &b.forget, &b.group)
            );
        }
    }

    #[test]
    fn problems_name_line_and_remedy() {
        for (table, message) in [
            ("id,name\na,b", "t.csv:1: column `forget` is missing"),
            ("id,name,forget,colour\na,b,c,d", "t.csv:1: unknown column `colour`"),
            ("id,name,forget\na,cat,x.tar,extra", "t.csv:2: has 4 fields, the header has 3"),
            ("id,name,forget\na,cat,x.tar\na,dog,y.tar", "t.csv:3: id `a` is already on line 2"),
            (
                "id,name,forget\na,catt,x.tar",
                "t.csv:2: class `catt` of concept `a` is not in classes.txt; did you mean `cat`?",
            ),
            (
                "id,name,class,forget\na,x,cat,x.tar\nb,y,cat,y.tar",
                "t.csv:3: concept `b` has class `cat`, which concept `a`",
            ),
            ("id,name,forget,strength\na,cat,x.tar,-1", "t.csv:2: concept `a`: strength is -1"),
            ("id,name,forget,strength\na,cat,x.tar,strong", "t.csv:2: "),
            ("id,name,forget,stop\na,cat,x.tar,fa2", "t.csv:2: "),
            ("id,name,forget,tolerance\na,cat,x.tar,1", "t.csv:2: concept `a`: tolerance is 1"),
            ("id,name,forget\n../a,cat,x.tar", "t.csv:2: id `../a`"),
            ("id,name,forget\na,cat,", "t.csv:2: concept `a` has no forget shard"),
            (
                "id,name,forget\na,cat,ftp://x",
                "t.csv:2: concept `a`: forget: `ftp://x` is not an address",
            ),
            ("id,name,forget\n", "t.csv: contains no concepts"),
        ] {
            let error = read(table, "t.csv").unwrap_err();
            assert!(error.contains(message), "{error}\n  expected {message}");
        }
        let spaced = concat!(
            r#"{"id":"a","name":"cat","forget":"x"}"#,
            "\n",
            r#"{"id":" a","name":"dog","forget":"y"}"#
        );
        assert!(
            read(spaced, "t.jsonl").unwrap_err().contains("t.jsonl:2: id `a` is already on line 1")
        );
        assert!(read("{\"id\": 1}", "t.jsonl").unwrap_err().starts_with("t.jsonl:1: "));
        assert!(
            read("{\"id\":\"a\",\"name\":\"cat\",\"forget\":\"x\",\"colour\":1}", "t.jsonl")
                .unwrap_err()
                .contains("unknown field `colour`")
        );
        assert!(read("x", "t.txt").unwrap_err().contains("ends in .csv or .jsonl"));
    }

    #[test]
    fn a_group_has_a_strength_and_a_concept_an_aim_of_its_own() {
        let table = "id,name,forget,strength,group,stop,tolerance\na,cat,x.tar,0.5,pets,fa1,0.2\nb,dog,y.tar,,pets,,\nc,rocket,z.tar,,,,";
        let mut concepts = read(table, "t.csv").unwrap();
        let aims: Vec<_> =
            concepts.iter().map(|concept| (concept.stop, concept.tolerance)).collect();
        assert_eq!(aims, [(Some(Stop::Fa1), Some(0.2)), (None, None), (None, None)]);
        let groups = |name: &str, strength| BTreeMap::from([(name.to_owned(), strength)]);
        strengthen(&mut concepts, &groups("pets", 0.5), "m.toml").unwrap();
        assert_eq!(
            concepts.iter().map(|concept| concept.strength).collect::<Vec<_>>(),
            [0.25, 0.5, 1.0]
        );
        for (name, strength, says) in [
            ("pet", 1.0, "no concept is in group `pet`"),
            ("pets", -1.0, "strength of group `pets` is -1"),
        ] {
            let error = strengthen(&mut concepts, &groups(name, strength), "m.toml")
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("m.toml: concepts.groups: ") && error.contains(says),
                "{error}"
            );
        }
    }

    #[test]
    fn names_are_compared_in_one_unicode_form() {
        let classes = Classes::parse("cafe\u{301}\ndog\n".as_bytes(), "c.txt").unwrap();
        let table = "id,name,class,forget,group\na,x,café,x.tar,e\u{301}t\u{e9}\nb,dog,,y.tar,";
        let rows = rows(table, "t.csv").unwrap();
        let mut concepts = check(rows, "t.csv", &folder(), &classes).unwrap();
        // The class has the list's spelling.
        assert_eq!((concepts[0].class.as_str(), concepts[0].class_index), ("cafe\u{301}", 0));
        for group in ["été", "e\u{301}te\u{301}"] {
            strengthen(&mut concepts, &BTreeMap::from([(group.to_owned(), 0.5)]), "m").unwrap();
        }
        assert_eq!(concepts[0].strength, 0.25);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let error = read("id,name,forget\na,catt,x.tar\nb,dogg,y.tar", "t.csv").unwrap_err();
        assert_eq!(error.lines().count(), 2, "{error}");
    }

    #[test]
    fn tables_in_a_bucket_name_shards_beside_them() {
        let rows = rows("id,name,forget\na,cat,f/a.tar", "t.csv").unwrap();
        let concepts =
            check(rows, "t.csv", &Address::parse("s3://b/jobs").unwrap(), &classes()).unwrap();
        assert_eq!(concepts[0].forget[0].to_string(), "s3://b/jobs/f/a.tar");
    }
}
