//! A TCP proxy in front of a broker: cuts, stalls, and loses, delays or damages the answers to chosen requests.
//!
//! A client that bootstraps through it stays with it. Brokers tell their address in some answers; there the host is
//! replaced by the proxy's own one, which is another loopback address of the same length, with the same port. So no
//! answer changes its size, and nothing of the protocol need be understood but the frames' first bytes.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Kafka's numbers of requests.
pub(crate) const FETCH: i16 = 1;
/// See [`FETCH`].
pub(crate) const LIST_OFFSETS: i16 = 2;
/// See [`FETCH`].
pub(crate) const METADATA: i16 = 3;
/// See [`FETCH`].
pub(crate) const JOIN_GROUP: i16 = 11;
/// See [`FETCH`].
pub(crate) const OFFSET_COMMIT: i16 = 8;
/// See [`FETCH`].
pub(crate) const HEARTBEAT: i16 = 12;
/// Number of the request `ApiVersions`.
const API_VERSIONS: i16 = 18;
/// Number of the request `DescribeGroups`.
pub(crate) const DESCRIBE_GROUPS: i16 = 15;
/// Number of the request `ConsumerGroupHeartbeat`, of KIP-848.
pub(crate) const CONSUMER_GROUP_HEARTBEAT: i16 = 68;
/// Number of the request `ConsumerGroupDescribe`, of KIP-848.
pub(crate) const CONSUMER_GROUP_DESCRIBE: i16 = 69;

/// A loopback address, as long as ours, that no proxy and no broker has.
pub(crate) const NOWHERE: &str = "127.9.9.9";

/// How an answer is lost. The broker has done what it was asked in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// With its connection, at once.
    Cut,
    /// Alone: whoever waits for it waits until its own time is up.
    Swallowed,
}

/// Requests whose answers tell addresses: metadata, coordinators, the cluster.
const TELLS_ADDRESSES: [i16; 3] = [3, 10, 60];

/// The error of a partition whose leader is being chosen.
const LEADER_NOT_AVAILABLE: i16 = 5;

/// An error that the group gives for one partition, and that passes when someone lifts it.
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

/// The error of a topic that is not there.
const UNKNOWN_TOPIC: i16 = 3;

/// Answers to fetches below this size hold no records worth damaging.
const WITH_RECORDS: usize = 1000;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    /// Everything passes.
    Sound,
    /// No connection lives longer than to be accepted.
    Cut,
    /// Connections live, and nothing passes.
    Stalled,
}

#[derive(Debug)]
struct Faults {
    network: Network,
    /// How many more answers to a request are lost.
    drop: HashMap<i16, (u64, Loss)>,
    /// Topic and partitions of which answers to [`LIST_OFFSETS`] say that they have no leader.
    leaderless: Option<(String, Vec<i32>)>,
    /// Requests that are held back from the broker, although whoever sent them may be gone.
    held: Option<i16>,
    /// How long answers to a request are held back.
    delay: HashMap<i16, Duration>,
    /// How many more answers to a request arrive with a byte changed.
    flip: HashMap<i16, u64>,
    /// How many more answers to a commit say that the last of their partitions was refused.
    refuse: u64,
    /// What becomes of every answer to a request.
    rewrite: HashMap<i16, Rewrite>,
    /// Every open connection, both sides, to be cut.
    open: Vec<TcpStream>,
}

/// What changes an answer.
type Change = dyn FnMut(&mut Vec<u8>) + Send;

/// See [`Change`].
struct Rewrite(Box<Change>);

impl std::fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rewrite")
    }
}

