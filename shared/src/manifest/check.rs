//! Checks the values of a manifest, section by section. The files that it names are not opened.

use super::composition::{CompositionMethod, CompositionSection};
use super::id::{MAX_NAME, is_id};
use super::sections::{Manifest, Names, Required};
use super::targets;
use crate::vocabulary::Towers;

/// A wrong value.
pub(super) struct Wrong {
    /// The field, as it is written in a manifest.
    pub(super) field: &'static str,
    /// What is wrong with it: the rest of a sentence that begins with the field.
    pub(super) problem: String,
}

fn wrong(field: &'static str, problem: String) -> Result<(), Wrong> {
    Err(Wrong { field, problem })
}

/// Checks every section, in the order of the manifest; the first wrong value is the error.
pub(super) fn all(manifest: &Manifest) -> Result<(), Wrong> {
    inputs(manifest)?;
    method(manifest)?;
    what_applies(&manifest.composition)?;
    composition(&manifest.composition)?;
    policy(manifest)?;
    evaluation(manifest)?;
    release(manifest)?;
    execution(manifest)
}

/// Checks name, model, data and concepts.
fn inputs(manifest: &Manifest) -> Result<(), Wrong> {
    if manifest.version != 1 {
        return wrong("version", format!("is {}; this program reads version 1", manifest.version));
    }
    if !is_id(&manifest.name) {
        return wrong(
            "name",
            format!(
                "is `{}`; use letters, digits, `.`, `_`, `-`, at most {MAX_NAME}",
                manifest.name
            ),
        );
    }
    if manifest.model.uri.is_empty() {
        return wrong("model.uri", "is empty; give the model's folder".into());
    }
    if manifest.data.retain.is_empty() {
        return wrong("data.retain", "names no shard; give image-text pairs that must stay".into());
    }
    if manifest.data.template.matches("{}").count()
        + manifest.data.template.matches("{name}").count()
        != 1
    {
        return wrong(
            "data.template",
            format!("is `{}`; it must hold {{}} or {{name}} once", manifest.data.template),
        );
    }
    if manifest.concepts.table.is_some() != manifest.concepts.list.is_empty() {
        return wrong(
            "concepts",
            "must have a table, or a list with at least one concept, not both".into(),
        );
    }
    // TOML has numbers that JSON has no form for: a submitted manifest would lose them.
    let rows = manifest.concepts.list.iter().flat_map(|row| [row.strength, row.tolerance]);
    let groups = manifest.concepts.groups.values().copied().map(Some);
    if let Some(number) = rows.chain(groups).flatten().find(|number| !number.is_finite()) {
        return wrong("concepts", format!("hold the number {number}, expected a finite one"));
    }
    Ok(())
}

fn method(manifest: &Manifest) -> Result<(), Wrong> {
    let method = &manifest.method;
    if !(2..=65_536).contains(&method.batch_size) {
        return wrong(
            "method.batch_size",
            format!("is {}, expected 2 to 65536", method.batch_size),
        );
    }
    if !(1..=1000).contains(&method.search_evaluations) {
        return wrong(
            "method.search_evaluations",
            format!("is {}, expected 1 to 1000", method.search_evaluations),
        );
    }
    if !(0.0..1.0).contains(&method.search_tolerance) {
        return wrong(
            "method.search_tolerance",
            format!("is {}, expected at least 0 and below 1", method.search_tolerance),
        );
    }
    if let Some(problem) = manifest.stop_problem(method.stop) {
        return wrong("method.stop", problem);
    }
    Ok(())
}

