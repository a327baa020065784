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
const PROFILES: [&str; 4] =
    ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];
/// Variables that are used as they are when they are empty.
const KEYS: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

/// Checks the credentials in the environment, which `variable` reads, for a URL scheme.
///
/// # Errors
/// A sentence that names the variable that is set, and what to set instead.
pub(crate) fn check(scheme: &str, variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let set = |name: &str| variable(name).is_some_and(|value| !value.trim().is_empty());
    let empty = |name: &&str| variable(name).is_some_and(|value| value.trim().is_empty());
    if scheme == "s3"
        && let Some(key) = KEYS.iter().find(|name| empty(name))
    {
        return Err(format!("{key} is set to an empty value; give it its value, or unset it"));
    }
    match scheme {
        "s3" => s3(set),
        "az" => azure(set),
        _ => Ok(()),
    }
}

fn s3(set: impl Fn(&str) -> bool) -> Result<(), String> {
    let key = set(KEYS[0]);
    both(&set, KEYS[0], KEYS[1])?;
    if !key {
        // A role that is assumed with a token, as in Kubernetes.
        both(&set, "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")?;
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

/// Checks that both or none of two variables are set.
fn both(set: impl Fn(&str) -> bool, one: &str, other: &str) -> Result<(), String> {
    let (there, missing) = match (set(one), set(other)) {
        (true, false) => (one, other),
        (false, true) => (other, one),
        _ => return Ok(()),
    };
    Err(format!("{there} is set and {missing} is not; set both"))
}

fn azure(set: impl Fn(&str) -> bool) -> Result<(), String> {
    let account = set("AZURE_STORAGE_ACCOUNT_NAME");
    if set("AZURE_STORAGE_CONNECTION_STRING") && !account {
        return Err("AZURE_STORAGE_CONNECTION_STRING is set and AZURE_STORAGE_ACCOUNT_NAME is not; connection strings are not read: \
                    set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, both of which the string holds"
            .to_owned());
    }
    if set("AZURE_STORAGE_ACCOUNT") && !account {
        return Err("AZURE_STORAGE_ACCOUNT is set and AZURE_STORAGE_ACCOUNT_NAME is not; the names of Azure's command line are not read: \
                    set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
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
                let set = [(name, "research"), (source, "x"), ("AWS_ROLE_ARN", "r")];
                let wanted = if source == "AWS_WEB_IDENTITY_TOKEN_FILE" { 3 } else { 2 };
                assert_eq!(found("s3", &set[..wanted]), Ok(()), "{source}");
            }
        }
        let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
        assert_eq!(found("s3", &[keys[0], keys[1], ("AWS_PROFILE", "research")]), Ok(()));
        assert_eq!(found("s3", &[]), Ok(()));
    }

    #[test]
    fn half_of_a_pair_names_the_other_half() {
        for (one, other) in [
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ] {
            for (there, missing) in [(one, other), (other, one)] {
                let error = found("s3", &[(there, "x")]).unwrap_err();
                assert!(error.contains(&format!("{there} is set and {missing} is not")), "{error}");
            }
        }
    }

    #[test]
    fn empty_keys_are_named() {
        let error = found("s3", &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "s")]);
        assert!(error.unwrap_err().starts_with("AWS_ACCESS_KEY_ID is set to an empty value"));
        let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
        assert_eq!(found("s3", &[keys[0], keys[1], ("AWS_ROLE_ARN", "r")]), Ok(()));
    }

    #[test]
    fn a_connection_string_is_not_read() {
        let string = ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a");
        assert!(found("az", &[string]).unwrap_err().contains("connection strings are not read"));
        assert_eq!(found("az", &[string, ("AZURE_STORAGE_ACCOUNT_NAME", "a")]), Ok(()));
        let error = found("az", &[("AZURE_STORAGE_ACCOUNT", "a")]).unwrap_err();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME is not"), "{error}");
    }
}
