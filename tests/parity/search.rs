//! The search for a step and the choice of a layer: optimisations do not change their results.

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::vocabulary::{MethodSettings, Stop, Tower};
use lethe_worker::corpus::{self, ActivationBudget, Corpus};
use lethe_worker::micro_batch::MicroBatch;
use lethe_worker::model::{Clip, Error, Input, ParameterId};
use lethe_worker::slug::choice::{choose, hardest_first};
use lethe_worker::slug::direction_search::search_direction;
use lethe_worker::slug::gradient::{GradientSum, Images, Loss};
use lethe_worker::slug::ranking::Scores;
use lethe_worker::slug::screen::NearestClassScreen;
use lethe_worker::slug::search::search_layer;
use lethe_worker::slug::trial::{
    CandidateEdit, EvaluationContext, ForgetSet, FrontLayer, SelectedEdit, edited_layer,
};
use lethe_worker::zero_shot;
use tch::{Device, Kind, Tensor};

use super::golden::{Golden, close};

/// Returns texts of random words in different numbers, each with the end-of-text token.
fn random_texts(clip: &Clip, name: &str, texts: usize) -> Vec<Vec<u32>> {
    let mut draws = Draws::seeded(Digest::of(name.as_bytes()));
    let (vocabulary, context) =
        (clip.config().vocabulary as u32, clip.config().context_length as usize);
    let mut token = |below: u32| (draws.uniform() * f64::from(below - 1)) as u32;
    let is_causal = clip.config().text.is_causal;
    let mut text = || {
        let mut text: Vec<u32> = (0..3 + token(context as u32 - 4))
            .map(|_| 3 + token(vocabulary - 10))
            .chain([vocabulary - 1])
            .collect();
        if !is_causal {
            text.resize(context, 1);
        }
        text
    };
    (0..texts).map(|_| text()).collect()
}

/// An image, the random class that the model assigns to it, and the forget gradient of both.
struct Scene {
    golden: Golden,
    class_texts: Corpus,
    /// `[classes, d]`.
    classes: Tensor,
    image: Tensor,
    images: Corpus,
    /// `[1, d]`.
    embedded: Tensor,
    class: u32,
    gradients: Vec<(ParameterId, Tensor)>,
}

impl Scene {
    fn of(name: &str, classes: usize) -> Self {
        let golden = Golden::open(name);
        let (clip, weights, budget) =
            (&golden.clip, golden.parameters.weights(), ActivationBudget::new(64 << 20));
        let texts = random_texts(clip, name, classes);
        let class_texts =
            Corpus::texts(clip, &texts, Device::Cpu, &budget, MicroBatch::UNLIMITED).unwrap();
        let image = golden.batch("forget", 0).0.narrow(0, 0, 1);
        let images =
            Corpus::images(clip, &image, Device::Cpu, &budget, MicroBatch::UNLIMITED).unwrap();
        let embed = |corpus: &Corpus| {
            let _guard = tch::no_grad_guard();
            corpus.embed(clip, &weights, &weights, None).unwrap()
        };
        let (classes, embedded) = (embed(&class_texts), embed(&images));
        let class =
            embedded.matmul(&classes.transpose(0, 1)).argmax(1, false).int64_value(&[0]) as usize;
        let mut sum =
            GradientSum::new(clip.architecture().candidates(false), MicroBatch::UNLIMITED);
        let own = clip.token_batch(&texts[class..=class], Device::Cpu).unwrap();
        sum.add(Loss::Forget, clip, &weights, Images::Pixels(&image), &own).unwrap();
        let gradients = sum.mean(&weights).unwrap();
        Self {
            golden,
            class_texts,
            classes,
            image,
            images,
            embedded,
            class: class as u32,
            gradients,
        }
    }

    fn images(&self, pixels: &Tensor, micro_batch: MicroBatch) -> Corpus {
        Corpus::images(
            &self.golden.clip,
            pixels,
            Device::Cpu,
            &ActivationBudget::new(64 << 20),
            micro_batch,
        )
        .unwrap()
    }

