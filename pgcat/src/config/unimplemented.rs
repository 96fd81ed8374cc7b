//! Settings of PgCat that are accepted and checked, but do nothing so far.

/// Keys without effect, `*` for a name or number. A file that sets any of them (to something other
/// than `false` or `0`, which is what "no effect" amounts to) gets one warning that lists them.
pub const NOT_IMPLEMENTED: &[&str] = &[
];
