//! A file that is changed, published and taken up again at random, against a model of its bytes.

use bosfs::object::ObjectKey;
use bosfs::upload::WriterEnd;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Bench, PART, bytes, new_file, options, over, truncate, write};

// Random writes, cuts, publications and restarts against a plain file; the object must be what the file was at the
// last publication, and the file what it was all along.
#[tokio::test(flavor = "multi_thread")]
async fn random_changes_publications_and_restarts_keep_every_byte() {
    let seed: u64 = std::env::var("BOSFS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let rounds: u32 = std::env::var("BOSFS_TEST_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(120);
    println!("seed {seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let bench = Bench::with(|options| options.faithful_variants.opaque_composed_etags = seed % 2 == 1);
    let mut uploads = bench.start(options());
    let mut model: Vec<u8> = Vec::new();
    let mut published: Option<Vec<u8>> = None;
    let mut file = uploads.open(new_file("f")).unwrap();
    file.add_writer().unwrap();
    let mut counts = [0u32; 6];
    for round in 0..rounds {
        let size = model.len() as u64;
        let action = rng.random_range(0..100);
        if std::env::var_os("BOSFS_TEST_TRACE").is_some() {
            println!("round {round}, action {action}, size {size}: {:?}", file.status(false));
        }
        match action {
            0..50 => {
                let offset = rng.random_range(0..=size.min(4 * PART) + if action < 5 { PART } else { 0 });
                let len = if action < 40 { rng.random_range(1..20_000) } else { rng.random_range(1..2 * PART) };
                let content = bytes(len, u64::from(round) + seed * 1000);
                write(&file, offset, &content).await;
                model.resize(model.len().max((offset + len) as usize), 0);
                model[offset as usize..(offset + len) as usize].copy_from_slice(&content);
                counts[0] += 1;
            }
            50..60 => {
                let new = rng.random_range(0..=size + 10_000);
                truncate(&file, new).await;
                model.resize(new as usize, 0);
                counts[1] += 1;
            }
            60..62 => {
                truncate(&file, 0).await;
                model.clear();
                counts[1] += 1;
            }
            62..75 => {
                file.publish_and_wait().await.unwrap_or_else(|e| panic!("round {round}: {e}"));
                assert_eq!(bench.get("f").await.as_ref(), Some(&model), "round {round}, published object");
                published = Some(model.clone());
                counts[2] += 1;
            }
            75..85 => {
                // Close, let the background publish, go on with what is there.
                file.remove_writer(WriterEnd::Closed);
                let left = uploads.drain().await;
                assert!(left.is_empty(), "round {round}: {left:?}");
                assert_eq!(bench.get("f").await.as_ref(), Some(&model), "round {round}, released object");
                published = Some(model.clone());
                let base = bench.base("f").await;
                file = uploads.open(over("f", base)).unwrap();
                file.add_writer().unwrap();
                counts[3] += 1;
            }
            85..90 => {
                file.fsync().await.unwrap();
                counts[4] += 1;
            }
            _ => {
                uploads.stop().await;
                drop((file, uploads));
                uploads = bench.start(options());
                let left = uploads.drain().await;
                assert!(left.iter().all(|f| f.state == "interrupted"), "round {round}: {left:?}");
                let opening = match uploads.find(&ObjectKey::parse("f").unwrap()) {
                    Some(_) => new_file("f"),
                    None if bench.get("f").await.is_some() => over("f", bench.base("f").await),
                    None => new_file("f"),
                };
                file = uploads.open(opening).unwrap();
                file.add_writer().unwrap();
                // Until somebody goes on with it, an interrupted file is not published.
                write(&file, 0, &[round as u8]).await;
                model.resize(model.len().max(1), 0);
                model[0] = round as u8;
                counts[5] += 1;
            }
        }
        assert_eq!(file.size(), model.len() as u64, "round {round}, action {action}");
        let at = rng.random_range(0..=model.len() as u64);
        let read = file.read(at, 100_000).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let mut got = read.bytes;
        for gap in read.gaps {
            let base = read.base.as_ref().unwrap();
            let from = bench.client.get_range(&file.key(), gap, Some(&base.etag)).await.unwrap();
            got[(gap.start - at) as usize..(gap.end - at) as usize].copy_from_slice(&from);
        }
        let end = (at as usize + 100_000).min(model.len());
        assert!(got == model[at as usize..end], "round {round}, action {action}: read at {at}");
        if action >= 85 {
            let object = bench.get("f").await;
            assert!(
                object.is_none() || object == published || object.as_ref() == Some(&model),
                "round {round}: half a file"
            );
        }
    }
    println!("writes, cuts, publications, releases, syncs, restarts: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0));
    uploads.stop().await;
}
