//! Machine checks of `lethe doctor` and `lethe-worker check`: disk, memory, and access to secret
//! files.

use std::path::Path;

use lethe_shared::finding::Finding;

const GIB: f64 = (1u64 << 30) as f64;
/// Free space below which there is a warning, in bytes: room for a model, its release, and some
/// shards.
const LITTLE_DISK: u64 = 5 << 30;
/// Free memory below which there is a warning, in bytes: twice the need of the demo.
const LITTLE_MEMORY: u64 = 3 << 30;

/// Checks the free space on the disk of a folder.
pub fn disk(name: &str, folder: &Path) -> Finding {
    match rustix::fs::statvfs(folder) {
        Err(error) => Finding::warning(
            name,
            format!("{}: the free space is unknown ({error})", folder.display()),
            "check with df",
        ),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{:.1} GiB free at {}", free as f64 / GIB, folder.display());
            if free < LITTLE_DISK {
                Finding::warning(name, found, "make room before a large run")
            } else {
                Finding::ok(name, found)
            }
        }
    }
}

/// Checks that the cache folder can be written, and its free space. Creates the folder, as a run
/// would.
pub fn cache(folder: &Path) -> Vec<Finding> {
    let fix = "use a folder that this user can write to: --cache, or LETHE_CACHE";
    let write = || {
        std::fs::create_dir_all(folder)?;
        tempfile::tempfile_in(folder).map(drop)
    };
    match write() {
        Ok(()) => vec![
            Finding::ok("cache", format!("{} can be written", folder.display())),
            disk("disk", folder),
        ],
        Err(error) => vec![Finding::failed("cache", format!("{}: {error}", folder.display()), fix)],
    }
}

/// Checks the free memory of the system and of the control group of this process.
pub fn memory() -> Finding {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib << 10);
    let number = |name: &str| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok()
    };
    let group = number("memory.max")
        .zip(number("memory.current"))
        .map(|(most, now)| most.saturating_sub(now));
    match available.into_iter().chain(group).min() {
        None => Finding::ok("memory", "not known on this system"),
        Some(free) => {
            let found = format!("{:.1} GiB free", free as f64 / GIB);
            if free < LITTLE_MEMORY {
                Finding::warning(
                    "memory",
                    found,
                    "run fewer workers at a time (--workers, [execution] workers)",
                )
            } else {
                Finding::ok("memory", found)
            }
        }
    }
}

/// Checks files with secrets: each must be readable by this user, and by no other user. A folder
/// that others cannot access protects the files in it.
pub fn files(secrets: &[&Path]) -> Vec<Finding> {
    secrets.iter().map(|file| secret(file)).collect()
}

fn secret(file: &Path) -> Finding {
    let shown = file.display();
    match std::fs::File::open(file).and_then(|file| file.metadata()) {
        Err(error) => Finding::failed(
            "secrets",
            format!("{shown}: {error}"),
            "check the path, and that this user may read it",
        ),
        Ok(metadata) if metadata.is_dir() => {
            Finding::failed("secrets", format!("{shown} is a folder"), "give the file in it")
        }
        Ok(metadata) => match others(&metadata) {
            0 => Finding::ok("secrets", format!("{shown} is accessible only to this user")),
            _ if is_in_a_closed_folder(file) => Finding::ok(
                "secrets",
                format!("{shown} is in a folder that other users cannot access"),
            ),
            mode => Finding::warning(
                "secrets",
                format!("{shown} is accessible to other users (mode {mode:o})"),
                format!("chmod 600 {shown}"),
            ),
        },
    }
}

/// Returns the mode of a file or folder that users other than its owner can access; 0 when they
/// cannot.
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

/// Returns whether other users cannot reach a file whatever its own mode, because they cannot
/// access one of its parent folders.
fn is_in_a_closed_folder(file: &Path) -> bool {
    let Ok(file) = file.canonicalize() else { return false };
    file.ancestors()
        .skip(1)
        .any(|folder| std::fs::metadata(folder).is_ok_and(|metadata| others(&metadata) == 0))
}

#[cfg(test)]
mod tests {
    use lethe_shared::finding::State;

    use super::*;

    #[test]
    fn folders_and_secrets_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let states =
            |findings: &[Finding]| findings.iter().map(|finding| finding.state).collect::<Vec<_>>();
        let inside = folder.path().join("a/b");
        assert_eq!(cache(&inside)[0].state, State::Ok);
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0, "nothing stays");
        let file = folder.path().join("file");
        std::fs::write(&file, "secret").unwrap();
        assert_eq!(states(&cache(&file.join("below"))), [State::Failed]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path, mode| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
            };
            // Where temporary files are out of others' reach anyway, nothing in there is open.
            let open =
                if is_in_a_closed_folder(folder.path()) { State::Ok } else { State::Warning };
            for (of_folder, of_file, state) in [
                (0o755, 0o600, State::Ok),
                (0o755, 0o644, open),
                (0o710, 0o644, open),
                (0o700, 0o644, State::Ok),
            ] {
                mode(folder.path(), of_folder);
                mode(&file, of_file);
                assert_eq!(states(&files(&[&file])), [state], "{of_file:o} in {of_folder:o}");
            }
        }
        assert_eq!(
            states(&files(&[&folder.path().join("none"), folder.path()])),
            [State::Failed, State::Failed]
        );
    }

    #[test]
    fn memory_is_a_number_or_not_known() {
        assert!(memory().found.contains("GiB free") || memory().found.contains("not known"));
    }
}
