//! The command line as clap sees it. Stable from the first release: options are added, never renamed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::key_args::KeyArgs;
use crate::format::VolumeId;
use crate::provider::KeyUri;

/// Hold-your-own-key filesystem: an encrypted directory whose files are keyed by a key that its owner can revoke.
#[derive(Debug, Parser)]
#[command(name = "hyokfs", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// How log lines look: for people, or JSON for machines.
    #[arg(long, global = true, value_enum, env = "HYOKFS_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What to log: error, warn, info, debug, or a filter such as `hyokfs::fs=debug`.
    #[arg(long, global = true, env = "HYOKFS_LOG")]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The look of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Short lines, coloured on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new volume in an empty directory.
    Init(InitArgs),
    /// Mount a volume and keep it mounted for as long as its key allows.
    Mount(Box<MountArgs>),
    /// Unmount a volume: everything is written back, then the daemon ends.
    Unmount(MountpointArg),
    /// Lock a volume by hand, as a revocation would.
    Lock(MountpointArg),
    /// Take a lock by hand back. It never overrides the customer's no.
    Unlock(MountpointArg),
    /// Show how a volume is, or all volumes of this user.
    Status(StatusArgs),
    /// Rehearse a revocation on a live mount and report every step's time. Programs on the mount are cut off.
    Drill(JsonMountpointArgs),
    /// The embedded keystore, playing the customer.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Try every permission that a volume needs and name the missing one.
    Check(CheckArgs),
    /// Print what the customer pastes into their cloud to grant, and to be able to revoke, the use of a key.
    Policy(PolicyArgs),
    /// Authenticate every header, page, name and record of a volume that is not mounted.
    Verify(VerifyArgs),
    /// Read and check the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The whole story in a minute, on the embedded keystore, in a temporary directory.
    Demo(DemoArgs),
    /// Start write-back of a mount; used by the daemon itself.
    #[command(name = crate::supervisor::SYNCFS_COMMAND, hide = true)]
    InternalSyncfs {
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// Empty the kernel's caches of a mount whose daemon was killed; used by the daemon itself.
    #[command(name = crate::fuse::guard::COMMAND, hide = true)]
    InternalGuard {
        /// The ciphertext.
        store: PathBuf,
        /// Where it is mounted: for whoever reads the list of processes.
        mountpoint: PathBuf,
        /// The mount's minor device number.
        minor: u32,
    },
    /// Ask for a mount's space by many threads at once; used by the daemon itself.
    #[command(name = crate::supervisor::STATFS_COMMAND, hide = true)]
    InternalStatfs {
        /// The mount point.
        mountpoint: PathBuf,
        /// How many.
        threads: usize,
    },
}

/// A mount point.
#[derive(Debug, Args)]
pub struct MountpointArg {
    /// Where the volume is mounted.
    pub mountpoint: PathBuf,
}

/// A mount point, and how to print.
#[derive(Debug, Args)]
pub struct JsonMountpointArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the volume is mounted.
    pub mountpoint: PathBuf,
}

/// `hyokfs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the volume is mounted; left out: every volume of this user.
    pub mountpoint: Option<PathBuf>,
}

/// `hyokfs init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The customer's key: awskms:///ARN, azurekeyvault://HOST/keys/NAME, or local[:PATH[#NAME]].
    #[arg(long, value_name = "KEY")]
    pub key: KeyUri,
    /// Cipher of the file pages; auto takes AES-256-GCM where the processor has AES.
    #[arg(long, value_enum, default_value_t = CipherArg::Auto)]
    pub cipher: CipherArg,
    /// What one wrapped key covers.
    #[arg(long, value_enum, default_value_t = GranularityArg::File)]
    pub granularity: GranularityArg,
    /// Whether names are encrypted.
    #[arg(long, value_enum, default_value_t = NamesArg::Encrypted)]
    pub names: NamesArg,
    /// Longest poll interval that a mount may choose; stands authenticated in the volume.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    pub max_poll_interval: Duration,
    /// Longest lease that a mount may choose (0s to 24h); stands authenticated in the volume.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub max_lease: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to reach the key.
    #[command(flatten)]
    pub settings: KeyArgs,
    /// The directory to hold the ciphertext; made if it is not there, else it must be empty.
    pub store: PathBuf,
}

/// Cipher of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CipherArg {
    /// The faster one on this processor.
    Auto,
    /// AES-256-GCM.
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

