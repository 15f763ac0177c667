//! The control socket's server: lets operators and monitors ask a running [`Service`].
//!
//! Promises: a slow, silent or flooding client costs bounded memory and harms nobody else; a request is answered even
//! while hundreds of others are connected; what one client started is finished although that client goes away, but what
//! would change something is not started for a client that has gone already.
//! How: one current-thread runtime on the thread `control` does all the socket's I/O and never blocks; calls of the service
//! run on threads beside it, in a `Lane` for each kind and there in order of arrival, so that no kind keeps another one
//! waiting; a connection has one request at a time, is closed after
//! `rpc.timeout` without a complete request and when it does not take its reply in that time; of more than its share of
//! the descriptors ([`Shares`]) the one that has been idle longest makes room. `Spare` descriptors are given up for a
//! client that comes when none is left. The last connections are for the service's own user and root.
//!
//! **Memory.** A list may be some megabytes. `LISTS` of them are made at a time, and all that wait for their clients to take
//! them have `REPLY_BYTES`.
//!
//! Retry and clear work on the same queue, so only one of them runs at a time; those that wait see its progress.
//! Progress is what the service itself reports, never a timer's, so that a client's timeout notices a service that hangs.
//! Watermarks are asked of Kafka at most four times a second, however many ask. A failure is an answer like any other. `Stop` waits
//! for no call that asks brokers.
//!
//! It does not decide what the answers are, and does not end the process: `Stop` drains, the owner then calls
//! [`Server::close`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::protocol::{Call, Form, MAX_REQUEST, RpcError, parse};
use super::socket::{Access, Binding, Socket};
use super::{Failure, FailureKind, ListQuery, PartitionOffsets, Peer, Service};
use crate::config;
use crate::limits::{self, Shares};
use crate::panics;

/// Descriptors kept back, so that a client is answered although none is left: for its connection and for what the answer
/// opens.
const SPARE: usize = 4;
/// Pause of the listener while no descriptor can be had.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// One in so many connections is for the service's own user and root.
const RESERVED: usize = 16;
/// Lists made at the same time.
const LISTS: usize = 2;
/// Bytes of lists that wait for their clients to take them.
const REPLY_BYTES: usize = 16 << 20;
/// An over-long request is skipped up to this, then its connection is closed.
const MAX_SKIPPED: usize = 16 * 1024 * 1024;
/// How long an answer of the brokers is used again.
const OFFSETS_FRESH: Duration = Duration::from_millis(250);
/// Shortest time between two progress lines of a connection.
const PROGRESS_PACE: Duration = Duration::from_millis(250);
/// How often a drain is asked whether it is over.
const DRAIN_PACE: Duration = Duration::from_millis(50);
/// How long [`Server::close`] waits for replies that are under way.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Entries of a list without a limit, and the most with one: a reply stays within some megabytes.
const LIST_DEFAULT: u64 = 1_000;
const LIST_MAX: u64 = 10_000;

