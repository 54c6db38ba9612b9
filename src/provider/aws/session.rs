//! Credentials: the node's own, then one role after the other up to the customer's.
//!
//! Ordinary calls share one session that is renewed before it ends. The probe always assumes the roles anew, because
//! a session outlives the trust that gave it (STS: "issued credentials stay valid until they expire"). STS is called
//! here and not inside the KMS client, so that its refusals keep their code.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_kms::config::{ConfigBag, Region, ResolveCachedIdentity, RuntimeComponents, StalledStreamProtectionConfig};
use aws_sdk_sts::config::Builder as StsBuilder;
use aws_smithy_runtime_api::client::identity::{Identity, IdentityFuture, ResolveIdentity, SharedIdentityResolver};
use aws_smithy_types::retry::RetryConfig;

use super::super::KeySettings;
use super::evidence::{Evidence, Kind, Source};
use crate::format::VolumeId;

/// Length of a session, seconds: the shortest that STS gives.
const SESSION_SECONDS: i32 = 900;
/// Renew when less than this is left.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// With less than this left, credentials count as expired: the clocks may differ.
const UNSAFE_BEFORE: Duration = Duration::from_secs(20);
/// Pause after a renewal that failed while the old session is still good.
const RENEW_PAUSE: Duration = Duration::from_secs(15);
/// A renewal ahead of time may hold up a call no longer than this.
const RENEW_PATIENCE: Duration = Duration::from_secs(1);
/// Longest session name that STS takes.
const SESSION_NAME_MAX: usize = 64;

/// The session name that the customer reads in CloudTrail: which node, which volume. At most 64 characters.
pub fn session_name(node: &str, volume: &VolumeId) -> String {
    let volume = volume.to_string();
    let room = SESSION_NAME_MAX - "hyokfs--".len() - volume.len();
    let node: String = clean(node).chars().take(room).collect();
    format!("hyokfs-{node}-{volume}")
}

/// Only what STS allows in a session name.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "+=,.@-_".contains(c) { c } else { '-' }).collect()
}

/// One place for credentials; the KMS client reads it at every call without waiting.
#[derive(Clone, Default)]
pub(super) struct Slot {
    held: Arc<Mutex<Option<Held>>>,
}

struct Held {
    credentials: Credentials,
    /// The same, as the SDK wants it; made once instead of at every call.
    identity: Identity,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, credentials: Option<Credentials>) {
        *self.lock() = credentials.map(|credentials| Held { identity: credentials.clone().into(), credentials });
    }

    pub(super) fn take(&self) -> Option<Credentials> {
        self.lock().take().map(|held| held.credentials)
    }

    /// What is held and still good for `margin`.
    fn good_for(&self, margin: Duration) -> Option<Credentials> {
        let held = self.lock();
        let credentials = held.as_ref().map(|held| &held.credentials)?;
        outlasts(credentials, margin).then(|| credentials.clone())
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl ProvideCredentials for Slot {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let held = self.lock().as_ref().map(|held| held.credentials.clone());
        future::ProvideCredentials::ready(held.map_or_else(no_session, Ok))
    }
}

/// The slot is the SDK's identity cache as well: what is put here is used by the next call, and nothing older.
impl ResolveCachedIdentity for Slot {
    fn resolve_cached_identity<'a>(
        &'a self,
        resolver: SharedIdentityResolver,
        runtime_components: &'a RuntimeComponents,
        config_bag: &'a ConfigBag,
    ) -> IdentityFuture<'a> {
        match self.lock().as_ref() {
            Some(held) => IdentityFuture::ready(Ok(held.identity.clone())),
            // Empty: the resolver (this slot again) says so in its own words.
            None => IdentityFuture::new(async move { resolver.resolve_identity(runtime_components, config_bag).await }),
        }
    }
}

fn no_session() -> provider::Result {
    Err(CredentialsError::not_loaded("the session was dropped; the next call opens a new one"))
}

fn outlasts(credentials: &Credentials, margin: Duration) -> bool {
    credentials.expiry().is_none_or(|end| end > SystemTime::now() + margin)
}

