//! Self-checks of libtorch and of the device.

use std::time::Instant;

use lethe_shared::finding::Finding;
use tch::{Device, Kind, Tensor};

use crate::device;

/// The version of libtorch for which the bindings were written. Other versions may load and then
/// misbehave.
const REQUIRED: [u8; 3] = [2, 11, 0];

/// Checks libtorch, opens the device that `wanted` names, and computes on it. Blocks the calling
/// thread.
pub fn examine(wanted: &str) -> Vec<Finding> {
    vec![libtorch(), device(wanted)]
}

fn libtorch() -> Finding {
    const NAME: &str = "libtorch";
    let place = loaded_library("libtorch_cpu.so").unwrap_or_else(|| "linked statically".to_owned());
    let [major, minor, patch] = REQUIRED;
    let required = format!(
        "{major}.{minor}.{patch} is required: run `make setup`, or LETHE_LIBTORCH=FOLDER make setup"
    );
    match version() {
        Some(found) if found == REQUIRED => {
            Finding::ok(NAME, format!("{major}.{minor}.{patch}, {place}"))
        }
        Some([major, minor, patch]) => {
            Finding::failed(NAME, format!("{major}.{minor}.{patch}, {place}"), required)
        }
        None => Finding::warning(NAME, format!("{place} does not report its version"), required),
    }
}

/// Returns the version that libtorch reports: the three highest bytes of the version of its C
/// interface.
fn version() -> Option<[u8; 3]> {
    #[cfg(unix)]
    {
        // SAFETY: the name is a valid C string, and looking it up has no side effects.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"aoti_torch_abi_version".as_ptr()) };
        if symbol.is_null() {
            return None;
        }
        // SAFETY: libtorch declares `uint64_t aoti_torch_abi_version()` in its stable C interface.
        let version =
            unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> u64>(symbol)() };
        version.to_be_bytes().first_chunk::<3>().copied()
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Returns the path of a library that this process has loaded.
fn loaded_library(library: &str) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with(library))?;
    Some(line[line.find('/')?..].to_owned())
}

fn device(wanted: &str) -> Finding {
    const NAME: &str = "device";
    let device = match device::open(wanted) {
        Ok(device) => device,
        Err(problem) => return Finding::failed(NAME, problem, "--device cpu works everywhere"),
    };
    match multiply(device) {
        Ok(speed) => {
            let shown = format!("{device:?}").to_lowercase();
            let why =
                if wanted == "auto" && device == Device::Cpu { " (no usable GPU)" } else { "" };
            Finding::ok(
                NAME,
                format!(
                    "{shown}{why}: {speed:.0} GFLOP/s in float32 on one thread, gradients are correct"
                ),
            )
        }
        Err(error) => Finding::failed(
            NAME,
            format!("{device:?}: {error}"),
            "check the driver (nvidia-smi) and libtorch; --device cpu works everywhere",
        ),
    }
}

/// Checks that a device computes: a matrix product, and a gradient whose value is known.
///
/// # Errors
/// The error of libtorch, or the wrong result.
pub fn compute(device: Device) -> Result<(), tch::TchError> {
    multiply(device).map(drop)
}

/// Checks a gradient whose value is known (that of ‖x‖²/2 is x), and measures matrix products.
/// Returns GFLOP/s.
fn multiply(device: Device) -> Result<f64, tch::TchError> {
    const SIDE: i64 = 1024;
    const TIMES: u32 = 8;
    tch::set_num_threads(1);
    let x = Tensor::f_randn([SIDE, SIDE], (Kind::Float, device))?.f_set_requires_grad(true)?;
    let loss = x.f_square()?.f_sum(Kind::Float)?.f_mul_scalar(0.5)?;
    let gradient = Tensor::f_run_backward(&[&loss], &[&x], false, false)?;
    let off = gradient[0].f_sub(&x)?.f_abs()?.f_max()?.f_double_value(&[])?;
    if off > 1e-6 {
        return Err(tch::TchError::Torch(format!(
            "a gradient differs from its known value by {off}"
        )));
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
        Err(tch::TchError::Torch("a matrix product is not finite".into()))
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::finding::State;

    use super::*;

    #[test]
    fn this_machine_can_compute() {
        let findings = examine("cpu");
        assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:?}");
        assert_eq!(version(), Some(REQUIRED));
        assert_eq!(device("tpu").state, State::Failed);
    }
}
