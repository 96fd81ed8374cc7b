//! The byte test every Query and Parse message passes: could it hold a statement of ours?

use pgcat::router::lexer::{skip_blank, word_end};

/// Could `sql` hold a stream-table statement, or DDL that may touch a source table? Decided by each
/// statement's first two words, so an ordinary SELECT or INSERT costs a comparison, and the rest of
/// the text is scanned only for semicolons. May say yes for nothing (a semicolon in a string), never no
/// for something.
#[must_use]
pub fn wants(sql: &[u8]) -> bool {
    if starts_ours(sql, 0) {
        return true;
    }
    // A trailing semicolon, which many clients send, ends the search at once.
    memchr::memchr_iter(b';', sql).any(|semicolon| starts_ours(sql, semicolon + 1))
}

fn starts_ours(sql: &[u8], at: usize) -> bool {
    let first = skip_blank(sql, at);
    let end = word_end(sql, first);
    // The shortest of our first words is DROP, the longest EXPLAIN and REFRESH.
    if !(4..=7).contains(&(end - first)) {
        return false;
    }
    let word = &sql[first..end];
    let second = || {
        let start = skip_blank(sql, end);
        &sql[start..word_end(sql, start)]
    };
    let is = |text: &[u8], words: &[&str]| {
        words
            .iter()
            .any(|word| text.eq_ignore_ascii_case(word.as_bytes()))
    };
    match word[0] | 0x20 {
        b'c' => is(word, &["create"]) && is(second(), &["stream", "or"]),
        b'd' => is(word, &["drop"]) && is(second(), &["stream", "table", "view", "materialized"]),
        b'a' => {
            is(word, &["alter"])
                && is(
                    second(),
                    &["stream", "table", "view", "materialized", "foreign"],
                )
        }
        b'r' => is(word, &["refresh"]) && is(second(), &["stream"]),
        b's' => is(word, &["show"]) && is(second(), &["stream"]),
        b'v' => is(word, &["verify"]) && is(second(), &["stream"]),
        b'e' => is(word, &["explain"]) && mentions_stream(&sql[end..]),
        _ => false,
    }
}

fn mentions_stream(sql: &[u8]) -> bool {
    memchr::memchr2_iter(b's', b'S', sql).any(|at| {
        sql.get(at..at + 6)
            .is_some_and(|word| word.eq_ignore_ascii_case(b"stream"))
    })
}

#[cfg(test)]
mod tests {
    use super::wants;

    #[test]
    fn yes() {
        for sql in [
            "CREATE STREAM TABLE t AS SELECT 1",
            "create/**/stream table",
            "-- c\n /* a /* b */ */ DROP\nTABLE t",
            "Drop Stream Table t",
            "select 1; alter table t add c int",
            "begin;;;\n/*;*/create or replace view v as select 1",
            "refresh stream table t full;",
            "SHOW stream TABLES",
            "explain (analyze) Stream table t",
            "verify stream table t",
        ] {
            assert!(wants(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn no() {
        for sql in [
            "",
            ";",
            "SELECT 1",
            "select 'create stream table'",
            "insert into stream values (1);",
            "UPDATE t SET a = 'x;y'; commit;",
            "create table stream (a int)",
            "create index on t (a)",
            "createor",
            "drop index i",
            "show server_version",
            "refresh materialized view v",
            "explain select * from t",
            "é",
        ] {
            assert!(!wants(sql.as_bytes()), "{sql}");
        }
    }
}