/// What one wrapped key covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GranularityArg {
    /// Each file: one call per file, one line in the customer's log per file.
    File,
    /// Each directory: one call and one line in the log for all files that were made in it.
    Directory,
    /// The whole volume: one call per unlock.
    Volume,
}

/// Names on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NamesArg {
    /// Sealed names.
    Encrypted,
    /// Names as they are.
    Plain,
}

/// `hyokfs mount`. Every option may also stand in the configuration file, under its own name.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Go to the background as soon as the volume is mounted.
    #[arg(long)]
    pub background: bool,
    /// The daemon's own options.
    #[command(flatten)]
    pub options: MountOptionArgs,
    /// How to reach the key.
    #[command(flatten)]
    pub settings: KeyArgs,
    /// Mount options as in /etc/fstab: allow_other, ro, noexec, suid, dev, or any option above as `name=value`.
    #[arg(short = 'o', value_name = "OPTS", value_delimiter = ',')]
    pub opts: Vec<String>,
    /// The directory with the ciphertext.
    pub store: PathBuf,
    /// Where to mount it.
    pub mountpoint: PathBuf,
}

/// The options of a mount, all of which have a default.
#[derive(Debug, Clone, Default, Args, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MountOptionArgs {
    /// Time between two probes of the key [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, env = "HYOKFS_POLL_INTERVAL")]
    #[serde(deserialize_with = "duration")]
    pub poll_interval: Option<Duration>,
    /// How long the volume stays usable while the key service cannot be reached [default: 5m].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, env = "HYOKFS_LEASE")]
    #[serde(deserialize_with = "duration")]
    pub lease: Option<Duration>,
    /// Longest time that a lock waits for unwritten data (0s to 1h) [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub flush_deadline: Option<Duration>,
    /// What a lock does with the mount: take it away, or hold it, so that everything answers ENOKEY and open files work
    /// again after the restore (see docs/revocation.md) [default: unmount].
    #[arg(long, value_enum, value_name = "WHAT", env = "HYOKFS_ON_REVOKE")]
    pub on_revoke: Option<OnRevokeArg>,
    /// How long opening or making a file waits for its key while the key service does not answer; then it fails with
    /// EAGAIN (100ms to 10m) [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, env = "HYOKFS_KEY_WAIT")]
    #[serde(deserialize_with = "duration")]
    pub key_wait: Option<Duration>,
    /// Refuse the volume unless this is its fingerprint (as `init` printed it).
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Option<String>,
    /// Unwrapped file keys kept in locked memory [default: 16384].
    #[arg(long, value_name = "N")]
    pub key_cache: Option<usize>,
    /// Calls per second that this mount may make to the key service in the long run [default: by the kind of key, 2000
    /// for AWS KMS, 12 to 100 for an Azure vault; see docs/keys.md].
    #[arg(long, value_name = "N")]
    pub kms_max_rps: Option<u32>,
    /// Keys made ahead for new files at most; as many as lately were used, and as the largest burst of the last hour
    /// needed [default and most: 4096].
    #[arg(long, value_name = "N")]
    pub key_pool: Option<usize>,
    /// Keys for new files that are kept ready from the mount on, used or not; those not used within an hour are made
    /// anew, so each costs up to 24 calls a day [default: 0].
    #[arg(long, value_name = "N")]
    pub key_reserve: Option<usize>,
    /// Write the audit log to this file.
    #[arg(long, value_name = "FILE", env = "HYOKFS_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
    /// Sign the audit log's checkpoints with this key (see `hyokfs audit keygen`).
    #[arg(long, value_name = "FILE")]
    pub audit_key: Option<PathBuf>,
    /// Start a new audit file at this size, in MiB (1 to 512) [default: 64].
    #[arg(long, value_name = "MIB")]
    pub audit_size: Option<u64>,
    /// Keep this many audit files [default: 16].
    #[arg(long, value_name = "N")]
    pub audit_keep: Option<usize>,
    /// Where the daemon remembers fingerprints [default: /var/lib/hyokfs or $XDG_STATE_HOME/hyokfs].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// In the background: append log lines to this file.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Other users may enter the mount.
    #[arg(long)]
    pub allow_other: bool,
}

/// What a lock does with the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRevokeArg {
    /// Takes it away; a placeholder stands there until the volume is mounted again.
    Unmount,
    /// Keeps it.
    Hold,
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    use serde::Deserialize;
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| humantime::parse_duration(&text).map_err(serde::de::Error::custom)).transpose()
}