/// The running server. Dropping it closes it.
#[derive(Debug)]
pub struct Server {
    /// `true` tells every task to end; set once, by [`Self::close`].
    closing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `rpc.socket` and answers for `service`. The caller holds the lock of the home.
    pub fn start(rpc: &config::Rpc, service: Arc<dyn Service>) -> Result<Self, Failure> {
        let access = Access::of(rpc)?;
        let socket = Binding::begin(rpc)?;
        let trouble = |e: io::Error| Failure::new(FailureKind::Failed, format!("cannot start the control thread: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(Lanes::THREADS)
            .thread_name("control-call")
            .build()
            .map_err(trouble)?;
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(Shared {
            service,
            access,
            timeout: rpc.timeout,
            closed,
            offsets: AsyncMutex::default(),
            lanes: Lanes::default(),
            replies: Arc::new(Semaphore::new(REPLY_BYTES)),
            progress: watch::Sender::new(String::new()),
            connections: Mutex::new(Connections { most: Shares::current().connections, next: 0, open: HashMap::new() }),
        });
        let serve = move || {
            let served = runtime.block_on(async {
                let mut closed = shared.closed.clone();
                tokio::select! {
                    biased;
                    _ = closed.wait_for(|closed| *closed) => Ok(()),
                    socket = socket.bound() => accept(socket, shared).await,
                }
            });
            if let Err(error) = served {
                warn!(%error, "the control socket does not listen");
            }
            // Waits for nothing: a call that hangs must not keep the process.
            runtime.shutdown_background();
        };
        // A panic of one connection ends that connection.
        let serve = move || {
            assert!(panics::contain(serve).is_ok(), "nobody serves the control socket any more");
        };
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(serve).map_err(trouble)?;
        Ok(Self { closing, thread: Some(thread) })
    }

    /// Stops listening, removes the socket, gives replies under way a moment, and ends.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.closing.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the tasks of all connections share.
struct Shared {
    service: Arc<dyn Service>,
    access: Access,
    timeout: Duration,
    closed: watch::Receiver<bool>,
    /// Held while the brokers are asked, so that whoever asks meanwhile gets the same answer.
    offsets: AsyncMutex<Option<Answered>>,
    lanes: Lanes,
    /// A permit for each byte of the lists that wait for their clients.
    replies: Arc<Semaphore>,
    /// The last sign of life of the retry or clear that runs, or of the drain.
    progress: watch::Sender<String>,
    connections: Mutex<Connections>,
}

/// Where a call of the service runs.
#[derive(Clone, Copy)]
enum Lane {
    /// Calls that are quick, and `Stop`: nothing else ever keeps them waiting.
    Quick,
    /// The user database, which may be a server somewhere.
    Access,
    /// Walks through the failure queue.
    List,
    /// The brokers.
    Brokers,
    /// The brokers, for the lag that `Status` shows: not behind those who ask for every partition.
    Lag,
    /// The retry or clear that runs.
    Queue,
    /// The settings files.
    Reload,
}

/// Permits for the threads of each [`Lane`].
struct Lanes([Arc<Semaphore>; 7]);

impl Lanes {
    const THREADS_OF: [usize; 7] = [4, 1, LISTS, 1, 1, 1, 1];
    const THREADS: usize = sum(&Self::THREADS_OF);

    /// Runs a call of the service on a thread of the lane. The call lasts, and keeps its thread, although its client goes away.
    async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.0[lane as usize]).acquire_owned().await;
        let call = move || {
            let _permit = permit;
            panics::contain(call)
        };
        let outcome = tokio::task::spawn_blocking(call).await.ok().and_then(Result::ok);
        outcome.unwrap_or_else(|| {
            Err(Failure::new(FailureKind::Failed, "the command ended unexpectedly, see the service log for its panic"))
        })
    }
}

impl Default for Lanes {
    fn default() -> Self {
        Self(Self::THREADS_OF.map(|threads| Arc::new(Semaphore::new(threads))))
    }
}

const fn sum(numbers: &[usize]) -> usize {
    match numbers {
        [] => 0,
        [first, rest @ ..] => *first + sum(rest),
    }
}

/// The last answer of the brokers.
struct Answered {
    when: Instant,
    answer: Result<Vec<PartitionOffsets>, Failure>,
}

/// The open connections. A std mutex, because it is never held across an await.
struct Connections {
    /// Beyond this the one that has been idle longest makes room.
    most: usize,
    next: u64,
    open: HashMap<u64, Slot>,
}

struct Slot {
    /// Since when the connection has no request; `None` while it has one.
    idle_since: Option<Instant>,
    task: AbortHandle,
}

/// Takes a connection out of the list when its task ends, however it ends.
struct Registered(Arc<Shared>, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.connections().open.remove(&self.1);
    }
}