/// Checks that no setting is given that the method does not have.
fn what_applies(composition: &CompositionSection) -> Result<(), Wrong> {
    if composition.method() == CompositionMethod::Margins && composition.layers != 1 {
        return wrong(
            "composition.layers",
            "has no effect on the method `margins`; composition.spread selects its layers, or set composition.method = \"preconditioned\""
                .into(),
        );
    }
    if composition.method() != CompositionMethod::Margins {
        let given = [
            ("composition.spread", composition.spread.is_some()),
            ("composition.margin", composition.margin.is_some()),
            ("composition.vision_cost", composition.vision_cost.is_some()),
        ];
        if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
            return wrong(
                field,
                format!(
                    "has no effect on the method `{}`; it is a setting of `margins`",
                    composition.method().name()
                ),
            );
        }
    }
    least_squares(composition)?;
    if !composition.method().corrects() {
        let given = [
            ("composition.rank", composition.rank.is_some()),
            ("composition.change", composition.change.is_some()),
        ];
        if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
            return wrong(
                field,
                format!(
                    "has no effect on the method `{}`; it is a setting of `preconditioned`, `null-space` and `margins`",
                    composition.method().name()
                ),
            );
        }
    }
    Ok(())
}

/// Checks what the method `least-squares` alone has, and what it has not.
fn least_squares(composition: &CompositionSection) -> Result<(), Wrong> {
    let method = composition.method();
    if method != CompositionMethod::LeastSquares {
        let given = [
            ("composition.retain_weight", composition.retain_weight.is_some()),
            ("composition.tokens", composition.tokens.is_some()),
        ];
        return match given.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => wrong(
                field,
                format!(
                    "has no effect on the method `{}`; it is a setting of `least-squares`",
                    method.name()
                ),
            ),
            None => Ok(()),
        };
    }
    if composition.towers != Towers::Text {
        return wrong(
            "composition.towers",
            "must be \"text\" with the method `least-squares`, which maps the states of texts"
                .into(),
        );
    }
    for (field, given) in [
        ("composition.change", composition.change.is_some()),
        ("composition.layers", composition.layers != 1),
    ] {
        if given {
            return wrong(field, "has no effect on the method `least-squares`".into());
        }
    }
    match composition.retain_weight {
        Some(weight) if !(1e-3..=1e6).contains(&weight) => wrong(
            "composition.retain_weight",
            format!(
                "is {weight}, expected 0.001 to 1000000, the weight of retained texts in concepts"
            ),
        ),
        _ => Ok(()),
    }
}

/// Checks that every number is in range.
fn composition(composition: &CompositionSection) -> Result<(), Wrong> {
    if !(1..=64).contains(&composition.layers) {
        return wrong("composition.layers", format!("is {}, expected 1 to 64", composition.layers));
    }
    if let Some(cost) = composition.vision_cost {
        if composition.towers != Towers::Both {
            return wrong(
                "composition.vision_cost",
                "has an effect with composition.towers = \"both\" only".into(),
            );
        }
        if !(1e-3..=1e6).contains(&cost) {
            return wrong(
                "composition.vision_cost",
                format!("is {cost}, expected 0.001 to 1000000"),
            );
        }
    }
    if composition.margin.is_some_and(|margin| !(0.0..=1.0).contains(&margin)) {
        return wrong(
            "composition.margin",
            format!("is {}, expected 0 to 1", composition.margin.unwrap_or_default()),
        );
    }
    if composition.change.is_some_and(|change| !(1e-3..=1e6).contains(&change)) {
        return wrong(
            "composition.change",
            format!(
                "is {}, expected 0.001 to 1000000, the largest change of a layer relative to its weights",
                composition.change.unwrap_or_default()
            ),
        );
    }
    for (field, value) in [
        ("composition.images", composition.images),
        ("composition.rank", composition.rank.unwrap_or(1)),
    ] {
        if !(1..=1024).contains(&value) {
            return wrong(field, format!("is {value}, expected 1 to 1024"));
        }
    }
    if !(composition.ridge >= 1e-6 && composition.ridge <= 1e3) {
        return wrong(
            "composition.ridge",
            format!("is {}, expected 0.000001 to 1000", composition.ridge),
        );
    }
    if !(composition.output_ridge >= 1e-4 && composition.output_ridge <= 1e6) {
        return wrong(
            "composition.output_ridge",
            format!("is {}, expected 0.0001 to 1000000", composition.output_ridge),
        );
    }
    if !(composition.null_energy > 0.0 && composition.null_energy < 1.0) {
        return wrong(
            "composition.null_energy",
            format!("is {}, expected above 0 and below 1", composition.null_energy),
        );
    }
    if !(composition.density > 0.0 && composition.density <= 1.0) {
        return wrong(
            "composition.density",
            format!("is {}, expected above 0 and at most 1", composition.density),
        );
    }
    if !(0.0..1.0).contains(&composition.drop) {
        return wrong(
            "composition.drop",
            format!("is {}, expected at least 0 and below 1", composition.drop),
        );
    }
    if !(0.0..=1e3).contains(&composition.unlabelled_weight) {
        return wrong(
            "composition.unlabelled_weight",
            format!("is {}, expected 0 to 1000", composition.unlabelled_weight),
        );
    }
    if !(0.0..1.0).contains(&composition.tolerance) {
        return wrong(
            "composition.tolerance",
            format!("is {}, expected at least 0 and below 1", composition.tolerance),
        );
    }
    if composition.rounds > 100 {
        return wrong(
            "composition.rounds",
            format!("is {}, expected 0 to 100", composition.rounds),
        );
    }
    Ok(())
}

