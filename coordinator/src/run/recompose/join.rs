//! One recipe of concepts from several releases.
//!
//! A release holds the effects between its own concepts. Those between concepts of two releases are
//! computed here from the factors of gradients and directions, in plain float64.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use lethe_shared::checkpoint::read_tensors;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{self, Direction};
use lethe_store as store;
use safetensors::SafeTensors;

use super::member::{Member, unknown};
use crate::compose::effect_matrix::ImageRows;
use crate::compose::recipe::{Part, Recipe};
use crate::failure::Failure;
use crate::layout::EDITS;
use crate::release::read::Release;

/// Returns one recipe of concepts from several releases.
pub(super) async fn join(
    parent: &Release,
    concepts: &BTreeMap<String, Member>,
    edits: &BTreeMap<Digest, Bytes>,
) -> Result<Recipe, Failure> {
    let mut recipes: BTreeMap<Digest, Recipe> = BTreeMap::new();
    for member in concepts.values() {
        if let Entry::Vacant(entry) = recipes.entry(member.from.digest) {
            entry.insert(member.from.recipe().await?);
        }
    }
    if recipes.is_empty() {
        return parent.recipe().await;
    }
    // The index of each concept in its own release.
    let place = |(id, member): (&String, &Member)| {
        let recipe = &recipes[&member.from.digest];
        let at = recipe
            .parts()
            .iter()
            .position(|part| part.concept == *id)
            .ok_or_else(|| unknown(&member.from, id))?;
        Ok((recipe, member.from.digest, at))
    };
    let places = concepts.iter().map(place).collect::<Result<Vec<_>, Failure>>()?;
    let parts = places.iter().map(|(recipe, _, at)| recipe.parts()[*at].clone()).collect();
    if recipes.values().any(|recipe| recipe.effect_matrix().is_none()) {
        return Recipe::sum(parts).map_err(Failure::input);
    }
    if recipes.values().any(|recipe| images_of(recipe).is_some()) {
        return join_images(parent, concepts, edits, parts, &places).await;
    }
    let n = places.len();
    let mut effect = vec![0.0; n * n];
    let directions = if recipes.len() > 1 { directions(concepts, edits)? } else { Vec::new() };
    for (row, member) in concepts.values().enumerate() {
        let (recipe, source, i) = places[row];
        let mut foreign = Vec::new();
        for (column, &(_, other, j)) in places.iter().enumerate() {
            match recipe.effect_matrix() {
                Some(effect_matrix) if other == source => {
                    effect[row * n + column] = effect_matrix.effect(i, j)
                }
                _ => foreign.push(column),
            }
        }
        if foreign.is_empty() {
            continue;
        }
        let gradients = gradients(member).await?;
        let mut by_layer: BTreeMap<&str, Direction> = BTreeMap::new();
        for column in foreign {
            let (layer, direction) = &directions[column];
            let own = match by_layer.entry(layer) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(gradient(member, &gradients, layer)?),
            };
            let id = &member.record.id;
            effect[row * n + column] = edit::inner_product(own, direction).ok_or_else(|| {
                Failure::input(format!(
                    "gradient of `{id}` and a direction on `{layer}` are not of one shape"
                ))
            })?;
        }
    }
    Recipe::solved(parts, effect).map_err(Failure::input)
}

/// Returns the margin constraints of a recipe.
fn images_of(recipe: &Recipe) -> Option<&ImageRows> {
    recipe.effect_matrix().and_then(|effect_matrix| effect_matrix.images())
}

