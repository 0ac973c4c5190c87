//! Panics of a library that are an answer: a damaged file makes some of them panic instead of telling so.

use std::cell::Cell;
use std::panic::{self, UnwindSafe};
use std::sync::Once;

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

static HOOKED: Once = Once::new();

/// Runs `work`; `None`: it panicked. Nothing is printed of that: whoever asks tells what it means.
pub fn panics_as_none<T>(work: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    HOOKED.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                others(info);
            }
        }));
    });
    EXPECTED.set(true);
    let done = panic::catch_unwind(work).ok();
    EXPECTED.set(false);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_what_comes_after_it_is_as_before() {
        assert_eq!(panics_as_none(|| 7), Some(7));
        assert_eq!(panics_as_none(|| -> u8 { panic!("damaged") }), None);
        assert!(!EXPECTED.get());
        assert_eq!(panics_as_none(|| 8), Some(8));
    }
}
