//! The order of the code: no cycle of files in any crate, and in the coordinator no use of a layer
//! above the file's own.
//!
//! Imports are read from the sources: `use` declarations and paths that begin with `crate`,
//! `super`, `self` or the name of a child module. Unit tests are left out, because they may use any
//! module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module's path below its crate; empty for the crate's root.
type Module = Vec<String>;

/// The layers (top-level modules) of the coordinator, from top to bottom. A file uses its own layer
/// and layers below it.
const LAYERS: &[&str] = &[
    "main",
    "cli",
    "serve",
    "curate",
    "inspect",
    "run",
    "release",
    "present",
    "exec",
    "intake",
    "downstream",
    "attest",
    "compose",
    "probe",
    "lease",
    "progress",
    "layout",
    "retry",
    "failure",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// Returns the sources of a crate by module, without their unit tests.
fn sources(root: &Path) -> BTreeMap<Module, String> {
    let (mut sources, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root).unwrap().with_extension("");
                let mut module: Module =
                    below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                    module.pop();
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let end = unit_tests(&text).unwrap_or(text.len());
                let is_test = module.last().is_some_and(|last| last == "tests");
                if !is_test {
                    sources.insert(module, text[..end].to_owned());
                }
            }
        }
    }
    sources
}

/// Returns where the module of unit tests begins, whatever its visibility.
fn unit_tests(text: &str) -> Option<usize> {
    text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at).find(|at| {
        let declared = text[at + 1..].lines().nth(1).unwrap_or_default();
        declared.trim_end_matches([' ', '{', ';']).ends_with("mod tests")
    })
}

/// Returns the source without comments and string literals.
fn code(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['/', '"', '\'']) {
        code += &rest[..at];
        rest = &rest[at..];
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(literal) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = literal.find(|c| match c {
                '\\' => {
                    escaped = !escaped;
                    false
                }
                '"' if !escaped => true,
                _ => {
                    escaped = false;
                    false
                }
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            code += &rest[..1];
            1
        };
        rest = &rest[skipped..];
    }
    code + rest
}

/// Expands the paths of a `use` tree, without `as` names.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    match tree.split_once('{') {
        None => {
            paths.push(format!("{prefix}{}", tree.split(" as ").next().unwrap_or_default().trim()))
        }
        Some((head, body)) => {
            let (prefix, body) =
                (format!("{prefix}{}", head.trim()), body.trim().strip_suffix('}').unwrap_or(body));
            let (mut depth, mut start) = (0, 0);
            for (at, c) in body.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        expand(&prefix, &body[start..at], paths);
                        start = at + 1;
                    }
                    _ => {}
                }
            }
            if !body[start..].trim().is_empty() {
                expand(&prefix, &body[start..], paths);
            }
        }
    }
}

