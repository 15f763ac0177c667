//! The words of the control socket: what a line means, and how answers are written. Pure: no I/O, no clock.
//!
//! One request a line, one reply a line, in one of two forms:
//! - JSON-RPC 2.0: `{"jsonrpc":"2.0","id":1,"method":"KafkaLag","params":{}}` is answered by
//!   `{"jsonrpc":"2.0","id":1,"result":1234}` or by an `error` with a standard code; a failure of the service itself has
//!   code -32000 and its kind in `data.kind`. Before the reply of a long call come notifications
//!   `{"jsonrpc":"2.0","method":"Progress","params":{"id":1,"message":"…"}}`. A request without `id` is a notification:
//!   it is carried out and not answered. Batches are refused.
//! - The older form, `{"RpcFuncName":"KafkaLag","Params":[]}`, is answered by the bare result (`1234`, a JSON array, an
//!   object; text as it is) or by `{"error":{…}}`, and never by progress.
//!
//! Parameters are named; `[]` stands for none, and in the older form `[{…}]` for `{…}`. Unknown ones are refused, so that
//! a misspelt filter never empties a whole queue. A line that is none of this gives [`Refused`], never a panic.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{ClearQuery, Failure, FailureKind, ListQuery, Peer};
use crate::record::Reason;

/// Longest request, in bytes, its line end not counted.
pub const MAX_REQUEST: usize = 64 * 1024;

/// The codes of JSON-RPC 2.0.
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
/// The service was asked properly and failed; `data.kind` is the [`FailureKind`].
const SERVICE_FAILED: i64 = -32000;

/// Something that can be asked, with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// `Status`: an object.
    Status,
    /// `OffsetChecker`: an array of partitions.
    OffsetChecker,
    /// `KafkaLag`: the sum of the partitions' lags.
    KafkaLag,
    /// `FailureQueueCount`: an integer.
    FailureQueueCount,
    /// `FailureQueueList` `{limit, reason}`: an array of entries.
    FailureQueueList(ListQuery),
    /// `RetryFailureQueue` `{reason}`: `{left, stayed}`.
    RetryFailureQueue(Option<Reason>),
    /// `ClearFailureQueue` `{older_than_seconds, reason, export}`: how many were removed.
    ClearFailureQueue(ClearQuery),
    /// `Reload`: a line of text.
    Reload,
    /// `Stop`: `"drained"`, once nothing is in flight any more.
    Stop,
}

/// Every method, for the message that refuses an unknown one.
const METHODS: &str = "Status, OffsetChecker, KafkaLag, FailureQueueCount, FailureQueueList, RetryFailureQueue, \
                       ClearFailureQueue, Reload, Stop";

/// Parameters as they stand on the wire.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReasonParams {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListParams {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClearParams {
    #[serde(skip_serializing_if = "Option::is_none")]
    older_than_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    export: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

/// In which form a request is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// JSON-RPC 2.0 with the request's id.
    JsonRpc(Value),
    /// JSON-RPC 2.0 without an id: no answer.
    Notification,
    /// The older form: the bare result.
    Bare,
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// How to answer.
    pub form: Form,
    /// What is asked.
    pub call: Call,
}

/// A request that cannot be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// How to answer.
    pub form: Form,
    /// The answer.
    pub error: RpcError,
}

/// The `error` of a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RpcError {
    /// A code of JSON-RPC 2.0, or -32000 for a [`Failure`].
    pub code: i64,
    /// For people.
    pub message: String,
    /// With a [`Failure`]: its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// The `data` of an [`RpcError`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorData {
    /// What kind of trouble.
    pub kind: FailureKind,
}

/// A line that a client reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// The service is still at it.
    Progress(String),
    /// The reply.
    Reply(Result<Value, Failure>),
}

/// Reads one request, without its line end.
pub fn parse(line: &[u8]) -> Result<Request, Refused> {
    let nobody = |error| Refused { form: Form::JsonRpc(Value::Null), error };
    if line.len() > MAX_REQUEST {
        return Err(nobody(RpcError::too_long()));
    }
    let value: Value =
        serde_json::from_slice(line).map_err(|e| nobody(RpcError::new(PARSE_ERROR, format!("bad JSON: {e}"))))?;
    let Value::Object(mut members) = value else {
        return Err(nobody(RpcError::new(
            INVALID_REQUEST,
            "a request is one JSON object a line; batches are not taken",
        )));
    };
    if members.contains_key("RpcFuncName") && !members.contains_key("jsonrpc") {
        return parse_bare(&mut members).map_err(|error| Refused { form: Form::Bare, error });
    }
    let form = match members.remove("id") {
        None => Form::Notification,
        Some(id @ (Value::Null | Value::Number(_) | Value::String(_))) => Form::JsonRpc(id),
        Some(_) => return Err(nobody(RpcError::new(INVALID_REQUEST, "`id` must be a number, a string or null"))),
    };
    let Some(Value::String(method)) = members.remove("method") else {
        return Err(nobody(RpcError::new(INVALID_REQUEST, "`method` must be a string")));
    };
    if members.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(nobody(RpcError::new(INVALID_REQUEST, "`jsonrpc` must be \"2.0\"")));
    }
    match Call::from_parts(&method, members.remove("params")) {
        Ok(call) => Ok(Request { form, call }),
        Err(error) => Err(Refused { form, error }),
    }
}

