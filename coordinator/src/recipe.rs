//! What a composition is made of, and the edits that follow from it. Pure: a run composes by this, and so does whoever leaves a
//! concept out or changes a strength later, without computing anything on a model.
//!
//! Concepts stand by id, and all sums run in that order. So equal recipes give equal bytes, and a recipe without a concept gives
//! what the same recipe gives with that concept at strength 0.

use lethe_shared::edit::Edit;
use lethe_shared::job::ArtifactRef;

use crate::dosing::Interference;

/// One concept's part.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The concept's id.
    pub concept: String,
    /// The layer its edit changes.
    pub layer: String,
    /// Step size λ.
    pub step: f64,
    /// Strength α.
    pub strength: f64,
    /// By how much its forget loss is to be raised at strength 1; `None` where doses are not solved.
    pub target: Option<f64>,
    /// Its direction.
    pub direction: ArtifactRef,
}

impl Part {
    /// What is wanted of it: target times strength.
    pub fn wanted(&self) -> f64 {
        self.strength * self.target.unwrap_or(0.0)
    }
}

/// All parts, and what they do to each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    parts: Vec<Part>,
    interference: Option<Interference>,
}

impl Recipe {
    /// Parts by id, to be added up as they are.
    ///
    /// # Errors
    /// A sentence when parts are not in order.
    pub fn sum(parts: Vec<Part>) -> Result<Self, String> {
        in_order(&parts)?;
        Ok(Self { parts, interference: None })
    }

    /// Parts by id, whose doses are solved together: `effect[i * n + j]` is by how much a step of 1 of part j raises the forget
    /// loss of part i.
    ///
    /// # Errors
    /// A sentence when parts are not in order, one has no target, or effects are not finite or not a square.
    pub fn solved(parts: Vec<Part>, effect: Vec<f64>) -> Result<Self, String> {
        in_order(&parts)?;
        if let Some(part) = parts.iter().find(|part| part.target.is_none()) {
            return Err(format!("concept `{}` has no target", part.concept));
        }
        let interference = Interference::new(effect, parts.iter().map(|part| part.layer.clone()).collect())?;
        Ok(Self { parts, interference: Some(interference) })
    }

    /// The parts, by id.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What parts do to each other, where doses are solved.
    pub fn interference(&self) -> Option<&Interference> {
        self.interference.as_ref()
    }

    /// The same with other targets, one for each part.
    #[must_use]
    pub fn with_targets(mut self, targets: &[f64]) -> Self {
        self.parts.iter_mut().zip(targets).for_each(|(part, &target)| part.target = Some(target));
        self
    }

    /// The same with a part at another strength.
    #[must_use]
    pub fn with_strength(mut self, concept: &str, strength: f64) -> Self {
        self.parts.iter_mut().filter(|part| part.concept == concept).for_each(|part| part.strength = strength);
        self
    }

    /// The same without some parts.
    #[must_use]
    pub fn keeping(&self, keep: impl Fn(&Part) -> bool) -> Self {
        let chosen: Vec<usize> = (0..self.parts.len()).filter(|&i| keep(&self.parts[i])).collect();
        Self {
            parts: chosen.iter().map(|&i| self.parts[i].clone()).collect(),
            interference: self.interference.as_ref().map(|interference| interference.among(&chosen)),
        }
    }

    /// How far each part goes along its direction: α · dose · λ.
    pub fn steps(&self) -> Vec<f64> {
        match &self.interference {
            Some(interference) => interference.doses(&self.parts.iter().map(Part::wanted).collect::<Vec<_>>()),
            None => self.parts.iter().map(|part| part.strength * part.step).collect(),
        }
    }

    /// By how much the other parts raise each part's forget loss, to first order, as a share of what is wanted of it; `None` where
    /// nothing is wanted or doses are not solved.
    pub fn by_others(&self) -> Vec<Option<f64>> {
        let Some(interference) = &self.interference else { return vec![None; self.parts.len()] };
        let steps = self.steps();
        let raises = interference.predicted_raise(&steps);
        let share = |(i, part): (usize, &Part)| {
            let wanted = part.wanted();
            (wanted > 0.0).then(|| (raises[i] - interference.effect(i, i) * steps[i]) / wanted)
        };
        self.parts.iter().enumerate().map(share).collect()
    }