fn policy(manifest: &Manifest) -> Result<(), Wrong> {
    match &manifest.policy.required {
        Required::Share(share) if !(*share > 0.0 && *share <= 1.0) => {
            return wrong(
                "policy.required",
                format!("is {share}; a share is above 0 and at most 1"),
            );
        }
        _ => {}
    }
    if let Some((field, problem)) = manifest.gates.problem() {
        return wrong(field, problem);
    }
    if manifest.gates.signed_by.is_some() {
        return wrong(
            "gates.signed_by",
            "belongs in the file given by --gates: the operator decides whose signature counts"
                .into(),
        );
    }
    Ok(())
}

fn evaluation(manifest: &Manifest) -> Result<(), Wrong> {
    let mut probes = manifest.evaluation.probes.clone();
    probes.sort_unstable();
    match probes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            wrong("evaluation.probes", format!("names `{}` more than once", pair[0].name()))
        }
        None => Ok(()),
    }
}

fn release(manifest: &Manifest) -> Result<(), Wrong> {
    let release = &manifest.release;
    if (release.names == Names::Hashed) != release.salt.is_some() {
        return wrong(
            "release.salt",
            "must name a file if and only if names = \"hashed\"; create it with `openssl rand -hex 32 > FILE`".into(),
        );
    }
    for (field, text) in
        [("release.license", &release.license), ("release.base_model", &release.base_model)]
    {
        let fits = |text: &String| text.split('/').count() <= 2 && text.split('/').all(is_id);
        if let Some(text) = text.as_ref().filter(|text| !fits(text)) {
            return wrong(
                field,
                format!(
                    "is `{}`; the Hub allows letters, digits, `.`, `_`, `-`",
                    text.escape_default()
                ),
            );
        }
    }
    if let Some(problem) = targets::problem(&manifest.release.target) {
        return wrong("release.target", problem);
    }
    Ok(())
}

fn execution(manifest: &Manifest) -> Result<(), Wrong> {
    if manifest.execution.workers > 1024 {
        return wrong(
            "execution.workers",
            format!("is {}, expected 0 to 1024", manifest.execution.workers),
        );
    }
    let device = &manifest.execution.device;
    let known = ["auto", "cpu", "cuda"].contains(&device.as_str())
        || device.strip_prefix("cuda:").is_some_and(|number| number.parse::<u8>().is_ok());
    if !known {
        return wrong(
            "execution.device",
            format!("is `{device}`, expected auto, cpu, cuda or cuda:N"),
        );
    }
    Ok(())
}
