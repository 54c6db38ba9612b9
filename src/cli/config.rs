//! The configuration file and the options of `-o`, merged with the command line, which comes first.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{MountArgs, MountOptionArgs, OnRevokeArg};
use super::key_args::KeyArgs;
use crate::fuse::MountOptions;
use crate::provider::KeySettings;
use crate::supervisor::lock::OnRevoke;

/// The file: options of `mount` under their own names, and a table `[key]` of settings of the key service.
struct ConfigFile {
    options: MountOptionArgs,
    key: KeySettings,
}

/// Shorter than any service's answer is a mistake, and so is a wait that programs take for a hang.
const KEY_WAIT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// A lock does not wait longer for unwritten data, and no time is further away than the clock can tell.
const FLUSH_DEADLINE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// In MiB. Larger files than 1 GiB are not taken for a log, and a file may grow a little over its size.
const AUDIT_SIZE: RangeInclusive<u64> = 1..=512;

/// Why the options of a mount could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// An option is out of range, wherever it was given.
    #[error("{option} {given}: {why}")]
    Range {
        /// Its name.
        option: &'static str,
        /// Its value.
        given: String,
        /// What is allowed.
        why: &'static str,
    },
    /// An option of `-o` is unknown or has a bad value.
    #[error("mount option `{option}`: {why}")]
    Option {
        /// As it was given.
        option: String,
        /// What is wrong.
        why: String,
    },
}

/// Everything `mount` needs, complete.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The ciphertext.
    pub store: PathBuf,
    /// Where to mount it.
    pub mountpoint: PathBuf,
    /// How the kernel mounts it.
    pub kernel: MountOptions,
    /// The daemon's options; what is `None` takes its default.
    pub options: MountOptionArgs,
    /// How to reach the key.
    pub settings: KeySettings,
}

impl MountConfig {
    /// Time between two probes.
    pub fn poll_interval(&self) -> Duration {
        self.options.poll_interval.unwrap_or(Duration::from_secs(5))
    }

    /// The lease.
    pub fn lease(&self) -> Duration {
        self.options.lease.unwrap_or(Duration::from_secs(300))
    }

    /// How long an open waits for its key.
    pub fn key_wait(&self) -> Duration {
        self.options.key_wait.unwrap_or(Duration::from_secs(10))
    }

    /// The longest a lock waits for unwritten data.
    pub fn flush_deadline(&self) -> Duration {
        self.options.flush_deadline.unwrap_or(Duration::from_secs(5))
    }

    /// What a lock does with the mount.
    pub fn on_revoke(&self) -> OnRevoke {
        match self.options.on_revoke {
            None | Some(OnRevokeArg::Unmount) => OnRevoke::Unmount,
            Some(OnRevokeArg::Hold) => OnRevoke::Hold,
        }
    }
}

/// Merges command line, `-o` and configuration file, in this order of precedence.
pub fn mount_config(args: MountArgs) -> Result<MountConfig, ConfigError> {
    merged(args, read_file)
}

/// What `mount` would do with the options `opts`, as they stand in /etc/fstab, and with a configuration file of this
/// text: everything that is parsed for a mount, without touching the system.
pub fn parse(opts: &str, file: &str) -> Result<MountConfig, ConfigError> {
    let args = MountArgs {
        background: false,
        options: MountOptionArgs::default(),
        settings: KeyArgs { config: Some("hyokfs.conf".into()), ..KeyArgs::default() },
        opts: opts.split(',').map(str::to_owned).collect(),
        store: "/store".into(),
        mountpoint: "/mnt".into(),
    };
    merged(args, |path| parse_file(path, file))
}

fn merged(
    args: MountArgs,
    read: impl Fn(&Path) -> Result<ConfigFile, ConfigError>,
) -> Result<MountConfig, ConfigError> {
    let mut kernel = MountOptions { source: args.store.clone(), ..MountOptions::default() };
    let mut config = args.settings.config.clone();
    let mut table = toml::Table::new();
    for option in &args.opts {
        read_option(option, &mut kernel, &mut table, &mut config)?;
    }
    let mut settings = KeySettings::default();
    let mut from_file = MountOptionArgs::default();
    if let Some(path) = &config {
        let file = read(path)?;
        settings = file.key;
        from_file = file.options;
    }
    let from_opts = options(table).map_err(|why| ConfigError::Option { option: args.opts.join(","), why })?;
    let merged = merge(merge(args.options, from_opts), from_file);
    kernel.allow_other |= merged.allow_other;
    let long = |time| humantime::format_duration(time).to_string();
    within("key-wait", merged.key_wait, &KEY_WAIT, long, "choose 100ms to 10m")?;
    within("flush-deadline", merged.flush_deadline, &FLUSH_DEADLINE, long, "choose 0s to 1h")?;
    within("audit-size", merged.audit_size, &AUDIT_SIZE, |size| size.to_string(), "choose 1 to 512 (MiB)")?;
    Ok(MountConfig {
        store: args.store,
        mountpoint: args.mountpoint,
        kernel,
        options: merged,
        settings: args.settings.over(settings),
    })
}

