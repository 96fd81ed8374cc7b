//! Makes the plan of a definition view.

use std::collections::{BTreeMap, BTreeSet};

use pg_query::protobuf::SelectStmt;

use super::ast::{parse_select, select_text};
use super::cut::{self, Kind, Parts, Pieced, Top};
use super::facts::{self, Relation};
use super::fragment::{Digest, Fragment, Sharing, shared_name};
use super::functions::{self, Function, Tree};
use super::inline::{Names, Reason};
use super::keyed::Pieces;
use super::normalise::normalise;
use super::recursion::Recursion;
use super::{
    Aggregate, Body, Column, Extreme, Image, Keyed, Partition, Plan, Settings, Stage, Table,
    WeightKind, Weights, literal, probe, terms,
};
use crate::conn::{Conn, Error};

/// What there is to know of a definition.
#[derive(Debug)]
pub(crate) struct Analysed {
    /// Its buffers are not set yet.
    pub plan: Plan,
    /// Parts of the query that are computed for this stream table alone.
    pub fragments: Vec<Fragment>,
    /// What the whole query is as a part of others; `None` where it cannot be one.
    pub whole: Option<Digest>,
}

/// Analyses view `view` of stream table `id`, with the pinned search path in force.
///
/// # Errors
/// [`Error::Refused`] for a query that cannot be a stream table at all.
pub(crate) async fn analyse<C: Conn>(
    c: &mut C,
    id: i64,
    view: u32,
    settings: Settings,
    full: Option<String>,
    sharing: &Sharing,
) -> Result<Analysed, Error> {
    let relations = facts::closure(c, view).await?;
    refuse_relations(&relations)?;
    let canonical = view_text(c, view).await?;
    let mut views = vec![(view, canonical.clone())];
    views.extend(
        relations
            .iter()
            .filter_map(|r| Some((r.relid, r.view_text.clone()?))),
    );
    let mut trees = Vec::new();
    for (view, _) in &views {
        trees.push(functions::tree(c, *view).await?);
    }
    let called = functions::called(c, &trees).await?;
    refuse_trees(&trees, &called)?;

    let columns = facts::columns(c, view).await?;
    let tables = tables(c, &views, &relations, trees.iter().any(|t| t.whole_row)).await?;
    let plan = Plan {
        canonical,
        columns,
        stages: Vec::new(),
        body: Body::Full {
            reason: full.clone().unwrap_or_default(),
        },
        tables,
        views: relations
            .iter()
            .filter(|r| r.kind == 'v')
            .map(|r| r.relid)
            .collect(),
        functions: called
            .iter()
            .filter(|f| !f.is_builtin())
            .map(|f| f.oid)
            .collect(),
        settings,
    };
    let mut analysed = Analysed {
        plan,
        fragments: Vec::new(),
        whole: None,
    };
    if full.is_some() {
        return Ok(analysed);
    }
    let plan = &mut analysed.plan;
    let virtual_column = facts::virtual_column(c, &plan.tables)
        .await?
        .map(|name| format!("it uses the virtual generated column \"{name}\""));
    let body = match obstacle(&relations, &trees, &called)
        .or(virtual_column)
        .or(guard(c, id, &views, &trees).await?)
    {
        Some(reason) => Err(reason),
        None => body(c, id, plan, &relations, &views, &called, sharing).await?,
    };
    match body {
        Ok(typed) => {
            (plan.stages, plan.body) = (typed.stages, typed.body);
            for id in typed.shared {
                let table = shared_table(c, id).await?;
                // The query itself may read it too.
                plan.tables.retain(|other| other.relid != table.relid);
                plan.tables.push(table);
            }
            // Locks are taken in this order.
            plan.tables.sort_by_key(|table| table.relid);
            analysed.fragments = typed.fragments;
            analysed.whole = Some(typed.whole);
        }
        Err(reason) => plan.body = Body::Full { reason },
    }
    Ok(analysed)
}

/// The table of a shared stage as a source.
async fn shared_table<C: Conn>(c: &mut C, id: i64) -> Result<Table, Error> {
    let name = shared_name(id);
    let relid = crate::catalog::regclass(c, &format!("pgtrickle.{name}")).await?;
    let columns = facts::columns(c, relid).await?;
    Ok(Table {
        relid,
        schema: "pgtrickle".to_owned(),
        name,
        partitioned: false,
        buffer: None,
        shared: Some(id),
        all_columns: columns.iter().map(|c| c.name.clone()).collect(),
        columns,
    })
}

