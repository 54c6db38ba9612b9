//! Writes the inputs that fuzzing starts from into fuzz/corpus: what hyokfs itself writes, under the keys that the targets
//! use. Run it again when a format changes: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use hyokfs::audit::{Config, Log, StateChange};
use hyokfs::crypto::kdf::MacKey;
use hyokfs::crypto::names::NameKey;
use hyokfs::crypto::{Secret, Suite};
use hyokfs::format::dirrec::DirRecord;
use hyokfs::format::header::{FileHeader, Parents};
use hyokfs::format::name::{NameMode, encode};
use hyokfs::format::slots::{KeySlot, Via};
use hyokfs::format::volume::{Granularity, RecordKey, VolumeRecord};
use hyokfs::format::{DirId, FileId, VolumeId};
use hyokfs::provider::azure::blob::{Algorithm, KeyId, seal};
use hyokfs::provider::local::{Keystore, Protect};
use hyokfs::provider::{Context, KeySettings};
use hyokfs::store::Owner;
use hyokfs::supervisor::control::{Reply, Request};

type Done = Result<(), Box<dyn Error>>;

fn put(target: &str, name: &str, bytes: impl AsRef<[u8]>) -> Done {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join(name), bytes)?)
}

fn key(byte: u8) -> Result<Secret, Box<dyn Error>> {
    Ok(Secret::from_fn(|key| key.fill(byte))?)
}

fn main() -> Done {
    formats()?;
    names()?;
    wrapped()?;
    keystore()?;
    audit()?;
    texts()
}

fn formats() -> Done {
    let (mac, volume) = (MacKey::new(&key(5)?), VolumeId([1; 16]));
    let provider = KeySlot { via: Via::Provider(0), wrapped: vec![9; 89] };
    let group = KeySlot { via: Via::Group([6; 16]), wrapped: vec![9; 72] };
    let both = KeySlot { via: Via::GroupKey { slot: 1, group: [6; 16] }, wrapped: vec![9; 184] };
    for (name, suite, slots, parents) in [
        ("bound", Suite::Aes256Gcm, vec![provider.clone()], Parents::Bound(vec![DirId([4; 16])])),
        ("unbound", Suite::ChaCha20Poly1305, vec![provider.clone()], Parents::Unbound),
        ("group", Suite::Aes256Gcm, vec![group, both], Parents::Bound(vec![DirId([4; 16]), DirId([5; 16])])),
    ] {
        put("slots", name, hyokfs::format::slots::encode(&slots).ok_or("slots")?)?;
        let header = FileHeader { suite, volume, file: FileId([2; 16]), slots, commitment: [3; 32], parents };
        put("header", name, header.encode(1024, &mac)?)?;
    }
    for parents in 0..=3_u8 {
        let ids: Vec<u8> = (0..=parents).flat_map(|id| [id; 16]).collect();
        put("dirrec", &format!("{parents}-parents"), ids)?;
    }
    let record = DirRecord { dir: DirId([1; 16]), parents: vec![DirId([2; 16])] };
    put("dirrec", "text", record.encode(volume, &mac))?;
    put("page", "short", [7; 40])?;
    put("page", "whole", [7; 4096])?;
    put("small", "attribute", b"\x06user.avalue")?;
    put("small", "target", b"../other/place")?;
    for (name, granularity, tenant, group) in [
        ("file", Granularity::File, None, None),
        ("volume", Granularity::Volume, Some("acme".to_owned()), Some(vec![5; 89])),
    ] {
        let uri = "awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned();
        let key = RecordKey { slot: 0, uri, secret: vec![1; 8], canary: vec![2; 8], group };
        let record = VolumeRecord {
            format: 1,
            generation: 1,
            volume,
            suite: Suite::Aes256Gcm,
            granularity,
            names: NameMode::Encrypted,
            header_len: 1024,
            max_poll_interval_ms: 60_000,
            max_lease_ms: 3_600_000,
            tenant,
            key: vec![key],
            mac: vec![4; 32],
        };
        put("volume", name, record.to_toml()?)?;
    }
    Ok(())
}

fn names() -> Done {
    let names = NameKey::new(&key(1)?, &key(2)?)?;
    let dir = DirId([7; 16]);
    let short = encode(&names, NameMode::Encrypted, &dir, b"letter.txt")?;
    put("name", "short", short.entry)?;
    let long = encode(&names, NameMode::Encrypted, &dir, &[b'a'; 200])?;
    put("name", "long", [long.entry, long.long.unwrap_or_default().into_bytes()].concat())?;
    put("name", "plain", encode(&names, NameMode::Plain, &dir, b".hyokfs.dir")?.entry)?;
    put("name", "spaces", b"=20 \xff name")
}

