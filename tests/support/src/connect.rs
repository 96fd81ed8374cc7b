//! tokio-postgres clients.

use tokio_postgres::{Client, Config, Error, NoTls};

/// Connects over TCP on loopback. Roles made by these helpers have their own name as password.
///
/// # Panics
/// If the server cannot be reached or refuses.
pub async fn connect(port: u16, user: &str, database: &str) -> Client {
    match try_connect(port, user, database).await {
        Ok(client) => client,
        Err(error) => panic!("connection of {user} to {database} on port {port}: {error:?}"),
    }
}

/// As [`connect`], for servers that may be down.
pub async fn try_connect(port: u16, user: &str, database: &str) -> Result<Client, Error> {
    let (client, connection) = Config::new()
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .password(user)
        .dbname(database)
        .connect(NoTls)
        .await?;
    // Ends with the client; its error is what the client's calls report.
    tokio::spawn(connection);
    Ok(client)
}
