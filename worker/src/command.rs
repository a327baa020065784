//! The command line of `lethe-worker`.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use lethe_shared::address::Address;
use lethe_shared::exit;
use lethe_shared::store::Store;
use tch::{Device, Kind, Tensor};

use crate::device;

/// The part of Lethe that computes. `lethe run` links it and needs no other process.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 done · 2 bad arguments or device · 5 the store cannot be used.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See whether this machine can work: open the device, compute and differentiate on it, use the store.
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// Where to compute: auto (a GPU where there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// A store to write to and read from: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
}

/// Parses the arguments, does what they say, gives the documented exit code.
pub fn main() -> ExitCode {
    let Cli { command: Command::Check(options) } = Cli::parse();
    let problem = match check(&options) {
        Ok(()) => return ExitCode::from(exit::DONE),
        Err(problem) => problem,
    };
    eprintln!("error: {}", problem.1);
    ExitCode::from(problem.0)
}

fn check(options: &Check) -> Result<(), (u8, String)> {
    let bad = |problem: String| (exit::BAD_INPUT, problem);
    let device = device::open(&options.device).map_err(bad)?;
    let speed = multiply(device).map_err(|error| bad(format!("device {device:?}: {error}")))?;
    println!("device {device:?}: {speed:.0} GFLOP/s in float32 on one thread, gradients are right");
    if let Some(text) = &options.store {
        let here = std::env::current_dir().map_err(|error| bad(format!("working folder: {error}")))?;
        let address = Address::resolve(text, Some(&here)).map_err(|error| bad(error.to_string()))?;
        let runtime = tokio::runtime::Runtime::new().map_err(|error| bad(format!("cannot start: {error}")))?;
        let probed = runtime.block_on(async { Store::open(&address)?.probe().await });
        probed.map_err(|error| (exit::INFRASTRUCTURE, error.to_string()))?;
        println!("store {address}: can be written and read");
    }
    Ok(())
}

/// Multiplies matrices for a moment, and checks a gradient that is known: of ‖x‖²/2 it is x.
fn multiply(device: Device) -> Result<f64, tch::TchError> {
    const SIDE: i64 = 1024;
    const TIMES: u32 = 8;
    tch::set_num_threads(1);
    let x = Tensor::f_randn([SIDE, SIDE], (Kind::Float, device))?.f_set_requires_grad(true)?;
    let loss = x.f_square()?.f_sum(Kind::Float)?.f_mul_scalar(0.5)?;
    let gradient = Tensor::f_run_backward(&[&loss], &[&x], false, false)?;
    let off = gradient[0].f_sub(&x)?.f_abs()?.f_max()?.f_double_value(&[])?;
    if off > 1e-6 {
        return Err(tch::TchError::Torch(format!("a gradient is off by {off}")));
    }
    let _guard = tch::no_grad_guard();
    let product = |a: &Tensor| a.f_matmul(&x);
    product(&x)?.f_sum(Kind::Float)?.f_double_value(&[])?;
    let began = Instant::now();
    let mut sum = 0.0;
    for _ in 0..TIMES {
        sum += product(&x)?.f_sum(Kind::Float)?.f_double_value(&[])?;
    }
    let seconds = began.elapsed().as_secs_f64();
    if sum.is_finite() {
        Ok(f64::from(TIMES) * 2.0 * (SIDE as f64).powi(3) / seconds / 1e9)
    } else {
        Err(tch::TchError::Torch("a product is not finite".into()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