#[derive(Debug)]
struct Shared {
    target: String,
    /// The host as the broker tells it, and ours.
    hosts: (Vec<u8>, Vec<u8>),
    faults: Mutex<Faults>,
    changed: Condvar,
    /// How many answers to each request came from the broker.
    answered: Mutex<HashMap<i16, usize>>,
    dropped: AtomicUsize,
    flipped: AtomicUsize,
    /// How many requests were held back.
    held: AtomicUsize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while this request is held back.
    fn hold(&self, key: i16) {
        let faults = self.lock();
        if faults.held == Some(key) {
            self.held.fetch_add(1, Ordering::AcqRel);
        }
        let is_held = |faults: &mut Faults| faults.held == Some(key);
        drop(self.changed.wait_while(faults, is_held).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits while the network is stalled.
    fn pass(&self) {
        let faults = self.lock();
        let stalled = |faults: &mut Faults| faults.network == Network::Stalled;
        drop(self.changed.wait_while(faults, stalled).unwrap_or_else(PoisonError::into_inner));
    }
}

/// See the module. When dropped, it is cut for good.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: String,
}

impl Proxy {
    /// A proxy in front of a broker, `127.0.0.1:PORT`.
    pub(crate) fn new(target: &str) -> Self {
        Self::telling(target, None)
    }

    /// The same, with a broker that says it is at an address where nobody listens.
    pub(crate) fn to_nowhere(target: &str) -> Self {
        Self::telling(target, Some(NOWHERE))
    }

