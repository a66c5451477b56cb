//! Denial bodies: RFC 9457 problem documents. STUB to be filled.
