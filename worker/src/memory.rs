//! The C allocator's settings that libtorch on a CPU needs, and the process's peak memory.

/// Keeps freed memory in the process instead of giving it back to the kernel.
///
/// glibc serves big tensors by `mmap` and gives them back on every free; the page faults of the next tensor then
/// take most of the time (4 to 7 times slower measured on a small CLIP). Call once, before the first tensor.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt only sets allocator parameters; called before other threads allocate tensors.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 256 << 20);
            // Secondary arenas trim by their own rules; libtorch allocates seldom enough for one lock.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

/// Largest resident set of this process so far, bytes; 0 where the system does not tell.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
