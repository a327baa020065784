//! The training loop and its evaluation.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, Result};
use lethe_worker::model::{Architecture, Clip, ClipConfig, Input, Role, Weights};
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};

use crate::Options;
use crate::train_augment::augment;
use crate::train_data::{Drawings, read};
use crate::train_model::{SIDE, config, initialise, read_weights, write};

/// CLIP's colour statistics, as in `preprocessor_config.json`.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Images embedded at once in evaluations.
const EVALUATION_BATCH: i64 = 256;

/// Names whose meaning a mirror changes.
const HANDED: &[&str] = &[
    "left",
    "right",
    "arrow",
    "clockwise",
    "button",
    "east",
    "west",
    "input",
    "play",
    "fast",
    "next",
    "last",
    "part",
];

struct Run {
    clip: Clip,
    classes: Vec<String>,
    tokenizer: tokenizers::Tokenizer,
}

impl Run {
    fn tokens(&self, texts: &[&str]) -> Result<lethe_worker::model::TokenBatch> {
        let encoded = self
            .tokenizer
            .encode_batch_fast(texts.to_vec(), true)
            .map_err(|e| anyhow::anyhow!("tokenise: {e}"))?;
        let limit = self.clip.config().context_length as usize;
        let ids: Vec<Vec<u32>> = encoded
            .iter()
            .map(|e| {
                let mut ids = e.get_ids().to_vec();
                if ids.len() > limit {
                    let end = ids[ids.len() - 1];
                    ids.truncate(limit);
                    ids[limit - 1] = end;
                }
                ids
            })
            .collect();
        Ok(self.clip.token_batch(&ids, Device::Cpu)?)
    }

    /// Embeds images from a random share of their patches (the class token always stays).
    fn embed_patches(&self, weights: &Weights, pixels: &Tensor, drop: f64) -> Result<Tensor> {
        if drop <= 0.0 {
            return Ok(self.clip.embed(weights, Input::Images(pixels))?);
        }
        let (images, patches) = (pixels.size()[0], self.clip.config().image_tokens() - 1);
        let kept = ((patches as f64 * (1.0 - drop)) as i64).max(1);
        let chosen = Tensor::f_rand([images, patches], (Kind::Float, Device::Cpu))?
            .f_topk(kept, 1, true, false)?
            .1;
        let class = Tensor::f_zeros([images, 1], (Kind::Int64, Device::Cpu))?;
        let tokens = Tensor::f_cat(&[class, chosen.f_sort(1, false)?.0 + 1], 1)?;
        let state = self.clip.start(weights, Input::Images(pixels))?.keep_tokens(&tokens)?;
        Ok(self.clip.finish(weights, lethe_shared::vocabulary::Tower::Vision, state)?)
    }

    /// Top-1 and top-5 accuracy over the whole class list.
    fn accuracy(&self, weights: &Weights, drawings: &Drawings) -> Result<(f64, f64)> {
        let _guard = tch::no_grad_guard();
        let names: Vec<&str> = self.classes.iter().map(String::as_str).collect();
        let mut texts = Vec::new();
        for chunk in names.chunks(EVALUATION_BATCH as usize) {
            texts.push(self.clip.embed(weights, Input::Texts(&self.tokens(chunk)?))?);
        }
        let texts = Tensor::f_cat(&texts, 0)?;
        let (mut top1, mut top5) = (0i64, 0i64);
        let n = drawings.classes.len() as i64;
        for start in (0..n).step_by(EVALUATION_BATCH as usize) {
            let count = EVALUATION_BATCH.min(n - start);
            let pixels = normalise(
                &drawings
                    .pixels
                    .f_narrow(0, start, count)?
                    .f_to_kind(Kind::Float)?
                    .f_div_scalar(255.0)?,
            )?;
            let images = self.clip.embed(weights, Input::Images(&pixels))?;
            let labels: Vec<i64> = drawings.classes[start as usize..(start + count) as usize]
                .iter()
                .map(|&c| c as i64)
                .collect();
            let labels = Tensor::f_from_slice(&labels)?.f_unsqueeze(1)?;
            let found = images
                .f_matmul(&texts.f_transpose(0, 1)?)?
                .f_topk(5, 1, true, true)?
                .1
                .f_eq_tensor(&labels)?;
            top1 += found.f_narrow(1, 0, 1)?.f_sum(Kind::Int64)?.int64_value(&[]);
            top5 += found.f_sum(Kind::Int64)?.int64_value(&[]);
        }
        Ok((100.0 * top1 as f64 / n as f64, 100.0 * top5 as f64 / n as f64))
    }
}

