//! A model hub on loopback: the API of the Hub that reading a repository takes, with faults on
//! request.
//!
//! | request | answer |
//! |---|---|
//! | `GET /api/models/ORG/NAME/revision/REVISION` | the commit of a branch |
//! | `GET /api/models/ORG/NAME/tree/COMMIT/FOLDER` | pages of three files, with `Link` |
//! | `GET /ORG/NAME/resolve/COMMIT/PATH` | a small file, or a redirect to another host for a large one |
//! | `GET /storage/DIGEST` | a large file; a request with a token is refused |

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use lethe_shared::digest::Digest;
use serde_json::{Value, json};

/// Files of a page of a listing.
const PAGE: usize = 3;
/// The token that reads gated and private repositories.
pub const TOKEN: &str = "hf_test";

/// Files of a commit, by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What the hub does wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers this many requests with 429 and `Retry-After: 1`.
    Limited(usize),
    /// Ends this many downloads of large files after half of their bytes.
    Truncated(usize),
    /// Changes the last byte of every large file.
    Corrupt,
    /// Lists a file of this path.
    Lists(String),
    /// Answers with 503.
    Down,
}

/// Who may read a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Everybody.
    #[default]
    Public,
    /// Everybody its lists, and the holder of the token its files.
    Gated,
    /// The holder of the token.
    Private,
}

#[derive(Debug, Default)]
struct Repository {
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, Files>,
    access: Access,
}

#[derive(Debug, Default)]
struct State {
    /// Repositories by kind, owner and name: `models/org/name`.
    repositories: BTreeMap<String, Repository>,
    /// Paths of all requests.
    requests: Vec<String>,
    fault: Option<Fault>,
}

/// A hub that runs until the process ends.
#[derive(Debug)]
pub struct HubServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// A response: status, headers, body, and the number of bytes of it that are sent.
struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    sent: usize,
}

impl HubServer {
    /// Starts a hub without repositories.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(client, address, &shared));
            }
        });
        Self { address, state }
    }

    /// Returns its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a commit to a branch of a repository, `models/org/name` or `datasets/org/name`, and
    /// returns its id.
    pub fn push(&self, repository: &str, branch: &str, files: Files) -> String {
        let mut state = self.state();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        let named: Vec<(&String, Digest)> =
            files.iter().map(|(name, bytes)| (name, Digest::of(bytes))).collect();
        let commit = hex(format!("{named:?} {}", repository.commits.len()).as_bytes());
        repository.branches.insert(branch.to_owned(), commit.clone());
        repository.commits.insert(commit.clone(), files);
        commit
    }

    /// Adds a commit with the files of a folder.
    pub fn push_folder(&self, repository: &str, branch: &str, folder: &Path) -> String {
        self.push(repository, branch, crate::files(folder))
    }

    /// Sets who may read a repository.
    ///
    /// # Panics
    /// If there is no such repository.
    pub fn protect(&self, repository: &str, access: Access) {
        let mut state = self.state();
        state.repositories.get_mut(repository).expect("a repository").access = access;
    }

    /// Sets what the hub does wrong.
    pub fn set(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Returns the paths of all requests so far, and forgets them.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the state")
    }
}

fn serve(client: TcpStream, address: SocketAddr, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let is_head = line.starts_with("HEAD ");
    let target = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let response = {
        let mut state = state.lock().ok()?;
        answer(&target, &headers, address, &mut state)
    };
    let mut client = client;
    let mut head = format!(
        "HTTP/1.1 {} -\r\nConnection: close\r\nContent-Length: {}\r\n",
        response.status,
        response.body.len()
    );
    for (name, value) in &response.headers {
        head += &format!("{name}: {value}\r\n");
    }
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(b"\r\n").ok()?;
    client.write_all(if is_head { &[] } else { &response.body[..response.sent] }).ok()
}

