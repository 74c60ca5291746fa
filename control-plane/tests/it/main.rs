//! The control plane over real sockets and files: what agents, operators and strangers get from it.

#[cfg(test)]
mod database;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod issuing;
#[cfg(test)]
mod mounted;
#[cfg(test)]
mod operators;
#[cfg(test)]
#[expect(dead_code, unreachable_pub, reason = "other tests use the rest of it")]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;
#[cfg(test)]
mod remote_operators;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod starting;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod vanishing;
