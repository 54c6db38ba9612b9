//! Wrapping and unwrapping, rotation, contexts, and what the customer's log shows.

use std::time::{Duration, Instant, SystemTime};

use hyokfs::format::VolumeId;
use hyokfs::provider::azure::blob::{Algorithm, Blob, MAX_LEN};
use hyokfs::provider::{Context, KeySettings, Verdict, azure};

use crate::fake::{Fault, HSM, KeyKind, VAULT};
use crate::rig::{Rig, file, volume};

#[tokio::test]
async fn what_the_public_key_wrapped_here_the_service_unwraps() {
    for kind in [KeyKind::Rsa(2048), KeyKind::RsaHsm(3072), KeyKind::Rsa(4096)] {
        let rig = Rig::new(kind);
        let key = rig.key().await;
        let (made, wrapped) = key.generate(&file(1)).await.unwrap();
        let again = key.wrap(&file(2), &made).await.unwrap();
        assert_eq!(rig.fake.world().count("wrapkey", 200), 0, "no call to wrap");
        assert_eq!(rig.fake.world().count("get", 200), 1, "the public key is asked for once");
        assert!(wrapped.blob.len() <= MAX_LEN);
        let (back, request_id) = key.unwrap(&file(1), &wrapped.blob).await.unwrap();
        assert_eq!(back.expose(), made.expose());
        assert!(request_id.unwrap().starts_with("fake-"));
        let (back, _) = key.unwrap(&file(2), &again.blob).await.unwrap();
        assert_eq!(back.expose(), made.expose());
        assert_ne!(made.expose(), &[0; 32]);
    }
}

#[tokio::test]
async fn wrapping_can_be_left_to_the_service() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let settings = KeySettings { azure_remote_wrap: true, ..rig.settings.clone() };
    let key = rig.connect(VAULT, &settings).await.unwrap();
    let (made, wrapped) = key.generate(&file(1)).await.unwrap();
    assert!(wrapped.request_id.is_some());
    assert_eq!(rig.fake.world().count("wrapkey", 200), 1);
    assert_eq!(rig.fake.world().count("get", 200), 0);
    assert_eq!(key.unwrap(&file(1), &wrapped.blob).await.unwrap().0.expose(), made.expose());
}

#[tokio::test]
async fn a_managed_hsm_wraps_by_the_keys_type() {
    let rig = Rig::new(KeyKind::Aes);
    let key = rig.connect(HSM, &rig.settings).await.unwrap();
    let (made, wrapped) = key.generate(&file(1)).await.unwrap();
    assert_eq!(Blob::parse(&wrapped.blob).unwrap().algorithm, Algorithm::A256Kw);
    assert_eq!(rig.fake.world().count("wrapkey", 200), 1, "AES can't be wrapped here");
    assert_eq!(key.unwrap(&file(1), &wrapped.blob).await.unwrap().0.expose(), made.expose());
    assert_eq!(key.describe().await.unwrap().kind, "oct-HSM");

    let rig = Rig::new(KeyKind::RsaHsm(2048));
    let key = rig.connect(HSM, &rig.settings).await.unwrap();
    let (made, wrapped) = key.generate(&file(1)).await.unwrap();
    assert_eq!(Blob::parse(&wrapped.blob).unwrap().algorithm, Algorithm::RsaOaep256);
    assert_eq!(key.unwrap(&file(1), &wrapped.blob).await.unwrap().0.expose(), made.expose());
}

#[tokio::test]
async fn a_key_that_cannot_wrap_is_refused_with_the_kinds_that_can() {
    let rig = Rig::new(KeyKind::Ec);
    let error = rig.key().await.generate(&file(1)).await.err().unwrap();
    assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "UnusableKey"));
    assert!(error.message.contains("create an RSA key"), "{error}");
}

#[tokio::test]
async fn a_wrapped_key_opens_only_in_its_own_context() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, wrapped) = key.generate(&file(1)).await.unwrap();
    let other_volume = Context { volume: VolumeId([9; 16]), ..file(1) };
    let other_tenant = Context { tenant: None, ..file(1) };
    for context in [file(2), volume(), other_volume, other_tenant] {
        let error = key.unwrap(&context, &wrapped.blob).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "OtherContext"));
    }
    let mut changed = wrapped.blob.clone();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    assert_eq!(key.unwrap(&file(1), &changed).await.err().unwrap().verdict, Verdict::Misconfigured);
    assert_eq!(key.unwrap(&file(1), &[]).await.err().unwrap().code, "WrappedKeyDamaged");
}

#[tokio::test]
async fn a_rotated_key_still_opens_what_the_older_version_wrapped() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let (made, old) = rig.key().await.generate(&file(1)).await.unwrap();
    let first = Blob::parse(&old.blob).unwrap().key.version;
    let second = rig.fake.world().rotate("hyok");
    let key = rig.key().await;
    let (_, new) = key.generate(&file(2)).await.unwrap();
    assert_eq!(Blob::parse(&new.blob).unwrap().key.version, second);
    assert_eq!(key.unwrap(&file(1), &old.blob).await.unwrap().0.expose(), made.expose());
    let world = rig.fake.world();
    let asked = world.log.iter().rfind(|line| line.operation == "unwrapkey").unwrap();
    assert!(asked.path.contains(&first), "{}", asked.path);
}

