//! From a defining query to a plan: what to capture, and which SQL computes a refresh.

mod affected;
pub(crate) mod analyse;
pub(crate) mod ast;
pub(crate) mod cut;
mod facts;
pub(crate) mod fragment;
mod functions;
pub(crate) mod indexes;
mod inline;
mod keyed;
mod levels;
mod normalise;
mod probe;
pub(crate) mod recursion;
mod scope;
pub(crate) mod terms;

pub(crate) use facts::columns as source_columns;
use serde::{Deserialize, Serialize};

use crate::delta::stage::staging;

/// Everything a refresh needs, kept in the catalog as JSON. Names in it are those of the moment it was made; a
/// fingerprint tells when they no longer hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The defining query, fully qualified, as PostgreSQL writes it.
    pub canonical: String,
    /// The columns of the result.
    pub columns: Vec<Column>,
    /// Hidden tables between the sources and the result, each of which may read those before it.
    #[serde(default)]
    pub stages: Vec<Stage>,
    pub body: Body,
    /// Base tables the query reads, directly or through views; those of a full plan too (they are locked).
    pub tables: Vec<Table>,
    /// Views the query reads.
    pub views: Vec<u32>,
    /// Functions, operators' functions and aggregates of users the query calls.
    pub functions: Vec<u32>,
    pub settings: Settings,
}

/// How a refresh computes the change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Recompute, compare, write the difference.
    Full { reason: String },
    /// The change of the result is the linear image of the changes of the inputs.
    Linear { sql: String },
    /// A linear query under GROUP BY, aggregates or DISTINCT.
    Keyed(Box<Keyed>),
    /// Computed anew for the partitions that are touched. Only stages are.
    Partition(Partition),
    /// WITH RECURSIVE. Only stages are.
    Recursive(Recursive),
}

/// A hidden table with the result of a part of the query.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Its columns, `c1…`.
    pub columns: Vec<Column>,
    pub body: Body,
}

/// An operator whose result for one value of the keys follows from the rows of its input with that value: window functions,
/// DISTINCT ON, LIMIT.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Partition {
    /// A linear query of `k1…` and `args` further columns: a change of the result shows in a change of it.
    pub body: String,
    pub args: usize,
    /// Empty: one partition is all.
    pub keys: Vec<Column>,
    /// The result of all partitions. Its last columns are the keys.
    pub query: String,
    /// The result for keys in the table of keys: those without NULL, and those with.
    pub by_key: String,
    pub by_null: String,
}

/// `base UNION [ALL] step`, where the step is linear in the rows of the result itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recursive {
    /// A linear query.
    pub base: String,
    /// A linear query that reads the stage's own table, once.
    pub step: String,
    /// Both, with UNION ALL.
    pub both: String,
    /// UNION ALL: as often as there is a way to find it is how often a row is there.
    pub all: bool,
}

/// A keyed operator over a linear body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Keyed {
    /// A linear query with columns `k1…` (keys) and `a1…` (arguments of aggregates).
    pub body: String,
    pub keys: Vec<Column>,
    pub args: Vec<Column>,
    pub aggregates: Vec<Aggregate>,
    /// False: one row for the whole input, also when it is empty.
    pub grouped: bool,
    /// Expressions over `g.k1…` and `g.g1…`, one per column of the result.
    pub output: Vec<String>,
    /// HAVING, over the same.
    pub having: Option<String>,
    /// Whether all aggregates can be kept from the weights of the change alone.
    pub by_weights: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Aggregate {
    /// The call, over `b.a1…`.
    pub call: String,
    /// The type of its result.
    pub type_name: String,
    pub weights: Option<Weights>,
    /// Set where it is a min or max that can be kept as long as the extreme is not deleted.
    pub extreme: Option<Extreme>,
}

/// A min or max.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Extreme {
    pub largest: bool,
    /// The argument's index in [`Keyed::args`].
    pub arg: usize,
    /// The FILTER condition's.
    pub filter: Option<usize>,
}

/// How an aggregate follows from weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Weights {
    pub kind: WeightKind,
    /// The argument's index in [`Keyed::args`]; `None`: `count(*)`.
    pub arg: Option<usize>,
    /// The FILTER condition's index in [`Keyed::args`].
    pub filter: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WeightKind {
    Count,
    /// Sum of int2 or int4, result bigint.
    SumInt,
    /// Sum of int8, result numeric.
    SumBig,
    /// Sum of numeric of a declared scale.
    SumNumeric,
    /// The same for avg.
    AvgInt,
    AvgBig,
    AvgNumeric,
    /// Sum of numeric of any scale: the result's display scale is the largest among the values that are left.
    SumFree,
    AvgFree,
}