/// Returns every path in a source: those of its `use` declarations, and those in its code.
fn paths(text: &str) -> Vec<String> {
    let (code, mut paths) = (code(text), Vec::new());
    let mut rest = code.as_str();
    while let Some(at) = rest.find("use ") {
        let begins = rest[..at].chars().next_back().is_none_or(|c| c.is_whitespace());
        let tree = &rest[at + 4..];
        let end = tree.find(';').unwrap_or(tree.len());
        if begins {
            expand("", &tree[..end], &mut paths);
        }
        rest = &tree[if begins { end } else { 0 }..];
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    // A path that ends in colons is the head of a `use` tree, which is expanded above.
    let written =
        code.split(|c| !is_path(c)).filter(|path| path.contains("::") && !path.ends_with(':'));
    paths.extend(written.map(|path| path.trim_matches(':').to_owned()));
    paths
}

/// Returns the modules that each module uses.
fn uses(sources: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let of = |(module, text): (&Module, &String)| {
        let mut used = BTreeSet::new();
        for path in paths(text) {
            let parts: Vec<&str> = path.split("::").collect();
            let mut at: Module = match parts[0] {
                "crate" => Vec::new(),
                "self" => module.clone(),
                "super" => {
                    let up = parts.iter().take_while(|part| **part == "super").count();
                    module[..module.len().saturating_sub(up)].to_vec()
                }
                child
                    if sources.contains_key(&[module.as_slice(), &[child.to_owned()]].concat()) =>
                {
                    [module.as_slice(), &[child.to_owned()]].concat()
                }
                _ => continue,
            };
            let tail = parts.iter().skip_while(|part| ["crate", "self", "super"].contains(part));
            let tail: Vec<&&str> = if ["crate", "self", "super"].contains(&parts[0]) {
                tail.collect()
            } else {
                parts[1..].iter().collect()
            };
            for part in tail {
                at.push((**part).to_owned());
                if !sources.contains_key(&at) {
                    at.pop();
                    break;
                }
            }
            if at != *module {
                used.insert(at);
            }
        }
        (module.clone(), used)
    };
    sources.iter().map(of).collect()
}

/// Returns a cycle of modules, if there is one.
fn circle(uses: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<String>> {
    // A module that uses no remaining module is on no cycle.
    let mut left: BTreeMap<&Module, BTreeSet<&Module>> =
        uses.iter().map(|(module, used)| (module, used.iter().collect())).collect();
    loop {
        let done: Vec<&Module> = left
            .iter()
            .filter(|(_, used)| !used.iter().any(|used| left.contains_key(*used)))
            .map(|(m, _)| *m)
            .collect();
        if done.is_empty() {
            break;
        }
        for module in done {
            left.remove(module);
        }
    }
    let mut module = *left.keys().next()?;
    let mut walked = vec![module];
    loop {
        module = left[module].iter().find(|used| left.contains_key(**used))?;
        if let Some(start) = walked.iter().position(|walked| *walked == module) {
            return Some(
                walked[start..]
                    .iter()
                    .map(|module| format!("crate::{}", module.join("::")))
                    .collect(),
            );
        }
        walked.push(module);
    }
}

/// Returns the uses of a layer above the file's own.
fn upward(uses: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<String> {
    let layer = |module: &Module| {
        let name = module.first().map_or("main", String::as_str);
        LAYERS
            .iter()
            .position(|layer| *layer == name)
            .unwrap_or_else(|| panic!("{name} is in no layer: add it to LAYERS"))
    };
    let pairs = uses
        .iter()
        .filter(|(module, _)| !module.is_empty())
        .flat_map(|(module, used)| used.iter().map(move |used| (module, used)));
    pairs
        .filter(|(module, used)| !used.is_empty() && layer(used) < layer(module))
        .map(|(module, used)| format!("{} uses {}", module.join("::"), used.join("::")))
        .collect()
}

fn crates() -> Vec<PathBuf> {
    let at = |path: &str| repository().join(path);
    let crates = ["shared/src", "worker/src", "coordinator/src"].map(at);
    let parts =
        std::fs::read_dir(at("shared")).unwrap().map(|entry| entry.unwrap().path().join("src"));
    crates.into_iter().chain(parts.filter(|path| path.join("lib.rs").is_file())).collect()
}

#[test]
fn no_files_use_each_other_in_a_cycle() {
    for root in crates() {
        let found = circle(&uses(&sources(&root)));
        assert!(found.is_none(), "{}: {}", root.display(), found.unwrap().join(" -> "));
    }
}

#[test]
fn no_layer_of_the_coordinator_uses_a_layer_above_it() {
    let found = upward(&uses(&sources(&repository().join("coordinator/src"))));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn one_upward_use_is_found() {
    let sources = sources(&repository().join("coordinator/src"));
    let with = |file: &str, line: &str| {
        let mut sources = sources.clone();
        let module: Module = file.split("::").map(str::to_owned).collect();
        let text = sources.get_mut(&module).unwrap_or_else(|| panic!("{file} is no file"));
        *text = format!("{line}\n{text}");
        uses(&sources)
    };
    for line in [
        "use crate::{cli, retry};",
        "use crate::cli;",
        "use super::super::cli as c;",
        "fn f() { crate::cli::main(); }",
    ] {
        assert!(
            upward(&with("compose::apply", line))
                .iter()
                .any(|found| found == "compose::apply uses cli"),
            "{line}"
        );
    }
    for line in ["// use crate::cli;", "const A: &str = \"crate::cli\";"] {
        assert!(upward(&with("compose::apply", line)).is_empty(), "{line}");
    }
    let circle =
        circle(&with("compose::merge", "use super::apply::Change;")).expect("apply uses merge");
    assert!(
        circle.contains(&"crate::compose::merge".to_owned())
            && circle.contains(&"crate::compose::apply".to_owned()),
        "{circle:?}"
    );
}