/// Gives credentials that may use the customer's key.
pub(super) struct Sessions {
    node: SharedCredentialsProvider,
    sts: StsBuilder,
    roles: Vec<String>,
    external_id: Option<String>,
    name: String,
    /// The node's own credentials, kept while they are good.
    own: Slot,
    /// The session that ordinary calls use.
    pub(super) shared: Slot,
    renewing: tokio::sync::Mutex<Option<Instant>>,
}

impl Sessions {
    /// `base` has the region, the HTTP client and the node's credentials.
    pub(super) fn new(base: &SdkConfig, node: SharedCredentialsProvider, region: &str, settings: &KeySettings) -> Self {
        let region = settings.sts_region.clone().unwrap_or_else(|| region.to_owned());
        let mut sts = StsBuilder::from(base)
            .region(Region::new(region))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if settings.sts_endpoint.is_some() {
            sts.set_endpoint_url(settings.sts_endpoint.clone());
        }
        let mut name = clean(settings.session_name.as_deref().unwrap_or_default());
        if name.len() < 2 {
            let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            name = format!("hyokfs-{}", clean(node.trim()));
        }
        name.truncate(SESSION_NAME_MAX);
        Sessions {
            node,
            sts,
            roles: settings.assume_role.clone(),
            external_id: settings.external_id.clone(),
            name,
            own: Slot::default(),
            shared: Slot::default(),
            renewing: tokio::sync::Mutex::new(None),
        }
    }

    /// The customer's role, where one is assumed.
    pub(super) fn customer_role(&self) -> Option<&str> {
        self.roles.last().map(String::as_str)
    }

    /// Makes sure that the shared session is good. Costs nothing while it is.
    pub(super) async fn ensure(&self) -> Result<(), Evidence> {
        if self.shared.good_for(RENEW_BEFORE).is_some() {
            return Ok(());
        }
        let still_good = self.shared.good_for(UNSAFE_BEFORE).is_some();
        let mut pause_until = match (still_good, self.renewing.try_lock()) {
            (_, Ok(guard)) => guard,
            // Someone renews already, and the old session serves until it is done.
            (true, Err(_)) => return Ok(()),
            (false, Err(_)) => self.renewing.lock().await,
        };
        if self.shared.good_for(RENEW_BEFORE).is_some() {
            return Ok(());
        }
        if still_good && pause_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let obtained = if still_good {
            let patience = tokio::time::timeout(RENEW_PATIENCE, self.obtain(false)).await;
            patience.unwrap_or_else(|_| Err(Evidence::new(Source::Credentials, Kind::Timeout, "renewal")))
        } else {
            self.obtain(false).await
        };
        match obtained {
            Ok(credentials) => {
                *pause_until = None;
                self.shared.put(Some(credentials));
                Ok(())
            }
            // The probe tells of a trust that was taken away; what was granted before stays usable until it ends.
            Err(_) if still_good => {
                *pause_until = Some(Instant::now() + RENEW_PAUSE);
                Ok(())
            }
            Err(evidence) => Err(evidence),
        }
    }

    /// Drops what is held, after the service called it expired or unknown.
    pub(super) fn forget(&self) {
        self.shared.put(None);
        self.own.put(None);
    }

    /// Credentials that no cache had. Where roles are assumed, they are assumed anew from the node's own credentials;
    /// where none is, the node's own are loaded anew (a web identity is the customer's role then).
    pub(super) async fn fresh(&self) -> Result<Credentials, Evidence> {
        self.obtain(true).await
    }

    /// Like [`Sessions::fresh`], but with another external id for the last role: the check that it is asked for.
    pub(super) async fn fresh_with(&self, external_id: Option<&str>) -> Result<Credentials, Evidence> {
        self.climb(external_id).await
    }

