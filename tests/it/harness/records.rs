//! Records to produce. Record `n` of a mix is always the same, so a failure can be looked at again.
//!
//! Every record that can become a line carries `"sn":"<partition>-<n>"` in its `logs`, which tells lines apart.

/// A record as it is produced.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    /// Milliseconds since 1970 UTC.
    pub(crate) timestamp: i64,
}

/// What a test produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Every record becomes a line.
    Clean,
    /// One in three is odd, filtered or bad.
    Dirty,
}

impl Mix {
    /// Record `n`, for one of so many partitions.
    pub(crate) fn record(self, n: u64, partitions: i32) -> Record {
        let mut random = Random(n);
        let partition = (random.below(partitions as u64)) as i32;
        let sn = format!("{partition}-{n}");
        let odd = self == Self::Dirty && n % 3 == 1;
        let value = if odd { strange(n / 3, &sn) } else { Some(plain(&mut random, &sn)) };
        Record {
            partition,
            key: n.is_multiple_of(2).then(|| sn.into_bytes()),
            value,
            timestamp: 1_700_000_000_000 + n as i64 * 7,
        }
    }
}

/// A sound record of this size.
pub(crate) fn padded(n: u64, partitions: i32, size: usize) -> Record {
    let partition = (n % partitions as u64) as i32;
    let value = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_big"}},"logs":{{"sn":"{partition}-{n}","role_id":1,"mtime":1608184243,"text":"{}"}}}}"#,
        "x".repeat(size)
    );
    Record { partition, key: None, value: Some(value.into_bytes()), timestamp: 1_700_000_000_000 }
}

/// splitmix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// About 530 bytes, as a game server logs them.
fn plain(random: &mut Random, sn: &str) -> Vec<u8> {
    const NAMES: [&str; 5] = ["log_item", "log_login", "log_pay", "log_level", "log_mail"];
    let name = NAMES[random.below(5) as usize];
    let role = 6_001_310_000_000 + random.below(1_000_000);
    let mtime = 1_608_184_243 + random.below(90_000);
    let item = random.below(99_999_999);
    let action = random.below(4000);
    format!(
        concat!(
            r#"{{"headers":{{"app_id":24,"log_name":"{name}"}},"logs":{{"account_name":"4866014107","action":{action},"#,
            r#""agent_id":36,"amount":1,"bag_amount":0,"bag_type":0,"bind_type":1,"client_version":"","device_id":"","#,
            r#""end_time":0,"idfa":"","imei":"","is_internal":0,"item_id":{item},"mac":"","mtime":{mtime},"#,
            r#""pid":1608184244000008,"platform":3100,"quality":0,"regrow":14,"role_id":{role},"role_level":800,"#,
            r#""server_id":5001,"server_version":"","sn":"{sn}","star":0,"start_time":{mtime},"upf":3100,"#,
            r#""via":"36|3100","zero_dateline":1608134400}}}}"#
        ),
        name = name,
        action = action,
        item = item,
        mtime = mtime,
        role = role,
        sn = sn,
    )
    .into_bytes()
}

