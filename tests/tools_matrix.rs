//! Programs that know nothing of object stores, on a real mount before the embedded server: each must do exactly what it
//! does in a local folder, and what it left must be there for a new process, also for one that knows only what is in BOS.
//!
//! A program that is missing is a failure: `scripts/test` installs them. `scripts/tool-matrix` prints the table.

mod support;

#[path = "tools_matrix/archive.rs"]
mod archive;
#[path = "tools_matrix/backup.rs"]
mod backup;
#[path = "tools_matrix/bench.rs"]
mod bench;
#[path = "tools_matrix/build.rs"]
mod build;
#[path = "tools_matrix/copy.rs"]
mod copy;
#[path = "tools_matrix/database.rs"]
mod database;
#[path = "tools_matrix/download.rs"]
mod download;
#[path = "tools_matrix/edit.rs"]
mod edit;
#[path = "tools_matrix/inputs.rs"]
mod inputs;
#[path = "tools_matrix/repository.rs"]
mod repository;
#[path = "tools_matrix/rsync.rs"]
mod rsync;
#[path = "tools_matrix/walk.rs"]
mod walk;
