//! Recipe: the parts of a composition, and the edits that follow from them. Pure. A run composes by
//! its recipe, and later changes (a concept left out, another strength) need no computation on a
//! model.
//!
//! Parts are ordered by concept id, and all sums run in that order. Equal recipes therefore give
//! equal bytes, and a recipe without a concept gives the same result as with that concept at
//! strength 0.

use lethe_shared::edit::Edit;
use lethe_shared::reference::ArtifactRef;

use crate::compose::effect_matrix::{EffectMatrix, ImageRows};

/// The part of one concept.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The concept's id.
    pub concept: String,
    /// The layers its edit changes: one, unless edits are spread.
    pub layers: Vec<String>,
    /// Step size λ.
    pub step: f64,
    /// Strength α.
    pub strength: f64,
    /// Target rise of its forget loss at strength 1; `None` if coefficients are not solved.
    pub target: Option<f64>,
    /// Its direction, as an artifact.
    pub direction: ArtifactRef,
}

impl Part {
    /// Returns the wanted rise of its forget loss: target times strength.
    pub fn wanted(&self) -> f64 {
        self.strength * self.target.unwrap_or(0.0)
    }
}

/// All parts, and their effects on each other.
///
/// # Example
/// ```no_run,standalone_crate
/// use lethe::compose::recipe::{Part, Recipe};
///
/// fn without(recipe: &Recipe, concept: &str) -> Vec<(String, f64)> {
///     let smaller: Recipe = recipe.keeping(|part: &Part| part.concept != concept);
///     let names = smaller.parts().iter().map(|part| part.concept.clone());
///     names.zip(smaller.steps()).collect()
/// }
///
/// # fn main() -> Result<(), String> {
/// let recipe = Recipe::sum(Vec::new())?;
/// assert!(without(&recipe, "pizza").is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    parts: Vec<Part>,
    effect_matrix: Option<EffectMatrix>,
}

impl Recipe {
    /// Creates a recipe of parts in the order of their ids, each with the coefficient 1.
    ///
    /// # Errors
    /// A sentence when the parts are not in order.
    pub fn sum(parts: Vec<Part>) -> Result<Self, String> {
        in_order(&parts)?;
        Ok(Self { parts, effect_matrix: None })
    }

    /// Creates a recipe of parts in the order of their ids, whose coefficients are solved together.
    /// `effect[i * n + j]` is the rise of the forget loss of part i per step of 1 of part j.
    ///
    /// # Errors
    /// A sentence when the parts are not in order, a part has no target, or the effects are not
    /// finite or not square.
    pub fn solved(parts: Vec<Part>, effect: Vec<f64>) -> Result<Self, String> {
        in_order(&parts)?;
        if let Some(part) = parts.iter().find(|part| part.target.is_none()) {
            return Err(format!("concept `{}` has no target", part.concept));
        }
        let effect_matrix = EffectMatrix::new(effect, main_layers(&parts))?;
        Ok(Self { parts, effect_matrix: Some(effect_matrix) })
    }

    /// Creates a recipe of parts in the order of their ids, whose coefficients are solved together
    /// by margin constraints. The targets of parts follow from those of the images.
    ///
    /// # Errors
    /// A sentence when the parts are not in order, or the constraints do not fit them.
    pub fn of_images(parts: Vec<Part>, images: ImageRows) -> Result<Self, String> {
        in_order(&parts)?;
        let effect_matrix = EffectMatrix::of_images(images, main_layers(&parts))?;
        Ok(Self { parts, effect_matrix: Some(effect_matrix) }.with_own_targets())
    }

    /// Returns the recipe with other targets of its images.
    #[must_use]
    pub fn with_image_targets(mut self, targets: &[f64]) -> Self {
        self.effect_matrix =
            self.effect_matrix.map(|effect_matrix| effect_matrix.with_image_targets(targets));
        self.with_own_targets()
    }

    /// Sets the targets of parts to those that follow from their images.
    fn with_own_targets(self) -> Self {
        let images = self.effect_matrix.as_ref().and_then(EffectMatrix::images);
        match images.map(|images| images.concept_targets(self.parts.len())) {
            Some(targets) => self.with_targets(&targets),
            None => self,
        }
    }

