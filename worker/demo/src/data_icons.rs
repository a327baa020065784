//! The drawn families: which npm package holds each, and how an icon name or alias becomes an SVG.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What a family's drawings are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Training, forget and retain shards.
    Train,
    /// `validation.tar` only.
    Validation,
    /// `test.tar` only.
    Test,
}

impl Role {
    /// The word written into `licences.csv`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Train => "train",
            Role::Validation => "validation",
            Role::Test => "test",
        }
    }
}

/// One family of drawings.
pub(crate) struct Family {
    /// Package under `@iconify-json`; also the family's name in every output.
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// How a caption describes the way the family is drawn.
    pub(crate) style: &'static str,
    /// Whether the package maps code points to icons; the others are matched by name.
    pub(crate) by_code_point: bool,
}

/// Every family, in the order of all outputs.
///
/// The held-out families are the two without a sibling: `noto` and `noto-v1` (and the two
/// `emojione`) share drawings, so holding out one of a pair would measure memory, not
/// generalisation.
pub(crate) const FAMILIES: [Family; 8] = [
    Family { name: "noto", role: Role::Train, style: "smooth shaded emoji", by_code_point: true },
    Family { name: "noto-v1", role: Role::Train, style: "round blob emoji", by_code_point: false },
    Family {
        name: "openmoji",
        role: Role::Train,
        style: "thin outline emoji",
        by_code_point: true,
    },
    Family {
        name: "emojione",
        role: Role::Train,
        style: "flat shaded emoji",
        by_code_point: false,
    },
    Family { name: "emojione-v1", role: Role::Train, style: "glossy emoji", by_code_point: false },
    Family { name: "fxemoji", role: Role::Train, style: "soft flat emoji", by_code_point: false },
    Family {
        name: "fluent-emoji-flat",
        role: Role::Validation,
        style: "fluent flat emoji",
        by_code_point: true,
    },
    Family { name: "twemoji", role: Role::Test, style: "plain flat emoji", by_code_point: true },
];

#[derive(Deserialize)]
struct Icon {
    body: String,
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

#[derive(Deserialize)]
struct Alias {
    parent: String,
    #[serde(default, rename = "hFlip")]
    flip_x: bool,
    #[serde(default, rename = "vFlip")]
    flip_y: bool,
    #[serde(default)]
    rotate: u32,
}

#[derive(Deserialize)]
struct Icons {
    icons: HashMap<String, Icon>,
    #[serde(default)]
    aliases: HashMap<String, Alias>,
    width: Option<f64>,
    height: Option<f64>,
}

/// The fields of a package's `info.json` that name its author and licence.
#[derive(Deserialize)]
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) author: Person,
    pub(crate) license: Licence,
    /// Version of the drawings where it differs from the package's.
    pub(crate) version: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Person {
    pub(crate) name: String,
    pub(crate) url: String,
}

#[derive(Deserialize)]
pub(crate) struct Licence {
    pub(crate) title: String,
    pub(crate) spdx: String,
    pub(crate) url: String,
}

#[derive(Deserialize)]
struct Package {
    version: String,
}

/// One package, read.
pub(crate) struct IconSet {
    icons: Icons,
    /// Alias names by the icon they stand for, sorted.
    children: HashMap<String, Vec<String>>,
    /// Code points (`1f469-200d-1f33e`, without variation selectors) to icon or alias name; empty
    /// for some packages.
    pub(crate) chars: HashMap<String, String>,
    pub(crate) info: Info,
    /// Version of the npm package.
    pub(crate) package_version: String,
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("read {} (npm install the packages first)", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

/// The version in an npm package's `package.json`.
pub(crate) fn package_version(package: &Path) -> Result<String> {
    Ok(read_json::<Package>(&package.join("package.json"))?.version)
}

impl IconSet {
    /// Reads a package of `@iconify-json`.
    pub(crate) fn read(npm: &Path, name: &str) -> Result<Self> {
        let package = npm.join("@iconify-json").join(name);
        let icons: Icons = read_json(&package.join("icons.json"))?;
        let mut children: HashMap<String, Vec<String>> = HashMap::new();
        for (alias, of) in &icons.aliases {
            children.entry(of.parent.clone()).or_default().push(alias.clone());
        }
        children.values_mut().for_each(|aliases| aliases.sort());
        let chars: HashMap<String, String> = read_json(&package.join("chars.json"))?;
        let info = read_json(&package.join("info.json"))?;
        Ok(Self { icons, children, chars, info, package_version: package_version(&package)? })
    }

    #[cfg(test)]
    pub(crate) fn of_icons(json: &str) -> Self {
        let icons = serde_json::from_str(json).unwrap();
        let person = Person { name: String::new(), url: String::new() };
        let license = Licence { title: String::new(), spdx: String::new(), url: String::new() };
        let info = Info { name: String::new(), author: person, license, version: None };
        Self {
            icons,
            children: HashMap::new(),
            chars: HashMap::new(),
            info,
            package_version: String::new(),
        }
    }

    /// Every name an icon can be asked for by, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.icons.icons.keys().chain(self.icons.aliases.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The aliases that stand for `name`.
    pub(crate) fn aliases_of(&self, name: &str) -> &[String] {
        self.children.get(name).map_or(&[], Vec::as_slice)
    }

    /// Follows aliases to the icon that is drawn, with the flips met on the way; two names with one
    /// result are one drawing.
    pub(crate) fn resolve(&self, name: &str) -> Result<Resolved> {
        let mut resolved = Resolved { icon: name.to_owned(), flip_x: false, flip_y: false };
        // An alias of an alias is legal; a chain longer than the set has aliases is a loop.
        for _ in 0..=self.icons.aliases.len() {
            if self.icons.icons.contains_key(&resolved.icon) {
                return Ok(resolved);
            }
            let alias = self
                .icons
                .aliases
                .get(&resolved.icon)
                .with_context(|| format!("no icon `{}`", resolved.icon))?;
            ensure!(
                alias.rotate == 0,
                "alias `{}` is rotated, which no emoji set does",
                resolved.icon
            );
            resolved.flip_x ^= alias.flip_x;
            resolved.flip_y ^= alias.flip_y;
            resolved.icon.clone_from(&alias.parent);
        }
        bail!("aliases of `{name}` form a loop")
    }

    /// The SVG document of a resolved icon.
    pub(crate) fn svg(&self, resolved: &Resolved) -> Result<String> {
        let icon = self
            .icons
            .icons
            .get(&resolved.icon)
            .with_context(|| format!("no icon `{}`", resolved.icon))?;
        // Iconify's own default is 16 units.
        let width = icon.width.or(self.icons.width).unwrap_or(16.0);
        let height = icon.height.or(self.icons.height).unwrap_or(16.0);
        let (left, top) = (icon.left.unwrap_or(0.0), icon.top.unwrap_or(0.0));
        let (scale_x, shift_x) = if resolved.flip_x { (-1, 2.0 * left + width) } else { (1, 0.0) };
        let (scale_y, shift_y) = if resolved.flip_y { (-1, 2.0 * top + height) } else { (1, 0.0) };
        let body = icon.body.replace("currentColor", "#000");
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"{left} {top} {width} {height}\"><g transform=\"matrix({scale_x} 0 0 {scale_y} {shift_x} {shift_y})\">{body}</g></svg>"
        ))
    }
}

/// An icon after its aliases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resolved {
    pub(crate) icon: String,
    flip_x: bool,
    flip_y: bool,
}
