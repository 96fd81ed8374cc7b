//! Prepared statements whose tables change: the client that prepared one before gets what a connection of
//! its own would give it, on whichever server connection, and who prepares it afterwards gets the new.

use std::sync::{Mutex, PoisonError};

use test_support::wire::{Message, Messages, Wire, sqlstate, tags};

use crate::prepared::{prepare, run};
use crate::stage::{Stage, direct, server};

const TABLE: &str = "DROP TABLE IF EXISTS changed CASCADE; CREATE TABLE changed (a int, b int); \
                     INSERT INTO changed VALUES (1, 1)";

/// What happens to the table.
const CHANGES: [&str; 8] = [
    "ALTER TABLE changed ADD c text DEFAULT 'c'",
    "ALTER TABLE changed ALTER b TYPE bigint",
    "ALTER TABLE changed ALTER b TYPE text",
    "ALTER TABLE changed RENAME b TO d",
    "ALTER TABLE changed DROP b",
    "ALTER TABLE changed ALTER b SET NOT NULL; CREATE INDEX ON changed (b)",
    "DROP TABLE changed; CREATE TABLE changed (a int, b int); INSERT INTO changed VALUES (1, 2)",
    "DROP TABLE changed; CREATE TABLE changed (a int, b numeric(5,2)); INSERT INTO changed VALUES (1, 2)",
];

/// Who changes the table.
#[derive(Clone, Copy)]
enum By {
    /// Another client.
    Client,
    /// Somebody who does not use the pooler.
    Bystander,
}

/// The clients of a scene, played directly or through a pooler.
struct Scene {
    port: u16,
    clients: Vec<Wire>,
}

impl Scene {
    fn client(&mut self) -> usize {
        let client = Wire::connect(self.port, "postgres", "postgres");
        self.clients.push(client);
        self.clients.len() - 1
    }

    fn say(&mut self, client: usize, messages: Messages) -> Vec<Message> {
        self.clients[client].send(messages);
        self.clients[client].ready()
    }

    fn query(&mut self, client: usize, sql: &str) {
        self.clients[client].query(sql);
    }

    fn change(&mut self, by: By, sql: &str) {
        match by {
            By::Client => Wire::connect(self.port, "postgres", "postgres").run(sql),
            By::Bystander => direct().run(sql),
        }
    }
}

/// Plays a scene directly and through a pooler: all clients must be told the same.
fn same_scene(stage: &Stage, what: &str, scene: impl Fn(&mut Scene)) {
    // There is one table for all.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let play = |port| {
        direct().run(TABLE);
        let clients = Vec::new();
        let mut played = Scene { port, clients };
        scene(&mut played);
        let transcripts = played.clients.into_iter().map(|client| {
            let messages = client.transcript.iter();
            messages.map(comparable).collect::<Vec<_>>()
        });
        transcripts.collect::<Vec<_>>()
    };
    let expected = play(server().port());
    let through = play(stage.pooler.port());
    for (client, (expected, through)) in expected.iter().zip(&through).enumerate() {
        for (index, message) in expected.iter().enumerate() {
            assert_eq!(
                through.get(index),
                Some(message),
                "{what}: client {client}, message {index}; expected {expected:#?}, through the pooler {through:#?}"
            );
        }
        assert_eq!(through.len(), expected.len(), "{what}: {through:#?}");
    }
}

/// Without the tables' numbers, which differ between two of the same name, and the line of PostgreSQL's
/// source that an error comes from; nor does it matter which message a failed transaction is noticed at.
fn comparable(message: &Message) -> Message {
    let mut message = message.clone();
    match message.tag {
        b'T' => {
            let mut at = 2;
            while at < message.body.len() {
                let name = message.body[at..].iter().position(|byte| *byte == 0);
                at += name.expect("a name") + 1;
                message.body[at..at + 4].fill(0);
                at += 18;
            }
        }
        b'E' => {
            let failed = message.field(b'C').as_deref() == Some("25P02");
            let fields = message.body.split(|byte| *byte == 0);
            let kept = fields.filter(|field| match field.first() {
                Some(b'L') => false,
                Some(b'R') => !failed,
                _ => true,
            });
            message.body = kept.collect::<Vec<_>>().join(&0);
        }
        _ => (),
    }
    message
}

fn bound(statement: &str, parameters: &[Option<&str>]) -> Messages {
    Messages::new()
        .bind("", statement, parameters)
        .execute("")
        .sync()
}

const ALL: &str = "SELECT * FROM changed";
const SOME: &str = "SELECT a FROM changed WHERE b = $1";
const WRITES: &str = "UPDATE changed SET a = a + 1 RETURNING *";

