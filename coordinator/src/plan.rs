//! From a manifest to everything a run will need, checked: nothing is computed here, and nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::job::{ALGORITHM_VERSION, ClassTexts, MethodSettings, ModelRef, ShardRef};
use lethe_shared::manifest::concepts::{self, Concept, MAX_TABLE};
use lethe_shared::manifest::{Classes, Error, Gates, Manifest, Names, Required, Stop, Towers};
use lethe_shared::outcome::Tower;
use lethe_shared::phrases::Phrases;
use lethe_shared::record::{DataFile, Origin};
use lethe_shared::shard::{self, Captions};
use lethe_shared::{store, texts};

use crate::attest::key::SigningKey;
use crate::attest::names::{MAX_SALT, Salt};
use crate::coverage::Named;
use crate::failure::Failure;
use crate::protected::{MAX_FILE, MAX_NAMES, Protected};
use crate::target::{Target, layers};

/// Files inspected at once.
const AT_ONCE: usize = 4;
/// Largest class list, bytes.
const MAX_CLASSES: u64 = 256 << 20;

/// A manifest with everything it names found, hashed and checked.
#[derive(Debug)]
pub struct Plan {
    /// The manifest.
    pub manifest: Manifest,
    /// Name of the run: the manifest's, and a digest of everything that determines its result.
    pub run: String,
    /// That digest.
    identity: Digest,
    /// The model.
    pub model: ModelRef,
    /// Its checkpoint, open.
    pub checkpoint: Checkpoint,
    /// The class list.
    pub classes: Classes,
    /// Class names and prompt.
    pub class_texts: ClassTexts,
    /// Retain shards in the manifest's order.
    pub retain: Vec<ShardRef>,
    /// Unlabelled texts in the manifest's order, each file cut into slices of at most [`texts::SLICE`].
    pub retain_texts: Vec<Vec<String>>,
    /// Shards of unlabelled images.
    pub retain_images: Vec<ShardRef>,
    /// The files they are in.
    pub text_files: Vec<DataFile>,
    /// Texts that must not change, where there are some.
    pub protected: Option<Protected>,
    /// Classes that a retain caption or an unlabelled text names, without those to remove: what retain statistics have
    /// seen. Every other retained class is known to none of them.
    pub covered: BTreeSet<u32>,
    /// How often captions and texts name each class.
    named: Named,
    /// Validation shards.
    pub validation: Vec<ShardRef>,
    /// Test shards.
    pub test: Vec<ShardRef>,
    /// Concepts by id.
    pub concepts: Vec<PlannedConcept>,
    /// How edits are found.
    pub settings: MethodSettings,
    /// Other models that get the edits too.
    pub targets: Vec<Target>,
    /// The layers that edits may go to, where not every candidate acts in all targets.
    pub layers: Option<BTreeSet<String>>,
    /// Bounds that the release has to keep before `latest` leads to it: the manifest's, and those of whoever runs it. No part of
    /// what determines the result, but for the manifest's, which are on record.
    pub gates: Vec<Gates>,
    /// Key that the release is signed with, given by whoever runs it.
    pub signer: Option<SigningKey>,
    /// Things worth knowing that stop nothing.
    pub warnings: Vec<String>,
}

/// A concept with its shards found.
#[derive(Debug, Clone)]
pub struct PlannedConcept {
    /// As the manifest has it.
    pub concept: Concept,
    /// Its shards.
    pub forget: Vec<ShardRef>,
    /// When it counts as forgotten.
    pub stop: Stop,
    /// Share of its forget images that may still be found in the composed model.
    pub tolerance: f64,
}

impl PlannedConcept {
    /// Forget pairs.
    pub fn pairs(&self) -> u64 {
        self.forget.iter().map(|shard| shard.pairs).sum()
    }
}

impl Plan {
    /// Reads a manifest and everything it names. Remote files are downloaded into `cache`.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with every problem found.
    pub async fn make(manifest_path: &Path, cache: &Path) -> Result<Self, Failure> {
        Self::of(Manifest::read(manifest_path)?, cache).await
    }

