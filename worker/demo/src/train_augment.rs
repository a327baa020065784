//! Random changes of a batch of drawings: place, size, angle, colour, missing parts.

use anyhow::Result;
use tch::{Kind, Tensor};

/// Uniform numbers `[n]` between two bounds.
fn uniform(n: i64, low: f64, high: f64) -> Result<Tensor> {
    Ok((Tensor::f_rand([n], (Kind::Float, tch::Device::Cpu))? * (high - low)) + low)
}

/// Augments drawings `[n, 3, side, side]` in 0 to 1; `mirror[i]` says whether drawing i may be
/// mirrored.
///
/// Everything acts on the ink (1 − pixel), so that paper moved in from outside, or recoloured,
/// stays white.
pub(crate) fn augment(pixels: &Tensor, mirror: &[bool], strength: f64) -> Result<Tensor> {
    if strength <= 0.0 {
        return Ok(pixels.shallow_clone());
    }
    let (n, side) = (pixels.size()[0], pixels.size()[2]);
    let ink = pixels * -1.0 + 1.0;

    // Place: a similarity with a little shear and unequal scale.
    let angle = uniform(n, -0.35 * strength, 0.35 * strength)?;
    let size = (uniform(n, -0.22 * strength, 0.22 * strength)?).f_exp()?;
    let aspect = (uniform(n, -0.12 * strength, 0.12 * strength)?).f_exp()?;
    let shear = uniform(n, -0.12 * strength, 0.12 * strength)?;
    let mirror: Vec<f32> = mirror.iter().map(|&may| if may { 1.0 } else { 0.0 }).collect();
    let flip =
        uniform(n, 0.0, 1.0)?.f_lt(0.5)?.f_to_kind(Kind::Float)? * Tensor::f_from_slice(&mirror)?;
    let flip = flip * -2.0 + 1.0;
    let (cos, sin) = (angle.f_cos()?, angle.f_sin()?);
    let x_scale = &size * &aspect;
    let y_scale = &size / &aspect;
    let rows = [
        &cos * &x_scale * &flip,
        (&shear - &sin) * &y_scale,
        uniform(n, -0.18 * strength, 0.18 * strength)?,
        &sin * &x_scale * &flip,
        &cos * &y_scale,
        uniform(n, -0.18 * strength, 0.18 * strength)?,
    ];
    let theta = Tensor::f_stack(&rows, 1)?.f_view([n, 2, 3])?;
    let grid = Tensor::f_affine_grid_generator(&theta, [n, 3, side, side], false)?;
    let ink = ink.f_grid_sampler(&grid, 0, 0, false)?;

    // Colour: a random mixture of identity, another hue and grey, per channel gain, overall
    // strength.
    let grey = Tensor::f_full([n, 3, 3], 1.0 / 3.0, (Kind::Float, tch::Device::Cpu))?;
    let identity = Tensor::f_eye(3, (Kind::Float, tch::Device::Cpu))?.f_unsqueeze(0)?;
    let turn = Tensor::f_from_slice(&[0f32, 1., 0., 0., 0., 1., 1., 0., 0.])?.f_view([1, 3, 3])?;
    let hue = uniform(n, -0.25 * strength, 0.25 * strength)?.f_view([n, 1, 1])?;
    let hue_turn =
        &turn * hue.f_clamp_min(0.0)? + turn.f_transpose(1, 2)? * (&hue * -1.0).f_clamp_min(0.0)?;
    let hued = &identity * (hue.f_abs()? * -1.0 + 1.0) + hue_turn;
    let saturation = uniform(n, 1.0 - 0.6 * strength, 1.0 + 0.4 * strength)?;
    let keep = uniform(n, 0.0, 1.0)?.f_gt(0.12 * strength)?.f_to_kind(Kind::Float)?;
    let saturation = (saturation * keep).f_view([n, 1, 1])?;
    let mix = &hued * &saturation + &grey * (&saturation * -1.0 + 1.0);
    let gain = (Tensor::f_rand([n, 3, 1], (Kind::Float, tch::Device::Cpu))? - 0.5)
        * (0.4 * strength)
        + 1.0;
    let level = uniform(n, 1.0 - 0.3 * strength, 1.0 + 0.25 * strength)?.f_view([n, 1, 1])?;
    let ink = (mix * gain * level)
        .f_bmm(&ink.f_view([n, 3, side * side])?)?
        .f_view([n, 3, side, side])?
        .f_clamp(0.0, 1.0)?;

    // A rectangle of noise over half of the drawings.
    let axis = (Tensor::f_arange(side, (Kind::Float, tch::Device::Cpu))? + 0.5) / side as f64;
    let inside = |centre: Tensor, half: Tensor| -> Result<Tensor> {
        Ok((axis.f_unsqueeze(0)? - centre.f_unsqueeze(1)?)
            .f_abs()?
            .f_lt_tensor(&half.f_unsqueeze(1)?)?
            .f_to_kind(Kind::Float)?)
    };
    let used = uniform(n, 0.0, 1.0)?.f_lt(0.5 * strength)?.f_to_kind(Kind::Float)?;
    let columns = inside(uniform(n, 0.1, 0.9)?, uniform(n, 0.05, 0.2)? * &used)?;
    let rows = inside(uniform(n, 0.1, 0.9)?, uniform(n, 0.05, 0.2)? * &used)?;
    let hole = (rows.f_unsqueeze(2)? * columns.f_unsqueeze(1)?).f_unsqueeze(1)?;
    let fill = Tensor::f_rand([n, 3, 1, 1], (Kind::Float, tch::Device::Cpu))?;
    let ink = &ink * (&hole * -1.0 + 1.0) + hole * fill;
    Ok(ink * -1.0 + 1.0)
}
