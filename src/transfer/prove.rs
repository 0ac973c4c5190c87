//! The proof that an object is what was sent, and which proof it is. Sizes are always compared; a difference is a value.

use super::Held;
use super::plan::PlanError;
use super::retry::Patience;
use super::stale::{Before, Looks, Standing, head_until};
use crate::bos::BosClient;
use crate::bos::client::{ObjectMeta, StoredOutcome};
use crate::object::{Checksum, Crcs, ETag, ObjectKey, PartNumber, composed_etag};
use crate::posix_meta::MARK;

/// Checksums of the whole object, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// CRC32C.
    pub crc32c: Option<u32>,
    /// CRC64-ECMA as BOS means it.
    pub crc64: Option<u64>,
    /// CRC32 (IEEE).
    pub crc32: Option<u32>,
}

impl From<Crcs> for Sums {
    fn from(crcs: Crcs) -> Self {
        Self { crc32c: Some(crcs.crc32c), crc64: Some(crcs.crc64), crc32: Some(crcs.crc32) }
    }
}

impl From<&ObjectMeta> for Sums {
    fn from(meta: &ObjectMeta) -> Self {
        Self { crc32c: meta.crc32c, crc64: meta.crc64, crc32: meta.crc32 }
    }
}

/// A checksum of the whole by which two were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// CRC32C.
    Crc32c,
    /// CRC64-ECMA.
    Crc64,
    /// CRC32.
    Crc32,
    /// The ETag is the MD5.
    Md5,
}

impl By {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            By::Crc32c => "CRC32C",
            By::Crc64 => "CRC64",
            By::Crc32 => "CRC32",
            By::Md5 => "MD5",
        }
    }
}

/// Two values of the same checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Which.
    pub by: By,
    /// What BOS gives.
    pub given: u64,
    /// What it should be.
    pub expected: u64,
}

impl Pair {
    /// Whether they are the same.
    pub fn fits(&self) -> bool {
        self.given == self.expected
    }
}

impl Sums {
    /// The strongest checksum that is known on both sides; `None`: there is none.
    pub fn strongest(given: &Self, expected: &Self) -> Option<Pair> {
        let pairs = [
            (By::Crc32c, given.crc32c.map(u64::from), expected.crc32c.map(u64::from)),
            (By::Crc64, given.crc64, expected.crc64),
            (By::Crc32, given.crc32.map(u64::from), expected.crc32.map(u64::from)),
        ];
        pairs.into_iter().find_map(|(by, given, expected)| Some(Pair { by, given: given?, expected: expected? }))
    }
}

/// What BOS says of an object or a body.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Its size; `None`: the answer of a PUT or of Complete does not tell.
    pub size: Option<u64>,
    /// Its ETag.
    pub etag: &'a ETag,
    /// Its checksums.
    pub sums: Sums,
}

impl<'a> From<&'a StoredOutcome> for Given<'a> {
    fn from(stored: &'a StoredOutcome) -> Self {
        let sums = Sums { crc32c: stored.crc32c, crc64: stored.crc64, crc32: stored.crc32 };
        Self { size: None, etag: &stored.etag, sums }
    }
}

impl<'a> From<&'a ObjectMeta> for Given<'a> {
    fn from(meta: &'a ObjectMeta) -> Self {
        Self { size: Some(meta.size), etag: &meta.etag, sums: meta.into() }
    }
}

/// What the object should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One body.
    Whole(Checksum),
    /// Made of parts, each of which was checked when it was sent or copied.
    Composed {
        /// Size in bytes.
        size: u64,
        /// Checksums of the whole, where they are known.
        sums: Sums,
        /// The ETag by the rule that BOS is known to follow; `None`: nobody knows any more of which parts.
        etag: Option<ETag>,
    },
}

/// CRCs of the whole of which these are the pieces, in order.
pub fn crcs_of<'a>(pieces: impl IntoIterator<Item = &'a Checksum>) -> Crcs {
    pieces.into_iter().fold(Crcs::default(), |whole, piece| whole.then(piece.crcs, piece.len))
}

/// The ETag, by the rule that BOS is known to follow, of an object made of parts that were sent with these sums.
pub fn etag_of(bodies: &[Checksum]) -> ETag {
    let etags: Vec<ETag> = bodies.iter().map(|sum| ETag::new(&sum.md5.to_hex())).collect();
    composed_etag(etags.iter())
}

