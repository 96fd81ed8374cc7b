//! Builders that append a message to a buffer, and readers of the few bodies the pooler looks into.

use super::{HEADER, TransactionStatus, backend, frontend};

/// Appends a message: `fill` writes the body, the length is set afterwards.
pub fn build(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[tag, 0, 0, 0, 0]);
    fill(out);
    let length = (out.len() - start - 1) as u32;
    out[start + 1..start + HEADER].copy_from_slice(&length.to_be_bytes());
}

/// Appends a string with its terminating NUL. A NUL inside the text would end it early on the other
/// side; what follows it is dropped.
pub fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    let text = take_cstr(text).map_or(text, |(text, _)| text);
    out.extend_from_slice(text);
    out.push(0);
}

/// Splits a NUL-terminated string off the front of `bytes`; `None` if there is no NUL.
#[inline]
pub fn take_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = match bytes.first_chunk().and_then(|first| first_nul(*first)) {
        Some(end) => end,
        None => memchr::memchr(0, bytes)?,
    };
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Where the first NUL is, if it is among these. Names end before a search by vectors has begun.
#[inline]
fn first_nul(bytes: [u8; 8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(bytes);
    // The lowest bit of these is that of the first byte that is 0; those above it may be wrong.
    let nuls = word.wrapping_sub(ONES) & !word & (ONES << 7);
    (nuls != 0).then(|| nuls.trailing_zeros() as usize / 8)
}

pub fn query(out: &mut Vec<u8>, sql: &str) {
    build(out, frontend::QUERY, |out| put_cstr(out, sql.as_bytes()));
}

/// Parse with the part after the name (query text and parameter types) taken as it came.
pub fn parse_raw(out: &mut Vec<u8>, name: &[u8], rest: &[u8]) {
    build(out, frontend::PARSE, |out| {
        put_cstr(out, name);
        out.extend_from_slice(rest);
    });
}

/// The part of a Parse after the name: query text, and that many parameters of type text.
pub fn parse_rest(sql: &str, parameters: usize) -> Vec<u8> {
    const TEXT: u32 = 25;
    let mut rest = Vec::with_capacity(sql.len() + 3 + 4 * parameters);
    put_cstr(&mut rest, sql.as_bytes());
    rest.extend_from_slice(&(parameters as u16).to_be_bytes());
    for _ in 0..parameters {
        rest.extend_from_slice(&TEXT.to_be_bytes());
    }
    rest
}

/// Bind of the unnamed portal, parameters and results as text.
pub fn bind(out: &mut Vec<u8>, statement: &[u8], parameters: &[String]) {
    build(out, frontend::BIND, |out| {
        put_cstr(out, b"");
        put_cstr(out, statement);
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
        for parameter in parameters {
            out.extend_from_slice(&(parameter.len() as i32).to_be_bytes());
            out.extend_from_slice(parameter.as_bytes());
        }
        out.extend_from_slice(&[0; 2]);
    });
}

/// Execute without a row limit.
pub fn execute(out: &mut Vec<u8>, portal: &[u8]) {
    build(out, frontend::EXECUTE, |out| {
        put_cstr(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

/// Describe of a prepared statement.
pub fn describe_statement(out: &mut Vec<u8>, name: &[u8]) {
    build(out, frontend::DESCRIBE, |out| {
        out.push(b'S');
        put_cstr(out, name);
    });
}

/// Close of a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    build(out, frontend::CLOSE, |out| {
        out.push(b'S');
        put_cstr(out, name);
    });
}

pub fn flush(out: &mut Vec<u8>) {
    build(out, frontend::FLUSH, |_| ());
}

/// A Terminate.
pub const TERMINATE: [u8; 5] = *b"X\0\0\0\x04";

pub fn sync(out: &mut Vec<u8>) {
    build(out, frontend::SYNC, |_| ());
}

pub fn ready_for_query(out: &mut Vec<u8>, status: TransactionStatus) {
    build(out, backend::READY_FOR_QUERY, |out| out.push(status.byte()));
}

pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    build(out, backend::COMMAND_COMPLETE, |out| {
        put_cstr(out, tag.as_bytes())
    });
}

pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    build(out, backend::PARAMETER_STATUS, |out| {
        put_cstr(out, name.as_bytes());
        put_cstr(out, value.as_bytes());
    });
}

/// The values of a DataRow body; `None` where it is malformed.
pub fn data_row(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::with_capacity(usize::from(u16::from_be_bytes(*count)));
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        rest = tail;
        if length < 0 {
            values.push(None);
            continue;
        }
        let (value, tail) = rest.split_at_checked(length as usize)?;
        values.push(Some(value));
        rest = tail;
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_message_has_its_length() {
        let mut out = vec![9];
        query(&mut out, "x");
        assert_eq!(out, [9, b'Q', 0, 0, 0, 6, b'x', 0]);
    }

    #[test]
    fn strings_of_all_lengths_end_at_their_first_nul() {
        for length in 0..40 {
            for rest in [&b""[..], b"\0", b"\x01\0\x80", b"more\0than a word\0"] {
                // 0x01 behind a NUL looks like one to arithmetic that borrows.
                let bytes = [&vec![0x81; length][..], b"\0", rest].concat();
                let (text, after) = take_cstr(&bytes).expect("a NUL");
                assert_eq!((text.len(), after), (length, rest));
            }
            assert_eq!(take_cstr(&vec![1; length]), None);
        }
    }

    #[test]
    fn a_data_row_is_read_and_a_short_one_refused() {
        let body = [0, 2, 0, 0, 0, 1, b'a', 255, 255, 255, 255];
        assert_eq!(data_row(&body), Some(vec![Some(&b"a"[..]), None]));
        assert_eq!(data_row(&body[..6]), None);
    }
}