    fn telling(target: &str, told: Option<&str>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (host, port) = target.split_once(':').expect("HOST:PORT");
        // Test processes that run at the same time begin at different places.
        let (listener, ours) = (0..500)
            .find_map(|_| {
                let number = 2 + (std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed)) % 700;
                let ours = format!("127.{}.{}.{}", number / 100, number / 10 % 10, number % 10);
                TcpListener::bind(format!("{ours}:{port}")).ok().map(|listener| (listener, ours))
            })
            .expect("a free loopback address");
        assert_eq!(host.len(), ours.len(), "the broker is told by an address that ours can stand in for");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            hosts: (host.as_bytes().to_vec(), told.unwrap_or(&ours).into()),
            faults: Mutex::new(Faults {
                network: Network::Sound,
                drop: HashMap::new(),
                leaderless: None,
                held: None,
                delay: HashMap::new(),
                flip: HashMap::new(),
                refuse: 0,
                rewrite: HashMap::new(),
                open: Vec::new(),
            }),
            changed: Condvar::new(),
            answered: Mutex::default(),
            dropped: AtomicUsize::new(0),
            flipped: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // The other end is gone or cut: the client sees a connection that is closed at once.
                drop(connect(&theirs, client));
            }
        });
        Self { address: format!("{ours}:{port}"), shared }
    }

    /// `HOST:PORT` for the client's `bootstrap.servers`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn set(&self, network: Network) {
        let mut faults = self.shared.lock();
        faults.network = network;
        if network == Network::Cut {
            close(&mut faults);
        }
        self.shared.changed.notify_all();
    }

    /// Closes every connection, and new ones as soon as they come.
    pub(crate) fn cut(&self) {
        self.set(Network::Cut);
    }

    /// Lets nothing through any more, and closes nothing.
    pub(crate) fn stall(&self) {
        self.set(Network::Stalled);
    }

    /// Ends [`Proxy::cut`] and [`Proxy::stall`]: what was held back arrives.
    pub(crate) fn heal(&self) {
        self.set(Network::Sound);
    }

    /// Loses the next `count` answers to a request, each together with its connection: the broker has done what it was asked.
    pub(crate) fn drop_answers(&self, api_key: i16, count: u64) {
        self.lose_answers(api_key, count, Loss::Cut);
    }

    /// Loses the next `count` answers to a request.
    pub(crate) fn lose_answers(&self, api_key: i16, count: u64, loss: Loss) {
        self.shared.lock().drop.insert(api_key, (count, loss));
    }

    /// Has every answer to a question for offsets say that these partitions of a topic have no leader; none, that all have one.
    pub(crate) fn without_leader(&self, topic: &str, partitions: &[i32]) {
        self.shared.lock().leaderless = Some((topic.to_owned(), partitions.to_vec()));
    }

    /// How many answers to a request the broker has given so far, whatever became of them.
    pub(crate) fn answered(&self, api_key: i16) -> usize {
        self.shared.answered.lock().unwrap_or_else(PoisonError::into_inner).get(&api_key).copied().unwrap_or(0)
    }

    /// How many answers were lost so far.
    pub(crate) fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Acquire)
    }

    /// Holds requests of this kind back, and what comes behind them, until [`Proxy::let_pass`]: they reach the broker then, also
    /// when who sent them is gone.
    pub(crate) fn hold_requests(&self, api_key: i16) {
        self.shared.lock().held = Some(api_key);
    }

    /// How many requests were held back.
    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(Ordering::Acquire)
    }

    /// Lets go what is held back.
    pub(crate) fn let_pass(&self) {
        self.shared.lock().held = None;
        self.shared.changed.notify_all();
    }

    /// Holds every answer to a request back for so long, or until another delay is chosen.
    pub(crate) fn delay_answers(&self, api_key: i16, delay: Duration) {
        self.shared.lock().delay.insert(api_key, delay);
        self.shared.changed.notify_all();
    }

    /// Makes the next `count` answers to a commit say that the last of their partitions was refused. The broker has taken it.
    pub(crate) fn refuse_last_partition(&self, count: u64) {
        self.shared.lock().refuse = count;
    }

    /// How many more answers are to be changed so.
    pub(crate) fn still_to_refuse(&self) -> u64 {
        self.shared.lock().refuse
    }

    /// Changes a byte near the end of the next `count` answers to a request that are large enough to hold records.
    pub(crate) fn damage_answers(&self, api_key: i16, count: u64) {
        self.shared.lock().flip.insert(api_key, count);
    }

    /// Changes every answer to a request, until [`Proxy::pass_unchanged`].
    pub(crate) fn rewrite(&self, api_key: i16, change: impl FnMut(&mut Vec<u8>) + Send + 'static) {
        self.shared.lock().rewrite.insert(api_key, Rewrite(Box::new(change)));
    }

    /// Has brokers say that there is no topic of this name, until [`Proxy::pass_unchanged`].
    pub(crate) fn hide_topic(&self, name: &str) {
        let name = name.to_owned();
        self.rewrite(METADATA, move |frame| {
            for at in 3..frame.len() {
                // Behind its error and the length of its name, before its id.
                if frame[at..].starts_with(name.as_bytes()) && frame[at - 1] == name.len() as u8 + 1 {
                    frame[at - 3..at - 1].copy_from_slice(&UNKNOWN_TOPIC.to_be_bytes());
                }
            }
        });
    }

    /// Has brokers leave the topic of this name out of what they say of topics, until [`Proxy::pass_unchanged`].
    pub(crate) fn leave_out_topic(&self, name: &str) {
        let name = name.to_owned();
        self.rewrite(METADATA, move |frame| without_topic(frame, &name));
    }

    /// Has brokers answer questions about topics as if the cluster had no brokers, until [`Proxy::pass_unchanged`]: as the last
    /// one does while it is shut down in good order.
    pub(crate) fn without_brokers(&self) {
        self.rewrite(METADATA, without_brokers);
    }

    /// Has brokers offer no version of a request in which topics have ids: as those before 2.8, for a classic group.
    pub(crate) fn without_topic_ids(&self) {
        self.rewrite(API_VERSIONS, |frame| {
            // Behind the correlation id and the error: a list of keys, each with its versions and an empty list of tags.
            assert!(frame[6] < 128, "more than one byte of length");
            let count = usize::from(frame[6]) - 1;
            for key in frame[7..].chunks_exact_mut(7).take(count) {
                let last: i16 = match i16::from_be_bytes([key[0], key[1]]) {
                    METADATA => 9,
                    FETCH => 12,
                    _ => continue,
                };
                key[4..6].copy_from_slice(&last.to_be_bytes());
            }
        });
    }

    /// Ends [`Proxy::rewrite`].
    pub(crate) fn pass_unchanged(&self) {
        self.shared.lock().rewrite.clear();
    }

    /// How many answers were damaged so far.
    pub(crate) fn damaged(&self) -> usize {
        self.shared.flipped.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

fn close(faults: &mut Faults) {
    for stream in faults.open.drain(..) {
        // Closed already is as good.
        drop(stream.shutdown(Shutdown::Both));
    }
}

/// Connects a client with the broker; two threads carry frames until either side ends.
fn connect(shared: &Arc<Shared>, client: TcpStream) -> io::Result<()> {
    shared.pass();
    let broker = TcpStream::connect(&shared.target)?;
    {
        let mut faults = shared.lock();
        if faults.network == Network::Cut {
            return Ok(());
        }
        faults.open.extend([client.try_clone()?, broker.try_clone()?]);
    }
    for stream in [&client, &broker] {
        stream.set_nodelay(true)?;
    }
    let asked: Arc<Mutex<HashMap<[u8; 4], Request>>> = Arc::default();
    let (from_client, to_broker) = (client.try_clone()?, broker.try_clone()?);
    let (requests, requested) = (Arc::clone(shared), Arc::clone(&asked));
    thread::spawn(move || {
        let carried = carry(&requests, from_client, &to_broker, |frame| {
            let key = i16::from_be_bytes([frame[0], frame[1]]);
            let version = i16::from_be_bytes([frame[2], frame[3]]);
            let id = [frame[4], frame[5], frame[6], frame[7]];
            requested.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (key, version));
            requests.hold(key);
            Fate::Arrives
        });
        drop(carried.and_then(|()| to_broker.shutdown(Shutdown::Both)));
    });
    let answers = Arc::clone(shared);
    thread::spawn(move || {
        let carried = carry(&answers, broker, &client, |frame| {
            let id = [frame[0], frame[1], frame[2], frame[3]];
            let key = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            key.map_or(Fate::Arrives, |key| answer(&answers, key, frame))
        });
        drop(carried.and_then(|()| client.shutdown(Shutdown::Both)));
    });
    Ok(())
}

