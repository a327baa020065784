//! Checks the environment for credentials that other tools read and this program does not, before
//! the first request. Without credentials in the environment, `object_store` asks the machine's
//! metadata service, and the error would name an address that the user never gave.

/// Variables of the sources of S3 credentials that are read, besides keys.
const OTHER_S3_SOURCES: [&str; 4] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];
/// Variables that select a profile or its file.
const PROFILES: [&str; 3] = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"];

/// Checks the credentials in the environment, which `variable` reads, for a URL scheme.
///
/// # Errors
/// A sentence that names the variable that is set, and what to set instead.
pub(crate) fn check(scheme: &str, variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let set = |name: &str| variable(name).is_some_and(|value| !value.trim().is_empty());
    match scheme {
        "s3" => s3(set),
        "az" => azure(set),
        _ => Ok(()),
    }
}

fn s3(set: impl Fn(&str) -> bool) -> Result<(), String> {
    let (key, secret) = (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY"));
    if key != secret {
        let (there, missing) = if key {
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        } else {
            ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")
        };
        return Err(format!("{there} is set and {missing} is not; set both"));
    }
    if key || OTHER_S3_SOURCES.into_iter().any(&set) {
        return Ok(());
    }
    PROFILES.into_iter().find(|name| set(name)).map_or(Ok(()), |profile| {
        Err(format!(
            "{profile} is set and AWS_ACCESS_KEY_ID is not; profiles are not read: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
             (`aws configure export-credentials --format env` prints them), or unset {profile} to use the role of this machine"
        ))
    })
}

fn azure(set: impl Fn(&str) -> bool) -> Result<(), String> {
    let account = set("AZURE_STORAGE_ACCOUNT_NAME");
    if set("AZURE_STORAGE_CONNECTION_STRING") && !account {
        return Err("AZURE_STORAGE_CONNECTION_STRING is set and AZURE_STORAGE_ACCOUNT_NAME is not; connection strings are not read: \
                    set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, both of which the string holds"
            .to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(scheme: &str, set: &[(&str, &str)]) -> Result<(), String> {
        check(scheme, |name| {
            set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_profile_without_keys_is_named_before_any_request() {
        for name in PROFILES {
            let error = found("s3", &[(name, "research")]).unwrap_err();
            assert!(error.starts_with(&format!("{name} is set and AWS_ACCESS_KEY_ID is not")));
            assert!(error.contains("profiles are not read"), "{error}");
            assert_eq!(found("s3", &[(name, "")]), Ok(()));
            assert_eq!(found("gs", &[(name, "research")]), Ok(()));
            for source in OTHER_S3_SOURCES {
                assert_eq!(found("s3", &[(name, "research"), (source, "x")]), Ok(()), "{source}");
            }
        }
        let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
        assert_eq!(found("s3", &[keys[0], keys[1], ("AWS_PROFILE", "research")]), Ok(()));
        assert_eq!(found("s3", &[]), Ok(()));
    }

    #[test]
    fn half_of_a_pair_of_keys_names_the_other_half() {
        let error = found("s3", &[("AWS_ACCESS_KEY_ID", "k")]).unwrap_err();
        assert!(error.contains("AWS_SECRET_ACCESS_KEY is not"), "{error}");
        let error = found("s3", &[("AWS_SECRET_ACCESS_KEY", "s")]).unwrap_err();
        assert!(error.contains("AWS_ACCESS_KEY_ID is not"), "{error}");
    }

    #[test]
    fn a_connection_string_is_not_read() {
        let string = ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a");
        assert!(found("az", &[string]).unwrap_err().contains("connection strings are not read"));
        assert_eq!(found("az", &[string, ("AZURE_STORAGE_ACCOUNT_NAME", "a")]), Ok(()));
    }
}
