//! `hyokfs verify`.
