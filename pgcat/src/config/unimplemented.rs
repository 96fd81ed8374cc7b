//! Settings of PgCat that are accepted and checked, but do nothing so far.

/// Keys without effect, `*` for a name or number. A file that sets any of them (to something other
/// than `false` or `0`, which is what "no effect" amounts to) gets one warning that lists them.
pub const NOT_IMPLEMENTED: &[&str] = &[
    // metrics
    "general.enable_prometheus_exporter",
    "general.prometheus_exporter_port",
    // reload
    "general.autoreload",
    // more than one server
    "pools.*.shards.*.mirrors",
    // routing by the text of a query
    "pools.*.query_parser_enabled",
    "pools.*.query_parser_max_length",
    "pools.*.query_parser_read_write_splitting",
    "pools.*.primary_reads_enabled",
    "pools.*.db_activity_based_routing",
    "pools.*.db_activity_init_delay",
    "pools.*.db_activity_ttl",
    "pools.*.table_mutation_cache_ms_ttl",
    // sharding
    "pools.*.sharding_function",
    "pools.*.automatic_sharding_key",
    "pools.*.sharding_key_regex",
    "pools.*.shard_id_regex",
    "pools.*.regex_search_limit",
    // users
    "pools.*.users.*.statement_timeout",
    // PgCat's plugins
    "plugins.prewarmer",
    "plugins.query_logger",
    "plugins.table_access",
    "plugins.intercept",
    "pools.*.plugins.prewarmer",
    "pools.*.plugins.query_logger",
    "pools.*.plugins.table_access",
    "pools.*.plugins.intercept",
];