/// The `i`-th odd record. Each row is a case; the oracle says what becomes of it.
fn strange(i: u64, sn: &str) -> Option<Vec<u8>> {
    // `logs` with these members after `sn`, in a record that is otherwise sound.
    let logs = |members: &str| {
        format!(r#"{{"headers":{{"app_id":24,"log_name":"log_item"}},"logs":{{"sn":"{sn}"{members}}}}}"#)
    };
    // A sound `logs` under these headers.
    let headers = |text: &str| format!(r#"{{"headers":{text},"logs":{{"sn":"{sn}","role_id":7,"mtime":1608184243}}}}"#);
    let text = match i % 48 {
        // Numbers, strings and order stay as they are; white space between tokens goes.
        0 => logs(
            r#","role_id":1,"mtime":1608184243,"n":[1.10,1e400,-0,-0.0,1E+2,1608184244000008,123456789012345678901234567890]"#,
        ),
        1 => logs(r#","role_id":1,"mtime":1608184243,"s":"\u4e2d\n\t\"\\\/ 中文 \ud83d\ude00 😀","z":1,"a":2"#),
        2 => logs(
            " ,\t\"role_id\" : 1 ,\r\n \"mtime\":\n1608184243, \"o\" : { \"b\" : [ 1 , { } , [ ] ] , \"a\" : null } ",
        ),
        3 => format!(" \n{}\r\n ", logs(r#","role_id":1,"mtime":1608184243,"t":true,"f":false"#)),
        // Duplicate keys: the last one counts for `#` keys, `properties` has both.
        4 => logs(r#","role_id":1,"role_id":2,"mtime":1608184243,"x":1,"x":2"#),
        5 => format!(
            r#"{{"logs":[],"headers":[],{}"#,
            &headers(r#"{"app_id":25,"app_id":24,"log_name":"no","log_name":"log_a"}"#)[1..]
        ),
        6 => format!(r#"{{"extra":{{"a":[1]}},"more":null,{}"#, &logs(r#","role_id":1,"mtime":1608184243"#)[1..]),
        // `#` values.
        7 => logs(r#","role_id":"text","distinct_id":"d-1","ip":"10.0.0.1","mtime":1608184243"#),
        8 => logs(r#","role_id":null,"distinct_id":12,"mtime":1608184243"#),
        9 => logs(r#","role_id":[1],"distinct_id":"d","ip":{},"mtime":1608184243"#),
        10 => logs(r#","role_id":true,"distinct_id":"d","ip":false,"mtime":1608184243"#),
        11 => headers(r#"{"app_id":"24","log_name":"log_item"}"#),
        12 => headers(r#"{"log_name":"log_item"}"#),
        // Forms of the time.
        13 => logs(r#","role_id":1,"mtime":"1608184243""#),
        14 => logs(r#","role_id":1,"mtime":1608184243042"#),
        15 => logs(r#","role_id":1,"mtime":"1608184243042""#),
        16 => logs(r#","role_id":1,"mtime":1608184243042999"#),
        17 => logs(r#","role_id":1,"mtime":"2020-12-17 13:50:43""#),
        18 => logs(r#","role_id":1,"mtime":"2020-12-17 13:50:43.007""#),
        19 => logs(r#","role_id":1,"mtime":"2020-12-17T05:50:43Z""#),
        20 => logs(r#","role_id":1,"mtime":"2020-12-31T23:59:59.250-02:30""#),
        // No time of its own: the record's.
        21 => logs(r#","role_id":1"#),
        22 => logs(r#","role_id":1,"mtime":0"#),
        23 => logs(r#","role_id":1,"mtime":-5"#),
        24 => logs(r#","role_id":1,"mtime":"yesterday""#),
        25 => logs(r#","role_id":1,"mtime":null"#),
        26 => logs(r#","role_id":1,"mtime":"2020-13-17 13:50:43""#),
        // Filtered.
        27 => return None,
        28 => headers(r#"{"app_id":25,"log_name":"log_item"}"#),
        29 => headers(r#"{"app_id":"240","log_name":"log_item"}"#),
        30 => headers(r#"{"app_id":24,"log_name":"tbllog_pay"}"#),
        // Rejected.
        31 => return Some(Vec::new()),
        32 => logs("")[..30].to_owned(),
        33 => logs(",}"),
        34 => format!("{}x", logs("")),
        35 => "[1,2]".to_owned(),
        36 => return Some(logs(r#","role_id":1,"bad":"?""#).replace('?', "\u{1}").into_bytes()),
        37 => {
            return Some(logs(r#","role_id":1,"bad":"?""#).bytes().map(|b| if b == b'?' { 0xff } else { b }).collect());
        }
        38 => format!(r#"{{"logs":{{"sn":"{sn}"}}}}"#),
        39 => headers("[]"),
        40 => headers(r#"{"app_id":24}"#),
        41 => headers(r#"{"app_id":24,"log_name":""}"#),
        42 => headers(r#"{"app_id":24,"log_name":7}"#),
        43 => r#"{"headers":{"app_id":24,"log_name":"log_item"}}"#.to_owned(),
        44 => r#"{"headers":{"app_id":24,"log_name":"log_item"},"logs":"text"}"#.to_owned(),
        45 => headers(r#"{"app_id":24,"log_name":"log-item"}"#),
        46 => logs(r#","role_id":"","distinct_id":null,"mtime":1608184243"#),
        _ => logs(&format!(r#","role_id":"{}","mtime":1608184243"#, "9".repeat(129))),
    };
    Some(text.into_bytes())
}