/// The older form: `Params` is an array with at most one object.
fn parse_bare(members: &mut Map<String, Value>) -> Result<Request, RpcError> {
    let Some(Value::String(method)) = members.remove("RpcFuncName") else {
        return Err(RpcError::new(INVALID_REQUEST, "`RpcFuncName` must be a string"));
    };
    let params = match members.remove("Params") {
        Some(Value::Array(mut items)) if items.len() == 1 => items.pop(),
        other => other,
    };
    Ok(Request { form: Form::Bare, call: Call::from_parts(&method, params)? })
}

impl Call {
    fn from_parts(method: &str, params: Option<Value>) -> Result<Self, RpcError> {
        let params = match params {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(Value::Array(items)) if items.is_empty() => Value::Object(Map::new()),
            Some(object @ Value::Object(_)) => object,
            Some(_) => return Err(RpcError::new(INVALID_PARAMS, "parameters are named: send an object")),
        };
        let plain = |call, params| take::<NoParams>(params).map(|NoParams {}| call);
        match method {
            "Status" => plain(Self::Status, params),
            "OffsetChecker" => plain(Self::OffsetChecker, params),
            "KafkaLag" => plain(Self::KafkaLag, params),
            "FailureQueueCount" => plain(Self::FailureQueueCount, params),
            "FailureQueueList" => {
                take(params).map(|ListParams { limit, reason }| Self::FailureQueueList(ListQuery { limit, reason }))
            }
            "RetryFailureQueue" => take(params).map(|ReasonParams { reason }| Self::RetryFailureQueue(reason)),
            "ClearFailureQueue" => take::<ClearParams>(params)?.query().map(Self::ClearFailureQueue),
            "Reload" => plain(Self::Reload, params),
            "Stop" => plain(Self::Stop, params),
            _ => {
                let shown: String = method.chars().take(40).collect();
                Err(RpcError::new(METHOD_NOT_FOUND, format!("unknown method `{shown}`, expected one of {METHODS}")))
            }
        }
    }

    /// The method and its parameters, as a client sends them.
    fn parts(&self) -> (&'static str, Value) {
        match self {
            Self::Status => ("Status", json!({})),
            Self::OffsetChecker => ("OffsetChecker", json!({})),
            Self::KafkaLag => ("KafkaLag", json!({})),
            Self::FailureQueueCount => ("FailureQueueCount", json!({})),
            Self::FailureQueueList(query) => {
                ("FailureQueueList", json!(ListParams { limit: query.limit, reason: query.reason }))
            }
            Self::RetryFailureQueue(reason) => ("RetryFailureQueue", json!(ReasonParams { reason: *reason })),
            Self::ClearFailureQueue(query) => ("ClearFailureQueue", json!(ClearParams::new(query))),
            Self::Reload => ("Reload", json!({})),
            Self::Stop => ("Stop", json!({})),
        }
    }

    /// The request line of a client, with its line end.
    pub fn to_line(&self, id: u64) -> Vec<u8> {
        let (method, params) = self.parts();
        line_of(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
    }
}

impl ClearParams {
    fn new(query: &ClearQuery) -> Self {
        Self {
            older_than_seconds: query.older_than.map(|age| age.as_secs_f64()),
            reason: query.reason,
            export: query.export.clone(),
        }
    }

    fn query(self) -> Result<ClearQuery, RpcError> {
        let older_than = self.older_than_seconds.map(Duration::try_from_secs_f64).transpose().map_err(|_| {
            RpcError::new(INVALID_PARAMS, "`older_than_seconds` must be a number of seconds, zero or more")
        })?;
        if self.export.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(RpcError::new(INVALID_PARAMS, "`export` must be an absolute path"));
        }
        Ok(ClearQuery { older_than, reason: self.reason, export: self.export, peer: Peer::default() })
    }
}

fn take<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    serde_json::from_value(params).map_err(|e| RpcError::new(INVALID_PARAMS, format!("wrong parameters: {e}")))
}