/// A request's number and version.
type Request = (i16, i16);

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// With its connection.
    Lost,
    /// Alone.
    Swallowed,
}

/// Carries whole frames from one side to the other.
fn carry(
    shared: &Shared,
    mut from: TcpStream,
    mut to: &TcpStream,
    mut fate: impl FnMut(&mut Vec<u8>) -> Fate,
) -> io::Result<()> {
    let mut frame = Vec::new();
    loop {
        let mut length = [0; 4];
        let read = from.read_exact(&mut length).and_then(|()| {
            frame.resize(u32::from_be_bytes(length) as usize, 0);
            from.read_exact(&mut frame)
        });
        let fate = if read.is_err() || frame.len() < 8 { Fate::Lost } else { fate(&mut frame) };
        match fate {
            Fate::Arrives => {}
            Fate::Swallowed => continue,
            Fate::Lost => {
                from.shutdown(Shutdown::Both)?;
                return to.shutdown(Shutdown::Both);
            }
        }
        shared.pass();
        to.write_all(&(frame.len() as u32).to_be_bytes())?;
        to.write_all(&frame)?;
    }
}

/// Applies the faults that are chosen for a request to an answer.
fn answer(shared: &Shared, (key, version): Request, frame: &mut Vec<u8>) -> Fate {
    *shared.answered.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    {
        let mut faults = shared.lock();
        if let Some((left, loss)) = faults.drop.get_mut(&key).filter(|(left, _)| *left > 0) {
            *left -= 1;
            shared.dropped.fetch_add(1, Ordering::AcqRel);
            return match loss {
                Loss::Cut => Fate::Lost,
                Loss::Swallowed => Fate::Swallowed,
            };
        }
        if key == LIST_OFFSETS
            && let Some((topic, partitions)) = &faults.leaderless
        {
            take_leaders(frame, version, topic, partitions);
        }
        if frame.len() > WITH_RECORDS
            && let Some(left) = faults.flip.get_mut(&key).filter(|left| **left > 0)
        {
            *left -= 1;
            shared.flipped.fetch_add(1, Ordering::AcqRel);
            let at = frame.len() - 30;
            frame[at] ^= 1;
        }
        if key == OFFSET_COMMIT && faults.refuse > 0 {
            faults.refuse -= 1;
            // It ends with the error of the last partition; from version 8 on with three empty lists of tags behind that.
            let end = frame.len() - if version < 8 { 0 } else { 3 };
            frame[end - 2..end].copy_from_slice(&TOPIC_AUTHORIZATION_FAILED.to_be_bytes());
        }
        if let Some(Rewrite(change)) = faults.rewrite.get_mut(&key) {
            change(frame);
        }
        if let Some(delay) = faults.delay.get(&key).copied() {
            let lasts = |faults: &mut Faults| faults.delay.get(&key) == Some(&delay);
            drop(shared.changed.wait_timeout_while(faults, delay, lasts));
        }
    }
    if TELLS_ADDRESSES.contains(&key) {
        let (theirs, ours) = &shared.hosts;
        for at in 0..frame.len().saturating_sub(theirs.len()) {
            if frame[at..].starts_with(theirs) {
                frame[at..at + ours.len()].copy_from_slice(ours);
            }
        }
    }
    Fate::Arrives
}