#[tokio::test]
async fn a_pinned_version_wraps_with_that_version() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let first = rig.fake.world().key("hyok").versions[0].id.clone();
    rig.fake.world().rotate("hyok");
    for azure_remote_wrap in [false, true] {
        let settings = KeySettings { azure_remote_wrap, ..rig.settings.clone() };
        let key = azure::connect(VAULT, "hyok", Some(&first), &settings).await.unwrap();
        let (_, wrapped) = key.generate(&file(1)).await.unwrap();
        assert_eq!(Blob::parse(&wrapped.blob).unwrap().key.version, first);
    }
}

#[tokio::test]
async fn a_key_wrapped_by_another_key_is_named() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    rig.fake.world().create_key("other", KeyKind::Rsa(2048));
    let (_, wrapped) = rig.key().await.generate(&file(1)).await.unwrap();
    let other = azure::connect(VAULT, "other", None, &rig.settings).await.unwrap();
    let error = other.unwrap(&file(1), &wrapped.blob).await.err().unwrap();
    assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "OtherKey"));
    assert!(error.message.contains(&format!("https://{VAULT}/keys/hyok/")), "{error}");
}

#[tokio::test]
async fn the_customers_log_shows_volume_and_file() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, wrapped) = key.generate(&file(0x12)).await.unwrap();
    key.unwrap(&file(0x12), &wrapped.blob).await.unwrap();
    let world = rig.fake.world();
    let line = world.log.iter().find(|line| line.operation == "unwrapkey" && line.status == 200).unwrap();
    assert_eq!(line.client_request_id, "12121212-1212-1212-1212-121212121212");
    let volume = "ab".repeat(16);
    let file = "12".repeat(16);
    assert!(line.user_agent.ends_with(&format!("(volume {volume}; file {file})")), "{}", line.user_agent);
    assert!(line.user_agent.starts_with("hyokfs/"), "{}", line.user_agent);
}

#[tokio::test]
async fn expired_and_not_yet_valid_keys_open_but_do_not_wrap() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let (made, wrapped) = rig.key().await.generate(&file(1)).await.unwrap();
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    for (not_before, expires, code) in
        [(None, Some(now - hour), "KeyExpired"), (Some(now + hour), None, "KeyNotYetValid")]
    {
        rig.fake.world().set_dates("hyok", not_before, expires);
        for azure_remote_wrap in [false, true] {
            let settings = KeySettings { azure_remote_wrap, worked_before: true, ..rig.settings.clone() };
            let key = rig.connect(VAULT, &settings).await.unwrap();
            let error = key.generate(&file(2)).await.err().unwrap();
            assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, code));
            assert_eq!(key.unwrap(&file(1), &wrapped.blob).await.unwrap().0.expose(), made.expose());
            key.probe(&file(1), &wrapped.blob).await.unwrap();
        }
    }
    assert_eq!(rig.key().await.describe().await.unwrap().state, "NotYetValid");
}

#[tokio::test]
async fn nothing_new_is_wrapped_for_a_disabled_key_and_enabling_is_seen_at_once() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    rig.fake.world().enable("hyok", false);
    let key = rig.key().await;
    let error = key.generate(&file(1)).await.err().unwrap();
    assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "KeyDisabled"));
    rig.fake.world().enable("hyok", true);
    key.generate(&file(1)).await.unwrap();
}

#[tokio::test]
async fn trouble_that_passes_is_not_noticed() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, wrapped) = key.generate(&file(1)).await.unwrap();
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Drop, Fault::Conflict("ObjectIsBeingRecovered".into())]
    {
        rig.fake.world().fail_times(fault, 2);
        key.unwrap(&file(1), &wrapped.blob).await.unwrap();
    }
    rig.fake.world().fail_times(Fault::Throttle(1), 1);
    let start = Instant::now();
    key.unwrap(&file(1), &wrapped.blob).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "the service's wish to wait is respected");
}

#[tokio::test]
async fn thirty_files_at_once_share_one_question_for_the_public_key() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let tasks: Vec<_> = (0..30)
        .map(|byte| {
            let key = key.clone();
            tokio::spawn(async move {
                let (made, wrapped) = key.generate(&file(byte)).await.unwrap();
                assert_eq!(key.unwrap(&file(byte), &wrapped.blob).await.unwrap().0.expose(), made.expose());
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(rig.fake.world().count("get", 200), 1);
    assert_eq!(rig.fake.world().count("unwrapkey", 200), 30);
    assert_eq!(rig.fake.world().count("token", 200), 1);
}

#[tokio::test]
async fn names_that_could_leave_the_path_are_refused() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    for (host, name, version) in [
        ("a/b", "k", None),
        ("u@v1.vault.azure.net", "k", None),
        ("v1.vault.azure.net:99999", "k", None),
        (VAULT, "..", None),
        (VAULT, "k?x", None),
        (VAULT, "", None),
        (VAULT, "k", Some("1/wrapkey")),
    ] {
        let error = azure::connect(host, name, version, &rig.settings).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "KeyName"), "{host} {name}");
    }
}