    /// Returns the parts, by id.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the effect matrix if coefficients are solved.
    pub fn effect_matrix(&self) -> Option<&EffectMatrix> {
        self.effect_matrix.as_ref()
    }

    /// Returns the recipe with other targets, one for each part.
    #[must_use]
    pub fn with_targets(mut self, targets: &[f64]) -> Self {
        self.parts.iter_mut().zip(targets).for_each(|(part, &target)| part.target = Some(target));
        self
    }

    /// Returns the recipe with all targets times `factor`. Steps are homogeneous in the targets, so
    /// they and the change are scaled by this factor too. A recipe whose coefficients are not solved
    /// has no targets, and stays as it is.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        let scale = |targets: Vec<f64>| -> Vec<f64> {
            targets.into_iter().map(|target| factor * target).collect()
        };
        let Some(effect_matrix) = &self.effect_matrix else { return self };
        if let Some(images) = effect_matrix.images() {
            let targets = scale(images.target.clone());
            return self.with_image_targets(&targets);
        }
        let targets = self.parts.iter().map(|part| part.target.unwrap_or(0.0)).collect();
        self.with_targets(&scale(targets))
    }

    /// Returns the recipe with one part at another strength.
    #[must_use]
    pub fn with_strength(mut self, concept: &str, strength: f64) -> Self {
        self.parts
            .iter_mut()
            .filter(|part| part.concept == concept)
            .for_each(|part| part.strength = strength);
        self
    }

    /// Returns the recipe of the parts for which `keep` returns true.
    #[must_use]
    pub fn keeping(&self, keep: impl Fn(&Part) -> bool) -> Self {
        let chosen: Vec<usize> = (0..self.parts.len()).filter(|&i| keep(&self.parts[i])).collect();
        Self {
            parts: chosen.iter().map(|&i| self.parts[i].clone()).collect(),
            effect_matrix: self
                .effect_matrix
                .as_ref()
                .map(|effect_matrix| effect_matrix.among(&chosen)),
        }
    }

    /// Returns the step of each part along its direction: α · coefficient · λ.
    pub fn steps(&self) -> Vec<f64> {
        match &self.effect_matrix {
            Some(effect_matrix) => {
                let (wanted, strengths): (Vec<f64>, Vec<f64>) =
                    self.parts.iter().map(|part| (part.wanted(), part.strength)).unzip();
                effect_matrix.solve_steps(&wanted, &strengths)
            }
            None => self.parts.iter().map(|part| part.strength * part.step).collect(),
        }
    }

    /// Returns, for each part, the first-order rise of its forget loss by all other parts, as a
    /// share of its wanted rise; `None` if that is 0 or coefficients are not solved.
    pub fn by_others(&self) -> Vec<Option<f64>> {
        let Some(effect_matrix) = &self.effect_matrix else { return vec![None; self.parts.len()] };
        let steps = self.steps();
        let raises = effect_matrix.predicted_raise(&steps);
        let share = |(i, part): (usize, &Part)| {
            let wanted = part.wanted();
            (wanted > 0.0).then(|| (raises[i] - effect_matrix.effect(i, i) * steps[i]) / wanted)
        };
        self.parts.iter().enumerate().map(share).collect()
    }

    /// Returns the coefficient of each part; 1 when coefficients are not solved.
    pub fn coefficients(&self) -> Vec<f64> {
        let coefficient = |(part, step): (&Part, f64)| {
            let whole = part.strength * part.step;
            match self.effect_matrix {
                None => 1.0,
                Some(_) if whole == 0.0 => 0.0,
                Some(_) => step / whole,
            }
        };
        self.parts.iter().zip(self.steps()).map(coefficient).collect()
    }

    /// Returns the edits with their coefficients: one per part and layer.
    pub fn edits(&self) -> Vec<Edit> {
        let mut edits = Vec::with_capacity(self.parts.len());
        for (part, coefficient) in self.parts.iter().zip(self.coefficients()) {
            for layer in &part.layers {
                edits.push(Edit {
                    concept: part.concept.clone(),
                    layer: layer.clone(),
                    spread: part.layers.len() > 1,
                    step: part.step,
                    strength: part.strength,
                    coefficient,
                    direction: part.direction,
                });
            }
        }
        edits
    }
}