    /// Everything that a manifest names, found and checked. Remote files are downloaded into `cache`.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with every problem found.
    pub async fn of(mut manifest: Manifest, cache: &Path) -> Result<Self, Failure> {
        let classes = Arc::new(read_classes(&manifest, cache).await?);
        let phrases = Phrases::new(classes.names()).map_err(|error| Failure::input(Error::new(classes.file(), error.to_string())))?;
        let phrases = Arc::new(phrases);
        let concepts = read_concepts(&manifest, &classes, cache).await?;
        let (model, checkpoint) = open_model(&manifest, cache).await?;
        let targets = Target::open_all(&manifest, &checkpoint, cache).await?;
        let place = |problem: String| Error::new(format!("{}: release.target", manifest.file.display()), problem).to_string();
        let among = layers::among(&manifest, &checkpoint, &targets)
            .map_err(|problems| Failure::BadInput(problems.into_iter().map(place).collect()))?;

        let (naming, labels) = (Wanted::Naming(Arc::clone(&phrases)), Wanted::Classes(Arc::clone(&classes)));
        let (retain, captions) = shards(&manifest, "data.retain", &manifest.data.retain, naming, cache).await?;
        let (retain_texts, text_files, mut texts) = read_texts(&manifest, Arc::clone(&phrases), cache).await?;
        let retain_images = read_images(&manifest, cache).await?;
        let mut protected = read_protected(&manifest, &concepts, cache).await?;
        let (validation, _) = shards(&manifest, "data.validation", &manifest.data.validation, labels.clone(), cache).await?;
        let (test, _) = shards(&manifest, "data.test", &manifest.data.test, labels, cache).await?;
        let mut warnings = retain_warnings(&retain, &manifest)?;
        check_policy(&manifest, &concepts)?;
        let mut concepts = find_forget_shards(concepts, &manifest, cache).await?;
        if validation.is_empty() {
            warnings.push("without validation shards, ties between layers go to the smaller change".to_owned());
        }
        warnings.extend(targets.iter().flat_map(|target| target.warnings.iter().cloned()));
        let layers = among.map(|among| {
            warnings.extend(among.warnings);
            among.layers
        });
        if let Some(protected) = &protected {
            for class in protected.prompts.iter().flat_map(|prompt| phrases.find(prompt)) {
                *texts.entry(class).or_default() += 1;
            }
            if manifest.gates.protected.is_none() {
                warnings
                    .push("data.protect without gates.protected: by how much these texts move is on record, and bounds nothing".to_owned());
            }
        }
        let named = Named { captions, texts };
        warnings.extend(named.warning(concepts.iter().map(|planned| &planned.concept)));
        let covered = named.covered(&classes_of(&concepts));

        if let Some(salt) = read_salt(&manifest, cache).await? {
            hide(&mut manifest, &mut concepts, &salt);
            protected.iter_mut().flat_map(|protected| &mut protected.names).for_each(|name| *name = salt.hash(name));
        }

        let settings = MethodSettings::from(&manifest.method);
        let class_texts = ClassTexts { names: classes.names().to_vec(), template: manifest.data.template.clone() };
        let mut plan = Self {
            run: String::new(),
            identity: Digest::of(b""),
            gates: vec![manifest.gates.clone()],
            signer: None,
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
            settings,
            targets,
            layers,
            warnings,
        };
        plan.identity = plan.identify()?;
        plan.run = format!("{}-{}", plan.manifest.name, plan.identity.short());
        Ok(plan)
    }

