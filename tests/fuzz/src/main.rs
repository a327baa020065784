//! Fuzzes the readers of everything that comes from outside.

use std::process::ExitCode;

use clap::Parser;
use lethe_fuzz::command::{Arguments, run};

fn main() -> ExitCode {
    run(&Arguments::parse())
}
