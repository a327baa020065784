//! `lethe-worker`.

fn main() {}
