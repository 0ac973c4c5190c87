//! Multipart work: how the bytes of one object get into BOS in pieces, whoever asks for it.
//!
//! ```text
//!   plan ──► initiate ──► send_part / copy_part ──► complete ──► prove
//!              │ line        │ held · differs           │ made · parts missing · upload gone · refused
//!              │ before      ▼                          ▼
//!              └───────── settle: ListParts, HEAD and mark tell what an unanswered request became
//! ```
//!
//! One engine for publications of a file (`upload`), multipart copies of a rename (`moves`) and `uploads resume`. It knows
//! neither a journal nor a file nor the command line: bytes come as a [`Body`](crate::bos::client::Body), what a caller must
//! write down comes in between as its own lines, and everything that BOS may answer is a value. No function holds anything but
//! its own future: dropped, the request is broken off, and what arrived of it is a body that was not answered
//! ([`Unanswered`]). How long somebody waits for BOS is the caller's [`Patience`]; how often he looks again at what HEAD shows,
//! which may be stale, are his [`Looks`].
//!
//! Which function does which step of a publication, and what is the publication's own:
//!
//! | step of the driver | here | with the driver |
//! |---|---|---|
//! | the list of pieces of a frozen state | [`plan::Plan::cut`]: [`Origin`] per part | what the spool, the base and the parts known hold |
//! | Initiate | [`initiate::initiate`]; its hook appends `Initiating` | `Initiated`, the misplaced upload of a renamed file |
//! | a part that BOS holds already | [`Held::equals`] | `Sent { kept: true }` |
//! | an UploadPart | [`Upload::send_part`] | before it slot, fill, seal, `Sending`, rate; then `Sent`; how often a body may come back wrong |
//! | an UploadPartCopy | [`Upload::copy_part`] | slot; `Copied` |
//! | contested numbers | [`Unanswered::of`], [`settle::parts`] and [`settle::compare`] before Complete | the flag in its state, from the lines of what was sent |
//! | PutObject | [`complete::put`] | slot, `Putting`, rate; then `Completed` |
//! | Complete | [`prove::Expected::composed`] (refuses a list that does not reach the size), [`complete::complete_once`] | `Completing` in between; then `Completed` |
//! | the proof | [`prove::judge`] of the answer, else [`prove::prove`] | `Proved`, `Disproved`, conflict; how often sizes or sums may be wrong, telling of odd ones |
//! | Reconcile | [`stale::look_until`], then [`settle::settle`] and [`settle::compare`] | `PartLost`, `Sent`, `UploadEnded`, conflict, overwriting; whether the base is still needed |
//! | end of an upload | [`Upload::end`] | `UploadEnded` |
//! | trouble of a step | [`retry::after`]: again, settle first, something amiss, or final | the pause, `Failed` |
//!
//! Of a [`settle::Compared`]: `lost` is `PartLost`; `answered` is `Sent { kept: true }`; `unknown` is held without a sum and
//! dirty; and no number is contested any more. The bytes of a part that was written again since are not wanted any more, so
//! its unanswered body is not [`settle::Known::unanswered`], but still makes the next one [`Unanswered::Other`].

pub mod complete;
pub mod initiate;
pub mod part;
pub mod plan;
pub mod prove;
pub mod retry;
pub mod settle;
pub mod stale;

pub use complete::{Attempt, Made};
pub use part::{PartAnswer, Unanswered};
pub use plan::{Origin, Piece, Plan, PlanError, Way};
pub use retry::{After, Patience};
pub use stale::{Asked, Before, Doubt, Looks, Standing};

use serde::{Deserialize, Serialize};

use crate::bos::BosClient;
use crate::bos::client::ListedPart;
use crate::object::{Checksum, ETag, ObjectKey, UploadId};

#[cfg(test)]
mod scripted_tests;

/// One multipart upload in BOS.
#[derive(Clone, Copy)]
pub struct Upload<'a> {
    /// The bucket.
    pub client: &'a BosClient,
    /// Where its object will be.
    pub key: &'a ObjectKey,
    /// BOS's ID.
    pub id: &'a UploadId,
}

/// What BOS holds under one part number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Size in bytes.
    pub len: u64,
    /// ETag.
    pub etag: ETag,
    /// What it is; `None` where only ListParts told of it, or where BOS copied it.
    pub sum: Option<Checksum>,
}

impl Held {
    /// Whether a body with `sum` is what BOS holds.
    pub fn equals(&self, sum: &Checksum) -> bool {
        self.len == sum.len && self.sum.map_or_else(|| self.etag.is_md5(&sum.md5), |held| held == *sum)
    }
}

impl From<&ListedPart> for Held {
    fn from(listed: &ListedPart) -> Self {
        Self { len: listed.size, etag: listed.etag.clone(), sum: None }
    }
}