/// What a client does that has prepared statements before the change.
fn use_all(scene: &mut Scene, client: usize) {
    for _ in 0..2 {
        scene.say(client, bound("all", &[]));
    }
    scene.say(client, bound("some", &[Some("1")]));
    scene.say(client, bound("writes", &[]));
    // Within a transaction, and what follows in a batch.
    scene.query(client, "BEGIN");
    scene.say(
        client,
        Messages::new()
            .bind("", "writes", &[])
            .execute("")
            .statement("SELECT 1")
            .sync()
            .bind("", "all", &[])
            .execute("")
            .sync(),
    );
    scene.clients[client].ready();
    scene.query(client, "ROLLBACK");
    // Not written by what failed.
    scene.query(client, "SELECT a FROM changed");
}

fn describe(scene: &mut Scene, client: usize) {
    scene.say(client, Messages::new().describe_statement("all").sync());
}

fn prepare_all(scene: &mut Scene, client: usize) {
    for (name, sql) in [("all", ALL), ("some", SOME), ("writes", WRITES)] {
        scene.say(
            client,
            Messages::new()
                .close_statement(name)
                .parse(name, sql)
                .describe_statement(name)
                .sync(),
        );
    }
}

/// Everybody on one server connection.
fn on_one_connection(by: By) {
    let stage = Stage::new(1);
    for change in CHANGES {
        same_scene(&stage, change, |scene| {
            let (old, other) = (scene.client(), scene.client());
            prepare_all(scene, old);
            prepare_all(scene, other);
            use_all(scene, old);
            scene.change(by, change);
            describe(scene, old);
            use_all(scene, old);
            let new = scene.client();
            prepare_all(scene, new);
            use_all(scene, new);
            describe(scene, old);
            use_all(scene, old);
            // One of the old ones prepares anew, the other does not.
            prepare_all(scene, old);
            use_all(scene, old);
            use_all(scene, other);
            use_all(scene, new);
        });
    }
    stage.assert_clean();
}

#[test]
fn a_change_by_a_client() {
    on_one_connection(By::Client);
}

#[test]
fn a_change_beside_the_pooler() {
    on_one_connection(By::Bystander);
}

/// The client comes to a server connection that has never had its statements, and back to the first.
fn on_another_connection(by: By) {
    let stage = Stage::new(2);
    for change in CHANGES {
        same_scene(&stage, change, |scene| {
            let (first, second) = (scene.client(), scene.client());
            scene.query(first, "BEGIN");
            let old = scene.client();
            prepare_all(scene, old);
            scene.say(old, bound("all", &[]));
            let swap = |scene: &mut Scene, held: usize, free: usize| {
                scene.query(free, "BEGIN");
                scene.query(held, "COMMIT");
            };
            swap(scene, first, second);
            scene.change(by, change);
            describe(scene, old);
            use_all(scene, old);
            let new = scene.client();
            prepare_all(scene, new);
            use_all(scene, new);
            describe(scene, old);
            swap(scene, second, first);
            use_all(scene, old);
            use_all(scene, new);
            prepare_all(scene, old);
            use_all(scene, old);
            swap(scene, first, second);
            use_all(scene, old);
            use_all(scene, new);
            scene.query(second, "COMMIT");
        });
    }
}

#[test]
fn a_change_by_a_client_and_another_connection() {
    on_another_connection(By::Client);
}

#[test]
fn a_change_beside_the_pooler_and_another_connection() {
    on_another_connection(By::Bystander);
}

#[test]
fn a_table_that_is_gone_and_comes_back() {
    let stage = Stage::new(1);
    for by in [By::Client, By::Bystander] {
        same_scene(&stage, "DROP TABLE", |scene| {
            let old = scene.client();
            prepare_all(scene, old);
            scene.change(by, "DROP TABLE changed");
            use_all(scene, old);
            let new = scene.client();
            scene.say(new, Messages::new().parse("all", ALL).sync());
            use_all(scene, old);
            scene.change(by, TABLE);
            use_all(scene, old);
            scene.say(new, Messages::new().parse("all", ALL).sync());
            scene.say(new, bound("all", &[]));
        });
    }
}

/// A change that is taken back leaves everything as it was.
#[test]
fn a_change_that_is_taken_back() {
    let stage = Stage::new(1);
    same_scene(&stage, "ADD and DROP", |scene| {
        let old = scene.client();
        prepare_all(scene, old);
        scene.change(By::Client, "ALTER TABLE changed ADD c int");
        let new = scene.client();
        prepare_all(scene, new);
        use_all(scene, new);
        use_all(scene, old);
        scene.change(By::Bystander, "ALTER TABLE changed DROP c");
        use_all(scene, new);
        use_all(scene, old);
        scene.query(old, "BEGIN; ALTER TABLE changed ADD c int");
        scene.say(old, bound("all", &[]));
        scene.query(old, "ROLLBACK");
        use_all(scene, old);
    });
}