/// Returns the first layer of each part: of parts on one layer, its only one.
fn main_layers(parts: &[Part]) -> Vec<String> {
    parts.iter().map(|part| part.layers.first().cloned().unwrap_or_default()).collect()
}

fn in_order(parts: &[Part]) -> Result<(), String> {
    match parts.windows(2).find(|pair| pair[0].concept >= pair[1].concept) {
        Some(pair) => Err(format!(
            "concept `{}` stands before `{}`; they must stand by id, each once",
            pair[0].concept, pair[1].concept
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::checkpoint::Checkpoint;
    use lethe_shared::digest::Digest;
    use lethe_shared::edit::Direction;
    use lethe_shared::record::Merge;
    use proptest::prelude::*;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::compose::apply::{Change, compose};
    use crate::failure::Failure;

    /// Rows and columns of each of the two layers.
    const SIDE: usize = 3;

    fn checkpoint(folder: &std::path::Path) -> Checkpoint {
        let bytes: Vec<u8> =
            (0..SIDE * SIDE).flat_map(|i| (i as f32 / 7.0 - 0.5).to_le_bytes()).collect();
        let view = || TensorView::new(Dtype::F32, vec![SIDE, SIDE], &bytes).unwrap();
        let file = safetensors::serialize([("a", view()), ("b", view())], None).unwrap();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    /// Returns a low-rank direction that differs by concept.
    fn direction(edit: &Edit, _: &[usize]) -> Result<Direction, Failure> {
        let values = |from: usize| {
            edit.direction.digest.as_bytes()[from..from + SIDE]
                .iter()
                .map(|&b| f32::from(b) / 100.0 - 1.0)
                .collect()
        };
        Ok(Direction::Factored { up: values(0), down: values(SIDE), rank: 1 })
    }

    fn composed(recipe: &Recipe) -> Change {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(folder.path());
        futures::executor::block_on(compose(&checkpoint, &recipe.edits(), Merge::Sum, &direction))
            .unwrap()
    }

    fn part(number: usize, step: f64, strength: f64, first: bool) -> Part {
        let concept = format!("c{number:02}");
        Part {
            layers: vec![if first { "a" } else { "b" }.to_owned()],
            step,
            strength,
            target: Some(step / 2.0),
            direction: ArtifactRef { digest: Digest::of(concept.as_bytes()), bytes: 1 },
            concept,
        }
    }

    /// Returns an effect matrix as gradients in general position give it: larger on the diagonal
    /// than off it.
    fn effects(values: &[f64], n: usize) -> Vec<f64> {
        let at = |i: usize, j: usize| {
            let shared = (0..n).map(|k| values[i * n + k] * values[j * n + k]).sum::<f64>();
            shared + if i == j { 1.0 } else { 0.1 * values[i * n + j] }
        };
        (0..n * n).map(|cell| at(cell / n, cell % n)).collect()
    }

    const N: usize = 6;

    prop_compose! {
        fn recipes()(
            rows in proptest::collection::vec((0.01f64..4.0, 0.0f64..2.0, any::<bool>()), N),
            values in proptest::collection::vec(-1.0f64..1.0, N * N),
            solved in any::<bool>(),
        ) -> Recipe {
            let parts = rows.into_iter().enumerate().map(|(number, (step, strength, first))| part(number, step, strength, first)).collect();
            if solved { Recipe::solved(parts, effects(&values, N)).unwrap() } else { Recipe::sum(parts).unwrap() }
        }
    }

    proptest! {
        #[test]
        fn a_concept_left_out_is_one_that_never_was(recipe in recipes(), out in proptest::collection::vec(any::<bool>(), N)) {
            let number = |part: &Part| part.concept[1..].parse::<usize>().unwrap();
            let without = recipe.keeping(|part| !out[number(part)]);
            let silent = recipe.parts().iter().filter(|part| out[number(part)]).map(|part| part.concept.clone());
            let silenced = silent.fold(recipe.clone(), |recipe, concept| recipe.with_strength(&concept, 0.0));
            prop_assert_eq!(composed(&without), composed(&silenced));
            // The same recipe built from its own matrix.
            let parts = without.parts().to_vec();
            let anew = match recipe.effect_matrix() {
                None => Recipe::sum(parts),
                Some(effect_matrix) => {
                    let kept: Vec<usize> = (0..N).filter(|&i| !out[i]).collect();
                    let effect = kept.iter().flat_map(|&i| kept.iter().map(move |&j| effect_matrix.effect(i, j))).collect();
                    Recipe::solved(parts, effect)
                }
            };
            prop_assert_eq!(composed(&anew.unwrap()), composed(&without));
        }

        #[test]
        fn changing_nothing_changes_nothing(recipe in recipes(), strength in 0.0f64..2.0) {
            let before = composed(&recipe);
            prop_assert_eq!(&before, &composed(&recipe.keeping(|_| true)));
            let own = recipe.parts()[2].strength;
            let there_and_back = recipe.clone().with_strength("c02", strength).with_strength("c02", own);
            prop_assert_eq!(&before, &composed(&there_and_back));
        }

        #[test]
        fn strength_zero_of_all_is_the_base(recipe in recipes()) {
            let silent = (0..N).fold(recipe, |recipe, number| recipe.with_strength(&format!("c{number:02}"), 0.0));
            prop_assert_eq!(composed(&silent), Change::new());
            prop_assert_eq!(composed(&silent.keeping(|_| false)), Change::new());
        }

        #[test]
        fn scaled_targets_scale_the_steps(recipe in recipes(), factor in 0.1f64..1.0) {
            let solved = recipe.effect_matrix().is_some();
            let by = if solved { factor } else { 1.0 };
            let scaled = recipe.clone().scaled(factor).steps();
            for (before, after) in recipe.steps().into_iter().zip(scaled) {
                prop_assert!((after - by * before).abs() <= 1e-6 * before.abs().max(1e-9), "{before} {after}");
            }
        }

        #[test]
        fn a_summed_edit_goes_as_far_as_its_step(step in 0.01f64..4.0, strength in 0.0f64..2.0) {
            let recipe = Recipe::sum(vec![Part { target: None, ..part(0, step, strength, true) }]).unwrap();
            prop_assert_eq!(recipe.edits()[0].factor(), strength * step);
        }
    }

    #[test]
    fn what_others_do_to_a_part_is_told() {
        let parts = vec![part(0, 1.0, 1.0, true), part(1, 1.0, 1.0, true), part(2, 1.0, 0.0, true)];
        let recipe =
            Recipe::solved(parts, vec![1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]).unwrap();
        let steps = recipe.steps();
        let [Some(first), Some(second), None] = recipe.by_others()[..] else {
            panic!("{:?}", recipe.by_others())
        };
        assert!((first - steps[1]).abs() < 1e-12 && second.abs() < 1e-12 && steps[1] > 0.1);
        assert_eq!(Recipe::sum(vec![part(0, 1.0, 1.0, true)]).unwrap().by_others(), [None]);
    }

    #[test]
    fn what_is_no_recipe_is_refused() {
        let parts = |numbers: &[usize]| {
            numbers.iter().map(|&number| part(number, 1.0, 1.0, true)).collect::<Vec<_>>()
        };
        for numbers in [[1, 0], [1, 1]] {
            assert!(Recipe::sum(parts(&numbers)).unwrap_err().contains("`c01` stands before"));
        }
        assert!(Recipe::solved(parts(&[0, 1]), vec![1.0; 3]).unwrap_err().contains("square"));
        assert!(Recipe::solved(parts(&[0]), vec![f64::NAN]).is_err());
        let without = vec![Part { target: None, ..part(0, 1.0, 1.0, true) }];
        assert!(Recipe::solved(without, vec![1.0]).unwrap_err().contains("no target"));
    }
}