fn answer(
    target: &str,
    headers: &BTreeMap<String, String>,
    address: SocketAddr,
    state: &mut State,
) -> Response {
    state.requests.push(target.to_owned());
    match &mut state.fault {
        Some(Fault::Limited(left)) if *left > 0 => {
            *left -= 1;
            let mut response = failed(429, "");
            response.headers.push(("Retry-After", "1".to_owned()));
            return response;
        }
        Some(Fault::Down) => return failed(503, ""),
        _ => {}
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<String> = path.split('/').skip(1).map(decoded).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let token = headers.get("authorization").map(String::as_str);
    match parts.as_slice() {
        ["storage", digest] => storage(digest, token, headers, state),
        ["api", kind, owner, name, "revision", revision] => {
            let id = format!("{kind}/{owner}/{name}");
            match readable(state, &id, token) {
                Err(response) => response,
                Ok(repository) => match repository.commit(revision) {
                    Some(commit) => body(json!({ "id": id, "sha": commit }).to_string()),
                    None => failed(404, "RevisionNotFound"),
                },
            }
        }
        ["api", kind, owner, name, "tree", commit, folder @ ..] => {
            let extra = match &state.fault {
                Some(Fault::Lists(path)) => Some(path.clone()),
                _ => None,
            };
            match readable(state, &format!("{kind}/{owner}/{name}"), token) {
                Err(response) => response,
                Ok(repository) => match repository.commits.get(*commit) {
                    Some(files) => tree(files, &folder.join("/"), query, extra, path, address),
                    None => failed(404, "RevisionNotFound"),
                },
            }
        }
        ["datasets", owner, name, "resolve", commit, path @ ..]
        | [owner, name, "resolve", commit, path @ ..] => {
            let kind = if parts[0] == "datasets" { "datasets" } else { "models" };
            let repository = format!("{kind}/{owner}/{name}");
            resolve(&repository, commit, &path.join("/"), token, headers, address, state)
        }
        _ => failed(404, ""),
    }
}

impl Repository {
    fn commit(&self, revision: &str) -> Option<String> {
        let commit = self.branches.get(revision).cloned();
        commit.or_else(|| self.commits.contains_key(revision).then(|| revision.to_owned()))
    }
}

/// Returns a repository if its lists may be read with a token. The Hub answers alike for a private
/// repository and one that does not exist.
fn readable<'a>(
    state: &'a State,
    id: &str,
    token: Option<&str>,
) -> Result<&'a Repository, Response> {
    let known = token == Some(&format!("Bearer {TOKEN}"));
    match state.repositories.get(id) {
        Some(repository) if repository.access != Access::Private || known => Ok(repository),
        _ => Err(failed(if token.is_some() { 404 } else { 401 }, "RepoNotFound")),
    }
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".tar")
}

