//! `lethe completion` and `lethe man`: what shells and `man` know of the command line, made from the command line itself.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use lethe_shared::exit;

use super::{Cli, print};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Completion {
    /// The shell.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
    /// The program: lethe or lethe-worker.
    #[arg(long, default_value = "lethe", value_parser = ["lethe", "lethe-worker"])]
    program: String,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where pages go: a `man1` folder, as PREFIX/share/man/man1.
    folder: PathBuf,
}

/// The command lines that this program knows, by name.
fn programs() -> Vec<clap::Command> {
    #[cfg(feature = "embedded")]
    let worker = [lethe_worker::command::command_line()];
    #[cfg(not(feature = "embedded"))]
    let worker = [];
    [Cli::command()].into_iter().chain(worker).collect()
}

pub(super) fn completion(options: &Completion) -> Result<u8, Failure> {
    let shell: Shell = options.shell.parse().map_err(Failure::input)?;
    let program = programs().into_iter().find(|program| program.get_name() == options.program);
    let mut program = program.ok_or_else(|| Failure::input(format!("this lethe was built without {}", options.program)))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, &options.program, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(exit::DONE)
}

pub(super) fn man(options: &Man) -> Result<u8, Failure> {
    let folder = &options.folder;
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| programs().into_iter().try_for_each(|program| clap_mangen::generate_to(program, folder)));
    written.map_err(|error| Failure::input(format!("{}: {error}", folder.display())))?;
    Ok(exit::DONE)
}
