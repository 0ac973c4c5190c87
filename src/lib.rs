//! bosfs: a bucket of Baidu Object Storage (BOS) mounted as a folder.
//!
//! ```text
//!     kernel                                above all: cli -> session      leaves: object, posix_meta, config, observe
//!       v  /dev/fuse
//!     fuse        requests in, errno out
//!       v
//!      fs         who acts?
//!       |-----------------------+-----------------------+
//!       v                       v                       v
//!   namespace                 read                    write ---------> spool (disk)
//!   key <-> inode             window, cache             v  sealed parts
//!       |                       |                     upload --------> journal (disk)
//!       |                       |                       v
//!       |                       |                     transfer           multipart work: of uploads, moves, commands
//!       v                       v                       v
//!      bos        one method per BOS call; sign, retry, explain
//!       v
//!     wire        HTTPS to BOS, or loopback to `bosfs serve`
//! ```
//!
//! Calls go down only; news comes back as a return value, or on a channel the caller made.

/// Memory of names comes and goes by the hundred megabytes, allocated by one thread and freed by another. The allocator of
/// the C library keeps what was freed in the middle of its heaps, and mimalloc what the thread that allocated it does not
/// collect; jemalloc gives whole pages back to the system within about ten seconds, by a thread of its own (feature
/// `background_threads`), also when nothing else happens.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

mod fail_point;

pub mod cli;
pub mod session;

pub mod fuse;

pub mod fs;

pub mod namespace;
pub mod read;
pub mod write;

pub mod upload;

pub mod moves;

pub mod transfer;

pub mod journal;

pub mod bos;

pub mod serve;

pub mod config;
pub mod object;
pub mod observe;
pub mod posix_meta;