/// Returns one recipe of concepts from several releases that were composed by margins. `places`
/// holds, for each concept, its recipe, the release, and its index there.
async fn join_images(
    parent: &Release,
    concepts: &BTreeMap<String, Member>,
    edits: &BTreeMap<Digest, Bytes>,
    parts: Vec<Part>,
    places: &[(&Recipe, Digest, usize)],
) -> Result<Recipe, Failure> {
    let n = places.len();
    let foreign = places.iter().any(|(_, source, _)| *source != parent.digest);
    let directions = if foreign { spread_directions(concepts, edits)? } else { Vec::new() };
    let mut rows = ImageRows {
        effect: Vec::new(),
        concept: Vec::new(),
        weight: Vec::new(),
        target: Vec::new(),
        penalty: places
            .iter()
            .filter(|(_, source, _)| *source == parent.digest)
            .chain(places)
            .find_map(|(recipe, ..)| Some(images_of(recipe)?.penalty))
            .unwrap_or(f64::NAN),
    };
    for (number, member) in concepts.values().enumerate() {
        let (recipe, source, own) = places[number];
        let images = images_of(recipe).ok_or_else(|| {
            Failure::input(format!(
                "{} holds no margin constraints of `{}`",
                member.from.address(),
                member.record.id
            ))
        })?;
        let there = recipe.parts().len();
        let of_concept: Vec<usize> =
            (0..images.len()).filter(|&row| images.concept[row] == own).collect();
        let mut effect = vec![0.0; of_concept.len() * n];
        for (place, &row) in of_concept.iter().enumerate() {
            for (column, &(_, other, j)) in places.iter().enumerate() {
                if other == source {
                    effect[place * n + column] = images.effect[row * there + j];
                }
            }
        }
        if places.iter().any(|(_, other, _)| *other != source) {
            let file = gradients(member).await?;
            let file = parse(&file, "gradients")?;
            for (column, (_, other, _)) in places.iter().enumerate() {
                if *other == source {
                    continue;
                }
                let of_images =
                    image_effects(member, &file, of_concept.len(), &directions[column])?;
                for (place, value) in of_images.into_iter().enumerate() {
                    effect[place * n + column] = value;
                }
            }
        }
        rows.effect.extend(effect);
        for row in of_concept {
            rows.concept.push(number);
            rows.weight.push(images.weight[row]);
            rows.target.push(images.target[row]);
        }
    }
    Recipe::of_images(parts, rows).map_err(Failure::input)
}

/// Returns the directions of every concept by layer, in order.
fn spread_directions(
    concepts: &BTreeMap<String, Member>,
    edits: &BTreeMap<Digest, Bytes>,
) -> Result<Vec<Vec<(String, Direction)>>, Failure> {
    let of = |(id, member): (&String, &Member)| {
        let file = parse(&edits[&member.from.digest], EDITS)?;
        let layers = member.record.layers();
        let spread = layers.len() > 1;
        let one = |layer: &str| {
            let name = edit::edit_name(id, layer, spread);
            let found = factored(&file, &name)?.ok_or_else(|| {
                Failure::input(format!(
                    "{}: no factors of `{name}` in {EDITS}",
                    member.from.address()
                ))
            })?;
            Ok((layer.to_owned(), found))
        };
        layers.into_iter().map(one).collect()
    };
    concepts.iter().map(of).collect()
}

