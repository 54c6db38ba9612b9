//! How many calls a second a customer's key takes, as far as its name and its wrapped keys tell.
//!
//! The defaults leave most of the quota to others, for it is shared: on AWS by every key of the account in the region,
//! on Azure by every key of the vault. docs/keys.md says how they were chosen and names the pages.

use crate::provider::KeyUri;

/// Calls per second, and how many may come at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Calls per second in the long run; 0: as many as come.
    pub per_second: u32,
    /// Calls at once after a pause. In any span of `t` seconds there are at most `burst + t × per_second`.
    pub burst: u32,
}

/// What a ciphertext of AES key wrap, RSA-2048 and RSA-3072 may be long at most, names beside it left out.
const AES: usize = 100;
const RSA_2048: usize = 320;
const RSA_3072: usize = 448;
/// What a blob of the Azure provider has beside host, name and ciphertext.
const AZURE_FRAME: usize = 83;

impl Limits {
    /// For the key `uri`, of whose wrapped keys one is `wrapped` bytes long; `chosen` are the calls per second that the
    /// operator allows.
    pub fn of(uri: &KeyUri, wrapped: usize, chosen: Option<u32>) -> Limits {
        let (per_second, seconds) = match uri {
            KeyUri::Local { .. } => (0, 1),
            // The lowest default quota of a region is 10,000 calls a second: 6,000 in the worst second, then 2,000.
            KeyUri::AwsKms { .. } => (2_000, 2),
            KeyUri::AzureKeyVault { host, name, .. } => {
                let ciphertext = wrapped.saturating_sub(AZURE_FRAME + host.len() + name.len());
                match host.contains(".managedhsm.") {
                    // Half of what one instance does (2,200 with AES; 1,100 and 160 with RSA-2048 and RSA-4096).
                    true if ciphertext <= AES => (1_100, 1),
                    true if ciphertext <= RSA_2048 => (550, 1),
                    true => (80, 1),
                    // Half of the vault's limit for keys in HSMs (2,000, 500 and 250 in 10 seconds), with a burst that
                    // leaves a quarter of it in any 10 seconds.
                    false if ciphertext <= RSA_2048 => (100, 5),
                    false if ciphertext <= RSA_3072 => (25, 5),
                    false => (12, 5),
                }
            }
        };
        let per_second = chosen.unwrap_or(per_second);
        Limits { per_second, burst: per_second.saturating_mul(seconds).max(1) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(uri: &str, wrapped: usize, chosen: Option<u32>) -> (u32, u32) {
        let Limits { per_second, burst } = Limits::of(&uri.parse().unwrap(), wrapped, chosen);
        (per_second, burst)
    }

    #[test]
    fn every_kind_of_key_stays_below_its_service_s_limit() {
        let aws = "awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd";
        assert_eq!(of(aws, 184, None), (2_000, 4_000));
        assert_eq!(of(aws, 184, Some(10)), (10, 20));
        assert_eq!(of("local:/k", 89, None).0, 0);
        let blob = |host: &str, ciphertext| AZURE_FRAME + host.len() + "hyok".len() + ciphertext;
        // (calls in 10 seconds that the vault allows, length of a ciphertext)
        let vault = "acme.vault.azure.net";
        for (limit, ciphertext) in [(2_000, 256), (500, 384), (250, 512)] {
            let (rate, burst) = of(&format!("azurekeyvault://{vault}/keys/hyok"), blob(vault, ciphertext), None);
            assert!(10 * rate + burst <= limit * 3 / 4 && 10 * rate + burst > limit / 2, "{rate} {burst} of {limit}");
        }
        let hsm = "acme.managedhsm.azure.net";
        for (limit, ciphertext) in [(2_200, 40), (1_100, 256), (160, 384), (160, 512)] {
            let (rate, _) = of(&format!("azurekeyvault://{hsm}/keys/hyok"), blob(hsm, ciphertext), None);
            assert_eq!(rate, limit / 2);
        }
        assert_eq!(of(&format!("azurekeyvault://{vault}/keys/hyok"), 0, Some(160)), (160, 800));
    }
}
