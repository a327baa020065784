//! The device to compute on.
//!
//! The binary does not link libtorch's CUDA library, so that a single binary serves machines with
//! and without a GPU. When a GPU is requested, `libtorch_cuda.so` is loaded at run time, before the
//! first tensor.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use tch::{Cuda, Device};

use crate::matmul_precision;

/// Opens the device that `wanted` names: `auto` (the first GPU if there is one, otherwise the CPU),
/// `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// A message when the name is invalid, or a GPU is requested and cannot be used.
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
        matmul_precision::disable_cudnn_attention();
        return Ok(Device::Cuda(number));
    }
    if wanted == "auto" {
        return Ok(Device::Cpu);
    }
    Err(match loaded {
        Err(problem) => {
            format!("device `{wanted}`: {problem}; `make setup-cuda` installs libtorch with CUDA")
        }
        Ok(()) => format!(
            "device `{wanted}`: libtorch finds {} GPU(s); check the driver (nvidia-smi)",
            Cuda::device_count()
        ),
    })
}

/// The default number of concurrent jobs on a GPU: while one computes, others read, decode, launch
/// kernels and store.
const GPU_JOBS: usize = 4;

/// Returns the number of jobs to execute concurrently: `asked`, or a default for the device if that
/// is 0.
pub fn workers(asked: usize, device: Device) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match asked {
        0 if device.is_cuda() => cores.min(GPU_JOBS),
        0 => cores,
        _ => asked,
    }
}

/// Returns the folders that may contain libtorch with CUDA: the one that the environment names, and
/// those relative to the binary where `make setup-cuda` and an installation place it.
fn library_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = std::env::var_os("LETHE_LIBTORCH") {
        folders.push(PathBuf::from(folder).join("lib"));
    }
    if let Ok(binary) = std::env::current_exe()
        && let Some(folder) = binary.parent()
    {
        for relative in ["../../.libtorch/full/lib", "../../../.libtorch/full/lib", "../lib/lethe"]
        {
            folders.push(folder.join(relative));
        }
    }
    folders
}

fn load_cuda() -> Result<(), String> {
    let library = library_folders()
        .into_iter()
        .map(|folder| folder.join("libtorch_cuda.so"))
        .find(|path| path.try_exists().unwrap_or(false));
    let Some(library) = library else { return Err("libtorch_cuda.so is not installed".to_owned()) };
    open_global(&library)
}

#[cfg(unix)]
fn open_global(library: &Path) -> Result<(), String> {
    let name = CString::new(library.as_os_str().as_encoded_bytes())
        .map_err(|_| "the path contains a zero byte".to_owned())?;
    // SAFETY: the string is a valid C string; the library's initializers are libtorch's own and are
    // meant to run when it is loaded.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns null, or a string that stays valid until the next dl call on this
    // thread.
    let problem = unsafe {
        let message = libc::dlerror();
        if message.is_null() {
            "unknown error".to_owned()
        } else {
            std::ffi::CStr::from_ptr(message).to_string_lossy().into_owned()
        }
    };
    Err(format!("cannot load {}: {problem}", library.display()))
}

#[cfg(not(unix))]
fn open_global(library: &Path) -> Result<(), String> {
    Err(format!(
        "cannot load {}: loading CUDA at run time is not supported on this system",
        library.display()
    ))
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