    /// The digest of everything that determines the run's result.
    fn identify(&self) -> Result<Digest, Failure> {
        let digests = |shards: &[ShardRef]| shards.iter().map(|shard| shard.digest).collect::<Vec<_>>();
        let concepts: Vec<_> = self
            .concepts
            .iter()
            .map(|c| {
                let concept = &c.concept;
                ((&concept.id, &concept.name, &concept.class, &concept.group), concept.strength, (c.stop, c.tolerance), digests(&c.forget))
            })
            .collect();
        let run = Digest::of_json(&(
            ALGORITHM_VERSION,
            (self.model.weights, self.model.settings, self.model.precision),
            (digests(&self.retain), digests(&self.validation), digests(&self.test)),
            self.retain_texts.iter().map(Digest::of_json).collect::<Vec<_>>(),
            &self.class_texts,
            concepts,
            &self.settings,
            (&self.manifest.composition, &self.manifest.policy, &self.manifest.gates),
        ));
        let run = match self.targets.as_slice() {
            [] => run,
            targets => Digest::of_json(&(run, targets.iter().map(Target::identity).collect::<Result<Vec<_>, Failure>>()?)),
        };
        let run = match &self.protected {
            None => run,
            Some(protected) => Digest::of_json(&(run, &protected.prompts)),
        };
        Ok(match self.retain_images.as_slice() {
            [] => run,
            images => Digest::of_json(&(run, "retain images", digests(images))),
        })
    }

    /// What edits will be found from, for the record.
    pub fn origin(&self) -> Origin {
        let files = |shards: &[ShardRef]| shards.iter().map(DataFile::from).collect();
        Origin {
            manifest: self.identity,
            algorithm: ALGORITHM_VERSION,
            precision: self.model.precision,
            hashed_names: self.manifest.release.names == Names::Hashed,
            classes: self.classes.names().len() as u64,
            class_texts: Digest::of_json(&self.class_texts),
            template: self.class_texts.template.clone(),
            retain: files(&self.retain),
            retain_texts: self.text_files.clone(),
            retain_images: files(&self.retain_images),
            protect: self.protected.as_ref().map(|protected| protected.file),
            validation: files(&self.validation),
            test: files(&self.test),
            license: self.manifest.release.license.clone(),
            base_model: self.manifest.release.base_model.clone(),
        }
    }

    /// Bytes of all shards that will be read.
    pub fn shard_bytes(&self) -> u64 {
        let forget = self.concepts.iter().flat_map(|concept| &concept.forget);
        self.retain.iter().chain(&self.retain_images).chain(&self.validation).chain(&self.test).chain(forget).map(|shard| shard.bytes).sum()
    }

    /// Full retain batches.
    pub fn retain_batches(&self) -> u64 {
        self.retain.iter().map(|shard| shard.pairs / u64::from(self.settings.batch_size)).sum()
    }

    /// The same run with other concepts, by id: for judging a model from which these were removed. Its name stays.
    #[must_use]
    pub fn with_concepts(mut self, concepts: Vec<PlannedConcept>) -> Self {
        self.covered = self.named.covered(&classes_of(&concepts));
        self.concepts = concepts;
        self
    }

    /// Whether a class is retained: no concept of the manifest names it.
    pub fn retains(&self) -> impl Fn(u32) -> bool + use<> {
        let removed = classes_of(&self.concepts);
        move |class| !removed.contains(&class)
    }
}

fn classes_of(concepts: &[PlannedConcept]) -> BTreeSet<u32> {
    concepts.iter().map(|planned| planned.concept.class_index).collect()
}