impl WeightKind {
    pub(crate) fn is_numeric(self) -> bool {
        matches!(
            self,
            Self::SumNumeric | Self::AvgNumeric | Self::SumFree | Self::AvgFree
        )
    }

    pub(crate) fn is_free(self) -> bool {
        matches!(self, Self::SumFree | Self::AvgFree)
    }
}

impl Body {
    /// The linear query below.
    pub(crate) fn linear(&self) -> Option<&str> {
        match self {
            Self::Full { .. } => None,
            Self::Linear { sql } => Some(sql),
            Self::Keyed(keyed) => Some(&keyed.body),
            Self::Partition(partition) => Some(&partition.body),
            Self::Recursive(recursive) => Some(&recursive.both),
        }
    }
}

impl Keyed {
    /// Whether a deleted extreme may make groups need a look at the sources.
    pub(crate) fn has_extremes(&self) -> bool {
        self.by_weights && self.aggregates.iter().any(|a| a.extreme.is_some())
    }
}

/// A column: of the result, of a source, of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Column {
    pub attnum: i32,
    /// As the catalog has it, not quoted.
    pub name: String,
    /// As SQL text, qualified, without a length or scale.
    pub type_name: String,
    /// ` COLLATE …` where it is not the type's own, else empty.
    pub collate: String,
    pub image: Image,
    /// Whether the type can be hashed, and so indexed by `hash_record_extended`.
    pub hashable: bool,
    /// The type's own `=` as SQL text, where it is not in pg_catalog (citext, hstore), else empty.
    #[serde(default)]
    pub own_equality: String,
}

impl Column {
    /// The operator by which GROUP BY compares values of the type.
    pub(crate) fn equality(&self) -> &str {
        if self.own_equality.is_empty() {
            "="
        } else {
            &self.own_equality
        }
    }
}

impl Column {
    /// Its type as in a table's definition: with the collation.
    pub(crate) fn typed(&self) -> String {
        format!("{}{}", self.type_name, self.collate)
    }

    /// Whether its values fit an entry of a b-tree for certain.
    pub(crate) fn is_short(&self) -> bool {
        const LONG: [&str; 4] = ["text", "character varying", "character", "bytea"];
        self.image == Image::Plain && !LONG.contains(&self.type_name.as_str())
    }

    /// The kind of index by which its values are found.
    fn index_method(&self) -> &'static str {
        if self.is_short() { "btree" } else { "hash" }
    }
}

/// How values of a type are told apart by image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Image {
    /// Equal values have equal images.
    Plain,
    /// By the text form.
    Text,
    /// By the text form, and `array_agg` would not keep a value in one piece.
    TextArray,
}

/// A base table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Table {
    pub relid: u32,
    pub schema: String,
    pub name: String,
    pub partitioned: bool,
    /// Where its changes are captured; `None` in a full plan, and where only shared stages read it.
    pub buffer: Option<i64>,
    /// It is the table of this shared stage.
    #[serde(default)]
    pub shared: Option<i64>,
    /// The columns the query uses.
    pub columns: Vec<Column>,
    /// The names of all its columns, in order: positions of alias lists refer to them.
    pub all_columns: Vec<String>,
}

impl Table {
    /// The table's name as SQL text.
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

/// Settings that give a query its meaning: the creator's, at CREATE.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub time_zone: String,
    pub search_path: String,
    pub text_search_config: String,
    /// Whether the owner may call `pg_control_system()`.
    pub knows_cluster: bool,
}

impl Plan {
    /// CREATE INDEX statements for the staging tables in which changes are looked up by equality.
    ///
    /// # Errors
    /// [`crate::conn::Error::Internal`] for a plan that cannot be read.
    pub(crate) fn lookups(&self, id: i64) -> Result<Vec<String>, crate::conn::Error> {
        let inputs = self.inputs(id, |_| true, &vec![true; self.stages.len()]);
        let bodies = self.stages.iter().map(|s| &s.body).chain([&self.body]);
        let mut statements = Vec::new();
        for body in bodies.filter_map(Body::linear) {
            for (input, name) in affected::lookups(body, &inputs)? {
                let input = &inputs[input];
                let column = input.columns.iter().find(|c| c.name == name);
                if let (Some(column), Some((table, letter))) = (column, &input.delta)
                    && column.hashable
                {
                    let kind = column.index_method();
                    let index = format!(
                        "{}_{letter}{}",
                        table.replace("pgtrickle.", ""),
                        column.attnum
                    );
                    statements.push(format!(
                        "CREATE INDEX IF NOT EXISTS {index} ON {table} USING {kind} ({letter}{})",
                        column.attnum
                    ));
                }
            }
        }
        Ok(statements)
    }