async fn accept(socket: Socket, shared: Arc<Shared>) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let mut closed = shared.closed.clone();
    let mut tasks = JoinSet::new();
    let mut spare = Spare::new();
    spare.refill();
    loop {
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => break,
            Some(_) = tasks.join_next() => spare.refill(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    admit(stream, &shared, &mut tasks);
                    spare.refill();
                }
                Err(error) if limits::is_exhausted(&error) => {
                    // A client that waits at once gets what was kept back; another one what an idle connection gives up.
                    if !spare.give_up(&error) {
                        shared.connections().evict();
                        sleep(SHORTAGE_PAUSE).await;
                    }
                }
                Err(error) => {
                    warn!(%error, "could not accept a control connection");
                    sleep(SHORTAGE_PAUSE).await;
                }
            }
        }
    }
    socket.remove();
    drop((listener, socket));
    let _ = timeout(CLOSE_GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Descriptors that are open for nothing, to be closed when a client comes and none is left.
struct Spare {
    held: Vec<File>,
    told: bool,
}

impl Spare {
    const fn new() -> Self {
        Self { held: Vec::new(), told: false }
    }

    /// Takes what is missing, once it can be had again.
    fn refill(&mut self) {
        while self.held.len() < SPARE {
            let Ok(file) = File::open("/dev/null") else { return };
            self.held.push(file);
        }
        self.told = false;
    }

    /// Closes them; false when there were none. Logged once for each shortage.
    fn give_up(&mut self, error: &io::Error) -> bool {
        if !std::mem::replace(&mut self.told, true) {
            warn!(%error, "no descriptor is left for a control connection");
        }
        !std::mem::take(&mut self.held).is_empty()
    }
}

/// Starts the task of a new connection, making room for it when there is none.
fn admit(stream: UnixStream, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    let peer = stream.peer_cred().map_or(Peer::Member, |peer| shared.access.peer(peer.uid()));
    let mut connections = shared.connections();
    let most = match peer {
        Peer::Owner => connections.most,
        Peer::Member => connections.most - connections.most / RESERVED,
    };
    if connections.open.len() >= most && !connections.evict() {
        debug!(most, "refused a control connection, all are at work");
        return;
    }
    let id = connections.next;
    connections.next += 1;
    let registered = Registered(Arc::clone(shared), id);
    let task = tasks.spawn(async move {
        let shared = &registered.0;
        if let Err(error) = serve(stream, shared, id).await {
            debug!(%error, "a control connection ended");
        }
    });
    connections.open.insert(id, Slot { idle_since: Some(Instant::now()), task });
}

impl Connections {
    /// Ends the connection that has been idle longest; false when all are at work.
    fn evict(&mut self) -> bool {
        let idle = self.open.iter().filter_map(|(id, slot)| slot.idle_since.map(|since| (since, *id)));
        let Some((_, id)) = idle.min() else { return false };
        if let Some(slot) = self.open.remove(&id) {
            slot.task.abort();
        }
        true
    }
}

/// The life of a connection.
async fn serve(stream: UnixStream, shared: &Arc<Shared>, id: u64) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let access = shared.access;
    let who = access.peer(peer.uid());
    let ask = move || Ok(access.allows(peer.uid(), peer.gid()));
    if who == Peer::Member && !shared.lanes.run(Lane::Access, ask).await.unwrap_or(false) {
        let message = format!("user {} may not use this socket; see rpc.permissions and rpc.group", peer.uid());
        let refusal = Err(Failure::new(FailureKind::Failed, message).into());
        return shared.send(&mut write, Form::JsonRpc(Value::Null).reply(&refusal)).await;
    }
    let mut closed = shared.closed.clone();
    loop {
        let received = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
            received = timeout(shared.timeout, receive(&mut read)) => received.map_err(|_| io::ErrorKind::TimedOut)??,
        };
        match received {
            Received::End => return Ok(()),
            Received::TooLong => {
                shared.send(&mut write, Form::JsonRpc(Value::Null).reply(&Err(RpcError::too_long()))).await?;
                timeout(shared.timeout, skip_line(&mut read)).await.map_err(|_| io::ErrorKind::TimedOut)??;
            }
            Received::Line(line) => {
                shared.mark(id, None);
                shared.respond(&line, who, &mut write).await?;
                shared.mark(id, Some(Instant::now()));
            }
        }
    }
}

enum Received {
    /// A request; an empty line is none.
    Line(Vec<u8>),
    /// More than [`MAX_REQUEST`] bytes without a line end.
    TooLong,
    /// The peer has closed its side.
    End,
}

