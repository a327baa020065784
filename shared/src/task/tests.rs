use super::*;
use crate::address::Address;
use crate::job::Job;
use crate::measurement::{Accuracy, Answers, Chosen, Hits, LayerAnswer};
use crate::outcome::Execution;
use crate::vocabulary::{MethodSettings, Precision, Stop, TextTokens, Tower, Towers};

pub(crate) fn artifact(seed: u64) -> ArtifactRef {
    ArtifactRef { digest: Digest::of(&seed.to_le_bytes()), bytes: seed }
}

fn file(seed: u64) -> FileSpec {
    FileSpec { digest: Digest::of(&seed.to_le_bytes()), bytes: seed }
}

fn files(count: u64) -> Vec<FileSpec> {
    (0..count).map(file).collect()
}

fn model(precision: Precision) -> ModelSpec {
    ModelSpec { weights: Digest::of(b"w"), settings: Digest::of(b"s"), precision }
}

fn locations(seed: u64) -> Locations {
    let address = |at: &str| Address::parse(at).unwrap();
    let files = (0..seed % 5)
        .map(|i| (Digest::of(&i.to_le_bytes()), address(&format!("s3://bucket/{i}.tar"))))
        .collect();
    Locations { model: address("gs://b/model"), files }
}

/// A task of every kind.
fn tasks(seed: u64) -> Vec<AnyTask> {
    let method = MethodSettings {
        batch_size: 128,
        search_evaluations: 10,
        search_tolerance: 0.25,
        stop: if seed.is_multiple_of(3) { Stop::Fa1 } else { Stop::Fa5 },
        normalisation_gains: seed.is_multiple_of(2),
    };
    let towers = [Towers::Text, Towers::Vision, Towers::Both][(seed % 3) as usize];
    let parts = |count: u64| {
        (0..count).map(|i| MomentsPart { sum: artifact(i), items: i }).collect::<Vec<_>>()
    };
    let layers: Vec<String> = (0..1 + seed % 3).map(|i| format!("layer.{i}")).collect();
    let item = |name: &str, label| EvaluateItem { name: name.into(), shards: vec![file(1)], label };
    vec![
        RetainGradient { shard: file(seed), batch_size: 64, towers }.into(),
        RetainReduce {
            parts: (0..seed % 5)
                .map(|i| RetainPart { sum: artifact(i), batches: i, loss_sum: 0.5 })
                .collect(),
        }
        .into(),
        Search {
            class: 3,
            forget: files(seed % 4),
            validation: files(1),
            retain_gradient: artifact(1),
            classes: artifact(2),
            layers: seed.is_multiple_of(2).then(|| layers.clone()),
            method: method.clone(),
        }
        .into(),
        Evaluate {
            change: seed.is_multiple_of(2).then(|| artifact(5)),
            items: vec![item("validation", Label::Caption), item("forget/pizza", Label::Class(3))],
            classes: artifact(2),
            removed: seed.is_multiple_of(4).then(|| artifact(6)),
        }
        .into(),
        Moments {
            source: MomentSource::Captions(file(seed)),
            tokens: if seed.is_multiple_of(2) { Tokens::Apart } else { Tokens::Together },
            cross_fit: seed.is_multiple_of(2),
        }
        .into(),
        MomentsReduce {
            layer: "layer.0".into(),
            paired: parts(2),
            unlabelled: parts(1),
            unlabelled_weight: 0.5,
            correction: Correction::NullSpace(0.01),
            cost: 1.0,
            cross_fit: seed.is_multiple_of(2),
        }
        .into(),
        Survey {
            forget: files(2),
            retain_gradient: artifact(1),
            cross_fit: vec![artifact(seed)],
            towers,
            batch_size: 128,
            normalisation_gains: false,
        }
        .into(),
        Direction {
            class: 3,
            forget: files(2),
            validation: files(1),
            inverses: vec![artifact(3)],
            classes: artifact(2),
            layer: "layer.0".into(),
            layers: layers.clone(),
            rank: Some(2),
            method,
        }
        .into(),
        Protect { texts: artifact(seed), layers: layers.clone(), inverses: vec![artifact(3)] }
            .into(),
        Effects {
            layers: layers.clone(),
            concepts: vec![EffectsPart {
                layer: "layer.0".into(),
                gradients: artifact(1),
                direction: artifact(2),
            }],
        }
        .into(),
        Constraints {
            class: 3,
            forget: files(2),
            classes: artifact(2),
            layers: layers.clone(),
            inverses: vec![artifact(3)],
            images: 16,
        }
        .into(),
        Kernel {
            layer: "layer.0".into(),
            concepts: vec![artifact(1), artifact(2)],
            inverses: vec![artifact(3)],
        }
        .into(),
        WeightedChange {
            layers: layers.clone(),
            concepts: vec![WeightedConstraints {
                factors: artifact(1),
                coefficients: vec![0.5, 0.25],
            }],
            inverses: vec![artifact(3)],
        }
        .into(),
        Margins {
            change: seed.is_multiple_of(2).then(|| artifact(5)),
            concepts: vec![MarginsOf { class: 3, rank: 5, forget: files(2) }],
            classes: artifact(2),
            images: 16,
        }
        .into(),
        Condense {
            layers: layers.clone(),
            factors: artifact(1),
            coefficients: vec![0.5, 0.25],
            inverses: vec![artifact(3)],
            ranks: vec![8; layers.len()],
        }
        .into(),
        ImageEffects {
            layers,
            concepts: vec![ImageEffectsPart { factors: artifact(1), direction: artifact(2) }],
        }
        .into(),
        KeyMoments {
            source: MomentSource::Captions(file(seed)),
            padding: Some(0),
            layers: vec!["layer.0".into(), "layer.1".into()],
            tokens: TextTokens::Read,
        }
        .into(),
        Keys {
            class: 3,
            forget: files(2),
            classes: artifact(2),
            padding: None,
            layer: "layer.0".into(),
            read: "layer.3".into(),
            tokens: TextTokens::Read,
            change: seed.is_multiple_of(2).then(|| artifact(5)),
            share: 0.25,
            inverses: vec![artifact(3)],
            texts: 16,
            rows: 16,
            images: seed.is_multiple_of(2),
        }
        .into(),
        LeastSquares {
            layer: "layer.0".into(),
            concepts: vec![
                LeastSquaresPart { factors: artifact(1), overshoot: 1.0 },
                LeastSquaresPart { factors: artifact(2), overshoot: 1.5 },
            ],
            inverses: vec![artifact(3)],
            retain_weight: 100.0,
            rank: 8,
        }
        .into(),
        Relearn {
            change: seed.is_multiple_of(2).then(|| artifact(5)),
            sources: vec![RelearnSource { shards: files(2), most: 1 }],
            batch_size: 64,
            rate: 1e-4,
            steps: vec![10, 11 + (seed % 100) as u32],
            items: vec![item("test", Label::Caption)],
            classes: artifact(2),
        }
        .into(),
        Features {
            change: seed.is_multiple_of(2).then(|| artifact(5)),
            reference: vec![item("validation", Label::Caption)],
            shown: vec![item("test", Label::Caption)],
            classes: artifact(2),
            removed: artifact(6),
            neighbours: (seed % 100) as u32,
        }
        .into(),
        SoftPrompt {
            change: seed.is_multiple_of(2).then(|| artifact(5)),
            concepts: vec![item("forget/pizza", Label::Class(3))],
            unseen: seed.is_multiple_of(3).then(|| item("test", Label::Caption)),
            tokens: 4,
            rate: 0.02,
            steps: vec![10, 11 + (seed % 100) as u32],
            classes: artifact(2),
        }
        .into(),
    ]
}

