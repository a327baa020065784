//! The arithmetic class of a worker: machines of the same class compute bit-identical results
//! for the same job.
//!
//! libtorch and the libraries that it uses select kernels by processor, and different kernels sum
//! in different orders. A class therefore consists of the processor's vendor, family and model (or
//! the GPU's model), the environment variables that restrict the selection (`ATEN_CPU_CAPABILITY`,
//! `MKL_CBWR`, `ONEDNN_MAX_CPU_ISA`), and libtorch's version. Machines of different classes may
//! compute the same results, but this is not guaranteed.

use lethe_shared::job::LIBTORCH_VERSION;
use tch::Device;

/// Environment variables that restrict the selection of kernels.
const RESTRICTIONS: [&str; 3] = ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"];

/// Returns the arithmetic class of a device of this machine.
pub fn class(device: Device) -> String {
    let processor = match device {
        Device::Cuda(number) => gpu(number),
        _ => cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
    };
    let restrictions: String = RESTRICTIONS
        .iter()
        .filter_map(|name| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.is_empty())
                .map(|value| format!(", {name}={value}"))
        })
        .collect();
    format!("{processor}{restrictions}, libtorch {LIBTORCH_VERSION}")
}

/// Returns vendor, family and model of the first processor.
fn cpu(info: &str) -> String {
    let field = |name: &str| {
        let line = info
            .lines()
            .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    match (field("vendor_id"), field("cpu family"), field("model")) {
        (Some(vendor), Some(family), Some(model)) => {
            format!("{} {vendor} {family}/{model}", std::env::consts::ARCH)
        }
        // Processors other than x86 use other fields.
        _ => match (field("CPU implementer"), field("CPU part")) {
            (Some(implementer), Some(part)) => {
                format!("{} {implementer}/{part}", std::env::consts::ARCH)
            }
            _ => format!("{} unknown", std::env::consts::ARCH),
        },
    }
}

/// Returns the model of a GPU as its driver reports it.
fn gpu(number: usize) -> String {
    let model = |text: &str| {
        Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
    };
    let mut folders: Vec<_> = std::fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    let text = folders
        .get(number)
        .and_then(|folder| std::fs::read_to_string(folder.join("information")).ok());
    format!("cuda {}", text.as_deref().and_then(model).unwrap_or_else(|| "unknown".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_distinguished() {
        let intel = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon\n";
        let amd = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n";
        assert!(cpu(intel).ends_with("GenuineIntel 6/143"));
        assert_ne!(cpu(intel), cpu(amd));
        assert!(cpu("").ends_with("unknown"));
        assert!(cpu("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n").ends_with("0x41/0xd0c"));
    }

    #[test]
    fn a_class_names_libtorch_too() {
        assert!(class(Device::Cpu).ends_with(&format!("libtorch {LIBTORCH_VERSION}")));
    }
}
