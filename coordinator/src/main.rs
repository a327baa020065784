//! `lethe`: removes concepts from CLIP and SigLIP models.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Must precede the first tensor if workers run in this process.
    #[cfg(feature = "embedded")]
    lethe_worker::memory::keep_freed_memory();
    lethe::cli::main()
}
