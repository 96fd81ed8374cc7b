//! A client's connection from its first packet to the end of its login.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::io::{Io, OutBuffer};
use super::login;
use super::registration::{Kind, Registration, Who};
use super::replication;
use super::server::{Parameters, Server};
use super::session::Session;
use super::threads::{CancelKey, Origin, ThreadContext};
use super::tls::TlsStream;
use crate::admin::session::AdminSession;
use crate::admin::{Dialect, Privilege};
use crate::config::model::AuthType;
use crate::error::Error;
use crate::plugins::PoolIdentity;
use crate::pool::limits::{Count, Seat};
use crate::pool::local::LocalPool;
use crate::pool::shared::PoolShared;
use crate::router::route::Route;
use crate::session::settings::Settings;
use crate::tls::Acceptor;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{self, build};
use crate::wire::startup::{BadStartup, FirstPacket, Startup, parse_options};
use crate::wire::{HEADER, Header, TransactionStatus, backend};

/// The first byte of a TLS handshake, where a length has a zero: PostgreSQL 17's direct TLS.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection that has not logged in yet.
pub(super) struct Newcomer {
    pub io: Io,
    pub input: Vec<u8>,
    pub out: OutBuffer,
    /// What the TLS session, if there is one, began with.
    pub tls: Option<Arc<Acceptor>>,
    /// It asked for a protocol before 3.0, which has its own form of errors.
    is_ancient: bool,
    /// For the limits of clients. Held to the end of the connection.
    seats: Vec<Seat>,
}

/// A client of a pool that has logged in.
pub(super) struct Client {
    session: Session,
    /// For the limits of clients.
    _seats: Vec<Seat>,
}

impl Client {
    /// Serves the client until it leaves.
    pub async fn serve(&mut self) {
        let outcome = self.session.run().await;
        let handle = &self.session.registration.handle;
        let PoolIdentity { database, user } = &*handle.who.identity;
        match outcome {
            Ok(()) => (),
            Err(error @ Error::Client(_)) => log::debug!("{database}/{user}: {error}"),
            Err(error) => log::info!("{database}/{user}: {error}"),
        }
        let general = &self.session.thread.config().general;
        if handle.who.kind == Kind::Client && general.log_client_disconnections {
            log::info!("client disconnected from {database}/{user}");
        }
    }
}

/// Serves a connection from its first byte to its end, or until its client has logged in to a pool, which is then to be
/// served. Apart from that, and boxed here, because a future has room for all it ever holds as long as it is there: an idle
/// client is not to pay for its login.
pub(super) async fn admit(
    thread: &Rc<ThreadContext>,
    io: Io,
    origin: Origin,
) -> Option<Box<Client>> {
    let (internal_pool, arrival) = match origin {
        Origin::Inside(pool) => (Some(pool), None),
        Origin::Outside(arrival) => (None, Some(arrival)),
    };
    let mut newcomer = Newcomer {
        io,
        input: Vec::new(),
        out: OutBuffer::default(),
        tls: None,
        is_ancient: false,
        seats: Vec::new(),
    };
    let limit = thread.config().general.client_login_timeout;
    let login = Box::pin(async {
        let _arrival = arrival;
        let login = Login::begin(thread);
        newcomer.log_in(thread, internal_pool, &login).await
    });
    let admitted = match tokio::time::timeout(limit, login).await {
        Ok(Ok(Some(Admission::Pool(admitted)))) => admitted,
        Ok(Ok(Some(Admission::Admin {
            registration,
            dialect,
            privilege,
        }))) => {
            let Newcomer { io, input, .. } = newcomer;
            let session = AdminSession::new(thread.clone(), registration, io, dialect, privilege);
            if let Err(error) = Box::pin(session.run(input)).await {
                log::debug!("admin database {}: {error}", dialect.database());
            }
            return None;
        }
        Ok(Ok(Some(Admission::Replication {
            registration,
            server,
        }))) => {
            let Newcomer { io, input, .. } = newcomer;
            if let Err(error) =
                Box::pin(replication::relay(thread, registration, io, server, input)).await
            {
                log::info!("a replication connection ended: {error}");
            }
            return None;
        }
        // A cancel request, or a port check that sent nothing.
        Ok(Ok(None)) => return None,
        Ok(Err(error)) => {
            newcomer.turn_away(error).await;
            return None;
        }
        Err(_) => {
            log::info!("a client did not log in within {limit:?}");
            return None;
        }
    };
    if internal_pool.is_none() && thread.config().general.log_client_connections {
        let PoolIdentity { database, user } = &*admitted.pool.shared.identity;
        log::info!("client connected to {database}/{user}");
    }
    let Newcomer {
        io, input, seats, ..
    } = newcomer;
    let session = Session::new(
        thread.clone(),
        admitted.pool,
        admitted.registration,
        io,
        admitted.settings,
        input,
    );
    Some(Box::new(Client {
        session,
        _seats: seats,
    }))
}