/// Refuses what is out of range, wherever it was given.
fn within<T: PartialOrd>(
    option: &'static str,
    given: Option<T>,
    range: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
    why: &'static str,
) -> Result<(), ConfigError> {
    match given {
        Some(value) if !range.contains(&value) => Err(ConfigError::Range { option, given: show(value), why }),
        _ => Ok(()),
    }
}

/// The settings of the key service from a configuration file alone, for commands other than `mount`.
pub fn key_settings(config: Option<&Path>) -> Result<KeySettings, ConfigError> {
    config.map_or_else(|| Ok(KeySettings::default()), |path| read_file(path).map(|file| file.key))
}

fn read_file(path: &Path) -> Result<ConfigFile, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_file(path, &text)
}

fn parse_file(path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    let parse = |error: toml::de::Error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() };
    let mut options: toml::Table = toml::from_str(text).map_err(parse)?;
    let key = match options.remove("key") {
        Some(key) => key.try_into().map_err(parse)?,
        None => KeySettings::default(),
    };
    // Also for commands that use none of the options: a setting in the wrong table must not go unheard.
    let options = self::options(options).map_err(|message| ConfigError::Parse {
        path: path.to_owned(),
        message: format!("{}; settings of the key service belong into the table [key]", message.trim_end()),
    })?;
    Ok(ConfigFile { options, key })
}

fn options(table: toml::Table) -> Result<MountOptionArgs, String> {
    table.try_into().map_err(|error: toml::de::Error| error.to_string())
}

/// One word of `-o`. What mount(8) and systemd add for themselves is taken and ignored.
fn read_option(
    option: &str,
    kernel: &mut MountOptions,
    table: &mut toml::Table,
    config: &mut Option<PathBuf>,
) -> Result<(), ConfigError> {
    match option.split_once('=') {
        Some(("config", path)) => *config = Some(PathBuf::from(path)),
        Some(("fsname" | "subtype" | "comment" | "user" | "uid" | "gid" | "x-mount.mkdir", _)) => {}
        Some((name, _)) if name.starts_with("x-") => {}
        Some((name, value)) => {
            let value = match (name, value.parse::<i64>()) {
                (
                    "key-cache" | "kms-max-rps" | "key-pool" | "key-reserve" | "audit-size" | "audit-keep",
                    Ok(number),
                ) => toml::Value::Integer(number),
                _ => toml::Value::String(value.to_owned()),
            };
            table.insert(name.replace('_', "-"), value);
        }
        None => match option {
            ""
            | "defaults"
            | "rw"
            | "nosuid"
            | "nodev"
            | "exec"
            | "auto"
            | "noauto"
            | "user"
            | "nouser"
            | "users"
            | "_netdev"
            | "nofail"
            | "noatime"
            | "relatime"
            | "async"
            | "default_permissions" => {}
            "allow_other" => kernel.allow_other = true,
            "ro" => kernel.read_only = true,
            "suid" => kernel.suid = true,
            "dev" => kernel.dev = true,
            "noexec" => kernel.noexec = true,
            word if word.starts_with("x-") => {}
            word => {
                return Err(ConfigError::Option {
                    option: word.to_owned(),
                    why: "unknown; see `hyokfs mount --help`".into(),
                });
            }
        },
    }
    Ok(())
}

