//! The commands `lethe completion` and `lethe man`: shell completions and manual pages, generated
//! from the command line's definition.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;
use lethe_shared::exit;

use super::common::print;
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

/// Returns the command lines that this program can document: its own, and the worker's if it is
/// linked.
fn programs(lethe: clap::Command) -> Vec<clap::Command> {
    #[cfg(feature = "embedded")]
    let worker = [lethe_worker::command::command_line()];
    #[cfg(not(feature = "embedded"))]
    let worker = [];
    [lethe].into_iter().chain(worker).collect()
}

pub(super) fn completion(options: &Completion, lethe: clap::Command) -> Result<u8, Failure> {
    let shell: Shell = options.shell.parse().map_err(Failure::input)?;
    let program = programs(lethe).into_iter().find(|program| program.get_name() == options.program);
    let mut program = program.ok_or_else(|| {
        Failure::input(format!("this lethe was built without {}", options.program))
    })?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, &options.program, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(exit::DONE)
}

pub(super) fn man(options: &Man, lethe: clap::Command) -> Result<u8, Failure> {
    let folder = &options.folder;
    let written = std::fs::create_dir_all(folder).and_then(|()| {
        programs(lethe)
            .into_iter()
            .try_for_each(|program| clap_mangen::generate_to(program, folder))
    });
    written.map_err(|error| Failure::input(format!("{}: {error}", folder.display())))?;
    Ok(exit::DONE)
}
