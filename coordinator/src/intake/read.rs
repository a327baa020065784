//! Makes the plan of a manifest: finds, hashes and checks all files that the manifest names.
//! Computes nothing on a device, and writes only to the cache.

use std::path::Path;
use std::sync::Arc;

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::manifest::{Classes, CompositionMethod, Concept, Error, Manifest, Settling};
use lethe_shared::phrases::Phrases;
use lethe_shared::record::DataFile;
use lethe_shared::reference::{ClassTexts, ShardRef};
use lethe_shared::vocabulary::{MethodSettings, TextTokens, Tower, Towers};
use lethe_store as store;
use lethe_store::Pins;

use super::concepts::{
    check_policy, digest_of_aliases, find_forget_shards, hide, read_classes, read_concepts,
    read_salt,
};
use super::coverage::Named;
use super::data::{
    Shards, Wanted, read_images, read_protected, read_texts, retain_warnings, shards,
};
use super::files::missing;
use super::model::{OpenModel, open_model};
use super::pin::pin;
use super::plan::{Plan, PlannedConcept, classes_of};
use super::same_tokens;
use crate::compose::protected::Protected;
use crate::downstream::{Target, has_causal_text, layers};
use crate::failure::{Failure, Problems};

impl Plan {
    /// Reads a manifest and all files that it names. Remote files are downloaded into `cache`.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with the problems of the manifest and its files;
    /// [`Failure::Infrastructure`] when a store or disk cannot be read.
    ///
    /// # Example
    /// ```no_run,standalone_crate
    /// use std::path::Path;
    ///
    /// use lethe::failure::Failure;
    /// use lethe::intake::plan::Plan;
    ///
    /// # async fn example() -> Result<(), Failure> {
    /// let plan = Plan::make(Path::new("job.toml"), Path::new("/var/cache/lethe")).await?;
    /// for warning in &plan.warnings {
    ///     eprintln!("warning: {warning}");
    /// }
    /// println!("{}: {} concepts, {} bytes", plan.run, plan.concepts.len(), plan.shard_bytes());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn make(manifest_path: &Path, cache: &Path) -> Result<Self, Failure> {
        Self::of(Manifest::read(manifest_path)?, cache).await
    }

    /// Makes the plan of a manifest that is already read. Remote files are downloaded into `cache`.
    /// Branches and tags of `hf://` addresses are resolved to commits first, and the plan's manifest
    /// names those.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub async fn of(mut manifest: Manifest, cache: &Path) -> Result<Self, Failure> {
        check_present(&named_files(&manifest)?).await?;
        let pins = Pins::default();
        manifest = pin(manifest, &pins).await?;
        let classes = Arc::new(read_classes(&manifest, cache).await?);
        let concepts = read_concepts(&manifest, &classes, cache).await?;
        let class_texts = ClassTexts {
            names: classes.names().to_vec(),
            template: manifest.data.template.clone(),
        };
        // A concept's class and its name are names of the same.
        let names = (0u32..)
            .zip(classes.names())
            .chain(concepts.iter().map(|concept| (concept.class_index, &concept.name)));
        let phrases = Phrases::numbered(names)
            .map_err(|error| Failure::input(Error::new(classes.file(), error.to_string())))?;
        let phrases = Arc::new(phrases);
        let OpenModel { reference: model, checkpoint, warnings: of_model } =
            open_model(&manifest, cache).await?;
        let targets = Target::open_all(&manifest, &checkpoint, cache).await?;
        settle(&mut manifest, &checkpoint, &targets)?;
        let place = |problem: layers::Problem| {
            let place = format!("{}: {}", manifest.file.display(), problem.field);
            Error::new(place, problem.sentence).to_string()
        };
        let among = layers::among(&manifest, &checkpoint, &targets)
            .map_err(|problems| Failure::BadInput(problems.into_iter().map(place).collect()))?;

        let Data {
            retain,
            retain_texts,
            text_files,
            retain_images,
            validation,
            test,
            mut protected,
            mut concepts,
            named,
            warnings: of_data,
        } = read_data(&manifest, concepts, &classes, &phrases, (&pins, cache)).await?;
        let mut warnings = of_model;
        warnings.extend(of_data);
        warnings.extend(targets.iter().flat_map(|target| target.warnings.iter().cloned()));
        warnings.extend(method_warning(&manifest, &targets));
        let layers = among.map(|among| {
            warnings.extend(among.warnings);
            among.layers
        });
        let folder = store::fetch_folder(&model.address, cache).await?;
        let all: Vec<Concept> = concepts.iter().map(|planned| planned.concept.clone()).collect();
        let same = same_tokens::warnings(folder, class_texts.clone(), &all).await;
        warnings.extend(same.map_err(|problem| {
            Failure::input(Error::new(
                format!("{}: data.template", manifest.file.display()),
                problem,
            ))
        })?);
        warnings.extend(named.warning(concepts.iter().map(|planned| &planned.concept)));
        let covered = named.covered(&classes_of(&concepts));

        let salt = read_salt(&manifest, cache).await?;
        let aliases = digest_of_aliases(&concepts, salt.as_ref());
        if let Some(salt) = salt {
            hide(&mut manifest, &mut concepts, &salt);
            protected
                .iter_mut()
                .flat_map(|protected| &mut protected.names)
                .for_each(|name| *name = salt.hash(name));
        }

        let settings = MethodSettings::from(&manifest.method);
        let mut plan = Self {
            run: String::new(),
            identity: Digest::of(b""),
            manifest,
            model,
            checkpoint,
            classes: Arc::unwrap_or_clone(classes),
            class_texts,
            retain,
            retain_texts,
            retain_images,
            text_files,
            protected,
            covered,
            named,
            validation,
            test,
            concepts,
            aliases,
            settings,
            targets,
            layers,
            warnings,
        };
        plan.warnings.extend(plan.repeated_data());
        plan.identity = plan.identify()?;
        plan.run = format!("{}-{}", plan.manifest.name, plan.identity.short());
        Ok(plan)
    }
}

