#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::format::VolumeId;
use crate::provider::Verdict;

struct World {
    folder: tempfile::TempDir,
    settings: KeySettings,
}

const VOLUME: VolumeId = VolumeId([7; 16]);
const FILE: FileId = FileId([8; 16]);

fn context() -> Context<'static> {
    Context { volume: VOLUME, file: Some(FILE), tenant: Some("acme") }
}

impl World {
    fn new() -> Self {
        World { folder: tempfile::tempdir().unwrap(), settings: KeySettings::default() }
    }

    fn made() -> Self {
        let world = World::new();
        assert!(ensure(Some(&world.path()), None, &world.settings).unwrap());
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("deep/er/keys")
    }

    fn store(&self) -> Keystore {
        Keystore::at(Some(&self.path()), &self.settings)
    }

    fn key(&self) -> LocalKey {
        LocalKey::new(Some(&self.path()), None, &self.settings)
    }
}

/// What a call came to: its verdict and code.
fn told<T>(answer: Result<T, ProviderError>) -> (Verdict, String) {
    match answer {
        Ok(_) => (Verdict::Live, String::new()),
        Err(error) => (error.verdict, error.code),
    }
}

fn denied(code: &str) -> (Verdict, String) {
    (Verdict::Denied, code.to_owned())
}

fn misconfigured(code: &str) -> (Verdict, String) {
    (Verdict::Misconfigured, code.to_owned())
}

#[tokio::test]
async fn a_key_comes_back_only_in_its_own_context() {
    let world = World::made();
    let key = world.key();
    let (secret, wrapped) = key.generate(&context()).await.unwrap();
    assert_eq!(wrapped.blob.len(), 89);
    let (again, _) = key.unwrap(&context(), &wrapped.blob).await.unwrap();
    assert_eq!(again.expose(), secret.expose());
    // A second process with its own view of the file.
    let (other, _) = world.key().unwrap(&context(), &wrapped.blob).await.unwrap();
    assert_eq!(other.expose(), secret.expose());

    let wrong = [
        Context { volume: VolumeId([9; 16]), ..context() },
        Context { file: None, ..context() },
        Context { file: Some(FileId([0; 16])), ..context() },
        Context { tenant: None, ..context() },
        Context { tenant: Some("acm"), ..context() },
    ];
    for context in wrong {
        assert_eq!(told(key.unwrap(&context, &wrapped.blob).await), misconfigured("InvalidCiphertext"), "{context:?}");
    }
    for at in 0..wrapped.blob.len() {
        let mut altered = wrapped.blob.clone();
        altered[at] ^= 0x10;
        assert_eq!(told(key.unwrap(&context(), &altered).await), misconfigured("InvalidCiphertext"), "byte {at}");
    }
    for cut in [0, 1, 17, 88] {
        assert_eq!(told(key.unwrap(&context(), &wrapped.blob[..cut]).await), misconfigured("InvalidCiphertext"));
    }
}

#[tokio::test]
async fn a_disabled_key_is_denied_at_the_very_next_call_and_an_enabled_one_works_again() {
    let world = World::made();
    let key = world.key();
    let (_, wrapped) = key.generate(&context()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(world.store().disable("default").unwrap().state, State::Disabled);
        assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), denied("KeyDisabled"));
        assert_eq!(told(key.probe(&context(), &wrapped.blob).await), denied("KeyDisabled"));
        assert_eq!(told(key.generate(&context()).await), denied("KeyDisabled"));
        assert_eq!(told(key.unwrap(&context(), b"rubbish").await), denied("KeyDisabled"));
        assert_eq!(key.describe().await.unwrap().state, "Disabled");
        world.store().enable("default").unwrap();
        assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await).0, Verdict::Live);
        assert_eq!(told(key.probe(&context(), &wrapped.blob).await).0, Verdict::Live);
    }
}

#[tokio::test]
async fn an_owner_without_the_secret_may_disable_with_an_editor() {
    let world = World::made();
    let key = world.key();
    let (_, wrapped) = key.generate(&context()).await.unwrap();
    let text = fs::read_to_string(world.path()).unwrap();
    fs::write(world.path(), text.replace("\"enabled\"", "\"disabled\"")).unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), denied("KeyDisabled"));
}

#[tokio::test]
async fn a_destroyed_key_is_gone_for_ever_and_its_name_stays_taken() {
    let world = World::made();
    let key = world.key();
    let (_, wrapped) = key.generate(&context()).await.unwrap();
    world.store().destroy("default").unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), denied("KeyDestroyed"));
    assert!(!fs::read_to_string(world.path()).unwrap().contains("sealed"), "the bytes have left the file");
    assert!(matches!(world.store().enable("default"), Err(KeystoreError::Destroyed { .. })));
    assert!(matches!(world.store().disable("default"), Err(KeystoreError::Destroyed { .. })));
    assert!(matches!(world.store().create("default", Protect::SecretFile), Err(KeystoreError::Exists { .. })));
    world.store().destroy("default").unwrap();
}