/// A job of every kind.
pub(crate) fn jobs(seed: u64) -> Vec<Job> {
    let precision = [Precision::Float32, Precision::Tf32, Precision::Bfloat16][(seed % 3) as usize];
    let job = |task: AnyTask| Job {
        run: "emoji-100-0123456789ab".into(),
        concept: seed.is_multiple_of(2).then(|| "pizza".to_owned()),
        model: model(precision),
        task,
        locations: locations(seed),
        arithmetic: seed.is_multiple_of(5).then(|| "x86-64 avx512, libtorch 2.11.0".to_owned()),
    };
    tasks(seed).into_iter().map(job).collect()
}

#[test]
fn every_kind_is_tried_here_and_has_its_own_name() {
    let tried: Vec<&str> = tasks(1).iter().map(AnyTask::kind).collect();
    assert_eq!(tried, AnyTask::KINDS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
    let names: std::collections::BTreeSet<&str> = tried.iter().copied().collect();
    assert_eq!(names.len(), tried.len());
}

/// Ids as they were when each version was made. A changed one means that outcomes of earlier runs
/// are not found again, or that a field is missing from ids: raise the kind's version.
#[test]
fn ids_are_frozen() {
    let line = |job: &Job| format!("{} {} {}\n", job.kind(), job.task.version(), job.id());
    let found: String = jobs(6).iter().map(line).collect();
    let expected =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/task/golden-ids.txt"))
            .unwrap_or_default();
    assert!(found == expected, "ids have changed:\n{found}");
}

#[test]
fn an_id_says_what_is_computed_and_nothing_else() {
    for (number, job) in jobs(6).into_iter().enumerate() {
        let id = job.id();
        let same = [
            Job { run: "another".into(), ..job.clone() },
            Job { concept: Some("c-17".into()), ..job.clone() },
            Job { locations: locations(3), ..job.clone() },
            Job { arithmetic: Some("another".into()), ..job.clone() },
        ];
        assert!(same.iter().all(|other| other.id() == id), "{}", job.kind());
        assert_ne!(
            Job { model: ModelSpec { weights: Digest::of(b"other"), ..job.model }, ..job.clone() }
                .id(),
            id
        );
        assert_ne!(
            Job { model: ModelSpec { precision: Precision::Tf32, ..job.model }, ..job.clone() }
                .id(),
            id
        );
        assert_ne!(jobs(7)[number].id(), id, "{}", job.kind());
    }
}

/// Every scalar of a spec's JSON, changed by itself, changes the id. (That ids are digests of the
/// whole spec makes it so; this would notice a field that is skipped.)
#[test]
fn no_field_of_a_spec_is_left_out() {
    fn fields(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Array(items) => items.iter().map(fields).sum(),
            serde_json::Value::Object(map) => map.values().map(fields).sum(),
            _ => 1,
        }
    }
    for task in tasks(6) {
        let written = match_task!(&task, spec => fields(&serde_json::to_value(&**spec).unwrap()));
        let debug = format!("{task:?}");
        // A digest or number of the struct that its JSON lacks would be a field that serde skips.
        assert!(written >= debug.matches("digest:").count(), "{debug}");
        let id = task.id(&model(Precision::Float32));
        assert_eq!(task.clone().id(&model(Precision::Float32)), id);
    }
}

