//! The optimizer of fine-tunings and learned prompts.

use tch::Tensor;

/// Adam (arXiv 1412.6980, algorithm 1) with its usual constants, in float32.
pub(super) struct Adam {
    rate: f64,
    steps: i32,
    /// Running means of gradients and of their squares, in the order of the gradients.
    means: Vec<(Tensor, Tensor)>,
}

impl Adam {
    const DECAY: f64 = 0.9;
    const SQUARES_DECAY: f64 = 0.999;
    const EPSILON: f64 = 1e-8;

    pub(super) fn new(rate: f64) -> Self {
        Self { rate, steps: 0, means: Vec::new() }
    }

    /// Returns what one step subtracts from each parameter, given their gradients.
    pub(super) fn step<'a>(
        &mut self,
        gradients: impl Iterator<Item = &'a Tensor>,
    ) -> Result<Vec<Tensor>, tch::TchError> {
        self.steps += 1;
        let rate = self.rate / (1.0 - Self::DECAY.powi(self.steps));
        let unbias = 1.0 / (1.0 - Self::SQUARES_DECAY.powi(self.steps));
        let mut changes = Vec::new();
        for (place, gradient) in gradients.enumerate() {
            if self.means.len() == place {
                self.means.push((gradient.f_zeros_like()?, gradient.f_zeros_like()?));
            }
            let (mean, squares) = &mut self.means[place];
            *mean = mean
                .f_mul_scalar(Self::DECAY)?
                .f_add(&gradient.f_mul_scalar(1.0 - Self::DECAY)?)?;
            *squares = squares
                .f_mul_scalar(Self::SQUARES_DECAY)?
                .f_add(&gradient.f_square()?.f_mul_scalar(1.0 - Self::SQUARES_DECAY)?)?;
            let size = squares.f_mul_scalar(unbias)?.f_sqrt()?.f_add_scalar(Self::EPSILON)?;
            changes.push(mean.f_mul_scalar(rate)?.f_div(&size)?);
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (x − 3)² from 0, with the places that `torch.optim.Adam(lr=0.1)` reaches.
    #[test]
    fn adam_descends_as_in_pytorch() {
        let (mut x, mut adam) = (Tensor::from_slice(&[0.0f32]), Adam::new(0.1));
        for expected in [0.1, 0.199_897, 0.299_618, 0.399_086, 0.498_221] {
            let gradient = &x * 2.0 - 6.0;
            x -= &adam.step([&gradient].into_iter()).unwrap()[0];
            let found = x.double_value(&[0]);
            assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
        }
    }
}
