//! Directions that turn aside from inputs that must not be moved.

use tch::{Device, Kind, Tensor};

use crate::model::Error;

/// μ⁻¹ against the mean size of what edits do to the inputs: small enough that nothing measurable is left, large enough that inputs
/// that nearly repeat each other do no harm in float64.
const SOFTNESS: f64 = 1e-6;

/// What stands to the right of a gradient, turned aside from inputs that must not be moved.
///
/// With A = (C + ρI)⁻¹ `[inputs, inputs]` as it stands there and inputs B `[vectors, inputs]`, a layer's cost to what must stay grows by
/// μ‖ΔBᵀ‖², and A becomes (by Woodbury's identity)
///
/// A' = (A⁻¹ + μ BᵀB)⁻¹ = A − ABᵀ (BABᵀ + μ⁻¹I)⁻¹ BA.
///
/// Of all steps that raise the forget loss as much, and move no row of B, the one along g A' moves what must stay the least. A projection
/// serves as A too. Float64, symmetric.
///
/// # Errors
/// When libtorch refuses.
pub fn spared(inverse: &Tensor, inputs: &Tensor) -> Result<Tensor, Error> {
    let (a, b) = (inverse.f_to_kind(Kind::Double)?, inputs.f_to_kind(Kind::Double)?);
    let moved = b.f_matmul(&a)?;
    let between = moved.f_matmul(&b.f_transpose(0, 1)?)?;
    let vectors = between.size()[0];
    let softness = SOFTNESS * between.f_trace()?.f_double_value(&[])? / vectors.max(1) as f64;
    let softened = between.f_add(&Tensor::f_eye(vectors, (Kind::Double, Device::Cpu))?.f_to(b.device())?.f_mul_scalar(softness)?)?;
    let aside = Tensor::f_linalg_solve(&softened, &moved, true)?;
    let spared = a.f_sub(&moved.f_transpose(0, 1)?.f_matmul(&aside)?)?;
    Ok(spared.f_add(&spared.f_transpose(0, 1)?)?.f_div_scalar(2.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu))
    }

    fn size(of: &Tensor) -> f64 {
        of.norm().double_value(&[])
    }

    #[test]
    fn inputs_are_not_moved_and_nothing_else_is_given_up() {
        tch::manual_seed(7);
        let x = random([200, 40]);
        let a = (x.transpose(0, 1).matmul(&x) / 200.0 + Tensor::eye(40, (Kind::Double, Device::Cpu)) * 0.01).inverse();
        // One of them stands there twice.
        let b = random([9, 40]);
        let b = Tensor::cat(&[&b, &b.narrow(0, 0, 1)], 0);
        let spared = spared(&a, &b).unwrap();
        let g = random([5, 40]);
        let (before, after) = (g.matmul(&a), g.matmul(&spared));
        let moved = |d: &Tensor| size(&d.matmul(&b.transpose(0, 1)));
        assert!(moved(&after) < 1e-5 * moved(&before), "{} {}", moved(&after), moved(&before));
        assert_eq!(spared, spared.transpose(0, 1));
        // It is the ridge with these inputs in it.
        let softness = SOFTNESS * b.matmul(&a).matmul(&b.transpose(0, 1)).trace().double_value(&[]) / 10.0;
        let expected = (a.inverse() + b.transpose(0, 1).matmul(&b) / softness).inverse();
        assert!(size(&(&spared - &expected)) < 1e-7 * size(&expected));
        // Of what moves no input, it still is the cheapest: its gain per cost is that of the best such step.
        let free = &g - g.matmul(&b.transpose(0, 1)).matmul(&b.pinverse(1e-9).transpose(0, 1));
        let gain = |d: &Tensor| {
            (&g * d).sum(Kind::Double).double_value(&[]) / (d * d.matmul(&a.inverse())).sum(Kind::Double).sqrt().double_value(&[])
        };
        assert!(gain(&after) >= gain(&free) * (1.0 - 1e-6));
    }

    #[test]
    fn a_projection_can_be_turned_aside_too() {
        let onto = Tensor::from_slice(&[1.0, 1.0, 0.0]).diag(0);
        let inputs = Tensor::from_slice(&[1.0, 0.0, 5.0]).view([1, 3]);
        let expected = Tensor::from_slice(&[0.0, 1.0, 0.0]).diag(0);
        assert!(size(&(spared(&onto, &inputs).unwrap() - expected)) < 1e-5);
    }
}
