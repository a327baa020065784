//! Single Layer Unlearning Gradient (arXiv 2407.11867), exactly as `docs/method.md` spells it out.
//!
//! | file | what | paper |
//! |---|---|---|
//! | [`loss`] | forget and retain loss | section 3.1 |
//! | [`gradient`] | their gradients, taken once, averaged over batches | section 3.1 |
//! | [`ranking`] | importance, alignment, Pareto front | section 3.2, equations 4 to 6 |
//! | [`step`] | search of the step size | section 3.3 |
//! | [`search`] | the trials of one concept on every front layer | section 3.3 |
//! | [`choice`] | the best of the layers that forgot | section 3.3 |
//! | [`witness`] | the few class texts that prove most steps that forget | ours |
//! | [`moments`] | what a change of a layer does to what must stay | ours: `docs/composition.md` |
//! | [`protect`] | directions that move no given inputs | ours: `docs/composition.md` |
//! | [`factors`] | gradients as factors of low rank | ours |
//!
//! [`ranking`] and [`step`] are arithmetic on numbers; the others work on tensors.

pub mod choice;
pub mod factors;
pub mod gradient;
pub mod loss;
pub mod moments;
pub mod protect;
pub mod ranking;
pub mod search;
pub mod step;
pub mod witness;
