//! The ledger against a model of the server: requests are sent, processed and answered in any
//! interleaving, and the ledger has to account for every reply.

use std::collections::VecDeque;

use pgcat::session::ledger::{Fate, Ledger, Request, Undo};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::run::cases;

/// What the client sends.
#[derive(Debug, Clone)]
enum Sent {
    Ask {
        request: Request,
        fate: Fate,
        undo: Option<u64>,
    },
    CopyData,
    CopyEnd,
    /// A reply of the pooler's own that has its place here.
    Synthetic(u8, Option<u64>),
}

/// Where the copy data that the server waits for came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    Execute,
    Query,
}

/// What the server says, and for whom.
#[derive(Debug)]
struct Said {
    tag: u8,
    /// `None`: either is right, as for the error of an injected statement.
    fate: Option<Fate>,
}

/// PostgreSQL, as far as the ledger is concerned.
#[derive(Debug, Default)]
struct Server {
    skipping: bool,
    copying: Option<(Copy, Fate)>,
    said: VecDeque<Said>,
    /// Of what was skipped or failed.
    undone: Vec<u64>,
    /// The synthetic replies that are to be seen.
    synthetic: Vec<u8>,
}

impl Server {
    fn say(&mut self, tags: &[u8], fate: Fate) {
        self.said.extend(tags.iter().map(|&tag| Said {
            tag,
            fate: Some(fate),
        }));
    }

    fn fail(&mut self, request: Request, fate: Fate) {
        let simple = matches!(request, Request::Query | Request::FunctionCall);
        self.said.push_back(Said {
            tag: b'E',
            fate: simple.then_some(fate),
        });
        if simple {
            self.say(b"Z", fate);
        } else {
            self.skipping = true;
        }
    }

    fn process(&mut self, sent: &Sent, random: &mut StdRng) {
        match sent {
            Sent::CopyData => {
                if self.copying.is_some() && random.random_bool(0.1) {
                    self.fail_copy();
                }
            }
            Sent::CopyEnd => {
                if self.copying.is_some() {
                    if random.random_bool(0.3) {
                        self.fail_copy();
                    } else if let Some((copy, fate)) = self.copying.take() {
                        self.say(if copy == Copy::Query { b"CZ" } else { b"C" }, fate);
                    }
                }
            }
            Sent::Synthetic(reply, undo) => {
                if self.skipping {
                    self.undone.extend(undo);
                } else {
                    self.synthetic.push(*reply);
                }
            }
            Sent::Ask {
                request: Request::Sync,
                fate,
                ..
            } => {
                if self.copying.is_none() {
                    self.skipping = false;
                    // The commit may fail, by a deferred constraint.
                    let fails = random.random_bool(0.05);
                    self.say(if fails { b"EZ" } else { b"Z" }, *fate);
                }
            }
            Sent::Ask { undo, .. } if self.skipping => self.undone.extend(undo),
            Sent::Ask {
                request,
                fate,
                undo,
            } => {
                if random.random_bool(0.15) {
                    if !matches!(request, Request::Query | Request::FunctionCall) {
                        self.undone.extend(undo);
                    }
                    return self.fail(*request, *fate);
                }
                self.succeed(*request, *fate, random);
            }
        }
    }

    fn fail_copy(&mut self) {
        if let Some((copy, fate)) = self.copying.take() {
            let request = match copy {
                Copy::Query => Request::Query,
                Copy::Execute => Request::Execute,
            };
            self.fail(request, fate);
        }
    }

    fn succeed(&mut self, request: Request, fate: Fate, random: &mut StdRng) {
        let tags: &[u8] = match request {
            Request::Bind => b"2",
            Request::Close => b"3",
            Request::Parse => b"1",
            Request::DescribePortal => [&b"T"[..], b"n"][random.random_range(0..2)],
            Request::DescribeStatement => [&b"tT"[..], b"tn"][random.random_range(0..2)],
            Request::FunctionCall => b"VZ",
            Request::Execute => {
                [&b"DDC"[..], b"C", b"I", b"Ds", b"HddcC"][random.random_range(0..5)]
            }
            Request::Query => {
                [&b"TDCZ"[..], b"IZ", b"CCTDDCZ", b"HdcCZ", b"TDEZ"][random.random_range(0..5)]
            }
            Request::Sync => b"Z",
        };
        self.say(tags, fate);
    }

    fn copy(&mut self, copy: Copy, fate: Fate) {
        self.copying = Some((copy, fate));
        self.say(b"G", fate);
    }
}

/// A run of the model.
struct Play<'r> {
    random: &'r mut StdRng,
    ledger: Ledger,
    server: Server,
    /// Sent, and not processed yet; `true`: a COPY that will ask for data, unless it fails.
    queue: VecDeque<(Sent, bool)>,
    next: u64,
    shown: Vec<u8>,
    undone: Vec<u64>,
    steps: Vec<String>,
    is_closed: bool,
}

impl Drop for Play<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}\n{:?}\n{:?}", self.steps, self.ledger, self.server);
        }
    }
}

