//! STUB to be filled.
