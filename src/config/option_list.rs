//! The `-o a=b,c` list of mount(8) and fstab, turned into long options.

use std::ffi::OsString;

use super::credentials::{GivenKeys, Secret};

/// Options that are flags in the list: name there, long option.
const FLAGS: [(&str, &str); 9] = [
    ("allow_other", "--allow-other"),
    ("allow-other", "--allow-other"),
    ("ro", "--read-only"),
    ("read-only", "--read-only"),
    ("write-back", "--write-back"),
    ("adopt", "--adopt"),
    ("exact-types", "--exact-types"),
    ("nonempty", "--nonempty"),
    ("foreground", "--foreground"),
];

/// Options with a value: name there, long option. The names of the official bosfs come after our own.
const VALUES: [(&str, &str); 30] = [
    ("endpoint", "--endpoint"),
    ("region", "--region"),
    ("credentials", "--credentials"),
    ("state-dir", "--state-dir"),
    ("spool-limit", "--spool-limit"),
    ("memory-limit", "--memory-limit"),
    ("part-size", "--part-size"),
    ("max-uploads", "--max-uploads"),
    ("max-downloads", "--max-downloads"),
    ("upload-rate", "--upload-rate"),
    ("fsync", "--fsync"),
    ("interrupted", "--interrupted"),
    ("metadata-ttl", "--metadata-ttl"),
    ("uid", "--uid"),
    ("gid", "--gid"),
    ("umask", "--umask"),
    ("storage-class", "--storage-class"),
    ("log-level", "--log-level"),
    ("log-file", "--log-file"),
    ("timeout", "--timeout"),
    ("on-conflict", "--on-conflict"),
    ("punch", "--punch"),
    ("retry-failed", "--retry-failed"),
    ("local", "--local"),
    ("multipart_size", "--part-size"),
    ("meta_expires", "--metadata-ttl"),
    ("logfile", "--log-file"),
    ("log_level", "--log-level"),
    ("loglevel", "--log-level"),
    ("tmpdir", "--state-dir"),
];

/// Words of fstab and mount(8) that need nothing here: bosfs mounts are always nosuid and nodev and keep no access times.
const WITHOUT_EFFECT: [&str; 18] = [
    "rw",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "nosuid",
    "nodev",
    "noatime",
    "nodiratime",
    "relatime",
    "async",
    "exec",
];

/// What an `-o` list said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OptionList {
    /// Long options, in order, each as `--name` or `--name=value`.
    pub arguments: Vec<OsString>,
    /// `ak`, `sk` and `sts_token`.
    pub keys: GivenKeys,
}

impl OptionList {
    /// Adds what `list` says. A comma within a value is written `\,`.
    ///
    /// # Errors
    /// A sentence that names the option that is unknown, lacks its value or has one too many. Never quotes a value.
    pub fn add(&mut self, list: &str) -> Result<(), String> {
        for item in split(list) {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value)),
                None => (item.trim(), None),
            };
            self.add_one(name, value)?;
        }
        Ok(())
    }

    fn add_one(&mut self, name: &str, value: Option<&str>) -> Result<(), String> {
        if name.is_empty() || WITHOUT_EFFECT.contains(&name) || name.starts_with("x-") || name == "comment" {
            return Ok(());
        }
        if let Some((_, long)) = FLAGS.iter().find(|(known, _)| *known == name) {
            if value.is_some() {
                return Err(format!("-o {name} takes no value"));
            }
            self.arguments.push(long.into());
            return Ok(());
        }
        if name == "local" && value.is_none() {
            self.arguments.push("--local".into());
            return Ok(());
        }
        let needed =
            || value.filter(|v| !v.is_empty()).ok_or_else(|| format!("-o {name} needs a value: -o {name}=..."));
        match name {
            "ak" => self.keys.access_key_id = Some(needed()?.to_owned()),
            "sk" => self.keys.secret_access_key = Some(Secret::new(needed()?)),
            "sts_token" => self.keys.session_token = Some(Secret::new(needed()?)),
            _ => {
                let Some((_, long)) = VALUES.iter().find(|(known, _)| *known == name) else {
                    return Err(format!("-o {name}: bosfs knows no such option; see bosfs mount --help"));
                };
                let value = needed()?;
                // The official tools count `multipart_size` in MB when it has no unit.
                let bare_mb = name == "multipart_size" && value.parse::<u64>().is_ok_and(|n| n < 1 << 20);
                let unit = if bare_mb { "MiB" } else { "" };
                self.arguments.push(format!("{long}={value}{unit}").into());
            }
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        let last = items.len() - 1;
        match c {
            '\\' if chars.peek() == Some(&',') => {
                chars.next();
                items[last].push(',');
            }
            ',' => items.push(String::new()),
            _ => items[last].push(c),
        }
    }
    items
}