    /// Returns the evaluation context with these validation images and their embeddings.
    fn context<'a>(
        &'a self,
        validation: &'a Corpus,
        embeddings: &'a Tensor,
        labels: &'a [u32],
    ) -> EvaluationContext<'a> {
        EvaluationContext {
            clip: &self.golden.clip,
            parameters: &self.golden.parameters,
            class_texts: &self.class_texts,
            class_embeddings: &self.classes,
            validation_images: Some(validation),
            validation_embeddings: embeddings,
            validation_labels: labels,
            spare_tokens: 0,
        }
    }

    fn forget_set(&self) -> ForgetSet<'_> {
        ForgetSet { class: self.class, images: Some(&self.images), embeddings: &self.embedded }
    }
}

/// Returns the settings of a search.
fn method(stop: Stop) -> MethodSettings {
    MethodSettings {
        batch_size: 1,
        search_evaluations: 10,
        search_tolerance: 0.0,
        stop,
        normalisation_gains: false,
    }
}

/// Runs the search on every text layer, once as method.md specifies it and once with the
/// nearest-class screen.
pub(crate) fn screen(name: &str) {
    let scene = Scene::of(name, 300);
    let Scene { golden, class_texts, class, gradients, .. } = &scene;
    let (clip, original) = (&golden.clip, golden.parameters.weights());
    let _guard = tch::no_grad_guard();
    let (pixels, _) = golden.batch("forget", 0);
    let validation = scene.images(&pixels, MicroBatch::UNLIMITED);
    let validation_images = validation.embed(clip, &original, &original, None).unwrap();
    let labels: Vec<u32> = (0..validation.len() as u32).collect();
    let (context, forget_set) =
        (scene.context(&validation, &validation_images, &labels), scene.forget_set());
    assert!(
        NearestClassScreen::new(context, &forget_set, Stop::Fa1).unwrap().is_none(),
        "FA@1 alone proves nothing about FA@5"
    );
    let screen = NearestClassScreen::new(context, &forget_set, Stop::Fa5)
        .unwrap()
        .expect("a dozen of 300 classes are few");
    let mut proven = 0;
    for (id, gradient) in gradients {
        let spec = clip.architecture().spec(*id);
        if spec.tower != Some(Tower::Text) {
            continue;
        }
        let scores =
            Scores::new(&spec.name, &golden.parameters.get(*id), gradient, gradient).unwrap();
        let layer = FrontLayer { id: *id, scores, gradient };
        let (trials, answer) =
            search_layer(context, &forget_set, &layer, &method(Stop::Fa5), None).unwrap();
        let (ours, found) =
            search_layer(context, &forget_set, &layer, &method(Stop::Fa5), Some(&screen)).unwrap();
        assert_eq!(ours, trials, "{}", spec.name);
        let parts = |found: Option<CandidateEdit<'_>>| {
            found.map(|found| (found.step, found.relative_step, found.accuracy, found.validation))
        };
        assert_eq!(parts(found), parts(answer));
        for trial in &trials {
            let moved = edited_layer(&golden.parameters, *id, gradient, trial.step).unwrap();
            let is_proven = screen
                .accuracies(context, &forget_set, &original, *id, &moved.unsqueeze(0))
                .unwrap()[0]
                .fa5
                == 0.0;
            assert!(
                trial.forgotten || !is_proven,
                "{}: a step that did not forget is proven",
                spec.name
            );
            proven += usize::from(is_proven);
        }
    }
    assert!(proven > 0, "no step was proven, so the screen was not tested");

    // Evaluating steps in advance, several in a pass, does not change the result of a search.
    let own_text = class_texts.subset(&[i64::from(*class)]).unwrap();
    let (mut found, mut grown) = (0, 0);
    for (id, gradient) in gradients {
        let spec = clip.architecture().spec(*id);
        if spec.tower != Some(Tower::Text) {
            continue;
        }
        for screen in [None, Some(&screen)] {
            let searched = |spare_tokens| {
                let context = EvaluationContext { spare_tokens, ..context };
                search_direction(
                    context,
                    &forget_set,
                    &own_text,
                    screen,
                    *id,
                    gradient,
                    &method(Stop::Fa5),
                )
                .unwrap()
            };
            let (trials, answer) = searched(0);
            for spare_tokens in [100, 1 << 20] {
                let (ours, same) = searched(spare_tokens);
                assert_eq!(ours, trials, "{} with {spare_tokens} tokens to spare", spec.name);
                let parts = |answer: &Option<SelectedEdit>| {
                    answer
                        .as_ref()
                        .map(|answer| (answer.summary.clone(), answer.validation.clone()))
                };
                assert_eq!(parts(&same), parts(&answer), "{}", spec.name);
            }
            found += usize::from(answer.is_some());
            grown += usize::from(screen.is_some() && trials.len() > 10);
        }
    }
    // A random bidirectional tower embeds all texts nearly alike: no step sets one apart.
    let can_find = clip.config().text.is_causal;
    assert!(
        (found > 0 || !can_find) && grown > 0,
        "{found} searches found a step, and {grown} steps grew by the screen"
    );
}