fn wrapped() -> Done {
    let context = Context { volume: VolumeId([1; 16]), file: Some(FileId([2; 16])), tenant: Some("acme") };
    for (name, algorithm, length, version) in [
        ("rsa", Algorithm::RsaOaep256, 256, "78deebed173b48e48f55abf87ed4cf71"),
        ("aes", Algorithm::A256Kw, 40, "Version2"),
    ] {
        let id = KeyId { host: "a.vault.azure.net".into(), name: "hyok".into(), version: version.into() };
        let blob = seal(algorithm, &id, &vec![8; length], &*Box::new(key(5)?), &context, &key(6)?)?;
        put("wrapped", name, blob)?;
    }
    put("wrapped", "local", [&[1], &[7; 88][..]].concat())
}

fn keystore() -> Done {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("hyokfs-seeds-{}", std::process::id()));
    let secret = path.with_extension("secret");
    fs::write(&secret, "1".repeat(64))?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let keystore = Keystore::at(Some(&path), &KeySettings::default());
    keystore.create("default", Protect::SecretFile)?;
    put("keystore", "one", fs::read(&path)?)?;
    keystore.create("other", Protect::SecretFile)?;
    keystore.destroy("other")?;
    keystore.disable("default")?;
    let text = fs::read_to_string(&path)?;
    put("keystore", "destroyed", &text)?;
    let argon = "kind = \"argon2id\"\nsalt = \"AAAAAAAAAAAAAAAAAAAAAA==\"\nmemory-kib = 65536\npasses = 3\nlanes = 1";
    put("keystore", "passphrase", text.replace("kind = \"secret-file\"", argon))?;
    for end in ["", ".secret", ".lock"] {
        let _ = fs::remove_file(format!("{}{end}", path.display()));
    }
    Ok(())
}

fn audit() -> Done {
    let dir = std::env::temp_dir().join(format!("hyokfs-seeds-audit-{}", std::process::id()));
    let path = dir.join("audit.jsonl");
    let log = Log::open(Config::at(&path))?;
    log.state(StateChange { from: "unlocked", to: "locking", cause: "denied", ..StateChange::default() })
        .wait(Duration::from_secs(5));
    log.close(Duration::from_secs(5));
    let whole = fs::read(&path)?;
    put("audit", "whole", &whole)?;
    put("audit", "torn", &whole[..whole.len() - 100])?;
    let log = Log::open(Config::at(&path))?;
    log.close(Duration::from_secs(5));
    put("audit", "twice", fs::read(&path)?)?;
    fs::remove_dir_all(dir)?;
    Ok(())
}

fn texts() -> Done {
    put(
        "config",
        "fstab",
        "rw,_netdev,nofail,x-systemd.automount,allow_other,noexec,lease=8m,key_wait=250ms,key-cache=100",
    )?;
    put(
        "config",
        "file",
        "config=/etc/hyokfs/acme.toml,ro\npoll-interval = \"9s\"\nlease = \"9m\"\non-revoke = \"hold\"\nflush-deadline = \
         \"9s\"\nkey-cache = 100\nkms-max-rps = 50\naudit-log = \"/var/log/a\"\naudit-size = 64\naudit-keep = 16\n\
         allow-other = true\n[key]\ntenant = \"acme\"\nexternal-id = \"x\"\nassume-role = [\"arn:aws:iam::1:role/x\"]\n\
         call-deadline-ms = 5000\nazure-remote-wrap = true\n",
    )?;
    let error = r#"{"error":{"code":"Forbidden","message":"no AKV10032","innererror":{"code":"KeyDisabled"}}}"#;
    for status in [401, 403, 404, 409, 429, 503_u16] {
        put("azure_answer", &status.to_string(), [&status.to_be_bytes(), error.as_bytes()].concat())?;
    }
    put("azure_answer", "proxy", [&403_u16.to_be_bytes()[..], b"<html>\n30\n</html>"].concat())?;
    for request in [Request::Status, Request::Drill] {
        put("control", &format!("{request:?}").to_lowercase(), serde_json::to_string(&request)?)?;
    }
    put("control", "done", serde_json::to_string(&Reply::Done("unmounted".into()))?)?;
    let owner = Owner { pid: 77, host: "alpha".into(), mount_point: "/mnt/x".into(), since: 5 };
    put("control", "owner", serde_json::to_string(&owner)?)?;
    put("control", "pin", r#"{"fingerprint":"abcd","generation":3}"#)?;
    for (name, uri) in [
        ("local", "local:/var/lib/keys#acme"),
        ("aws", "awskms:///arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"),
        ("azure", "azurekeyvault://acme.managedhsm.azure.net/keys/hyok/78deebed173b48e48f55abf87ed4cf71"),
        ("kid", "https://acme.vault.azure.net/keys/hyok/78deebed173b48e48f55abf87ed4cf71"),
        ("id", "01010101010101010101010101010101"),
    ] {
        put("uri", name, uri)?;
    }
    Ok(())
}
