//! Key slots: each holds the file's key, wrapped in one way, or the group key that wraps it.
//!
//! ```text
//! count 1 | count × { via 1 | 1 provider: slot number 1
//!                           | 2 group: group id 16
//!                           | 3 group key: slot number 1, group id 16 | length 2 | wrapped }
//! ```
//! A file under a directory's group key has both a slot "group" and a slot "group key" of the same id, so that it can be
//! opened wherever it is moved, linked or restored to.

/// The longest wrapped key, in bytes: RSA-4096 (512) with its frame and the key's full name.
pub const MAX_WRAPPED: usize = 700;

/// Which key wrapped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// The customer key in the volume record's slot of this number.
    Provider(u8),
    /// The group key of this id.
    Group([u8; 16]),
    /// What is wrapped is the group key of this id itself, by the customer key in the volume record's slot of this number.
    GroupKey {
        /// The number of the customer key's slot.
        slot: u8,
        /// The group's id.
        group: [u8; 16],
    },
}

/// One wrapping of a file's key, or of the group key that wraps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// Which key wrapped it.
    pub via: Via,
    /// The wrapped key, at most [`MAX_WRAPPED`] bytes.
    pub wrapped: Vec<u8>,
}

const PROVIDER: u8 = 1;
const GROUP: u8 = 2;
const GROUP_KEY: u8 = 3;

/// The slots' bytes; `None` if there are more than 255 or one is too long.
pub fn encode(slots: &[KeySlot]) -> Option<Vec<u8>> {
    let mut out = vec![u8::try_from(slots.len()).ok()?];
    for slot in slots {
        match slot.via {
            Via::Provider(number) => out.extend_from_slice(&[PROVIDER, number]),
            Via::Group(id) => {
                out.push(GROUP);
                out.extend_from_slice(&id);
            }
            Via::GroupKey { slot, group } => {
                out.extend_from_slice(&[GROUP_KEY, slot]);
                out.extend_from_slice(&group);
            }
        }
        if slot.wrapped.is_empty() || slot.wrapped.len() > MAX_WRAPPED {
            return None;
        }
        out.extend_from_slice(&u16::try_from(slot.wrapped.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&slot.wrapped);
    }
    Some(out)
}

/// The slots and how many bytes they took; `None` for anything that [`encode`] does not write.
pub fn decode(bytes: &[u8]) -> Option<(Vec<KeySlot>, usize)> {
    let mut rest = bytes;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    let count = take(1)?[0];
    let mut slots = Vec::with_capacity(usize::from(count).min(8));
    for _ in 0..count {
        let via = match take(1)?[0] {
            PROVIDER => Via::Provider(take(1)?[0]),
            GROUP => Via::Group(take(16)?.try_into().ok()?),
            GROUP_KEY => Via::GroupKey { slot: take(1)?[0], group: take(16)?.try_into().ok()? },
            _ => return None,
        };
        let length = usize::from(u16::from_le_bytes(take(2)?.try_into().ok()?));
        if length == 0 || length > MAX_WRAPPED {
            return None;
        }
        slots.push(KeySlot { via, wrapped: take(length)?.to_vec() });
    }
    let used = bytes.len() - rest.len();
    Some((slots, used))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{KeySlot, Via, decode, encode};

    fn slot() -> impl Strategy<Value = KeySlot> {
        let via = prop_oneof![
            any::<u8>().prop_map(Via::Provider),
            any::<[u8; 16]>().prop_map(Via::Group),
            any::<(u8, [u8; 16])>().prop_map(|(slot, group)| Via::GroupKey { slot, group }),
        ];
        (via, prop::collection::vec(any::<u8>(), 1..300)).prop_map(|(via, wrapped)| KeySlot { via, wrapped })
    }

    proptest! {
        #[test]
        fn slots_come_back(slots in prop::collection::vec(slot(), 0..4), after in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = encode(&slots).unwrap();
            let length = bytes.len();
            bytes.extend_from_slice(&after);
            prop_assert_eq!(decode(&bytes), Some((slots, length)));
            if length > 1 {
                prop_assert_eq!(decode(&bytes[..length - 1]), None);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some((slots, used)) = decode(&bytes) {
                prop_assert_eq!(encode(&slots).unwrap(), &bytes[..used]);
            }
        }
    }

    #[test]
    fn empty_and_overlong_keys_are_refused() {
        assert!(encode(&[KeySlot { via: Via::Provider(0), wrapped: vec![] }]).is_none());
        assert!(encode(&[KeySlot { via: Via::Provider(0), wrapped: vec![0; 701] }]).is_none());
    }
}
