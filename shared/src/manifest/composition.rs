//! `[composition]`: how edits are found and combined, with its defaults.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::vocabulary::{TextTokens, Tower, Towers};

/// How edits are composed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CompositionMethod {
    /// Steps along D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹, with a coefficient per edit that is solved for
    /// all edits together. C and M are second moments over retained data, of a layer's inputs and
    /// of the gradients at its outputs.
    Preconditioned,
    /// One constraint per forget image: its own class must rank below others by a margin. All
    /// constraints are solved together at the least cost to retained data, without a search per
    /// concept, and measured again for some rounds.
    Margins,
    /// The states of a concept's texts are mapped to those of a mean text, by edits of the text tower
    /// that are solved for all concepts together (MEMIT, arXiv 2210.07229; EMCID, arXiv 2403.13807): at
    /// the token that CLIP reads, by edits of all layers that end an MLP; or at every token of the
    /// context, as diffusion pipelines read them, by edits of one layer.
    LeastSquares,
    /// Steps along g P, with coefficients solved together. P projects onto the directions with the
    /// smallest second moments over retained data (AlphaEdit, arXiv 2410.02355).
    NullSpace,
    /// θ_l + Σ α·λ·g over the edits of a layer: SLUG's full search per concept, summed as by its
    /// authors.
    Sum,
    /// The same edits, divided by the number of edits on each layer (model soups, arXiv
    /// 2203.05482).
    Mean,
    /// The same edits, merged by TIES (arXiv 2306.01708): trim, elect signs, average the values
    /// that agree.
    Ties,
    /// The same edits, merged by DARE (arXiv 2311.03099): drop values at random, scale up the rest,
    /// add.
    Dare,
}

impl CompositionMethod {
    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preconditioned => "preconditioned",
            Self::Margins => "margins",
            Self::LeastSquares => "least-squares",
            Self::NullSpace => "null-space",
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Ties => "ties",
            Self::Dare => "dare",
        }
    }

    /// Returns whether directions are preconditioned by second moments and all edits solved
    /// together; otherwise each edit is the result of SLUG's full search.
    pub fn corrects(self) -> bool {
        matches!(self, Self::Preconditioned | Self::Margins | Self::LeastSquares | Self::NullSpace)
    }
}

/// The layers that a concept's edit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// One layer, the same for all concepts: the one that keeps most when all are removed.
    One,
    /// All layers that end an MLP.
    All,
}

impl Spread {
    /// Returns the default for edits of a tower.
    pub fn of(tower: Tower) -> Self {
        match tower {
            Tower::Text => Self::One,
            Tower::Vision => Self::All,
        }
    }
}

/// `[composition]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompositionSection {
    /// The method. By default `margins`, unless edits may change the text tower only; then
    /// `least-squares` where the text tower's MLPs have 2,048 units or more or a diffusion pipeline is
    /// among the targets, and `preconditioned` where they do not, where the model is a SigLIP, or where
    /// the manifest has a setting that only `preconditioned` knows. A field that names no method applies to `preconditioned`,
    /// `null-space` and `margins`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<CompositionMethod>,
    /// Towers that edits may change; only their layers are scored. (SLUG's full search, of `sum`,
    /// `mean`, `ties` and `dare`, always uses both.)
    pub towers: Towers,
    /// The one layer that edits change, by the name of its weight in the checkpoint. By default the
    /// run selects layers. Not with the targets of two towers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// `preconditioned` and `null-space`: most layers that the edits of a run are distributed over.
    #[schemars(range(min = 1, max = 64))]
    pub layers: u32,
    /// `margins`: whether a concept's edit is spread over all layers that end an MLP, or changes
    /// one. By default `one` for the text tower and `all` for the vision tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// `margins`: by how much of a cosine the class of a forget image must rank below the k-th best
    /// other class, where k follows from `method.stop` (`fa5`: the fifth). A larger value forgets more on images that
    /// are not in the forget set, and costs more. By default 0.02 for the text tower and 0.05 for
    /// the vision tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// `margins` with both towers: what a change of image embeddings costs, relative to the same
    /// change of text embeddings. A larger value leaves more of the removal to the text tower. By
    /// default 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_cost: Option<f64>,
    /// `margins`: most forget images of a concept that become constraints. `least-squares`: most
    /// texts of a concept that are mapped: its class text, and captions of its pairs.
    #[schemars(range(min = 1, max = 1024))]
    pub images: u32,
    /// Largest rank of a concept's direction at a layer. A smaller rank makes
    /// the edits in a release smaller and less efficient. By default 2 for the text tower; for the
    /// vision tower 32 with `margins`, and no limit otherwise; with `least-squares` 4, or 1 with tokens =
    /// "read".
    #[schemars(range(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// `least-squares`: weight of retained texts, in concepts. A larger value keeps more and leaves
    /// more of what is removed. By default 500, or 100 with tokens = "read".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_weight: Option<f64>,
    /// `least-squares`: which states of a removed text change. `all`: those of every token, for
    /// pipelines that read them. `read`: that of the token which CLIP reads; retained classes keep
    /// more. By default `all` where a target reads every token, and `read` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TextTokens>,
    /// `preconditioned` and `margins`: ridge ρ on the second moments of inputs, as a share of their
    /// mean diagonal. A larger value shortens the steps and protects less.
    pub ridge: f64,
    /// `preconditioned` and `margins`: ridge ρ_M on the second moments of gradients at the outputs
    /// of a layer, as a share of their mean diagonal. A smaller value turns edits more towards
    /// outputs that retained data is insensitive to; 1000 and more turns this correction off.
    pub output_ridge: f64,
    /// `null-space`: largest share of the trace of the second moments in the subspace that edits
    /// may use.
    pub null_energy: f64,
    /// `ties`: share of the values of each edit that is kept.
    pub density: f64,
    /// `dare`: probability that a value of an edit is dropped.
    pub drop: f64,
    /// Weight of unlabelled data relative to the retain set in the second moments. A larger value
    /// protects unlabelled data more and the retain set less.
    pub unlabelled_weight: f64,
    /// `preconditioned`, `null-space` and `margins`: largest change of a layer, ‖Δ‖/‖θ‖, with the layer's original weights θ.
    /// Edits that change a layer more are all scaled by one factor; concepts that are not forgotten then are
    /// reported. By default there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<f64>,
    /// All methods: share of a concept's forget images that the verdict allows to be recognised by the
    /// measure `method.stop`. `preconditioned`, `null-space` and `least-squares` use it in their rounds too.
    pub tolerance: f64,
    /// Most rounds of evaluating the composed model on the forget sets and adjusting coefficients, or
    /// with `least-squares` solving the last layer again for concepts that are still recognised; 0
    /// uses them as solved. `margins` makes at least one.
    #[schemars(range(max = 100))]
    pub rounds: u32,
}

