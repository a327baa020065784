//! Importance, alignment and the Pareto front (paper section 3.2).

use tch::{Device, Kind, Tensor};

use crate::model::{Error, NotFinite};

/// The scores of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// ‖θ_l‖₂.
    pub weight_norm: f64,
    /// ‖g_f,l‖₂.
    pub gradient_norm: f64,
    /// ‖g_f,l‖₂ / ‖θ_l‖₂: how much forgetting changes this layer; higher is better.
    pub importance: f64,
    /// cos(g_f,l , g_r,l), with its sign.
    pub cosine: f64,
}

impl Scores {
    /// Returns |cos(g_f,l , g_r,l)|: how much a change of this layer affects retained data; lower
    /// is better.
    pub fn alignment(&self) -> f64 {
        self.cosine.abs()
    }

    /// Scores one layer from its weight, forget gradient and retain gradient, all of the same
    /// shape. Sums run in float64 on the tensors' device.
    ///
    /// A gradient of length zero has no direction, so its cosine is 0. A weight of length zero has
    /// an importance of 0, because no relative change of it is defined.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a norm is not finite.
    pub fn new(
        layer: &str,
        weight: &Tensor,
        forget: &Tensor,
        retain: &Tensor,
    ) -> Result<Self, Error> {
        let flat = |t: &Tensor| -> Result<Tensor, Error> {
            Ok(t.f_reshape([-1])?.f_to_kind(Kind::Double)?)
        };
        let (weight, forget, retain) = (flat(weight)?, flat(forget)?, flat(retain)?);
        // Fetched together because every fetch from a device waits until all its queued work is
        // done.
        let dots = [
            weight.f_dot(&weight)?,
            forget.f_dot(&forget)?,
            retain.f_dot(&retain)?,
            forget.f_dot(&retain)?,
        ];
        let mut values = [0.0; 4];
        Tensor::f_stack(&dots, 0)?.f_to_device(Device::Cpu)?.f_copy_data(&mut values, 4)?;
        let ([weight_norm, gradient_norm, retain_norm], shared) =
            ([values[0], values[1], values[2]].map(f64::sqrt), values[3]);
        let product = gradient_norm * retain_norm;
        let cosine = if product > 0.0 { (shared / product).clamp(-1.0, 1.0) } else { 0.0 };
        let importance = if weight_norm > 0.0 { gradient_norm / weight_norm } else { 0.0 };
        if [weight_norm, gradient_norm, retain_norm, cosine, importance]
            .iter()
            .any(|v| !v.is_finite())
        {
            return Err(NotFinite::new(format!(
                "norms of the weight or the gradients of layer `{layer}`"
            ))
            .into());
        }
        Ok(Self { weight_norm, gradient_norm, importance, cosine })
    }

    /// Returns R = ‖θ_l‖ / ‖g_f,l‖, the step that changes a layer by its own length; `None` when
    /// weight or gradient is zero.
    pub fn unit_step(&self) -> Option<f64> {
        (self.gradient_norm > 0.0 && self.weight_norm > 0.0)
            .then(|| self.weight_norm / self.gradient_norm)
    }
}

/// Returns which layers are on the Pareto front, given (importance, alignment) pairs. A layer is on
/// it unless another one has strictly lower alignment **and** strictly higher importance.
pub fn pareto_front(scores: &[(f64, f64)]) -> Vec<bool> {
    scores
        .iter()
        .map(|&(importance, alignment)| {
            !scores.iter().any(|&(other, aligned)| aligned < alignment && other > importance)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_worse_in_both_leaves_the_front() {
        assert_eq!(pareto_front(&[(1.0, 0.1), (0.5, 0.2), (2.0, 0.5)]), [true, false, true]);
    }

    #[test]
    fn equal_scores_do_not_push_each_other_out() {
        assert_eq!(pareto_front(&[(1.0, 0.1), (1.0, 0.1)]), [true, true]);
        // Better in one score, equal in the other, is not strictly better in both.
        assert_eq!(pareto_front(&[(1.0, 0.1), (2.0, 0.1), (1.0, 0.05)]), [true, true, true]);
    }

    #[test]
    fn scores_of_a_known_layer() {
        let weight = Tensor::from_slice(&[3f32, 4.0]);
        let forget = Tensor::from_slice(&[1f32, 0.0]);
        let retain = Tensor::from_slice(&[-1f32, 1.0]);
        let scores = Scores::new("l", &weight, &forget, &retain).unwrap();
        assert_eq!(scores.weight_norm, 5.0);
        assert_eq!(scores.importance, 0.2);
        assert!((scores.cosine + 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(scores.unit_step(), Some(5.0));
    }

    #[test]
    fn no_gradient_has_no_direction_and_no_step() {
        let weight = Tensor::from_slice(&[3f32, 4.0]);
        let zero = Tensor::from_slice(&[0f32, 0.0]);
        let scores = Scores::new("l", &weight, &zero, &weight).unwrap();
        assert_eq!((scores.importance, scores.cosine, scores.unit_step()), (0.0, 0.0, None));
    }

    #[test]
    fn infinite_weights_are_refused() {
        let weight = Tensor::from_slice(&[f32::INFINITY, 4.0]);
        assert!(matches!(Scores::new("l", &weight, &weight, &weight), Err(Error::NotFinite(_))));
    }
}
