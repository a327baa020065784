//! Weights: safetensors files, their indexes, and the directions of edits.

use std::collections::BTreeMap;

use lethe_shared::checkpoint::{self, Checkpoint, Dtype};
use lethe_shared::edit::{self, Direction};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::draw::Draw;
use crate::harness::{Harness, Outcome, hold, refused, same, usual_memory};
use crate::json::{Node, almost, documents, unique_keys};
use crate::scratch;

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "safetensors",
            memory: usual_memory,
            seeds: || vec![file(&sample(&[("w", "F32", &[2, 3]), ("b", "BF16", &[3])]), 30)],
            generate: |draw| generate(draw, &["w", "b", "a.weight", "__metadata__", ""]),
            check: check_file,
        },
        Harness {
            name: "safetensors-index",
            memory: usual_memory,
            seeds: || INDEXES.iter().map(|text| text.as_bytes().to_vec()).collect(),
            generate: |draw| {
                let keys = ["weight_map", "metadata", "w", "b"];
                almost(&documents(INDEXES), &keys, draw).write(Some(draw)).into_bytes()
            },
            check: check_index,
        },
        Harness {
            name: "direction",
            memory: usual_memory,
            seeds: || {
                vec![
                    file(&sample(&[("w", "F32", &[2, 3])]), 24),
                    file(&sample(&[("w.up", "F32", &[2, 1]), ("w.down", "F32", &[1, 3])]), 20),
                ]
            },
            generate: |draw| match draw.below(3) {
                0 => generate(draw, &["w", "w.up", "w.down"]),
                _ => generate_direction(draw),
            },
            check: check_direction,
        },
    ]
}

const INDEXES: [&str; 2] = [
    r#"{"metadata":{"total_size":8},"weight_map":{"b":"model-00001-of-00002.safetensors","w":"model-00002-of-00002.safetensors"}}"#,
    r#"{"weight_map":{"w":"model.safetensors"}}"#,
];
const TYPES: [(&str, usize); 9] = [
    ("F32", 4),
    ("F32", 4),
    ("F16", 2),
    ("BF16", 2),
    ("F64", 8),
    ("I64", 8),
    ("I32", 4),
    ("U8", 1),
    ("BOOL", 1),
];
/// The layer whose directions are read, and its shape.
const LAYER: &str = "w";
const SHAPE: [usize; 2] = [2, 3];

fn number(value: usize) -> Node {
    Node::Number(value.to_string())
}

/// Returns the field of one tensor in a header.
fn tensor(name: &str, dtype: &str, shape: &[usize], start: usize, end: usize) -> (String, Node) {
    let info = Node::Object(vec![
        ("dtype".to_owned(), Node::Text(dtype.to_owned())),
        ("shape".to_owned(), Node::List(shape.iter().map(|&side| number(side)).collect())),
        ("data_offsets".to_owned(), Node::List(vec![number(start), number(end)])),
    ]);
    (name.to_owned(), info)
}

/// Returns a header of these tensors, one after another.
fn sample(tensors: &[(&str, &str, &[usize])]) -> Node {
    let mut end = 0;
    let fields = tensors.iter().map(|(name, dtype, shape)| {
        let size = TYPES.iter().find(|(known, _)| known == dtype).map_or(1, |(_, size)| *size);
        let start = end;
        end += size * shape.iter().product::<usize>();
        tensor(name, dtype, shape, start, end)
    });
    Node::Object(fields.collect())
}

/// Returns the file of a header and this many bytes of values.
fn file(header: &Node, bytes: usize) -> Vec<u8> {
    sealed(header.write(None).into_bytes(), &vec![0; bytes])
}

fn sealed(header: Vec<u8>, values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], &header, values].concat()
}