/// Checks what is cheap to check: class list, concept table, policy, and that the files on this machine are there. Data and weights are
/// not read.
///
/// # Errors
/// [`Failure::BadInput`] with what is wrong.
pub async fn glance(manifest: &Manifest, cache: &Path) -> Result<(), Failure> {
    let classes = read_classes(manifest, cache).await?;
    let concepts = read_concepts(manifest, &classes, cache).await?;
    check_policy(manifest, &concepts)?;
    let model = manifest.address("model.uri", &manifest.model.uri)?;
    let mut named = vec![(format!("{}: model.uri", manifest.file.display()), model)];
    for target in &manifest.release.target {
        let place = format!("{}: release.target `{}`", manifest.file.display(), target.name);
        named.push((place, manifest.address("release.target", &target.uri)?));
    }
    let data = &manifest.data;
    for (field, patterns) in [
        ("data.retain", &data.retain),
        ("data.retain_images", &data.retain_images),
        ("data.validation", &data.validation),
        ("data.test", &data.test),
    ] {
        for pattern in patterns {
            named.push((format!("{}: {field}", manifest.file.display()), manifest.address(field, pattern)?));
        }
    }
    for concept in &concepts {
        named.extend(concept.forget.iter().map(|pattern| (format!("{}: concept `{}`", concept.place, concept.id), pattern.clone())));
    }
    if let Some(list) = &manifest.data.protect {
        named.push((format!("{}: data.protect", manifest.file.display()), manifest.address("data.protect", list)?));
    }
    for (place, pattern) in named.iter().filter(|(_, pattern)| pattern.as_local().is_some()) {
        for address in store::expand(pattern).await.map_err(|error| missing(place, error))? {
            let there = match address.as_local() {
                Some(path) => tokio::fs::try_exists(path).await.unwrap_or(true),
                None => true,
            };
            if !there {
                return Err(Failure::input(Error::new(place.clone(), format!("{address} does not exist"))));
            }
        }
    }
    Ok(())
}

/// Reads a small file from anywhere.
async fn read_file(place: &str, address: &Address, most: u64, cache: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |problem: String| Failure::input(Error::new(place, problem));
    let path = store::fetch_file(address, cache, None).await.map_err(|error| missing(place, error))?;
    let size = std::fs::metadata(&path).map_err(|error| wrong(format!("{address} cannot be read: {error}")))?.len();
    if size > most {
        return Err(wrong(format!("{address} has {size} bytes, at most {most} are read")));
    }
    std::fs::read(&path).map_err(|error| wrong(format!("{address} cannot be read: {error}")))
}

/// A file that the manifest names and that is not there is the manifest's fault; a store that is down is not.
fn missing(place: &str, error: store::Error) -> Failure {
    match error {
        store::Error::Unavailable { .. } => Failure::Infrastructure(format!("{place}: {error}")),
        other => Failure::input(Error::new(place, other.to_string())),
    }
}

async fn read_classes(manifest: &Manifest, cache: &Path) -> Result<Classes, Failure> {
    let place = format!("{}: data.classes", manifest.file.display());
    let address = manifest.address("data.classes", &manifest.data.classes)?;
    let bytes = read_file(&place, &address, MAX_CLASSES, cache).await?;
    Ok(Classes::parse(&bytes, &address.to_string())?)
}

/// What names are hashed with, where they are.
async fn read_salt(manifest: &Manifest, cache: &Path) -> Result<Option<Salt>, Failure> {
    let Some(salt) = &manifest.release.salt else { return Ok(None) };
    let place = format!("{}: release.salt", manifest.file.display());
    let address = manifest.address("release.salt", salt)?;
    let bytes = read_file(&place, &address, MAX_SALT, cache).await?;
    Salt::of(&bytes).map(Some).map_err(|problem| Failure::input(Error::new(place, format!("{address} {problem}"))))
}

/// From here on concepts have no names: jobs, record and everything else that is stored knows them by their hashes.
fn hide(manifest: &mut Manifest, concepts: &mut [PlannedConcept], salt: &Salt) {
    concepts.iter_mut().for_each(|planned| salt.hide(&mut planned.concept));
    concepts.sort_by(|a, b| a.concept.id.cmp(&b.concept.id));
    if let Required::These(ids) = &mut manifest.policy.required {
        ids.iter_mut().for_each(|id| *id = salt.hash(id));
    }
}

