//! The request ledger: for every request a server connection still owes a reply to, what to do with
//! that reply.
//!
//! Injected statements, replayed settings, pipelines, COPY and "skip until Sync" after an error are
//! all entries here, so they compose. Pure data: no sockets, no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use super::prepared::PreparedStatement;
use super::traits::Traits;
use crate::wire::backend;

/// A request that has been sent to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Bind,
    Close,
    DescribePortal,
    DescribeStatement,
    Execute,
    FunctionCall,
    Parse,
    Query,
    Sync,
}

impl Request {
    /// Whether the reply ends with ReadyForQuery.
    fn ends_ready(self) -> bool {
        matches!(self, Self::FunctionCall | Self::Query | Self::Sync)
    }
}

/// What happens to the reply of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The rows are the session settings; none of it reaches the client.
    Capture,
    Forward,
    /// It says what a prepared statement looks like; none of it reaches the client.
    Learn,
    /// The row is how far the server has written its log; none of it reaches the client.
    Position,
    Swallow,
}

/// What must be taken back if the server never processes the request (an earlier one failed, and it
/// skips to the next Sync) or refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    /// The statement was closed on the server: it is still there.
    Closed(u64),
    /// The server was not asked what the statement looks like, which the client with a Parse of its own
    /// knows by this name.
    Described {
        statement: Arc<PreparedStatement>,
        client_name: Option<Box<[u8]>>,
    },
    /// The client closed its statement, which the session keeps under this number until it is certain.
    Dropped(usize),
    /// The client's Parse was answered by the pooler: the client does not have the name after all.
    Named(Box<[u8]>),
    Nothing,
    /// The statement was not parsed: neither the server nor (for the client's own Parse) the client
    /// has it.
    Parsed {
        statement: u64,
        client_name: Option<Box<[u8]>>,
    },
    /// The server was not given the client's unnamed statement.
    PlacedUnnamed,
    /// What was to replace or drop the client's unnamed statement has not become the version `by`: it is still the one
    /// before, or (a Parse that was refused) none.
    ReplacedUnnamed {
        by: u64,
        before: Option<BeforeUnnamed>,
    },
}

/// The unnamed statement before another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeforeUnnamed {
    /// Its number among the client's.
    pub version: u64,
    /// Whose statement the server has, as far as is known: session and version.
    pub on_server: Option<(u64, u64)>,
    /// The Parse body after the name; `None` where there is no such statement.
    pub rest: Option<Vec<u8>>,
    pub traits: Traits,
    /// The version of [`crate::pool::stateful`] that they are of.
    pub known: u64,
}

impl Undo {
    /// Whether it is of a Parse of a statement with a name.
    fn is_of_named(&self) -> bool {
        matches!(
            self,
            Self::Described { .. } | Self::Named(_) | Self::Parsed { .. }
        )
    }

    /// Whether what the unnamed statement is depends on it.
    fn is_of_unnamed(&self) -> bool {
        matches!(self, Self::PlacedUnnamed | Self::ReplacedUnnamed { .. })
    }

    /// The client's name for a statement whose Parse this takes back.
    fn client_name(&self) -> Option<&[u8]> {
        match self {
            Self::Parsed {
                client_name: Some(name),
                ..
            }
            | Self::Named(name) => Some(name),
            _ => None,
        }
    }
}

/// What is rare is boxed: every request of every transaction comes and goes here.
#[derive(Debug)]
enum Item {
    Expect {
        request: Request,
        fate: Fate,
        undo: Option<Box<Undo>>,
    },
    /// The client ended a COPY, perhaps before it could know that there is one.
    CopyEnd,
    /// A reply made by the pooler, due when everything before it has been answered.
    Synthetic(Box<Synthetic>),
}

#[derive(Debug)]
struct Synthetic {
    reply: Box<[u8]>,
    undo: Undo,
}

impl Item {
    fn is_sync(&self) -> bool {
        matches!(
            self,
            Self::Expect {
                request: Request::Sync,
                ..
            }
        )
    }

    fn undo(&self) -> Option<&Undo> {
        match self {
            Self::Expect { undo, .. } => undo.as_deref(),
            Self::Synthetic(synthetic) => Some(&synthetic.undo),
            Self::CopyEnd => None,
        }
    }

    fn into_undo(self) -> Option<Undo> {
        match self {
            Self::Expect { undo, .. } => undo.map(|undo| *undo),
            Self::Synthetic(synthetic) => Some(synthetic.undo),
            Self::CopyEnd => None,
        }
    }
}