/// The view's text under the search path in force.
///
/// # Errors
/// Those of the server.
pub(crate) async fn view_text<C: Conn>(c: &mut C, view: u32) -> Result<String, Error> {
    let rows = c
        .query(&format!("SELECT pg_get_viewdef({view}::oid)"))
        .await?;
    let text = rows
        .first()
        .and_then(|r| r.text(0))
        .ok_or_else(|| Error::Drift("the definition is gone".to_owned()))?;
    Ok(text.trim().trim_end_matches(';').to_owned())
}

fn refuse_relations(relations: &[Relation]) -> Result<(), Error> {
    match relations.iter().find(|r| r.temporary) {
        Some(r) => Err(Error::refused(
            "0A000",
            format!(
                "stream tables must not use temporary tables: \"{}\"",
                r.name
            ),
        )),
        None => Ok(()),
    }
}

fn refuse_trees(trees: &[Tree], called: &[Function]) -> Result<(), Error> {
    let what = if trees.iter().any(|t| t.system_column) {
        "stream tables cannot use system columns".to_owned()
    } else if trees.iter().any(|t| t.table_sample) {
        "stream tables cannot use TABLESAMPLE".to_owned()
    } else if trees.iter().any(|t| t.locking) {
        "stream tables cannot use FOR UPDATE or FOR SHARE".to_owned()
    } else if let Some(f) = called.iter().find(|f| f.volatility == 'v') {
        format!(
            "stream tables cannot use the volatile function {}()",
            f.name
        )
    } else {
        return Ok(());
    };
    let mut fields = pgcat::plugins::ErrorFields::error("0A000", what);
    fields.detail =
        Some("The result would not follow from the contents of the source tables.".to_owned());
    Err(Error::Refused(Box::new(fields)))
}

/// Why nothing incremental can be done, whatever the shape of the query.
fn obstacle(relations: &[Relation], trees: &[Tree], called: &[Function]) -> Option<Reason> {
    for r in relations {
        let what = match r.kind {
            _ if r.is_catalog => "is a system catalog",
            'm' => "is a materialized view",
            'f' => "is a foreign table",
            'v' => continue,
            'r' | 'p' if r.row_security => "has row-level security that applies to the owner",
            'r' | 'p' if !r.may_select => "is not readable as a whole by the owner",
            'r' | 'p' if !r.may_trigger => "gives the owner no TRIGGER privilege",
            'r' if r.has_children => "has inheritance children",
            'r' | 'p' => continue,
            _ => "is of a kind whose changes cannot be captured",
        };
        return Some(format!("\"{}\" {what}", r.name));
    }
    if trees.iter().any(|t| t.value_function) {
        return Some("it uses the current date, time or user".to_owned());
    }
    if trees.iter().any(|t| t.whole_row) {
        return Some("it refers to a whole row".to_owned());
    }
    called.iter().find_map(Function::unsteady)
}

/// Deparsed text that means something else when it is read back (by search path, or by a fault of the deparser) shows in
/// the functions it resolves to.
async fn guard<C: Conn>(
    c: &mut C,
    id: i64,
    views: &[(u32, String)],
    trees: &[Tree],
) -> Result<Option<Reason>, Error> {
    for ((_, text), tree) in views.iter().zip(trees) {
        let Ok(select) = parse_select(text.trim().trim_end_matches(';')) else {
            return Ok(Some("its text is not understood".to_owned()));
        };
        let copy = probe::create(c, id, &select_text(&select)?).await?;
        let same = functions::tree(c, copy).await?.sequence == tree.sequence;
        probe::drop(c, id).await?;
        if !same {
            return Ok(Some(
                "its meaning depends on the search path in a way that cannot be written down"
                    .to_owned(),
            ));
        }
    }
    Ok(None)
}

async fn tables<C: Conn>(
    c: &mut C,
    views: &[(u32, String)],
    relations: &[Relation],
    all: bool,
) -> Result<Vec<Table>, Error> {
    let view_oids: Vec<_> = views.iter().map(|v| v.0).collect();
    let used = facts::used_columns(c, &view_oids).await?;
    let mut tables = Vec::new();
    for r in relations
        .iter()
        .filter(|r| matches!(r.kind, 'r' | 'p') && !r.is_catalog)
    {
        let columns = facts::columns(c, r.relid).await?;
        tables.push(Table {
            relid: r.relid,
            schema: r.schema.clone(),
            name: r.name.clone(),
            partitioned: r.kind == 'p' || r.is_child,
            buffer: None,
            shared: None,
            all_columns: columns.iter().map(|c| c.name.clone()).collect(),
            columns: columns
                .into_iter()
                .filter(|c| all || used.contains(&(r.relid, c.attnum)))
                .collect(),
        });
    }
    Ok(tables)
}

/// A query whose types are known.
struct Typed {
    stages: Vec<Stage>,
    body: Body,
    fragments: Vec<Fragment>,
    shared: BTreeSet<i64>,
    whole: Digest,
}

