//! Rights at a broker with an authorizer, whose clients are all `User:ANONYMOUS`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::SOON;

/// What a broker needs for it, further lines of its properties. What has no rule is everybody's. It is not started
/// again; see [`super::broker::LASTING`].
pub(crate) const AUTHORIZER: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                                     allow.everyone.if.no.acl.found=true\n\
                                     broker.session.timeout.ms=60000";

/// Resource types and operations, by their numbers in the protocol.
pub(crate) const TOPIC: u8 = 2;
pub(crate) const GROUP: u8 = 3;
pub(crate) const READ: u8 = 3;
pub(crate) const WRITE: u8 = 4;
pub(crate) const DESCRIBE: u8 = 8;

/// Number of the request `CreateAcls`.
const CREATE_ACLS: i16 = 30;

/// Takes every right on a resource from our clients, by a rule that grants it to another user.
pub(crate) fn restrict(broker: &str, resource: u8, name: &str) {
    create(broker, resource, name, "User:another", READ);
}

/// Grants our clients an operation on a resource.
pub(crate) fn grant(broker: &str, resource: u8, name: &str, operation: u8) {
    create(broker, resource, name, "User:ANONYMOUS", operation);
}

fn create(broker: &str, resource: u8, name: &str, principal: &str, operation: u8) {
    // Pattern type 3 is a literal name, permission 3 is "allow".
    let (version, literal, allow) = (1i16, 3u8, 3u8);
    let mut body = Vec::new();
    let text = |body: &mut Vec<u8>, text: &str| {
        body.extend((text.len() as i16).to_be_bytes());
        body.extend(text.as_bytes());
    };
    body.extend(CREATE_ACLS.to_be_bytes());
    body.extend(version.to_be_bytes());
    body.extend(7i32.to_be_bytes());
    text(&mut body, "test");
    body.extend(1i32.to_be_bytes());
    body.push(resource);
    text(&mut body, name);
    body.push(literal);
    text(&mut body, principal);
    text(&mut body, "*");
    body.extend([operation, allow]);
    let mut connection = TcpStream::connect(broker).expect("the broker takes connections");
    connection.set_read_timeout(Some(SOON)).expect("a socket");
    connection.write_all(&(body.len() as i32).to_be_bytes()).expect("a request");
    connection.write_all(&body).expect("a request");
    let mut length = [0; 4];
    connection.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    connection.read_exact(&mut answer).expect("an answer");
    // Correlation id, throttle time, number of results, and the first one's error.
    assert_eq!(answer.get(8..14), Some(&[0, 0, 0, 1, 0, 0][..]), "the broker takes the rule: {answer:?}");
}
