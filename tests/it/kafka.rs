//! Faults of Kafka: brokers that die, connections that are cut, logs that are cut, damaged or made anew, and a client that
//! stands still. Each test counts every record at the end.
