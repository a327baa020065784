//! Follows the how-to pages of targets: runs every block of commands and of Python as written, in a
//! folder like a fresh clone. They need diffusers and transformers, so `make test-ecosystem` runs
//! these tests.

use lethe_tests::page::{Shell, steps};
use lethe_tests::repository;

fn follow(page: &str, least: usize) {
    let text = std::fs::read_to_string(repository().join(page)).unwrap();
    let steps = steps(&text);
    assert!(steps.len() >= least, "{}", steps.len());
    let mut shell = Shell::new(&[]);
    for step in &steps {
        shell.follow(page, step);
    }
}

#[test]
#[ignore = "needs Python packages: run by make test-ecosystem"]
fn a_list_of_names_goes_out_of_a_pipeline() {
    follow("docs/how-to/stable-diffusion.md", 10);
}

#[test]
#[ignore = "needs Python packages: run by make test-ecosystem"]
fn a_list_of_names_goes_out_of_a_llava() {
    follow("docs/how-to/llava.md", 10);
}
