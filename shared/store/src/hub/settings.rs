//! Settings of the hub's client, from the environment variables that `huggingface_hub` reads.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::HeaderValue;

/// The hub, where `HF_ENDPOINT` names no other one.
const ENDPOINT: &str = "https://huggingface.co";
/// Largest token file, bytes.
const MAX_TOKEN: u64 = 4096;

/// Settings of the hub's client.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// URL of the hub.
    pub(super) endpoint: Url,
    /// The `Authorization` header, if there is a token. It is marked as sensitive.
    pub(super) authorization: Option<HeaderValue>,
    /// The cache folder.
    pub(super) cache: PathBuf,
    /// Whether only the cache is used.
    pub(super) offline: bool,
}

impl Settings {
    /// Reads the settings from the environment, which `variable` reads.
    ///
    /// # Errors
    /// A sentence that names the variable or file, and what to do.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let user = set("HOME").map(PathBuf::from);
        let folder = |name: &str| {
            set(name).map(|text| match (text.strip_prefix("~/"), &user) {
                (Some(rest), Some(user)) => user.join(rest),
                _ => PathBuf::from(text),
            })
        };
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| user.as_ref().map(|user| user.join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or("neither HF_HOME nor HOME is set; set HF_HOME to a folder for downloads")?;
        let cache = std::path::absolute(&cache)
            .map_err(|error| format!("{}: {error}; set HF_HOME", cache.display()))?;
        let token = match set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None => folder("HF_TOKEN_PATH")
                .or_else(|| home.as_ref().map(|home| home.join("token")))
                .map_or(Ok(None), |path| token_file(&path))?,
        };
        let plain_http = set("AWS_ALLOW_HTTP").is_some_and(|value| value == "true" || value == "1");
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().any(|name| {
            set(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
            })
        });
        Ok(Self {
            endpoint: endpoint(set("HF_ENDPOINT").as_deref().unwrap_or(ENDPOINT), plain_http)?,
            authorization: token.as_deref().map(authorization).transpose()?,
            cache,
            offline,
        })
    }
}

/// Reads the URL of a hub.
fn endpoint(text: &str, plain_http: bool) -> Result<Url, String> {
    let wrong = |problem: &str| {
        format!("HF_ENDPOINT `{}` {problem}", text.chars().take(200).collect::<String>())
    };
    let url = Url::parse(text).map_err(|error| wrong(&format!("is no URL ({error})")))?;
    match url.scheme() {
        "https" => {}
        "http" if plain_http || is_loopback(&url) => {}
        "http" => {
            return Err(wrong(
                "is without TLS, which only a hub on this machine may be; use https://, or set AWS_ALLOW_HTTP=true",
            ));
        }
        _ => return Err(wrong("must begin with https://")),
    }
    if url.cannot_be_a_base() || !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("must name a host, without credentials; set HF_TOKEN"));
    }
    Ok(url)
}

/// Returns whether a URL names this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// Reads the file in which `hf auth login` stores a token; `None` when there is none.
fn token_file(path: &Path) -> Result<Option<String>, String> {
    let unreadable = |error: std::io::Error| format!("{}: {error}; set HF_TOKEN", path.display());
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_TOKEN => {
            Err(format!("{} is larger than a token; set HF_TOKEN", path.display()))
        }
        Ok(_) => {
            let token = std::fs::read_to_string(path).map_err(unreadable)?;
            Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

fn authorization(token: &str) -> Result<HeaderValue, String> {
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| "the token of the hub has characters that no token has; check HF_TOKEN")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_as_by_huggingface_hub() {
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/home/u")]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")]),
            Path::new("/c/huggingface/hub")
        );
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "~/hf")]), Path::new("/u/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert!(read(&[]).unwrap_err().contains("set HF_HOME"));
        let offline =
            |value: &str| read(&[("HOME", "/u"), ("HF_HUB_OFFLINE", value)]).unwrap().offline;
        assert_eq!(["1", "true", "0", ""].map(offline), [true, true, false, false]);
    }

    #[test]
    fn a_token_is_found_and_never_shown() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().to_str().unwrap();
        assert!(read(&[("HF_HOME", at)]).unwrap().authorization.is_none());
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let settings = read(&[("HF_HOME", at)]).unwrap();
        assert_eq!(settings.authorization.as_ref().unwrap(), "Bearer hf_file");
        assert!(!format!("{settings:?}").contains("hf_file"));
        let settings = read(&[("HF_HOME", at), ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(settings.authorization.unwrap(), "Bearer hf_variable");
        let error = read(&[("HF_HOME", at), ("HF_TOKEN", "a\nsecret")]).unwrap_err();
        assert!(error.contains("HF_TOKEN") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        let at = |url: &str| read(&[("HOME", "/u"), ("HF_ENDPOINT", url)]);
        for url in [
            "https://hub.example/api",
            "http://127.0.0.1:8080",
            "http://[::1]:1",
            "http://localhost",
        ] {
            assert!(at(url).is_ok(), "{url}");
        }
        for url in ["http://hub.example", "ftp://hub", "hub", "https://u:p@hub"] {
            assert!(at(url).unwrap_err().contains("HF_ENDPOINT"), "{url}");
        }
        let allowed =
            [("HOME", "/u"), ("HF_ENDPOINT", "http://hub.example"), ("AWS_ALLOW_HTTP", "true")];
        assert!(read(&allowed).is_ok());
    }
}
