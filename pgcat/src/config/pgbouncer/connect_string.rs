//! The right side of a line in `[databases]`, `[users]` and `[peers]`: `key=value key='quoted value'`.

/// Reads the pairs, in order.
///
/// # Errors
/// What is wrong with the text. It may hold a password, so it is not quoted in the message.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| c == '=' || c.is_whitespace())
            .unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let value = after
            .trim_start()
            .strip_prefix('=')
            .filter(|_| !key.is_empty())
            .ok_or("expected key=value pairs, separated by blanks")?
            .trim_start();
        let (value, after) = match value.strip_prefix('\'') {
            Some(quoted) => unquote(quoted)
                .ok_or_else(|| format!("the quoted value of {key} does not end with a quote"))?,
            None => {
                let end = value.find(char::is_whitespace).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        if !after.is_empty() && !after.starts_with(char::is_whitespace) {
            return Err(format!("expected a blank after the quoted value of {key}"));
        }
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The text up to the closing quote, where a doubled one stands for itself, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('\'')?;
        content.push_str(part);
        match after.strip_prefix('\'') {
            Some(after) => {
                content.push('\'');
                rest = after;
            }
            None => return Some((content, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_pgbouncer_does() {
        let pairs = parse("host=a  port = 3\tpassword='it''s = a; ' connect_query='' x=# y=")
            .expect("valid");
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("host", "a"),
                ("port", "3"),
                ("password", "it's = a; "),
                ("connect_query", ""),
                ("x", "#"),
                ("y", "")
            ]
        );
        assert_eq!(parse("  "), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        for (text, message) in [
            ("host", "expected key=value pairs, separated by blanks"),
            ("=a", "expected key=value pairs, separated by blanks"),
            (
                "password='a",
                "the quoted value of password does not end with a quote",
            ),
            (
                "password='a'port=3",
                "expected a blank after the quoted value of password",
            ),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()));
        }
    }
}
