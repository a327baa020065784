//! Texts as a tree of their beginnings.
//!
//! Attention is causal: what a token becomes depends on what stands before it alone. So texts that begin alike share
//! everything computed on what they share, and a class list under a prompt such as `a photo of a {}` is hardly more than its
//! names. Queries, keys and values are spread over the texts for attention, which is the small part; norms and linear maps see
//! every node once. Results are those of the texts one by one, but for the last bits of sums.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::Error;

/// Some texts, each up to the token that stands for it, with every common beginning once.
#[derive(Debug)]
pub struct TokenTree {
    texts: Arc<Vec<Vec<u32>>>,
    /// Token of each node `[nodes]`, int64.
    pub(super) ids: Tensor,
    /// Where in its texts each node stands `[nodes]`, int64.
    pub(super) positions: Tensor,
    /// Node of each text's tokens `[texts, tokens]`, int64; node 0 where a text has ended, which no token of it looks at.
    nodes: Tensor,
    /// A text and position where each node is found, as an index into the flattened `nodes` `[nodes]`, int64.
    places: Tensor,
    /// Position of the token that stands for each text `[texts]`, int64.
    pub(super) pooled: Tensor,
    /// Node of that token `[texts]`, int64.
    ends: Tensor,
}

impl TokenTree {
    /// The tree of some texts, none of them empty, each ending with the token that stands for it.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn new(texts: Vec<Vec<u32>>, device: Device) -> Result<Self, Error> {
        let tokens = texts.iter().map(Vec::len).max().unwrap_or(0);
        let mut known: HashMap<(Option<i64>, u32), i64> = HashMap::new();
        let (mut ids, mut positions, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut nodes = vec![0i64; texts.len() * tokens];
        let (mut pooled, mut ends) = (Vec::with_capacity(texts.len()), Vec::with_capacity(texts.len()));
        for (number, text) in texts.iter().enumerate() {
            let mut parent = None;
            for (position, &id) in text.iter().enumerate() {
                let place = number * tokens + position;
                let node = *known.entry((parent, id)).or_insert_with(|| {
                    ids.push(i64::from(id));
                    positions.push(position as i64);
                    places.push(place as i64);
                    ids.len() as i64 - 1
                });
                nodes[place] = node;
                parent = Some(node);
            }
            pooled.push(text.len() as i64 - 1);
            ends.push(parent.unwrap_or(0));
        }
        let tensor = |values: &[i64]| -> Result<Tensor, Error> { Ok(Tensor::f_from_slice(values)?.f_to(device)?) };
        Ok(Self {
            ids: tensor(&ids)?,
            positions: tensor(&positions)?,
            nodes: tensor(&nodes)?.f_view([texts.len() as i64, tokens as i64])?,
            places: tensor(&places)?,
            pooled: tensor(&pooled)?,
            ends: tensor(&ends)?,
            texts: Arc::new(texts),
        })
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Tokens of the longest text.
    pub fn tokens(&self) -> i64 {
        self.nodes.size()[1]
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The tree of some of the texts.
    ///
    /// # Errors
    /// When there is no such text, or libtorch refuses.
    pub fn select(&self, texts: impl IntoIterator<Item = usize>) -> Result<Self, Error> {
        let pick = |text: usize| {
            let missing = || Error::Tensor { tensor: "input_ids".into(), problem: format!("has no text {text}") };
            self.texts.get(text).cloned().ok_or_else(missing)
        };
        Self::new(texts.into_iter().map(pick).collect::<Result<Vec<_>, _>>()?, self.ids.device())
    }

    /// Where the tree's tensors are.
    pub fn device(&self) -> Device {
        self.ids.device()
    }

    /// Another handle on the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            texts: Arc::clone(&self.texts),
            ids: self.ids.shallow_clone(),
            positions: self.positions.shallow_clone(),
            nodes: self.nodes.shallow_clone(),
            places: self.places.shallow_clone(),
            pooled: self.pooled.shallow_clone(),
            ends: self.ends.shallow_clone(),
        }
    }

    /// What belongs to nodes `[nodes, width]`, at every token of every text `[texts, tokens, width]`.
    pub(super) fn spread(&self, of_nodes: &Tensor) -> Result<Tensor, Error> {
        let (texts, tokens) = self.nodes.size2()?;
        Ok(of_nodes.f_index_select(0, &self.nodes.f_view([-1])?)?.f_view([texts, tokens, of_nodes.size()[1]])?)
    }

    /// What belongs to the tokens of texts `[texts, tokens, width]`, at the nodes they are `[nodes, width]`.
    pub(super) fn gather(&self, of_tokens: &Tensor) -> Result<Tensor, Error> {
        Ok(of_tokens.f_reshape([-1, of_tokens.size()[2]])?.f_index_select(0, &self.places)?)
    }

    /// What belongs to nodes `[nodes, width]`, at the token that stands for each text `[texts, width]`.
    pub(super) fn at_ends(&self, of_nodes: &Tensor) -> Result<Tensor, Error> {
        Ok(of_nodes.f_index_select(0, &self.ends)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_beginnings_are_there_once() {
        let texts = vec![vec![1, 5, 6, 2], vec![1, 5, 2], vec![1, 6, 2], vec![1, 5, 6, 2]];
        let tree = TokenTree::new(texts.clone(), Device::Cpu).unwrap();
        let values = |t: &Tensor| Vec::<i64>::try_from(t.view([-1])).unwrap();
        assert_eq!(values(&tree.ids), [1, 5, 6, 2, 2, 6, 2]);
        assert_eq!(values(&tree.positions), [0, 1, 2, 3, 2, 1, 2]);
        assert_eq!(values(&tree.at_ends(&tree.ids.view([-1, 1])).unwrap()), [2, 2, 2, 2]);
        let spread = tree.spread(&tree.ids.view([-1, 1])).unwrap();
        for (number, text) in texts.iter().enumerate() {
            let row = values(&spread.get(number as i64));
            assert_eq!(row[..text.len()].iter().map(|&id| id as u32).collect::<Vec<_>>(), *text);
        }
        assert_eq!(tree.gather(&spread).unwrap(), tree.ids.view([-1, 1]));
        assert_eq!(values(&tree.select([2, 1]).unwrap().ids), [1, 6, 2, 5, 2]);
        assert!(tree.select([4]).is_err());
    }
}
