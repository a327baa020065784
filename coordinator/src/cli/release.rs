//! The command `lethe release`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use lethe_operations::log::say;
use lethe_shared::address::Address;
use lethe_shared::exit;
use lethe_shared::record::Amendment;
use lethe_shared::record::verdict::Verdict;
use lethe_store::Store;
use serde::Serialize;
use serde_json::json;

use super::common::print;
use super::find;
use crate::attest::key::SigningKey;
use crate::attest::names::{MAX_SALT, Salt};
use crate::compose::gate_rules;
use crate::failure::Failure;
use crate::lease::fence::Fence;
use crate::present::card;
use crate::progress::human_bytes;
use crate::release::channels;
use crate::release::export::{Exported, export};
use crate::release::leftovers;
use crate::release::lookup::{self, Wanted};
use crate::release::publish::{self, Published};
use crate::release::verify::verify;
use crate::release::{evaluation, gates, read, signing};

#[derive(Debug, Args)]
pub(super) struct Release {
    #[command(subcommand)]
    command: Command,
    /// The store that holds the releases; without this option LETHE_STORE, or else ./store.
    #[arg(long, global = true, value_name = "ADDRESS")]
    store: Option<String>,
    /// Print one JSON object on stdout as the last line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List releases and the channels that point to them.
    List {
        /// Only releases of this name.
        name: Option<String>,
    },
    /// Show one release: NAME, NAME:NUMBER or NAME@CHANNEL.
    Show {
        /// The release; a name alone means the one that `latest` points to.
        release: Wanted,
        /// Print its address and nothing else.
        #[arg(long)]
        address: bool,
    },
    /// Point a channel to a release that meets its gates. Checks the record and the signatures that
    /// gates require; `lethe verify` checks every file.
    Promote {
        /// The release: NAME:NUMBER or NAME@CHANNEL.
        release: Wanted,
        /// The channel, as in `production`.
        channel: String,
        /// Additional gates that it has to pass: a file with a `[gates]` section.
        #[arg(long, value_name = "FILE")]
        gates: Option<PathBuf>,
    },
    /// Verify a release and sign it with a private key. OpenSSF's `model_signing` can verify the
    /// signature.
    Sign {
        /// The release: NAME:NUMBER or NAME@CHANNEL.
        release: Wanted,
        /// The private key: a PEM file, elliptic curve P-256, P-384 or P-521.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Print the receipt of one removal, or the statement that a concept is not removed or was not
    /// measured. It is signed if the release is.
    Receipt {
        /// The release: NAME:NUMBER or NAME@CHANNEL.
        release: Wanted,
        /// The concept's id in the release.
        concept: String,
        /// The salt, if names are hashed; the concept is then given by its id in the manifest.
        #[arg(long, value_name = "FILE")]
        salt: Option<PathBuf>,
    },
    /// Point a channel back to the previous release.
    Rollback {
        /// The name.
        name: String,
        /// The channel.
        channel: String,
    },
    /// Lay a release out as a folder that a model hub takes as a repository: the model card with
    /// its metadata, weights, configuration, record and signatures, and .gitattributes. `lethe
    /// verify` accepts the folder, and the repository that it becomes.
    Export {
        /// The release: NAME:NUMBER or NAME@CHANNEL.
        release: Wanted,
        /// A new or empty folder; it is whole or absent. Upload it with `hf upload ORG/NAME FOLDER`.
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// Remove leftovers of publishes that never finished. Releases stay.
    Gc {
        /// Only releases of this name.
        name: Option<String>,
        /// Only show what would be removed.
        #[arg(long)]
        dry_run: bool,
        /// Keep leftovers written within these hours, which may belong to a publish in progress.
        #[arg(long, value_name = "HOURS", default_value_t = 24)]
        older_than: u32,
    },
}

/// A release with the channels that point to it.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    release: Published,
    address: String,
    channels: Vec<String>,
}

pub(super) async fn main(options: &Release) -> Result<u8, Failure> {
    let store = find::store(options.store.as_deref())?;
    let say_or_print = |text: String, value: serde_json::Value| {
        print(&if options.json { value.to_string() } else { text })
    };
    match &options.command {
        Command::List { name } => {
            let mut all = Vec::new();
            for name in named(&store, name.as_ref()).await? {
                all.extend(list(&store, &name).await?);
            }
            let head = format!(
                "  {:<28}{:<14}{:<28}{:<24}composed from",
                "release", "weights", "channels", "folder"
            );
            let rows: Vec<String> = [head].into_iter().chain(all.iter().map(row)).collect();
            let text = if all.is_empty() { "no releases".to_owned() } else { rows.join("\n") };
            say_or_print(text, json!({ "releases": all }))?;
        }
        Command::Show { release, address } => {
            let found = lookup::find(&store, release).await?;
            if *address {
                return print(&format!("{}/{}", store.name(), found.prefix())).map(|()| exit::DONE);
            }
            show(&store, found, options.json).await?;
        }
        Command::Promote { release, channel, gates } => {
            let found = lookup::find(&store, release).await?;
            let there = publish::open(&store, &found).await?;
            let record = evaluation::measured(&store, &there).await?;
            let more = gates.as_deref().map(gates::read).transpose()?;
            let asked = || record.gates.iter().chain(&more);
            let mut missed = gate_rules::all_missed(asked(), &record);
            missed.extend(gates::unsigned(asked(), &there).await?);
            let shown = format!("{}:{}", found.release.name, found.number);
            for gate in &missed {
                say("error", &format!("{shown} does not meet a gate: {gate}"));
            }
            for warning in gate_rules::warnings(asked(), &record) {
                say("warning", &format!("{shown}: {warning}"));
            }
            if !missed.is_empty() {
                if !record.is_measured() {
                    say(
                        "info",
                        &format!(
                            "{shown} is not measured; measure it with `lethe evaluate {shown} --store {}`",
                            store.name()
                        ),
                    );
                }
                if options.json {
                    print(
                        &json!({ "release": found, "channel": channel, "missed": missed })
                            .to_string(),
                    )?;
                }
                return Ok(exit::NOT_PASSED);
            }
            let before = channels::promote(&store, &found, channel).await?;
            let from = before.map_or_else(String::new, |before| format!(" (was {before})"));
            say_or_print(
                format!("{}@{channel} points to {shown}{from}", found.release.name),
                json!({ "release": found, "channel": channel, "before": before, "missed": [] }),
            )?;
        }
        Command::Sign { release, key } => {
            let key = SigningKey::read(key)?;
            let found = lookup::find(&store, release).await?;
            return sign(&store, found, &key, options.json).await;
        }
        Command::Receipt { release, concept, salt } => {
            let found = publish::open(&store, &lookup::find(&store, release).await?).await?;
            let concept = match salt {
                Some(path) => read_salt(path)?.hash(concept),
                None => concept.clone(),
            };
            let none = || Failure::input(no_receipt(&found, &concept));
            print(&signing::receipt(&found, &concept).await?.ok_or_else(none)?)?;
        }
        Command::Export { release, to } => {
            let found = lookup::find(&store, release).await?;
            let Exported { files, bytes } =
                export(&publish::open(&store, &found).await?, to).await?;
            let text = format!(
                "{}:{} is in {}: {files} files, {}",
                found.release.name,
                found.number,
                to.display(),
                human_bytes(bytes)
            );
            let folder = to.display().to_string();
            let value =
                json!({ "release": found, "folder": folder, "files": files, "bytes": bytes });
            say_or_print(text, value)?;
        }
        Command::Rollback { name, channel } => {
            let (from, to) = channels::rollback(&store, name, channel).await?;
            say_or_print(
                format!("{name}@{channel} points to {name}:{to} (was {from})"),
                json!({ "name": name, "channel": channel, "number": to, "before": from }),
            )?;
        }
        Command::Gc { name, dry_run, older_than } => {
            let now =
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
            let before = i64::try_from(now).unwrap_or(i64::MAX) - i64::from(*older_than) * 3600;
            let mut found = Vec::new();
            for name in named(&store, name.as_ref()).await? {
                for leftover in leftovers::leftovers(&store, &name, before).await? {
                    let gone = if *dry_run {
                        Some(leftover)
                    } else {
                        leftovers::remove(&store, &name, &leftover, before).await?
                    };
                    found.extend(gone);
                }
            }
            let what = if *dry_run { "would be removed" } else { "removed" };
            let rows = found.iter().map(|one| {
                format!(
                    "{}: {} objects, {}, {what}",
                    one.folder,
                    one.objects.len(),
                    human_bytes(one.bytes)
                )
            });
            let text = if found.is_empty() {
                "no leftovers".to_owned()
            } else {
                rows.collect::<Vec<_>>().join("\n")
            };
            say_or_print(text, json!({ "removed": !dry_run, "leftovers": found }))?;
        }
    }
    Ok(exit::DONE)
}

async fn sign(
    store: &Store,
    found: Published,
    key: &SigningKey,
    as_json: bool,
) -> Result<u8, Failure> {
    let release = publish::open(store, &found).await?;
    let address = Address::parse(&release.address()).map_err(Failure::input)?;
    let problems = verify(&address).await?.problems;
    for problem in &problems {
        say("error", &format!("{address}/{problem}"));
    }
    if problems.is_empty() {
        signing::sign(&release, key, &Fence::open()).await?;
    }
    let signed = problems.is_empty();
    let hint = key.public().hint();
    let text =
        format!("{}:{} is signed by the key with SHA-256 {hint}", found.release.name, found.number);
    if as_json {
        print(
            &json!({ "release": found, "signed": signed, "key": hint, "problems": problems })
                .to_string(),
        )?;
    } else if signed {
        print(&text)?;
    }
    Ok(if signed { exit::DONE } else { exit::NOT_PASSED })
}

/// Returns the reason why a release has no receipt of a concept.
fn no_receipt(release: &read::Release, id: &str) -> String {
    let (address, shown) = (release.address(), id.escape_default());
    match release.record.concepts.iter().find(|concept| concept.id == id) {
        Some(concept) => {
            let Verdict { status, reason } = release.record.verdict(concept);
            format!(
                "{address} has no receipt of `{shown}`, which is {}: {reason}; set policy.receipts_for_unknown to get one anyway",
                status.name()
            )
        }
        None => format!("{address} does not remove a concept `{shown}`"),
    }
}

fn read_salt(path: &Path) -> Result<Salt, Failure> {
    let wrong = |problem: String| Failure::input(format!("{}: {problem}", path.display()));
    let size =
        std::fs::metadata(path).map_err(|error| wrong(format!("cannot be read: {error}")))?.len();
    if size > MAX_SALT {
        return Err(wrong(format!("has {size} bytes, too many for a salt")));
    }
    Salt::of(&std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?)
        .map_err(wrong)
}

async fn named(store: &Store, name: Option<&String>) -> Result<Vec<String>, Failure> {
    match name {
        Some(name) => Ok(vec![name.clone()]),
        None => Ok(publish::names(store).await?.into_iter().collect()),
    }
}

/// Returns the releases of a name, each with its channels.
async fn list(store: &Store, name: &str) -> Result<Vec<Listed>, Failure> {
    let channels = channels::channels(store, name).await?;
    let listed = |release: Published| Listed {
        address: format!("{}/{}", store.name(), release.prefix()),
        channels: channels
            .iter()
            .filter(|(_, (_, last))| last.number == release.number)
            .map(|(channel, _)| channel.clone())
            .collect(),
        release,
    };
    Ok(publish::published(store, name).await?.into_values().map(listed).collect())
}

fn row(listed: &Listed) -> String {
    let release = &listed.release;
    let parent = release.parent.as_ref().map_or_else(String::new, ToString::to_string);
    let name = format!("{}:{}", release.release.name, release.number);
    format!(
        "  {name:<28}{:<14}{:<28}{:<24}{parent}",
        release.digest.short(),
        listed.channels.join(", "),
        release.release.record.short()
    )
    .trim_end()
    .to_owned()
}

async fn show(store: &Store, found: Published, as_json: bool) -> Result<(), Failure> {
    let record = evaluation::measured(store, &publish::open(store, &found).await?).await?;
    let apart = found.parent.is_some() && record.is_measured();
    let evaluation =
        apart.then(|| format!("{}/{}", store.name(), evaluation::folder(&found.release)));
    let listed = list(store, &found.release.name)
        .await?
        .into_iter()
        .find(|listed| listed.release.number == found.number);
    let channels = listed.map(|listed| listed.channels).unwrap_or_default();
    let changes: &[Amendment] = record.parent.as_ref().map_or(&[], |parent| &parent.changes);
    let (missed, warnings) = (
        gate_rules::all_missed(&record.gates, &record),
        gate_rules::warnings(&record.gates, &record),
    );
    let not_removed = record.not_removed();
    if as_json {
        let address = format!("{}/{}", store.name(), found.prefix());
        let listed = Listed { release: found, address, channels };
        return print(&json!({ "release": listed, "changes": changes, "missed": missed, "warnings": warnings, "not_removed": not_removed, "concepts": record.concepts.len(), "evaluation": evaluation }).to_string());
    }
    let mut rows = vec![
        ("release", format!("{}:{}", found.release.name, found.number)),
        ("address", format!("{}/{}", store.name(), found.prefix())),
        ("record", found.release.record.to_string()),
        ("digest", found.digest.to_string()),
        ("base", record.base.address.clone()),
        ("removed", format!("{} concepts by {}", card::claimed(&record), record.method)),
        ("channels", channels.join(", ")),
    ];
    rows.extend(found.parent.iter().map(|parent| ("composed from", parent.to_string())));
    rows.extend(changes.iter().map(|change| ("change", change.to_string())));
    if let Some(on) = record.utility.test.as_ref().or(record.utility.validation.as_ref()) {
        rows.push((
            "utility",
            format!("TA@1 {:.1} % → {:.1} %", 100.0 * on.before.ta1, 100.0 * on.after.ta1),
        ));
    }
    rows.push((
        "measured",
        if record.is_measured() {
            evaluation.unwrap_or_default()
        } else {
            "not yet; measure it with `lethe evaluate`".to_owned()
        },
    ));
    rows.extend(
        not_removed
            .into_iter()
            .map(|concept| (concept.status.name(), format!("{}: {}", concept.id, concept.reason))),
    );
    rows.extend(missed.into_iter().map(|gate| ("gate not met", gate)));
    rows.extend(warnings.into_iter().map(|warning| ("warning", warning)));
    let rows: Vec<String> = rows
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("  {name:<16}{value}"))
        .collect();
    print(&rows.join("\n"))
}
