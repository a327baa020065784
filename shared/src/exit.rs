//! Exit codes of the command line: part of its contract.

/// Everything asked for is done.
pub const DONE: u8 = 0;
/// The manifest or the arguments are bad.
pub const BAD_INPUT: u8 = 2;
/// Finished, but some concepts are missing and the manifest did not allow it.
pub const INCOMPLETE: u8 = 3;
/// A gate was not met; nothing was promoted.
pub const GATE: u8 = 4;
/// Queue, store or network gave up.
pub const INFRASTRUCTURE: u8 = 5;
/// Cancelled.
pub const CANCELLED: u8 = 130;
