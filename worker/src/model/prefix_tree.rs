//! Texts as a prefix tree, so that common prefixes are computed once.
//!
//! The text tower uses causal attention: a token's activations depend only on the tokens before it.
//! Texts with a common prefix therefore share all computation on that prefix, and a class list
//! under a prompt such as `a photo of a {}` costs little more than the class names alone. Layer
//! norms and linear layers, which take most of the time, process every node once; attention works
//! on queries, keys and values that are copied to every text. Results equal those of separate texts
//! up to rounding.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::error::Error;

/// The prefix tree of a list of texts, each cut after its pooled token.
#[derive(Debug)]
pub struct PrefixTree {
    texts: Arc<Vec<Vec<u32>>>,
    /// Token of each node `[nodes]`, int64.
    pub(super) ids: Tensor,
    /// Position of each node within its texts `[nodes]`, int64.
    pub(super) positions: Tensor,
    /// Node of each token of each text `[texts, tokens]`, int64. Node 0 fills the columns after a
    /// text's end, to which none of its tokens attends.
    nodes: Tensor,
    /// One occurrence of each node, as an index into the flattened `nodes` `[nodes]`, int64.
    occurrences: Tensor,
    /// Position of each text's pooled token `[texts]`, int64.
    pub(super) pooled: Tensor,
    /// Node of each text's pooled token `[texts]`, int64.
    pooled_nodes: Tensor,
    /// Number of texts that each node belongs to `[nodes]`, float32.
    counts: Tensor,
}

impl PrefixTree {
    /// Builds the tree of `texts`. Each must be non-empty and end with its pooled token.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn new(texts: Vec<Vec<u32>>, device: Device) -> Result<Self, Error> {
        let tokens = texts.iter().map(Vec::len).max().unwrap_or(0);
        let mut known: HashMap<(Option<i64>, u32), i64> = HashMap::new();
        let (mut ids, mut positions, mut occurrences) = (Vec::new(), Vec::new(), Vec::new());
        let (mut nodes, mut counts) = (vec![0i64; texts.len() * tokens], Vec::new());
        let (mut pooled, mut pooled_nodes) =
            (Vec::with_capacity(texts.len()), Vec::with_capacity(texts.len()));
        for (number, text) in texts.iter().enumerate() {
            let mut parent = None;
            for (position, &id) in text.iter().enumerate() {
                let place = number * tokens + position;
                let node = *known.entry((parent, id)).or_insert_with(|| {
                    ids.push(i64::from(id));
                    positions.push(position as i64);
                    occurrences.push(place as i64);
                    counts.push(0f32);
                    ids.len() as i64 - 1
                });
                nodes[place] = node;
                counts[node as usize] += 1.0;
                parent = Some(node);
            }
            pooled.push(text.len() as i64 - 1);
            pooled_nodes.push(parent.unwrap_or(0));
        }
        let tensor = |values: &[i64]| -> Result<Tensor, Error> {
            Ok(Tensor::f_from_slice(values)?.f_to(device)?)
        };
        Ok(Self {
            ids: tensor(&ids)?,
            positions: tensor(&positions)?,
            nodes: tensor(&nodes)?.f_view([texts.len() as i64, tokens as i64])?,
            occurrences: tensor(&occurrences)?,
            pooled: tensor(&pooled)?,
            pooled_nodes: tensor(&pooled_nodes)?,
            counts: Tensor::f_from_slice(&counts)?.f_to(device)?,
            texts: Arc::new(texts),
        })
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns the number of tokens of the longest text.
    pub fn tokens(&self) -> i64 {
        self.nodes.size()[1]
    }

    /// Returns whether the tree contains no text.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Builds the tree of a selection of the texts.
    ///
    /// # Errors
    /// When an index is out of range, or libtorch returns an error.
    pub fn select(&self, texts: impl IntoIterator<Item = usize>) -> Result<Self, Error> {
        let pick = |text: usize| {
            let missing = || Error::Tensor {
                tensor: "input_ids".into(),
                problem: format!("has no text {text}"),
            };
            self.texts.get(text).cloned().ok_or_else(missing)
        };
        Self::new(texts.into_iter().map(pick).collect::<Result<Vec<_>, _>>()?, self.ids.device())
    }

    /// Returns the device that holds the tree's tensors.
    pub fn device(&self) -> Device {
        self.ids.device()
    }

    /// Returns another handle to the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            texts: Arc::clone(&self.texts),
            ids: self.ids.shallow_clone(),
            positions: self.positions.shallow_clone(),
            nodes: self.nodes.shallow_clone(),
            occurrences: self.occurrences.shallow_clone(),
            pooled: self.pooled.shallow_clone(),
            pooled_nodes: self.pooled_nodes.shallow_clone(),
            counts: self.counts.shallow_clone(),
        }
    }

    /// Copies the values of nodes `[nodes, width]` to every token of every text: `[texts, tokens,
    /// width]`.
    pub(super) fn to_tokens(&self, of_nodes: &Tensor) -> Result<Tensor, Error> {
        let (texts, tokens) = self.nodes.size2()?;
        Ok(of_nodes.f_index_select(0, &self.nodes.f_view([-1])?)?.f_view([
            texts,
            tokens,
            of_nodes.size()[1],
        ])?)
    }

    /// Takes the values of nodes `[nodes, width]` from those of tokens `[texts, tokens, width]`.
    pub(super) fn to_nodes(&self, of_tokens: &Tensor) -> Result<Tensor, Error> {
        Ok(of_tokens.f_reshape([-1, of_tokens.size()[2]])?.f_index_select(0, &self.occurrences)?)
    }

    /// Returns the number of texts that each node belongs to `[nodes]`, float32.
    pub fn counts(&self) -> &Tensor {
        &self.counts
    }

    /// Takes the values of each text's pooled token `[texts, width]` from those of nodes `[nodes,
    /// width]`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn at_pooled(&self, of_nodes: &Tensor) -> Result<Tensor, Error> {
        Ok(of_nodes.f_index_select(0, &self.pooled_nodes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefixes_share_nodes() {
        let texts = vec![vec![1, 5, 6, 2], vec![1, 5, 2], vec![1, 6, 2], vec![1, 5, 6, 2]];
        let tree = PrefixTree::new(texts.clone(), Device::Cpu).unwrap();
        let values = |t: &Tensor| Vec::<i64>::try_from(t.view([-1])).unwrap();
        assert_eq!(values(&tree.ids), [1, 5, 6, 2, 2, 6, 2]);
        assert_eq!(values(&tree.positions), [0, 1, 2, 3, 2, 1, 2]);
        assert_eq!(values(&tree.at_pooled(&tree.ids.view([-1, 1])).unwrap()), [2, 2, 2, 2]);
        let tokens = tree.to_tokens(&tree.ids.view([-1, 1])).unwrap();
        for (number, text) in texts.iter().enumerate() {
            let row = values(&tokens.get(number as i64));
            assert_eq!(row[..text.len()].iter().map(|&id| id as u32).collect::<Vec<_>>(), *text);
        }
        assert_eq!(tree.to_nodes(&tokens).unwrap(), tree.ids.view([-1, 1]));
        assert_eq!(values(&tree.select([2, 1]).unwrap().ids), [1, 6, 2, 5, 2]);
        assert!(tree.select([4]).is_err());
        assert_eq!(Vec::<f32>::try_from(tree.counts()).unwrap(), [4., 3., 2., 2., 1., 1., 1.]);
    }
}
