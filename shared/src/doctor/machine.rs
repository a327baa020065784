//! What this machine has, and who may read its secrets.

use std::path::Path;

use super::Finding;

const GIB: f64 = (1u64 << 30) as f64;
/// Less free space than this is said, bytes: a model with its release, and some shards.
const LITTLE_DISK: u64 = 5 << 30;
/// Less memory than this is said, bytes: what the demo's worker takes, twice.
const LITTLE_MEMORY: u64 = 3 << 30;

/// Free space on the disk of a folder.
pub(super) fn disk(name: &str, folder: &Path) -> Finding {
    match rustix::fs::statvfs(folder) {
        Err(error) => Finding::warning(name, format!("{}: free space is not known ({error})", folder.display()), "look with df"),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{:.1} GiB free at {}", free as f64 / GIB, folder.display());
            if free < LITTLE_DISK { Finding::warning(name, found, "make room before a large run") } else { Finding::ok(name, found) }
        }
    }
}

/// The folder for downloads: whether it can be written, and how much it holds. It is made, as a run would.
pub fn cache(folder: &Path) -> Vec<Finding> {
    let fix = "give a folder that this user may write: --cache, or LETHE_CACHE";
    let write = || {
        std::fs::create_dir_all(folder)?;
        tempfile::tempfile_in(folder).map(drop)
    };
    match write() {
        Ok(()) => vec![Finding::ok("cache", format!("{} can be written", folder.display())), disk("disk", folder)],
        Err(error) => vec![Finding::failed("cache", format!("{}: {error}", folder.display()), fix)],
    }
}

/// Memory that is free, by the system and by the control group that holds this process.
pub fn memory() -> Finding {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib << 10);
    let number = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = number("memory.max").zip(number("memory.current")).map(|(most, now)| most.saturating_sub(now));
    match available.into_iter().chain(group).min() {
        None => Finding::ok("memory", "not known on this system"),
        Some(free) => {
            let found = format!("{:.1} GiB free", free as f64 / GIB);
            if free < LITTLE_MEMORY {
                Finding::warning("memory", found, "run fewer workers at a time (--workers, [execution] workers)")
            } else {
                Finding::ok("memory", found)
            }
        }
    }
}

/// Files with secrets: each must be readable, and by nobody else: a file that is open to others in a folder that is not is out of
/// their reach.
pub fn files(secrets: &[&Path]) -> Vec<Finding> {
    secrets.iter().map(|file| secret(file)).collect()
}

fn secret(file: &Path) -> Finding {
    let shown = file.display();
    match std::fs::File::open(file).and_then(|file| file.metadata()) {
        Err(error) => Finding::failed("secrets", format!("{shown}: {error}"), "check the path, and that this user may read it"),
        Ok(metadata) if metadata.is_dir() => Finding::failed("secrets", format!("{shown} is a folder"), "give the file in it"),
        Ok(metadata) => match others(&metadata) {
            0 => Finding::ok("secrets", format!("{shown} is this user's alone")),
            _ if is_in_a_closed_folder(file) => Finding::ok("secrets", format!("{shown} is in a folder that is closed to others")),
            mode => Finding::warning("secrets", format!("{shown} is open to others (mode {mode:o})"), format!("chmod 600 {shown}")),
        },
    }
}

/// The mode of a file or folder that others than its owner have rights to; 0 when they have none.
fn others(metadata: &std::fs::Metadata) -> u32 {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & 0o077 == 0 { 0 } else { mode }
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        0
    }
}

/// Whether others cannot get to a file, whatever its own mode: one of the folders on the way is closed to them.
fn is_in_a_closed_folder(file: &Path) -> bool {
    let Ok(file) = file.canonicalize() else { return false };
    file.ancestors().skip(1).any(|folder| std::fs::metadata(folder).is_ok_and(|metadata| others(&metadata) == 0))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn folders_and_secrets_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let states = |findings: &[Finding]| findings.iter().map(|finding| finding.state).collect::<Vec<_>>();
        let inside = folder.path().join("a/b");
        assert_eq!(cache(&inside)[0].state, State::Ok);
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0, "nothing stays");
        let file = folder.path().join("file");
        std::fs::write(&file, "secret").unwrap();
        assert_eq!(states(&cache(&file.join("below"))), [State::Failed]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            // Where temporary files are out of others' reach anyway, nothing in there is open.
            let open = if is_in_a_closed_folder(folder.path()) { State::Ok } else { State::Warning };
            for (of_folder, of_file, state) in
                [(0o755, 0o600, State::Ok), (0o755, 0o644, open), (0o710, 0o644, open), (0o700, 0o644, State::Ok)]
            {
                mode(folder.path(), of_folder);
                mode(&file, of_file);
                assert_eq!(states(&files(&[&file])), [state], "{of_file:o} in {of_folder:o}");
            }
        }
        assert_eq!(states(&files(&[&folder.path().join("none"), folder.path()])), [State::Failed, State::Failed]);
    }

    #[test]
    fn memory_is_a_number_or_not_known() {
        assert!(memory().found.contains("GiB free") || memory().found.contains("not known"));
    }
}