    /// The ARN of the node's own identity, by STS; needs no permission.
    pub(super) async fn identity(&self) -> Result<String, Evidence> {
        let client =
            aws_sdk_sts::Client::from_conf(self.sts.clone().credentials_provider(self.own(false).await?).build());
        let answer =
            client.get_caller_identity().send().await.map_err(|error| Evidence::of(Source::Credentials, &error))?;
        answer.arn.ok_or_else(|| {
            Evidence::new(Source::OwnRole, Kind::Unreadable, "GetCallerIdentity answered without an ARN")
        })
    }

    async fn obtain(&self, anew: bool) -> Result<Credentials, Evidence> {
        if self.roles.is_empty() {
            return self.own(anew).await;
        }
        match self.climb(self.external_id.as_deref()).await {
            // Ours were cached and are no longer good: once more with new ones.
            Err(evidence) if evidence.is_stale_session() => {
                self.own.put(None);
                self.climb(self.external_id.as_deref()).await
            }
            outcome => outcome,
        }
    }

    async fn own(&self, anew: bool) -> Result<Credentials, Evidence> {
        if !anew && let Some(held) = self.own.good_for(RENEW_BEFORE) {
            return Ok(held);
        }
        let last = if self.roles.is_empty() { Source::CustomerRole } else { Source::OwnRole };
        match self.node.provide_credentials().await {
            Ok(credentials) => {
                self.own.put(Some(credentials.clone()));
                Ok(credentials)
            }
            Err(error) => match self.own.good_for(UNSAFE_BEFORE) {
                Some(held) if !anew => Ok(held),
                _ => Err(Evidence::of_credentials(last, &error)),
            },
        }
    }

    /// Assumes every role in order.
    async fn climb(&self, external_id: Option<&str>) -> Result<Credentials, Evidence> {
        let mut credentials = self.own(false).await?;
        for (index, role) in self.roles.iter().enumerate() {
            let last = index + 1 == self.roles.len();
            let source = if last { Source::CustomerRole } else { Source::OwnRole };
            let external_id = external_id.filter(|_| last);
            credentials = self.assume(source, role, external_id, credentials).await?;
        }
        Ok(credentials)
    }

    async fn assume(
        &self,
        source: Source,
        role: &str,
        external_id: Option<&str>,
        with: Credentials,
    ) -> Result<Credentials, Evidence> {
        let client = aws_sdk_sts::Client::from_conf(self.sts.clone().credentials_provider(with).build());
        let answer = client
            .assume_role()
            .role_arn(role)
            .role_session_name(&self.name)
            .duration_seconds(SESSION_SECONDS)
            .set_external_id(external_id.map(str::to_owned))
            .send()
            .await
            .map_err(|error| Evidence::of(source, &error))?;
        let Some(given) = answer.credentials else {
            return Err(Evidence::new(source, Kind::Unreadable, "STS answered without credentials"));
        };
        let end = SystemTime::try_from(given.expiration)
            .map_err(|_| Evidence::new(source, Kind::Unreadable, "STS gave a session without a readable end"))?;
        Ok(Credentials::new(
            given.access_key_id,
            given.secret_access_key,
            Some(given.session_token),
            Some(end),
            "hyokfs",
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_session_name_carries_node_and_volume_and_fits() {
        let volume: VolumeId = "00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(session_name("node 1", &volume), "hyokfs-node-1-00112233445566778899aabbccddeeff");
        let long = session_name(&"ñ".repeat(200), &volume);
        assert_eq!(long.len(), 64);
        assert!(long.ends_with("-00112233445566778899aabbccddeeff"));
    }

    #[test]
    fn credentials_near_their_end_are_not_good() {
        let until =
            |seconds| Credentials::new("a", "b", None, Some(SystemTime::now() + Duration::from_secs(seconds)), "test");
        assert!(outlasts(&until(900), RENEW_BEFORE));
        assert!(!outlasts(&until(200), RENEW_BEFORE));
        assert!(outlasts(&until(200), UNSAFE_BEFORE));
        assert!(!outlasts(&until(10), UNSAFE_BEFORE));
        assert!(outlasts(&Credentials::new("a", "b", None, None, "test"), RENEW_BEFORE));
    }
}
