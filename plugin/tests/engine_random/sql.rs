//! SQL text that remembers how it may become smaller.
//!
//! The generator writes text as it likes; where it calls a piece a [`Sql::Part`] or a [`Sql::List`], the shrinker
//! may replace or shorten it. It need not know what the text means: PostgreSQL refuses what makes no sense.

use std::fmt;

#[derive(Debug, Clone)]
pub enum Sql {
    Text(String),
    Sequence(Vec<Sql>),
    /// Items that can be left out one by one, down to `least`; an empty list has no `open` either.
    List {
        open: &'static str,
        separator: &'static str,
        close: &'static str,
        items: Vec<Sql>,
        least: usize,
    },
    /// A piece that can be replaced: by `simplest`, or by a part within it of the same sort.
    Part {
        sort: String,
        simplest: Option<String>,
        body: Box<Sql>,
    },
}

/// Concatenates what can become [`Sql`].
macro_rules! sql {
    ($($piece:expr),+ $(,)?) => {
        $crate::sql::Sql::Sequence(vec![$($crate::sql::Sql::from($piece)),+])
    };
}
pub(crate) use sql;

impl From<&str> for Sql {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Sql {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Sequence(pieces) => pieces.iter().try_for_each(|p| p.fmt(f)),
            Self::List { items, .. } if items.is_empty() => Ok(()),
            Self::List {
                open,
                separator,
                close,
                items,
                ..
            } => {
                f.write_str(open)?;
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        f.write_str(separator)?;
                    }
                    item.fmt(f)?;
                }
                f.write_str(close)
            }
            Self::Part { body, .. } => body.fmt(f),
        }
    }
}

/// The sort of a whole query, before its columns.
pub const QUERY: &str = "query";

impl Sql {
    pub fn part(sort: impl Into<String>, simplest: Option<String>, body: Self) -> Self {
        Self::Part {
            sort: sort.into(),
            simplest,
            body: Box::new(body),
        }
    }

    /// Items between commas, of which one must stay.
    pub fn commas(items: Vec<Self>) -> Self {
        Self::List {
            open: "",
            separator: ", ",
            close: "",
            items,
            least: 1,
        }
    }

    /// `open` and the conditions, or nothing.
    pub fn conditions(open: &'static str, items: Vec<Self>) -> Self {
        Self::List {
            open,
            separator: " AND ",
            close: "",
            items,
            least: 0,
        }
    }

    /// Everything that is one step smaller.
    pub fn smaller(&self) -> Vec<Self> {
        match self {
            Self::Text(_) => Vec::new(),
            Self::Sequence(pieces) => each(pieces).into_iter().map(Self::Sequence).collect(),
            Self::List {
                open,
                separator,
                close,
                items,
                least,
            } => {
                let list = |items| Self::List {
                    open,
                    separator,
                    close,
                    items,
                    least: *least,
                };
                let mut all: Vec<_> = without(items, *least).into_iter().map(list).collect();
                all.extend(each(items).into_iter().map(list));
                all
            }
            Self::Part {
                sort,
                simplest,
                body,
            } => {
                let mut all = Vec::new();
                if let Some(simplest) = simplest
                    && *simplest != body.to_string()
                {
                    all.push(Self::Text(simplest.clone()));
                }
                all.extend(body.parts(&|s| s == sort));
                all.extend(
                    body.smaller()
                        .into_iter()
                        .map(|body| Self::part(sort.clone(), simplest.clone(), body)),
                );
                all
            }
        }
    }

    /// The parts in it whose sort is wanted, the outermost ones and all within.
    pub fn parts(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Self> {
        match self {
            Self::Text(_) => Vec::new(),
            Self::Sequence(items) | Self::List { items, .. } => {
                items.iter().flat_map(|i| i.parts(wanted)).collect()
            }
            Self::Part { sort, body, .. } => {
                let mut all = body.parts(wanted);
                if wanted(sort) {
                    all.push(self.clone());
                }
                all
            }
        }
    }
}

/// The list with one item a step smaller.
fn each(items: &[Sql]) -> Vec<Vec<Sql>> {
    let mut all = Vec::new();
    for (i, item) in items.iter().enumerate() {
        for smaller in item.smaller() {
            let mut items = items.to_vec();
            items[i] = smaller;
            all.push(items);
        }
    }
    all
}

/// The list without its first half, its second half, or one item; at least `least` are left.
pub fn without<T: Clone>(items: &[T], least: usize) -> Vec<Vec<T>> {
    let half = items.len() / 2;
    let mut all = Vec::new();
    if half > 1 {
        all.push(items[..half].to_vec());
        all.push(items[half..].to_vec());
    }
    for i in 0..items.len() {
        let mut items = items.to_vec();
        items.remove(i);
        all.push(items);
    }
    all.retain(|items| items.len() >= least);
    all
}

/// An identifier as SQL text, quoted where it must be.
pub fn name(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !matches!(
            name,
            "order" | "group" | "user" | "select" | "table" | "end"
        );
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