fn merge(first: MountOptionArgs, second: MountOptionArgs) -> MountOptionArgs {
    MountOptionArgs {
        poll_interval: first.poll_interval.or(second.poll_interval),
        lease: first.lease.or(second.lease),
        flush_deadline: first.flush_deadline.or(second.flush_deadline),
        on_revoke: first.on_revoke.or(second.on_revoke),
        key_wait: first.key_wait.or(second.key_wait),
        fingerprint: first.fingerprint.or(second.fingerprint),
        key_cache: first.key_cache.or(second.key_cache),
        kms_max_rps: first.kms_max_rps.or(second.kms_max_rps),
        key_pool: first.key_pool.or(second.key_pool),
        key_reserve: first.key_reserve.or(second.key_reserve),
        audit_log: first.audit_log.or(second.audit_log),
        audit_key: first.audit_key.or(second.audit_key),
        audit_size: first.audit_size.or(second.audit_size),
        audit_keep: first.audit_keep.or(second.audit_keep),
        state_dir: first.state_dir.or(second.state_dir),
        log_file: first.log_file.or(second.log_file),
        allow_other: first.allow_other || second.allow_other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::{MountConfig, OnRevoke, mount_config};
    use crate::cli::args::{Cli, Command};

    fn parse(words: &[&str]) -> Result<MountConfig, String> {
        let words = ["hyokfs", "mount"].iter().chain(words).chain(&["/store", "/mnt"]);
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Mount(args) => mount_config(*args).map_err(|error| error.to_string()),
            _ => Err("not mount".into()),
        }
    }

    #[test]
    fn the_command_line_comes_before_o_and_o_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume.toml");
        std::fs::write(
            &file,
            "poll-interval = \"9s\"\nlease = \"9m\"\non-revoke = \"hold\"\nflush-deadline = \"9s\"\n[key]\nexternal-id = \"from-file\"\n",
        )
        .unwrap();
        let path = format!("config={},lease=8m,flush_deadline=8s", file.display());
        let config = parse(&["-o", &path, "--flush-deadline", "7s"]).unwrap();
        assert_eq!(config.on_revoke(), OnRevoke::Hold);
        assert_eq!(config.poll_interval(), Duration::from_secs(9));
        assert_eq!(config.lease(), Duration::from_secs(480));
        assert_eq!(config.flush_deadline(), Duration::from_secs(7));
        assert_eq!(config.settings.external_id.as_deref(), Some("from-file"));
    }

    #[test]
    fn unknown_options_are_refused_wherever_they_stand() {
        assert!(parse(&["-o", "alow_other"]).unwrap_err().contains("alow_other"));
        assert!(parse(&["-o", "leese=3s"]).unwrap_err().contains("leese"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume.toml");
        std::fs::write(&file, "leese = \"9s\"\n").unwrap();
        assert!(parse(&["--config", file.to_str().unwrap()]).unwrap_err().contains("leese"));
    }

    #[test]
    fn a_setting_in_the_wrong_table_is_refused_by_every_command() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume.toml");
        std::fs::write(&file, "poll-interval = \"9s\"\nazure-tenant-id = \"x\"\n").unwrap();
        let error = super::key_settings(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("azure-tenant-id") && error.contains("[key]"), "{error}");
        std::fs::write(&file, "poll-interval = \"9s\"\n[key]\nazure-tenant-id = \"x\"\n").unwrap();
        assert_eq!(super::key_settings(Some(&file)).unwrap().azure_tenant_id.as_deref(), Some("x"));
    }

    #[test]
    fn the_wait_for_a_key_is_ten_seconds_and_has_bounds() {
        assert_eq!(parse(&[]).unwrap().key_wait(), Duration::from_secs(10));
        assert_eq!(parse(&["-o", "key_wait=250ms"]).unwrap().key_wait(), Duration::from_millis(250));
        for wrong in ["0s", "99ms", "601s"] {
            let error = parse(&["--key-wait", wrong]).unwrap_err();
            assert!(error.contains("key-wait") && error.contains("100ms to 10m"), "{error}");
            assert!(parse(&["-o", &format!("key-wait={wrong}")]).is_err());
        }
    }

    #[test]
    fn no_deadline_is_beyond_the_clock_and_no_audit_file_too_large_to_be_read() {
        for wrong in ["18446744073709551615s", "61m"] {
            let error = parse(&["--flush-deadline", wrong]).unwrap_err();
            assert!(error.contains("flush-deadline") && error.contains("0s to 1h"), "{error}");
        }
        assert_eq!(parse(&["-o", "flush-deadline=0s"]).unwrap().flush_deadline(), Duration::ZERO);
        // In bytes the last one is 0.
        for wrong in ["0", "513", "17592186044416"] {
            let error = parse(&["-o", &format!("audit-size={wrong}")]).unwrap_err();
            assert!(error.contains("audit-size") && error.contains("1 to 512"), "{error}");
        }
        assert_eq!(parse(&["--audit-size", "512"]).unwrap().options.audit_size, Some(512));
    }

    #[test]
    fn words_of_fstab_are_taken() {
        let config = parse(&["-o", "rw,_netdev,nofail,x-systemd.automount,allow_other,noexec"]).unwrap();
        assert!(config.kernel.allow_other && config.kernel.noexec && !config.kernel.read_only);
    }
}
