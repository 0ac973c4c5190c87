//! Cells that make no sense, each with its reason: the one table of what the matrix leaves out.

use crate::faults::{Fault, Kind, Lasts};
use crate::phases::{Phase, Story};
use crate::support::Call;

/// A group of cells that is left out.
struct LeftOut {
    fits: fn(&Fault, &Phase) -> bool,
    reason: &'static str,
}

fn is_named(fault: &Fault, names: &[&str]) -> bool {
    names.contains(&fault.name)
}

const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        fits: |fault, phase| phase.story.is_shared() && fault.stalls(),
        reason: "columns part-last, complete and rename-copy wait for the same timeouts",
    },
    LeftOut {
        fits: |fault, phase| phase.story.is_shared() && is_named(fault, &["invalid-part", "upload-gone"]),
        reason: "part 2 is no part of its own there; columns complete and before-complete have it",
    },
    LeftOut {
        fits: |fault, phase| phase.name == "before-complete" && fault.kind == Kind::Request,
        reason: "no request is under way between the last part and Complete",
    },
    LeftOut {
        fits: |fault, phase| fault.kind == Kind::UploadGone && phase.name != "before-complete",
        reason: "row no-upload does it to the other phases, with their own request",
    },
    LeftOut {
        fits: |fault, phase| phase.name == "complete" && fault.acted,
        reason: "column complete-acted has the faults behind the act",
    },
    LeftOut {
        fits: |fault, phase| phase.name == "complete-acted" && fault.kind == Kind::Request && !fault.acted,
        reason: "column complete has the faults before the act",
    },
    LeftOut {
        fits: |fault, phase| is_named(fault, &["reset-in-body", "reset-after-body"]) && phase.body_bytes() == 0,
        reason: "the request has no body",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["slow-line"])
                && !matches!(phase.call, Call::UploadPart | Call::PutObject | Call::GetObject)
        },
        reason: "too few bytes move to be slowed down",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["stall-in-answer", "body-cut", "200-cut-json"]) && !phase.answer_has_body()
        },
        reason: "the answer has no body",
    },
    LeftOut {
        fits: |fault, phase| is_named(fault, &["200-cut-json"]) && phase.call == Call::GetObject,
        reason: "an object's bytes are no JSON; row body-cut cuts them",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["200-error", "200-error-acted", "200-html", "200-html-acted", "5xx-cut-json"])
                && matches!(phase.call, Call::HeadObject | Call::HeadBucket)
        },
        reason: "an answer to HEAD has no body",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["403-rate"]) && matches!(phase.call, Call::HeadObject | Call::HeadBucket)
        },
        reason: "only the text tells it from a refusal, and an answer to HEAD has none",
    },
    LeftOut {
        fits: |fault, phase| is_named(fault, &["no-bucket"]) && phase.call == Call::HeadObject,
        reason: "a 404 to HEAD of an object is what says that there is none",
    },
    LeftOut {
        fits: |fault, phase| is_named(fault, &["200-error", "200-error-acted"]) && !phase.acts(),
        reason: "BOS puts errors into a 200 only where it works before it answers; a wrong body is row 200-html",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["200-blanks-error", "200-blanks-ok"])
                && !matches!(phase.call, Call::Complete | Call::CopyObject)
        },
        reason: "only Complete and CopyObject keep a connection alive by white space",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["500-acted", "503-acted", "200-html-acted", "stall-acted"]) && !phase.acts()
        },
        reason: "a question changes nothing: the same as without the act",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["bad-digest"]) && !matches!(phase.call, Call::UploadPart | Call::PutObject)
        },
        reason: "the request carries no Content-MD5",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["wrong-etag"])
                && !matches!(phase.call, Call::UploadPart | Call::PutObject | Call::Complete | Call::CopyObject)
        },
        reason: "the answer carries no ETag, or the ETag is all that is asked for",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["wrong-crc", "no-crc"])
                && !(matches!(phase.call, Call::UploadPart | Call::PutObject | Call::Complete) || phase.name == "proof")
        },
        reason: "no CRC is looked at here",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["no-upload", "no-upload-lie"])
                && !matches!(phase.call, Call::UploadPart | Call::Complete | Call::ListParts)
        },
        reason: "the request names no upload",
    },
    LeftOut {
        fits: |fault, phase| is_named(fault, &["invalid-part", "invalid-part-lie"]) && phase.call != Call::Complete,
        reason: "only Complete answers so",
    },
    LeftOut {
        fits: |fault, phase| {
            is_named(fault, &["quota"])
                && !matches!(
                    phase.call,
                    Call::Initiate | Call::UploadPart | Call::Complete | Call::PutObject | Call::CopyObject
                )
        },
        reason: "the request stores nothing",
    },
    LeftOut {
        fits: |fault, phase| fault.lasts == Lasts::Refusal && phase.name == "complete-acted",
        reason: "what was refused was not done",
    },
];

/// Why this cell makes no sense; `None`: it does.
pub fn left_out(fault: &Fault, phase: &Phase) -> Option<&'static str> {
    LEFT_OUT.iter().find(|left_out| (left_out.fits)(fault, phase)).map(|left_out| left_out.reason)
}

/// Seconds that bosfs waits for an answer, or for a byte to move, before it counts the request as lost: the timeouts of
/// `RetryPolicy::interactive` and `::data`, which `bos` gives to these calls.
pub fn patience_s(fault: &Fault, phase: &Phase) -> u64 {
    if !fault.stalls() {
        return 0;
    }
    match phase.call {
        // The body stops moving; an answer is waited for longer.
        Call::UploadPart | Call::PutObject if fault.name == "stall" => 60,
        Call::UploadPart | Call::PutObject => 120,
        Call::Complete | Call::CopyObject if fault.name == "stall-in-answer" => 60,
        Call::Complete | Call::CopyObject => 600,
        _ => 10,
    }
}

/// Whether a fault that passes may be waited out by nobody: the call fails with an I/O error then.
pub fn may_fail_while_lasting(phase: &Phase) -> bool {
    phase.story.is_interactive() || matches!(phase.story, Story::Resume)
}
