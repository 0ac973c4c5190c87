//! Multipart work: how the bytes of one object get into BOS in pieces, whoever asks for it.
//!
//! ```text
//!   plan ──► initiate ──► send_part / copy_part ──► complete ──► prove
//!              │ line        │ held · differs           │ made · parts missing · upload gone · refused
//!              │ before      ▼                          ▼
//!              └───────── settle: ListParts, HEAD and mark tell what an unanswered request became
//! ```
//!
//! One engine for publications of a file, multipart copies of a rename (`moves`) and `uploads resume`. It knows neither a
//! journal nor a file nor the command line: bytes come as a [`Body`](crate::bos::client::Body), what a caller must write down
//! comes in between as its own lines, and everything that BOS may answer is a value. No function holds anything but its own
//! future: dropped, the request is broken off, and what arrived of it is a body that was not answered ([`Unanswered`]). How
//! long somebody waits for BOS is the caller's [`Patience`].
//!
//! Which step of a publication is which function (and what stays with the caller):
//!
//! | step of the driver | here | with the caller |
//! |---|---|---|
//! | the list of pieces of a frozen state | [`plan::Plan::cut`]: [`Origin`] per part | what the spool, the base and the parts known hold |
//! | Initiate | [`initiate::initiate`] with [`Once`]; its hook appends `Initiating` | `Initiated`, the misplaced upload of a renamed file |
//! | a part that BOS holds already | [`Held::equals`] | `Sent { kept: true }` |
//! | an UploadPart | slot, fill, seal, `Sending`, rate, then [`Upload::send_part`] | `Sent`; how often a body may come back wrong |
//! | an UploadPartCopy | slot, then [`Upload::copy_part`] | `Copied` |
//! | contested numbers | `Contested` of [`PartAnswer`]; [`settle::compare`] before Complete | the flag in its state |
//! | PutObject | slot, `Putting`, rate, then [`complete::put`] | `Completed` |
//! | Complete | [`prove::Expected::composed`] (refuses a list that does not reach the size), `Completing`, then [`complete::complete_once`] | `Completed`, `stored_between` of [`Made`] |
//! | the proof | [`prove::judge`] of the answer, else [`prove::prove_once`] | `Proved`, `Disproved` |
//! | Reconcile | [`settle::settle`], or its halves [`settle::look`] and [`settle::parts`]; then [`settle::compare`] | `PartLost`, `Sent`, `UploadEnded`, conflict |
//! | end of an upload | [`Upload::end`] | `UploadEnded` |
//! | trouble of a step | [`retry::after`]: again, settle first, or final | the pause, `Failed` |
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
pub use retry::{After, Once, Patience};
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