/// Sets the defaults of the composition that follow from the model and the targets.
fn settle(
    manifest: &mut Manifest,
    checkpoint: &Checkpoint,
    targets: &[Target],
) -> Result<(), Failure> {
    let run = Settling {
        inputs: layers::mlp_units(checkpoint, Tower::Text)?,
        is_causal: has_causal_text(checkpoint),
        reads_every_token: state_reader(targets).is_some(),
        protects: manifest.data.protect.is_some(),
    };
    manifest.composition.settle(run);
    Ok(())
}

/// Returns the first target that reads the states of all tokens of a text.
fn state_reader(targets: &[Target]) -> Option<&Target> {
    targets.iter().find(|target| target.reads_every_token())
}

/// Returns a warning where another method keeps far more of the retained classes, or removes far
/// more from a target.
fn method_warning(manifest: &Manifest, targets: &[Target]) -> Option<String> {
    let composition = &manifest.composition;
    let method = composition.method();
    let changes_all =
        method == CompositionMethod::LeastSquares && composition.tokens() == TextTokens::All;
    if let Some(target) = state_reader(targets).filter(|_| !changes_all) {
        return Some(format!(
            "target `{}` reads the text tower's state at every token, and composition.method `{}` changes mostly the one that CLIP reads: \
             many removed concepts are still drawn. `least-squares` (with tokens = \"all\") changes all of them",
            target.request.name,
            method.name()
        ));
    }
    let better = matches!(method, CompositionMethod::Preconditioned | CompositionMethod::NullSpace)
        && composition.towers.include(Tower::Vision);
    better.then(|| {
        format!(
            "composition.method `{}` puts each edit into the layer that its scores rank first, and they rank layers of the vision tower \
             too high: retained classes lose far more than with `margins`, the default for composition.towers = \"{}\"",
            method.name(),
            if composition.towers == Towers::Both { "both" } else { "vision" }
        )
    })
}

/// The data of a plan.
struct Data {
    retain: Vec<ShardRef>,
    retain_texts: Vec<Vec<String>>,
    text_files: Vec<DataFile>,
    retain_images: Vec<ShardRef>,
    validation: Vec<ShardRef>,
    test: Vec<ShardRef>,
    protected: Option<Protected>,
    concepts: Vec<PlannedConcept>,
    named: Named,
    warnings: Vec<String>,
}