/// The server sent a message that answers nothing it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexpected;

/// More than drivers have in a batch, as a rule.
const LONG: usize = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Ledger {
    items: VecDeque<Item>,
    /// An extended request failed and no Sync has been sent since: the server ignores everything.
    skipping: bool,
    /// The server waits for CopyData; it ignores Flush and Sync.
    copy_in: bool,
    /// A Sync may or may not have been eaten by a COPY that failed: the count of ReadyForQuery to
    /// come is not known for sure, so the connection is not to be reused.
    ambiguous: bool,
    /// The last that was sent is a Flush: an error about it would be the only reply.
    flushed: bool,
    /// Data of a COPY have been sent before it was known that there is one.
    early_data: bool,
    /// How many items are of a Parse with a name.
    named: usize,
    /// How many may yet change what the unnamed statement is.
    unnamed: usize,
    undone: Vec<Undo>,
}

impl Ledger {
    /// Whether nothing is owed and the server is not skipping to a Sync.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && !self.skipping && !self.copy_in
    }

    /// Whether replies are outstanding.
    pub fn is_waiting(&self) -> bool {
        !self.items.is_empty()
    }

    /// Whether so much is outstanding that more is not to be asked for. What the pooler answers itself takes nothing of
    /// the server, which may be busy for long; and some messages are compared to all that is outstanding.
    pub fn is_long(&self) -> bool {
        self.items.len() >= LONG
    }

    /// Whether one reply is outstanding, with this fate.
    pub fn is_only(&self, wanted: Fate) -> bool {
        self.items.len() == 1 && self.next_fate() == wanted
    }

    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    pub fn is_copying_in(&self) -> bool {
        self.copy_in
    }

    /// A Flush is being sent.
    pub fn flush(&mut self) {
        self.flushed = !self.skipping && !self.copy_in;
    }

    pub fn is_flushed(&self) -> bool {
        self.flushed
    }

    /// Data of a COPY, or its end, are being sent.
    pub fn note_copy_data(&mut self) {
        self.early_data = !self.copy_in;
    }

    /// Whether the server may be in a COPY when it comes to what is sent now: only then a Sync may be in between.
    pub fn may_copy_in(&self) -> bool {
        let mut asked = self.items.iter().rev().filter_map(|item| match item {
            Item::Expect { request, .. } if !item.is_sync() => Some(*request),
            _ => None,
        });
        self.copy_in || matches!(asked.next(), Some(Request::Execute | Request::Query))
    }

    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// The fate of the reply that is due next.
    pub fn next_fate(&self) -> Fate {
        match self.items.front() {
            Some(Item::Expect { fate, .. }) => *fate,
            _ => Fate::Forward,
        }
    }

    /// Notes a request that is being sent.
    // Inlined, most calls know that there is nothing to undo.
    #[inline]
    pub fn push(&mut self, request: Request, fate: Fate, undo: Undo) {
        self.flushed = false;
        if request == Request::Sync {
            if self.copy_in {
                return;
            }
            self.skipping = false;
        } else if self.skipping {
            // The server swallows everything up to the next Sync, a simple Query included.
            if !matches!(undo, Undo::Nothing) {
                self.undone.push(undo);
            }
            return;
        }
        let undo = if let Undo::Nothing = undo {
            None
        } else {
            self.named += usize::from(undo.is_of_named());
            self.unnamed += usize::from(undo.is_of_unnamed());
            Some(Box::new(undo))
        };
        self.items.push_back(Item::Expect {
            request,
            fate,
            undo,
        });
    }

    fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        if let Some(undo) = item.undo() {
            self.named -= usize::from(undo.is_of_named());
            self.unnamed -= usize::from(undo.is_of_unnamed());
        }
        Some(item)
    }

    /// Notes a reply the pooler makes itself. It goes to `out` at once if nothing is due before it.
    pub fn synthesise(&mut self, reply: &[u8], undo: Undo, out: &mut Vec<u8>) {
        if self.items.is_empty() {
            out.extend_from_slice(reply);
        } else {
            let reply = reply.into();
            self.named += usize::from(undo.is_of_named());
            self.unnamed += usize::from(undo.is_of_unnamed());
            let synthetic = Box::new(Synthetic { reply, undo });
            self.items.push_back(Item::Synthetic(synthetic));
        }
    }

    /// Whether a Parse of this name of the client's is outstanding with a Sync behind it: should it
    /// fail, what is sent now is not skipped along with it.
    pub fn is_parsing_before_sync(&self, name: &[u8]) -> bool {
        self.named > 0 && self.is_before_sync(|undo| undo.client_name() == Some(name))
    }

    /// Whether a request is outstanding that takes along what is sent now, should it fail. (One with a Sync behind it may,
    /// too: if it is a COPY, that has eaten the Sync.)
    pub fn may_skip(&self) -> bool {
        // Mostly it is one of the last.
        let mut items = self.items.iter().rev();
        self.skipping
            || items
                .any(|item| matches!(item, Item::Expect { request, .. } if !request.ends_ready()))
    }

    /// Whether the same holds for the last that changes the unnamed statement.
    pub fn is_parsing_unnamed_before_sync(&self) -> bool {
        // Mostly it is the last item.
        let mut last = self.items.iter().rev().filter_map(|item| {
            if item.is_sync() {
                return Some(true);
            }
            item.undo()?.is_of_unnamed().then_some(false)
        });
        self.unnamed > 0 && last.next() == Some(true)
    }

    /// A version of the unnamed statement has not come to be: what is sent after it, should that be skipped, too, leaves
    /// the one before.
    pub fn correct_unnamed(&mut self, wrong: u64, right: &Option<BeforeUnnamed>) {
        for item in &mut self.items {
            if let Item::Expect {
                undo: Some(undo), ..
            } = item
                && let Undo::ReplacedUnnamed { before, .. } = &mut **undo
                && before
                    .as_ref()
                    .is_some_and(|before| before.version == wrong)
            {
                before.clone_from(right);
            }
        }
    }

    /// Whether the same holds for a Close of the client's, by its number.
    pub fn is_dropping_before_sync(&self, number: usize) -> bool {
        self.is_before_sync(|undo| *undo == Undo::Dropped(number))
    }

    /// Whether it is not certain yet that the statement with this number is what the client's name for it
    /// stands for: a Parse by another name, whose answer is outstanding, may find that its text has
    /// come to mean something else.
    pub fn is_learning_by_another_name(&self, id: u64, name: &[u8]) -> bool {
        self.named > 0
            && self.items.iter().filter_map(Item::undo).any(|undo| {
                matches!(undo, Undo::Described { statement, client_name }
                    if statement.id == id && client_name.as_deref() != Some(name))
            })
    }

    /// Whether the session settings have been asked for.
    pub fn is_capturing(&self) -> bool {
        self.items.iter().any(|item| {
            matches!(
                item,
                Item::Expect {
                    fate: Fate::Capture,
                    ..
                }
            )
        })
    }

    /// What is to be taken back without the reply that is due next.
    pub fn next_undo(&self) -> Option<&Undo> {
        self.items.front()?.undo()
    }

    fn is_before_sync(&self, mut is_it: impl FnMut(&Undo) -> bool) -> bool {
        self.items
            .iter()
            .skip_while(|item| !item.undo().is_some_and(&mut is_it))
            .any(Item::is_sync)
    }

    /// Whether a synthetic reply has become due.
    pub fn has_due(&self) -> bool {
        matches!(self.items.front(), Some(Item::Synthetic(_)))
    }

    /// Appends the synthetic replies that have become due.
    pub fn take_due(&mut self, out: &mut Vec<u8>) {
        while let Some(Item::Synthetic(synthetic)) = self.items.front() {
            out.extend_from_slice(&synthetic.reply);
            self.pop();
            self.drop_copy_ends();
        }
    }

    /// The client ended a COPY it was sending (CopyDone or CopyFail).
    pub fn copy_in_ended(&mut self) {
        if !std::mem::take(&mut self.copy_in) && !self.items.is_empty() {
            self.items.push_back(Item::CopyEnd);
        }
    }

    /// An end without a COPY is ignored by the server, and gets no reply.
    fn drop_copy_ends(&mut self) {
        while let Some(Item::CopyEnd) = self.items.front() {
            self.items.pop_front();
        }
    }

    /// From now on the server skips to the next Sync, because of an error that the pooler provoked, or that is about a Flush.
    pub fn skip_to_sync(&mut self) {
        self.skipping = true;
    }

    /// What became of requests the server has not processed; the caller takes them back.
    pub fn take_undone(&mut self) -> Vec<Undo> {
        std::mem::take(&mut self.undone)
    }

    pub fn has_undone(&self) -> bool {
        !self.undone.is_empty()
    }

    /// Accounts for a reply of the server (not for notices, notifications and parameter changes,
    /// which answer nothing), and says what to do with it.
    ///
    /// # Errors
    /// [`Unexpected`] if it answers no request.
    pub fn reply(&mut self, tag: u8) -> Result<Fate, Unexpected> {
        let Some(Item::Expect { request, fate, .. }) = self.items.front() else {
            return Err(Unexpected);
        };
        let (request, fate) = (*request, *fate);
        let complete = match tag {
            backend::ERROR_RESPONSE => {
                self.failed(request);
                // Of a statement injected for a client's Bind, success is swallowed; its failure is
                // that of the Bind.
                return Ok(if request.ends_ready() {
                    fate
                } else {
                    Fate::Forward
                });
            }
            backend::READY_FOR_QUERY => {
                if !request.ends_ready() {
                    return Err(Unexpected);
                }
                self.copy_in = false;
                true
            }
            _ if request.ends_ready() => {
                if tag == backend::COPY_IN_RESPONSE {
                    self.enter_copy_in();
                }
                false
            }
            backend::PARSE_COMPLETE => request == Request::Parse,
            backend::BIND_COMPLETE => request == Request::Bind,
            backend::CLOSE_COMPLETE => request == Request::Close,
            backend::NO_DATA | backend::ROW_DESCRIPTION => {
                matches!(
                    request,
                    Request::DescribePortal | Request::DescribeStatement
                )
            }
            backend::COMMAND_COMPLETE
            | backend::EMPTY_QUERY_RESPONSE
            | backend::PORTAL_SUSPENDED => {
                self.copy_in = false;
                // After these two a timeout goes on, which the server may have reported instead of taking the data.
                self.ambiguous |= self.early_data && tag != backend::COMMAND_COMPLETE;
                request == Request::Execute
            }
            backend::COPY_IN_RESPONSE => {
                self.enter_copy_in();
                false
            }
            _ => false,
        };
        if complete {
            self.pop();
            self.drop_copy_ends();
        }
        Ok(fate)
    }

    /// In copy-in mode the server ignores Sync. libpq sends one right behind Execute, before it can
    /// know that the statement is a COPY, and another one after CopyDone; other drivers send all of it
    /// in one go.
    fn enter_copy_in(&mut self) {
        self.early_data = false;
        let end = self
            .items
            .iter()
            .position(|item| matches!(item, Item::CopyEnd));
        self.copy_in = end.is_none();
        let before = self.items.len();
        let mut index = 0;
        let end = end.unwrap_or(before);
        self.items.retain(|item| {
            index += 1;
            let ignored = item.is_sync();
            index - 1 > end || !(ignored || matches!(item, Item::CopyEnd))
        });
        // Should the COPY fail before the server has read that Sync, the Sync counts after all.
        self.ambiguous |= before - self.items.len() > usize::from(end < before);
    }

    fn failed(&mut self, request: Request) {
        self.copy_in = false;
        if request.ends_ready() {
            return;
        }
        self.skipping = true;
        let mut skipped = false;
        while let Some(item) = self.items.front() {
            if item.is_sync() {
                self.skipping = false;
                break;
            }
            match self.pop().and_then(Item::into_undo) {
                None | Some(Undo::Nothing) => (),
                // A Parse drops the unnamed statement before anything can fail.
                Some(Undo::ReplacedUnnamed { by, .. }) if !skipped => {
                    let before = None;
                    self.undone.push(Undo::ReplacedUnnamed { by, before });
                }
                Some(undo) => self.undone.push(undo),
            }
            skipped = true;
        }
        // Last done, first undone: a statement may have come and gone again in what was skipped.
        self.undone.reverse();
    }

    /// A COPY ended well: the Sync in front of its data was ignored, as expected.
    pub fn copy_succeeded(&mut self) {
        self.ambiguous = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::prepared::{Interner, Scope};

    fn ledger(requests: &[Request]) -> Ledger {
        let mut ledger = Ledger::default();
        for &request in requests {
            ledger.push(request, Fate::Forward, Undo::Nothing);
        }
        ledger
    }

    fn before(version: impl Into<Option<u64>>) -> Option<BeforeUnnamed> {
        let version = version.into()?;
        Some(BeforeUnnamed {
            version,
            on_server: None,
            rest: None,
            traits: Traits::default(),
            known: 0,
        })
    }

    fn replaced(by: u64, version: impl Into<Option<u64>>) -> Undo {
        let before = before(version);
        Undo::ReplacedUnnamed { by, before }
    }

    fn replies(ledger: &mut Ledger, tags: &[u8]) {
        for &tag in tags {
            ledger.reply(tag).unwrap();
        }
    }

    #[test]
    fn a_query_of_several_statements_ends_with_ready_for_query() {
        let mut ledger = ledger(&[Request::Query]);
        replies(&mut ledger, b"TDDCTCE");
        assert!(!ledger.is_empty());
        replies(&mut ledger, b"Z");
        assert!(ledger.is_empty());
    }

    #[test]
    fn an_error_drops_what_the_server_skips() {
        use Request::{Bind, Execute, Parse, Sync};
        let mut ledger = ledger(&[Parse, Bind, Execute, Parse, Bind, Execute, Sync, Parse]);
        replies(&mut ledger, b"12E");
        replies(&mut ledger, b"Z1");
        assert!(ledger.is_empty());
    }

    #[test]
    fn requests_after_an_error_count_only_from_the_sync() {
        use Request::{Execute, Parse, Query, Sync};
        let mut ledger = ledger(&[Parse]);
        replies(&mut ledger, b"E");
        assert!(!ledger.is_empty());
        ledger.push(Execute, Fate::Forward, Undo::Nothing);
        ledger.push(Query, Fate::Forward, Undo::Nothing);
        ledger.push(Sync, Fate::Forward, Undo::Nothing);
        replies(&mut ledger, b"Z");
        assert!(ledger.is_empty());
    }

    #[test]
    fn synthetic_replies_keep_their_place_and_vanish_when_skipped() {
        use Request::{Bind, Sync};
        let mut out = Vec::new();
        let mut ledger = ledger(&[Bind]);
        ledger.synthesise(b"a", Undo::Nothing, &mut out);
        assert!(out.is_empty());
        ledger.push(Bind, Fate::Forward, Undo::Nothing);
        ledger.synthesise(b"b", Undo::Nothing, &mut out);
        ledger.push(Sync, Fate::Forward, Undo::Nothing);
        replies(&mut ledger, b"2");
        ledger.take_due(&mut out);
        assert_eq!(out, b"a");
        replies(&mut ledger, b"EZ");
        ledger.take_due(&mut out);
        assert_eq!(out, b"a");
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_parse_before_a_sync_is_known_until_its_answer() {
        let mut ledger = Ledger::default();
        let undo = Undo::Parsed {
            statement: 1,
            client_name: Some((*b"s").into()),
        };
        ledger.push(Request::Parse, Fate::Forward, undo);
        ledger.push(Request::Bind, Fate::Forward, Undo::Nothing);
        assert!(!ledger.is_parsing_before_sync(b"s"));
        ledger.push(Request::Sync, Fate::Forward, Undo::Nothing);
        assert!(ledger.is_parsing_before_sync(b"s"));
        assert!(!ledger.is_parsing_before_sync(b"t"));
        replies(&mut ledger, b"1");
        assert!(!ledger.is_parsing_before_sync(b"s"));
    }

    #[test]
    fn an_unnamed_parse_before_a_sync_is_known_until_its_answer() {
        for undo in [Undo::PlacedUnnamed, replaced(1, None)] {
            let mut ledger = Ledger::default();
            ledger.push(Request::Parse, Fate::Forward, undo.clone());
            ledger.push(Request::Bind, Fate::Forward, Undo::Nothing);
            assert!(!ledger.is_parsing_unnamed_before_sync());
            ledger.push(Request::Sync, Fate::Forward, Undo::Nothing);
            assert!(ledger.is_parsing_unnamed_before_sync());
            ledger.push(Request::Parse, Fate::Forward, undo);
            assert!(!ledger.is_parsing_unnamed_before_sync());
            replies(&mut ledger, b"12Z1");
            ledger.push(Request::Sync, Fate::Forward, Undo::Nothing);
            assert!(!ledger.is_parsing_unnamed_before_sync());
        }
    }

    #[test]
    fn the_unnamed_statement_before_is_kept_by_what_is_skipped_only() {
        let mut ledger = ledger(&[Request::Execute]);
        assert!(ledger.may_skip());
        ledger.push(Request::Parse, Fate::Forward, replaced(2, 1));
        ledger.push(Request::Close, Fate::Forward, replaced(3, 2));
        replies(&mut ledger, b"E");
        let undone = [replaced(3, 2), replaced(2, 1)];
        assert_eq!(ledger.take_undone(), undone);
        ledger.push(Request::Sync, Fate::Forward, Undo::Nothing);
        ledger.push(Request::Execute, Fate::Forward, Undo::Nothing);
        ledger.push(Request::Parse, Fate::Forward, replaced(4, 1));
        replies(&mut ledger, b"ZC");
        replies(&mut ledger, b"E");
        assert_eq!(ledger.take_undone(), [replaced(4, None)]);
    }

    #[test]
    fn what_was_skipped_is_not_what_another_batch_leaves() {
        let mut ledger = ledger(&[Request::Execute]);
        ledger.push(Request::Parse, Fate::Forward, replaced(3, 2));
        ledger.correct_unnamed(2, &before(1));
        replies(&mut ledger, b"E");
        assert_eq!(ledger.take_undone(), [replaced(3, 1)]);
    }

    #[test]
    fn what_a_text_means_is_open_until_it_is_described() {
        let interner = Interner::default();
        let statement = interner.intern(b"select 1\0\0\0", Scope::default());
        let mut ledger = Ledger::default();
        ledger.push(Request::Parse, Fate::Forward, Undo::Nothing);
        let undo = Undo::Described {
            statement: statement.clone(),
            client_name: Some((*b"s").into()),
        };
        ledger.push(Request::DescribeStatement, Fate::Learn, undo);
        assert!(ledger.is_learning_by_another_name(statement.id, b"t"));
        assert!(!ledger.is_learning_by_another_name(statement.id, b"s"));
        assert!(!ledger.is_learning_by_another_name(statement.id + 1, b"t"));
        assert_eq!(ledger.reply(b'1'), Ok(Fate::Forward));
        assert_eq!(ledger.reply(b't'), Ok(Fate::Learn));
        assert!(matches!(ledger.next_undo(), Some(Undo::Described { .. })));
        assert_eq!(ledger.reply(b'n'), Ok(Fate::Learn));
        assert!(!ledger.is_learning_by_another_name(statement.id, b"t"));
    }

    #[test]
    fn what_was_not_parsed_is_given_back() {
        let parsed = Undo::Parsed {
            statement: 7,
            client_name: None,
        };
        let mut ledger = Ledger::default();
        ledger.push(Request::Bind, Fate::Forward, Undo::Nothing);
        ledger.push(Request::Parse, Fate::Swallow, parsed.clone());
        replies(&mut ledger, b"E");
        ledger.push(Request::Parse, Fate::Forward, Undo::PlacedUnnamed);
        assert_eq!(ledger.take_undone(), [parsed, Undo::PlacedUnnamed]);
    }

    #[test]
    fn the_sync_before_copy_data_is_ignored_and_the_one_after_counts() {
        use Request::{Bind, Execute, Parse, Sync};
        let mut ledger = ledger(&[Parse, Bind, Execute, Sync]);
        replies(&mut ledger, b"12G");
        assert!(ledger.is_copying_in());
        ledger.push(Sync, Fate::Forward, Undo::Nothing);
        ledger.copy_in_ended();
        ledger.push(Sync, Fate::Forward, Undo::Nothing);
        replies(&mut ledger, b"CZ");
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_copy_may_be_sent_whole_before_the_server_asks_for_it() {
        use Request::{Bind, Execute, Parse, Sync};
        let mut ledger = ledger(&[Parse, Bind, Execute]);
        ledger.copy_in_ended();
        ledger.push(Sync, Fate::Forward, Undo::Nothing);
        replies(&mut ledger, b"12GCZ");
        assert!(ledger.is_empty() && !ledger.is_ambiguous());
    }

    #[test]
    fn an_end_without_a_copy_leaves_nothing() {
        let mut ledger = ledger(&[Request::Query]);
        ledger.copy_in_ended();
        replies(&mut ledger, b"CZ");
        assert!(ledger.is_empty());
    }

    #[test]
    fn an_unasked_reply_is_noticed() {
        assert_eq!(Ledger::default().reply(b'Z'), Err(Unexpected));
        assert_eq!(ledger(&[Request::Parse]).reply(b'Z'), Err(Unexpected));
    }
}