async fn read_concepts(manifest: &Manifest, classes: &Classes, cache: &Path) -> Result<Vec<Concept>, Failure> {
    let (rows, file, folder) = match &manifest.concepts.table {
        None => {
            let folder = manifest.file.parent().unwrap_or(Path::new("/"));
            (manifest.inline_concepts(), format!("{}: concepts.list", manifest.file.display()), Address::Local(folder.to_owned()))
        }
        Some(table) => {
            let place = format!("{}: concepts.table", manifest.file.display());
            let address = manifest.address("concepts.table", table)?;
            let bytes = read_file(&place, &address, MAX_TABLE, cache).await?;
            let shown = address.to_string();
            let folder = shown.rsplit_once('/').map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder });
            let folder = Address::parse(folder).map_err(|error| Failure::input(Error::new(place, error.to_string())))?;
            (concepts::parse_table(&bytes, &shown)?, shown, folder)
        }
    };
    let mut concepts = concepts::check(rows, &file, &folder, classes)
        .map_err(|problems| Failure::BadInput(problems.iter().map(Error::to_string).collect()))?;
    concepts::strengthen(&mut concepts, &manifest.concepts.groups, &manifest.file.display().to_string())?;
    concepts.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(concepts)
}

async fn open_model(manifest: &Manifest, cache: &Path) -> Result<(ModelRef, Checkpoint), Failure> {
    let place = format!("{}: model.uri", manifest.file.display());
    let address = manifest.address("model.uri", &manifest.model.uri)?;
    let folder = store::fetch_folder(&address, cache).await.map_err(|error| missing(&place, error))?;
    let opened = tokio::task::spawn_blocking(move || {
        let checkpoint = Checkpoint::open(&folder)?;
        let broken = checkpoint.non_finite()?;
        let (weights, settings) = (checkpoint.digest()?, checkpoint.settings_digest()?);
        Ok::<_, lethe_shared::checkpoint::Error>((checkpoint, broken, weights, settings))
    });
    let (checkpoint, broken, weights, settings) = opened
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
        .map_err(|error| Failure::input(Error::new(place.clone(), error.to_string())))?;
    if let Some(first) = broken.first() {
        let others = if broken.len() > 1 { format!(" and {} other tensors hold", broken.len() - 1) } else { " holds".to_owned() };
        return Err(Failure::input(Error::new(
            place,
            format!("{address}: `{first}`{others} NaN or infinite values; this checkpoint cannot be edited"),
        )));
    }
    Ok((ModelRef { weights, settings, precision: manifest.method.precision, address }, checkpoint))
}

/// The files that patterns match; order is the manifest's, and by name within a pattern.
async fn expand(manifest: &Manifest, field: &str, patterns: &[String]) -> Result<Vec<Address>, Failure> {
    let mut addresses = Vec::new();
    for pattern in patterns {
        let pattern = manifest.address(field, pattern)?;
        let place = || format!("{}: {field}", manifest.file.display());
        addresses.extend(store::expand(&pattern).await.map_err(|error| missing(&place(), error))?);
    }
    Ok(addresses)
}

/// What is looked for in captions, as [`Captions`] but shared between threads.
#[derive(Clone)]
enum Wanted {
    Any,
    Classes(Arc<Classes>),
    Naming(Arc<Phrases>),
    Images,
}

/// Pairs or texts by class.
type ByClass = BTreeMap<u32, u64>;

/// Expands patterns and inspects every file; pairs by class over all of them.
async fn shards(
    manifest: &Manifest,
    field: &str,
    patterns: &[String],
    wanted: Wanted,
    cache: &Path,
) -> Result<(Vec<ShardRef>, ByClass), Failure> {
    let place = format!("{}: {field}", manifest.file.display());
    let addresses = expand(manifest, field, patterns).await?;
    let inspected: Vec<(ShardRef, ByClass)> =
        futures::stream::iter(addresses.into_iter().map(|address| inspect(place.clone(), address, wanted.clone(), cache)))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
    let (mut shards, mut by_class) = (Vec::with_capacity(inspected.len()), ByClass::new());
    for (shard, pairs) in inspected {
        shards.push(shard);
        pairs.into_iter().for_each(|(class, pairs)| *by_class.entry(class).or_default() += pairs);
    }
    Ok((shards, by_class))
}