#[tokio::test]
async fn what_is_missing_is_a_mistake_before_it_worked_and_a_no_after() {
    let mut world = World::new();
    assert_eq!(told(world.key().generate(&context()).await), misconfigured("KeystoreNotFound"));
    world.settings.worked_before = true;
    assert_eq!(told(world.key().generate(&context()).await), denied("KeystoreNotFound"));
    world.settings.worked_before = false;

    assert!(ensure(Some(&world.path()), None, &world.settings).unwrap());
    assert!(!ensure(Some(&world.path()), None, &world.settings).unwrap(), "only once");
    let nobody = LocalKey::new(Some(&world.path()), Some("nobody"), &world.settings);
    assert_eq!(told(nobody.generate(&context()).await), misconfigured("KeyNotFound"));

    let key = world.key();
    let (_, wrapped) = key.generate(&context()).await.unwrap();
    let secret = world.path().with_extension("secret");
    fs::rename(&secret, world.folder.path().join("aside")).unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), denied("SecretNotFound"), "it has just worked");
    assert_eq!(told(world.key().unwrap(&context(), &wrapped.blob).await), misconfigured("SecretNotFound"));
    fs::rename(world.folder.path().join("aside"), &secret).unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await).0, Verdict::Live);
    fs::remove_file(world.path()).unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), denied("KeystoreNotFound"));
}

#[tokio::test]
async fn an_altered_keystore_gives_no_key() {
    let world = World::made();
    let key = world.key();
    let (_, wrapped) = key.generate(&context()).await.unwrap();
    let text = fs::read_to_string(world.path()).unwrap();
    let id = world.store().show().unwrap()[0].id.clone();
    let other_id = FileId::random().unwrap().to_string();
    let cases = [
        ("version = 1", "version = 2", "KeystoreDamaged"),
        ("[[key]]", "[[kay]]", "KeystoreDamaged"),
        (id.as_str(), "123", "KeystoreDamaged"),
        (id.as_str(), other_id.as_str(), "KeystoreDamaged"),
        ("check = \"", "check = \"AAAA", "WrongSecret"),
        ("sealed = \"", "sealed = \"AAAA", "KeystoreDamaged"),
        ("sealed = \"", "sealed = \"*", "KeystoreDamaged"),
    ];
    for (from, to, code) in cases {
        assert!(text.contains(from), "{from}");
        fs::write(world.path(), text.replace(from, to)).unwrap();
        assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), misconfigured(code), "{from} -> {to}");
        assert!(world.store().create("new", Protect::SecretFile).is_err() || code != "WrongSecret");
    }
    fs::write(world.path(), b"\xff\xfe").unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), misconfigured("KeystoreDamaged"));
    fs::write(world.path(), &text).unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await).0, Verdict::Live);

    // A folder in its place cannot be read as a keystore.
    fs::remove_file(world.path()).unwrap();
    fs::create_dir(world.path()).unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await).0, Verdict::Misconfigured);
}

#[tokio::test]
async fn a_secret_that_is_wrong_short_or_open_to_all_is_refused() {
    let world = World::made();
    let secret = world.path().with_extension("secret");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let good = fs::read(&secret).unwrap();
    assert_eq!(good.len(), 65);
    fs::write(&secret, "0".repeat(64)).unwrap();
    assert_eq!(told(world.key().generate(&context()).await), misconfigured("WrongSecret"));
    fs::write(&secret, "0".repeat(63)).unwrap();
    assert_eq!(told(world.key().generate(&context()).await), misconfigured("KeystoreDamaged"));
    fs::write(&secret, &good).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let error = world.key().generate(&context()).await.unwrap_err();
    assert_eq!(error.code, "SecretExposed");
    assert!(error.message.contains("chmod 600"), "{}", error.message);
}

