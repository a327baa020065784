//! `lethe`: removes concepts from CLIP models.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before the first tensor, where workers run in this process.
    #[cfg(feature = "embedded")]
    lethe_worker::memory::keep_freed_memory();
    lethe::command::main()
}
