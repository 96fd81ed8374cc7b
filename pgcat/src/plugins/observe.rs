//! What plugins show of themselves to those who run the pooler.

use super::Column;

/// A table that a plugin adds to the admin databases.
#[derive(Debug, PartialEq, Eq)]
pub struct AdminTable {
    /// What follows `SHOW`, in capitals.
    pub name: &'static str,
    /// Names and types' OIDs, as in [`Column`].
    pub columns: &'static [(&'static str, u32)],
}

impl AdminTable {
    /// The columns.
    #[must_use]
    pub fn columns(&self) -> Vec<Column> {
        let columns = self.columns.iter().map(|(name, type_oid)| Column {
            name: (*name).to_owned(),
            type_oid: *type_oid,
        });
        columns.collect()
    }
}

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    Gauge,
}

/// A metric for Prometheus.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// The name after `pgcat_`.
    pub name: &'static str,
    pub kind: MetricKind,
    /// What it is, in one line.
    pub help: &'static str,
    pub samples: Vec<Sample>,
}

/// A value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Names and values. No two samples of a metric may have the same ones.
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// An answer to an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its media type.
    pub content_type: &'static str,
    pub body: String,
}
