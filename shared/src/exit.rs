//! Exit codes of the command line: part of its contract.

/// Everything asked for is done.
pub const DONE: u8 = 0;
/// The manifest or the arguments are bad.
pub const BAD_INPUT: u8 = 2;
/// Finished, but a concept that the manifest requires has no edit or is still recognised.
pub const INCOMPLETE: u8 = 3;
/// A gate was not met and nothing was promoted, or a release does not match its record.
pub const NOT_PASSED: u8 = 4;
/// The queue or the store stayed unreachable, or no worker was fit for the jobs.
pub const INFRASTRUCTURE: u8 = 5;
/// Cancelled.
pub const CANCELLED: u8 = 130;
