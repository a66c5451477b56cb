//! Tests of the caches: invariants 4, 12 and 13 through the gate. To come.