/// Counts a client while it logs in.
struct Login<'t> {
    thread: &'t ThreadContext,
    /// `max_client_logins` others are at it. A cancel request is let through all the same.
    is_one_too_many: bool,
}

impl<'t> Login<'t> {
    fn begin(thread: &'t ThreadContext) -> Self {
        let before = thread.pooler.logins.fetch_add(1, Ordering::Relaxed);
        let limit = thread.config().general.max_client_logins;
        Self {
            thread,
            is_one_too_many: limit.is_some_and(|limit| before >= limit),
        }
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        self.thread.pooler.logins.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long one login too many may take to turn out to be a cancel request.
const CANCEL_WITHIN: Duration = Duration::from_secs(1);

fn too_many(message: &str) -> Error {
    Error::Refused(Box::new(ErrorFields::fatal("53300", message)))
}

/// Where a client has logged in to.
enum Admission {
    Admin {
        registration: Registration,
        dialect: Dialect,
        privilege: Privilege,
    },
    Pool(Admitted),
    Replication {
        registration: Registration,
        server: Box<Server>,
    },
}

/// A client of a pool.
struct Admitted {
    pool: Rc<LocalPool>,
    registration: Registration,
    settings: Settings,
}

impl Newcomer {
    async fn log_in(
        &mut self,
        thread: &Rc<ThreadContext>,
        internal_pool: Option<usize>,
        login: &Login<'_>,
    ) -> Result<Option<Admission>, Error> {
        let startup = if login.is_one_too_many && internal_pool.is_none() {
            let startup = tokio::time::timeout(CANCEL_WITHIN, self.read_startup(thread)).await;
            match startup {
                Ok(Ok(None)) => None,
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Some(_))) | Err(_) => {
                    return Err(too_many("too many clients are logging in"));
                }
            }
        } else {
            self.read_startup(thread).await?
        };
        let Some(startup) = startup else {
            return Ok(None);
        };
        if startup.needs_negotiation() {
            startup.negotiate(self.out.tail());
        }
        let user = startup
            .parameter("user")
            .filter(|user| !user.is_empty())
            .ok_or_else(|| {
                Error::Refused(Box::new(ErrorFields::fatal(
                    "28000",
                    "no PostgreSQL user name specified in startup packet",
                )))
            })?;
        let database = startup
            .parameter("database")
            .filter(|name| !name.is_empty())
            .unwrap_or(user);
        if let Some(dialect) = Dialect::of(database)
            && internal_pool.is_none()
        {
            return self
                .log_in_admin(thread, &startup, user, dialect)
                .await
                .map(Some);
        }
        if thread.pooler.refuses() && internal_pool.is_none() {
            return Err(Error::Refused(Box::new(ErrorFields::fatal(
                "57P03",
                "the database system is shutting down",
            ))));
        }
        let pool = match internal_pool {
            Some(index) => thread.pool(index).ok_or(Error::Retired)?,
            None => {
                // Administrators do not count, so that they get into a full pooler.
                let limit = thread.config().general.max_client_conn;
                let message = "no more connections allowed (max_client_conn)";
                self.take_seat(&thread.pooler.seats, limit, message)?;
                let pool = self.authenticate(thread, database, user).await?;
                self.take_seats_of(&pool.shared)?;
                pool
            }
        };
        if replication::is_wanted(&startup) && internal_pool.is_none() {
            return self
                .log_in_replication(thread, &pool, &startup)
                .await
                .map(Some);
        }
        let settings = session_settings(&startup)?;
        let (pool, parameters) = greeted(thread, pool, &settings).await?;
        let kind = match internal_pool {
            Some(_) => Kind::Internal,
            None => Kind::Client,
        };
        let who = self.who(kind, Arc::clone(&pool.shared.identity), &startup);
        let registration = Registration::new(thread, who);
        let parameters = parameters.iter();
        self.greet(
            parameters.map(|(n, v)| (n.as_str(), v.as_str())),
            registration.key,
        );
        self.flush().await?;
        Ok(Some(Admission::Pool(Admitted {
            pool,
            registration,
            settings,
        })))
    }

