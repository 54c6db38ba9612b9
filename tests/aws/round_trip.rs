//! Keys come back as they went, bound to their context and their key; a plain SDK opens what hyokfs stores.

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::primitives::Blob;
use hyokfs::crypto::Secret;
use hyokfs::format::{FileId, VolumeId};
use hyokfs::provider::{Context, KeySettings, Verdict, aws};

use super::fake::{FakeAws, VENDOR, What};
use super::node::{self, FILE, VOLUME, file, node_test, plain, volume};

node_test! {
    async fn a_generated_key_comes_back_by_unwrap() {
        let (_fake, _arn, provider) = plain(|_| {}).await;
        let (key, wrapped) = provider.generate(&file()).await.unwrap();
        assert!(wrapped.request_id.is_some());
        assert!(wrapped.blob.len() <= 700, "a key slot holds 700 bytes");
        let (again, request) = provider.unwrap(&file(), &wrapped.blob).await.unwrap();
        assert_eq!(again.expose(), key.expose());
        assert!(request.is_some());
        let (other, _) = provider.generate(&file()).await.unwrap();
        assert_ne!(other.expose(), key.expose());
    }

    async fn a_wrapped_key_comes_back_by_unwrap() {
        let (_fake, _arn, provider) = plain(|_| {}).await;
        let key = Secret::from_fn(|key| *key = [7; 32]).unwrap();
        let wrapped = provider.wrap(&volume(), &key).await.unwrap();
        let (again, _) = provider.unwrap(&volume(), &wrapped.blob).await.unwrap();
        assert_eq!(again.expose(), &[7; 32]);
        assert!(!wrapped.blob.windows(32).any(|window| window == [7; 32]), "the blob must not hold the key");
        provider.probe(&volume(), &wrapped.blob).await.unwrap().expect("a request id");
    }

    async fn a_key_is_bound_to_volume_file_and_tenant() {
        let (_fake, _arn, provider) = plain(|_| {}).await;
        let (_, wrapped) = provider.generate(&file()).await.unwrap();
        let others = [
            volume(),
            Context { tenant: None, ..file() },
            Context { tenant: Some("rival"), ..file() },
            Context { file: None, ..file() },
            Context { file: Some(FileId([1; 16])), ..file() },
            Context { volume: VolumeId([1; 16]), ..file() },
        ];
        for other in others {
            let error = provider.unwrap(&other, &wrapped.blob).await.err().unwrap();
            assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "InvalidCiphertextException"));
        }
        let mut torn = wrapped.blob.clone();
        *torn.last_mut().unwrap() ^= 1;
        assert_eq!(provider.unwrap(&file(), &torn).await.err().unwrap().code, "InvalidCiphertextException");
        provider.unwrap(&file(), &wrapped.blob).await.unwrap();
    }

    async fn a_blob_of_another_key_is_named_as_such() {
        let (fake, _arn, provider) = plain(|_| {}).await;
        let second = fake.world().create_key_in(VENDOR);
        let second = aws::connect(&second, &node::settings(&fake)).await.unwrap();
        let (_, wrapped) = second.generate(&volume()).await.unwrap();
        let error = provider.unwrap(&volume(), &wrapped.blob).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "IncorrectKeyException"));
    }

    async fn every_call_names_the_key_and_the_context() {
        let (fake, arn, provider) = plain(|_| {}).await;
        let (key, wrapped) = provider.generate(&file()).await.unwrap();
        provider.wrap(&file(), &key).await.unwrap();
        provider.unwrap(&file(), &wrapped.blob).await.unwrap();
        provider.probe(&file(), &wrapped.blob).await.unwrap();
        let world = fake.world();
        let seen: Vec<&str> = world.log.iter().map(|logged| logged.operation.as_str()).collect();
        assert_eq!(seen, ["GenerateDataKey", "Encrypt", "Decrypt", "Decrypt"]);
        for logged in &world.log {
            assert_eq!(logged.resource, arn);
            let context: Vec<(&str, &str)> = logged.context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(context, [("hyokfs:file", FILE), ("hyokfs:tenant", "acme"), ("hyokfs:volume", VOLUME)]);
        }
    }

    async fn a_plain_sdk_opens_what_hyokfs_stores() {
        let (fake, arn, provider) = plain(|_| {}).await;
        let (key, wrapped) = provider.generate(&file()).await.unwrap();
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .endpoint_url(fake.url())
            .credentials_provider(Credentials::new(VENDOR, "test", None, None, "test"))
            .build();
        let client = aws_sdk_kms::Client::from_conf(config);
        let opened = client
            .decrypt()
            .key_id(arn)
            .ciphertext_blob(Blob::new(wrapped.blob.clone()))
            .encryption_context("hyokfs:volume", VOLUME)
            .encryption_context("hyokfs:file", FILE)
            .encryption_context("hyokfs:tenant", "acme")
            .send()
            .await
            .unwrap();
        assert_eq!(opened.plaintext().unwrap().as_ref(), key.expose());
        let without = client.decrypt().ciphertext_blob(Blob::new(wrapped.blob)).send().await.unwrap_err();
        assert!(without.into_service_error().is_invalid_ciphertext_exception());
    }

    async fn a_key_of_another_length_is_no_key_of_ours() {
        let (fake, arn, provider) = plain(|_| {}).await;
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .endpoint_url(fake.url())
            .credentials_provider(Credentials::new(VENDOR, "test", None, None, "test"))
            .build();
        let client = aws_sdk_kms::Client::from_conf(config);
        let answer = client.encrypt().key_id(arn).plaintext(Blob::new([1; 16])).encryption_context("hyokfs:volume", VOLUME);
        let blob = answer.send().await.unwrap().ciphertext_blob.unwrap().into_inner();
        let error = provider.unwrap(&volume(), &blob).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "WrongLength"));
    }

    async fn describe_tells_state_and_kind() {
        let (fake, arn, provider) = plain(|_| {}).await;
        let info = provider.describe().await.unwrap();
        assert_eq!((info.id.as_str(), info.state.as_str(), info.kind.as_str()), (arn.as_str(), "Enabled", "SYMMETRIC_DEFAULT"));
        fake.world().key(&arn).state = "Disabled".to_owned();
        assert_eq!(provider.describe().await.unwrap().state, "Disabled");
    }

    async fn a_private_authority_is_trusted_only_when_named() {
        let (fake, certificate) = FakeAws::start_tls();
        let arn = fake.world().create_key_in(VENDOR);
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, certificate).unwrap();
        let settings = KeySettings { ca_file: Some(ca), ..node::settings(&fake) };
        aws::connect(&arn, &settings).await.unwrap().generate(&volume()).await.unwrap();
        let settings = KeySettings { ca_file: None, ..settings };
        let error = aws::connect(&arn, &settings).await.unwrap().generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "ConnectionFailed"));
        assert!(error.message.contains("--ca-file"), "{error}");
    }

    async fn settings_that_cannot_work_are_refused_before_any_call() {
        let (fake, arn, _provider) = plain(|_| {}).await;
        let endpoint = KeySettings { endpoint: Some("http://kms.example.com".to_owned()), ..node::settings(&fake) };
        assert_eq!(aws::connect(&arn, &endpoint).await.err().unwrap().code, "BadEndpoint");
        let sts = KeySettings { sts_endpoint: Some("ftp://x".to_owned()), ..node::settings(&fake) };
        assert_eq!(aws::connect(&arn, &sts).await.err().unwrap().code, "BadEndpoint");
        let bad = aws::connect("arn:aws:kms:eu-central-1:222222222222:alias/x", &node::settings(&fake)).await.err().unwrap();
        assert_eq!((bad.verdict, bad.code.as_str()), (Verdict::Misconfigured, "InvalidArn"));
        assert!(fake.world().log.is_empty());
    }

    async fn a_passing_failure_is_tried_again_within_the_deadline() {
        let (fake, _arn, provider) = plain(|_| {}).await;
        fake.world().fail(Some("GenerateDataKey"), Some(2), What::error(500, "KMSInternalException", "oops"));
        provider.generate(&volume()).await.unwrap();
        assert_eq!(fake.world().count("GenerateDataKey"), 3);
        fake.world().fail(Some("GenerateDataKey"), None, What::error(400, "ThrottlingException", "Rate exceeded"));
        assert_eq!(provider.generate(&volume()).await.err().unwrap().code, "ThrottlingException");
        assert_eq!(fake.world().count("GenerateDataKey"), 6, "three tries, no more");
    }

    async fn an_answer_that_says_no_is_not_asked_twice() {
        let (fake, arn, provider) = plain(|_| {}).await;
        provider.generate(&volume()).await.unwrap();
        fake.world().key(&arn).state = "Disabled".to_owned();
        provider.generate(&volume()).await.err().unwrap();
        assert_eq!(fake.world().count("GenerateDataKey"), 2);
    }

    async fn the_deadline_holds_when_nothing_answers() {
        let (fake, _arn, provider) = plain(|settings| settings.call_deadline_ms = 400).await;
        fake.world().fail(None, None, What::Hang(std::time::Duration::from_secs(20)));
        let began = std::time::Instant::now();
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "Timeout"));
        let took = began.elapsed();
        assert!(took >= std::time::Duration::from_millis(350) && took < std::time::Duration::from_secs(5), "{took:?}");
    }

    async fn grant_tokens_are_sent_and_dropped_when_kms_no_longer_knows_them() {
        let (fake, _arn, provider) = plain(|settings| settings.grant_tokens = vec!["token-a".to_owned()]).await;
        fake.world().grant_tokens = vec!["token-a".to_owned()];
        provider.generate(&volume()).await.unwrap();
        assert_eq!(fake.world().log[0].request["GrantTokens"][0], "token-a");
        fake.world().grant_tokens.clear();
        provider.generate(&volume()).await.unwrap();
        provider.generate(&volume()).await.unwrap();
        let world = fake.world();
        let outcomes: Vec<&str> = world.log.iter().map(|logged| logged.outcome.as_str()).collect();
        assert_eq!(outcomes, ["ok", "InvalidGrantTokenException", "ok", "ok"]);
    }
}
