//! The volume record and its copy: both must authenticate under the volume secret, and be of the same generation.

use super::report::{Cure, Finding, Kind};
use crate::format::volume::{Volume, VolumeRecord};
use crate::store::{RECORD, RECORD_BACKUP, Store};

/// What was found.
pub(super) struct Records {
    pub findings: Vec<Finding>,
    /// The newest authentic record's bytes.
    pub good: Option<Vec<u8>>,
}

fn read(volume: &Volume, bytes: &[u8]) -> Result<VolumeRecord, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
    let record = VolumeRecord::parse(text).map_err(|error| error.to_string())?;
    let canonical = record.canonical().map_err(|error| error.to_string())?;
    if record.volume != volume.record.volume || !volume.keys.record.verify(&[canonical.as_bytes()], &record.mac) {
        return Err("it does not authenticate: it was altered, or is another volume's".to_owned());
    }
    Ok(record)
}

/// Checks both.
pub(super) fn check(store: &Store, volume: &Volume) -> Records {
    let main = store.read_record().map_err(|error| error.to_string());
    let copy = match store.read_backup() {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err("it is missing".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let both = [(RECORD, main), (RECORD_BACKUP, copy)].map(|(name, bytes)| {
        let read = bytes.and_then(|bytes| read(volume, &bytes).map(|record| (record.generation, bytes)));
        (name, read)
    });
    let newest = both.iter().filter_map(|(_, read)| read.as_ref().ok()).max_by_key(|(generation, _)| *generation);
    let newest = newest.cloned();
    let findings = both.into_iter().filter_map(|(name, read)| {
        let what = match (read, &newest) {
            (Err(why), _) => why,
            (Ok((generation, _)), Some((newest, _))) if generation < *newest => {
                format!("it is authentic, but an older version (generation {generation}, the other is {newest})")
            }
            (Ok(_), _) => return None,
        };
        Some(Finding {
            path: name.as_bytes().to_vec(),
            name: None,
            id: None,
            kind: Kind::VolumeRecord,
            what,
            recoverable: "all of it: the other one is authentic, and --repair copies it".to_owned(),
            lost: Vec::new(),
            mended: false,
            cure: Cure::Records,
        })
    });
    Records { findings: findings.collect(), good: newest.map(|(_, bytes)| bytes) }
}