async fn inspect(place: String, address: Address, wanted: Wanted, cache: &Path) -> Result<(ShardRef, ByClass), Failure> {
    let path: PathBuf = store::fetch_file(&address, cache, None).await.map_err(|error| missing(&place, error))?;
    let held = if matches!(wanted, Wanted::Images) { "image" } else { "image-text pair" };
    let inspected = tokio::task::spawn_blocking(move || {
        let captions = match &wanted {
            Wanted::Any => Captions::Any,
            Wanted::Classes(classes) => Captions::Classes(classes),
            Wanted::Naming(phrases) => Captions::Naming(phrases),
            Wanted::Images => Captions::Ignored,
        };
        shard::inspect(&path, captions)
    });
    let info = inspected
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
        .map_err(|error| Failure::input(Error::new(place.clone(), format!("{address}: {}", error.problem))))?;
    if info.pairs == 0 {
        return Err(Failure::input(Error::new(place, format!("{address} holds no {held}"))));
    }
    Ok((ShardRef { digest: info.digest, bytes: info.bytes, pairs: info.pairs, address }, info.by_class))
}

/// The slices of all unlabelled texts, the files they are in, and how many texts name each class.
async fn read_texts(
    manifest: &Manifest,
    phrases: Arc<Phrases>,
    cache: &Path,
) -> Result<(Vec<Vec<String>>, Vec<DataFile>, ByClass), Failure> {
    let field = "data.retain_texts";
    let place = format!("{}: {field}", manifest.file.display());
    let (mut slices, mut files, mut by_class, mut total) = (Vec::new(), Vec::new(), ByClass::new(), 0);
    for address in expand(manifest, field, &manifest.data.retain_texts).await? {
        let bytes = read_file(&place, &address, texts::MAX_FILE, cache).await?;
        total += bytes.len() as u64;
        if total > texts::MAX_TOTAL {
            return Err(Failure::input(Error::new(place, "the files hold more than 1 GiB; give fewer texts")));
        }
        let (file, phrases) = (address.to_string(), Arc::clone(&phrases));
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let parsed = tokio::task::spawn_blocking(move || {
            let texts = texts::parse(&bytes, &file)?;
            let named: Vec<u32> = texts.iter().flat_map(|text| phrases.find(text)).collect();
            Ok::<_, Error>((texts, named))
        });
        let (texts, named) = parsed.await.map_err(|error| Failure::Infrastructure(error.to_string()))??;
        named.into_iter().for_each(|class| *by_class.entry(class).or_default() += 1);
        files.push(DataFile { digest, bytes: size, items: texts.len() as u64 });
        slices.extend(texts::slices(texts));
    }
    Ok((slices, files, by_class))
}

/// The shards of unlabelled images.
async fn read_images(manifest: &Manifest, cache: &Path) -> Result<Vec<ShardRef>, Failure> {
    let field = "data.retain_images";
    let composition = &manifest.composition;
    let looked_at = composition.method.corrects() && composition.towers.include(Tower::Vision);
    if !manifest.data.retain_images.is_empty() && !looked_at {
        let place = format!("{}: {field}", manifest.file.display());
        let problem = "protects nothing here: only composition.method `preconditioned` and `null-space` with edits of the vision tower look at \
                       unlabelled images; leave it out, or set composition.towers to \"vision\" or \"both\"";
        return Err(Failure::input(Error::new(place, problem)));
    }
    Ok(shards(manifest, field, &manifest.data.retain_images, Wanted::Images, cache).await?.0)
}

