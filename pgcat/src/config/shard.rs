//! `[pools.<name>.shards.<n>]`.

use super::error::ConfigError;
use super::model::{Mirror, Role, ServerAddress, Shard};
use super::section::Section;
use super::value::Value;

const ROLES: &[(&str, Role)] = &[
    ("primary", Role::Primary),
    ("replica", Role::Replica),
    ("auto", Role::Auto),
    ("mirror", Role::Mirror),
];

/// Reads all shards of a pool, in the order of their numbers.
pub(super) fn read_all(section: &Section<'_>) -> Result<Vec<Shard>, ConfigError> {
    let mut numbered = Vec::new();
    for (name, value) in section.entries() {
        let number: usize = name.parse().map_err(|_| {
            let rule = "shards must be numbered starting at 0";
            value.error(format!("Shard '{name}' is not a valid number, {rule}"))
        })?;
        numbered.push((number, value));
    }
    if numbered.is_empty() {
        return Err(section.error_here("the pool has no shards configured"));
    }
    numbered.sort_by_key(|&(number, _)| number);

    let mut shards = Vec::new();
    for (position, (number, value)) in numbered.iter().enumerate() {
        // PgCat takes the numbers for positions without looking, and reads past the end of its list.
        if *number != position {
            let count = numbered.len();
            return Err(value.error(format!(
                "shards must be numbered from 0 to {} without gaps, found shard {number}",
                count - 1
            )));
        }
        shards.push(read(&value.section()?)?);
    }
    Ok(shards)
}

fn read(section: &Section<'_>) -> Result<Shard, ConfigError> {
    let database = section.required("database", "a string")?.string()?;
    let values = section
        .required("servers", "an array of servers")?
        .array("an array of servers, e.g. [[\"127.0.0.1\", 5432, \"primary\"]]")?;
    let servers = values.iter().map(server).collect::<Result<Vec<_>, _>>()?;

    if servers.is_empty() {
        return Err(section.error(
            "servers",
            format!("Shard {database} has no servers configured"),
        ));
    }
    if servers
        .iter()
        .filter(|server| server.role == Role::Primary)
        .count()
        > 1
    {
        let message = format!("Shard {database} has more than one primary configured");
        return Err(section.error("servers", message));
    }
    for (index, server) in servers.iter().enumerate() {
        if servers[..index].contains(server) {
            let message = format!("Shard {database} contains duplicate server configs");
            return Err(section.error("servers", message));
        }
    }
    let mirrors = match section.value("mirrors") {
        Some(value) => value
            .array("an array of mirrors, e.g. [[\"127.0.0.1\", 5433, 0]]")?
            .iter()
            .map(|value| mirror(value, &servers))
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    section.finish();
    Ok(Shard {
        database,
        servers,
        mirrors,
    })
}

fn server(value: &Value<'_>) -> Result<ServerAddress, ConfigError> {
    let [host, port, role] = parts(value, ["host", "port", "role"], "[host, port, role]")?;
    Ok(ServerAddress {
        host: host_name(&host)?,
        port: port.integer(1, u16::MAX)?,
        role: role.choice(ROLES)?,
    })
}

fn mirror(value: &Value<'_>, servers: &[ServerAddress]) -> Result<Mirror, ConfigError> {
    let names = ["host", "port", "mirroring_target_index"];
    let [host, port, target] = parts(value, names, "[host, port, mirroring_target_index]")?;
    let mirror = Mirror {
        host: host_name(&host)?,
        port: port.integer(1, u16::MAX)?,
        // PgCat ignores a mirror of a server that does not exist.
        mirroring_target_index: target.integer(0, servers.len() - 1)?,
    };
    let is_it = |server: &ServerAddress| server.host == mirror.host && server.port == mirror.port;
    if servers.iter().any(is_it) {
        let message = "a server of the shard cannot be its mirror: it would do everything twice";
        return Err(value.error(message));
    }
    Ok(mirror)
}

/// The three parts of a server or mirror, which is an array or a table.
fn parts<'d>(
    value: &Value<'d>,
    names: [&'static str; 3],
    shape: &str,
) -> Result<[Value<'d>; 3], ConfigError> {
    if value.is_table() {
        let section = value.section()?;
        let part = |name| section.required(name, &format!("a table with {}", names.join(", ")));
        let parts = [part(names[0])?, part(names[1])?, part(names[2])?];
        section.finish();
        return Ok(parts);
    }
    let parts: [Value<'d>; 3] = value.array(shape)?.try_into().map_err(|parts: Vec<_>| {
        value.error(format!("expected {shape}, found {} elements", parts.len()))
    })?;
    let [first, second, third] = parts;
    Ok([
        first.named(names[0]),
        second.named(names[1]),
        third.named(names[2]),
    ])
}

fn host_name(value: &Value<'_>) -> Result<String, ConfigError> {
    let host = value.string()?;
    if host.is_empty() {
        return Err(value.expected("a host name, an address or a socket directory"));
    }
    Ok(host)
}