async fn body<C: Conn>(
    c: &mut C,
    id: i64,
    plan: &Plan,
    relations: &[Relation],
    views: &[(u32, String)],
    called: &[Function],
    sharing: &Sharing,
) -> Result<Result<Typed, Reason>, Error> {
    let mut names = Names::default();
    for r in relations.iter().filter(|r| r.kind == 'v') {
        if let Some((_, text)) = views.iter().find(|v| v.0 == r.relid) {
            names.views.insert(
                (r.schema.clone(), r.name.clone()),
                text.trim().trim_end_matches(';').to_owned(),
            );
        }
    }
    for f in called.iter().filter(|f| f.is_aggregate) {
        let schema = if f.is_builtin() {
            String::new()
        } else {
            f.schema.clone()
        };
        names.aggregates.insert((schema, f.name.clone()));
    }
    if plan
        .tables
        .iter()
        .flat_map(|t| &t.all_columns)
        .chain(plan.columns.iter().map(|c| &c.name))
        .any(|n| n == terms::WEIGHT)
    {
        return Ok(Err(format!("a column is called {}", terms::WEIGHT)));
    }
    let mut select: SelectStmt = parse_select(&plan.canonical)?;
    let mut columns: BTreeMap<_, _> = plan
        .tables
        .iter()
        .map(|t| ((t.schema.clone(), t.name.clone()), t.all_columns.clone()))
        .collect();
    let cut = names.inline(&mut select).and_then(|()| {
        let mut recursions = names.recursions.take();
        columns.extend(recursions.iter().map(Recursion::as_table));
        for recursion in &mut recursions {
            normalise(&mut recursion.base, &columns)?;
            normalise(&mut recursion.step, &columns)?;
        }
        normalise(&mut select, &columns)?;
        cut::cut(&names, id, select, recursions, sharing)
    });
    let Pieced {
        stages: specs,
        top,
        fragments,
        shared,
        whole,
    } = match cut {
        Ok(cut) => cut,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut stages = Vec::new();
    for (i, spec) in specs.into_iter().enumerate() {
        let table = cut::stage_table(id, i + 1);
        // After mere renames of the sources it is there, with its rows. Not one that somebody else has put there.
        if !is_own(c, id, &cut::stage_name(id, i + 1)).await? {
            c.query(&format!(
                "CREATE TABLE {table} AS {} WITH NO DATA",
                spec.sql
            ))
            .await?;
        }
        let relid = crate::catalog::regclass(c, &table).await?;
        let columns = facts::columns(c, relid).await?;
        let body = match spec.kind {
            Kind::Linear(sql) => Ok(Body::Linear { sql }),
            Kind::Keyed(pieces) => type_pieces(c, id, pieces).await?,
            Kind::Partition(parts) => type_parts(c, (id, i + 1), parts, spec.sql).await?,
            Kind::Recursive(recursive) => recursive.typed(&columns),
        };
        match body {
            Ok(body) => stages.push(Stage { columns, body }),
            Err(reason) => return drop_stages(c, id, i + 1, reason).await,
        }
    }
    let body = match top {
        Top::Linear(sql) => Ok(Body::Linear { sql }),
        Top::Keyed(pieces) => type_pieces(c, id, pieces).await?,
    };
    match body {
        Ok(body) => Ok(Ok(Typed {
            stages,
            body,
            fragments,
            shared,
            whole,
        })),
        Err(reason) => drop_stages(c, id, stages.len(), reason).await,
    }
}

/// Whether there is a table of this name in `pgtrickle` that belongs to the stream table's owner.
async fn is_own<C: Conn>(c: &mut C, id: i64, name: &str) -> Result<bool, Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_class k JOIN pg_namespace n ON n.oid = k.relnamespace
            WHERE n.nspname = 'pgtrickle' AND k.relname = {} AND k.relkind = 'r' AND pg_get_userbyid(k.relowner)
                = coalesce((SELECT pg_get_userbyid(c.owner) FROM pgtrickle.catalog c WHERE c.id = {id}), current_user))",
        literal(name)
    );
    let rows = c.query(&sql).await?;
    Ok(rows.first().is_some_and(|row| row.is_true(0)))
}

async fn drop_stages<C: Conn, T>(
    c: &mut C,
    id: i64,
    stages: usize,
    reason: Reason,
) -> Result<Result<T, Reason>, Error> {
    for n in 1..=stages {
        c.query(&format!("DROP TABLE {}", cut::stage_table(id, n)))
            .await?;
    }
    Ok(Err(reason))
}

