use super::*;

fn put(at: u64, text: &str) -> Change {
    Change::Put { at, bytes: Arc::new(text.as_bytes().to_vec()) }
}

fn shown(text: &str) -> Shown {
    Shown { bytes: text.as_bytes().to_vec(), unreadable: Vec::new() }
}

fn model() -> FileModel {
    FileModel::new(Some(b"0123456789".to_vec()))
}

#[test]
fn the_object_is_one_of_the_closed_states_in_order() {
    let mut file = model();
    file.apply(put(2, "aa"));
    assert_eq!(file.close(), Some(1));
    assert_eq!(file.close(), None, "nothing is new");
    file.apply(put(4, "bb"));
    assert_eq!(file.close(), Some(2));
    let sums = [sum_of(b"0123456789"), sum_of(b"01aa456789"), sum_of(b"01aabb6789")];
    for (n, sum) in sums.iter().enumerate() {
        assert_eq!(file.find(sum, 0), Some(n));
    }
    assert_eq!(file.find(&sums[1], 2), None, "it does not go back");
    assert_eq!(file.find(&sum_of(b"0123bb6789"), 0), None, "a mixture");
    assert_eq!(file.find(&None, 0), None, "it is never absent");
    file.closed(1, true, 1);
    assert_eq!(file.floor, 1);
    assert!(file.clone().settle(&sums[0]).is_err());
    // The second close may have been cut off.
    let mut cut_off = file.clone();
    cut_off.settle(&sums[1]).unwrap();
    assert_eq!(cut_off.stage, Stage::Kept);
    file.arrived(2);
    assert!(file.clone().settle(&sums[1]).is_err(), "it arrived");
    file.settle(&sums[2]).unwrap();
    assert_eq!(file.stage, Stage::Clean);
}

#[test]
fn what_was_cut_off_is_not_published_before_somebody_goes_on() {
    let mut file = model();
    file.apply(put(2, "aa"));
    file.after_kill(Some(&shown("01aa456789")), &[]).unwrap();
    assert_eq!(file.stage, Stage::Kept);
    assert_eq!(file.close(), None);
    assert!(file.clone().settle(&sum_of(b"01aa456789")).is_err());
    file.settle(&sum_of(b"0123456789")).unwrap();
    file.apply(put(9, "z"));
    assert_eq!(file.close(), Some(1));
}

#[test]
fn after_a_kill_every_byte_that_returned_is_there_and_one_in_flight_is_old_or_new() {
    let mut file = model();
    file.apply(put(8, "xyz"));
    assert_eq!(file.clone().after_kill(Some(&shown("01234567xy")), &[]).unwrap_err().bytes_lost, 1);
    assert_eq!(file.clone().after_kill(Some(&shown("01234567xyq")), &[]).unwrap_err().bytes_lost, 1);
    assert!(file.clone().after_kill(None, &[]).is_err());
    let flying = [put(10, "ABCD")];
    for text in ["01234567xyz", "01234567xyA", "01234567xyABCD", "01234567xyAB", "01234567xyA\0CD"] {
        let mut file = file.clone();
        file.after_kill(Some(&shown(text)), &flying).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!(file.live, text.as_bytes());
        assert_eq!(file.stage, Stage::Kept);
    }
    assert!(file.clone().after_kill(Some(&shown("0123z567xyz")), &flying).is_err());
    let emptied = [Change::Size(0), put(0, "new")];
    for text in ["01234567xyz", "", "new", "n"] {
        file.clone().after_kill(Some(&shown(text)), &emptied).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    }
}

#[test]
fn after_a_power_loss_what_was_synced_is_there_and_the_rest_old_new_or_an_error() {
    let mut file = model();
    file.apply(put(2, "aa"));
    file.apply(put(12, "cc"));
    file.fsynced(file.change_count());
    file.apply(put(3, "bb"));
    file.apply(put(14, "dd"));
    let good = ["01aa456789\0\0cc", "01abb56789\0\0ccdd", "01a3456789\0\0cc", "01aab56789\0\0ccd"];
    for text in good {
        file.after_power(Some(&shown(text)), &[]).unwrap_or_else(|e| panic!("{text:?}: {e:?}"));
    }
    for text in ["012a456789\0\0cc", "01aa456789", "01ax456789\0\0cc", "01aa456789\0\0ccxx", ""] {
        assert!(file.after_power(Some(&shown(text)), &[]).is_err(), "{text:?}");
    }
    assert!(file.after_power(None, &[]).is_err());
    let mut hole = shown("01a\x00\x0056789\0\0cc");
    assert!(file.after_power(Some(&hole), &[]).is_err(), "zeros that nobody wrote");
    hole.unreadable.push(3..5);
    file.after_power(Some(&hole), &[]).unwrap();
    hole.unreadable.push(2..3);
    assert!(file.after_power(Some(&hole), &[]).is_err(), "a synced byte");
}

#[test]
fn without_a_sync_a_power_loss_may_take_everything_but_what_never_was_is_noticed() {
    let mut file = FileModel::new(None);
    file.apply(Change::Size(0));
    file.apply(put(0, "abc"));
    for text in ["", "abc", "a", "\0bc"] {
        file.after_power(Some(&shown(text)), &[]).unwrap_or_else(|e| panic!("{text:?}: {e:?}"));
    }
    file.after_power(None, &[]).unwrap();
    assert!(file.after_power(Some(&shown("abd")), &[]).is_err());
}

#[test]
fn holes_and_cuts_are_applied_as_on_a_disk() {
    let mut file = model();
    file.apply(Change::Zero { at: 8, len: 10 });
    assert_eq!(file.live, b"01234567\0\0");
    file.apply(Change::Size(3));
    file.apply(Change::Size(5));
    assert_eq!(file.live, b"012\0\0");
    file.apply(put(6, "x"));
    assert_eq!(file.live, b"012\0\0\0x");
}

#[test]
fn after_a_power_loss_only_what_was_promised_is_certain() {
    let mut file = model();
    file.apply(put(2, "aa"));
    let first = file.close().unwrap();
    file.closed(first, false, file.change_count());
    file.apply(put(4, "bb"));
    let second = file.close().unwrap();
    file.arrived(second);
    file.power_lost();
    assert!(file.clone().settle(&sum_of(b"0123456789")).is_err(), "the first close returned");
    file.clone().settle(&sum_of(b"01aa456789")).unwrap();
    file.clone().settle(&sum_of(b"01aabb6789")).unwrap();
    assert!(file.settle(&sum_of(b"0123bb6789")).is_err());
}

#[test]
fn a_file_that_was_emptied_when_its_writer_was_cut_off_may_be_published_empty() {
    let mut file = model();
    file.apply(Change::Size(0));
    file.after_kill(Some(&shown("")), &[]).unwrap();
    file.clone().settle(&sum_of(b"")).unwrap();
    file.clone().settle(&sum_of(b"0123456789")).unwrap();
    file.apply(put(0, "x"));
    assert_eq!(file.close(), Some(2));
    assert_eq!(file.find(&sum_of(b""), 2), None);
}
