//! Reading manifests.

use std::path::Path;

use super::check;
use super::error::{Error, at_line};
use super::lines::{line_at, line_of};
use super::sections::Manifest;
use crate::json;

/// Largest manifest, bytes.
const MAX_BYTES: u64 = 8 << 20;
impl Manifest {
    /// Reads a manifest, TOML (`.toml`) or JSON (`.json`), and checks every value in it. The files
    /// that it names are not opened.
    ///
    /// # Errors
    /// [`Error`] with file and line.
    ///
    /// # Example
    /// ```
    /// use lethe_shared::manifest::Manifest;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let file = folder.path().join("manifest.toml");
    /// std::fs::write(
    ///     &file,
    ///     r#"
    /// version = 1
    /// name = "two-concepts"
    ///
    /// [model]
    /// uri = "model"
    ///
    /// [data]
    /// retain = ["retain-*.tar"]
    /// classes = "classes.txt"
    ///
    /// [concepts]
    /// table = "concepts.csv"
    /// "#,
    /// )?;
    /// assert_eq!(Manifest::read(&file)?.name, "two-concepts");
    ///
    /// std::fs::write(&file, "version = 1\nname = \"two\"\nnames = 2\n")?;
    /// let error = Manifest::read(&file).unwrap_err().to_string();
    /// assert!(error.contains("manifest.toml:3: unknown field `names`"), "{error}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let io =
            |error: std::io::Error| Error::new(shown.clone(), format!("cannot be read: {error}"));
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_BYTES {
            return Err(Error::new(
                shown,
                format!(
                    "has {size} bytes; a manifest has at most 8 MiB, put concepts into a table"
                ),
            ));
        }
        let text = String::from_utf8(std::fs::read(path).map_err(io)?)
            .map_err(|_| Error::new(shown.clone(), "is not UTF-8 text"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
        let absolute = std::path::absolute(path).map_err(io)?;
        let mut manifest = match path.extension().and_then(|end| end.to_str()) {
            Some("toml") => toml::from_str::<Self>(&text).map_err(|error| {
                let line = error.span().map(|span| line_at(&text, span.start));
                at_line(&shown, line, error.message())
            })?,
            Some("json") => json::parse::<Self>(text.as_bytes())
                .map_err(|error| at_line(&shown, Some(error.line()), &error.to_string()))?,
            _ => return Err(Error::new(shown, "the name of a manifest ends in .toml or .json")),
        };
        manifest.file = absolute;
        manifest.check(&text)?;
        Ok(manifest)
    }

    /// Parses the JSON form of a manifest and checks every value in it. `shown` is its file name:
    /// messages contain it, and relative addresses are resolved from its folder.
    ///
    /// # Errors
    /// [`Error`] with line.
    pub fn from_json(text: &str, shown: &Path) -> Result<Self, Error> {
        let name = shown.display().to_string();
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::new(
                name,
                format!(
                    "has {} bytes; a manifest has at most 8 MiB, put concepts into a table",
                    text.len()
                ),
            ));
        }
        let mut manifest: Self = json::parse(text.as_bytes())
            .map_err(|error| at_line(&name, Some(error.line()), &error.to_string()))?;
        shown.clone_into(&mut manifest.file);
        manifest.check(text)?;
        Ok(manifest)
    }

    /// Checks every value; the error names the line of the first wrong one.
    fn check(&self, text: &str) -> Result<(), Error> {
        let shown = self.file.display().to_string();
        check::all(self).map_err(|check::Wrong { field, problem }| {
            at_line(&shown, line_of(text, field), &format!("{field} {problem}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CompositionSection, PassThrough, Required, TargetKind};
    use super::*;

    const GOOD: &str = r#"
version = 1
name = "emoji-8"

[model]
uri = "model"

[data]
retain = ["retain-*.tar"]
validation = ["validation.tar"]
classes = "classes.txt"

[concepts]
table = "concepts-8.csv"

[method]
batch_size = 64
"#;

    fn read(name: &str, text: &str) -> Result<Manifest, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let strip =
            |error: Error| error.to_string().replace(&format!("{}/", folder.path().display()), "");
        Manifest::read(&path).map_err(strip)
    }

    fn problem(change: (&str, &str)) -> String {
        assert!(GOOD.contains(change.0), "{}", change.0);
        read("m.toml", &GOOD.replace(change.0, change.1)).unwrap_err()
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let from_toml = read("m.toml", GOOD).unwrap();
        assert_eq!((from_toml.method.batch_size, from_toml.method.search_evaluations), (64, 10));
        // The default method follows from the towers.
        let method = |towers: &str| {
            let towers = serde_json::json!({ "towers": towers });
            serde_json::from_value::<CompositionSection>(towers).unwrap().method().name()
        };
        assert_eq!(
            [method("text"), method("vision"), method("both")],
            ["preconditioned", "margins", "margins"]
        );
        assert_eq!(from_toml.release.uri, "store");
        let json = serde_json::to_string(&from_toml).unwrap();
        let from_json = read("m.json", &json).unwrap();
        assert_eq!(serde_json::to_string(&from_json).unwrap(), json);
    }

    #[test]
    fn unknown_fields_are_refused_with_their_line() {
        assert!(
            problem(("batch_size", "batchsize"))
                .starts_with("m.toml:17: unknown field `batchsize`")
        );
        let error = read("m.json", "{\n \"version\": 1,\n \"nam\": 2\n}").unwrap_err();
        assert!(error.starts_with("m.json:3: unknown field `nam`"), "{error}");
    }

    /// As JSON, `nan` would be `null`, and a strength that is absent is 1.
    #[test]
    fn numbers_that_json_cannot_write_are_refused() {
        let list = "list = [{ id = \"a\", name = \"a\", forget = \"a.tar\", strength = nan }]";
        for (change, says) in [
            ("table = \"concepts-8.csv\"\ngroups = { x = inf }", "the number inf"),
            (list, "the number NaN"),
            (&list.replace("strength = nan", "tolerance = -inf"), "the number -inf"),
        ] {
            let error = problem(("table = \"concepts-8.csv\"", change));
            assert!(
                error.starts_with("m.toml:13: concepts hold") && error.contains(says),
                "{error}"
            );
        }
    }

    #[test]
    fn a_key_that_appears_twice_is_refused_in_both_forms() {
        let json = serde_json::to_string(&read("m.toml", GOOD).unwrap()).unwrap();
        let json = json.replace(r#""groups":{}"#, r#""groups":{"x":1,"x":0}"#);
        let error = read("m.json", &json).unwrap_err();
        assert!(error.contains("the key `x` appears twice"), "{error}");
        assert!(
            problem(("table =", "groups = { x = 1, x = 0 }\ntable =")).contains("duplicate key")
        );
    }

    #[test]
    fn messages_quote_little_of_a_manifest() {
        let key = format!("\\u001b{}", "x".repeat(1 << 20));
        let error = read("m.json", &format!("{{\"{key}\": 1}}")).unwrap_err();
        assert!(
            error.len() < 8192 && error.contains(r"unknown field `\u{1b}xxx"),
            "{}",
            error.len()
        );
    }

    #[test]
    fn wrong_values_are_refused_with_their_line() {
        for (change, message) in [
            (("version = 1", "version = 2"), "m.toml:2: version is 2"),
            (("name = \"emoji-8\"", "name = \"../x\""), "m.toml:3: name is `../x`"),
            (("uri = \"model\"", "uri = \"\""), "m.toml:6: model.uri is empty"),
            (
                ("retain = [\"retain-*.tar\"]", "retain = []"),
                "m.toml:9: data.retain names no shard",
            ),
            (("batch_size = 64", "batch_size = 1"), "m.toml:17: method.batch_size is 1"),
            (
                ("batch_size = 64", "search_evaluations = 0"),
                "m.toml:17: method.search_evaluations is 0",
            ),
            (
                ("batch_size = 64", "search_tolerance = nan"),
                "m.toml:17: method.search_tolerance is NaN",
            ),
            (
                ("batch_size = 64", "stop = \"fa2\""),
                "m.toml:17: `fa2`, expected fa1, fa5, or rank S",
            ),
            (("batch_size = 64", "batch_size = \"x\""), "m.toml:17: invalid type"),
            (("batch_size = 64", "[policy]\nrequired = 1.5"), "m.toml:18: policy.required is 1.5"),
            (
                ("batch_size = 64", "[gates]\nsigned_by = \"k.pub\""),
                "m.toml:18: gates.signed_by belongs in the file given by --gates",
            ),
            (
                ("batch_size = 64", "[release]\nnames = \"hashed\""),
                "release.salt must name a file if and only if",
            ),
            (
                ("batch_size = 64", "[release]\nsalt = \"x\""),
                "m.toml:18: release.salt must name a file if and only if",
            ),
            (
                ("batch_size = 64", "[release]\nlicense = \"a: b\""),
                "m.toml:18: release.license is `a: b`",
            ),
            (
                ("batch_size = 64", "[release]\nbase_model = \"a/b/c\""),
                "m.toml:18: release.base_model is `a/b/c`",
            ),
            (
                ("batch_size = 64", "[execution]\ndevice = \"tpu\""),
                "m.toml:18: execution.device is `tpu`",
            ),
            (
                ("[concepts]\ntable = \"concepts-8.csv\"", "[concepts]"),
                "must have a table, or a list",
            ),
            (
                ("classes = ", "template = \"a photo\"\nclasses = "),
                "m.toml:11: data.template is `a photo`",
            ),
            (("uri = \"model\"", "uri = model"), "m.toml:6: "),
        ] {
            let error = problem(change);
            assert!(error.contains(message), "{error}\n  expected {message}");
        }
    }

    #[test]
    fn a_policy_is_a_word_a_share_or_names() {
        for (text, policy) in [
            ("\"all\"", Required::All(super::super::All::All)),
            ("0.9", Required::Share(0.9)),
            ("[\"a\", \"b\"]", Required::These(vec!["a".into(), "b".into()])),
        ] {
            let manifest =
                read("m.toml", &format!("{GOOD}\n[policy]\nrequired = {text}\n")).unwrap();
            assert_eq!(manifest.policy.required, policy);
        }
        // A run's name holds a digest of these sections: it must not change for manifests that use
        // nothing new.
        let manifest = read("m.toml", GOOD).unwrap();
        let written = serde_json::to_string(&(&manifest.policy, &manifest.gates)).unwrap();
        assert_eq!(written, r#"[{"required":"all"},{}]"#);
        let manifest =
            read("m.toml", &format!("{GOOD}\n[policy]\nreceipts_for_unknown = true\n")).unwrap();
        assert!(
            manifest.policy.receipts_for_unknown
                && manifest.policy.required == Required::All(super::super::All::All)
        );
    }

    #[test]
    fn targets_are_named_once_and_have_a_place() {
        let target = |lines: &str| {
            read(
                "m.toml",
                &format!(
                    "{GOOD}\n[[release.target]]\nname = \"sd15\"\nkind = \"stable-diffusion\"\n{lines}\n"
                ),
            )
        };
        let manifest = target("uri = \"sd\"").unwrap();
        let only = &manifest.release.target[0];
        assert_eq!(
            (only.kind, only.pass_through, only.tolerance),
            (TargetKind::StableDiffusion, PassThrough::Copy, None)
        );
        for (lines, says) in [
            ("uri = \"\"", "m.toml:19: release.target `sd15` has no uri"),
            ("uri = \"sd\"\ntolerance = 0.9", "`sd15` has tolerance 0.9"),
            (
                "uri = \"sd\"\n[[release.target]]\nname = \"sd15\"\nkind = \"llava\"\nuri = \"x\"",
                "has two targets named `sd15`",
            ),
            (
                "uri = \"sd\"\n[[release.target]]\nname = \"../x\"\nkind = \"llava\"\nuri = \"x\"",
                "has a target named `../x`",
            ),
            (
                "uri = \"sd\"\n[[release.target]]\nname = \"x\"\nkind = \"unet\"\nuri = \"x\"",
                "unknown variant `unet`",
            ),
            ("uri = \"sd\"\npass_through = \"link\"", "unknown variant `link`"),
        ] {
            let error = target(lines).unwrap_err();
            assert!(error.contains(says), "{error}\n  expected {says}");
        }
    }

    #[test]
    fn files_that_are_no_manifest_are_named() {
        assert!(
            Manifest::read(Path::new("/nowhere/m.toml"))
                .unwrap_err()
                .to_string()
                .contains("/nowhere/m.toml: cannot be read")
        );
        assert!(read("m.yaml", "").unwrap_err().contains("ends in .toml or .json"));
    }

    #[test]
    fn the_schema_names_every_section() {
        let schema = Manifest::schema();
        for section in [
            "version",
            "name",
            "model",
            "data",
            "concepts",
            "method",
            "composition",
            "policy",
            "execution",
            "release",
        ] {
            assert!(schema["properties"].get(section).is_some(), "{section}");
        }
        assert!(schema["properties"].get("file").is_none());
    }
}
