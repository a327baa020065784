//! Whose drawings and words the demo is made of, under which licences.

use std::path::Path;

use anyhow::Result;

use crate::data_icons::{FAMILIES, IconSet, package_version};
use crate::data_output::csv_line;
use crate::data_render::SIDE;

/// One source, as both files list it.
struct Source {
    family: String,
    package: String,
    version: String,
    title: String,
    author: String,
    licence: String,
    spdx: String,
    licence_url: String,
    source_url: String,
    role: String,
}

/// `licences.csv` and `LICENCES.md`.
pub(crate) fn files(npm: &Path, sets: &[IconSet]) -> Result<(String, String)> {
    let sources = sources(npm, sets)?;
    let mut csv = csv_line(&[
        "family",
        "package",
        "version",
        "author",
        "licence",
        "licence_url",
        "source_url",
        "role",
    ]);
    for source in &sources {
        csv += &csv_line(&[
            &source.family,
            &source.package,
            &source.version,
            &source.author,
            &source.spdx,
            &source.licence_url,
            &source.source_url,
            &source.role,
        ]);
    }
    Ok((csv, text(&sources)))
}

fn sources(npm: &Path, sets: &[IconSet]) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = FAMILIES
        .iter()
        .zip(sets)
        .map(|(family, set)| {
            let info = &set.info;
            let drawn =
                info.version.as_ref().map_or(String::new(), |version| format!(" {version}"));
            Source {
                family: family.name.to_owned(),
                package: format!("@iconify-json/{}", family.name),
                version: set.package_version.clone(),
                title: format!("{}{drawn}", info.name),
                author: info.author.name.clone(),
                licence: info.license.title.clone(),
                spdx: info.license.spdx.clone(),
                licence_url: info.license.url.clone(),
                source_url: info.author.url.clone(),
                role: family.role.word().to_owned(),
            }
        })
        .collect();
    for (package, title, author, role) in [
        (
            "unicode-emoji-json",
            "Emoji names and groups (Unicode data)",
            "Mu-An Chiou; data: Unicode, Inc.",
            "names",
        ),
        ("emojilib", "Emoji keywords", "Mu-An Chiou", "captions"),
    ] {
        let source_url = format!("https://github.com/muan/{package}");
        sources.push(Source {
            family: String::new(),
            package: package.to_owned(),
            version: package_version(&npm.join(package))?,
            title: title.to_owned(),
            author: author.to_owned(),
            licence: "MIT".to_owned(),
            spdx: "MIT".to_owned(),
            licence_url: format!("{source_url}/blob/main/LICENSE"),
            source_url,
            role: role.to_owned(),
        });
    }
    Ok(sources)
}

fn text(sources: &[Source]) -> String {
    let mut text = format!(
        "# Licences of the emoji demo\n\n\
         The drawings in these shards are the work of the people named here. Each was changed in one way: the vector \
         drawing was rendered at {SIDE}x{SIDE} pixels on white and stored without loss. A shard member's key ends in the \
         family its drawing is from, so every drawing can be traced to a line below; a drawing stays under its family's \
         licence wherever it is copied. The two CC BY-SA families ask that adapted drawings be shared under that same \
         licence, and those members of the shards are.\n\n\
         Nothing here is endorsed by the authors. Class names and groups come from Unicode's emoji data, caption \
         keywords from emojilib.\n"
    );
    for source in sources {
        let heading = if source.family.is_empty() { &source.package } else { &source.family };
        text += &format!("\n## {heading}\n\n");
        text += &format!("\"{}\" by {}, <{}>, ", source.title, source.author, source.source_url);
        text += &format!(
            "licensed under [{}]({}) (SPDX: {}).\n",
            source.licence, source.licence_url, source.spdx
        );
        text += &format!(
            "Taken from npm package `{}` {}; used for {}.\n",
            source.package,
            source.version,
            purpose(&source.role)
        );
    }
    text += "\nUnicode data: Copyright Unicode, Inc., under the Unicode License v3, <https://www.unicode.org/license.txt>.\n";
    text
}

fn purpose(role: &str) -> &str {
    match role {
        "train" => "training, forget and retain shards",
        "validation" => "`validation.tar`",
        "test" => "`test.tar`",
        "names" => "class names and groups",
        _ => "captions",
    }
}
