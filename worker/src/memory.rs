//! Settings of the C allocator that libtorch needs on a CPU, and the peak memory of the process.

/// Keeps freed memory in the process instead of returning it to the kernel.
///
/// By default, glibc allocates large tensors by `mmap` and unmaps them when they are freed. The
/// page faults of the next tensor then take most of the time: a small CLIP ran 4 to 7 times slower.
/// Call once, before the first tensor.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt only sets allocator parameters; called before other threads allocate
        // tensors.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 256 << 20);
            // Secondary arenas have trimming rules of their own; libtorch allocates rarely enough
            // for a single lock.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

/// Returns the largest resident set size of this process so far, in bytes; 0 on systems that do not
/// report it.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.unwrap_or(0) * 1024
}
