//! `lethe-worker`: the part of Lethe that computes.

use std::process::ExitCode;

fn main() -> ExitCode {
    lethe_worker::memory::keep_freed_memory();
    lethe_worker::command::main()
}