/// Generates a file of a few small tensors, in whose header something may be wrong.
fn generate(draw: &mut Draw<'_>, names: &[&str]) -> Vec<u8> {
    let (mut fields, mut end) = (Vec::new(), 0);
    for _ in 0..draw.below(4) {
        let name = if draw.one_in(8) { draw.text() } else { (*draw.pick(names)).to_owned() };
        let (dtype, size) = if draw.one_in(2) { TYPES[0] } else { *draw.pick(&TYPES) };
        let shape: Vec<usize> = match draw.below(5) {
            0 => vec![2, 3],
            1 => vec![2, draw.below(3)],
            2 => vec![draw.below(3), 3],
            _ => (0..draw.below(4)).map(|_| draw.below(4)).collect(),
        };
        let start = if draw.one_in(12) { draw.size() } else { end };
        end = start + size * shape.iter().product::<usize>();
        fields.push(tensor(&name, dtype, &shape, start, end));
    }
    if draw.one_in(6) && !fields.is_empty() {
        // The same values as two tensors, or as a tensor of another type or shape.
        let (name, mut info) = draw.pick(&fields).clone();
        if draw.one_in(2) {
            info.mutate(draw, &[]);
        }
        let name = if draw.one_in(2) { name } else { draw.text() };
        fields.push((name, info));
    }
    if draw.one_in(4) {
        let metadata = vec![("format".to_owned(), Node::Text("pt".to_owned()))];
        fields.insert(0, ("__metadata__".to_owned(), Node::Object(metadata)));
    }
    let mut header = Node::Object(fields);
    while draw.one_in(4) {
        header.mutate(draw, &["dtype", "shape", "data_offsets", "__metadata__", "w"]);
    }
    let mut header = header.write(Some(draw)).into_bytes();
    if draw.one_in(3) {
        header.resize(header.len().next_multiple_of(8), b' ');
    }
    let values = if draw.one_in(12) { draw.size() } else { end };
    let values = if draw.one_in(4) { draw.bytes(values) } else { vec![0x3f; values] };
    let mut bytes = sealed(header, &values);
    if draw.one_in(24) {
        let length = *draw.pick(&[0, 1, 8, 1 << 20, 100_000_000, 100_000_001, u64::MAX]);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
    bytes
}

/// Generates a direction for the layer, whole or in factors, in whose header something may be wrong.
fn generate_direction(draw: &mut Draw<'_>) -> Vec<u8> {
    let rank = draw.below(4);
    let (mut header, count) = if draw.one_in(2) {
        (sample(&[("w", "F32", &SHAPE)]), SHAPE[0] * SHAPE[1])
    } else {
        let factors: [(&str, &str, &[usize]); 2] =
            [("w.up", "F32", &[SHAPE[0], rank]), ("w.down", "F32", &[rank, SHAPE[1]])];
        (sample(&factors), rank * (SHAPE[0] + SHAPE[1]))
    };
    while draw.one_in(3) {
        header.mutate(draw, &["dtype", "shape", "data_offsets", "w", "w.up", "w.down"]);
    }
    let values = if draw.one_in(2) { draw.bytes(4 * count) } else { vec![0x3f; 4 * count] };
    sealed(header.write(Some(draw)).into_bytes(), &values)
}

/// A tensor as it is compared: type, shape, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

fn open(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, checkpoint::Error> {
    scratch::with_file("x.safetensors", bytes, |folder, _| {
        let opened = Checkpoint::open_file(folder, "x.safetensors")?;
        let read = |(name, info): (&String, &checkpoint::TensorInfo)| {
            Ok((name.clone(), (info.dtype, info.shape.clone(), opened.bytes(name)?)))
        };
        opened.tensors().iter().map(read).collect()
    })
}

fn check_file(bytes: &[u8]) -> Result<Outcome, String> {
    let tensors = match open(bytes) {
        Ok(tensors) => tensors,
        Err(error) => return refused(error),
    };
    // Everyone else reads the file with this library.
    let others = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("was accepted, but the safetensors library says: {error}"))?;
    let theirs: BTreeMap<String, Tensor> = others
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect();
    same("tensors of two readers", &tensors, &theirs)?;
    // The header alone, as it is read of a remote file.
    let length = checkpoint::header_length(&bytes[..8], bytes.len() as u64)
        .map_err(|error| format!("the header's length: {error}"))? as usize;
    let header = &bytes[8..8 + length];
    unique_keys(header)?;
    let names = checkpoint::tensor_names(header).map_err(|error| format!("the header: {error}"))?;
    same("names", &names.into_iter().collect::<Vec<_>>(), &tensors.keys().cloned().collect())?;
    let values: usize = tensors.values().map(|(_, _, values)| values.len()).sum();
    same("bytes of tensors and of the file", &values, &(bytes.len() - 8 - length))?;
    let views = tensors.iter().map(|(name, (dtype, shape, values))| {
        (name, TensorView::new(*dtype, shape.clone(), values).expect("the tensor was read"))
    });
    let again = safetensors::serialize(views, None).map_err(|error| error.to_string())?;
    let again = open(&again).map_err(|error| format!("written again: {error}"))?;
    same("tensors read and written", &tensors, &again)?;
    Ok(Outcome::Accepted)
}

fn check_index(bytes: &[u8]) -> Result<Outcome, String> {
    let read = |bytes: &[u8]| {
        scratch::with_file("x.index.json", bytes, |folder, _| {
            checkpoint::read_index(folder, "x.index.json")
        })
    };
    let map = match read(bytes) {
        Ok(map) => map,
        Err(error) => return refused(error),
    };
    unique_keys(bytes)?;
    for file in map.values() {
        hold(!file.contains('/'), || format!("the index leads to `{file}`"))?;
    }
    let again = serde_json::json!({ "weight_map": map }).to_string();
    let again = read(again.as_bytes()).map_err(|error| format!("written again: {error}"))?;
    same("indexes read and written", &map, &again)?;
    Ok(Outcome::Accepted)
}

fn check_direction(bytes: &[u8]) -> Result<Outcome, String> {
    let direction = match edit::decode_direction(LAYER, &SHAPE, bytes) {
        Ok(direction) => direction,
        Err(error) => return refused(error),
    };
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    unique_keys(&bytes[8..8 + length])?;
    let raw =
        |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let again = match &direction {
        Direction::Dense(values) => edit::encode_direction(LAYER, &SHAPE, &raw(values))
            .map_err(|error| format!("written again: {error}"))?,
        Direction::Factored { up, down, rank } => {
            let (up_name, down_name) = edit::factor_names(LAYER);
            edit::encode_tensors([
                (up_name.as_str(), &[SHAPE[0], *rank][..], &raw(up)[..]),
                (down_name.as_str(), &[*rank, SHAPE[1]][..], &raw(down)[..]),
            ])?
        }
    };
    let again = edit::decode_direction(LAYER, &SHAPE, &again)
        .map_err(|error| format!("written again: {error}"))?;
    same("directions read and written", &direction, &again)?;
    let (mut one_by_one, mut together) = (vec![0.0; 6], vec![0.0; 6]);
    direction.accumulate(&mut one_by_one, 0.5);
    direction.accumulate(&mut one_by_one, 2.0);
    edit::accumulate(&mut together, &[(direction.clone(), 0.5), (direction, 2.0)]);
    same("changes of a layer", &one_by_one, &together)?;
    Ok(Outcome::Accepted)
}
