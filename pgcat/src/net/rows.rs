//! Results that do not come from a server: of plugins' statements, and of the admin databases.

use crate::plugins::Column;
use crate::wire::backend;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{build, put_cstr};

/// The result formats of a Bind: none (all text), one for all, or one per column.
fn format(formats: &[u16], column: usize) -> u16 {
    match formats {
        [] => 0,
        [all] => *all,
        _ => formats.get(column).copied().unwrap_or(0),
    }
}

/// RowDescription, or NoData where there are no columns.
pub fn describe(columns: &[Column], formats: &[u16], out: &mut Vec<u8>) {
    if columns.is_empty() {
        return build(out, backend::NO_DATA, |_| ());
    }
    build(out, backend::ROW_DESCRIPTION, |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (index, column) in columns.iter().enumerate() {
            put_cstr(out, column.name.as_bytes());
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&column.type_oid.to_be_bytes());
            let size: i16 = match column.type_oid {
                16 => 1,
                23 => 4,
                20 | 701 => 8,
                _ => -1,
            };
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&format(formats, index).to_be_bytes());
        }
    });
}

/// DataRow.
///
/// # Errors
/// If a value cannot be sent in the format that was asked for.
pub fn write(
    columns: &[Column],
    formats: &[u16],
    row: &[Option<String>],
    out: &mut Vec<u8>,
) -> Result<(), Box<ErrorFields>> {
    let mut values = Vec::with_capacity(row.len());
    for (index, value) in row.iter().enumerate() {
        let Some(value) = value else {
            values.push(None);
            continue;
        };
        values.push(Some(if format(formats, index) == 1 {
            binary(columns[index].type_oid, value)?
        } else {
            value.clone().into_bytes()
        }));
    }
    build(out, backend::DATA_ROW, |out| {
        out.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                Some(value) => {
                    out.extend_from_slice(&(value.len() as i32).to_be_bytes());
                    out.extend_from_slice(&value);
                }
                None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
        }
    });
    Ok(())
}

/// A value in binary form, for the types such results have.
fn binary(type_oid: u32, text: &str) -> Result<Vec<u8>, Box<ErrorFields>> {
    let bytes = match type_oid {
        16 => Some(vec![u8::from(text == "t")]),
        20 => text.parse::<i64>().ok().map(|v| v.to_be_bytes().to_vec()),
        23 => text.parse::<i32>().ok().map(|v| v.to_be_bytes().to_vec()),
        25 | 19 | 1043 => Some(text.as_bytes().to_vec()),
        701 => text.parse::<f64>().ok().map(|v| v.to_be_bytes().to_vec()),
        1700 => text.parse::<u64>().ok().map(whole_numeric),
        _ => None,
    };
    bytes.ok_or_else(|| {
        Box::new(ErrorFields::error(
            "0A000",
            "binary format is not supported for this result",
        ))
    })
}

/// A whole number as a binary numeric: digits to the base 10000, and the weight of the first.
fn whole_numeric(mut value: u64) -> Vec<u8> {
    let mut digits = Vec::new();
    while value > 0 {
        digits.push((value % 10_000) as i16);
        value /= 10_000;
    }
    let weight = digits.len().saturating_sub(1) as i16;
    let (positive, scale) = (0_i16, 0_i16);
    let header = [digits.len() as i16, weight, positive, scale];
    let words = header.iter().chain(digits.iter().rev());
    words.flat_map(|word| word.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `SELECT numeric_send(n)` has them.
    #[test]
    fn whole_numbers_are_numerics() {
        assert_eq!(whole_numeric(0), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(whole_numeric(7), [0, 1, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(
            whole_numeric(12_345_678),
            [0, 2, 0, 1, 0, 0, 0, 0, 0x04, 0xd2, 0x16, 0x2e]
        );
    }
}
