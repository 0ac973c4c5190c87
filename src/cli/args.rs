//! The command line as plain values; nothing here acts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::exit::EXIT_CODES;
use crate::config::paths::BucketPath;
use crate::config::units::{parse_duration, parse_part_size, parse_rate, parse_size, parse_umask};

/// Mounts a bucket of Baidu Object Storage (BOS) as a folder. Interrupted uploads go on where they stood.
#[derive(Debug, Parser)]
#[command(name = "bosfs", version, after_help = EXIT_CODES, args_override_self = true, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a bucket; returns once the mount answers
    Mount(Box<MountArgs>),
    /// Unmount: wait until every closed file is in BOS, then detach
    Umount(UmountArgs),
    /// Show what every mount of this user has still to send
    Status(StatusArgs),
    /// List, finish or drop unfinished uploads
    #[command(subcommand)]
    Uploads(UploadsCommand),
    /// Prove that objects in BOS are what was written, without downloading them where BOS allows
    Verify(VerifyArgs),
    /// Serve the BOS API on a local folder: for trying out and for tests
    Serve(ServeArgs),
}

/// What every command needs that talks to BOS.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
pub struct BosArgs {
    /// Where BOS answers: scheme, host and port. IP addresses and `localhost` are spoken to with the bucket in the path and,
    /// without a scheme, by http. [default: $BOS_ENDPOINT, else that of --region, else https://bj.bcebos.com]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,

    /// Region code, in place of --endpoint: bj, bd, su, gz, cd, yq, hkg, fwh or fsh
    #[arg(long, value_name = "CODE", conflicts_with = "endpoint")]
    pub region: Option<String>,

    /// File with the access keys, as bosfs, bosfs2 or bcecmd write it; read again when it changes. [default:
    /// $BCE_ACCESS_KEY_ID and $BCE_SECRET_ACCESS_KEY (and $BCE_SESSION_TOKEN), else ~/.config/bosfs/credentials,
    /// /etc/bosfs/credentials, ~/.go-bcecli/credentials]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,

    /// Folder for journal and spool of this bucket and prefix; on a local disk, one process at a time. [default: below
    /// $XDG_STATE_HOME/bosfs or ~/.local/state/bosfs, for root /var/lib/bosfs]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `bosfs mount`.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(after_help = EXIT_CODES, args_override_self = true)]
pub struct MountArgs {
    /// Bucket, or a prefix in it
    #[arg(value_name = "BUCKET[/PREFIX]", value_parser = BucketPath::parse)]
    pub bucket: BucketPath,

    /// Folder to mount at: it must exist and be empty
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bos: BosArgs,

    /// Start the embedded BOS server in the same process, with its data in DIR, and create the bucket: needs no account
    /// [default DIR: ~/.local/share/bosfs-local, for root /var/lib/bosfs-local]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, conflicts_with_all = ["endpoint", "region"])]
    pub local: Option<Option<PathBuf>>,

    /// Mount options as mount(8) has them: any of the long options below as `name=value` or `name`, joined by commas; also
    /// ak, sk, sts_token and the names of the official bosfs (multipart_size, meta_expires, logfile, allow_other, tmpdir)
    #[arg(short = 'o', long = "options", value_name = "LIST", action = ArgAction::Append)]
    #[serde(skip)]
    pub options: Vec<String>,

    /// Stay in the foreground and log to stderr
    #[arg(long, short = 'f')]
    pub foreground: bool,

    /// Mount over a folder that is not empty; what is in it is hidden meanwhile
    #[arg(long)]
    pub nonempty: bool,

    /// Answer `close` when the file is safe on the local disk, and upload it behind. Without: `close` returns when the
    /// object is complete and proved in BOS
    #[arg(long)]
    pub write_back: bool,

    /// What `fsync` waits for: `journal`, the local disk; `bos`, also every byte accepted by BOS as a part
    #[arg(long, value_enum, default_value_t = FsyncArg::Journal, value_name = "WHERE")]
    pub fsync: FsyncArg,

    /// What becomes of a file whose writer was killed before it closed it: `keep` it unpublished until someone writes on or
    /// decides with `bosfs uploads`; `complete`, publish what is there; `discard` it
    #[arg(long, value_enum, default_value_t = InterruptedArg::Keep, value_name = "WHAT")]
    pub interrupted: InterruptedArg,

