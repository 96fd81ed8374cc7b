use super::{MINIMAL, read, with_user};

#[test]
fn unknown_keys_are_warned_of_with_the_nearest_name() {
    let text = format!(
        "pol = 1\n{}",
        with_user("pool_sise = 8").replace(
            "[general]",
            "[general]\nverify_config = true\nzzz = 1\nprepared_statements_cache_size = 500"
        )
    );
    let (_, warnings) = read(&text);
    assert_eq!(
        warnings,
        [
            "pgcat.toml:1: pol: unknown key is ignored; did you mean \"pools\"?",
            "pgcat.toml:4: general.verify_config: unknown key is ignored; did you mean \"validate_config\"?",
            "pgcat.toml:5: general.zzz: unknown key is ignored",
            "pgcat.toml:6: general.prepared_statements_cache_size: unknown key is ignored; it belongs in [pools.<name>]",
            "pgcat.toml:11: pools.db.users.0.pool_sise: unknown key is ignored; did you mean \"pool_size\"?",
        ]
    );
}

#[test]
fn unknown_keys_of_plugins_servers_and_the_top_level_are_warned_of_too() {
    let text = format!(
        "[plugins.stream_tables]\nenabled = true\nscheduel = \"5s\"\n[plugins.steam_tables]\n{MINIMAL}"
    );
    let text = text.replace(
        r#"["127.0.0.1", 5432, "primary"]"#,
        r#"{host = "h", port = 1, role = "primary", rol = 1}"#,
    );
    let (config, warnings) = read(&format!("{text}\n[pool.db.plugins]\n"));
    let warnings: Vec<_> = warnings
        .iter()
        .filter(|warning| warning.contains("unknown"))
        .collect();
    assert_eq!(
        warnings,
        [
            "pgcat.toml:3: plugins.stream_tables.scheduel: unknown key is ignored; did you mean \"schedule\"?",
            "pgcat.toml:4: plugins.steam_tables: unknown key is ignored; did you mean \"stream_tables\"?",
            "pgcat.toml:16: pools.db.shards.0.servers.0.rol: unknown key is ignored; did you mean \"role\"?",
            "pgcat.toml:19: pool: unknown key is ignored; did you mean \"pools\"?",
        ]
    );
    assert!(config.plugins.contains_key("steam_tables"));
    assert!(!config.plugins["stream_tables"].contains_key("scheduel"));
}
