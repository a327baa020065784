//! `lethe-worker`: takes jobs from a queue and executes them.

use std::process::ExitCode;

fn main() -> ExitCode {
    lethe_worker::memory::keep_freed_memory();
    lethe_worker::command::main()
}