impl Expected {
    /// An object of `size` bytes made of all of `parts`.
    ///
    /// # Errors
    /// The parts are not as long as the object: Complete would cut it, or BOS copied another range than it was asked for.
    pub fn composed(size: u64, parts: &[(PartNumber, Held)]) -> Result<Self, PlanError> {
        let reaches = parts.iter().fold(0, |sum: u64, (_, held)| sum.saturating_add(held.len));
        if reaches != size {
            return Err(PlanError::Short { reaches, size });
        }
        let sums: Option<Vec<&Checksum>> = parts.iter().map(|(_, held)| held.sum.as_ref()).collect();
        let sums = sums.map(|sums| crcs_of(sums).into()).unwrap_or_default();
        let etag = Some(composed_etag(parts.iter().map(|(_, held)| &held.etag)));
        Ok(Self::Composed { size, sums, etag })
    }

    /// An object of `size` bytes whose parts nobody knows any more, or that BOS copied: all that can be compared is the size.
    pub fn unlisted(size: u64) -> Self {
        Self::Composed { size, sums: Sums::default(), etag: None }
    }

    /// The same, where checksums of the whole are known from elsewhere: it is the copy of an object that has them.
    #[must_use]
    pub fn knowing(self, known: Sums) -> Self {
        match self {
            Self::Composed { size, etag, .. } => Self::Composed { size, sums: known, etag },
            whole @ Self::Whole(_) => whole,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Whole(sum) => sum.len,
            Self::Composed { size, .. } => *size,
        }
    }
}

/// What the ETag of a composed object says of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByRule {
    /// It is the one composed of their ETags.
    Fits,
    /// It has the form of one composed by the rule that BOS is known to follow, and is another one.
    Differs,
    /// It follows no rule that is known, and says nothing.
    NoRule,
}

impl ByRule {
    fn of(given: &ETag, expected: Option<&ETag>) -> Self {
        let Some(expected) = expected else { return Self::NoRule };
        let hex = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match given.as_str().strip_prefix('-') {
            _ if given == expected => Self::Fits,
            Some(rest) if hex(rest) => Self::Differs,
            _ => Self::NoRule,
        }
    }
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was sent: size, and a checksum of the whole.
    Proved(By),
    /// The size fits, BOS gives no checksum of the whole, and each part was checked when it was sent or copied. The ETag is a
    /// hint: that it follows no known rule disproves nothing.
    Composed {
        /// What the ETag says.
        etag: ByRule,
    },
    /// The size fits, and the checksum that BOS gives of the whole does not, although each part was checked. Where the ETag is
    /// the one composed of theirs, the object has these very parts, and BOS means something else by the checksum.
    ChecksumOdd {
        /// What the ETag says.
        etag: ByRule,
        /// For people.
        what: String,
    },
    /// It is not what was sent; for people.
    Mismatch(String),
}

/// Whether BOS stored the body that was sent: by the ETag where it is the MD5; where it plainly is not (encrypted buckets),
/// by the strongest CRC of the answer.
///
/// # Errors
/// It did not, or cannot be shown to have; for people.
pub fn judge_body(sum: &Checksum, given: &Given<'_>) -> Result<By, String> {
    if given.etag.is_md5(&sum.md5) {
        return Ok(By::Md5);
    }
    match Sums::strongest(&given.sums, &sum.crcs.into()) {
        Some(pair) if pair.fits() => Ok(pair.by),
        Some(_) => Err(format!("BOS stored other bytes: ETag {} and CRC differ from MD5 {:?}", given.etag, sum.md5)),
        None => Err(format!("BOS answered ETag {} for bytes with MD5 {:?} and gave no CRC", given.etag, sum.md5)),
    }
}