/// Width of the text tower's MLPs from which on `least-squares` is the default: narrower ones lose more
/// by it than by `preconditioned` (`docs/research/composition.md`).
const WIDE: u64 = 2048;

/// What the defaults of a composition follow from.
#[derive(Debug, Clone, Copy)]
pub struct Settling {
    /// Width of the text tower's layers that end an MLP.
    pub inputs: u64,
    /// Whether the text tower's attention is causal. Where it is not, as in a SigLIP,
    /// `preconditioned` is the default (`docs/research/composition.md`).
    pub is_causal: bool,
    /// Whether a target reads the states of all tokens of a text, as most diffusion pipelines do.
    pub reads_every_token: bool,
    /// Whether texts are protected.
    pub protects: bool,
}

impl Default for CompositionSection {
    fn default() -> Self {
        Self {
            method: None,
            towers: Towers::default(),
            layer: None,
            layers: 1,
            spread: None,
            margin: None,
            vision_cost: None,
            images: 16,
            rank: None,
            retain_weight: None,
            tokens: None,
            ridge: 0.0003,
            output_ridge: 0.3,
            null_energy: 0.01,
            density: 0.2,
            drop: 0.9,
            unlabelled_weight: 0.5,
            change: None,
            tolerance: 0.0,
            rounds: 12,
        }
    }
}

impl CompositionSection {
    /// Returns the method. Where the manifest names none, it follows from the towers, because each
    /// method keeps more of the retained classes in one of them (`docs/research/margins.md`), and from
    /// settings that only `least-squares` has. [`settle`](Self::settle) sets it where it follows from
    /// the model.
    pub fn method(&self) -> CompositionMethod {
        self.method.unwrap_or(match self.towers {
            Towers::Text if self.retain_weight.is_some() || self.tokens.is_some() => {
                CompositionMethod::LeastSquares
            }
            Towers::Text => CompositionMethod::Preconditioned,
            Towers::Vision | Towers::Both => CompositionMethod::Margins,
        })
    }

    /// Sets the defaults that follow from the model and the targets, where the manifest leaves them
    /// open.
    pub fn settle(&mut self, run: Settling) {
        let Settling { inputs, is_causal, reads_every_token, protects } = run;
        let defaults = Self::default();
        let is_tuned = protects
            || self.layers != defaults.layers
            || self.change.is_some()
            || self.output_ridge != defaults.output_ridge;
        let is_open = self.method.is_none() && self.towers == Towers::Text;
        if is_open && !is_tuned && ((inputs >= WIDE && is_causal) || reads_every_token) {
            self.method = Some(CompositionMethod::LeastSquares);
        }
        if self.method() == CompositionMethod::LeastSquares && self.tokens.is_none() {
            self.tokens = Some(if reads_every_token { TextTokens::All } else { TextTokens::Read });
        }
    }

    /// Returns the tokens of a text whose states `least-squares` changes.
    pub fn tokens(&self) -> TextTokens {
        self.tokens.unwrap_or_default()
    }

    /// Returns the weight of retained texts in `least-squares`, in concepts: the largest tried with
    /// which a pipeline draws less than one in twenty of the demo's hundred concepts
    /// (`docs/evidence/targets.md`).
    pub fn retain_weight(&self) -> f64 {
        self.retain_weight.unwrap_or(match self.tokens() {
            TextTokens::All => 500.0,
            TextTokens::Read => 100.0,
        })
    }

    /// Returns the largest rank of a concept's direction at a layer of this tower; `None` keeps
    /// directions whole.
    pub fn rank(&self, tower: Tower) -> Option<u32> {
        self.rank.or(match (tower, self.method()) {
            (_, CompositionMethod::LeastSquares) => match self.tokens() {
                TextTokens::All => Some(4),
                // A concept has one state there: more rows add little (docs/research/composition.md).
                TextTokens::Read => Some(1),
            },
            (Tower::Text, _) => Some(2),
            (Tower::Vision, CompositionMethod::Margins) => Some(32),
            // One gradient of all images has a high rank, and cutting it costs accuracy.
            (Tower::Vision, _) => None,
        })
    }
}