    /// CREATE INDEX statements for the stages of recursions: their rows are reached by the columns they are joined by.
    ///
    /// # Errors
    /// [`crate::conn::Error::Internal`] for a plan that cannot be read.
    pub(crate) fn joined_stages(&self, id: i64) -> Result<Vec<String>, crate::conn::Error> {
        let inputs = self.inputs(id, |_| true, &vec![true; self.stages.len()]);
        let bodies = self.stages.iter().map(|s| &s.body).chain([&self.body]);
        let mut statements = Vec::new();
        for body in bodies.filter_map(Body::linear) {
            for (input, names) in affected::joined(body, &inputs)? {
                let stage = input
                    .checked_sub(self.tables.len())
                    .map(|n| &self.stages[n]);
                let Some(stage) = stage.filter(|s| matches!(s.body, Body::Recursive(_))) else {
                    continue;
                };
                for column in stage.columns.iter().filter(|c| names.contains(&c.name)) {
                    let kind = column.index_method();
                    let table = inputs[input].qualified();
                    let index = format!(
                        "CREATE INDEX ON {table} USING {kind} ({})",
                        quote(&column.name)
                    );
                    if column.hashable && !statements.contains(&index) {
                        statements.push(index);
                    }
                }
            }
        }
        Ok(statements)
    }

    /// What the linear bodies of the plan read: the sources, and the stages; with where changes are staged, if `changed`.
    pub(crate) fn inputs(
        &self,
        id: i64,
        changed: impl Fn(u32) -> bool,
        changed_stages: &[bool],
    ) -> Vec<terms::Input<'_>> {
        let tables = self.tables.iter().map(|t| terms::Input {
            schema: &t.schema,
            name: t.name.as_str().into(),
            columns: &t.columns,
            all_columns: t.all_columns.as_slice().into(),
            delta: t
                .buffer
                .filter(|_| changed(t.relid))
                .map(|b| (staging(id, b), 'c')),
        });
        let stages = self.stages.iter().enumerate().map(|(i, s)| terms::Input {
            schema: "pgtrickle",
            name: cut::stage_name(id, i + 1).into(),
            columns: &s.columns,
            all_columns: s.columns.iter().map(|c| c.name.clone()).collect(),
            delta: changed_stages
                .get(i)
                .is_some_and(|changed| *changed)
                .then(|| (format!("pgtrickle.out_{id}_{}", i + 1), 'o')),
        });
        tables.chain(stages).collect()
    }

    /// The shared stages that it reads.
    pub(crate) fn shared(&self) -> impl Iterator<Item = i64> {
        self.tables.iter().filter_map(|table| table.shared)
    }

    /// Whether it reads shared stages: then it is its query only where these are of the same moment.
    pub(crate) fn reads_shared(&self) -> bool {
        self.shared().next().is_some()
    }

    /// The tables whose changes it follows, by their numbers: all, but for those that only shared stages read.
    ///
    /// # Errors
    /// [`crate::conn::Error::Internal`] for a plan that cannot be read.
    pub(crate) fn followed(&self, id: i64) -> Result<Vec<usize>, crate::conn::Error> {
        if !self.reads_shared() {
            return Ok((0..self.tables.len()).collect());
        }
        let inputs = self.inputs(id, |_| false, &[]);
        let bodies = self.stages.iter().map(|s| &s.body).chain([&self.body]);
        let mut followed = Vec::new();
        for body in bodies.filter_map(Body::linear) {
            followed.extend(terms::read(body, &inputs)?.iter().map(|(input, _)| *input));
        }
        followed.retain(|&input| input < self.tables.len());
        followed.sort_unstable();
        followed.dedup();
        Ok(followed)
    }

    pub(crate) fn is_full(&self) -> bool {
        matches!(self.body, Body::Full { .. })
    }

    /// Why the plan is full, if it is.
    pub(crate) fn full_reason(&self) -> Option<&str> {
        match &self.body {
            Body::Full { reason } => Some(reason),
            _ => None,
        }
    }
}

/// An identifier as SQL text, always quoted.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant as SQL text.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}
