//! Without hyokfs: the wrapped key in a file's header is what KMS gave, so `aws kms decrypt` opens it, and an independent
//! reader in Python reads the file with it.

use std::fs;
use std::path::Path;
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::aws::Aws;
use crate::common::{Store, World, noise};
use crate::ministack::{CUSTOMER, venv};
use crate::rig;
use crate::several::volume;

/// The encryption context as `aws` takes it.
pub fn context(volume: &str, file: Option<&str>) -> String {
    let file = file.map(|file| format!(",hyokfs:file={file}")).unwrap_or_default();
    format!("hyokfs:volume={volume}{file}")
}

/// `aws kms WORDS` in this world's environment, or what it complained of.
pub fn kms(world: &World, words: &[&str]) -> Result<Value, String> {
    let mut aws = world.command(venv().join("bin/aws"));
    let out = world.output(aws.arg("kms").args(words).args(["--output", "json"]));
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&out.stdout).unwrap())
}

/// One `aws kms decrypt`.
pub fn decrypt(world: &World, key: &str, context: &str, blob: &[u8]) -> Result<Vec<u8>, String> {
    let file = world.path().join("blob");
    fs::write(&file, blob).unwrap();
    let blob = format!("fileb://{}", file.display());
    let mut words = vec!["decrypt", "--key-id", key, "--ciphertext-blob", &blob];
    if !context.is_empty() {
        words.extend(["--encryption-context", context]);
    }
    let answer = kms(world, &words)?;
    Ok(STANDARD.decode(answer["Plaintext"].as_str().unwrap()).unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file's id and its wrapped key, read as docs/format.md says, not by our own code.
fn header(ciphertext: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(ciphertext).unwrap();
    assert_eq!(&bytes[..8], b"HYOKFS\0\x01");
    let (slots, via, slot) = (bytes[144], bytes[145], bytes[146]);
    assert_eq!((slots, via, slot), (1, 1, 0), "not one key that the customer's own key wrapped");
    let length = usize::from(u16::from_le_bytes([bytes[147], bytes[148]]));
    (hex(&bytes[32..48]), bytes[149..149 + length].to_vec())
}

/// The lines of the independent reader, with keys given by hand.
fn read_by_hand(store: &Store, keys: &Value) -> Result<String, String> {
    let file = store.world.path().join("keys.json");
    fs::write(&file, keys.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/hyokfs_reader.py");
    let mut python = Command::new(venv().join("bin/python"));
    let out = store.world.output(python.arg("-B").arg(script).arg("--keys").arg(&file).arg(&store.path));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// `world` is the environment of somebody who may use the key. `foreign` is another key of theirs.
fn a_file_is_read_with_one_decrypt(store: &Store, world: &World, key: &str, foreign: &str, checks_the_key: bool) {
    let content = noise(5, 50_000);
    let mount = rig::mount(store, &[]);
    fs::write(mount.at("file"), &content).unwrap();
    mount.umount();

    let record: toml::Table = toml::from_str(&fs::read_to_string(store.path.join("hyokfs.toml")).unwrap()).unwrap();
    let volume = record["volume"].as_str().unwrap();
    let wrapped = STANDARD.decode(record["key"][0]["secret"].as_str().unwrap()).unwrap();
    let secret = decrypt(world, key, &context(volume, None), &wrapped).unwrap();
    let (file, blob) = header(&store.only_ciphertext());
    let file_key = decrypt(world, key, &context(volume, Some(&file)), &blob).unwrap();

    let keys =
        |file_key: &[u8]| json!({"secret": STANDARD.encode(&secret), "files": {&file: STANDARD.encode(file_key)}});
    let expected = format!("file\t50000\t{}\tfile\n", hex(digest(&SHA256, &content).as_ref()));
    assert_eq!(read_by_hand(store, &keys(&file_key)).unwrap(), expected);

    // The blob is bound to its file and volume …
    let other = "0".repeat(32);
    for wrong in [context(volume, None), context(volume, Some(&other)), context(&other, Some(&file)), String::new()] {
        let said = decrypt(world, key, &wrong, &blob).unwrap_err();
        assert!(said.contains("InvalidCiphertextException"), "{wrong}: {said}");
    }
    // … and to its key.
    let right = context(volume, Some(&file));
    match decrypt(world, foreign, &right, &blob) {
        Err(said) => assert!(said.contains("IncorrectKeyException"), "{said}"),
        Ok(bytes) => {
            assert!(!checks_the_key, "another key opened it");
            assert_ne!(bytes, file_key);
            assert!(read_by_hand(store, &keys(&bytes)).unwrap_err().contains("key commitment"));
        }
    }
    // Without that file's key, nothing is read.
    let said = read_by_hand(store, &json!({"secret": STANDARD.encode(&secret), "files": {}})).unwrap_err();
    assert!(said.contains(&file), "{said}");
}

#[test]
fn the_emulator_opens_a_file_of_the_store_for_who_types_aws_kms_decrypt() {
    let aws = Aws::new();
    let mut customer = World::new();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", CUSTOMER),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL", &aws.emulator.url()),
    ] {
        customer.set(name, value);
    }
    let foreign = aws.emulator.create_key(CUSTOMER);
    // The emulator gives other bytes where KMS refuses the blob of another key.
    a_file_is_read_with_one_decrypt(&aws.store, &customer, &aws.key, &foreign, false);
}

#[test]
fn the_fake_refuses_the_blob_of_another_key() {
    let (fake, key, store) = volume();
    let foreign = fake.world().create_key();
    a_file_is_read_with_one_decrypt(&store, &store.world, &key, &foreign, true);
}
