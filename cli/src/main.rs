//! `outrider`: what operators type. Each verb is one file; this one only starts them and says how they ended.

mod admin;
mod apply;
mod args;
mod ca;
mod canary;
mod certs;
mod check;
mod completions;
mod context;
mod contexts;
mod delete;
mod explain;
mod failure;
mod get;
mod import;
mod known;
mod local;
mod login;
mod manifest;
mod names;
mod operator;
mod output;
mod progress;
mod remote;
mod replay;
mod report;
mod revoke;
mod rollback;
mod run;
mod store;
mod table;
mod test;
mod tied;
mod token;
mod up;
mod view;
mod when;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Args, output::Console};

fn main() -> ExitCode {
    let args = Args::parse();
    let console = Console::new(args.output);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return console.failed(&failure::Failure::Runtime(error)).into(),
    };
    match runtime.block_on(args.run(&console)) {
        Ok(exit) => exit.into(),
        Err(failure) => console.failed(&failure).into(),
    }
}
