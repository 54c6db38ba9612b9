//! The kernel's requests, decoded and answered.