impl RpcError {
    fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The answer to a request beyond [`MAX_REQUEST`].
    pub fn too_long() -> Self {
        Self::new(INVALID_REQUEST, format!("the request is longer than {MAX_REQUEST} bytes"))
    }
}

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        Self { code: SERVICE_FAILED, message: failure.message, data: Some(ErrorData { kind: failure.kind }) }
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        let kind = match (error.data, error.code) {
            (Some(data), _) => data.kind,
            (None, INVALID_PARAMS) => FailureKind::Usage,
            (None, _) => FailureKind::Failed,
        };
        Self::new(kind, error.message)
    }
}

impl Form {
    /// The reply line with its line end; `None` where no answer is due. A result may be some megabytes of JSON: it is copied
    /// once, into the line.
    pub fn reply(&self, outcome: &Result<Box<RawValue>, RpcError>) -> Option<Vec<u8>> {
        Some(match (self, outcome) {
            (Self::Notification, _) => return None,
            (Self::JsonRpc(id), Ok(result)) => {
                [r#"{"jsonrpc":"2.0","id":"#, &id.to_string(), r#","result":"#, result.get(), "}\n"]
                    .concat()
                    .into_bytes()
            }
            (Self::JsonRpc(id), Err(error)) => line_of(&json!({"jsonrpc": "2.0", "id": id, "error": error})),
            (Self::Bare, Ok(result)) => match serde_json::from_str::<String>(result.get()) {
                Ok(text) => format!("{}\n", text.replace(['\r', '\n'], " ")).into_bytes(),
                Err(_) => [result.get(), "\n"].concat().into_bytes(),
            },
            (Self::Bare, Err(error)) => line_of(&json!({ "error": error })),
        })
    }

    /// A progress line with its line end; `None` where the form has none.
    pub fn progress(&self, message: &str) -> Option<Vec<u8>> {
        let Self::JsonRpc(id) = self else { return None };
        Some(line_of(&json!({"jsonrpc": "2.0", "method": "Progress", "params": {"id": id, "message": message}})))
    }
}

/// JSON escapes line ends, so a value is always one line.
fn line_of(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Reads one line from a server; `None` when it is neither a reply nor progress.
pub fn parse_reply(line: &[u8]) -> Option<Line> {
    let Value::Object(mut members) = serde_json::from_slice(line).ok()? else { return None };
    if members.get("method").and_then(Value::as_str) == Some("Progress") {
        let message = members.get("params")?.get("message")?.as_str()?;
        return Some(Line::Progress(message.to_owned()));
    }
    if let Some(error) = members.remove("error") {
        let error: RpcError = serde_json::from_value(error).ok()?;
        return Some(Line::Reply(Err(error.into())));
    }
    members.remove("result").map(|result| Line::Reply(Ok(result)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(value: &impl Serialize) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).unwrap()
    }

    fn call(text: &str) -> Call {
        parse(text.as_bytes()).unwrap().call
    }

    fn refusal(text: &str) -> String {
        let refused = parse(text.as_bytes()).unwrap_err();
        let line = refused.form.reply(&Err(refused.error)).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn both_forms_name_the_same_calls() {
        assert_eq!(call(r#"{"jsonrpc":"2.0","id":1,"method":"KafkaLag","params":{}}"#), Call::KafkaLag);
        assert_eq!(call(r#"{"jsonrpc":"2.0","id":"a","method":"KafkaLag"}"#), Call::KafkaLag);
        assert_eq!(call(r#"{"RpcFuncName":"KafkaLag","Params":[]}"#), Call::KafkaLag);
        assert_eq!(call(r#"{"RpcFuncName":"KafkaLag"}"#), Call::KafkaLag);
        let list = Call::FailureQueueList(ListQuery { limit: Some(3), reason: Some(Reason::NoTime) });
        assert_eq!(
            call(r#"{"jsonrpc":"2.0","id":1,"method":"FailureQueueList","params":{"limit":3,"reason":"no_time"}}"#),
            list
        );
        assert_eq!(call(r#"{"RpcFuncName":"FailureQueueList","Params":[{"limit":3,"reason":"no_time"}]}"#), list);
    }

    #[test]
    fn each_wrong_request_has_its_standard_code() {
        for (text, code) in [
            ("{", "-32700"),
            ("", "-32700"),
            ("\u{0}", "-32700"),
            ("[]", "-32600"),
            ("1", "-32600"),
            (r#"{"id":1,"method":"Status"}"#, "-32600"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"Status"}"#, "-32600"),
            (r#"{"jsonrpc":"2.0","id":{},"method":"Status"}"#, "-32600"),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, "-32600"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"Nope"}"#, "-32601"),
            (r#"{"RpcFuncName":"Nope","Params":[]}"#, "-32601"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"Status","params":{"x":1}}"#, "-32602"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"Status","params":[1]}"#, "-32602"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"FailureQueueList","params":{"limit":-1}}"#, "-32602"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"RetryFailureQueue","params":{"reason":"nope"}}"#, "-32602"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ClearFailureQueue","params":{"older_than_seconds":-1}}"#, "-32602"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ClearFailureQueue","params":{"export":"here"}}"#, "-32602"),
        ] {
            let reply = refusal(text);
            assert!(reply.contains(&format!("\"code\":{code}")), "{text} gave {reply}");
        }
        let long = vec![b' '; MAX_REQUEST + 1];
        assert_eq!(parse(&long).unwrap_err().error, RpcError::too_long());
    }

    #[test]
    fn replies_are_written_in_the_form_of_the_request() {
        let rpc = Form::JsonRpc(json!(7));
        let text = |line: Option<Vec<u8>>| line.map(|bytes| String::from_utf8(bytes).unwrap());
        let failed = Err(Failure::new(FailureKind::Unavailable, "broker is down").into());
        assert_eq!(text(rpc.reply(&Ok(raw(&1234)))).unwrap(), "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":1234}\n");
        assert_eq!(
            text(rpc.reply(&failed)).unwrap(),
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"error\":{\"code\":-32000,\"message\":\"broker is down\",\
             \"data\":{\"kind\":\"unavailable\"}}}\n"
        );
        assert_eq!(
            text(rpc.progress("3 left")).unwrap(),
            "{\"jsonrpc\":\"2.0\",\"method\":\"Progress\",\"params\":{\"id\":7,\"message\":\"3 left\"}}\n"
        );
        assert_eq!(text(Form::Bare.reply(&Ok(raw(&1234)))).unwrap(), "1234\n");
        assert_eq!(text(Form::Bare.reply(&Ok(raw(&"two\nlines")))).unwrap(), "two lines\n");
        assert_eq!(Form::Bare.progress("3 left"), None);
        assert_eq!(Form::Notification.reply(&failed), None);
    }

    #[test]
    fn a_failure_crosses_the_wire_unchanged() {
        let failure = Failure::new(FailureKind::CannotCreate, "cannot create `/x`: it is there already");
        let line = Form::JsonRpc(json!(1)).reply(&Err(failure.clone().into())).unwrap();
        assert_eq!(parse_reply(&line), Some(Line::Reply(Err(failure))));
    }

    fn reason() -> impl Strategy<Value = Option<Reason>> {
        proptest::option::of(proptest::sample::select(Reason::ALL.to_vec()))
    }

    fn any_call() -> impl Strategy<Value = Call> {
        prop_oneof![
            Just(Call::Status),
            Just(Call::OffsetChecker),
            Just(Call::KafkaLag),
            Just(Call::FailureQueueCount),
            Just(Call::Reload),
            Just(Call::Stop),
            reason().prop_map(Call::RetryFailureQueue),
            (any::<Option<u64>>(), reason())
                .prop_map(|(limit, reason)| Call::FailureQueueList(ListQuery { limit, reason })),
            (proptest::option::of(0..1_000_000_u64), reason(), proptest::option::of("/[ -~é]{0,20}")).prop_map(
                |(age, reason, export)| Call::ClearFailureQueue(ClearQuery {
                    peer: Peer::Member,
                    older_than: age.map(Duration::from_secs),
                    reason,
                    export: export.map(PathBuf::from),
                })
            ),
        ]
    }

    proptest! {
        #[test]
        fn the_server_understands_every_call_of_the_client(call in any_call(), id in any::<u64>()) {
            let line = call.to_line(id);
            prop_assert_eq!(line.split(|byte| *byte == b'\n').count(), 2);
            let request = parse(&line[..line.len() - 1]).unwrap();
            prop_assert_eq!(request, Request { form: Form::JsonRpc(json!(id)), call });
        }

        #[test]
        fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse_reply(&bytes);
        }

        #[test]
        fn nearly_right_requests_are_answered_in_one_line(
            method in "[A-Za-z\"\\\\\n]{0,12}", id in any::<i32>(), params in "[\\[\\]{}\":a-z0-9,]{0,12}",
        ) {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
            if let Err(refused) = parse(text.as_bytes()) {
                let line = refused.form.reply(&Err(refused.error)).unwrap();
                prop_assert_eq!(line.split(|byte| *byte == b'\n').count(), 2);
            }
        }
    }
}
