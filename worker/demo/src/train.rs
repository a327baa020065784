//! Trains the demo CLIP from scratch on the drawings that `emoji-data` made.
//!
//! The model code is Lethe's own ([`lethe_worker::model`]); here are only the data in memory, the
//! augmentation, the loss and the loop. What it writes is a Hugging Face CLIP folder that
//! `transformers` loads.

mod train_augment;
mod train_data;
mod train_loop;
mod train_model;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Train the demo model: `emoji-data` first, then this.
#[derive(Debug, Clone, Parser)]
#[command(version)]
struct Options {
    /// Shard of training drawings that `emoji-data` wrote (image, class name, captions).
    #[arg(long, default_value = "target/emoji/train.tar")]
    train: PathBuf,
    /// Folder of the demo: classes.txt, validation.tar, test.tar and the model's tokenizer are read
    /// from it.
    #[arg(long, default_value = "jobs/emoji")]
    demo: PathBuf,
    /// Folder the model is written into; must hold tokenizer.json and preprocessor_config.json.
    #[arg(long, default_value = "jobs/emoji/model")]
    out: PathBuf,
    /// Start from the model in this folder instead of from noise, for a second stage.
    #[arg(long)]
    from: Option<PathBuf>,
    /// Hidden units of each MLP of the text tower; more than the model of `--from` has are added.
    #[arg(long, default_value_t = 768)]
    text_hidden: i64,
    /// Hidden units of each MLP of the vision tower, likewise.
    #[arg(long, default_value_t = 768)]
    vision_hidden: i64,
    /// Write float16.
    #[arg(long)]
    half: bool,
    /// Passes over the training drawings; 0 writes the model of `--from`, widened, as it is.
    #[arg(long, default_value_t = 160)]
    epochs: usize,
    /// Pairs per step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Highest learning rate of the cosine schedule.
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Weight decay on matrices.
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Decay per step of the averaged weights, which are what is written.
    #[arg(long, default_value_t = 0.998)]
    average: f64,
    /// Strength of the augmentation; 0 turns it off.
    #[arg(long, default_value_t = 0.7)]
    augment: f64,
    /// Share of an image's patches left out of a step.
    #[arg(long, default_value_t = 0.5)]
    patch_drop: f64,
    /// Share of the schedule after which steps see whole images.
    #[arg(long, default_value_t = 0.8)]
    whole_from: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: i64,
    /// CPU threads.
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Epochs between two evaluations (each also writes the model).
    #[arg(long, default_value_t = 5)]
    evaluate_every: usize,
    /// Stop after this many epochs of the schedule, for a trial.
    #[arg(long)]
    stop_after: Option<usize>,
}

impl Options {
    fn form(&self) -> train_model::Form {
        train_model::Form {
            text_hidden: self.text_hidden,
            vision_hidden: self.vision_hidden,
            half: self.half,
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    lethe_worker::memory::keep_freed_memory();
    tch::set_num_threads(options.threads);
    train_loop::train(&options)
}