/// Waits for a whole line. What a peer sent before it closed its side counts as one.
async fn receive(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Received> {
    loop {
        // Blank lines are none, and many of them are taken at once.
        let blank = read.fill_buf().await?.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        if blank > 0 {
            read.consume(blank);
            continue;
        }
        let mut line = Vec::new();
        read.take(MAX_REQUEST as u64 + 1).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(Received::End);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > MAX_REQUEST {
            return Ok(Received::TooLong);
        }
        if !line.trim_ascii().is_empty() {
            return Ok(Received::Line(line));
        }
    }
}

/// Drops the rest of an over-long line, so that the next request can be answered.
async fn skip_line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
    let mut skipped = 0;
    loop {
        let bytes = read.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |at| at + 1);
        read.consume(taken);
        skipped += taken;
        if end.is_some() {
            return Ok(());
        }
        if skipped > MAX_SKIPPED {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, id: u64, idle_since: Option<Instant>) {
        if let Some(slot) = self.connections().open.get_mut(&id) {
            slot.idle_since = idle_since;
        }
    }

    async fn send(&self, write: &mut OwnedWriteHalf, line: Option<Vec<u8>>) -> io::Result<()> {
        let Some(line) = line else { return Ok(()) };
        timeout(self.timeout, write.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Carries out one request and sends its progress and its reply.
    async fn respond(&self, line: &[u8], peer: Peer, write: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut request = match parse(line) {
            Ok(request) => request,
            Err(refused) => return self.send(write, refused.form.reply(&Err(refused.error))).await,
        };
        match request.call {
            Call::ClearFailureQueue(ref mut query) => query.peer = peer,
            Call::FailureQueueList(query) => return self.send_list(query, request.form, write).await,
            _ => {}
        }
        let is_long = matches!(request.call, Call::RetryFailureQueue(_) | Call::ClearFailureQueue(_) | Call::Stop);
        // A client that has given up has told its operator so: what it asked for must not be done behind their back.
        if is_long && request.form != Form::Notification && has_gone(write) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut progress = self.progress.subscribe();
        let mut next_progress = Instant::now();
        let work = self.carry_out(request.call);
        tokio::pin!(work);
        let outcome = loop {
            let told = async {
                sleep_until(next_progress).await;
                progress.changed().await
            };
            tokio::select! {
                biased;
                outcome = &mut work => break outcome,
                Ok(()) = told, if is_long => {
                    let message = progress.borrow_and_update().clone();
                    self.send(write, request.form.progress(&message)).await?;
                    next_progress = Instant::now() + PROGRESS_PACE;
                }
            }
        };
        self.send(write, request.form.reply(&outcome.map_err(RpcError::from))).await
    }

    /// Makes a list and sends it.
    async fn send_list(&self, query: ListQuery, form: Form, write: &mut OwnedWriteHalf) -> io::Result<()> {
        let limit = Some(query.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX));
        let (query, service, asked) = (ListQuery { limit, ..query }, Arc::clone(&self.service), form.clone());
        let (replies, runtime) = (Arc::clone(&self.replies), Handle::current());
        let made = self.lanes.run(Lane::List, move || {
            let listed = service.failure_list(&query).and_then(json);
            let line = asked.reply(&listed.map_err(RpcError::from));
            let bytes = line.as_ref().map_or(0, Vec::len).min(REPLY_BYTES);
            // Waited for on this thread, so that no further list is made meanwhile. The permits come in time: a client that
            // does not take its list is disconnected.
            let room = runtime.block_on(replies.acquire_many_owned(bytes as u32));
            Ok((line, room.ok()))
        });
        match made.await {
            Ok((line, _room)) => self.send(write, line).await,
            Err(failure) => self.send(write, form.reply(&Err(failure.into()))).await,
        }
    }

    async fn carry_out(&self, call: Call) -> Result<Box<RawValue>, Failure> {
        let service = Arc::clone(&self.service);
        match call {
            Call::Status => {
                let brokers = Arc::clone(&service);
                let ask = move || {
                    brokers.ask_lag();
                    Ok(())
                };
                self.lanes.run(Lane::Lag, ask).await?;
                json(self.lanes.run(Lane::Quick, move || service.status()).await?)
            }
            Call::OffsetChecker => json(self.offsets().await?),
            Call::KafkaLag => json(super::total_lag(&self.offsets().await?)?),
            Call::FailureQueueCount => json(self.lanes.run(Lane::Quick, move || service.failure_count()).await?),
            Call::FailureQueueList(query) => {
                json(self.lanes.run(Lane::List, move || service.failure_list(&query)).await?)
            }
            Call::RetryFailureQueue(reason) => {
                json(self.work_on_queue(move |progress| service.retry_failures(reason, progress)).await?)
            }
            Call::ClearFailureQueue(query) => {
                json(self.work_on_queue(move |progress| service.clear_failures(&query, progress)).await?)
            }
            Call::Reload => json(self.lanes.run(Lane::Reload, move || service.reload()).await?),
            Call::Stop => self.drain().await,
        }
    }

    async fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure> {
        let mut last = self.offsets.lock().await;
        if let Some(Answered { when, answer }) = &*last
            && when.elapsed() < OFFSETS_FRESH
        {
            return answer.clone();
        }
        let service = Arc::clone(&self.service);
        let answer = self.lanes.run(Lane::Brokers, move || service.offsets()).await;
        *last = Some(Answered { when: Instant::now(), answer: answer.clone() });
        answer
    }

    /// Runs a retry or clear once it is its turn, which lasts although its client goes away.
    async fn work_on_queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn(&str)) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let progress = self.progress.clone();
        let work = move || {
            work(&|message| {
                progress.send_replace(message.to_owned());
            })
        };
        self.lanes.run(Lane::Queue, work).await
    }

    async fn drain(&self) -> Result<Box<RawValue>, Failure> {
        loop {
            let service = Arc::clone(&self.service);
            match self.lanes.run(Lane::Quick, move || service.stop()).await? {
                None => return json("drained"),
                Some(in_flight) => self.progress.send_replace(in_flight),
            };
            sleep(DRAIN_PACE).await;
        }
    }
}

/// Whether the peer has closed both its sides, not merely said that it sends no more.
fn has_gone(write: &OwnedWriteHalf) -> bool {
    let stream: &UnixStream = write.as_ref();
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn json(value: impl Serialize) -> Result<Box<RawValue>, Failure> {
    serde_json::value::to_raw_value(&value)
        .map_err(|e| Failure::new(FailureKind::Failed, format!("cannot write the answer as JSON: {e}")))
}
