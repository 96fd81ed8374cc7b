//! Shards named in comments, by the regular expressions of the configuration.

use regex::bytes::Regex;

use super::lexer::{self, Kind};
use crate::config::model::Pool;

/// The pool's expressions.
#[derive(Debug)]
pub struct CommentRouting {
    shard_id: Option<Regex>,
    sharding_key: Option<Regex>,
    /// Bytes of a text that are searched.
    limit: usize,
}

/// What a comment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Shard(usize),
    Key(i64),
}

impl CommentRouting {
    /// `None`: the pool has none.
    pub fn of(pool: &Pool) -> Option<Self> {
        // Both have been compiled before, when the file was read.
        let compile = |text: &Option<String>| text.as_ref().and_then(|text| Regex::new(text).ok());
        let routing = Self {
            shard_id: compile(&pool.shard_id_regex),
            sharding_key: compile(&pool.sharding_key_regex),
            limit: pool.regex_search_limit,
        };
        (routing.shard_id.is_some() || routing.sharding_key.is_some()).then_some(routing)
    }

    /// The first shard or, without one, the first sharding key that the text names, outside of
    /// strings: what a user has typed into a form must not move a statement.
    pub fn find(&self, text: &[u8]) -> Option<Found> {
        let shard = self.number(self.shard_id.as_ref(), text).map(Found::Shard);
        shard.or_else(|| {
            self.number(self.sharding_key.as_ref(), text)
                .map(Found::Key)
        })
    }

    fn number<T: std::str::FromStr>(&self, pattern: Option<&Regex>, text: &[u8]) -> Option<T> {
        let searched = &text[..text.len().min(self.limit)];
        let found = pattern?.captures_iter(searched);
        let mut outside = found.filter(|found| {
            found
                .get(0)
                .is_some_and(|whole| !is_quoted(text, whole.start()))
        });
        let digits = outside.next()?.get(1)?;
        std::str::from_utf8(digits.as_bytes()).ok()?.parse().ok()
    }
}

/// Whether the offset is within a string or a quoted identifier.
fn is_quoted(text: &[u8], offset: usize) -> bool {
    let text = String::from_utf8_lossy(text);
    let quoted = |kind| {
        matches!(
            kind,
            Kind::String | Kind::DollarString | Kind::QuotedIdentifier
        )
    };
    lexer::tokens(&text)
        .take_while(|token| token.span.start <= offset)
        .any(|token| token.span.end > offset && quoted(token.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outside_of_strings_counts() {
        let routing = CommentRouting {
            shard_id: Regex::new(r"/\* shard_id: (\d+) \*/").ok(),
            sharding_key: Regex::new(r"/\* sharding_key: (-?\d+) \*/").ok(),
            limit: 100,
        };
        let cases = [
            ("/* shard_id: 1 */ SELECT 1", Some(Found::Shard(1))),
            (
                "SELECT 1 /* shard_id: 2 */ /* shard_id: 1 */",
                Some(Found::Shard(2)),
            ),
            (
                "SELECT '/* shard_id: 2 */' /* shard_id: 1 */",
                Some(Found::Shard(1)),
            ),
            ("SELECT 'é /* shard_id: 2 */'", None),
            ("SELECT $$/* shard_id: 2 */$$", None),
            ("/* sharding_key: -9 */ SELECT 1", Some(Found::Key(-9))),
            (
                "/* sharding_key: 9 */ /* shard_id: 3 */ SELECT 1",
                Some(Found::Shard(3)),
            ),
            ("SELECT 1", None),
            ("/* shard_id: 99999999999999999999999 */", None),
        ];
        for (text, found) in cases {
            assert_eq!(routing.find(text.as_bytes()), found, "{text}");
        }
        let far = format!("SELECT 1{}/* shard_id: 1 */", " ".repeat(100));
        assert_eq!(routing.find(far.as_bytes()), None);
    }
}
