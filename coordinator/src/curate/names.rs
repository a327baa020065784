//! Finds all names of all concepts and classes in a caption at once.

use std::collections::{BTreeSet, HashMap};

use lethe_shared::address::Address;
use lethe_shared::manifest::concepts::{self, Concept};
use lethe_shared::manifest::{Classes, Error};
use lethe_shared::phrases::Phrases;
use lethe_shared::words::{normal_name, words};

use super::table::Wanted;

/// The concepts and the class that a caption mentions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions {
    /// Indices of concepts, ascending.
    pub concepts: Vec<u32>,
    /// The class, if the caption names no concept and exactly one class.
    pub class: Option<u32>,
}

/// The concept or class that a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Concept(u32),
    Class(u32),
}

/// Concepts by id, the classes of a run about them, and the names of both.
#[derive(Debug)]
pub struct Names {
    /// The concepts, sorted by id.
    pub concepts: Vec<Concept>,
    /// The classes: the given ones, then added classes of concepts.
    pub classes: Classes,
    /// Classes of concepts that the given list lacked.
    pub added: Vec<String>,
    /// All names to find.
    pub texts: Vec<String>,
    phrases: Phrases,
    owners: Vec<Owner>,
}

impl Names {
    /// Checks the table for consistency with itself and with the class list, and prepares its
    /// names. `file` is the table's name in messages.
    ///
    /// # Errors
    /// At most twenty problems.
    pub fn new(
        mut table: Vec<Wanted>,
        given: Option<&Classes>,
        file: &str,
    ) -> Result<Self, Vec<Error>> {
        let one = |error: Error| vec![error];
        let (classes, added) = class_list(&mut table, given, file).map_err(one)?;
        let rows = table.iter().map(|wanted| (wanted.line, wanted.row.clone())).collect();
        // The addresses of shards do not matter here, and are not known yet.
        let mut concepts = concepts::check(rows, file, &Address::Local("/".into()), &classes)?;
        concepts.sort_by(|a, b| a.id.cmp(&b.id));
        table.sort_by(|a, b| a.row.id.cmp(&b.row.id));

        let (mut texts, mut owners) = (Vec::new(), Vec::new());
        let mut taken: HashMap<String, u32> = HashMap::new();
        let mut problems = Vec::new();
        for (concept, wanted) in (0u32..).zip(&table) {
            let mut wrong = |problem: String| {
                problems.push(Error::new(format!("{file}:{}", wanted.line), problem))
            };
            for name in &wanted.names {
                let key = words(name);
                if key == " " {
                    wrong(format!(
                        "concept `{}`: `{name}` has neither letter nor digit to look for",
                        wanted.row.id
                    ));
                    continue;
                }
                match taken.insert(key, concept) {
                    None => {
                        owners.push(Owner::Concept(concept));
                        texts.push(name.clone());
                    }
                    Some(other) if other != concept => {
                        let other = &table[other as usize];
                        wrong(format!(
                            "concept `{}` has the name `{name}`, which concept `{}` on line {} has too; take it out of one, or make one concept of them",
                            wanted.row.id, other.row.id, other.line
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        if !problems.is_empty() {
            problems.truncate(20);
            return Err(problems);
        }
        for (class, name) in (0u32..).zip(classes.names()) {
            if !taken.contains_key(&words(name)) {
                owners.push(Owner::Class(class));
                texts.push(name.clone());
            }
        }
        let phrases =
            Phrases::new(&texts).map_err(|error| one(Error::new(file, error.to_string())))?;
        // A name without words has no pattern, but keeps its index.
        Ok(Self { concepts, classes, added, texts, phrases, owners })
    }

    /// Returns the concepts and the class that a caption mentions, by the rule of
    /// [`Phrases::mentions`] over the names of all concepts and classes.
    pub fn find(&self, caption: &str) -> Mentions {
        let found: BTreeSet<Owner> = self
            .phrases
            .mentions(caption)
            .into_iter()
            .map(|name| self.owners[name as usize])
            .collect();
        let concepts: Vec<u32> = found
            .iter()
            .filter_map(
                |owner| if let Owner::Concept(concept) = owner { Some(*concept) } else { None },
            )
            .collect();
        let class = match (found.len(), found.first()) {
            (1, Some(Owner::Class(class))) => Some(*class),
            _ => None,
        };
        Mentions { concepts, class }
    }
}

/// Returns the class list and the added classes. Rows get the list's spelling of their class.
fn class_list(
    table: &mut [Wanted],
    given: Option<&Classes>,
    file: &str,
) -> Result<(Classes, Vec<String>), Error> {
    let mut list: Vec<String> = given.map(|classes| classes.names().to_vec()).unwrap_or_default();
    let mut known: HashMap<String, String> =
        list.iter().map(|name| (normal_name(name).into_owned(), name.clone())).collect();
    // A class that the list spells in another way than the table is the same class; a list with
    // both spellings has two classes.
    let mut spelled: HashMap<String, Option<String>> = HashMap::new();
    for name in &list {
        spelled
            .entry(words(name))
            .and_modify(|same| *same = None)
            .or_insert_with(|| Some(name.clone()));
    }
    let mut added = Vec::new();
    for wanted in table {
        let class = wanted.row.class.as_deref().unwrap_or(&wanted.row.name);
        if let Some(same) = known.get(&*normal_name(class)) {
            if same != class {
                wanted.row.class = Some(same.clone());
            }
            continue;
        }
        if let Some(Some(same)) = spelled.get(&words(class)) {
            wanted.row.class = Some(same.clone());
            continue;
        }
        known.insert(normal_name(class).into_owned(), class.to_owned());
        added.push(class.to_owned());
        list.push(class.to_owned());
    }
    let shown = given.map_or_else(|| file.to_owned(), |classes| classes.file().to_owned());
    let classes =
        Classes::parse(list.join("\n").as_bytes(), &shown).map_err(|error| match given {
            None => Error::new(
                file,
                "names a single class; give the names of what must stay too, with --classes",
            ),
            Some(_) => error,
        })?;
    Ok((classes, added))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::table;

    fn names(rows: &str, classes: Option<&str>) -> Result<Names, String> {
        let table =
            table::parse(format!("id,name,aliases,class\n{rows}").as_bytes(), "t.csv").unwrap();
        let given = classes.map(|text| Classes::parse(text.as_bytes(), "classes.txt").unwrap());
        Names::new(table, given.as_ref(), "t.csv").map_err(|problems| {
            problems.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
        })
    }

    #[test]
    fn a_caption_mentions_concepts_by_any_name_and_classes_by_theirs() {
        let names =
            names("b-ny,New York,NYC|Big Apple,\na-york,York,,\n", Some("tram\nYork\ncat\n"))
                .unwrap();
        let find = |caption: &str| {
            let found = names.find(caption);
            let ids: Vec<&str> =
                found.concepts.iter().map(|&c| names.concepts[c as usize].id.as_str()).collect();
            (ids.join(" "), found.class.map(|class| names.classes.names()[class as usize].clone()))
        };
        assert_eq!(find("a tram in the big apple"), ("b-ny".into(), None));
        assert_eq!(find("from York to New_York.jpg"), ("a-york b-ny".into(), None));
        assert_eq!(find("NEW YORK"), ("b-ny".into(), None));
        assert_eq!(find("a TRAM, another tram"), (String::new(), Some("tram".into())));
        assert_eq!(find("cat in a tram"), (String::new(), None));
        assert_eq!(find("nothing"), (String::new(), None));
        assert_eq!(names.added, ["New York"]);
    }

    #[test]
    fn a_class_with_a_longer_name_is_not_the_concept() {
        let names = names("apple,apple,,\n", Some("apple\npineapple juice\napple pie\n")).unwrap();
        assert_eq!(names.find("hot apple pie"), Mentions { concepts: vec![], class: Some(2) });
        assert_eq!(names.find("an apple beside an apple pie").concepts, [0]);
    }

    #[test]
    fn classes_are_found_in_the_list_however_they_are_spelled() {
        let names = names("p,pizza,,\nx,rocket,,Space Rocket\n", Some("Pizza\ncat\n")).unwrap();
        assert_eq!(names.classes.names(), ["Pizza", "cat", "Space Rocket"]);
        assert_eq!(
            names.concepts.iter().map(|c| c.class.as_str()).collect::<Vec<_>>(),
            ["Pizza", "Space Rocket"]
        );
        // The class is also a name of a concept.
        assert_eq!(names.find("a space rocket").concepts, [1]);
    }

    #[test]
    fn names_are_found_in_any_unicode_form_and_as_html() {
        let names = names(
            "c,café,,\na,AT&T,,\nm,monkey face,,\n",
            Some("cafe\u{301}\nCAFÉ\nmonkey\nface\n"),
        )
        .unwrap();
        // The class has the list's spelling.
        assert_eq!(names.classes.names()[names.concepts[1].class_index as usize], "cafe\u{301}");
        assert_eq!(names.added, ["AT&T", "monkey face"]);
        for text in ["a cafe\u{301}", "Café", "caf&eacute;"] {
            assert_eq!(names.find(text).concepts, [1], "{text}");
        }
        assert_eq!(names.find("the AT&amp;T logo").concepts, [0]);
        assert_eq!(names.find("a monkey, face").concepts, [0u32; 0]);
        assert_eq!(names.find("a monkey face").concepts, [2]);
    }

    #[test]
    fn names_that_belong_to_two_or_cannot_be_found_are_refused() {
        for (rows, message) in [
            (
                "a,cat,,\nb,dog,CAT,",
                "t.csv:3: concept `b` has the name `CAT`, which concept `a` on line 2 has too",
            ),
            (
                "b,Straße,,\na,STRASSE,,",
                "t.csv:2: concept `b` has the name `Straße`, which concept `a` on line 3",
            ),
            ("a,cat,🐈,\nb,dog,,", "t.csv:2: concept `a`: `🐈` has neither letter nor digit"),
            ("../a,cat,,\nb,dog,,", "t.csv:2: id `../a`"),
            ("a,cat,,\na,dog,,", "t.csv:3: id `a` is already on line 2"),
            ("a,cat,,x\nb,dog,,x\nc,bird,,", "t.csv:3: concept `b` has class `x`"),
            ("a,cat,,", "t.csv: names a single class"),
        ] {
            let error = names(rows, None).unwrap_err();
            assert!(error.starts_with(message), "{error}\n  expected {message}");
        }
    }
}