    /// Counts the client where it is one of few.
    ///
    /// # Errors
    /// [`Error::Refused`], 53300, if all seats are taken.
    fn take_seat(
        &mut self,
        count: &Arc<Count>,
        limit: Option<usize>,
        message: &str,
    ) -> Result<(), Error> {
        let seat = count.take(limit).ok_or_else(|| too_many(message))?;
        self.seats.push(seat);
        Ok(())
    }

    /// As [`Newcomer::take_seat`], of the database and of the user: by who has proved to be the user, so
    /// that nobody else can take a user's seats.
    fn take_seats_of(&mut self, pool: &PoolShared) -> Result<(), Error> {
        // PgBouncer's words and names of the limits.
        const EXCEEDED: [&str; 2] = [
            "client connections exceeded (max_db_client_connections)",
            "client connections exceeded (max_user_client_connections)",
        ];
        for ((count, limit), message) in pool.client_counts().into_iter().zip(EXCEEDED) {
            self.take_seat(count, limit, message)?;
        }
        Ok(())
    }

    /// Gives a client that replicates its own server connection, whose greeting it gets.
    async fn log_in_replication(
        &mut self,
        thread: &Rc<ThreadContext>,
        pool: &Rc<LocalPool>,
        startup: &Startup,
    ) -> Result<Admission, Error> {
        let server = match replication::connect(thread, pool, startup).await {
            // In the server's own words, such as that the role may not replicate.
            Err(Error::ServerRefused(fields)) => return Err(Error::Refused(fields)),
            other => other?,
        };
        let who = self.who(Kind::Client, Arc::clone(&pool.shared.identity), startup);
        let registration = Registration::new(thread, who);
        let parameters = server.parameters.iter();
        self.greet(
            parameters.map(|(n, v)| (n.as_str(), v.as_str())),
            registration.key,
        );
        self.flush().await?;
        Ok(Admission::Replication {
            registration,
            server,
        })
    }

    /// Lets a client into an admin database: the administrator, or a user of a pool who is named in
    /// `admin_users` or `stats_users`.
    async fn log_in_admin(
        &mut self,
        thread: &Rc<ThreadContext>,
        startup: &Startup,
        user: &str,
        dialect: Dialect,
    ) -> Result<Admission, Error> {
        let config = thread.pooler.config();
        let general = &config.general;
        let privilege = if general.admin_users.iter().any(|name| name == user) {
            Some(Privilege::Admin)
        } else if general.stats_users.iter().any(|name| name == user) {
            Some(Privilege::Stats)
        } else {
            None
        };
        let pools = thread.pooler.pools();
        let of_pool = pools
            .iter()
            .find(|pool| pool.identity.user == user && !pool.asks_auth_query);
        let privilege = match (privilege, of_pool) {
            (Some(privilege), Some(pool)) => {
                login::prove_to_pool(self, thread, pool).await?;
                privilege
            }
            _ => {
                let Some(admin) = general.admin() else {
                    return Err(Error::Refused(Box::new(ErrorFields::fatal(
                        "58000",
                        "there is no admin database: admin_username is not set",
                    ))));
                };
                // PgCat's `trust` lets anybody in, by any name.
                let known = admin.username == user || admin.auth_type == AuthType::Trust;
                let secret = OnceLock::new();
                let proof = login::prove(self, &admin, &secret).await;
                if !known {
                    return Err(login::refused(user));
                }
                proof?;
                Privilege::Admin
            }
        };
        let identity = PoolIdentity {
            database: dialect.database().to_owned(),
            user: user.to_owned(),
        };
        let registration =
            Registration::new(thread, self.who(Kind::Admin, Arc::new(identity), startup));
        self.greet(AdminSession::greeting(dialect), registration.key);
        self.flush().await?;
        Ok(Admission::Admin {
            registration,
            dialect,
            privilege,
        })
    }