fn tree(
    files: &Files,
    folder: &str,
    query: &str,
    extra: Option<String>,
    path: &str,
    address: SocketAddr,
) -> Response {
    let field =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let recursive = field("recursive") == Some("true");
    let first: usize = field("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let (mut entries, mut folders) = (Vec::new(), BTreeSet::new());
    for (name, bytes) in files {
        let Some(below) = name.strip_prefix(&prefix) else { continue };
        if let (Some((inner, _)), false) = (below.split_once('/'), recursive) {
            folders.insert(format!("{prefix}{inner}"));
            continue;
        }
        entries.push(entry(name, bytes));
    }
    entries.extend(folders.into_iter().map(
        |path| json!({ "type": "directory", "path": path, "oid": hex(path.as_bytes()), "size": 0 }),
    ));
    if entries.is_empty() {
        return failed(404, "EntryNotFound");
    }
    entries.extend(extra.map(|path| entry(&path, b"x")));
    let page: Vec<&Value> = entries.iter().skip(first).take(PAGE).collect();
    let mut response = body(json!(page).to_string());
    let next = first + page.len();
    if next < entries.len() {
        let link =
            format!("<http://{address}{path}?recursive={recursive}&cursor={next}>; rel=\"next\"");
        response.headers.push(("Link", link));
    }
    response
}

fn entry(path: &str, bytes: &[u8]) -> Value {
    let mut git = format!("blob {}\0", bytes.len()).into_bytes();
    git.extend_from_slice(bytes);
    let mut entry = json!({ "type": "file", "path": path, "oid": hex(&git), "size": bytes.len() });
    if is_large(path) {
        // Of a large file, Git has a pointer.
        entry["oid"] = json!(hex(b"a pointer"));
        entry["lfs"] = json!({ "oid": Digest::of(bytes), "size": bytes.len(), "pointerSize": 134 });
    }
    entry
}

fn resolve(
    id: &str,
    commit: &str,
    path: &str,
    token: Option<&str>,
    headers: &BTreeMap<String, String>,
    address: SocketAddr,
    state: &State,
) -> Response {
    let repository = match readable(state, id, token) {
        Err(response) => return response,
        Ok(repository) => repository,
    };
    if repository.access == Access::Gated && token != Some(&format!("Bearer {TOKEN}")) {
        return failed(if token.is_some() { 403 } else { 401 }, "GatedRepo");
    }
    let Some(bytes) = repository.commits.get(commit).and_then(|files| files.get(path)) else {
        return failed(404, "EntryNotFound");
    };
    if !is_large(path) {
        return part(bytes.clone(), headers);
    }
    let digest = Digest::of(bytes);
    // Storage is another host, which must not get the token.
    let place = format!("http://localhost:{}/storage/{digest}?signature=secret", address.port());
    Response {
        status: 302,
        headers: vec![
            ("Location", place),
            ("X-Repo-Commit", commit.to_owned()),
            ("X-Linked-Etag", format!("\"{digest}\"")),
            ("X-Linked-Size", bytes.len().to_string()),
        ],
        body: Vec::new(),
        sent: 0,
    }
}

fn storage(
    digest: &str,
    token: Option<&str>,
    headers: &BTreeMap<String, String>,
    state: &mut State,
) -> Response {
    if token.is_some() {
        return failed(400, "TokenSentToStorage");
    }
    let commits = state.repositories.values().flat_map(|repository| repository.commits.values());
    let found =
        commits.flat_map(BTreeMap::values).find(|bytes| Digest::of(bytes).to_string() == digest);
    let Some(mut bytes) = found.cloned() else { return failed(404, "") };
    match &mut state.fault {
        Some(Fault::Corrupt) => {
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            part(bytes, headers)
        }
        Some(Fault::Truncated(left)) if *left > 0 => {
            *left -= 1;
            let mut response = part(bytes, headers);
            response.sent /= 2;
            response
        }
        _ => part(bytes, headers),
    }
}

/// Returns bytes, or the part of them that a `Range` header asks for.
fn part(bytes: Vec<u8>, headers: &BTreeMap<String, String>) -> Response {
    let range = headers.get("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let Some((start, end)) = range else { return body(bytes) };
    let start: usize = start.parse().expect("a range from a first byte");
    let last = end.parse::<usize>().map_or(bytes.len() - 1, |end| end.min(bytes.len() - 1));
    let range = format!("bytes {start}-{last}/{}", bytes.len());
    let mut response = body(bytes[start..=last].to_vec());
    response.status = 206;
    response.headers.push(("Content-Range", range));
    response
}

fn body(bytes: impl Into<Vec<u8>>) -> Response {
    let body = bytes.into();
    Response { status: 200, headers: Vec::new(), sent: body.len(), body }
}

fn failed(status: u16, code: &str) -> Response {
    let headers = if code.is_empty() {
        Vec::new()
    } else {
        vec![
            ("X-Error-Code", code.to_owned()),
            ("X-Error-Message", format!("{code}, says the hub")),
        ]
    };
    Response { status, headers, body: Vec::new(), sent: 0 }
}

/// Returns the SHA-1 of bytes in hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    let found = digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
    found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes the percent-encoding of a path's part.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let code = more.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
