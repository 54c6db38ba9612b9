//! The embedded keystore: a file of keys, playing the customer.
