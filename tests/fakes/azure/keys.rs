//! Keys that really wrap.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::KeyPair as _;

/// What kind of key to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA of so many bits.
    Rsa(u32),
    /// RSA of so many bits in an HSM.
    RsaHsm(u32),
    /// AES-256 in a managed HSM.
    Aes,
    /// An elliptic curve key, which can't wrap.
    Ec,
}

impl KeyKind {
    pub fn kty(self) -> &'static str {
        match self {
            KeyKind::Rsa(_) => "RSA",
            KeyKind::RsaHsm(_) => "RSA-HSM",
            KeyKind::Aes => "oct-HSM",
            KeyKind::Ec => "EC",
        }
    }
}

pub enum Material {
    Rsa { private: OaepPrivateDecryptingKey, public: OaepPublicEncryptingKey, n: Vec<u8>, e: Vec<u8> },
    Aes([u8; 32]),
    Ec,
}

impl Material {
    pub fn generate(kind: KeyKind) -> Self {
        match kind {
            KeyKind::Rsa(bits) | KeyKind::RsaHsm(bits) => {
                let size = match bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    _ => panic!("no RSA of {bits} bits"),
                };
                let pair = KeyPair::generate(size).unwrap();
                let public = pair.public_key();
                let n = public.modulus().big_endian_without_leading_zero().to_vec();
                let e = public.exponent().big_endian_without_leading_zero().to_vec();
                let der = AsDer::<Pkcs8V1Der<'static>>::as_der(&pair).unwrap();
                let private = PrivateDecryptingKey::from_pkcs8(der.as_ref()).unwrap();
                let public = OaepPublicEncryptingKey::new(private.public_key()).unwrap();
                Material::Rsa { private: OaepPrivateDecryptingKey::new(private).unwrap(), public, n, e }
            }
            KeyKind::Aes => {
                let mut key = [0; 32];
                aws_lc_rs::rand::fill(&mut key).unwrap();
                Material::Aes(key)
            }
            KeyKind::Ec => Material::Ec,
        }
    }

    /// `None`: the algorithm or the value does not suit the key.
    pub fn wrap(&self, algorithm: &str, value: &[u8]) -> Option<Vec<u8>> {
        match (self, algorithm) {
            (Material::Rsa { public, .. }, "RSA-OAEP-256") => {
                let mut out = vec![0; public.ciphertext_size()];
                Some(public.encrypt(&OAEP_SHA256_MGF1SHA256, value, &mut out, None).ok()?.to_vec())
            }
            (Material::Aes(key), "A256KW") => {
                let mut out = vec![0; value.len() + 8];
                Some(AesKek::new(&AES_256, key).ok()?.wrap(value, &mut out).ok()?.to_vec())
            }
            _ => None,
        }
    }

    /// `None`: the algorithm or the value does not suit the key.
    pub fn unwrap(&self, algorithm: &str, value: &[u8]) -> Option<Vec<u8>> {
        match (self, algorithm) {
            (Material::Rsa { private, .. }, "RSA-OAEP-256") => {
                let mut out = vec![0; private.min_output_size()];
                Some(private.decrypt(&OAEP_SHA256_MGF1SHA256, value, &mut out, None).ok()?.to_vec())
            }
            (Material::Aes(key), "A256KW") => {
                let mut out = vec![0; value.len().saturating_sub(8)];
                Some(AesKek::new(&AES_256, key).ok()?.unwrap(value, &mut out).ok()?.to_vec())
            }
            _ => None,
        }
    }
}
