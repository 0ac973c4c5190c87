use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::bos::error::BosErrorKind;

const UNIT: u64 = UNIT_BYTES;
const BLOCK: u64 = BLOCK_BYTES;

fn version(key: &str) -> Version {
    Version { key: ObjectKey::parse(key).unwrap(), etag: ETag::new("e") }
}

fn fill(filler: &mut Filler, byte: u8) {
    let mut bytes = Bytes::from(vec![byte; filler.range().len() as usize]);
    assert!(filler.push(&mut bytes));
    assert!(bytes.is_empty());
}

/// Claims and fills `range`.
fn put(cache: &Arc<BlockCache>, version: &Version, range: ByteRange, urgent: bool) -> u64 {
    let mut claim = cache.claim(version, range, urgent);
    claim.fillers.iter_mut().for_each(|filler| fill(filler, 7));
    claim.end - range.start
}

/// Whether all of `range` is there or on its way.
fn holds(cache: &Arc<BlockCache>, version: &Version, range: ByteRange) -> bool {
    let slots = cache.slots.lock();
    let mut at = range.start;
    while at < range.end {
        let Some(slot) = slots.at(version, at) else { return false };
        at = slot.run.range.end;
    }
    true
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn ready<F: Future>(future: F) -> F::Output {
    match poll(pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn ranges(runs: &[Arc<Run>]) -> Vec<(u64, u64)> {
    runs.iter().map(|run| (run.range.start, run.range.end)).collect()
}

#[test]
fn runs_keep_to_blocks_and_gaps_between_runs_are_claimed_alone() {
    let cache = BlockCache::new(0);
    let v = version("a");
    let claim = cache.claim(&v, ByteRange::new(3 * UNIT, 2 * BLOCK + 77), true);
    assert_eq!(ranges(&claim.runs), [(3 * UNIT, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 2 * BLOCK + 77)]);
    assert_eq!((claim.fillers.len(), claim.end), (3, 2 * BLOCK + 77));
    assert_eq!(cache.bytes(), 2 * BLOCK + 77 - 3 * UNIT);
    drop(claim);
    assert_eq!(cache.bytes(), 0, "what nobody fills is taken out");

    let one = cache.claim(&v, ByteRange::new(2 * UNIT, 3 * UNIT), true);
    let two = cache.claim(&v, ByteRange::new(5 * UNIT, 6 * UNIT), true);
    let all = cache.claim(&v, ByteRange::new(UNIT, BLOCK), true);
    let starts: Vec<_> = all.fillers.iter().map(|f| (f.range().start / UNIT, f.range().end / UNIT)).collect();
    assert_eq!(starts, [(1, 2), (3, 5), (6, 8)]);
    assert_eq!(all.runs.len(), 5);
    assert!(Arc::ptr_eq(&all.runs[1], &one.runs[0]) && Arc::ptr_eq(&all.runs[3], &two.runs[0]));
    assert!(!holds(&cache, &version("b"), ByteRange::new(UNIT, BLOCK)), "another object");
    let other = Version { etag: ETag::new("f"), ..v };
    assert!(!holds(&cache, &other, ByteRange::new(UNIT, BLOCK)), "another content");
}

#[test]
fn bytes_are_there_as_soon_as_they_arrive_and_shared_once_complete() {
    let cache = BlockCache::new(0);
    let v = version("a");
    let mut claim = cache.claim(&v, ByteRange::new(0, BLOCK), true);
    let run = cache.claim(&v, ByteRange::new(UNIT, 2 * UNIT), true).runs[0].clone();
    let filler = &mut claim.fillers[0];
    let mut early = pin!(run.bytes(ByteRange::new(10, 20)));
    let mut late = pin!(run.bytes(ByteRange::new(BLOCK - 5, BLOCK + 5)));
    assert!(poll(early.as_mut()).is_pending() && poll(late.as_mut()).is_pending());
    assert!(run.is_awaited());
    assert!(!filler.push(&mut Bytes::from_static(&[1; 19])));
    assert!(poll(early.as_mut()).is_pending());
    assert!(!filler.push(&mut Bytes::from_static(&[2; 1])));
    let Poll::Ready(Ok(bytes)) = poll(early.as_mut()) else { panic!("still waiting") };
    assert_eq!(bytes, [&[1; 9][..], &[2; 1]].concat());
    let mut rest = Bytes::from(vec![3; BLOCK as usize]);
    assert!(filler.push(&mut rest), "full");
    assert_eq!(rest.len(), 20, "what is beyond the run is left");
    let Poll::Ready(Ok(bytes)) = poll(late.as_mut()) else { panic!("still waiting") };
    assert_eq!(bytes[..], [3; 5]);
    let first = ready(run.bytes(ByteRange::new(0, BLOCK))).unwrap();
    let second = ready(run.bytes(ByteRange::new(0, 100))).unwrap();
    assert_eq!(first.as_ptr(), second.as_ptr(), "no copy");
}

#[tokio::test]
async fn whoever_waits_is_woken_by_the_bytes_it_needs() {
    let cache = BlockCache::new(0);
    let mut claim = cache.claim(&version("a"), ByteRange::new(0, UNIT), true);
    let run = claim.runs[0].clone();
    let waiters: Vec<_> = (1..=8)
        .map(|n| {
            let run = run.clone();
            tokio::spawn(async move { run.bytes(ByteRange::new(0, n * UNIT / 8)).await.unwrap().len() as u64 })
        })
        .collect();
    let cancelled = tokio::spawn({
        let run = run.clone();
        async move { run.bytes(ByteRange::new(0, UNIT)).await.is_ok() }
    });
    tokio::task::yield_now().await;
    cancelled.abort();
    for _ in 0..8 {
        claim.fillers[0].push(&mut Bytes::from(vec![0; UNIT as usize / 8]));
        tokio::task::yield_now().await;
    }
    for (n, waiter) in (1..).zip(waiters) {
        assert_eq!(waiter.await.unwrap(), n * UNIT / 8);
    }
    assert!(cancelled.await.unwrap_err().is_cancelled());
    assert!(!run.is_awaited());
}

#[test]
fn errors_reach_those_who_wait_and_are_not_kept() {
    let cache = BlockCache::new(0);
    let v = version("a");
    let mut claim = cache.claim(&v, ByteRange::new(0, 2 * BLOCK), true);
    let runs = claim.runs.clone();
    let mut waiting = pin!(runs[0].bytes(ByteRange::new(0, 1)));
    assert!(poll(waiting.as_mut()).is_pending());
    claim.fillers.remove(0).fail(&BosError::new(BosErrorKind::PreconditionFailed, "replaced"));
    let Poll::Ready(Err(RunLost::Failed(error))) = poll(waiting.as_mut()) else { panic!("no error") };
    assert_eq!(error.kind, BosErrorKind::PreconditionFailed);
    drop(claim);
    assert!(matches!(ready(runs[1].bytes(ByteRange::new(BLOCK, BLOCK + 1))), Err(RunLost::Abandoned)));
    assert_eq!(cache.bytes(), 0);
    assert_eq!(cache.claim(&v, ByteRange::new(0, BLOCK), true).fillers.len(), 1, "fetched anew");
}

#[test]
fn a_late_failure_does_not_take_out_its_successor() {
    let cache = BlockCache::new(0);
    let v = version("a");
    let full = ByteRange::new(0, 4 * BLOCK);
    let first = cache.claim(&v, ByteRange::new(0, UNIT), true);
    let run = first.runs[0].clone();
    cache.remove(&v, &run);
    put(&cache, &v, ByteRange::new(0, UNIT), true);
    drop(first);
    assert!(holds(&cache, &v, ByteRange::new(0, UNIT)));
    assert_eq!(put(&cache, &v, full, true), full.len());
    assert_eq!(cache.bytes(), full.len());
}

#[test]
fn memory_is_bounded_read_bytes_go_first_and_bytes_on_their_way_never() {
    let cache = BlockCache::new(0);
    assert_eq!(cache.bytes_max(), CACHE_BYTES_MIN);
    let v = version("a");
    let block = |n: u64| ByteRange::new(n * BLOCK, (n + 1) * BLOCK);
    assert_eq!(put(&cache, &v, block(0), true), BLOCK);
    assert_eq!(put(&cache, &v, block(1), false), BLOCK);
    assert_eq!(put(&cache, &v, block(2), true), BLOCK);
    assert_eq!(put(&cache, &v, block(3), true), BLOCK);
    put(&cache, &v, block(0), true);
    put(&cache, &v, block(4), true);
    assert!(!holds(&cache, &v, block(2)), "the oldest that was read");
    assert!(holds(&cache, &v, block(0)) && holds(&cache, &v, block(1)));

    put(&cache, &v, block(5), false);
    put(&cache, &v, block(6), false);
    put(&cache, &v, block(7), false);
    assert_eq!(cache.bytes(), CACHE_BYTES_MIN);
    assert_eq!(put(&cache, &v, block(8), false), 0, "fetched ahead does not drive out fetched ahead");
    assert_eq!(put(&cache, &v, block(9), true), BLOCK, "a reader does");
    assert!(!holds(&cache, &v, block(1)));
    cache.forsake(&v, ByteRange::new(0, 100 * BLOCK));
    assert_eq!(put(&cache, &v, ByteRange::new(10 * BLOCK, 14 * BLOCK), false), 4 * BLOCK);

    cache.forsake(&v, ByteRange::new(0, 100 * BLOCK));
    let on_their_way = cache.claim(&v, ByteRange::new(20 * BLOCK, 30 * BLOCK), true);
    assert_eq!((on_their_way.end, cache.bytes()), (24 * BLOCK, CACHE_BYTES_MIN));
    let mut room = pin!(cache.room());
    assert!(cache.claim(&version("b"), block(0), true).runs.is_empty());
    assert!(poll(room.as_mut()).is_pending());
    let mut fillers = on_their_way.fillers;
    fill(&mut fillers[2], 1);
    assert!(poll(room.as_mut()).is_ready());
    assert_eq!(put(&cache, &version("b"), block(0), true), BLOCK);
    drop(fillers);
    assert_eq!(cache.bytes(), BLOCK);
    assert!(holds(&cache, &version("b"), block(0)));
}

#[test]
fn of_what_a_long_read_has_passed_only_the_latest_is_kept_and_its_buffers_serve_again() {
    let cache = BlockCache::new(64 * BLOCK);
    let v = version("a");
    put(&cache, &v, ByteRange::new(0, 40 * BLOCK), true);
    let in_use =
        ready(cache.claim(&v, ByteRange::new(3 * BLOCK, 4 * BLOCK), true).runs[0].bytes(ByteRange::at(3 * BLOCK, 9)));
    cache.spend(&v, ByteRange::new(2 * BLOCK, 30 * BLOCK + 5));
    assert_eq!(cache.bytes(), (2 + 16 + 10) * BLOCK);
    assert!(holds(&cache, &v, ByteRange::new(0, 2 * BLOCK)), "what was not passed stays");
    assert!(
        !holds(&cache, &v, ByteRange::at(13 * BLOCK, 1)) && holds(&cache, &v, ByteRange::new(14 * BLOCK, 40 * BLOCK))
    );
    assert_eq!(cache.spare.lock().len(), 4, "one per 16 MiB");
    assert_eq!(in_use.unwrap(), [7; 9][..], "bytes in use are nobody's buffer");
    put(&cache, &v, ByteRange::new(50 * BLOCK, 52 * BLOCK), false);
    assert_eq!(cache.spare.lock().len(), 2);

    cache.claim(&v, ByteRange::new(20 * BLOCK, 21 * BLOCK), true);
    assert_eq!(cache.slots.lock().spent_bytes, 15 * BLOCK, "read again: not spent any more");
    put(&cache, &version("b"), ByteRange::new(0, 40 * BLOCK), false);
    let mut slots = cache.slots.lock();
    assert_eq!((slots.spent_bytes, slots.bytes), (9 * BLOCK, 64 * BLOCK), "spent ones make room first");
    let kept = |slots: &Slots, n: u64| slots.at(&v, n * BLOCK).is_some();
    assert!(!kept(&slots, 19) && kept(&slots, 20) && kept(&slots, 21), "the oldest of them, and none that was read");
    let starts: Vec<u64> = slots.versions[&v].keys().copied().collect();
    starts.into_iter().for_each(|start| drop(slots.take_out(&v, start)));
    assert_eq!((slots.bytes, slots.spent_bytes), (40 * BLOCK, 0));
}
