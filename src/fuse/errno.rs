//! Every error of the filesystem, and the one errno that a program sees of it.

use fuser::Errno;

use crate::fs::FsError;
use crate::keyring::KeyError;

/// The errno of an error. The match has no default, so that a new error cannot be forgotten here.
pub fn errno(error: &FsError) -> Errno {
    let code = match error {
        // Every operation on a locked volume, and every file whose key the customer does not give.
        FsError::Locked => libc::ENOKEY,
        FsError::NoKey(error) => key(error),
        FsError::NotFound => libc::ENOENT,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
        FsError::TooBig => libc::EFBIG,
        FsError::Crypto => libc::ENOMEM,
        FsError::Damaged { .. } | FsError::Unfinished => {
            tracing::warn!("{error}");
            libc::EIO
        }
    };
    Errno::from_i32(code)
}

fn key(error: &KeyError) -> i32 {
    match error {
        KeyError::Locked => libc::ENOKEY,
        KeyError::Denied(_) => {
            tracing::warn!("{error}");
            libc::ENOKEY
        }
        // The key service may answer the next time; a program that tries again does right.
        KeyError::Unreachable(_) => {
            tracing::warn!("{error}");
            libc::EAGAIN
        }
        KeyError::Misconfigured(_) | KeyError::Damaged(_) => {
            tracing::warn!("{error}");
            libc::EIO
        }
        KeyError::ArenaFull(_) => {
            tracing::error!("{error}");
            libc::ENOMEM
        }
    }
}

#[cfg(test)]
mod tests {
    use super::errno;
    use crate::fs::FsError;
    use crate::keyring::KeyError;

    #[test]
    fn locked_denied_and_damaged_look_different_to_programs() {
        for (error, code) in [
            (FsError::Locked, libc::ENOKEY),
            (FsError::NoKey(KeyError::Locked), libc::ENOKEY),
            (FsError::NotFound, libc::ENOENT),
            (FsError::Unfinished, libc::EIO),
            (FsError::Io(std::io::Error::from_raw_os_error(libc::ENOSPC)), libc::ENOSPC),
            (FsError::Io(std::io::Error::other("no number")), libc::EIO),
        ] {
            assert_eq!(i32::from(errno(&error)), code, "{error}");
        }
    }
}