/// Two names of one client for one text, prepared before and after, in one pipeline.
#[test]
fn two_names_for_one_text() {
    let stage = Stage::new(1);
    for change in CHANGES {
        same_scene(&stage, change, |scene| {
            let client = scene.client();
            scene.say(client, Messages::new().parse("old", ALL).sync());
            scene.say(client, bound("old", &[]));
            scene.change(By::Bystander, change);
            let use_both = Messages::new()
                .bind("", "new", &[])
                .describe_portal("")
                .execute("")
                .sync()
                .then(&bound("old", &[]))
                .then(&bound("new", &[]));
            scene.say(client, Messages::new().parse("new", ALL).then(&use_both));
            for _ in 0..2 {
                scene.clients[client].ready();
            }
            scene.say(client, use_both.then(&bound("old", &[])));
            for _ in 0..3 {
                scene.clients[client].ready();
            }
        });
    }
}

/// The change is made in the pipeline itself.
#[test]
fn a_change_in_the_same_pipeline() {
    let stage = Stage::new(1);
    same_scene(&stage, "in the pipeline", |scene| {
        let client = scene.client();
        prepare_all(scene, client);
        scene.say(
            client,
            Messages::new()
                .bind("", "all", &[])
                .execute("")
                .statement("ALTER TABLE changed ADD c int")
                .parse("later", ALL)
                .bind("", "later", &[])
                .describe_portal("")
                .execute("")
                .bind("", "all", &[])
                .execute("")
                .sync()
                .then(&bound("all", &[])),
        );
        scene.clients[client].ready();
        use_all(scene, client);
    });
}

/// A text that has come to mean something else is prepared anew, and used wrongly in the same pipeline: the error
/// tells the client's name for it.
#[test]
fn an_error_about_a_statement_that_has_changed() {
    let stage = Stage::new(1);
    same_scene(&stage, "an error", |scene| {
        let client = scene.client();
        prepare_all(scene, client);
        scene.change(By::Bystander, CHANGES[0]);
        let another = scene.client();
        let wrong = bound("mine", &[Some("1")]);
        scene.say(another, Messages::new().parse("mine", ALL).then(&wrong));
        scene.say(another, wrong.then(&bound("mine", &[])));
        scene.clients[another].ready();
    });
}

/// Those who prepare a text after a change share its statement, as those before do.
#[test]
fn clients_share_a_statement_before_and_after() {
    let stage = Stage::new(1);
    direct().run("DROP TABLE IF EXISTS shared; CREATE TABLE shared (a int)");
    let sql = "SELECT * FROM shared";
    let mut clients: Vec<Wire> = Vec::new();
    for round in 1..=3 {
        for _ in 0..4 {
            let mut client = stage.client();
            prepare(&mut client, "s", sql);
            client.send(bound("s", &[]));
            assert_eq!(tags(&client.ready()), "2CZ");
            clients.push(client);
        }
        let on_server =
            "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT * FROM shared'";
        let count: u32 = stage.client().value(on_server).parse().expect("a number");
        // The first to prepare anew finds that it must not be what it was, by the old name.
        assert!(count <= round, "{count} in round {round}");
        stage
            .client()
            .run(&format!("ALTER TABLE shared ADD c{round} int"));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(bound("s", &[]));
        assert_eq!(sqlstate(&client.ready()), "0A000", "client {n}");
    }
}

/// A server connection that has a statement is sent nothing about it any more.
#[test]
fn a_statement_is_parsed_once_on_a_server() {
    let stage = Stage::new(1);
    let mut one = stage.client();
    let mut two = stage.client();
    let sql = "SELECT $1::int + 123";
    let parsed = |client: &mut Wire| {
        client.value("SELECT string_agg(prepare_time::text, ' ') FROM pg_prepared_statements WHERE statement LIKE '%+ 123'")
    };
    prepare(&mut one, "s", sql);
    prepare(&mut two, "s", sql);
    let before = parsed(&mut one);
    for client in [&mut one, &mut two] {
        assert_eq!(run(client, "s", "1"), "124");
    }
    stage
        .client()
        .run("DROP TABLE IF EXISTS of_no_concern; CREATE TABLE of_no_concern (a int)");
    stage.client().run("ALTER TABLE of_no_concern ADD b int");
    for client in [&mut one, &mut two] {
        assert_eq!(run(client, "s", "1"), "124");
    }
    assert_eq!(parsed(&mut one), before);
}

/// Literals become values as a text is parsed, under the settings of then.
#[test]
fn one_text_under_two_time_zones() {
    let stage = Stage::new(1);
    let mut clients = Vec::new();
    for (zone, style, result) in [
        ("UTC", "MDY", "2024-02-03 00:00"),
        ("Asia/Tokyo", "DMY", "2024-03-01 15:00"),
        ("UTC", "DMY", "2024-03-02 00:00"),
    ] {
        let mut client = stage.client();
        client.run(&format!(
            "SET TimeZone = '{zone}'; SET DateStyle = 'ISO, {style}'"
        ));
        let sql = "SELECT to_char('02/03/2024 00:00'::timestamptz AT TIME ZONE 'UTC', $1)";
        prepare(&mut client, "s", sql);
        clients.push((client, result));
    }
    for _ in 0..2 {
        for (client, result) in &mut clients {
            assert_eq!(run(client, "s", "YYYY-MM-DD HH24:MI"), *result);
        }
    }
}