fn normalise(pixels: &Tensor) -> Result<Tensor> {
    let shape = [1, 3, 1, 1];
    Ok(pixels
        .f_sub(&Tensor::f_from_slice(&MEAN)?.f_view(shape)?)?
        .f_div(&Tensor::f_from_slice(&DEVIATION)?.f_view(shape)?)?)
}

/// Contrastive loss both ways; all pairs of one concept in the batch are positives, equally wanted.
fn loss(images: &Tensor, texts: &Tensor, scale: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let logits = images.f_matmul(&texts.f_transpose(0, 1)?)?.f_mul(scale)?;
    let same =
        classes.f_unsqueeze(0)?.f_eq_tensor(&classes.f_unsqueeze(1)?)?.f_to_kind(Kind::Float)?;
    let wanted = &same / same.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?;
    let direction = |logits: &Tensor| -> Result<Tensor> {
        let all = (&wanted * logits.f_log_softmax(1, Kind::Float)?).f_sum_dim_intlist(
            [1].as_slice(),
            false,
            Kind::Float,
        )?;
        Ok(all.f_mean(Kind::Float)? * -1.0)
    };
    Ok((direction(&logits)? + direction(&logits.f_transpose(0, 1)?)?) * 0.5)
}

/// Trains, evaluates and writes the model.
pub(crate) fn train(options: &Options) -> Result<()> {
    tch::manual_seed(options.seed);
    let classes: Vec<String> = std::fs::read_to_string(options.demo.join("classes.txt"))
        .context("read classes.txt (run emoji-data first)")?
        .lines()
        .map(str::to_owned)
        .collect();
    let index: HashMap<String, usize> =
        classes.iter().cloned().enumerate().map(|(i, c)| (c, i)).collect();
    let tokenizer = tokenizers::Tokenizer::from_file(options.out.join("tokenizer.json"))
        .map_err(|e| anyhow::anyhow!("{}: {e}", options.out.join("tokenizer.json").display()))?;
    let config_json = config(tokenizer.get_vocab_size(true), options.form());
    let clip_config = ClipConfig::from_json("config.json", &config_json)?;
    let run = Run { clip: Clip::new(clip_config), classes, tokenizer };
    let architecture: &Architecture = run.clip.architecture();

    let training = read(&options.train, &index, SIDE)?;
    let validation = read(&options.demo.join("validation.tar"), &index, SIDE)?;
    let test = read(&options.demo.join("test.tar"), &index, SIDE)?;
    let mirror: Vec<bool> = run
        .classes
        .iter()
        .map(|c| !c.split(|ch: char| !ch.is_alphanumeric()).any(|word| HANDED.contains(&word)))
        .collect();

    let first = match &options.from {
        None => initialise(architecture, run.clip.config())?,
        Some(folder) => read_weights(folder, architecture, run.clip.config())?,
    };
    let store = nn::VarStore::new(Device::Cpu);
    let mut variables = Vec::new();
    for (i, (spec, first)) in architecture.parameters().iter().zip(first).enumerate() {
        let decays = matches!(spec.role, Role::Linear) || spec.name.contains("patch_embedding");
        variables
            .push(store.root().set_group(usize::from(decays)).var_copy(&format!("p{i}"), &first));
    }
    let parameters: usize = variables.iter().map(Tensor::numel).sum();
    eprintln!(
        "{} training drawings of {} classes, {} validation, {} test, {:.2} million parameters",
        training.classes.len(),
        run.classes.len(),
        validation.classes.len(),
        test.classes.len(),
        parameters as f64 / 1e6
    );
    if options.epochs == 0 {
        let widened: Vec<Tensor> = variables.iter().map(Tensor::detach).collect();
        return write(&options.out, &config_json, architecture, &widened, options.half);
    }
    let mut optimiser = nn::AdamW { beta1: 0.9, beta2: 0.98, wd: 0.0, eps: 1e-8, amsgrad: false }
        .build(&store, options.learning_rate)?;
    optimiser.set_weight_decay_group(1, options.weight_decay);
    let mut average: Vec<Tensor> = variables.iter().map(|v| v.detach().copy()).collect();
    let view = |tensors: &[Tensor]| {
        Weights::from_tensors(tensors.iter().map(Tensor::shallow_clone).collect())
    };

    let steps_per_epoch = training.classes.len() / options.batch;
    let total = steps_per_epoch * options.epochs;
    let warm_up = (total / 30).max(20);
    let mut step = 0usize;
    let began = Instant::now();
    let scale_id = architecture.find("logit_scale").context("logit_scale")?;
    for epoch in 1..=options.epochs {
        let order = Vec::<i64>::try_from(Tensor::f_randperm(
            training.classes.len() as i64,
            (Kind::Int64, Device::Cpu),
        )?)?;
        let mut sum = 0.0;
        for chunk in order.chunks_exact(options.batch) {
            let progress = step as f64 / total as f64;
            let rate = if step < warm_up {
                (step + 1) as f64 / warm_up as f64
            } else {
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) + 0.005
            };
            optimiser.set_lr(options.learning_rate * rate);

            let pixels = training
                .pixels
                .f_index_select(0, &Tensor::f_from_slice(chunk)?)?
                .f_to_kind(Kind::Float)?
                .f_div_scalar(255.0)?;
            let rows: Vec<usize> = chunk.iter().map(|&i| i as usize).collect();
            let may_mirror: Vec<bool> = rows.iter().map(|&i| mirror[training.classes[i]]).collect();
            let pixels = normalise(&augment(&pixels, &may_mirror, options.augment)?)?;
            let draws = Vec::<f64>::try_from(Tensor::f_rand(
                [options.batch as i64],
                (Kind::Double, Device::Cpu),
            )?)?;
            // Half of the captions are the plain name, which is what the classes are called by
            // later.
            let captions: Vec<&str> = rows
                .iter()
                .zip(&draws)
                .map(|(&i, &draw)| {
                    let forms = &training.captions[i];
                    let pick = ((draw - 0.5).max(0.0) * 2.0 * forms.len() as f64) as usize;
                    forms[pick.min(forms.len() - 1)].as_str()
                })
                .collect();
            let labels: Vec<i64> = rows.iter().map(|&i| training.classes[i] as i64).collect();

            let weights = view(&variables);
            // Half of the patches teach almost as much in half the time; the last epochs see whole
            // drawings.
            let drop = if progress < options.whole_from { options.patch_drop } else { 0.0 };
            let images = run.embed_patches(&weights, &pixels, drop)?;
            let texts = run.clip.embed(&weights, Input::Texts(&run.tokens(&captions)?))?;
            let loss =
                loss(&images, &texts, &run.clip.scale(&weights)?, &Tensor::f_from_slice(&labels)?)?;
            optimiser.backward_step_clip_norm(&loss, 1.0);
            sum += loss.double_value(&[]);
            tch::no_grad(|| {
                let mut scale = weights.get(scale_id).shallow_clone();
                let _ = scale.clamp_(0.0, 100f64.ln());
                let keep = options.average.min((step + 1) as f64 / (step + 10) as f64);
                for (mean, now) in average.iter_mut().zip(&variables) {
                    *mean *= keep;
                    *mean += now * (1.0 - keep);
                }
            });
            step += 1;
        }
        let done = epoch == options.epochs || options.stop_after == Some(epoch);
        let mut line = format!(
            "epoch {epoch:3} loss {:.4} {:.0} s",
            sum / steps_per_epoch as f64,
            began.elapsed().as_secs_f64()
        );
        if done || epoch % options.evaluate_every == 0 {
            let weights = view(&average);
            let mut sets = vec![("validation", &validation), ("test", &test)];
            if done || epoch % (4 * options.evaluate_every) == 0 {
                sets.push(("training", &training));
            }
            for (name, drawings) in sets {
                let (top1, top5) = run.accuracy(&weights, drawings)?;
                line += &format!("  {name} {top1:.1}/{top5:.1}");
            }
            write(&options.out, &config_json, architecture, &average, options.half)?;
        }
        eprintln!("{line}");
        if done {
            break;
        }
    }
    Ok(())
}
