//! The probes of `lethe evaluate`.

use std::path::{Path, PathBuf};

use lethe_operations::log::say;
use lethe_shared::address::Address;
use lethe_shared::manifest::BuiltInProbe;
use lethe_shared::record::Composition;
use lethe_store::{self as store, Store};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::probe::{self, Input, InputConcept, InputTarget, Probe};
use crate::release::probes;
use crate::release::read::Release;
use crate::run;

/// Returns the built-in probes that are named, and reads the files of others, so that a bad one
/// fails before anything is measured.
pub(super) fn read(named: &[PathBuf]) -> Result<(Vec<BuiltInProbe>, Vec<Probe>), Failure> {
    let (mut built_in, mut read): (Vec<BuiltInProbe>, Vec<Probe>) = (Vec::new(), Vec::new());
    for name in named {
        if let Some(probe) = name.to_str().and_then(BuiltInProbe::from_name) {
            if built_in.contains(&probe) {
                return Err(twice(probe.name()));
            }
            built_in.push(probe);
            continue;
        }
        let probe = Probe::read(name)?;
        if read.iter().any(|other| other.name == probe.name) {
            return Err(twice(&probe.name));
        }
        read.push(probe);
    }
    Ok((built_in, read))
}

fn twice(name: &str) -> Failure {
    Failure::input(format!("two probes have the name {name}"))
}

/// Returns the built-in probes that have not measured a release yet.
pub(super) fn wanted(
    built_in: &[BuiltInProbe],
    record: &Composition,
) -> Result<Vec<BuiltInProbe>, Failure> {
    let mut wanted = Vec::new();
    for &probe in built_in {
        match record.probe(probe.name()) {
            None => wanted.push(probe),
            Some(stored) if stored.file == run::probe_digest(probe) => {
                say("info", &format!("probe {}: its result is stored already", probe.name()));
            }
            Some(_) => {
                return Err(Failure::input(format!(
                    "another version of the probe {} has measured this release, and its result stays",
                    probe.name()
                )));
            }
        }
    }
    Ok(wanted)
}

/// Runs the probes that have not measured the release yet, and returns its record with their
/// results.
pub(super) async fn measure(
    probes: &[Probe],
    release: &Release,
    store: &Store,
    mut record: Composition,
    cache: &Path,
    cancel: &CancellationToken,
) -> Result<Composition, Failure> {
    for probe in probes {
        if let Some(stored) = probes::find(store, release, &probe.name).await? {
            probes::is_of(&stored, probe)?;
            say("info", &format!("probe {}: its result is stored already", probe.name));
            continue;
        }
        let result = run(probe, release, &record, cache, cancel).await?;
        let kept = probes::keep(store, release, &record, probe, result).await?;
        probes::put(&mut record, kept);
    }
    Ok(record)
}

async fn run(
    probe: &Probe,
    release: &Release,
    record: &Composition,
    cache: &Path,
    cancel: &CancellationToken,
) -> Result<probe::ProbeResult, Failure> {
    let work = tempfile::Builder::new().prefix("lethe-probe-").tempdir();
    let work = work.map_err(|error| Failure::local(&std::env::temp_dir(), error))?;
    let output = work.path().join("output");
    std::fs::create_dir(&output).map_err(|error| Failure::local(&output, error))?;
    let address = Address::parse(&release.address()).map_err(Failure::input)?;
    let folder = absolute(store::fetch_folder(&address, cache).await?)?;
    let base = original("the base model", &record.base.address, cache).await?;
    let mut input = Input::new(&record.name, record.digest.to_string(), &folder, &output);
    input.base = base.as_deref();
    for target in &record.targets {
        input.targets.push(InputTarget {
            name: target.name.clone(),
            kind: target.kind.name(),
            folder: folder.join(target.folder()),
            base: original(&target.name, &target.address, cache).await?,
        });
    }
    input.concepts = record
        .concepts
        .iter()
        .map(|concept| InputConcept {
            id: &concept.id,
            name: &concept.name,
            class: &concept.class,
            strength: concept.strength,
            status: record.verdict(concept).status.name(),
        })
        .collect();
    say("info", &format!("probe {}: {}", probe.name, probe.command.join(" ")));
    probe::run(probe, &input, cancel).await
}

/// Returns the folder at an address of a record, or `None` with a warning where it cannot be read.
async fn original(what: &str, address: &str, cache: &Path) -> Result<Option<PathBuf>, Failure> {
    let Ok(parsed) = Address::parse(address) else { return Ok(None) };
    match store::fetch_folder(&parsed, cache).await {
        Ok(folder) => absolute(folder).map(Some),
        Err(error) => {
            say("warning", &format!("probes see no original of {what}: {error}"));
            Ok(None)
        }
    }
}

fn absolute(folder: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&folder).map_err(|error| Failure::local(&folder, error))
}