/// Compares what BOS says with what the object should be. `None`: an answer without a size does not tell, HEAD has to be asked.
pub fn judge(expected: &Expected, given: &Given<'_>) -> Option<Verdict> {
    if let Some(size) = given.size.filter(|size| *size != expected.size()) {
        return Some(Verdict::Mismatch(format!("{size} bytes where {} were written", expected.size())));
    }
    let (sums, etag) = match expected {
        Expected::Whole(sum) => {
            return Some(judge_body(sum, given).map_or_else(Verdict::Mismatch, Verdict::Proved));
        }
        Expected::Composed { sums, etag, .. } => (sums, etag),
    };
    let pair = Sums::strongest(&given.sums, sums);
    if let Some(pair) = pair.filter(Pair::fits) {
        // The CRC of other bytes, or of fewer, is another one.
        return Some(Verdict::Proved(pair.by));
    }
    given.size?;
    let etag = ByRule::of(given.etag, etag.as_ref());
    Some(match pair {
        Some(Pair { by, given, expected }) => {
            let what = format!("{} of the object is {given}, of what was written {expected}", by.name());
            Verdict::ChecksumOdd { etag, what }
        }
        None => Verdict::Composed { etag },
    })
}

/// What the object was made as.
#[derive(Clone, Copy, Debug)]
pub struct MadeAs<'a> {
    /// The ETag that BOS gave.
    pub etag: &'a ETag,
    /// The mark that it carries.
    pub mark: &'a str,
    /// What is known of the time before.
    pub before: &'a Before,
}

impl MadeAs<'_> {
    fn is(&self, head: &ObjectMeta) -> bool {
        head.etag == *self.etag || head.headers.metadata.get(MARK).is_some_and(|mark| mark == self.mark)
    }

    /// Whether what HEAD shows counts without another look.
    fn is_certain(&self, head: Option<&ObjectMeta>) -> bool {
        head.is_some_and(|head| self.is(head)) || self.before.standing(head) == Standing::Later
    }
}

/// What HEAD shows behind a publication that BOS confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proving {
    /// The object that was made was compared.
    Judged(Verdict, ObjectMeta),
    /// What was there before, or nothing: HEAD lags behind, or somebody has put that back.
    NotYet {
        /// What is there.
        head: Option<ObjectMeta>,
        /// For people.
        what: String,
    },
    /// An object of somebody else: written since, unless it is not known what was there before.
    Other(ObjectMeta),
}

/// Judges what HEAD found behind a publication.
fn judge_head(head: Option<ObjectMeta>, made: &MadeAs<'_>, expected: &Expected) -> Proving {
    let Some(meta) = head else {
        let what = format!("the object with ETag {} is not to be seen yet", made.etag);
        return Proving::NotYet { head, what };
    };
    if made.is(&meta) {
        let verdict = judge(expected, &Given::from(&meta));
        let verdict = verdict.unwrap_or_else(|| Verdict::Mismatch("HEAD told no size".to_owned()));
        if matches!(verdict, Verdict::Composed { etag: ByRule::Differs | ByRule::NoRule }) {
            log::info!("BOS gives no checksum of the whole, and its ETag {} follows no known rule", meta.etag);
        }
        return Proving::Judged(verdict, meta);
    }
    match made.before.standing(Some(&meta)) {
        Standing::Earlier => {
            let seen = format!("an object with ETag {} from before", meta.etag);
            let what = format!("{seen} is still to be seen in place of the one with ETag {}", made.etag);
            Proving::NotYet { head: Some(meta), what }
        }
        Standing::Later | Standing::Unclear => Proving::Other(meta),
    }
}

