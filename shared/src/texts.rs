//! Unlabelled texts: files with one text per line, which extend the retain statistics.

use crate::manifest::Error;
use crate::webdataset::MAX_CAPTION;
use crate::words::trimmed;

/// Largest file, bytes.
pub const MAX_FILE: u64 = 256 << 20;
/// Most bytes of all files of a run.
pub const MAX_TOTAL: u64 = 1 << 30;
/// Texts per slice. It affects the ids of jobs over slices, so it must not depend on the number of
/// workers.
pub const SLICE: usize = 4096;

/// Parses a UTF-8 text file with one text per line. Byte-order marks, surrounding white space and
/// empty lines are ignored. `file` appears in messages.
///
/// # Errors
/// [`Error`] with file and line when a line is not UTF-8 or longer than a caption may be, and when
/// there is no text.
pub fn parse(bytes: &[u8], file: &str) -> Result<Vec<String>, Error> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
        return Err(Error::new(file, "is UTF-16 text; save it as UTF-8"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.trim_ascii().contains(&b'\r') && !bytes.contains(&b'\n') {
        let problem = "lines end with carriage returns alone; save it with line feeds";
        return Err(Error::new(file, problem));
    }
    let mut texts = Vec::new();
    for (number, line) in (1usize..).zip(bytes.split(|&byte| byte == b'\n')) {
        let wrong = |problem: String| Error::new(format!("{file}:{number}"), problem);
        if line.len() as u64 > MAX_CAPTION {
            return Err(wrong(format!(
                "the line has {} bytes, at most 64 KiB are read; put one text on a line",
                line.len()
            )));
        }
        let line = std::str::from_utf8(line)
            .map_err(|_| wrong("the line is not UTF-8 text".to_owned()))?;
        if line.contains('\0') {
            return Err(wrong(
                "the line holds U+0000: it may be UTF-16 text; save it as UTF-8".into(),
            ));
        }
        let line = trimmed(line);
        if !line.is_empty() {
            texts.push(line.to_owned());
        }
    }
    if texts.is_empty() {
        Err(Error::new(file, "contains no text; write one text per line"))
    } else {
        Ok(texts)
    }
}

/// Cuts one file's texts into consecutive slices of at most [`SLICE`].
pub fn slices(mut texts: Vec<String>) -> Vec<Vec<String>> {
    let mut slices = Vec::with_capacity(texts.len().div_ceil(SLICE));
    while texts.len() > SLICE {
        let rest = texts.split_off(SLICE);
        slices.push(std::mem::replace(&mut texts, rest));
    }
    if !texts.is_empty() {
        slices.push(texts);
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(bytes: &[u8]) -> String {
        parse(bytes, "texts.txt").unwrap_err().to_string()
    }

    #[test]
    fn reads_one_text_a_line() {
        let texts =
            parse("\u{feff}a cat\r\n\n \t\n  être là  \na cat".as_bytes(), "texts.txt").unwrap();
        assert_eq!(texts, ["a cat", "être là", "a cat"]);
    }

    #[test]
    fn problems_name_the_line() {
        assert!(problem(b"cat\n\ndo\xffg\n").contains("texts.txt:3: the line is not UTF-8"));
        let long = [b"cat\n".as_slice(), &[b'x'; 70_000]].concat();
        assert!(problem(&long).contains("texts.txt:2: the line has 70000 bytes, at most 64 KiB"));
        assert!(problem(b" \n\n").contains("texts.txt: contains no text"));
        assert!(problem(b"").contains("contains no text"));
        assert!(problem(b"c\0a\0t\0\n\0").contains("texts.txt:1: the line holds U+0000"));
        assert!(problem(b"\xff\xfec\0").contains("is UTF-16 text"));
        assert!(problem(b"a cat\ra dog\r").contains("carriage returns alone"));
    }

    #[test]
    fn slices_keep_the_order() {
        let texts: Vec<String> = (0..2 * SLICE + 5).map(|number| number.to_string()).collect();
        let cut = slices(texts.clone());
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [SLICE, SLICE, 5]);
        assert_eq!(cut.concat(), texts);
        assert_eq!(slices(texts[..SLICE].to_vec()).len(), 1);
        assert_eq!(slices(Vec::new()).len(), 0);
    }
}
