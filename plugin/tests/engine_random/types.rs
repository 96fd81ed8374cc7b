//! The types of values, with small domains, so that duplicates, matches and NULLs are common.

use crate::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    Int,
    Big,
    Text,
    /// numeric with two digits after the point, always.
    Cents,
    /// numeric without any, as sums of bigint have.
    Whole,
    /// numeric of any scale: equal values may differ in their image, and so must not be grouped, made distinct or
    /// ordered by, where that decides which image is shown.
    Loose,
    Bool,
    Date,
    /// Multiples of a half, so that sums do not depend on the order. Never -0.
    Float,
    Ints,
    Json,
}

impl Type {
    pub const ALL: [Self; 11] = [
        Self::Int,
        Self::Big,
        Self::Text,
        Self::Cents,
        Self::Whole,
        Self::Loose,
        Self::Bool,
        Self::Date,
        Self::Float,
        Self::Ints,
        Self::Json,
    ];

    /// As SQL text, for casts.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Big => "bigint",
            Self::Text => "text",
            Self::Cents | Self::Whole | Self::Loose => "numeric",
            Self::Bool => "bool",
            Self::Date => "date",
            Self::Float => "float8",
            Self::Ints => "int[]",
            Self::Json => "jsonb",
        }
    }

    /// Whether equal values have equal images.
    pub fn is_exact(self) -> bool {
        self != Self::Loose
    }

    pub fn is_number(self) -> bool {
        matches!(
            self,
            Self::Int | Self::Big | Self::Cents | Self::Whole | Self::Loose | Self::Float
        )
    }

    pub fn null(self) -> String {
        format!("NULL::{}", self.sql())
    }

    /// A constant, never NULL.
    pub fn constant(self, random: &mut Random) -> String {
        let n = random.below(6);
        match self {
            Self::Int => n.to_string(),
            Self::Big => format!("{n}::bigint"),
            Self::Text => format!(
                "'{}'::text",
                random.pick(&["a", "b", "B", "ab", "", "it''s"])
            ),
            Self::Cents => (*random.pick(&["0.00", "1.00", "1.50", "2.25", "10.00"])).to_owned(),
            Self::Whole => format!("{n}::numeric"),
            Self::Loose => format!(
                "{}::numeric",
                random.pick(&["0", "1", "1.0", "1.00", "2.5", "'NaN'"])
            ),
            Self::Bool => (*random.pick(&["true", "false"])).to_owned(),
            Self::Date => format!("'2024-01-0{}'::date", n + 1),
            Self::Float => format!("'{}'::float8", random.pick(&["0", "0.5", "1", "1.5", "2"])),
            Self::Ints => format!(
                "'{}'::int[]",
                random.pick(&["{}", "{1}", "{1,2}", "{2,2}", "{NULL,1}"])
            ),
            Self::Json => format!(
                "'{}'::jsonb",
                random.pick(&[
                    "1",
                    "null",
                    "[1, 2]",
                    "{\"a\": 1}",
                    "{\"a\": 2, \"b\": [1]}"
                ])
            ),
        }
    }

    /// What a row may hold: a constant without a cast, or NULL.
    pub fn value(self, random: &mut Random, nullable: bool) -> String {
        if nullable && random.chance(18) {
            return "NULL".to_owned();
        }
        let text = match (self, random.below(30)) {
            (Self::Cents, 0) => return "'NaN'".to_owned(),
            (Self::Loose, 0) => return "'Infinity'".to_owned(),
            (Self::Int | Self::Big, 0..4) => format!("-{}", random.between(1, 3)),
            _ => self.constant(random),
        };
        text.split("::").next().unwrap_or_default().to_owned()
    }
}