    /// The startup message; `None` if the connection wanted something else, and has had it.
    async fn read_startup(&mut self, thread: &ThreadContext) -> Result<Option<Startup>, Error> {
        let acceptor = match self.io {
            Io::Tcp(_) => thread.pooler.tls().clients,
            // As PostgreSQL: no TLS on a Unix socket.
            Io::Memory(_) | Io::Mirrored(_) | Io::Tls(_) | Io::Unix(_) => None,
        };
        let (mut asked_ssl, mut asked_gss) = (false, false);
        loop {
            if !asked_ssl && !asked_gss && self.peek().await? == Some(TLS_HANDSHAKE) {
                let Some(acceptor) = &acceptor else {
                    log::info!("client refused: a TLS handshake, but TLS is not configured");
                    return Ok(None);
                };
                self.begin_tls(acceptor).await?;
                if !matches!(&self.io, Io::Tls(stream) if stream.has_protocol()) {
                    // Without it the bytes might be meant for another protocol, as by a browser that
                    // was lured here (ALPACA).
                    log::info!(
                        "client refused: direct TLS without the ALPN protocol \"postgresql\""
                    );
                    return Ok(None);
                }
                (asked_ssl, asked_gss) = (true, true);
            }
            let Some(field) = self.read_exact(4).await? else {
                return Ok(None);
            };
            let field = [field[0], field[1], field[2], field[3]];
            let bad = |error: BadStartup| {
                let code = match error {
                    BadStartup::Protocol(_) => "0A000",
                    _ => "08P01",
                };
                Error::Refused(Box::new(ErrorFields::fatal(code, error.to_string())))
            };
            let length = FirstPacket::body_length(field).map_err(bad)?;
            let Some(body) = self.read_exact(length).await? else {
                return Ok(None);
            };
            let packet = FirstPacket::read(&body);
            self.is_ancient = matches!(packet, Err(BadStartup::Protocol(version)) if version != 0 && version >> 16 < 3);
            match packet.map_err(bad)? {
                FirstPacket::Startup(startup) => {
                    if acceptor.is_some_and(|tls| tls.required) && self.tls.is_none() {
                        return Err(Error::Refused(Box::new(
                            ErrorFields::fatal("28000", "SSL connection is required")
                                .hint("Connect with sslmode=require."),
                        )));
                    }
                    return Ok(Some(startup));
                }
                FirstPacket::Cancel { pid, key } => {
                    if let Ok(key) = <[u8; 4]>::try_from(key.as_slice()) {
                        let key = CancelKey {
                            pid,
                            secret: u32::from_be_bytes(key),
                        };
                        thread.pooler.cancel(key).await;
                    }
                    return Ok(None);
                }
                FirstPacket::SslRequest if !asked_ssl => {
                    asked_ssl = true;
                    if let Some(acceptor) = &acceptor {
                        self.refuse_early_bytes()?;
                        self.out.tail().push(b'S');
                        self.flush().await?;
                        self.begin_tls(acceptor).await?;
                        asked_gss = true;
                        continue;
                    }
                }
                FirstPacket::GssEncRequest if !asked_gss => asked_gss = true,
                FirstPacket::SslRequest | FirstPacket::GssEncRequest => {
                    return Err(Error::protocol("encryption was already negotiated"));
                }
            }
            self.refuse_early_bytes()?;
            self.out.tail().push(b'N');
            self.flush().await?;
        }
    }

    fn refuse_early_bytes(&self) -> Result<(), Error> {
        if self.input.is_empty() {
            return Ok(());
        }
        // Sent before the answer, so perhaps by somebody in the middle, who wants them to be taken
        // for a part of what is encrypted (CVE-2021-3935, CVE-2021-23214).
        Err(Error::protocol(
            "received unencrypted data after an encryption request",
        ))
    }

    /// Goes over to TLS, with what has been read as the beginning of the handshake.
    async fn begin_tls(&mut self, acceptor: &Arc<Acceptor>) -> Result<(), Error> {
        let (placeholder, _) = tokio::io::duplex(1);
        let Io::Tcp(socket) = std::mem::replace(&mut self.io, Io::Memory(placeholder)) else {
            unreachable!("TLS is offered on TCP only");
        };
        let early = std::mem::take(&mut self.input);
        let stream = TlsStream::accept(socket.into_inner(), acceptor.config.clone(), &early).await;
        self.io = Io::Tls(stream.map_err(|error| {
            log::info!("client refused: TLS handshake: {error}");
            Error::Client(error)
        })?);
        self.tls = Some(acceptor.clone());
        Ok(())
    }

    fn who(&self, kind: Kind, identity: Arc<PoolIdentity>, startup: &Startup) -> Who {
        Who {
            kind,
            identity,
            application_name: RefCell::new(
                startup
                    .parameter("application_name")
                    .unwrap_or_default()
                    .into(),
            ),
            ends: self.io.ends(),
            tls: match &self.io {
                Io::Tls(stream) => stream.description().into(),
                Io::Memory(_) | Io::Mirrored(_) | Io::Tcp(_) | Io::Unix(_) => Box::default(),
            },
            connected: SystemTime::now(),
        }
    }

