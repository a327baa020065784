//! Why no edit was found for a concept. Pure.

use lethe_shared::measurement::Trial;
use lethe_shared::vocabulary::Stop;

/// Returns the reason, from the trials of the search. `tried` says what was tried, such as `no step
/// on its layer forgot`; `stop` is the measure by which the concept counts as forgotten.
pub(super) fn reason(tried: &str, search: &[Trial], stop: Stop, evaluations: u32) -> String {
    let (measure, share): (&str, fn(&Trial) -> f64) = match stop {
        Stop::Fa1 => ("FA@1", |trial| trial.fa1),
        Stop::Fa5 | Stop::Rank(_) => ("FA@5", |trial| trial.fa5),
    };
    let lowest = |forgotten: bool| {
        let shares = search.iter().filter(|trial| trial.forgotten == forgotten).map(share);
        shares.min_by(f64::total_cmp)
    };
    if lowest(true).is_some() {
        // These steps were measured with the concept's own text changed alone.
        let confirmed = lowest(false).map_or_else(String::new, |share| {
            format!(" (lowest {measure} {:.0} %)", 100.0 * share)
        });
        return format!(
            "steps forgot while only the concept's own text changed, but none when all class texts did{confirmed}: \
             the text of another class changes with it; look in the class list for the same name in another spelling, or a longer name with the same words"
        );
    }
    match lowest(false) {
        None => format!(
            "{tried}: the search had no step to try, because the concept's gradient is zero"
        ),
        Some(share) => format!(
            "{tried} within {evaluations} evaluations (lowest {measure} {:.0} %); raise method.search_evaluations",
            100.0 * share
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(fa1: f64, fa5: f64, forgotten: bool) -> Trial {
        Trial { layer: "l".into(), step: 1.0, fa1, fa5, forgotten, utility: None }
    }

    #[test]
    fn the_reason_does_not_contradict_itself() {
        let tried = "no step on its layer forgot";
        let of = |search: &[Trial], stop| reason(tried, search, stop, 10);
        assert_eq!(
            of(&[trial(0.0, 0.5, false), trial(0.0, 0.25, false)], Stop::Fa5),
            "no step on its layer forgot within 10 evaluations (lowest FA@5 25 %); raise method.search_evaluations"
        );
        // The measure is the concept's own.
        assert!(of(&[trial(0.5, 1.0, false)], Stop::Fa1).contains("(lowest FA@1 50 %)"));
        let unconfirmed = of(&[trial(0.0, 0.0, true), trial(0.5, 1.0, false)], Stop::Fa5);
        assert!(!unconfirmed.contains("raise") && !unconfirmed.contains(" 0 %"), "{unconfirmed}");
        assert!(unconfirmed.contains("(lowest FA@5 100 %)"), "{unconfirmed}");
        let only = of(&[trial(0.0, 0.0, true)], Stop::Fa5);
        assert!(!only.contains('%') && only.contains("another class"), "{only}");
        assert!(of(&[], Stop::Fa5).contains("gradient is zero"));
    }
}