/// The choice among layers that forgot equals the choice when every layer is evaluated to the end.
pub(crate) fn choice(name: &str) {
    let scene = Scene::of(name, 40);
    let Scene { golden, class_texts, classes, image, gradients, .. } = &scene;
    let (clip, original, class) = (&golden.clip, golden.parameters.weights(), scene.class);
    let _guard = tch::no_grad_guard();

    // The model classifies two in three validation images correctly.
    tch::manual_seed(5);
    let pixels = image.randn_like().repeat([60, 1, 1, 1]) * 0.5
        + Tensor::randn([60, 3, image.size()[2], image.size()[3]], (Kind::Float, Device::Cpu));
    let validation_images = clip.embed(&original, Input::Images(&pixels)).unwrap();
    let known =
        Vec::<i64>::try_from(validation_images.matmul(&classes.transpose(0, 1)).argmax(1, false))
            .unwrap();
    let labels: Vec<u32> = known
        .iter()
        .enumerate()
        .map(|(i, &class)| (class as u32 + u32::from(i % 3 == 0)) % 40)
        .collect();
    let order =
        hardest_first(&validation_images, classes, &corpus::labels(&labels, Device::Cpu).unwrap())
            .unwrap();
    let rows = Tensor::from_slice(&order);
    let (pixels, validation_images) =
        (pixels.index_select(0, &rows), validation_images.index_select(0, &rows));
    let labels: Vec<u32> = order.iter().map(|&image| labels[image as usize]).collect();
    assert!(
        order[..20].iter().all(|image| image % 3 == 0),
        "misclassified images come first: {order:?}"
    );

    // The size of passes affects neither the choice nor the record.
    let mut before = None;
    for cut in [60, 7, 1] {
        let validation = scene.images(&pixels, MicroBatch::limited_to(cut));
        let (context, forget_set) =
            (scene.context(&validation, &validation_images, &labels), scene.forget_set());
        for stop in [Stop::Fa5, Stop::Fa1] {
            let (mut trials, mut found) = (Vec::new(), Vec::new());
            for (id, gradient) in gradients {
                let scores =
                    Scores::new("layer", &golden.parameters.get(*id), gradient, gradient).unwrap();
                let layer = FrontLayer { id: *id, scores, gradient };
                let (tried, answer) =
                    search_layer(context, &forget_set, &layer, &method(stop), None).unwrap();
                trials.extend(tried);
                found.extend(answer);
            }
            let utility = |found: &CandidateEdit<'_>| {
                let edited =
                    edited_layer(&golden.parameters, found.id, found.gradient, found.step).unwrap();
                let edited = original.with(found.id, edited);
                let (image_embeddings, class_embeddings) = match found.tower {
                    Tower::Vision => (
                        clip.embed(&edited, Input::Images(&pixels)).unwrap(),
                        classes.shallow_clone(),
                    ),
                    Tower::Text => (
                        validation_images.shallow_clone(),
                        class_texts.embed_uncached(clip, &edited).unwrap(),
                    ),
                };
                let ranks = zero_shot::ranks(
                    &image_embeddings,
                    &class_embeddings,
                    &corpus::labels(&labels, Device::Cpu).unwrap(),
                )
                .unwrap();
                zero_shot::hits(&ranks, &labels).mean_top1(|other| other != class)
            };
            let utilities: Vec<f64> = found.iter().map(utility).collect();
            let accuracies = |found: &CandidateEdit<'_>| match stop {
                Stop::Fa5 => (found.accuracy.fa5, found.accuracy.fa1),
                _ => (found.accuracy.fa1, found.accuracy.fa5),
            };
            let best = (0..found.len())
                .min_by(|&a, &b| {
                    let key =
                        |i: usize| (accuracies(&found[i]), -utilities[i], found[i].relative_step);
                    key(a).partial_cmp(&key(b)).unwrap()
                })
                .unwrap();
            let expected = (found[best].id, found[best].step, utilities[best]);
            let answers: Vec<(String, f64, Tower)> = found
                .iter()
                .map(|found| (found.name.to_owned(), found.step, found.tower))
                .collect();
            let chosen =
                choose(context, &forget_set, found, stop, &mut trials, || Ok::<_, Error>(()))
                    .unwrap()
                    .unwrap();
            assert_eq!(
                (chosen.id, chosen.summary.step, chosen.summary.utility),
                expected,
                "{stop:?}"
            );
            assert_eq!(chosen.validation.mean_top1(|other| other != class), chosen.summary.utility);
            assert_eq!(chosen.validation.classes.values().map(|hits| hits.n).sum::<u32>(), 60);

            let recorded: Vec<Option<f64>> = answers
                .iter()
                .map(|(layer, step, _)| {
                    trials
                        .iter()
                        .find(|trial| (&trial.layer, trial.step) == (layer, *step))
                        .unwrap()
                        .utility
                })
                .collect();
            for (((_, _, tower), ours), all) in answers.iter().zip(&recorded).zip(&utilities) {
                assert!(
                    ours.map_or(*tower == Tower::Vision, |ours| ours == *all),
                    "{answers:?}, {recorded:?}, {utilities:?}"
                );
            }
            assert!(
                recorded.iter().any(Option::is_none),
                "every candidate was evaluated to the end"
            );
            match (stop, &before) {
                (Stop::Fa5, None) => before = Some(recorded),
                (Stop::Fa5, Some(before)) => assert_eq!(recorded, *before, "in passes of {cut}"),
                _ => {}
            }
        }
    }
}

