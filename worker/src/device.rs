//! Which device tensors live on.
//!
//! The binary is linked without libtorch's CUDA half, so that one binary serves machines with a GPU and without. Where a
//! GPU is wanted, `libtorch_cuda.so` is opened at run time, before the first tensor.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use tch::{Cuda, Device};

use crate::multiplying;

/// Opens the device that `wanted` names: `auto` (the first GPU where there is one), `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// A sentence when a GPU is asked for and cannot be used.
pub fn open(wanted: &str) -> Result<Device, String> {
    let number = match wanted {
        "cpu" => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        other => other
            .strip_prefix("cuda:")
            .and_then(|number| number.parse::<usize>().ok())
            .ok_or_else(|| format!("device `{other}`: expected auto, cpu, cuda or cuda:N"))?,
    };
    let loaded = load_cuda();
    if loaded.is_ok() && Cuda::is_available() && (number as i64) < Cuda::device_count() {
        multiplying::plan_nothing();
        return Ok(Device::Cuda(number));
    }
    if wanted == "auto" {
        return Ok(Device::Cpu);
    }
    Err(match loaded {
        Err(problem) => format!("device `{wanted}`: {problem}; `make setup-cuda` fetches libtorch with CUDA"),
        Ok(()) => format!("device `{wanted}`: libtorch finds {} GPUs; check the driver (nvidia-smi)", Cuda::device_count()),
    })
}

/// Jobs on a GPU at one time, where nobody says how many: while one computes, others read, decode, launch and store.
const ON_A_GPU: usize = 4;

/// How many jobs to do at one time: as many as asked for, or as fit a device where 0 are.
pub fn workers(asked: usize, device: Device) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match asked {
        0 if device.is_cuda() => cores.min(ON_A_GPU),
        0 => cores,
        _ => asked,
    }
}

/// Folders that may hold the full libtorch: named by the environment, or beside the binary as `make setup-cuda` and the
/// installed layout have it.
fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = std::env::var_os("LETHE_LIBTORCH") {
        folders.push(PathBuf::from(folder).join("lib"));
    }
    if let Ok(binary) = std::env::current_exe()
        && let Some(folder) = binary.parent()
    {
        for relative in ["../../.libtorch/full/lib", "../../../.libtorch/full/lib", "../lib/lethe"] {
            folders.push(folder.join(relative));
        }
    }
    folders
}

fn load_cuda() -> Result<(), String> {
    let library = candidates().into_iter().map(|folder| folder.join("libtorch_cuda.so")).find(|path| path.try_exists().unwrap_or(false));
    let Some(library) = library else { return Err("libtorch_cuda.so is not installed".to_owned()) };
    open_global(&library)
}

#[cfg(unix)]
fn open_global(library: &Path) -> Result<(), String> {
    let name = CString::new(library.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a zero byte".to_owned())?;
    // SAFETY: the string is a valid C string; the library's initialisers are libtorch's own, made to run on opening.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns null or a string that stays valid until the next dl call of this thread.
    let problem = unsafe {
        let message = libc::dlerror();
        if message.is_null() { "unknown error".to_owned() } else { std::ffi::CStr::from_ptr(message).to_string_lossy().into_owned() }
    };
    Err(format!("{} cannot be opened: {problem}", library.display()))
}

#[cfg(not(unix))]
fn open_global(library: &Path) -> Result<(), String> {
    Err(format!("{}: opening CUDA at run time is not supported on this system", library.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_checked() {
        assert_eq!(open("cpu"), Ok(Device::Cpu));
        assert!(open("tpu").unwrap_err().contains("expected auto"));
        assert!(open("cuda:x").is_err());
    }
}
