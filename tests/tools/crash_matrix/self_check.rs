//! Whether the checks can fail: rounds in which something is made wrong on purpose must fail, each for its own reason.

use crate::faults::FAULTS;
use crate::phases::PHASES;
use crate::round::{self, Ask, Sabotage};
use crate::stage::Sources;

/// Runs the rounds.
///
/// # Errors
/// A round that was made wrong passes, or fails for another reason; or the untouched one fails.
pub fn run(sources: &Sources, seed: u64, wide: bool) -> Result<(), String> {
    let fault = FAULTS.iter().find(|fault| fault.name == "503").ok_or("no fault 503")?;
    let phase = PHASES.iter().find(|phase| phase.name == "part-n").ok_or("no phase part-n")?;
    let shared = PHASES.iter().find(|phase| phase.name == "share-complete").ok_or("no phase share-complete")?;
    let ask = |sabotage| {
        let phase = if sabotage == Some(Sabotage::States) { shared } else { phase };
        Ask { fault, phase, seed, is_brief: true, sabotage }
    };
    let cases = [
        (Some(Sabotage::Expected), "LOST 1 bytes"),
        (Some(Sabotage::Object), "LOST"),
        (Some(Sabotage::NeverFires), "0 hits"),
        (Some(Sabotage::Allowance), "SENT TWICE"),
        (Some(Sabotage::Watch), "HALF"),
        (Some(Sabotage::Limit), "HANG"),
        (None, ""),
        (Some(Sabotage::States), "MIXED"),
    ];
    let cases = if wide { &cases[..] } else { &cases[..cases.len() - 1] };
    for &(sabotage, expected) in cases {
        let shown = round::run(ask(sabotage), sources);
        match (&shown.problem, sabotage) {
            (None, None) => {}
            (Some(problem), Some(_)) if problem.starts_with(expected) || problem.contains(&format!("({expected})")) => {
            }
            (problem, _) => {
                return Err(format!(
                    "self-check: {sabotage:?} should end with {expected:?}, and ends with {problem:?}"
                ));
            }
        }
    }
    println!("self-check: {} rounds made wrong on purpose were noticed", cases.len() - 1);
    Ok(())
}
