//! From a sharding key to a shard.

use sha1::{Digest as _, Sha1};

use crate::config::model::ShardingFunction;

impl ShardingFunction {
    /// The shard, of `shards`, that a key belongs to.
    pub fn shard(self, key: i64, shards: usize) -> usize {
        let hash = match self {
            Self::PgBigintHash => partition_hash(key),
            Self::Sha1 => sha1(key),
        };
        // Less than `shards`, so it fits.
        (hash % shards as u64) as usize
    }
}

/// PostgreSQL's hash of a row for `PARTITION BY HASH (bigint)`: `hashint8extended` with
/// `HASH_PARTITION_SEED`, by `hash_combine64` with 0.
fn partition_hash(key: i64) -> u64 {
    const SEED: u64 = 0x7A5B_2236_7996_DCFD;
    // As in the server, so that a key hashes alike whichever integer type it has.
    let (low, high) = (key as u32, (key >> 32) as u32);
    let folded = low ^ if key >= 0 { high } else { !high };
    hash_u32(folded, SEED).wrapping_add(0x49A0_F4DD_15E5_A8E3)
}

/// `hash_bytes_uint32_extended`, after Bob Jenkins' lookup3.
fn hash_u32(key: u32, seed: u64) -> u64 {
    let start = 0x9E37_79B9_u32.wrapping_add(4).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (start, start, start);
    a = a.wrapping_add((seed >> 32) as u32);
    b = b.wrapping_add(seed as u32);
    for (r1, r2, r3) in [(4, 6, 8), (16, 19, 4)] {
        a = a.wrapping_sub(c) ^ c.rotate_left(r1);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(r2);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(r3);
        b = b.wrapping_add(a);
    }
    a = a.wrapping_add(key);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    (u64::from(b) << 32) | u64::from(c)
}

/// The last 32 bits of the SHA-1 of the key in decimal, as in PgCat.
fn sha1(key: i64) -> u64 {
    let digest = Sha1::digest(key.to_string().as_bytes());
    let last = digest.iter().skip(16);
    last.fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PgCat's own test vectors.
    #[test]
    fn keys_go_where_pgcat_puts_them() {
        let bigint = |key| ShardingFunction::PgBigintHash.shard(key, 5);
        for key in [1, 4, 5, 14, 19, 39] {
            assert_eq!(bigint(key), 0, "{key}");
        }
        for key in [2, 3, 11, 17] {
            assert_eq!(bigint(key), 1, "{key}");
        }
        let sha1: Vec<_> = (0..20)
            .map(|key| ShardingFunction::Sha1.shard(key, 12))
            .collect();
        let expected = [
            4, 7, 8, 3, 6, 0, 0, 10, 3, 11, 1, 7, 4, 4, 11, 2, 5, 0, 8, 3,
        ];
        assert_eq!(sha1, expected);
    }

    #[test]
    fn one_shard_has_all_keys() {
        for key in [13, 0, -1, i64::MIN, i64::MAX] {
            assert_eq!(ShardingFunction::PgBigintHash.shard(key, 1), 0);
            assert_eq!(ShardingFunction::Sha1.shard(key, 1), 0);
        }
    }
}