/// Returns by how much a direction with coefficient 1 lowers the margin of each image of a concept,
/// summed in float64 over layers and rows.
fn image_effects(
    member: &Member,
    file: &SafeTensors<'_>,
    images: usize,
    direction: &[(String, Direction)],
) -> Result<Vec<f64>, Failure> {
    let (id, from) = (&member.record.id, member.from.address());
    let wrong = |problem: &str| {
        Failure::input(format!(
            "what edits of other releases do to concept `{id}` of {from} is not known: {problem}"
        ))
    };
    let mut effects = vec![0.0; images];
    for (layer, direction) in direction {
        let Direction::Factored { up, down, rank } = direction else {
            return Err(wrong("a direction has no factors"));
        };
        let part = |side: &str| {
            file.tensor(&format!("{layer}.{side}")).map_err(|_| {
                wrong(&format!("its run took no gradients at {layer}; run all concepts together"))
            })
        };
        let (deltas, inputs, image) = (part("deltas")?, part("inputs")?, part("image")?);
        let deltas = edit::widen(layer, deltas.data(), deltas.dtype())?;
        let inputs = edit::widen(layer, inputs.data(), inputs.dtype())?;
        let owners: Vec<u64> = image
            .data()
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]))
            .collect();
        let rank = *rank;
        if rank == 0 {
            continue;
        }
        let (outputs, width) = (up.len() / rank, down.len() / rank);
        if deltas.len() != owners.len() * outputs || inputs.len() != owners.len() * width {
            return Err(wrong("its gradients have another shape"));
        }
        let rows = deltas.chunks_exact(outputs.max(1)).zip(inputs.chunks_exact(width.max(1)));
        for (&owner, (delta, input)) in owners.iter().zip(rows) {
            let slot = usize::try_from(owner)
                .ok()
                .and_then(|owner| effects.get_mut(owner))
                .ok_or_else(|| wrong("a gradient belongs to no image"))?;
            for r in 0..rank {
                let left: f64 =
                    delta.iter().enumerate().map(|(o, d)| d * f64::from(up[o * rank + r])).sum();
                let right: f64 = input
                    .iter()
                    .zip(&down[r * width..(r + 1) * width])
                    .map(|(x, &d)| x * f64::from(d))
                    .sum();
                *slot += left * right;
            }
        }
    }
    Ok(effects)
}

/// Returns layer and direction of every concept, in order.
fn directions(
    concepts: &BTreeMap<String, Member>,
    edits: &BTreeMap<Digest, Bytes>,
) -> Result<Vec<(String, Direction)>, Failure> {
    let of = |(id, member): (&String, &Member)| {
        let file = parse(&edits[&member.from.digest], EDITS)?;
        let found = factored(&file, id)?.ok_or_else(|| {
            Failure::input(format!("{}: no factors of `{id}` in {EDITS}", member.from.address()))
        })?;
        Ok((member.record.layer.clone(), found))
    };
    concepts.iter().map(of).collect()
}

fn parse<'a>(bytes: &'a [u8], name: &str) -> Result<SafeTensors<'a>, Failure> {
    read_tensors(bytes).map_err(|problem| Failure::input(format!("{name}: {problem}")))
}

/// Returns the factors of this name, for any shape of the product; `None` if there are none.
fn factored(file: &SafeTensors<'_>, name: &str) -> Result<Option<Direction>, Failure> {
    let (up, down) = edit::factor_names(name);
    let (Ok(up), Ok(down)) = (file.tensor(&up), file.tensor(&down)) else { return Ok(None) };
    let (&[outputs, _], &[_, inputs]) = (up.shape(), down.shape()) else { return Ok(None) };
    Ok(Some(edit::read_direction(file, name, &[outputs, inputs])?))
}

/// Returns the file with a concept's gradient factors.
async fn gradients(member: &Member) -> Result<Bytes, Failure> {
    let (id, from) = (&member.record.id, &member.from);
    let refuse = |problem: &str| {
        Failure::input(format!(
            "what others' edits do to concept `{id}` of {} is not known: {problem}",
            from.address()
        ))
    };
    let artifact =
        member.record.gradients.ok_or_else(|| refuse("its record names no gradients"))?;
    if !from.stored {
        return Err(refuse(
            "gradients stay in the store that it was released to; give the release as STORE/releases/NAME/DIGEST",
        ));
    }
    match from.store.get_artifact(&artifact).await {
        Err(store::Error::NotFound { object, .. }) => Err(refuse(&format!(
            "{object}, its gradients, is no longer there; the run that found it makes them again"
        ))),
        other => Ok(other?),
    }
}

/// Returns a concept's gradient at a layer.
fn gradient(member: &Member, file: &[u8], layer: &str) -> Result<Direction, Failure> {
    let (id, from) = (&member.record.id, member.from.address());
    factored(&parse(file, "gradients")?, layer)?.ok_or_else(|| {
        Failure::input(format!(
            "what edits of `{layer}` do to concept `{id}` of {from} is not known: its run kept gradients of the layers that it edits, \
             and that is none of them; run all concepts together"
        ))
    })
}
