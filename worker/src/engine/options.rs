//! Options of an engine, with the defaults for each kind of device.

use std::path::PathBuf;

use tch::Device;

use crate::arithmetic;
use crate::micro_batch::MicroBatch;

/// Default memory for cached activations, bytes.
const ACTIVATION_MEMORY: usize = 2 << 30;

/// The most memory that one pass may take on a CPU by estimate, bytes. The same on every machine,
/// because the sizes of passes affect the last bits of sums. Passes of this size are long enough
/// that splitting a batch costs no time.
const CPU_PASS_MEMORY: u64 = 4 << 30;

/// Tokens up to which a pass on a GPU takes as long as for a few: launching kernels dominates.
const GPU_SPARE_TOKENS: i64 = 4096;

/// Options of an engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the worker, recorded in outcomes.
    pub worker: String,
    /// Name of the machine.
    pub machine: String,
    /// Arithmetic class of the device, see [`arithmetic`].
    pub arithmetic: String,
    /// The device to compute on.
    pub device: Device,
    /// Folder for files from remote addresses, stored under their digests.
    pub cache: PathBuf,
    /// Memory for cached activations, bytes.
    pub activation_memory: usize,
    /// Initial limits of passes. The engine lowers them when memory runs out.
    pub micro_batch: MicroBatch,
    /// Tokens up to which a pass takes no longer than for a few tokens. Steps that a search may
    /// need later are evaluated in advance within this limit. 0 on devices where every token costs
    /// the same.
    pub spare_tokens: i64,
}

impl Options {
    /// Creates options with defaults that suit most machines: 2 GiB of cached activations, and
    /// passes of at most 4 GiB on a CPU. Passes on a GPU are unlimited, because a GPU reports when
    /// its memory is exhausted.
    pub fn new(worker: String, device: Device, cache: PathBuf) -> Self {
        let unlimited = MicroBatch::UNLIMITED;
        Self {
            worker,
            machine: lethe_operations::process::machine_name(),
            arithmetic: arithmetic::class(device),
            device,
            cache,
            activation_memory: ACTIVATION_MEMORY,
            micro_batch: if device == Device::Cpu {
                unlimited.within_bytes(CPU_PASS_MEMORY)
            } else {
                unlimited
            },
            spare_tokens: if device.is_cuda() { GPU_SPARE_TOKENS } else { 0 },
        }
    }
}
