//! Preconditioners that keep a layer's outputs for protected inputs unchanged.

use tch::{Device, Kind, Tensor};

use crate::model::Error;

/// μ⁻¹ relative to the mean effect of edits on the protected inputs. Small enough that no
/// measurable effect remains, large enough that nearly identical inputs are numerically harmless in
/// float64.
const SOFTNESS: f64 = 1e-6;

/// Returns the input-side preconditioner of a layer, constrained so that edits leave the outputs
/// for protected inputs unchanged.
///
/// `inverse` is the unconstrained preconditioner A = (C + ρI)⁻¹ `[inputs, inputs]`, and `inputs`
/// the protected inputs B `[vectors, inputs]`. Adding μ‖ΔBᵀ‖² to the cost of a change Δ turns A
/// into (by Woodbury's identity)
///
/// A' = (A⁻¹ + μ BᵀB)⁻¹ = A − ABᵀ (BABᵀ + μ⁻¹I)⁻¹ BA.
///
/// Of all steps that raise the forget loss equally and leave the outputs for every row of B
/// unchanged, the one along g A' affects retained data least. A may also be a projection. The
/// result is float64 and symmetric.
///
/// # Errors
/// When libtorch returns an error.
pub fn protect_inputs(inverse: &Tensor, inputs: &Tensor) -> Result<Tensor, Error> {
    let (a, b) = (inverse.f_to_kind(Kind::Double)?, inputs.f_to_kind(Kind::Double)?);
    let effects = b.f_matmul(&a)?;
    let gram = effects.f_matmul(&b.f_transpose(0, 1)?)?;
    let vectors = gram.size()[0];
    let softness = SOFTNESS * gram.f_trace()?.f_double_value(&[])? / vectors.max(1) as f64;
    let softened = gram.f_add(
        &Tensor::f_eye(vectors, (Kind::Double, Device::Cpu))?
            .f_to(b.device())?
            .f_mul_scalar(softness)?,
    )?;
    let solved = Tensor::f_linalg_solve(&softened, &effects, true)?;
    let constrained = a.f_sub(&effects.f_transpose(0, 1)?.f_matmul(&solved)?)?;
    Ok(constrained.f_add(&constrained.f_transpose(0, 1)?)?.f_div_scalar(2.0)?)
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
    fn protected_inputs_keep_their_outputs_at_the_least_cost() {
        tch::manual_seed(7);
        let x = random([200, 40]);
        let a = (x.transpose(0, 1).matmul(&x) / 200.0
            + Tensor::eye(40, (Kind::Double, Device::Cpu)) * 0.01)
            .inverse();
        // One input is repeated.
        let b = random([9, 40]);
        let b = Tensor::cat(&[&b, &b.narrow(0, 0, 1)], 0);
        let constrained = protect_inputs(&a, &b).unwrap();
        let g = random([5, 40]);
        let (before, after) = (g.matmul(&a), g.matmul(&constrained));
        let moved = |d: &Tensor| size(&d.matmul(&b.transpose(0, 1)));
        assert!(moved(&after) < 1e-5 * moved(&before), "{} {}", moved(&after), moved(&before));
        assert_eq!(constrained, constrained.transpose(0, 1));
        // It equals the regularized inverse with these inputs added to C.
        let softness =
            SOFTNESS * b.matmul(&a).matmul(&b.transpose(0, 1)).trace().double_value(&[]) / 10.0;
        let expected = (a.inverse() + b.transpose(0, 1).matmul(&b) / softness).inverse();
        assert!(size(&(&constrained - &expected)) < 1e-7 * size(&expected));
        // Its gain per cost is at least that of the plain gradient projected away from the inputs.
        let free = &g - g.matmul(&b.transpose(0, 1)).matmul(&b.pinverse(1e-9).transpose(0, 1));
        let gain = |d: &Tensor| {
            (&g * d).sum(Kind::Double).double_value(&[])
                / (d * d.matmul(&a.inverse())).sum(Kind::Double).sqrt().double_value(&[])
        };
        assert!(gain(&after) >= gain(&free) * (1.0 - 1e-6));
    }

    #[test]
    fn a_projection_can_be_constrained_too() {
        let onto = Tensor::from_slice(&[1.0, 1.0, 0.0]).diag(0);
        let inputs = Tensor::from_slice(&[1.0, 0.0, 5.0]).view([1, 3]);
        let expected = Tensor::from_slice(&[0.0, 1.0, 0.0]).diag(0);
        assert!(size(&(protect_inputs(&onto, &inputs).unwrap() - expected)) < 1e-5);
    }
}
