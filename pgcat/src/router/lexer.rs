//! A scanner for PostgreSQL's lexical rules: where tokens begin and end, no more.
//!
//! It never fails: what PostgreSQL would refuse (an unterminated string, say) becomes a token that
//! reaches to the end of the text, so the server gets to give its own error. It assumes
//! `standard_conforming_strings = on`, the server's default.

use std::ops::Range;

/// What kind of token a span of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key word or unquoted identifier; compare it without regard to ASCII case.
    Word,
    /// `"…"` or `U&"…"`.
    QuotedIdentifier,
    /// `'…'` with any prefix (`E`, `U&`, `B`, `X`, `N`), continuation lines included.
    String,
    /// `$tag$…$tag$`.
    DollarString,
    /// A number, or what starts like one.
    Number,
    /// One byte of punctuation or of an operator; `$1` is `$` and a number.
    Symbol(u8),
}

/// A token: its kind and its byte range in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub span: Range<usize>,
}

impl Token {
    /// Is this the key word `word` (given in lower case)?
    #[must_use]
    pub fn is_word(&self, text: &str, word: &str) -> bool {
        self.kind == Kind::Word && text[self.span.clone()].eq_ignore_ascii_case(word)
    }
}

/// The tokens of `text`, comments and white space left out.
pub fn tokens(text: &str) -> impl Iterator<Item = Token> + '_ {
    Lexer {
        bytes: text.as_bytes(),
        at: 0,
    }
}

/// The offset of the first byte at or after `at` that is neither white space nor in a comment.
#[must_use]
pub fn skip_blank(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            Some(&byte) if is_space(byte) => at += 1,
            Some(b'-') if bytes.get(at + 1) == Some(&b'-') => at = line_end(bytes, at),
            Some(b'/') if bytes.get(at + 1) == Some(&b'*') => at = comment_end(bytes, at),
            _ => return at,
        }
    }
}

/// The end of the word that starts at `at` (`at` itself where there is none).
#[must_use]
pub fn word_end(bytes: &[u8], at: usize) -> usize {
    if !bytes.get(at).is_some_and(|&byte| starts_word(byte)) {
        return at;
    }
    run_end(bytes, at, continues_word)
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let start = skip_blank(self.bytes, self.at);
        let first = *self.bytes.get(start)?;
        let (kind, end) = match first {
            b'\'' => (Kind::String, string_end(self.bytes, start, false)),
            b'"' => (
                Kind::QuotedIdentifier,
                quoted_end(self.bytes, start, b'"', false),
            ),
            b'$' => match dollar_string_end(self.bytes, start) {
                Some(end) => (Kind::DollarString, end),
                None => (Kind::Symbol(b'$'), start + 1),
            },
            b'0'..=b'9' => (Kind::Number, number_end(self.bytes, start)),
            byte if starts_word(byte) => self.word(start),
            byte => (Kind::Symbol(byte), start + 1),
        };
        self.at = end;
        Some(Token {
            kind,
            span: start..end,
        })
    }
}

impl Lexer<'_> {
    /// A word, or the quoted token it is the prefix of.
    fn word(&self, start: usize) -> (Kind, usize) {
        let end = word_end(self.bytes, start);
        let next = self.bytes.get(end).copied();
        match (&self.bytes[start..end], next) {
            (b"e" | b"E", Some(b'\'')) => (Kind::String, string_end(self.bytes, end, true)),
            (b"b" | b"B" | b"x" | b"X" | b"n" | b"N", Some(b'\'')) => {
                (Kind::String, string_end(self.bytes, end, false))
            }
            (b"u" | b"U", Some(b'&')) => match self.bytes.get(end + 1) {
                Some(b'\'') => (Kind::String, string_end(self.bytes, end + 1, false)),
                Some(b'"') => (
                    Kind::QuotedIdentifier,
                    quoted_end(self.bytes, end + 1, b'"', false),
                ),
                _ => (Kind::Word, end),
            },
            _ => (Kind::Word, end),
        }
    }
}

fn is_space(byte: u8) -> bool {
    // The server's scanner takes a vertical tab as white space since 16; 15 and older refuse the
    // text, so taking it as a blank decides nothing there.
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn run_end(bytes: &[u8], start: usize, belongs: impl Fn(u8) -> bool) -> usize {
    bytes[start..]
        .iter()
        .position(|&byte| !belongs(byte))
        .map_or(bytes.len(), |n| start + n)
}

fn line_end(bytes: &[u8], start: usize) -> usize {
    run_end(bytes, start, |byte| byte != b'\n' && byte != b'\r')
}

fn comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0_usize, start);
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
            (b'*', Some(b'/')) => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a number: digits with a fraction and an exponent. Hexadecimal and the like scan as a
