//! The broker of a test run: started when the first test asks for it, gone with the test process however that ends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// For brokers that live for seconds or minutes: most of what they need of the processor goes into optimising code that is
/// about to be thrown away.
pub(crate) const JVM: &str = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC";

/// For brokers that are not killed to be started again, which would have to wait for that: a machine that stalls for
/// some seconds has no controller think that they are gone, and take their partitions from them.
pub(crate) const LASTING: &str = "broker.session.timeout.ms=60000";

/// `HOST:PORT` of the broker: the one that `MTGA_TEST_KAFKA` names, else one that `scripts/kafka` brings up.
pub(crate) fn address() -> &'static str {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    &BROKER.get_or_init(Broker::get).address
}

struct Broker {
    address: String,
    /// Its standard input is a pipe of which we hold the other end. When this process is gone the child reads the end of
    /// it and takes the broker down; nothing needs to be run for that here, which would not happen after a kill.
    _keeper: Option<Child>,
}

impl Broker {
    fn get() -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test has no main through which the environment could enter")]
        if let Ok(address) = std::env::var("MTGA_TEST_KAFKA") {
            return Self { address, _keeper: None };
        }
        let mut keeper = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"))
            .env("JAVA_TOOL_OPTIONS", JVM)
            .env("MTGA_KAFKA_PROPERTIES", LASTING)
            .args(["run", "--", "sh", "-c", "echo \"$KAFKA_BROKERS\"; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka starts");
        let mut address = String::new();
        let stdout = keeper.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut address).expect("scripts/kafka tells the address");
        assert!(address.starts_with("127.0.0.1:"), "scripts/kafka brought no broker up: its message is above");
        Self { address: address.trim_end().to_owned(), _keeper: Some(keeper) }
    }
}