/// `hyokfs key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a keystore with one key, or one more key in it.
    Create(KeyTarget),
    /// Take the key away: every volume under it locks within its poll interval.
    Disable(KeyTarget),
    /// Give the key back.
    Enable(KeyTarget),
    /// Destroy the key for ever: every volume under it is lost.
    Destroy {
        /// Which key.
        #[command(flatten)]
        target: KeyTarget,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Show the keys and their states.
    Show {
        /// Which keystore.
        #[command(flatten)]
        target: KeyTarget,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A key of the embedded keystore.
#[derive(Debug, Args)]
pub struct KeyTarget {
    /// The keystore's file, or local[:PATH[#NAME]]; left out: the default one.
    #[arg(value_name = "LOCAL-KEYSTORE")]
    pub keystore: Option<String>,
    /// The key's name in it.
    #[arg(long)]
    pub name: Option<String>,
    /// The file with the keystore's secret, instead of PATH.secret.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
}

/// `hyokfs check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to reach the key.
    #[command(flatten)]
    pub settings: KeyArgs,
    /// A key, or the store of a volume.
    #[arg(value_name = "KEY|STORE")]
    pub target: String,
}

/// `hyokfs policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Language.
    #[arg(long, value_enum, default_value_t = PolicyFormat::Json)]
    pub format: PolicyFormat,
    /// AWS: the ARN of the vendor's role that hyokfs runs under; Azure: the object id of its service principal.
    #[arg(long, value_name = "ARN|ID")]
    pub vendor: String,
    /// AWS: the external id; left out: a new random one.
    #[arg(long)]
    pub external_id: Option<String>,
    /// AWS: the name of the role in the customer's account.
    #[arg(long, default_value = "hyokfs")]
    pub role_name: String,
    /// Allow the key for this tenant name alone (AWS: bound to the context `hyokfs:tenant`).
    #[arg(long)]
    pub tenant: Option<String>,
    /// Allow the key for this volume alone (AWS: bound to the context `hyokfs:volume`).
    #[arg(long, value_name = "ID")]
    pub volume: Option<VolumeId>,
    /// The customer's key.
    pub key: KeyUri,
}

/// The language of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyFormat {
    /// The plain documents.
    Json,
    /// HCL for Terraform.
    Terraform,
    /// A CloudFormation template (AWS).
    Cloudformation,
    /// Bicep (Azure).
    Bicep,
}

/// `hyokfs verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Mend what can be mended: remove what interrupted operations left, restore the volume record, move what
    /// authenticates nowhere into .hyokfs.lost. Nothing that holds anything is deleted.
    #[arg(long)]
    pub repair: bool,
    /// With --repair: also move files of which only a part can be read into .hyokfs.lost.
    #[arg(long, requires = "repair")]
    pub set_aside_damaged: bool,
    /// With --repair: also write lost records of directories again, from what stands in them. It makes a directory
    /// that was moved behind hyokfs's back, and lost its record, belong where it stands now.
    #[arg(long, requires = "repair")]
    pub rebuild_directories: bool,
    /// Show plaintext names; without it only the names in the store and the ids of files are shown.
    #[arg(long)]
    pub show_names: bool,
    /// Refuse the volume unless this is its fingerprint (as `init` printed it).
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Option<String>,
    /// Calls per second that may be made to the key service [default: as for mount].
    #[arg(long, value_name = "N")]
    pub kms_max_rps: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to reach the key.
    #[command(flatten)]
    pub settings: KeyArgs,
    /// The directory with the ciphertext.
    pub store: PathBuf,
}

/// `hyokfs audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print records.
    Show {
        /// Only records since this time (RFC 3339) or for this long (1h).
        #[arg(long)]
        since: Option<String>,
        /// Wait for more at the end.
        #[arg(long)]
        follow: bool,
        /// Print the records as they are stored.
        #[arg(long)]
        json: bool,
        /// The log's newest file.
        file: PathBuf,
    },
    /// Check that nothing was removed, changed or put in another order.
    Verify {
        /// Also check the signatures of the checkpoints with this public key.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// The last record's number must be at least this.
        #[arg(long, value_name = "N")]
        expect_seq: Option<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The log's newest file.
        file: PathBuf,
    },
    /// Make a key that signs checkpoints: FILE and FILE.pub.
    Keygen {
        /// Where the private key goes.
        file: PathBuf,
    },
}

/// `hyokfs demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keep the temporary directory.
    #[arg(long)]
    pub keep: bool,
}
