//! Named places that a test can make panic. Without the feature `failpoints` they are not there.

/// A place called `$name`, armed by `FAILPOINTS=name=panic` in a build with the feature.
#[cfg(feature = "failpoints")]
macro_rules! fail_point {
    ($name:literal) => {
        fail::fail_point!($name)
    };
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
macro_rules! fail_point {
    ($name:literal) => {};
}

pub(crate) use fail_point;