    /// When another writer changed the object meanwhile: `fail` keeps our bytes as a conflict, `overwrite` replaces theirs
    #[arg(long, value_enum, default_value_t = ConflictArg::Fail, value_name = "WHAT")]
    pub on_conflict: ConflictArg,

    /// Longest wait of one call (close, fsync, a write that is slowed down), for example 10m; the upload goes on behind.
    /// [default: no limit, interruptible by signals]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,

    /// First pause before a file that BOS refused (no permission, an unpaid bill) is tried again by itself; it doubles with each
    /// further failure up to half an hour
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1m")]
    pub retry_failed: Duration,

    /// Size of the first parts: a multiple of 1MiB, from 5MiB; parts grow for files too large for 10,000 of them
    #[arg(long, value_name = "SIZE", value_parser = parse_part_size, default_value = "8MiB")]
    pub part_size: u64,

    /// Parts sent at the same time, over all files
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_uploads: u16,

    /// Ranges fetched at the same time, over all files
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_downloads: u16,

    /// Most bytes per second that are sent, for example 2MiB/s [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub upload_rate: Option<u64>,

    /// Most bytes in the spool on the local disk; writers wait beyond it. [default: free space less the larger of 5 % and
    /// 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub spool_limit: Option<u64>,

    /// Memory for data on their way and for names: half of it holds blocks that are read or read ahead, a quarter the names
    /// that the kernel knows, an eighth listings
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256MiB")]
    pub memory_limit: u64,

    /// Free room in a spool that is full by dropping parts that BOS holds already: `yes`, or `no` to let writers wait
    #[arg(long, value_enum, default_value_t = YesNo::Yes, value_name = "YES|NO")]
    pub punch: YesNo,

    /// For files that no journal knows: go on with unfinished uploads found in the bucket, where their parts are equal
    #[arg(long)]
    pub adopt: bool,

    /// How long attributes and names are believed before BOS is asked again, for example 1s; 0: never
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    pub metadata_ttl: Duration,

    /// Let listings tell symbolic links from files also where they are not remembered: one request more for each new
    /// object of 1 to 4095 bytes
    #[arg(long)]
    pub exact_types: bool,

    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,

    /// Let other users in; permissions are then checked by the kernel
    #[arg(long)]
    pub allow_other: bool,

    /// Owner of files that carry none, as a number [default: of who mounts]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,

    /// Group of files that carry none, as a number [default: of who mounts]
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,

    /// Permissions taken away from files and folders that carry none, in octal
    #[arg(long, value_name = "MASK", value_parser = parse_umask, default_value = "022")]
    pub umask: u32,

    /// Storage class of new objects, for example STANDARD_IA [default: that of the bucket]
    #[arg(long, value_name = "CLASS")]
    pub storage_class: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// Where the log goes.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
pub struct LogArgs {
    /// How much is logged
    #[arg(long, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL")]
    pub log_level: LogLevel,

    /// File that the log is appended to; kept below 32MiB with one earlier file beside it. [default: stderr in the
    /// foreground, else `bosfs.log` in the state folder]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// `bosfs umount`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct UmountArgs {
    /// The mount
    pub dir: PathBuf,

    /// Give up waiting after this time, for example 10m; the mount then stays [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,

    /// Detach although files are open; their programs go on, and the process ends when they have closed them
    #[arg(long)]
    pub lazy: bool,
}

/// `bosfs status`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct StatusArgs {
    /// A mount or a state folder [default: all mounts of this user, and journals without a mount]
    pub dir: Option<PathBuf>,

    /// Print one JSON object (with --watch: one a line)
    #[arg(long)]
    pub json: bool,

    /// Show it again every second until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// `bosfs uploads`.
#[derive(Debug, Subcommand)]
pub enum UploadsCommand {
    /// List every unfinished upload in a bucket, with whose it is: ours, possibly ours (BOS did not answer when it was
    /// begun), or foreign
    List(UploadsListArgs),
    /// Finish one without a mount: from the journal, or from a source file and the parts that BOS holds
    Resume(UploadsResumeArgs),
    /// Publish the file of an interrupted writer as it is, or decide a conflict
    Complete(UploadsCompleteArgs),
    /// Drop an unfinished upload and what is spooled of it
    Abort(UploadsAbortArgs),
}

/// `bosfs uploads list`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct UploadsListArgs {
    /// Bucket, or a prefix in it
    #[arg(value_name = "BUCKET[/PREFIX]", value_parser = BucketPath::parse)]
    pub bucket: BucketPath,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bos: BosArgs,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `bosfs uploads resume`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct UploadsResumeArgs {
    /// The object
    #[arg(value_name = "BUCKET/KEY")]
    pub object: String,

    /// The file the upload was made from: parts that BOS holds and that equal it are kept, the rest is sent. Needs no
    /// journal [default: from the journal]
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Which upload; needed when the key has several
    #[arg(long, value_name = "ID", requires = "from")]
    pub upload_id: Option<String>,

    /// Parts sent at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_uploads: u16,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bos: BosArgs,
}

/// `bosfs uploads complete`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct UploadsCompleteArgs {
    /// The object
    #[arg(value_name = "BUCKET/KEY")]
    pub object: String,