/// Finds, hashes and checks all data that a manifest names. Problems of all of it are named
/// together.
async fn read_data(
    manifest: &Manifest,
    concepts: Vec<Concept>,
    classes: &Arc<Classes>,
    phrases: &Arc<Phrases>,
    (pins, cache): (&Pins, &Path),
) -> Result<Data, Failure> {
    let (naming, labels) =
        (Wanted::Naming(Arc::clone(phrases)), Wanted::Classes(Arc::clone(classes)));
    let (mut problems, data) = (Problems::default(), &manifest.data);
    let Shards { shards: retain, by_class: captions, mut warnings } =
        shards(manifest, "data.retain", &data.retain, naming, cache, &mut problems).await?;
    let texts = read_texts(manifest, Arc::clone(phrases), cache).await;
    let texts = problems.take(texts)?.unwrap_or_default();
    let (retain_texts, text_files, mut texts) = texts;
    let images = read_images(manifest, cache, &mut problems).await;
    let images = problems.take(images)?.unwrap_or_default();
    let protected = read_protected(manifest, &concepts, cache).await;
    let protected = problems.take(protected)?.flatten();
    let validation = &data.validation;
    let validation =
        shards(manifest, "data.validation", validation, labels.clone(), cache, &mut problems)
            .await?;
    let test = shards(manifest, "data.test", &data.test, labels, cache, &mut problems).await?;
    problems.take(check_policy(manifest, &concepts))?;
    warnings.extend([images.warnings, validation.warnings, test.warnings].concat());
    let concepts =
        find_forget_shards(concepts, manifest, (pins, cache), &mut problems, &mut warnings).await?;
    problems.finish()?;
    warnings.extend(retain_warnings(&retain, manifest)?);
    if validation.shards.is_empty() {
        warnings.push(
            "without validation shards, ties between layers go to the smaller change".to_owned(),
        );
    }
    if let Some(protected) = &protected {
        for (class, is_mention) in
            protected.prompts.iter().flat_map(|prompt| phrases.occurrences(prompt))
        {
            *texts.entry(class).or_default() += u64::from(is_mention);
        }
        if manifest.gates.protected.is_none() {
            warnings
                .push("data.protect without gates.protected: by how much these texts move is on record, and bounds nothing".to_owned());
        }
    }
    Ok(Data {
        retain,
        retain_texts,
        text_files,
        retain_images: images.shards,
        validation: validation.shards,
        test: test.shards,
        protected,
        concepts,
        named: Named { captions, texts },
        warnings,
    })
}

/// Checks class list, concept table, policy, and whether files on this machine exist. Does not read
/// data or weights.
///
/// # Errors
/// [`Failure::BadInput`] with the problems; [`Failure::Infrastructure`] when a store or disk cannot
/// be read.
pub async fn quick_check(manifest: &Manifest, cache: &Path) -> Result<(), Failure> {
    check_present(&named_files(manifest)?).await?;
    let classes = read_classes(manifest, cache).await?;
    let concepts = read_concepts(manifest, &classes, cache).await?;
    check_policy(manifest, &concepts)?;
    let forget = concepts.iter().flat_map(|concept| {
        let place = format!("{}: concept `{}`", concept.place, concept.id);
        concept.forget.iter().map(move |pattern| (place.clone(), pattern.clone()))
    });
    check_present(&forget.collect::<Vec<_>>()).await
}

/// Returns every file, folder and pattern that a manifest names, each with its place there.
fn named_files(manifest: &Manifest) -> Result<Vec<(String, Address)>, Failure> {
    let data = &manifest.data;
    let one = std::slice::from_ref;
    let fields = [
        ("model.uri", one(&manifest.model.uri)),
        ("data.classes", one(&data.classes)),
        ("data.retain", &data.retain),
        ("data.retain_texts", &data.retain_texts),
        ("data.retain_images", &data.retain_images),
        ("data.validation", &data.validation),
        ("data.test", &data.test),
        ("data.protect", data.protect.as_slice()),
        ("concepts.table", manifest.concepts.table.as_slice()),
    ];
    let mut named = Vec::new();
    for target in &manifest.release.target {
        let place = format!("{}: release.target `{}`", manifest.file.display(), target.name);
        named.push((place, manifest.address("release.target", &target.uri)?));
    }
    for (field, patterns) in fields {
        for pattern in patterns {
            let place = format!("{}: {field}", manifest.file.display());
            named.push((place, manifest.address(field, pattern)?));
        }
    }
    Ok(named)
}

/// Checks that files on this machine exist, and that each pattern matches one.
///
/// # Errors
/// [`Failure::BadInput`] with everything that is missing.
async fn check_present(named: &[(String, Address)]) -> Result<(), Failure> {
    let mut problems = Problems::default();
    for (place, pattern) in named.iter().filter(|(_, pattern)| pattern.as_local().is_some()) {
        let found = store::expand(pattern).await.map_err(|error| missing(place, error));
        for address in problems.take(found)?.unwrap_or_default() {
            let path = address.as_local().unwrap_or(Path::new(""));
            if !tokio::fs::try_exists(path).await.unwrap_or(true) {
                let problem = Error::new(place.clone(), format!("{address} does not exist"));
                problems.take::<()>(Err(Failure::input(problem)))?;
            }
        }
    }
    problems.finish()
}
