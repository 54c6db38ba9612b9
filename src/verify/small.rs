//! Checks link targets and extended attributes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::report::{Cure, Kind};
use super::walk::{Named, Place, Walk, unreadable};
use crate::format::small::{self, XATTR_PREFIX};

/// The longest sealed attribute: the kernel's 64 KiB and what sealing and the name add.
const VALUE_MAX: usize = 131_072;

impl Walk<'_> {
    /// Checks a symlink.
    pub fn link(&self, place: &Place) {
        self.counts.links.fetch_add(1, Ordering::Relaxed);
        let text = match rustix::fs::readlinkat(&place.dir.fd, place.os(), Vec::new()) {
            Ok(text) => text,
            Err(error) => return self.unreadable(place, &error.into()),
        };
        let opens = small::open_target(&self.volume.keys.small, self.volume.record.volume, text.to_bytes()).is_some();
        let aside = Cure::Aside { home: Vec::new() };
        match (&place.named, opens) {
            (Named::Bad(what), true) => {
                self.report(place.finding(Kind::Name, what.clone(), "its target, but not its name", aside));
            }
            (Named::Bad(_), false) => {
                let what = "neither its name nor its target is of this volume";
                self.report(place.finding(Kind::Foreign, what, "nothing", aside));
            }
            (_, false) => {
                let what = "the symlink's target was altered or is another volume's";
                self.report(place.finding(Kind::Target, what, "nothing but its name", aside));
            }
            (_, true) => {}
        }
    }

    /// Checks the extended attributes of an open file or directory.
    pub fn attributes(&self, place: &Place, fd: impl AsFd) {
        let keys = match attribute_keys(&fd) {
            Ok(keys) => keys,
            Err(error) => {
                let mut finding = unreadable(place, &error);
                finding.what = format!("its extended attributes cannot be listed: {error}");
                return self.report(finding);
            }
        };
        for key in keys {
            self.counts.attributes.fetch_add(1, Ordering::Relaxed);
            let what = match fetch(&fd, &key) {
                Err(error) => format!("cannot be read: {error}"),
                Ok(sealed) => match small::open_xattr(&self.volume.keys.small, self.volume.record.volume, &sealed) {
                    None => "does not authenticate".to_owned(),
                    Some((inner, _)) => {
                        if small::xattr_key(&self.volume.keys.names, &inner).is_ok_and(|own| key == *own) {
                            continue;
                        }
                        "stands under another one's name".to_owned()
                    }
                },
            };
            let what = format!("the extended attribute {} {what}", key.to_string_lossy());
            let left = "everything but this attribute";
            self.report(place.finding(Kind::Attribute, what, left, Cure::Attribute(key)));
        }
    }
}

fn attribute_keys(fd: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut size = 1024;
    loop {
        let mut list = vec![0; size];
        match rustix::fs::flistxattr(&fd, &mut list[..]) {
            Ok(length) => {
                list.truncate(length);
                let names = list.split(|byte| *byte == 0).filter(|name| name.starts_with(XATTR_PREFIX.as_bytes()));
                return Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect());
            }
            Err(Errno::RANGE) if size < VALUE_MAX => size *= 4,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The store's value of an attribute.
pub(super) fn fetch(fd: impl AsFd, key: &OsStr) -> io::Result<Vec<u8>> {
    let mut size = 1024;
    loop {
        let mut value = vec![0; size];
        match rustix::fs::fgetxattr(&fd, key, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(Errno::RANGE) if size < VALUE_MAX => size *= 4,
            Err(error) => return Err(error.into()),
        }
    }
}