    /// Finds the pool and lets the client prove who it is.
    async fn authenticate(
        &mut self,
        thread: &Rc<ThreadContext>,
        database: &str,
        user: &str,
    ) -> Result<Rc<LocalPool>, Error> {
        let identity = PoolIdentity {
            database: database.to_owned(),
            user: user.to_owned(),
        };
        let refused = |message| Error::Refused(Box::new(ErrorFields::fatal("58000", message)));
        let missing = || {
            let message =
                format!("No pool configured for database: \"{database}\", user: \"{user}\"");
            refused(message)
        };
        let disabled = || refused(format!("database does not allow connections: {database}"));
        let known = thread.pool_of(&identity).filter(|pool| {
            // From here on it is not removed for want of use.
            self.seats.extend(pool.shared.sessions.take(None));
            !pool.shared.is_retired()
        });
        if let Some(pool) = known {
            if pool.shared.gate.is_disabled() {
                return Err(disabled());
            }
            login::prove_to_pool(self, thread, &pool.shared).await?;
            return Ok(pool);
        }
        // Boxed, as few logins need it.
        let candidate = thread.pooler.pool_of_other(&identity).map(Box::new);
        let candidate = candidate.ok_or_else(missing)?;
        let asking = thread.asking_pool(database);
        if asking.is_some_and(|pool| pool.shared.gate.is_disabled()) {
            return Err(disabled());
        }
        login::prove_to_pool(self, thread, &candidate).await?;
        let seat = thread.pooler.add_pool(&candidate).await;
        self.seats.extend(seat);
        thread.pool_of(&identity).ok_or_else(missing)
    }