/// Embedding items under several edits in one pass equals embedding them under each edit.
pub(crate) fn trials_together(name: &str) {
    let golden = Golden::open(name);
    let (clip, original) = (&golden.clip, golden.parameters.weights());
    let _guard = tch::no_grad_guard();
    let (pixels, texts) = golden.batch("forget", 0);
    let ids: Vec<Vec<u32>> = (0..texts.ids.size()[0])
        .map(|row| {
            let end = texts.pooled.int64_value(&[row]) + 1;
            Vec::<i64>::try_from(texts.ids.get(row).narrow(0, 0, end))
                .unwrap()
                .into_iter()
                .map(|id| id as u32)
                .collect()
        })
        .collect();
    let budget = ActivationBudget::new(64 << 20);
    let texts = Corpus::texts(clip, &ids, Device::Cpu, &budget, MicroBatch::UNLIMITED).unwrap();
    let images =
        Corpus::images(clip, &pixels, Device::Cpu, &budget, MicroBatch::UNLIMITED).unwrap();
    tch::manual_seed(11);
    for id in clip.architecture().candidates(true) {
        let spec = clip.architecture().spec(id);
        let corpus = if spec.tower == Some(Tower::Text) { &texts } else { &images };
        let layer = golden.parameters.get(id);
        let trials: Vec<Tensor> =
            (1..4).map(|size| &layer + layer.randn_like() * (0.01 * f64::from(size))).collect();
        let together =
            corpus.embed_trials(clip, &original, id, &Tensor::stack(&trials, 0)).unwrap();
        for (number, trial) in (0..).zip(&trials) {
            let alone = corpus
                .embed(clip, &original, &original.with(id, trial.shallow_clone()), Some(id))
                .unwrap();
            close(&spec.name, &together.get(number), &alone, 1e-5);
        }
    }
}
