//! WebDataset shards: tar files of images and captions.

use std::io::Read;

use lethe_shared::shard::{Captions, inspect};
use lethe_shared::webdataset::{Archive, MAX_CAPTION, MAX_IMAGE, Strays};

use super::image::tiny_png;
use crate::draw::Draw;
use crate::harness::{Harness, Outcome, hold, refused, same};
use crate::scratch;

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![Harness {
        name: "shard",
        // Two samples are held at a time, and room for a file is made by the size in its header.
        memory: |input| (12 << 20) + 2 * (MAX_IMAGE + MAX_CAPTION) as usize + 64 * input.len(),
        seeds: || {
            let (png, text) = (tiny_png(), &b"a cat"[..]);
            vec![
                tar(&[
                    ("1.png", &png, tar::EntryType::Regular),
                    ("1.txt", text, tar::EntryType::Regular),
                ]),
                tar(&[
                    ("a/1.txt", text, tar::EntryType::Regular),
                    ("a/1.jpg", &png, tar::EntryType::Regular),
                    ("a/1.json", b"{}", tar::EntryType::Regular),
                    ("a/2.png", &png, tar::EntryType::Regular),
                    ("a/2.txt", b"dog", tar::EntryType::Regular),
                ]),
            ]
        },
        generate,
        check,
    }]
}

const PATHS: &[&str] = &[
    "1.png",
    "1.txt",
    "1.jpg",
    "1.PNG",
    "1.json",
    "1",
    "2.png",
    "2.txt",
    "2.webp",
    "2.x.png",
    "a/1.png",
    "a/1.txt",
    "./1.png",
    "./1.txt",
    "../1.png",
    "/1.png",
    "a//1.png",
    "a/../1.png",
    ".DS_Store",
    "__x__",
    "\u{e9}.png",
    "e\u{301}.png",
    "e\u{301}.txt",
    "\u{e9}.txt",
    "1.txt/",
    "a/",
    ".png",
    "1..png",
];

fn tar(members: &[(&str, &[u8], tar::EntryType)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content, kind) in members {
        append(&mut archive, path, content, *kind);
    }
    archive.into_inner().expect("memory takes every byte")
}

/// Appends a member as it is named, also where no sound program would name it so.
fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], kind: tar::EntryType) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let name = &path.as_bytes()[..path.len().min(100)];
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_cksum();
    archive.append(&header, content).expect("memory takes every byte");
}

fn generate(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for _ in 0..draw.below(6) {
        let mut path = if draw.one_in(8) { draw.text() } else { (*draw.pick(PATHS)).to_owned() };
        if draw.one_in(30) {
            path = format!("{}/{path}", "long".repeat(20 + draw.below(300)));
        }
        let content = match draw.below(6) {
            0 => {
                let length = draw.size();
                draw.bytes(length)
            }
            1 => draw.text().into_bytes(),
            2 => b"a cat".to_vec(),
            _ if path.to_lowercase().ends_with("txt") => b"a cat".to_vec(),
            _ => tiny_png(),
        };
        let kind = match draw.below(40) {
            0 => tar::EntryType::Symlink,
            1 => tar::EntryType::Directory,
            2 => tar::EntryType::GNULongName,
            3 => tar::EntryType::XHeader,
            4 => tar::EntryType::GNUSparse,
            5 => tar::EntryType::XGlobalHeader,
            6 => tar::EntryType::Continuous,
            7 => tar::EntryType::new(draw.number() as u8),
            _ => tar::EntryType::Regular,
        };
        let content = match kind {
            tar::EntryType::GNULongName => draw.pick(PATHS).as_bytes().to_vec(),
            tar::EntryType::XHeader => extension(draw),
            _ => content,
        };
        append(&mut archive, &path, &content, kind);
        if draw.one_in(12) {
            // The end of an archive, and another one behind it.
            archive.get_mut().extend([0; 1024]);
        }
    }
    let mut bytes = archive.into_inner().expect("memory takes every byte");
    while draw.one_in(3) && !bytes.is_empty() {
        // A field of a header, mostly with a checksum that fits.
        let block = 512 * draw.below(bytes.len().div_ceil(512));
        let Some(header) = bytes.get_mut(block..block + 512) else { break };
        let field = *draw.pick(&[0, 100, 124, 136, 148, 156, 157, 257, 265, 345, 386, 482, 483]);
        let new = draw.size();
        let mut new = draw.bytes(new);
        if draw.one_in(2) {
            new = format!("{:011o}\0", draw.number() >> draw.below(64)).into_bytes();
        }
        let end = (field + new.len()).min(512);
        header[field..end].copy_from_slice(&new[..end - field]);
        if !draw.one_in(4) {
            seal(header);
        }
    }
    match draw.below(12) {
        0 => bytes.truncate(512 * draw.below(bytes.len() / 512 + 1)),
        1 => {
            let length = draw.size();
            let more = draw.bytes(length);
            bytes.extend(more);
        }
        _ => {}
    }
    bytes
}

