//! Exit codes of the command line: part of its contract.

/// Everything asked for is done.
pub const DONE: u8 = 0;
/// The manifest or the arguments are bad.
pub const BAD_INPUT: u8 = 2;
/// Finished, but some concepts are missing and the manifest did not allow it.
pub const INCOMPLETE: u8 = 3;
/// A release does not pass: a gate was not met and nothing was promoted, or it is not what was released.
pub const NOT_PASSED: u8 = 4;
/// Queue, store or network gave up.
pub const INFRASTRUCTURE: u8 = 5;
/// Cancelled.
pub const CANCELLED: u8 = 130;