/// HEAD and the verdict. An object that is not to be seen, or another one that may be an older one, is looked for again
/// before that is believed.
///
/// # Errors
/// Those of the patience; BOS's refusal as the patience makes it one.
pub async fn prove<P: Patience>(
    client: &BosClient,
    key: &ObjectKey,
    made: &MadeAs<'_>,
    expected: &Expected,
    looks: Looks,
    patience: &mut P,
) -> Result<Proving, P::Error> {
    let head = head_until(client, key, looks, |head| made.is_certain(head), patience).await?;
    Ok(judge_head(head, made, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Condition;
    use crate::transfer::stale::tests::meta;

    const WHOLE: Crcs = Crcs { crc32c: 1, crc32: 2, crc64: 3 };

    fn given(etag: &ETag, size: Option<u64>, crc32c: Option<u32>, crc64: Option<u64>, crc32: Option<u32>) -> Given<'_> {
        Given { size, etag, sums: Sums { crc32c, crc64, crc32 } }
    }

    fn composed(sums: Sums) -> Expected {
        Expected::Composed { size: 10, sums, etag: Some(ETag::new("-x")) }
    }

    #[test]
    fn an_md5_etag_proves_a_body_and_another_one_needs_a_crc() {
        let sum = Checksum::of(b"01234567");
        let judge = |etag: &str, crc32c, crc32| judge_body(&sum, &given(&ETag::new(etag), None, crc32c, None, crc32));
        assert_eq!(judge("2e9ec317e197819358fbc43afca7d837", None, None), Ok(By::Md5));
        assert_eq!(judge("2E9EC317E197819358FBC43AFCA7D837", None, None), Ok(By::Md5));
        assert!(judge("ffffc317e197819358fbc43afca7d837", None, None).is_err());
        assert_eq!(judge("opaque", Some(2887918368), None), Ok(By::Crc32c));
        assert_eq!(judge("opaque", None, Some(763378421)), Ok(By::Crc32));
        assert!(judge("opaque", Some(1), Some(763378421)).is_err(), "the stronger one counts");
    }

    #[test]
    fn the_size_is_compared_whatever_else_fits() {
        let etag = ETag::new("-x");
        for size in [0, 9, 11] {
            let short = |expected: &Expected| judge(expected, &given(&etag, Some(size), Some(1), None, None));
            assert!(matches!(short(&composed(WHOLE.into())), Some(Verdict::Mismatch(_))), "CRC and ETag fit");
            assert!(matches!(short(&composed(Sums::default())), Some(Verdict::Mismatch(_))), "ETag fits");
        }
        let sum = Checksum::of(b"01234567");
        let md5 = ETag::new(&sum.md5.to_hex());
        let whole = judge(&Expected::Whole(sum), &given(&md5, Some(7), None, None, None));
        assert!(matches!(whole, Some(Verdict::Mismatch(_))), "MD5 fits");
    }

    #[test]
    fn the_strongest_checksum_that_both_have_decides() {
        let etag = ETag::new("-y");
        let judge = |c32c, c64, c32| judge(&composed(WHOLE.into()), &given(&etag, Some(10), c32c, c64, c32)).unwrap();
        let odd = |verdict| matches!(verdict, Verdict::ChecksumOdd { etag: ByRule::NoRule, .. });
        assert_eq!(judge(Some(1), None, None), Verdict::Proved(By::Crc32c));
        assert!(odd(judge(Some(9), Some(3), Some(2))));
        assert_eq!(judge(None, Some(3), Some(9)), Verdict::Proved(By::Crc64));
        assert!(odd(judge(None, Some(9), None)));
        assert_eq!(judge(None, None, Some(2)), Verdict::Proved(By::Crc32));
        assert!(odd(judge(None, None, Some(9))));
        assert_eq!(judge(None, None, None), Verdict::Composed { etag: ByRule::NoRule });
        // Of a copy only some of the source's are known.
        let known = Sums { crc32: Some(2), ..Sums::default() };
        let copy = super::judge(&composed(known), &given(&etag, Some(10), Some(9), Some(9), Some(2)));
        assert_eq!(copy, Some(Verdict::Proved(By::Crc32)));
    }

    #[test]
    fn a_checksum_that_does_not_fit_while_the_composed_etag_does_is_told_apart() {
        let etag = ETag::new("-x");
        let verdict = judge(&composed(WHOLE.into()), &given(&etag, Some(10), Some(7), None, None));
        let what = "CRC32C of the object is 7, of what was written 1".to_owned();
        assert_eq!(verdict, Some(Verdict::ChecksumOdd { etag: ByRule::Fits, what }));
        let form = ETag::new(&format!("-{}", "0a".repeat(16)));
        let other = judge(&composed(WHOLE.into()), &given(&form, Some(10), Some(7), None, None));
        assert!(matches!(other, Some(Verdict::ChecksumOdd { etag: ByRule::Differs, .. })), "{other:?}");
        for opaque in ["0a".repeat(16), "-y".to_owned(), format!("{}-4", "0a".repeat(16))] {
            assert_eq!(ByRule::of(&ETag::new(&opaque), Some(&etag)), ByRule::NoRule, "{opaque}");
        }
    }

    #[test]
    fn an_answer_without_a_size_says_yes_or_nothing() {
        let etag = ETag::new("-x");
        let answer = |sums, crc32c| judge(&composed(sums), &given(&etag, None, crc32c, None, None));
        assert_eq!(answer(WHOLE.into(), Some(1)), Some(Verdict::Proved(By::Crc32c)));
        assert_eq!(answer(WHOLE.into(), Some(7)), None);
        assert_eq!(answer(WHOLE.into(), None), None);
        assert_eq!(answer(Sums::default(), Some(7)), None, "the ETag fits, but nobody knows the size");
    }

    #[test]
    fn parts_that_do_not_reach_the_size_are_no_object() {
        let sum = Checksum::of(b"01234567");
        let held = |sum: Option<Checksum>| Held { len: 8, etag: ETag::new("2e9ec317e197819358fbc43afca7d837"), sum };
        let two = |second| [(PartNumber::FIRST, held(Some(sum))), (PartNumber::new(4).unwrap(), held(second))];
        let short = Expected::composed(17, &two(Some(sum)));
        assert_eq!(short, Err(PlanError::Short { reaches: 16, size: 17 }));
        assert!(Expected::composed(15, &two(Some(sum))).is_err());
        let Ok(Expected::Composed { sums, etag, .. }) = Expected::composed(16, &two(Some(sum))) else { panic!() };
        assert_eq!(sums, Checksum::of(b"0123456701234567").crcs.into());
        assert!(etag.unwrap().as_str().starts_with('-'));
        let Ok(Expected::Composed { sums, .. }) = Expected::composed(16, &two(None)) else { panic!() };
        assert_eq!(sums, Sums::default(), "a copied range has no known CRC");
    }

    #[test]
    fn what_head_shows_behind_a_publication() {
        let head = |etag: &str, mark: Option<&str>| meta(etag, 1, 500, mark);
        let etag = ETag::new("new");
        let at = |before: Before, head: Option<ObjectMeta>| {
            let made = MadeAs { etag: &etag, mark: "j.1", before: &before };
            (made.is_certain(head.as_ref()), judge_head(head, &made, &Expected::unlisted(1)))
        };
        let seen = |head: Option<ObjectMeta>| {
            let (base, journal_id) = (Some(ETag::new("old")), Some("j".to_owned()));
            at(Before { journal_id, since: Some(100), base }, head)
        };
        let by_rule = Verdict::Composed { etag: ByRule::NoRule };
        assert!(matches!(seen(Some(head("new", None))), (true, Proving::Judged(verdict, _)) if verdict == by_rule));
        assert!(matches!(seen(Some(head("changed", Some("j.1")))), (true, Proving::Judged(..))));
        assert!(matches!(seen(None), (false, Proving::NotYet { head: None, .. })));
        assert!(matches!(seen(Some(head("old", Some("x.1")))), (false, Proving::NotYet { head: Some(_), .. })));
        assert!(
            matches!(seen(Some(head("older", Some("j.0")))), (false, Proving::NotYet { .. })),
            "a former one of ours"
        );
        assert!(matches!(seen(Some(head("theirs", None))), (true, Proving::Other(_))), "newer than all that was seen");
        let any = || Before::of(&Condition::Any);
        assert!(matches!(at(any(), Some(head("theirs", None))), (false, Proving::Other(_))), "older, for all we know");
        let matches = Before::of(&Condition::Matches(ETag::new("old")));
        assert!(matches!(at(matches, Some(head("old", None))), (false, Proving::NotYet { .. })));
    }

    #[test]
    fn of_an_object_whose_parts_nobody_knows_only_the_size_is_compared() {
        let etag = ETag::new("-x");
        let judge = |size| judge(&Expected::unlisted(10), &given(&etag, size, Some(1), None, None));
        assert_eq!(judge(Some(10)), Some(Verdict::Composed { etag: ByRule::NoRule }));
        assert!(matches!(judge(Some(9)), Some(Verdict::Mismatch(_))));
        assert_eq!(judge(None), None);
    }

    #[test]
    fn sums_of_the_pieces_give_those_of_the_whole() {
        let (one, two) = (Checksum::of(b"01234567"), Checksum::of(b"89"));
        assert_eq!(crcs_of([&one, &two]), Checksum::of(b"0123456789").crcs);
        let held = |sum: Checksum| Held { len: sum.len, etag: ETag::new(&sum.md5.to_hex()), sum: Some(sum) };
        let parts = [(PartNumber::FIRST, held(one)), (PartNumber::new(2).unwrap(), held(two))];
        let Ok(Expected::Composed { etag, .. }) = Expected::composed(10, &parts) else { panic!() };
        assert_eq!(etag, Some(etag_of(&[one, two])));
    }
}