async fn type_parts<C: Conn>(
    c: &mut C,
    (id, n): (i64, usize),
    parts: Parts,
    query: String,
) -> Result<Result<Body, Reason>, Error> {
    let mut keys = Vec::new();
    if !parts.keys.is_empty() {
        keys = probe::columns(c, id, &parts.body).await?;
        keys.truncate(parts.keys.len());
    }
    if let Some(key) = keys.iter().find(|k| !k.hashable) {
        return Ok(Err(format!(
            "it partitions by type {}, which has no hash function",
            key.type_name
        )));
    }
    let equalities: Vec<_> = keys.iter().map(|k| k.equality().to_owned()).collect();
    let (by_key, by_null) = if keys.is_empty() {
        (query.clone(), String::new())
    } else {
        let table = format!("pgtrickle.keys_{id}_{n}");
        cut::restricted(&query, &parts.keys, &equalities, &table)?
    };
    Ok(Ok(Body::Partition(Partition {
        body: parts.body,
        args: parts.args,
        keys,
        query,
        by_key,
        by_null,
    })))
}

async fn type_pieces<C: Conn>(
    c: &mut C,
    id: i64,
    pieces: Pieces,
) -> Result<Result<Body, Reason>, Error> {
    let mut columns = probe::columns(c, id, &pieces.body).await?;
    let args = columns.split_off(pieces.keys.len());
    let mut keys = columns;
    for (key, has_one_image) in keys.iter_mut().zip(&pieces.keys) {
        if *has_one_image {
            key.image = Image::Plain;
        }
    }
    if let Some(key) = keys.iter().find(|k| !k.hashable) {
        return Ok(Err(format!(
            "it groups by type {}, which has no hash function",
            key.type_name
        )));
    }
    let mut results = Vec::new();
    if !pieces.calls.is_empty() {
        let calls: Vec<_> = pieces
            .calls
            .iter()
            .enumerate()
            .map(|(i, a)| format!("{} AS g{}", a.text, i + 1))
            .collect();
        results = probe::columns(
            c,
            id,
            &format!("SELECT {} FROM ({}) b", calls.join(", "), pieces.body),
        )
        .await?;
    }
    let aggregates: Vec<_> = pieces
        .calls
        .into_iter()
        .zip(results)
        .map(|(call, result)| {
            let arg = call.arg.map(|a| &args[a]);
            let kind = weight_kind(call.simple.as_deref(), arg);
            // Among equal values of one image it does not matter which one stays; of floats only 0 and -0 are equal
            // and differ, and PostgreSQL itself takes either.
            let extreme = match (call.simple.as_deref(), call.arg) {
                (Some(name @ ("min" | "max")), Some(i))
                    if args[i].image == Image::Plain
                        || matches!(args[i].type_name.as_str(), "real" | "double precision") =>
                {
                    Some(Extreme {
                        largest: name == "max",
                        arg: i,
                        filter: call.filter,
                    })
                }
                _ => None,
            };
            Aggregate {
                weights: kind.map(|kind| Weights {
                    kind,
                    arg: call.arg,
                    filter: call.filter,
                }),
                extreme,
                call: call.text,
                type_name: result.typed(),
            }
        })
        .collect();
    let by_weights = aggregates
        .iter()
        .all(|a| a.weights.is_some() || a.extreme.is_some())
        && keys.iter().all(|k| k.image == Image::Plain);
    debug_assert_eq!(args.len(), pieces.args);
    Ok(Ok(Body::Keyed(Box::new(Keyed {
        body: pieces.body,
        keys,
        args,
        aggregates,
        grouped: pieces.grouped,
        output: pieces.output,
        having: pieces.having,
        by_weights,
    }))))
}

fn weight_kind(name: Option<&str>, arg: Option<&Column>) -> Option<WeightKind> {
    let kinds = BTreeMap::from([
        (("sum", "smallint"), WeightKind::SumInt),
        (("sum", "integer"), WeightKind::SumInt),
        (("sum", "bigint"), WeightKind::SumBig),
        (("sum", "numeric"), WeightKind::SumNumeric),
        (("avg", "smallint"), WeightKind::AvgInt),
        (("avg", "integer"), WeightKind::AvgInt),
        (("avg", "bigint"), WeightKind::AvgBig),
        (("avg", "numeric"), WeightKind::AvgNumeric),
    ]);
    let name = name?;
    if name == "count" {
        return Some(WeightKind::Count);
    }
    let arg = arg?;
    let kind = *kinds.get(&(name, arg.type_name.as_str()))?;
    Some(match (kind, arg.image) {
        (kind, Image::Plain) => kind,
        (WeightKind::SumNumeric, _) => WeightKind::SumFree,
        (WeightKind::AvgNumeric, _) => WeightKind::AvgFree,
        (kind, _) => kind,
    })
}
