//! What a journal says of its file while nobody works on it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::fs::temporary::target_of;
use crate::object::{ByteRange, ObjectKey, PartNumber};
use crate::upload::state::{FileState, Stage};
use crate::upload::{FileStatus, OwnUpload};
use crate::write::layers::spool_path;
use crate::write::part_plan::{PART_BYTES_DEFAULT, PartPlan};

/// The uploads that a journal opened, and those that its unanswered Initiates may have left.
fn uploads_of(state: &FileState) -> Vec<OwnUpload> {
    let mut uploads: Vec<_> = state.upload.iter().map(|upload| OwnUpload::known(&upload.key, &upload.id)).collect();
    if state.initiating > 0 {
        // The line does not say under which key: the file's own, or the name that a temporary was to get.
        let key = &state.key;
        let folder = key.as_str().strip_suffix(key.name()).unwrap_or_default();
        let target = target_of(key.name()).and_then(|name| ObjectKey::parse(&format!("{folder}{name}")).ok());
        let keys = [Some(key.clone()), target, state.upload.as_ref().map(|upload| upload.key.clone())];
        let keys: BTreeSet<ObjectKey> = keys.into_iter().flatten().collect();
        uploads.extend(keys.iter().map(OwnUpload::possible));
    }
    uploads
}

/// The entry of `status` for the journal in `dir`: what its lines add up to.
pub fn status_of(state: &FileState, dir: &Path) -> FileStatus {
    let spools: Vec<_> =
        state.layers.iter().filter_map(|layer| std::fs::metadata(spool_path(dir, layer.id)).ok()).collect();
    let top = state.layers.last();
    let size = match state.stage.frozen() {
        Some(frozen) => frozen.size,
        None => top
            .and_then(|top| top.resizing)
            .or_else(|| spools.last().map(|meta| meta.len()))
            .or_else(|| top.and_then(|top| top.synced_size))
            .or_else(|| state.base.as_ref().map(|base| base.size))
            .unwrap_or(0),
    };
    let plan = state
        .upload
        .as_ref()
        .map_or_else(|| PartPlan::reaching(size, PART_BYTES_DEFAULT), |upload| upload.plan.clone());
    let parts_total = plan.part_count(size);
    let (mut parts_in_bos, mut bytes_in_bos) = (0, 0);
    for number in (1..=parts_total).filter_map(PartNumber::new) {
        let range: ByteRange = plan.range_in(number, size);
        if state.is_sent(number, range.len()) {
            parts_in_bos += 1;
            bytes_in_bos += range.len();
        }
    }
    // Blocks that were really written: the spool is sparse.
    let allocated: u64 = spools.iter().map(|meta| std::os::unix::fs::MetadataExt::blocks(meta) * 512).sum();
    let last_error = state.conflict.clone().or_else(|| state.failed.as_ref().map(|(message, _)| message.clone()));
    FileStatus {
        key: state.key.to_string(),
        journal_id: state.journal_id.clone(),
        state: state_word(state).to_owned(),
        upload_id: state.upload.as_ref().map(|upload| upload.id.to_string()),
        uploads: uploads_of(state),
        size,
        bytes_in_bos,
        bytes_spooled: allocated.min(size.saturating_sub(bytes_in_bos)),
        parts_total,
        parts_in_bos,
        parts_kept: state.parts_kept(),
        parts_sent: state.parts_sent,
        bytes_per_s: 0,
        tries: 0,
        retry_in_s: None,
        last_error,
        proof: state.published.as_ref().map(|published| published.proof),
        parts: None,
        is_move: false,
        updated_at: state.opened_at,
    }
}

fn state_word(state: &FileState) -> &'static str {
    if state.conflict.is_some() {
        return "conflict";
    }
    if state.failed.is_some() {
        return "failed";
    }
    if state.unlinked {
        return "removing";
    }
    match &state.stage {
        Stage::Closed(_) => "uploading",
        Stage::Putting { .. } | Stage::Completing { .. } => "completing",
        Stage::Completed { .. } => "proving",
        Stage::Open => "interrupted",
    }
}
