//! Single Layer Unlearning Gradient (SLUG, arXiv 2407.11867) as specified in `docs/method.md`, and
//! the extensions of this project.
//!
//! | file | contents | source |
//! |---|---|---|
//! | [`loss`] | forget and retain loss | paper, section 3.1 |
//! | [`gradient`] | their gradients, computed once and averaged over batches | paper, section 3.1 |
//! | [`ranking`] | importance, alignment, Pareto front | paper, section 3.2, equations 4 to 6 |
//! | [`step`] | the search for a step size as a state machine | paper, section 3.3 |
//! | [`trial`] | what trials are evaluated on, and what they result in | paper, section 3.3 |
//! | `evaluator.rs` | evaluation of trial edits of one layer | paper, section 3.3 |
//! | [`screen`] | the nearest-class screen: a few class texts that prove most steps that forget | this project |
//! | [`search`] | the step search of one concept on a front layer | paper, section 3.3 |
//! | [`choice`] | the choice among the layers that forgot | paper, section 3.3 |
//! | [`moments`] | second moments: how sensitive retained data is to changes of a layer | this project, `docs/composition.md` |
//! | [`symmetric`] | sums of symmetric matrices, of which the upper triangle is computed and stored | this project |
//! | [`protect`] | preconditioners that keep protected inputs unchanged | this project, `docs/composition.md` |
//! | [`factors`] | low-rank factors of gradients | this project |
//! | [`margin`] | the gradients of margins as factors, and the metric that prices changes | this project, `docs/composition.md` |
//! | [`direction_search`] | the step search of one concept along a preconditioned direction | this project, `docs/composition.md` |
//!
//! [`step`] works on plain numbers, all others on tensors.

pub mod choice;
pub mod direction_search;
mod evaluator;
pub mod factors;
pub mod gradient;
pub mod loss;
pub mod margin;
pub mod moments;
pub mod protect;
pub mod ranking;
pub mod screen;
pub mod search;
pub mod step;
pub mod symmetric;
pub mod trial;
