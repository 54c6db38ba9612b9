//! The three random 128-bit identifiers of a volume: of itself, of a file, of a directory.

use std::fmt;
use std::str::FromStr;

/// A text is not the 32 lowercase or uppercase hexadecimal digits of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 32 hexadecimal digits")]
pub struct BadId;

fn parse(text: &str) -> Result<[u8; 16], BadId> {
    if text.len() != 32 || !text.is_ascii() {
        return Err(BadId);
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).ok_or(BadId);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A new one from the process's random generator; the chance of a collision is negligible (128 bits).
            pub fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
                let mut bytes = [0; 16];
                aws_lc_rs::rand::fill(&mut bytes)?;
                Ok($name(bytes))
            }

            /// The 16 bytes as they stand on disk.
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                parse(text).map($name)
            }
        }
    };
}

id!(
    /// Names one volume. Part of every key derivation and of the context sent to the key service.
    VolumeId
);
id!(
    /// Names one file for ever, over renames and links. Salt of its page keys, and part of the key service's context.
    FileId
);
id!(
    /// Names one directory for ever. Salt of the names in it.
    DirId
);