#[tokio::test]
async fn a_passphrase_protects_as_well_and_disabling_needs_none() {
    let mut world = World::new();
    let file = world.folder.path().join("passphrase");
    fs::write(&file, "correct horse\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    world.settings.local_secret_file = Some(file.clone());
    world.store().create("default", Protect::Passphrase).unwrap();
    let key = world.key();
    let (secret, wrapped) = key.generate(&context()).await.unwrap();
    assert!(!world.path().with_extension("secret").exists());
    assert!(fs::read_to_string(world.path()).unwrap().contains("argon2id"));

    // Disabling without the passphrase.
    let bare = Keystore::at(Some(&world.path()), &KeySettings::default());
    bare.disable("default").unwrap();
    assert_eq!(told(key.unwrap(&context(), &wrapped.blob).await), denied("KeyDisabled"));
    bare.enable("default").unwrap();
    assert_eq!(key.unwrap(&context(), &wrapped.blob).await.unwrap().0.expose(), secret.expose());

    fs::write(&file, "wrong horse").unwrap();
    assert_eq!(told(world.key().unwrap(&context(), &wrapped.blob).await), misconfigured("WrongSecret"));
    fs::write(&file, "\n").unwrap();
    assert_eq!(told(world.key().unwrap(&context(), &wrapped.blob).await), misconfigured("NoPassphrase"));
    fs::write(&file, "correct horse").unwrap();
    assert_eq!(told(world.key().unwrap(&context(), &wrapped.blob).await).0, Verdict::Live);

    // A file that asks for a terabyte of memory is refused, not obeyed.
    let text = fs::read_to_string(world.path()).unwrap();
    fs::write(world.path(), text.replace("memory-kib = 65536", "memory-kib = 1073741824")).unwrap();
    assert_eq!(told(world.key().unwrap(&context(), &wrapped.blob).await), misconfigured("KeystoreDamaged"));
}

/// In a child of its own, because the environment is the process's.
#[test]
fn the_passphrase_may_stand_in_the_environment() {
    const CHILD: &str = "HYOKFS_TEST_PASSPHRASE_CHILD";
    let Some(path) = std::env::var_os(CHILD) else {
        let folder = tempfile::tempdir().unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "provider::local::tests::the_passphrase_may_stand_in_the_environment"])
            .env(CHILD, folder.path().join("keys"))
            .env(PASSPHRASE, "tr0ub4dor")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        let bare = Keystore::at(Some(&folder.path().join("keys")), &KeySettings::default());
        assert!(matches!(bare.create("b", Protect::Passphrase), Err(KeystoreError::NoPassphrase(_))));
        return;
    };
    let keystore = Keystore::at(Some(Path::new(&path)), &KeySettings::default());
    keystore.create("a", Protect::Passphrase).unwrap();
}

#[test]
fn concurrent_editors_lose_nothing() {
    let world = World::made();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let world = &world;
            scope.spawn(move || {
                for number in 0..5 {
                    let name = format!("k{thread}-{number}");
                    world.store().create(&name, Protect::SecretFile).unwrap();
                    world.store().disable(&name).unwrap();
                }
            });
        }
        // A reader meanwhile always sees a whole keystore.
        scope.spawn(|| (0..200).for_each(|_| assert!(!world.store().show().unwrap().is_empty())));
    });
    let keys = world.store().show().unwrap();
    assert_eq!(keys.len(), 41);
    assert_eq!(keys.iter().filter(|key| key.state == State::Disabled).count(), 40);
    let mut files: Vec<_> =
        fs::read_dir(world.path().parent().unwrap()).unwrap().map(|f| f.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["keys", "keys.lock", "keys.secret"], "no temporary file is left");
}

#[test]
fn names_are_checked_and_edits_of_nothing_say_so() {
    let world = World::new();
    assert!(matches!(world.store().disable("default"), Err(KeystoreError::Missing(_))));
    assert!(!world.path().parent().unwrap().exists(), "asking makes nothing");
    for name in ["", "a b", "a/b", "a#b", "ä", &"x".repeat(65)] {
        assert!(matches!(world.store().create(name, Protect::SecretFile), Err(KeystoreError::BadName(_))), "{name}");
    }
    world.store().create("a", Protect::SecretFile).unwrap();
    assert!(matches!(world.store().disable("b"), Err(KeystoreError::NoKey { .. })));
}

#[test]
fn an_interrupted_creation_is_taken_up_and_links_stay_links() {
    let world = World::made();
    let secret = fs::read(world.path().with_extension("secret")).unwrap();
    fs::remove_file(world.path()).unwrap();
    assert!(ensure(Some(&world.path()), None, &world.settings).unwrap());
    assert_eq!(fs::read(world.path().with_extension("secret")).unwrap(), secret);

    let link = world.folder.path().join("link");
    std::os::unix::fs::symlink(world.path(), &link).unwrap();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o640)).unwrap();
    Keystore::at(Some(&link), &world.settings).disable("default").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(world.store().show().unwrap()[0].state, State::Disabled);
    assert_eq!(fs::metadata(world.path()).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn the_default_place_follows_the_environment() {
    let at = |pairs: &'static [(&str, &str)]| {
        default_place(move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    };
    assert_eq!(at(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), Path::new("/x/hyokfs/keys"));
    assert_eq!(at(&[("HOME", "/h")]), Path::new("/h/.local/share/hyokfs/keys"));
    assert_eq!(at(&[("XDG_DATA_HOME", "relative"), ("HOME", "/h")]), Path::new("/h/.local/share/hyokfs/keys"));
    assert_eq!(at(&[("HOME", "")]), Path::new("/var/lib/hyokfs/keys"));
    assert_eq!(at(&[]), Path::new("/var/lib/hyokfs/keys"));
}
