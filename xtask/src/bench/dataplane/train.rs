//! The load by which the agent's profile is taken: all that the bench does.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use super::{
    super::{
        Plan,
        ground::{Ground, progress},
    },
    contender::Contender,
    load::{self, Workload},
    mesh,
};
use crate::setup;

/// How long each kind of load lasts.
const TIME: Duration = Duration::from_secs(4);

/// Puts load on a pair of this agent, and ends both in order, so that they write what they counted.
pub(crate) fn train(agent: &Path) -> anyhow::Result<()> {
    setup::run()?;
    let plan = Plan { profile: "dist".to_owned(), ..Plan::default() };
    let ground = Ground::prepare("train", &plan)?.with_agent(agent);
    let backend = ground.nginx()?;
    let mut contender = mesh::start(&ground, &backend, "", 1)?;
    let bar = progress(Workload::ALL.len() as u64);
    for workload in Workload::ALL {
        bar.set_message(workload.word());
        if let Some(address) = workload.address(&contender) {
            load::run(&ground, &workload, &contender, address, TIME)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    finish(&mut contender)
}

/// Has a pair of this agent start, serve and end under valgrind's callgrind. Returns what it wrote, a text for each agent.
pub(crate) fn trace(agent: &Path) -> anyhow::Result<Vec<String>> {
    setup::run()?;
    let plan = Plan { profile: "dist".to_owned(), ..Plan::default() };
    let ground = Ground::prepare("trace", &plan)?;
    let traces = ground.directory().join("traces");
    fs::create_dir_all(&traces)?;
    let script = ground.directory().join("traced");
    // It must not begin anew to set its allocator: valgrind would not go along.
    let text = format!(
        "#!/bin/sh\nOUTRIDER_ALLOCATOR=traced exec valgrind --quiet --tool=callgrind --demangle=no \\\n\
         \"--callgrind-out-file={}/%p\" \"{}\" \"$@\"\n",
        traces.display(),
        agent.display()
    );
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&script)?.write_all(text.as_bytes())?;
    let ground = ground.with_agent(&script);
    let backend = ground.nginx()?;
    let mut contender = mesh::start(&ground, &backend, "", 1)?;
    // What happens now and then.
    std::thread::sleep(TIME);
    finish(&mut contender)?;
    fs::read_dir(&traces)?.map(|file| Ok(fs::read_to_string(file?.path())?)).collect()
}

fn finish(contender: &mut Contender) -> anyhow::Result<()> {
    let pair = contender.pair.take();
    pair.into_iter().flat_map(|(caller, callee)| [caller, callee]).try_for_each(|mut process| process.finish())
}
