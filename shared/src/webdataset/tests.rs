//! Archives made by the test.

use super::*;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and the rest";

fn place(path: &str) -> Place {
    place_of(Some(path), tar::EntryType::Regular).unwrap()
}

fn shard(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Returns each sample's key and caption or problem, and the members that belong to none.
fn read(bytes: &[u8], captioned: bool) -> (Vec<(String, String)>, Strays) {
    let mut archive = Archive::new(bytes);
    let mut samples = archive.samples(captioned).unwrap();
    let mut found = Vec::new();
    while let Some(sample) = samples.advance().unwrap() {
        let told = match sample.pair() {
            Ok(pair) => pair.caption.to_owned(),
            Err(problem) => problem.message,
        };
        found.push((sample.key().to_owned(), told));
    }
    (found, samples.strays().clone())
}

#[test]
fn a_key_ends_at_the_first_dot_of_the_file_name() {
    let place_in = |key: &str, field| Place::In(key.to_owned(), field);
    assert_eq!(place("a.b/c.PNG"), place_in("a.b/c", Field::Image));
    assert_eq!(place("./c.txt"), place_in("c", Field::Caption));
    assert_eq!(place("zoom1.5x-3.png"), place_in("zoom1", Field::Other));
    assert_eq!(place("a.txt.gz"), place_in("a", Field::Other));
    for stray in ["README", "a/.DS_Store", "._1.png", "a/__x__"] {
        assert_eq!(place(stray), Place::Stray, "{stray}");
    }
    assert_eq!(place("__meta__"), Place::Ignored);
    assert_eq!(place("__meta__/x/1.png"), Place::Ignored);
    assert_eq!(place("./__meta__/1.png"), place_in("__meta__/1", Field::Image));
    assert_eq!(place("x/__meta__/1.png"), place_in("x/__meta__/1", Field::Image));
    assert_eq!(place("__MACOSX/1.png"), place_in("__MACOSX/1", Field::Image));
    assert!(place_of(None, tar::EntryType::Regular).is_err());
    assert!(place_of(Some("a.png"), tar::EntryType::Link).is_err());
}

#[test]
fn the_file_that_is_there_is_named() {
    let (found, strays) = read(
        &shard(&[
            ("a.gif", b"GIF89a"),
            ("a.txt", b"cat"),
            ("b.png", PNG),
            ("b.json", b"{}"),
            ("b.cls", b"1"),
            ("c.json", b"{}"),
            ("c.gif", b"GIF89a"),
        ]),
        true,
    );
    assert!(found[0].1.contains("has a caption and no image; it has `a.gif`, but images are"));
    assert!(found[1].1.contains("no caption (b.txt); it has `b.json`, `b.cls`, but captions"));
    assert_eq!((found.len(), strays.members, strays.example.as_str()), (2, 2, "c.json"));
}

/// By webdataset's rule they belong to the sample `a`; whoever named them so expects pairs.
#[test]
fn files_with_more_dots_that_look_like_pairs_are_counted() {
    let members: [(&str, &[u8]); 6] = [
        ("a.png", PNG),
        ("a.txt", b"cat"),
        ("a.1.png", PNG),
        ("a.1.txt", b"dog"),
        ("a.json", b"{}"),
        ("b.1.png", PNG),
    ];
    let (found, strays) = read(&shard(&members), true);
    assert_eq!(found, [("a".into(), "cat".into())]);
    assert_eq!((strays.members, strays.example.as_str()), (3, "a.1.png"));
}

#[test]
fn captions_are_read_only_where_they_are_wanted() {
    let bytes = shard(&[("a.png", PNG), ("a.txt", b""), ("b.txt", b"two"), ("c.webp", PNG)]);
    let (found, strays) = read(&bytes, false);
    assert_eq!(found, [("a".into(), String::new()), ("c".into(), String::new())]);
    assert_eq!((strays.members, strays.example.as_str()), (1, "b.txt"));
}

#[test]
fn captions_lose_their_byte_order_mark() {
    assert_eq!(caption("\u{feff} a cat\r\n".as_bytes()), Ok("a cat"));
    assert_eq!(caption(" \u{feff}\u{feff}cat\u{feff}".as_bytes()), Ok("cat"));
    assert_eq!(caption("a\u{200d}b".as_bytes()), Ok("a\u{200d}b"));
    assert!(caption(b"\xff\xfec\0a\0t\0").unwrap_err().contains("UTF-16"));
    assert!(caption(b"\xef\xbb\xbf\n").unwrap_err().contains("is empty"));
    assert!(caption("\u{200b}\u{2060}".as_bytes()).unwrap_err().contains(r"`\u{200b}\u{2060}`"));
    assert!(caption(b"\xff").unwrap_err().contains("not UTF-8"));
}

#[test]
fn a_damaged_archive_is_told_with_its_place() {
    let bytes = shard(&[("1.png", PNG), ("1.txt", b"cat")]);
    let at = |bytes: &[u8]| {
        let mut archive = Archive::new(bytes);
        let mut samples = archive.samples(true).unwrap();
        loop {
            match samples.advance() {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(damaged) => return Some(damaged.at),
            }
        }
    };
    assert_eq!(at(&bytes), None);
    assert_eq!(at(&bytes[..1024 + 300]), Some(1024));
    assert_eq!(at(&bytes[..1024 + 512 + 2]), Some(1024 + 512 + 2));
}

/// A sparse file of a pax archive begins with a map of its parts, which is no caption.
#[test]
fn a_sparse_file_is_refused() {
    let mut tar = tar::Builder::new(Vec::new());
    let add = |tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add(&mut tar, "a.png", PNG);
    tar.append_pax_extensions([("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0")])
        .unwrap();
    add(&mut tar, "a.txt", b"1\n0\n3\n");
    let (found, _) = read(&tar.into_inner().unwrap(), true);
    assert!(found[0].1.contains("is a sparse file"), "{found:?}");
}

/// Returns an extension record of this kind that announces a size, and only as much of it as is given.
fn announced(kind: tar::EntryType, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("PaxHeaders/1.png").unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    let padding = content.len().next_multiple_of(512) - content.len();
    [header.as_bytes(), content, &vec![0; padding]].concat()
}

/// Counts the bytes that are read of it.
struct Counted<'a>(&'a [u8], &'a std::cell::Cell<usize>);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // In small pieces, as a slow connection gives them.
        let most = buffer.len().min(100);
        let n = self.0.read(&mut buffer[..most])?;
        self.1.set(self.1.get() + n);
        Ok(n)
    }
}

