//! A record with a second `[[key]]`, in a second region. This version uses the first alone; what matters most is that the
//! second never helps after the customer has said no.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyokfs::crypto::Secret;
use hyokfs::crypto::kdf::VolumeKeys;
use hyokfs::format::volume::RecordKey;
use hyokfs::store::Store as Ciphertext;
use hyokfs::supervisor::volume::read_record;

use crate::common::{Store, World};
use crate::denial::no_second_chance;
use crate::fake_aws::{FakeAws, What};
use crate::plain::{context, decrypt, kms};
use crate::rig;

/// A volume of the fake AWS, and its key.
pub fn volume() -> (FakeAws, String, Store) {
    let fake = FakeAws::start();
    let key = fake.world().create_key();
    let mut world = World::new();
    let url = fake.url();
    for (name, value) in [
        // In the fake, twelve digits are the root of that account.
        ("AWS_ACCESS_KEY_ID", crate::fake_aws::CUSTOMER),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", crate::fake_aws::REGION),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL", &url),
        ("HYOKFS_ENDPOINT", &url),
        ("HYOKFS_STS_ENDPOINT", &url),
    ] {
        world.set(name, value);
    }
    let path = world.path().join("store");
    world.ok(["init", "--key", &format!("awskms:///{key}"), path.to_str().unwrap()]);
    (fake, key, Store { keystore: world.path().join("none"), world, path })
}

/// Wraps the volume's secret by a second key and puts it into the record, signed as the first was.
fn add_second_key(fake: &FakeAws, store: &Store) -> String {
    let second = {
        let mut world = fake.world();
        let arn = world.create_key();
        let moved = arn.replace("eu-central-1", "eu-west-1");
        world.key(&arn).arn.clone_from(&moved);
        moved
    };
    let opened = Ciphertext::open(&store.path).unwrap();
    let mut record = read_record(&opened).unwrap();
    let context = context(&record.volume.to_string(), None);
    let first = &record.key[0];
    let arn = first.uri.trim_start_matches("awskms:///").to_owned();
    let secret = decrypt(&store.world, &arn, &context, &first.secret).unwrap();
    let wrap = |bytes: &[u8]| {
        let file = store.world.path().join("plain");
        fs::write(&file, bytes).unwrap();
        let blob = format!("fileb://{}", file.display());
        let answer = kms(
            &store.world,
            &["encrypt", "--key-id", &second, "--encryption-context", &context, "--plaintext", &blob],
        );
        fs::remove_file(&file).unwrap();
        STANDARD.decode(answer.unwrap()["CiphertextBlob"].as_str().unwrap()).unwrap()
    };
    let key = RecordKey {
        slot: 1,
        uri: format!("awskms:///{second}"),
        secret: wrap(&secret),
        canary: wrap(&[7; 32]),
        group: None,
    };
    // The control: the second key opens the volume for whoever asks it.
    assert_eq!(decrypt(&store.world, &second, &context, &key.secret).unwrap(), secret);
    record.key.push(key);
    let held = Secret::from_fn(|place| place.copy_from_slice(&secret)).unwrap();
    let keys = VolumeKeys::derive(&held, record.volume.as_bytes()).unwrap();
    record.sign(&keys).unwrap();
    opened.write_record(record.to_toml().unwrap().as_bytes()).unwrap();
    fake.world().log.clear();
    second
}

fn asked(fake: &FakeAws, key: &str) -> usize {
    fake.world().log.iter().filter(|logged| logged.resource == key).count()
}

#[test]
fn a_second_region_is_never_asked_after_a_denial() {
    let (fake, first, store) = volume();
    let second = add_second_key(&fake, &store);
    let set = |state: &str| fake.world().key(&first).state = state.to_owned();
    no_second_chance(&store, "disabled", &|| set("Disabled"), &|| set("Enabled"));
    assert!(asked(&fake, &first) > 10);
    assert_eq!(asked(&fake, &second), 0, "the second key was asked");
}

/// As docs/keys.md says: with the first key's region away, the lease runs out, although a second one would answer.
#[test]
fn a_second_region_is_not_asked_in_an_outage_either() {
    let (fake, first, store) = volume();
    let second = add_second_key(&fake, &store);
    let mount = rig::mount(&store, &["--lease", "3s"]);
    fs::write(mount.at("f"), b"secret").unwrap();
    fake.world().fail(None, None, What::Close);
    rig::wait_state(&mount, "locked");
    assert_eq!(rig::status(&mount)["cause"], "lease over");
    fake.world().faults.clear();
    rig::wait_state(&mount, "unlocked");
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"secret");
    mount.umount();
    assert!(asked(&fake, &first) > 0);
    assert_eq!(asked(&fake, &second), 0);
}