impl Play<'_> {
    fn ask(&mut self, request: Request, is_copy: bool) {
        let fate = if self.random.random_bool(0.2) {
            Fate::Swallow
        } else {
            Fate::Forward
        };
        let undo = (request == Request::Parse).then(|| self.number());
        let noted = undo.map_or(Undo::Nothing, |statement| Undo::Parsed {
            statement,
            client_name: None,
        });
        self.steps.push(format!("ask {request:?} {fate:?}"));
        self.ledger.push(request, fate, noted);
        let sent = Sent::Ask {
            request,
            fate,
            undo,
        };
        self.queue.push_back((sent, is_copy));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn send(&mut self) {
        use Request::{
            Bind, Close, DescribePortal, DescribeStatement, Execute, FunctionCall, Parse, Query,
            Sync,
        };
        const PLAIN: [Request; 10] = [
            Bind,
            Close,
            DescribePortal,
            DescribeStatement,
            Execute,
            FunctionCall,
            Parse,
            Query,
            Sync,
            Sync,
        ];
        match self.random.random_range(0..20) {
            0 | 1 => self.copy_in(),
            2 => {
                // Late data of a COPY that failed.
                self.steps.push("late copy data".to_owned());
                self.queue.push_back((Sent::CopyData, false));
                self.ledger.copy_in_ended();
                self.queue.push_back((Sent::CopyEnd, false));
            }
            3 | 4 if !self.ledger.is_skipping() => {
                let reply = u8::try_from(self.number() % 250).expect("small");
                let undo = self.random.random_bool(0.5).then(|| self.number());
                self.steps.push(format!("synthetic {reply}"));
                let noted = undo.map_or(Undo::Nothing, Undo::Closed);
                self.ledger.synthesise(&[reply], noted, &mut self.shown);
                self.queue.push_back((Sent::Synthetic(reply, undo), false));
            }
            _ => {
                let request = PLAIN[self.random.random_range(0..PLAIN.len())];
                self.ask(request, false);
            }
        }
    }

    /// A whole COPY, as drivers send it: in one go, or with libpq's Sync before the data.
    fn copy_in(&mut self) {
        let simple = self.random.random_bool(0.5);
        self.ask(
            if simple {
                Request::Query
            } else {
                Request::Execute
            },
            true,
        );
        if !simple && self.random.random_bool(0.4) {
            self.ask(Request::Sync, false);
            self.let_go_on();
        }
        for _ in 0..self.random.random_range(0..3) {
            self.steps.push("copy data".to_owned());
            self.queue.push_back((Sent::CopyData, false));
            self.let_go_on();
        }
        self.steps.push("copy end".to_owned());
        self.ledger.copy_in_ended();
        self.queue.push_back((Sent::CopyEnd, false));
        if !simple {
            self.ask(Request::Sync, false);
        }
    }

    /// The server works, and its answers arrive, as far as it happens.
    fn let_go_on(&mut self) {
        while self.random.random_bool(0.5) {
            self.process();
        }
        while self.random.random_bool(0.5) {
            self.receive();
        }
    }

    fn process(&mut self) {
        let Some((sent, is_copy)) = self.queue.pop_front() else {
            return;
        };
        self.steps.push(format!("  process {sent:?}"));
        let server = &mut self.server;
        match &sent {
            Sent::Ask { request, fate, .. }
                if is_copy && !server.skipping && self.random.random_bool(0.8) =>
            {
                let copy = if *request == Request::Query {
                    Copy::Query
                } else {
                    Copy::Execute
                };
                server.copy(copy, *fate);
            }
            _ => server.process(&sent, self.random),
        }
    }

    fn receive(&mut self) {
        let Some(said) = self.server.said.pop_front() else {
            return;
        };
        self.steps
            .push(format!("    receive {}", char::from(said.tag)));
        match self.ledger.reply(said.tag) {
            Ok(fate) => {
                let expected = said.fate.unwrap_or(Fate::Forward);
                if !self.ledger.is_ambiguous() {
                    assert_eq!(fate, expected);
                }
                // As the relay does.
                if said.tag == b'C' && fate == Fate::Forward && !self.ledger.is_copying_in() {
                    self.ledger.copy_succeeded();
                }
            }
            Err(unexpected) => {
                let tag = char::from(said.tag);
                assert!(self.ledger.is_ambiguous(), "{unexpected:?}: {tag}");
                self.is_closed = true;
            }
        }
        self.ledger.take_due(&mut self.shown);
        for undo in self.ledger.take_undone() {
            match undo {
                Undo::Parsed { statement, .. } => self.undone.push(statement),
                Undo::Closed(number) => self.undone.push(number),
                _ => (),
            }
        }
    }

    /// A connection whose ledger is empty goes to the next client.
    fn check(&mut self) {
        if self.ledger.is_ambiguous() || !self.ledger.is_empty() {
            return;
        }
        assert!(self.server.said.is_empty(), "an answer is on its way");
        assert!(!self.server.skipping && self.server.copying.is_none());
        let ignored = |(sent, _): &(Sent, bool)| {
            matches!(sent, Sent::CopyData | Sent::CopyEnd | Sent::Synthetic(..))
        };
        assert!(self.queue.iter().all(ignored), "requests are outstanding");
    }
}

fn play(random: &mut StdRng) {
    let mut play = Play {
        random,
        ledger: Ledger::default(),
        server: Server::default(),
        queue: VecDeque::new(),
        next: 0,
        shown: Vec::new(),
        undone: Vec::new(),
        steps: Vec::new(),
        is_closed: false,
    };
    for _ in 0..play.random.random_range(1..40) {
        play.send();
        play.check();
        play.let_go_on();
        play.check();
        if play.is_closed {
            return;
        }
    }
    play.ask(Request::Sync, false);
    while !play.queue.is_empty() || !play.server.said.is_empty() {
        play.process();
        play.receive();
        play.check();
    }
    if play.ledger.is_ambiguous() || play.is_closed {
        // Such a connection is closed when its client is done.
        return;
    }
    assert!(play.ledger.is_empty(), "something is still waited for");
    assert_eq!(play.shown, play.server.synthetic);
    let (mut undone, mut expected) = (play.undone.clone(), play.server.undone.clone());
    undone.sort_unstable();
    expected.sort_unstable();
    assert_eq!(undone, expected, "taken back");
}

#[test]
fn the_ledger_accounts_for_every_reply() {
    cases("ledger", play);
}