    /// Overwrite what another writer put there meanwhile
    #[arg(long)]
    pub force: bool,

    /// Publish it under this key of the same bucket instead, which must be free
    #[arg(long = "as", value_name = "KEY", conflicts_with = "force")]
    pub as_key: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bos: BosArgs,
}

/// `bosfs uploads abort`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct UploadsAbortArgs {
    /// The object; also the name that a killed temporary of rsync was to get
    #[arg(value_name = "BUCKET/KEY")]
    pub object: String,

    /// Which upload in BOS, needed for one that no journal here knows [default: the journal's own]
    #[arg(long, value_name = "ID")]
    pub upload_id: Option<String>,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bos: BosArgs,
}

/// `bosfs verify`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct VerifyArgs {
    /// The objects
    #[arg(value_name = "BUCKET/KEY", required = true)]
    pub objects: Vec<String>,

    /// Compare with this local file [default: with what the journal on this machine remembers of the object]
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,

    /// Where BOS gives no checksum that can be used: read the object and compare every byte
    #[arg(long, requires = "against")]
    pub download: bool,

    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bos: BosArgs,
}

/// `bosfs serve`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ServeArgs {
    /// Folder with the data [default: ~/.local/share/bosfs-local, for root /var/lib/bosfs-local]
    pub dir: Option<PathBuf>,

    /// Address and port to answer on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// Access key ID to accept [default: made once and kept in the folder]
    #[arg(long, value_name = "KEY", requires = "sk")]
    pub ak: Option<String>,

    /// Secret access key to accept; visible to others in the process list, so only for tests
    #[arg(long, value_name = "KEY", requires = "ak")]
    pub sk: Option<String>,

    /// Create this bucket if it is missing; may be repeated
    #[arg(long, value_name = "NAME")]
    pub bucket: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// `--fsync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum FsyncArg {
    /// The local disk.
    Journal,
    /// Also BOS.
    Bos,
}

/// `--interrupted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum InterruptedArg {
    /// Unpublished.
    Keep,
    /// Published as it is.
    Complete,
    /// Thrown away.
    Discard,
}

/// `--on-conflict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum ConflictArg {
    /// Keep ours aside.
    Fail,
    /// Replace theirs.
    Overwrite,
}

/// A yes or a no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum YesNo {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What lost or may lose something.
    #[value(alias = "fatal")]
    Error,
    /// Also what someone should look at.
    #[value(alias = "warning")]
    Warn,
    /// Also what was done.
    #[default]
    Info,
    /// Also how.
    Debug,
    /// Every request.
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_option_has_help() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {}", argument.get_id(), command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    #[test]
    fn local_takes_a_folder_only_behind_an_equals_sign() {
        let parse = |args: &[&str]| match Arguments::try_parse_from(args).unwrap().command {
            Command::Mount(mount) => *mount,
            other => panic!("{other:?}"),
        };
        let plain = parse(&["bosfs", "mount", "--local", "bucket", "/mnt"]);
        assert_eq!((plain.local, plain.bucket.bucket.as_str()), (Some(None), "bucket"));
        let given = parse(&["bosfs", "mount", "--local=/data", "bucket", "/mnt"]);
        assert_eq!(given.local, Some(Some(PathBuf::from("/data"))));
        assert!(Arguments::try_parse_from(["bosfs", "mount", "--local", "--endpoint", "x", "bucket", "/m"]).is_err());
    }

    #[test]
    fn the_last_of_two_equal_options_wins() {
        let parsed =
            Arguments::try_parse_from(["bosfs", "mount", "bkt", "/m", "--part-size=8MiB", "--part-size=16MiB"]);
        let Command::Mount(mount) = parsed.unwrap().command else { panic!() };
        assert_eq!(mount.part_size, 16 << 20);
    }
}
