//! Test support: real servers and real binaries, started and cleaned up.