/// number and a word, which no caller tells apart.
fn number_end(bytes: &[u8], start: usize) -> usize {
    let digits = |at| run_end(bytes, at, |byte| byte.is_ascii_digit() || byte == b'_');
    let mut end = digits(start);
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1) != Some(&b'.') {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = digits(end + 1 + sign);
        }
    }
    end
}

/// The end of a string whose opening quote is at `quote`, with its continuations: string constants
/// separated by white space with a newline are one constant, and the first one's prefix holds for
/// all. That matters for `E'…'`, where a continued line's backslashes are escapes too.
fn string_end(bytes: &[u8], mut quote: usize, escapes: bool) -> usize {
    loop {
        let end = quoted_end(bytes, quote, b'\'', escapes);
        match continuation(bytes, end) {
            Some(next) => quote = next,
            None => return end,
        }
    }
}

/// The opening quote of a continuation of the string that ended at `end`.
fn continuation(bytes: &[u8], end: usize) -> Option<usize> {
    let (mut at, mut newline) = (end, false);
    loop {
        match *bytes.get(at)? {
            b'\'' if newline => return Some(at),
            // A block comment does not separate the parts of a constant; a line comment does.
            b'-' if bytes.get(at + 1) == Some(&b'-') => at = line_end(bytes, at),
            byte if is_space(byte) => {
                newline |= matches!(byte, b'\n' | b'\r');
                at += 1;
            }
            _ => return None,
        }
    }
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8, escapes: bool) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        if bytes[at] == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 2;
        } else if escapes && bytes[at] == b'\\' {
            at += 2;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The end of the dollar-quoted string that starts at `start`, if one does.
fn dollar_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let tag = start + 1;
    let tag_end = match bytes.get(tag)? {
        b'$' => tag,
        &byte if starts_word(byte) => run_end(bytes, tag, |b| continues_word(b) && b != b'$'),
        _ => return None,
    };
    if bytes.get(tag_end) != Some(&b'$') {
        return None;
    }
    let delimiter = &bytes[start..=tag_end];
    let body = tag_end + 1;
    let length = memchr::memmem::find(&bytes[body..], delimiter);
    Some(length.map_or(bytes.len(), |n| body + n + delimiter.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> Vec<(Kind, &str)> {
        tokens(sql)
            .map(|token| (token.kind, &sql[token.span]))
            .collect()
    }

    #[test]
    fn words_and_their_quoted_neighbours() {
        use Kind::*;
        assert_eq!(
            texts(r#"a$1 "B""c" U&"d" e'x\'y' fe'z' n'' 1.5e-3x"#),
            [
                (Word, "a$1"),
                (QuotedIdentifier, r#""B""c""#),
                (QuotedIdentifier, r#"U&"d""#),
                (String, r"e'x\'y'"),
                (Word, "fe"),
                (String, "'z'"),
                (String, "n''"),
                (Number, "1.5e-3"),
                (Word, "x"),
            ]
        );
    }

    #[test]
    fn continued_strings_keep_their_prefix() {
        assert_eq!(texts("E'a' -- c\n 'b\\'' ;").len(), 2);
        assert_eq!(texts("'a' 'b'").len(), 2);
        assert_eq!(texts("'a' /* \n */ 'b'").len(), 2);
    }

    #[test]
    fn dollars() {
        use Kind::*;
        assert_eq!(texts("$$a;$b$c$$")[0], (DollarString, "$$a;$b$c$$"));
        assert_eq!(texts("$é$;$é$x")[0], (DollarString, "$é$;$é$"));
        assert_eq!(texts("$1"), [(Symbol(b'$'), "$"), (Number, "1")]);
        assert_eq!(texts("a$b$c").len(), 1);
    }

    #[test]
    fn what_never_ends_reaches_the_end_and_slicing_is_safe() {
        for sql in [
            "'abc",
            "E'abc\\",
            "\"abc",
            "$a$ b",
            "/* a /* b */",
            "E'é\\é",
            "é'",
        ] {
            for token in tokens(sql) {
                assert!(sql.get(token.span).is_some(), "{sql}");
            }
        }
    }
}