#[test]
fn outputs_name_their_artifacts_and_other_kinds_are_told_apart() {
    let execution = Execution {
        worker: "w".into(),
        seconds: 0.0,
        stages: std::collections::BTreeMap::new(),
        peak_memory_bytes: 0,
        device: "cpu".into(),
        arithmetic: "test".into(),
    };
    let answer = LayerAnswer {
        layer: "layer.0".into(),
        tower: Tower::Text,
        step: 0.1,
        relative_step: 0.2,
        fa1: 0.0,
        fa5: 0.0,
        utility: 1.0 / 3.0,
    };
    let output = DirectionOutput {
        before: Accuracy { fa1: 0.9, fa5: 1.0 },
        search: Vec::new(),
        chosen: Some(Chosen {
            answer,
            direction: artifact(1),
            validation: Hits { classes: [(7, Default::default())].into() },
        }),
        gradients: artifact(2),
        rank: 1,
        residual: 0.125,
        said: Answers { similarity: 0.25, first: vec![(7, 3)] },
        thumbnails: Some(artifact(3)),
    };
    let direction = &jobs(6)[7];
    let outcome = Outcome::of::<Direction>(direction.id(), &output, execution).unwrap();
    let text = serde_json::to_vec(&outcome).unwrap();
    let read: Outcome = serde_json::from_slice(&text).unwrap();
    assert_eq!(read.output::<Direction>().unwrap(), output);
    let digests = [1, 2, 3].map(|seed| StoredObject::Artifact(artifact(seed).digest));
    assert_eq!(direction.task.objects(&read).unwrap(), digests);
    assert!(read.output::<Survey>().is_err());
    assert!(jobs(6)[3].task.objects(&read).is_err());
}