/// Takes a topic out of an answer to [`METADATA`], of version 10 or later.
fn without_topic(frame: &mut Vec<u8>, name: &str) {
    let mut at = Place { frame, at: 4 };
    at.tags();
    // How long the brokers throttle; the brokers; the cluster's id; the controller.
    at.skip(4);
    for _ in 0..at.length() {
        at.broker();
    }
    at.bytes();
    at.skip(4);
    let list = at.at;
    let count = at.length();
    let behind = at.at;
    let topics: Vec<_> = (0..count).map(|_| at.topic()).collect();
    let Some((_, place)) = topics.into_iter().find(|(found, _)| found == name.as_bytes()) else { return };
    frame.drain(place);
    // Lengths are of 7 bits a byte, the lowest first, and one more than what they count.
    let length = count as u8;
    assert!(behind == list + 1 && count < 127, "more than one byte of length");
    frame[list] = length;
}

/// Takes the brokers and the controller out of an answer to [`METADATA`], of version 10 or later, that tells of topics.
fn without_brokers(frame: &mut Vec<u8>) {
    let mut at = Place { frame, at: 4 };
    at.tags();
    at.skip(4);
    let list = at.at;
    for _ in 0..at.length() {
        at.broker();
    }
    let behind = at.at;
    at.bytes();
    let controller = at.at;
    at.skip(4);
    if at.length() == 0 {
        return;
    }
    frame[controller..controller + 4].copy_from_slice(&(-1_i32).to_be_bytes());
    // The length of a list with nothing in it is 1.
    frame.splice(list..behind, [1]);
}

/// A place in an answer whose lengths are variable.
struct Place<'a> {
    frame: &'a [u8],
    at: usize,
}