    /// The edits, dosed.
    pub fn edits(&self) -> Vec<Edit> {
        let edit = |(part, step): (&Part, f64)| {
            let whole = part.strength * part.step;
            let dose = match self.interference {
                None => 1.0,
                Some(_) if whole == 0.0 => 0.0,
                Some(_) => step / whole,
            };
            Edit {
                concept: part.concept.clone(),
                layer: part.layer.clone(),
                step: part.step,
                strength: part.strength,
                dose,
                direction: part.direction,
            }
        };
        self.parts.iter().zip(self.steps()).map(edit).collect()
    }
}

fn in_order(parts: &[Part]) -> Result<(), String> {
    match parts.windows(2).find(|pair| pair[0].concept >= pair[1].concept) {
        Some(pair) => Err(format!("concept `{}` stands before `{}`; they must stand by id, each once", pair[0].concept, pair[1].concept)),
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
    use crate::compose::{Change, compose};
    use crate::failure::Failure;

    /// Rows and columns of the two layers.
    const SIDE: usize = 3;

    fn checkpoint(folder: &std::path::Path) -> Checkpoint {
        let bytes: Vec<u8> = (0..SIDE * SIDE).flat_map(|i| (i as f32 / 7.0 - 0.5).to_le_bytes()).collect();
        let view = || TensorView::new(Dtype::F32, vec![SIDE, SIDE], &bytes).unwrap();
        let file = safetensors::serialize([("a", view()), ("b", view())], None).unwrap();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    /// Factors that differ by concept.
    fn direction(edit: &Edit, _: &[usize]) -> Result<Direction, Failure> {
        let values =
            |from: usize| edit.direction.digest.as_bytes()[from..from + SIDE].iter().map(|&b| f32::from(b) / 100.0 - 1.0).collect();
        Ok(Direction::Factored { up: values(0), down: values(SIDE), rank: 1 })
    }

    fn composed(recipe: &Recipe) -> Change {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(folder.path());
        futures::executor::block_on(compose(&checkpoint, &recipe.edits(), Merge::Sum, &direction)).unwrap()
    }

    fn part(number: usize, step: f64, strength: f64, first: bool) -> Part {
        let concept = format!("c{number:02}");
        Part {
            layer: if first { "a" } else { "b" }.to_owned(),
            step,
            strength,
            target: Some(step / 2.0),
            direction: ArtifactRef { digest: Digest::of(concept.as_bytes()), bytes: 1 },
            concept,
        }
    }

    /// Effects as gradients in general position have them: more on themselves than on each other.
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
            // The same from the beginning, by its own matrix.
            let parts = without.parts().to_vec();
            let anew = match recipe.interference() {
                None => Recipe::sum(parts),
                Some(interference) => {
                    let kept: Vec<usize> = (0..N).filter(|&i| !out[i]).collect();
                    let effect = kept.iter().flat_map(|&i| kept.iter().map(move |&j| interference.effect(i, j))).collect();
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
        fn a_summed_edit_goes_as_far_as_its_step(step in 0.01f64..4.0, strength in 0.0f64..2.0) {
            let recipe = Recipe::sum(vec![Part { target: None, ..part(0, step, strength, true) }]).unwrap();
            prop_assert_eq!(recipe.edits()[0].factor(), strength * step);
        }
    }

    #[test]
    fn what_others_do_to_a_part_is_told() {
        let parts = vec![part(0, 1.0, 1.0, true), part(1, 1.0, 1.0, true), part(2, 1.0, 0.0, true)];
        let recipe = Recipe::solved(parts, vec![1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]).unwrap();
        let steps = recipe.steps();
        let [Some(first), Some(second), None] = recipe.by_others()[..] else { panic!("{:?}", recipe.by_others()) };
        assert!((first - steps[1]).abs() < 1e-12 && second.abs() < 1e-12 && steps[1] > 0.1);
        assert_eq!(Recipe::sum(vec![part(0, 1.0, 1.0, true)]).unwrap().by_others(), [None]);
    }

    #[test]
    fn what_is_no_recipe_is_refused() {
        let parts = |numbers: &[usize]| numbers.iter().map(|&number| part(number, 1.0, 1.0, true)).collect::<Vec<_>>();
        for numbers in [[1, 0], [1, 1]] {
            assert!(Recipe::sum(parts(&numbers)).unwrap_err().contains("`c01` stands before"));
        }
        assert!(Recipe::solved(parts(&[0, 1]), vec![1.0; 3]).unwrap_err().contains("square"));
        assert!(Recipe::solved(parts(&[0]), vec![f64::NAN]).is_err());
        let without = vec![Part { target: None, ..part(0, 1.0, 1.0, true) }];
        assert!(Recipe::solved(without, vec![1.0]).unwrap_err().contains("no target"));
    }
}
