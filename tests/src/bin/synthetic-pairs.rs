//! `synthetic-pairs FOLDER [PAIRS [CONCEPTS [SHARDS]]]`: writes WebDataset shards of synthetic
//! pairs, a table of concepts that some of their captions mention, and a class list. The same
//! arguments give the same bytes.
//!
//! Images are noise behind a JPEG's first bytes, 4 to 20 kB each; captions have ten to twenty
//! words. A tenth of them mention a concept, a hundredth two, by name or alias in any case.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;

const SYLLABLES: [&str; 24] = [
    "ba", "cor", "den", "el", "fi", "gar", "hol", "im", "jo", "kan", "li", "mor", "ne", "or",
    "pal", "qui", "ra", "sto", "tu", "ul", "ver", "wen", "ya", "zo",
];
const CLASSES: usize = 1000;
const VOCABULARY: usize = 20_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(
        arguments.next().context("usage: synthetic-pairs FOLDER [PAIRS [CONCEPTS [SHARDS]]]")?,
    );
    let mut number = |or: usize| arguments.next().map_or(Ok(or), |text| text.parse::<usize>());
    let (pairs, concepts, shards) = (number(200_000)?, number(500)?, number(20)?.max(1));
    std::fs::create_dir_all(&folder)?;

    let mut table = BufWriter::new(File::create(folder.join("concepts.csv"))?);
    writeln!(table, "id,name,aliases")?;
    let names: Vec<[String; 3]> = (0..concepts).map(names_of).collect();
    for (concept, [name, alias, another]) in names.iter().enumerate() {
        writeln!(table, "concept-{concept:03},{name},{alias}|{another}")?;
    }
    table.flush()?;
    let mut classes = BufWriter::new(File::create(folder.join("classes.txt"))?);
    (0..CLASSES).try_for_each(|class| writeln!(classes, "{}", word(class * 17)))?;
    classes.flush()?;

    for shard in 0..shards {
        let of_shard = pairs / shards + usize::from(shard < pairs % shards);
        write_shard(&folder.join(format!("pairs-{shard:05}.tar")), shard, of_shard, &names)?;
    }
    Ok(())
}

/// Returns a synthetic word, different for each number; one in fifty has an accent.
fn word(mut number: usize) -> String {
    let mut word = if number.is_multiple_of(50) { "ö".to_owned() } else { String::new() };
    for _ in 0..4 {
        word += SYLLABLES[number % SYLLABLES.len()];
        number /= SYLLABLES.len();
    }
    word
}

fn names_of(concept: usize) -> [String; 3] {
    let own = |part: usize| word(100_000 + 7 * concept + part);
    [format!("{} {}", own(0), own(1)), own(2), format!("{}-{} {}", own(3), own(4), own(5))]
}

/// Returns a random number below a bound.
fn below(draws: &mut Draws, bound: usize) -> usize {
    ((draws.uniform() * bound as f64) as usize).min(bound - 1)
}

fn caption(draws: &mut Draws, names: &[[String; 3]]) -> String {
    let mut words: Vec<String> =
        (0..10 + below(draws, 11)).map(|_| word(below(draws, VOCABULARY))).collect();
    let mentions = match below(draws, 100) {
        0 => 2,
        1..10 => 1,
        _ => 0,
    };
    for _ in 0..mentions {
        let name = &names[below(draws, names.len())][below(draws, 3)];
        let at = below(draws, words.len());
        words.insert(at, if below(draws, 2) == 0 { name.to_uppercase() } else { name.clone() });
    }
    words.join(" ")
}

fn write_shard(
    path: &std::path::Path,
    number: usize,
    pairs: usize,
    names: &[[String; 3]],
) -> Result<()> {
    let mut draws = Draws::seeded(Digest::of(&number.to_le_bytes()));
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    // A JPEG by its markers: a comment of eight bytes, the headers of frame and scan, and noise
    // without markers.
    let mut image: Vec<u8> = (0..20_000).map(|_| below(&mut draws, 255) as u8).collect();
    image[..6].copy_from_slice(b"\xff\xd8\xff\xfe\0\x0a");
    image[14..27].copy_from_slice(b"\xff\xc0\0\x0b\x08\0\x40\0\x40\x01\x01\x11\0");
    image[27..37].copy_from_slice(b"\xff\xda\0\x08\x01\x01\0\0\x3f\0");
    for pair in 0..pairs {
        // Unique bytes in the comment make the image distinct, so the noise can repeat.
        image[6..14].copy_from_slice(&((number as u64) << 32 | pair as u64).to_le_bytes());
        let size = 4_000 + below(&mut draws, 16_000);
        let noise: [u8; 2] = [image[size - 2], image[size - 1]];
        image[size - 2..size].copy_from_slice(b"\xff\xd9");
        let text = caption(&mut draws, names);
        for (ending, bytes) in [("jpg", &image[..size]), ("txt", text.as_bytes())] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{pair:09}.{ending}"), bytes)?;
        }
        image[size - 2..size].copy_from_slice(&noise);
    }
    tar.into_inner()?.flush()?;
    Ok(())
}