impl Place<'_> {
    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn number(&mut self) -> usize {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = self.frame[self.at];
            self.at += 1;
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 128 {
                break;
            }
        }
        number
    }

    /// Of a list or a text; 0 of none.
    fn length(&mut self) -> usize {
        self.number().saturating_sub(1)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.length();
        self.skip(length);
        self.frame[self.at - length..self.at].to_vec()
    }

    fn tags(&mut self) {
        for _ in 0..self.number() {
            self.number();
            let size = self.number();
            self.skip(size);
        }
    }

    /// A broker of [`METADATA`].
    fn broker(&mut self) {
        // Its number, its host, its port, its rack.
        self.skip(4);
        self.bytes();
        self.skip(4);
        self.bytes();
        self.tags();
    }

    /// A topic of [`METADATA`]: its name, and where it stands.
    fn topic(&mut self) -> (Vec<u8>, std::ops::Range<usize>) {
        let from = self.at;
        self.skip(2);
        let name = self.bytes();
        // Its id, and whether it is the brokers' own.
        self.skip(16 + 1);
        for _ in 0..self.length() {
            // Error, number, leader, epoch; replicas, those in sync, those that are away.
            self.skip(2 + 4 + 4 + 4);
            for _ in 0..3 {
                let replicas = self.length();
                self.skip(4 * replicas);
            }
            self.tags();
        }
        // What whoever asks may do.
        self.skip(4);
        self.tags();
        (name, from..self.at)
    }
}

/// Has an answer to [`LIST_OFFSETS`] say that these partitions of a topic have no leader.
fn take_leaders(frame: &mut [u8], version: i16, topic: &str, partitions: &[i32]) {
    // From version 6 on lengths are variable, and lists of tags follow everything.
    let flexible = version >= 6;
    let mut at = 4 + usize::from(flexible);
    // How long the brokers throttle.
    at += 4;
    let count = |frame: &[u8], at: &mut usize| {
        if flexible {
            let count = usize::from(frame[*at]);
            assert!(count < 128, "more than one byte of length");
            *at += 1;
            count - 1
        } else {
            let count = i32::from_be_bytes(frame[*at..*at + 4].try_into().expect("four bytes"));
            *at += 4;
            usize::try_from(count).expect("a count")
        }
    };
    for _ in 0..count(frame, &mut at) {
        let length = if flexible {
            count(frame, &mut at)
        } else {
            at += 2;
            usize::from(u16::from_be_bytes([frame[at - 2], frame[at - 1]]))
        };
        let is_meant = &frame[at..at + length] == topic.as_bytes();
        at += length;
        for _ in 0..count(frame, &mut at) {
            let partition = i32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
            if is_meant && partitions.contains(&partition) {
                frame[at + 4..at + 6].copy_from_slice(&LEADER_NOT_AVAILABLE.to_be_bytes());
                // Neither time nor offset.
                frame[at + 6..at + 22].fill(0xff);
            }
            // Partition, error, time, offset, epoch.
            at += 4 + 2 + 8 + 8 + if version >= 4 { 4 } else { 0 } + usize::from(flexible);
        }
        at += usize::from(flexible);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Codec, Mix, SOON, Topic, broker, holds, wait_until};
    use rdkafka::consumer::{BaseConsumer, Consumer as _};

    fn consumer(proxy: &Proxy) -> BaseConsumer {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", proxy.address()).set("reconnect.backoff.max.ms", "100");
        config.create().expect("a consumer")
    }

    #[test]
    fn what_is_cut_is_cut_and_what_is_stalled_passes_in_the_end() {
        let topic = Topic::create("proxy", 1);
        topic.fill(Codec::None, Mix::Clean, 0, 10);
        let proxy = Proxy::new(broker::address());
        let client = consumer(&proxy);
        let look = |patience| client.fetch_watermarks(&topic.name, 0, patience);
        assert_eq!(look(SOON).expect("it passes"), (0, 10));
        proxy.cut();
        look(Duration::from_millis(500)).expect_err("nothing passes");
        proxy.heal();
        wait_until("it passes again", SOON, || {
            let found = look(Duration::from_secs(5));
            holds(found == Ok((0, 10)), found)
        });
        proxy.stall();
        look(Duration::from_millis(500)).expect_err("nothing passes");
        proxy.heal();
        assert_eq!(look(SOON).expect("it passes again"), (0, 10));
    }
}