/// Returns a member with extended fields of POSIX.
fn extension(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..=draw.below(2) {
        let value = if draw.one_in(2) { draw.numeral() } else { (*draw.pick(PATHS)).to_owned() };
        let key = *draw.pick(&["path", "size", "linkpath", "GNU.sparse.realsize", "comment", ""]);
        let rest = format!(" {key}={value}\n");
        let length = rest.len() + 2;
        let length = if draw.one_in(8) { draw.size() } else { length };
        all.extend(format!("{length}{rest}").into_bytes());
    }
    all
}

/// Writes the checksum of a header.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Reads at most so many bytes at a time.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = self.1.min(buffer.len());
        self.0.read(&mut buffer[..most])
    }
}

/// Caption and image of a sample, or what is wrong with it.
type Pair = Result<(String, Vec<u8>), String>;

/// What is read of a shard.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    /// Samples by key.
    samples: Vec<(String, Pair)>,
    strays: Strays,
    members: u64,
    end: u64,
    damage: Option<String>,
}

fn read(bytes: &[u8], piece: usize) -> Result<Reading, String> {
    let mut reading = Reading::default();
    let mut archive = Archive::new(Pieces(bytes, piece));
    let mut samples = archive.samples(true).map_err(|error| error.to_string())?;
    loop {
        match samples.advance() {
            Ok(None) => break,
            Ok(Some(sample)) => {
                let pair = match sample.pair() {
                    Ok(pair) => Ok((pair.caption.to_owned(), pair.image.to_vec())),
                    Err(problem) => {
                        refused(&problem)?;
                        Err(problem.message)
                    }
                };
                reading.samples.push((sample.key().to_owned(), pair));
            }
            Err(damage) => {
                refused(&damage)?;
                reading.damage = Some(damage.to_string());
                break;
            }
        }
    }
    reading.strays = samples.strays().clone();
    (reading.members, reading.end) = (samples.members(), samples.end());
    if let Some(sentence) = reading.strays.sentence() {
        refused(sentence)?;
    }
    Ok(reading)
}

fn check(bytes: &[u8]) -> Result<Outcome, String> {
    let whole = read(bytes, usize::MAX)?;
    for piece in [1, 7, 511] {
        same("readings in pieces", &whole, &read(bytes, piece)?)?;
    }
    let inspected = scratch::with_file("x.tar", bytes, |_, path| inspect(path, Captions::Any));
    let info = match inspected {
        Ok(info) => info,
        Err(problems) => {
            problems.named.iter().try_for_each(|problem| refused(problem).map(drop))?;
            return hold(problems.count > 0, || "refused without a problem".to_owned())
                .map(|()| Outcome::Refused);
        }
    };
    same("damage", &whole.damage, &None)?;
    same("pairs", &info.pairs, &(whole.samples.len() as u64))?;
    same("bytes", &info.bytes, &(bytes.len() as u64))?;
    let mut keys: Vec<&str> = whole.samples.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    same("keys", &keys.len(), &whole.samples.len())?;
    for (key, pair) in &whole.samples {
        hold(pair.is_ok(), || format!("the shard was accepted with sample `{key}`: {pair:?}"))?;
        hold(!key.starts_with('/') && !key.split('/').any(|part| part == ".."), || {
            format!("the key `{key}` leaves the shard")
        })?;
    }
    Ok(Outcome::Accepted)
}