    /// AuthenticationOk, the parameters, the cancel key, and ReadyForQuery, all at once.
    fn greet<'p>(
        &mut self,
        parameters: impl IntoIterator<Item = (&'p str, &'p str)>,
        key: CancelKey,
    ) {
        let out = self.out.tail();
        build(out, backend::AUTHENTICATION, |out| {
            out.extend_from_slice(&[0; 4])
        });
        for (name, value) in parameters {
            message::parameter_status(out, name, value);
        }
        build(out, backend::BACKEND_KEY_DATA, |out| {
            out.extend_from_slice(&key.pid.to_be_bytes());
            out.extend_from_slice(&key.secret.to_be_bytes());
        });
        message::ready_for_query(out, TransactionStatus::Idle);
    }

    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.out.poll_flush(&mut self.io, cx))
            .await
            .map_err(Error::Client)
    }

    /// The next byte, which stays where it is; `None` at the end of the connection.
    async fn peek(&mut self) -> Result<Option<u8>, Error> {
        if self.input.is_empty() {
            self.read_more().await?;
        }
        Ok(self.input.first().copied())
    }

    /// Reads what comes next; 0 bytes are the end of the connection.
    async fn read_more(&mut self) -> Result<usize, Error> {
        poll_fn(|cx| self.io.poll_read_into(cx, &mut self.input))
            .await
            .map_err(Error::Client)
    }

    /// `n` bytes; `None` if the connection ends before the first of them.
    async fn read_exact(&mut self, n: usize) -> Result<Option<Vec<u8>>, Error> {
        while self.input.len() < n {
            if self.read_more().await? > 0 {
                continue;
            }
            if self.input.is_empty() {
                return Ok(None);
            }
            return Err(Error::Client(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let rest = self.input.split_off(n);
        Ok(Some(std::mem::replace(&mut self.input, rest)))
    }

    /// The body of the client's next message, which must be a password message.
    pub async fn read_password(&mut self) -> Result<Vec<u8>, Error> {
        let gone = || Error::Client(std::io::ErrorKind::UnexpectedEof.into());
        let header = self.read_exact(HEADER).await?.ok_or_else(gone)?;
        // Tokens used as passwords are long, but not this long.
        const LIMIT: usize = 64 * 1024;
        let header = match Header::read(&header) {
            Ok(Some(header)) if header.body <= LIMIT => header,
            _ => return Err(Error::protocol("invalid password packet size")),
        };
        if header.tag != crate::wire::frontend::PASSWORD {
            return Err(Error::protocol(format!(
                "expected password response, got message type {}",
                header.tag
            )));
        }
        if header.body == 0 {
            return Ok(Vec::new());
        }
        self.read_exact(header.body).await?.ok_or_else(gone)
    }

    /// Tells a client that is not let in why.
    async fn turn_away(&mut self, error: Error) {
        let fields = match error {
            Error::Client(error) => return log::debug!("a client left during its login: {error}"),
            Error::Refused(fields) => *fields,
            other => ErrorFields::fatal("58000", other.to_string()),
        };
        log::info!("client refused: {fields}");
        if self.is_ancient {
            fields.write_protocol_2(self.out.tail());
        } else {
            fields.write(self.out.tail());
        }
        let flush = tokio::time::timeout(Duration::from_secs(5), self.flush());
        // It may be gone already.
        let _ = flush.await;
        // A close with something unread resets the connection, and may take the message with it.
        let _ = self.io.try_read(&mut [0; 4096]);
    }
}

/// The session settings in a startup message. Wherever they stand, PostgreSQL applies the `options` first.
fn session_settings(startup: &Startup) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    let (options, others): (Vec<_>, Vec<_>) = startup
        .parameters
        .iter()
        .partition(|(name, _)| name == "options");
    if let Some((_, value)) = options.last() {
        let given = parse_options(value).ok_or_else(|| {
            Error::Refused(Box::new(
                ErrorFields::fatal("22023", "unsupported startup parameter in options")
                    .detail("Only -c name=value and --name=value are understood."),
            ))
        })?;
        for (name, value) in given {
            settings.set(&name, value);
        }
    }
    for (name, value) in others {
        if !matches!(name.as_str(), "user" | "database" | "replication") {
            settings.set(name, value.clone());
        }
    }
    Ok(settings)
}

/// What the server reports to a session with these settings, and the pool: a reload may put another one
/// in its place meanwhile.
async fn greeted(
    thread: &Rc<ThreadContext>,
    mut pool: Rc<LocalPool>,
    settings: &Settings,
) -> Result<(Rc<LocalPool>, Parameters), Error> {
    loop {
        match greeting(thread, &pool, settings).await {
            Err(Error::Retired) => {
                let successor = thread.pool_of(&pool.shared.identity);
                pool = successor.ok_or(Error::Retired)?;
            }
            outcome => return outcome.map(|parameters| (pool, parameters)),
        }
    }
}

/// What the server reports to a session with these settings. Asked of a server once per set of
/// settings, which also finds out whether they are valid.
async fn greeting(
    thread: &Rc<ThreadContext>,
    pool: &Rc<LocalPool>,
    settings: &Settings,
) -> Result<Parameters, Error> {
    // The application's name is different in every other client, always valid, and known.
    let mut asked = settings.clone();
    asked.remove("application_name");
    let mut parameters = match pool.shared.greeting(&asked) {
        Some(known) => known,
        None => ask_greeting(thread, pool, asked).await?,
    };
    if let Some(name) = settings.value("application_name") {
        parameters.insert("application_name".to_owned(), name.to_owned());
    }
    Ok(parameters)
}

async fn ask_greeting(
    thread: &Rc<ThreadContext>,
    pool: &Rc<LocalPool>,
    settings: Settings,
) -> Result<Parameters, Error> {
    let down = |detail: String| {
        let identity = &pool.shared.identity;
        let message = format!(
            "Pool down for database: \"{}\", user: \"{}\"",
            identity.database, identity.user
        );
        Error::Refused(Box::new(
            ErrorFields::fatal("58000", message).detail(detail),
        ))
    };
    let mut server = pool
        .checkout(thread, Route::default_of(&pool.shared.settings))
        .await
        .map_err(|error| match error {
            Error::Retired => error,
            error => down(error.to_string()),
        })?;
    let wanted = std::sync::Arc::new(settings.clone());
    let sql = server.settings.transition(&wanted);
    if !sql.is_empty() {
        match server.simple_query(&sql, &mut Vec::new()).await {
            Ok(_) => server.settings = wanted,
            Err(Error::ServerRefused(mut fields)) => {
                server.dirty = true;
                pool.release(thread, server);
                fields.severity = crate::wire::error_fields::Severity::Fatal;
                return Err(Error::Refused(fields));
            }
            Err(error) => {
                pool.close(server);
                return Err(down(error.to_string()));
            }
        }
    }
    let parameters = server.parameters.clone();
    pool.release(thread, server);
    pool.shared.remember_greeting(settings, parameters.clone());
    Ok(parameters)
}