#[test]
fn an_extension_record_that_is_too_large_is_refused_before_it_is_read() {
    use tar::EntryType;
    let before = shard(&[("1.png", PNG), ("1.txt", b"cat"), ("1.json", &[b' '; 1024])]);
    let before = &before[..before.len() - 1024];
    for kind in [
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
    ] {
        for size in [MAX_EXTENSION + 1, 1 << 30] {
            let large = vec![b'x'; 2 << 20];
            let bytes = [before, &announced(kind, size, &large)].concat();
            let read = std::cell::Cell::new(0);
            let mut archive = Archive::new(Counted(&bytes, &read));
            let mut samples = archive.samples(true).unwrap();
            let damaged = loop {
                match samples.advance() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{kind:?} of {size} bytes is read"),
                    Err(damaged) => break damaged,
                }
            };
            assert!(read.get() <= before.len() + 512, "{kind:?}: {} bytes are read", read.get());
            assert_eq!((damaged.oversized, damaged.at), (true, before.len() as u64));
            let said = damaged.sentence("");
            let expected = format!("announces {size} bytes, at most 1048576 are read");
            assert!(said.contains(&expected) && said.contains("`PaxHeaders/1.png`"), "{said}");
        }
    }
    // The largest record is read, and contents that look like such a header are contents.
    let largest = announced(EntryType::GNULongLink, MAX_EXTENSION, &vec![0; 1 << 20]);
    let inner = announced(EntryType::XHeader, 1 << 30, b"");
    let pair = shard(&[("a.json", &inner), ("a.png", PNG), ("a.txt", &[b'a'; 512])]);
    let (found, _) = read(&[&largest[..], &pair].concat(), true);
    assert_eq!(found, [("a".to_owned(), "a".repeat(512))]);
}