/// The texts that must not change.
async fn read_protected(manifest: &Manifest, concepts: &[Concept], cache: &Path) -> Result<Option<Protected>, Failure> {
    let Some(list) = &manifest.data.protect else { return Ok(None) };
    let place = format!("{}: data.protect", manifest.file.display());
    let wrong = |problem: String| Failure::input(Error::new(place.clone(), problem));
    let composition = &manifest.composition;
    if !composition.method.corrects() {
        let method = composition.method.name();
        return Err(wrong(format!("composition.method `{method}` protects nothing; `preconditioned` and `null-space` do")));
    }
    if composition.towers == Towers::Vision {
        return Err(wrong("names texts, and edits of the vision tower move none; leave it out, or change composition.towers".to_owned()));
    }
    let address = manifest.address("data.protect", list)?;
    let bytes = read_file(&place, &address, MAX_FILE, cache).await?;
    let file = address.to_string();
    let mut names = texts::parse(&bytes, &file)?;
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if names.len() > MAX_NAMES {
        return Err(wrong(format!(
            "{file} holds {} names, at most {MAX_NAMES} leave edits any room; data.retain_texts protects any number, but not to a bound",
            names.len()
        )));
    }
    for name in &names {
        let same = |other: &str| name.to_lowercase() == other.trim().to_lowercase();
        if let Some(concept) = concepts.iter().find(|concept| same(&concept.class) || same(&concept.name)) {
            return Err(wrong(format!("`{name}` must not change, and is to be removed as concept `{}`", concept.id)));
        }
    }
    let data = DataFile { digest: Digest::of(&bytes), bytes: bytes.len() as u64, items: names.len() as u64 };
    let texts = ClassTexts { names, template: manifest.data.template.clone() };
    Ok(Some(Protected { prompts: texts.prompts().collect(), names: texts.names, file: data }))
}

fn retain_warnings(retain: &[ShardRef], manifest: &Manifest) -> Result<Vec<String>, Failure> {
    let batch = u64::from(manifest.method.batch_size);
    let small: Vec<&ShardRef> = retain.iter().filter(|shard| shard.pairs < batch).collect();
    if small.len() == retain.len() {
        return Err(Failure::input(Error::new(
            format!("{}: data.retain", manifest.file.display()),
            format!("no retain shard holds a full batch of {batch} pairs; give larger shards, or set method.batch_size lower"),
        )));
    }
    let warning = |shard: &&ShardRef| {
        format!("{} has {} pairs, less than a batch of {batch}: it adds nothing to the retain gradient", shard.address, shard.pairs)
    };
    Ok(small.iter().map(warning).collect())
}

/// Concepts that the policy requires must be in the table: a slip of the pen should not cost a run.
fn check_policy(manifest: &Manifest, concepts: &[Concept]) -> Result<(), Failure> {
    let Required::These(ids) = &manifest.policy.required else { return Ok(()) };
    let unknown = ids.iter().find(|id| !concepts.iter().any(|concept| concept.id == **id));
    let place = || format!("{}: policy.required", manifest.file.display());
    unknown.map_or(Ok(()), |id| Err(Failure::input(Error::new(place(), format!("`{id}` is no concept of this manifest")))))
}

async fn find_forget_shards(concepts: Vec<Concept>, manifest: &Manifest, cache: &Path) -> Result<Vec<PlannedConcept>, Failure> {
    let found: Vec<Result<PlannedConcept, Failure>> = futures::stream::iter(concepts.into_iter().map(|concept| async move {
        let place = format!("{}: concept `{}`", concept.place, concept.id);
        let mut forget = Vec::new();
        for pattern in &concept.forget {
            for address in store::expand(pattern).await.map_err(|error| missing(&place, error))? {
                forget.push(inspect(place.clone(), address, Wanted::Any, cache).await?.0);
            }
        }
        let stop = concept.stop.unwrap_or(manifest.method.stop);
        let tolerance = concept.tolerance.unwrap_or(manifest.composition.tolerance);
        Ok(PlannedConcept { concept, forget, stop, tolerance })
    }))
    .buffered(AT_ONCE)
    .collect()
    .await;
    let (mut planned, mut problems) = (Vec::new(), Vec::new());
    for concept in found {
        match concept {
            Ok(concept) => planned.push(concept),
            Err(Failure::BadInput(more)) => problems.extend(more),
            Err(other) => return Err(other),
        }
    }
    problems.truncate(20);
    if problems.is_empty() { Ok(planned) } else { Err(Failure::BadInput(problems)) }
}

/// Concepts per group, for tables.
pub fn groups(plan: &Plan) -> BTreeMap<&str, usize> {
    let mut groups = BTreeMap::new();
    for concept in &plan.concepts {
        *groups.entry(concept.concept.group.as_deref().unwrap_or("-")).or_default() += 1;
    }
    groups
}