/// Takes every `-o LIST`, `-oLIST` and `--options=LIST` out of `arguments` and puts the long options in its place.
///
/// # Errors
/// As [`OptionList::add`]; also `-o` without a list, or a list that is not UTF-8.
pub fn expand(arguments: Vec<OsString>) -> Result<(Vec<OsString>, GivenKeys), String> {
    let mut expanded = Vec::with_capacity(arguments.len());
    let mut keys = GivenKeys::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let list = match argument.to_str() {
            Some("--") => {
                expanded.push(argument);
                expanded.extend(rest);
                break;
            }
            Some("-o" | "--options") => {
                let list = rest.next().ok_or("-o needs a list: -o name=value,name,...")?;
                Some(list.into_string().map_err(|_| "the -o list is not UTF-8")?)
            }
            Some(text) if text.starts_with("--options=") => Some(text["--options=".len()..].to_owned()),
            Some(text) if text.starts_with("-o") && text.len() > 2 => {
                Some(text[2..].trim_start_matches('=').to_owned())
            }
            _ => None,
        };
        let Some(list) = list else {
            expanded.push(argument);
            continue;
        };
        let mut options = OptionList { arguments: Vec::new(), keys: std::mem::take(&mut keys) };
        options.add(&list)?;
        keys = options.keys;
        expanded.extend(options.arguments);
    }
    Ok((expanded, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(arguments: &[&str]) -> (Vec<String>, GivenKeys) {
        let (arguments, keys) = expand(arguments.iter().map(OsString::from).collect()).unwrap();
        (arguments.into_iter().map(|a| a.into_string().unwrap()).collect(), keys)
    }

    #[test]
    fn official_names_become_our_long_options() {
        let (arguments, keys) = expanded(&[
            "b",
            "/mnt",
            "-o",
            "endpoint=http://gz.bcebos.com,ak=AK,sk=S=K,allow_other,meta_expires=0,multipart_size=16",
            "-ologfile=/l,tmpdir=/t,_netdev,x-systemd.automount,rw",
        ]);
        assert_eq!(
            arguments,
            [
                "b",
                "/mnt",
                "--endpoint=http://gz.bcebos.com",
                "--allow-other",
                "--metadata-ttl=0",
                "--part-size=16MiB",
                "--log-file=/l",
                "--state-dir=/t"
            ]
        );
        assert_eq!(keys.access_key_id.as_deref(), Some("AK"));
        assert_eq!(keys.secret_access_key, Some(Secret::new("S=K")));
    }

    #[test]
    fn commas_in_values_are_escaped() {
        let (arguments, _) = expanded(&["-o", r"credentials=/a\,b,ro"]);
        assert_eq!(arguments, ["--credentials=/a,b", "--read-only"]);
    }

    #[test]
    fn wrong_lists_are_explained_without_their_values() {
        for (list, part) in [
            ("frobnicate=secret", "frobnicate"),
            ("sk", "needs a value"),
            ("sk=", "needs a value"),
            ("allow_other=secret", "takes no value"),
            ("noexec", "knows no such option"),
        ] {
            let error = expand(vec!["-o".into(), list.into()]).unwrap_err();
            assert!(error.contains(part) && !error.contains("secret"), "{error}");
        }
        assert!(expand(vec!["-o".into()]).is_err());
    }

    #[test]
    fn what_follows_two_dashes_is_left_alone() {
        let (arguments, _) = expanded(&["--", "-o", "x"]);
        assert_eq!(arguments, ["--", "-o", "x"]);
    }
}
